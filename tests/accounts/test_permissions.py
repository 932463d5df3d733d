"""Who gets through: outsiders do not learn that a project exists, members see what their role includes."""

from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse
from django.test import RequestFactory

from accounts.models import Project, Role, User
from accounts.permissions import role_in, role_required


def _open(role: Role, user: Any, slug: str = "plaza") -> HttpResponse:
    """What a view for `role` answers; it says who may do what there."""

    @role_required(role)
    def view(request: Any, pk: int) -> HttpResponse:
        return HttpResponse(f"{request.project.slug} {request.role} {pk}")

    request = RequestFactory().get("/p/x/")
    request.user = user
    return view(request, slug=slug, pk=7)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("bob", {Role.ANNOTATOR}),
        ("rita", {Role.ANNOTATOR, Role.REVIEWER}),
        ("alice", {Role.ANNOTATOR, Role.REVIEWER, Role.MANAGER}),
    ],
)
def test_a_role_includes_the_ones_below_it(name: str, allowed: set[Role], request: Any) -> None:
    user = request.getfixturevalue(name)
    for role in Role:
        if role in allowed:
            assert _open(role, user).content.decode() == f"plaza {role_in(user, Project.objects.get())} 7"
        else:
            with pytest.raises(PermissionDenied):
                _open(role, user)


def test_an_outsider_and_a_wrong_address_get_the_same_404(project: Project, charlie: User) -> None:
    for slug in ("plaza", "no-such-place"):
        with pytest.raises(Http404):
            _open(Role.ANNOTATOR, charlie, slug)
    assert role_in(charlie, project) is None


def test_a_stranger_is_led_to_the_sign_in_page(project: Project) -> None:
    answer = _open(Role.ANNOTATOR, AnonymousUser())
    assert answer.status_code == 302
    assert answer["Location"].startswith("/accounts/login/")


def test_a_site_admin_manages_every_project(project: Project, other_project: Project) -> None:
    admin = User.objects.create_superuser("root", password="a-long-passphrase")
    for slug in ("plaza", "puerto"):
        assert _open(Role.MANAGER, admin, slug).content.decode() == f"{slug} manager 7"


def test_who_was_removed_is_out_at_once(project: Project, bob: User) -> None:
    assert _open(Role.ANNOTATOR, bob).status_code == 200
    bob.memberships.all().delete()
    with pytest.raises(Http404):
        _open(Role.ANNOTATOR, bob)
