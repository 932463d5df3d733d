"""Making a project."""

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from accounts.forms import ProjectForm
from accounts.models import Project
from accounts.permissions import MemberRequest
from accounts.services import create_project


@require_http_methods(["GET", "POST"])
@login_required
def project_new(request: MemberRequest) -> HttpResponse:
    """For a site admin, and for those who manage a project already."""
    if not request.user.is_superuser and not Project.objects.managed_by(request.user).exists():
        raise PermissionDenied
    form = ProjectForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        made = create_project(
            name=form.cleaned_data["name"], manager=request.user, description=form.cleaned_data["description"]
        )
        made.guidelines = form.cleaned_data["guidelines"]
        made.save(update_fields=["guidelines"])
        return redirect("overview", made.slug)
    return render(request, "accounts/project_new.html", {"form": form})
