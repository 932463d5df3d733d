"""Who may open a view: a person who is not a member of the project sees 404, a member without the role 403."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django_htmx.middleware import HtmxDetails

from accounts.models import Membership, Project, Role, User


class MemberRequest(HttpRequest):
    """A signed-in request inside a project."""

    user: User
    project: Project
    role: str
    htmx: HtmxDetails


# What a role includes: managers also review and annotate, reviewers also annotate.
INCLUDES = {
    Role.ANNOTATOR: {Role.ANNOTATOR, Role.REVIEWER, Role.MANAGER},
    Role.REVIEWER: {Role.REVIEWER, Role.MANAGER},
    Role.MANAGER: {Role.MANAGER},
}


def role_in(user: User, project: Project) -> str | None:
    """The role of a person in a project; a site admin manages every project; None for an outsider."""
    if user.is_superuser:
        return Role.MANAGER
    return Membership.objects.filter(project=project, user=user).values_list("role", flat=True).first()


def role_required(role: Role) -> Callable[[Callable[..., HttpResponse]], Callable[..., HttpResponse]]:
    """Open a view, whose first URL argument is the project's slug, to members who have the role."""

    def decorate(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
        @wraps(view)
        def inner(request: MemberRequest, slug: str, *args: Any, **kwargs: Any) -> HttpResponse:
            request.project = get_object_or_404(Project.objects.seen_by(request.user).distinct(), slug=slug)
            request.role = role_in(request.user, request.project) or ""
            if request.role not in INCLUDES[role]:
                raise PermissionDenied
            return view(request, *args, **kwargs)

        return login_required(inner)

    return decorate
