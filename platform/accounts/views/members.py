"""Who is in a project, with which role."""

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts.forms import MemberForm
from accounts.membership import MembershipError, change_role, new_password, remove_member
from accounts.models import Membership, Role
from accounts.permissions import MemberRequest, role_in, role_required
from accounts.services import add_member


@never_cache
@require_http_methods(["GET", "POST"])
@role_required(Role.MANAGER)
def members(request: MemberRequest) -> HttpResponse:
    action = request.POST.get("action", "")
    if action == "add":
        return _add(request)
    if action == "password":
        return _password(request)
    if action in {"change", "remove"}:
        return _edit(request, action)
    return _page(request, MemberForm())


def _page(request: MemberRequest, form: MemberForm, **more: object) -> HttpResponse:
    rows = Membership.objects.filter(project=request.project).select_related("user")
    return render(
        request,
        "accounts/members.html",
        {"project": request.project, "members": rows, "roles": Role, "form": form, **more},
    )


def _add(request: MemberRequest) -> HttpResponse:
    form = MemberForm(request.POST)
    if not form.is_valid():
        return _page(request, form)
    name = form.cleaned_data["username"]
    if Membership.objects.filter(project=request.project, user__username=name).exists():
        form.add_error("username", _("%(name)s is already a member: change the role in the list.") % {"name": name})
        return _page(request, form)
    membership, password = add_member(project=request.project, username=name, role=form.cleaned_data["role"])
    if password:  # shown by this answer only: a redirect would have to keep it somewhere
        return _page(request, MemberForm(), added=membership, password=password, is_new=True)
    messages.success(request, _("%(name)s is in the project.") % {"name": membership.user.username})
    return redirect("members", request.project.slug)


def _password(request: MemberRequest) -> HttpResponse:
    try:
        membership, password = new_password(project=request.project, username=_username(request), by=request.user)
    except MembershipError as error:
        messages.error(request, str(error))
        return redirect("members", request.project.slug)
    return _page(request, MemberForm(), added=membership, password=password)


def _edit(request: MemberRequest, action: str) -> HttpResponse:
    name, role = _username(request), request.POST.get("role", "")
    try:
        if action == "remove":
            remove_member(project=request.project, username=name)
            messages.success(
                request, _("%(name)s is no longer a member; what they wrote and ranked stays.") % {"name": name}
            )
        elif role in Role.values:
            change_role(project=request.project, username=name, role=role)
            messages.success(request, _("%(name)s: %(role)s.") % {"name": name, "role": Role(role).label})
    except MembershipError as error:
        messages.error(request, str(error))
    may_stay = role_in(request.user, request.project) == Role.MANAGER  # one may have changed oneself
    return redirect("members", request.project.slug) if may_stay else redirect("home")


def _username(request: MemberRequest) -> str:
    return request.POST.get("username", "").replace("\0", "")  # PostgreSQL takes no zero character
