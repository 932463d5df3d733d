"""Addresses of the pages about people and projects."""

from django.urls import path

from accounts.views.members import members
from accounts.views.projects import project_new

urlpatterns = [
    path("projects/new/", project_new, name="project_new"),
    path("p/<slug:slug>/members/", members, name="members"),
]
