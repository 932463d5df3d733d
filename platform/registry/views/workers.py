"""Which workers are missing, for the banner of pages that stay open."""

from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from accounts.models import Project
from accounts.permissions import MemberRequest
from registry.health import missing_queues


@never_cache
@require_GET
@login_required
def workers(request: MemberRequest) -> HttpResponse:
    """The banner, or 204 while nothing has changed; 286 tells htmx to stop asking, for who manages nothing."""
    if not Project.objects.managed_by(request.user).exists():
        return HttpResponse(status=286)
    missing = missing_queues()
    if request.GET.get("seen") == ",".join(missing):
        return HttpResponse(status=204)
    return render(request, "registry/_workers.html", {"missing": missing})
