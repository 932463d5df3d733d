"""The project as a loop: what is where, where the round stands, what to do next."""

from django.http import HttpResponse
from django.views.decorators.http import require_GET

from accounts.models import Role
from accounts.permissions import MemberRequest, role_required
from labeling.loop import loop_of
from registry import refresh


@require_GET
@role_required(Role.ANNOTATOR)
def overview(request: MemberRequest) -> HttpResponse:
    loop = loop_of(request.project, request.user, request.role)
    context = {"project": request.project, "loop": loop, "manages": request.role == Role.MANAGER}
    part = refresh.part(request, "labeling/_loop.html", context, every="5s")
    return refresh.page(request, "labeling/overview.html", part, context)
