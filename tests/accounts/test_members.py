"""The members page: adding, changing, removing, and who may."""

import pytest
from django.urls import reverse

from accounts.models import Membership, Project, Role, User


@pytest.fixture
def url(project):
    return reverse("members", args=[project.slug])


def test_a_new_person_gets_a_password_that_works_and_is_shown_once(signed_in, alice, url, client):
    page = signed_in(alice).post(url, {"action": "add", "username": "nora", "role": "annotator"})
    password = page.context["password"]
    assert password in page.content.decode()
    assert "no-store" in page["Cache-Control"]
    assert client.login(username="nora", password=password)
    assert password not in signed_in(alice).get(url).content.decode()


def test_somebody_with_an_account_joins_and_keeps_the_password(signed_in, alice, charlie, project, url):
    page = signed_in(alice).post(url, {"action": "add", "username": "charlie", "role": "reviewer"})
    assert page.status_code == 302
    assert Membership.objects.get(project=project, user=charlie).role == Role.REVIEWER
    assert charlie.check_password("a-long-passphrase")


def test_adding_a_member_again_says_so_and_keeps_the_role(signed_in, alice, bob, url):
    page = signed_in(alice).post(url, {"action": "add", "username": "bob", "role": "manager"})
    assert "already a member" in page.content.decode()
    assert Membership.objects.get(user=bob).role == Role.ANNOTATOR


def test_a_name_that_is_none_is_refused_at_its_field(signed_in, alice, url):
    page = signed_in(alice).post(url, {"action": "add", "username": "no spaces!", "role": "annotator"})
    assert page.context["form"].errors["username"]
    assert not User.objects.filter(username__startswith="no ").exists()


def test_role_is_changed(signed_in, alice, bob, url):
    signed_in(alice).post(url, {"action": "change", "username": "bob", "role": "reviewer"})
    assert Membership.objects.get(user=bob).role == Role.REVIEWER


@pytest.mark.parametrize("body", [{"action": "remove"}, {"action": "change", "role": "annotator"}])
def test_the_last_manager_stays(signed_in, alice, url, body):
    page = signed_in(alice).post(url, {**body, "username": "alice"}, follow=True)
    assert "only manager" in page.content.decode()
    assert Membership.objects.get(user=alice).role == Role.MANAGER


def test_removed_person_sees_404_afterwards(signed_in, alice, bob, project, url):
    signed_in(alice).post(url, {"action": "remove", "username": "bob"})
    assert signed_in(bob).get(reverse("overview", args=[project.slug])).status_code == 404
    assert User.objects.filter(username="bob").exists()


def test_manager_who_steps_down_is_led_home(signed_in, alice, bob, url):
    Membership.objects.filter(user=bob).update(role=Role.MANAGER)
    page = signed_in(alice).post(url, {"action": "change", "username": "alice", "role": "annotator"})
    assert page["Location"] == reverse("home")


def test_only_managers_of_this_project_open_it(signed_in, alice, bob, rita, charlie, client, url):
    assert signed_in(bob).get(url).status_code == 403
    assert signed_in(rita).get(url).status_code == 403
    assert signed_in(charlie).get(url).status_code == 404
    assert client.get(url)["Location"].startswith(reverse("account_login"))


def test_a_person_of_another_project_cannot_be_removed_from_here(signed_in, alice, charlie, other_project, url):
    page = signed_in(alice).post(url, {"action": "remove", "username": "charlie"}, follow=True)
    assert "not a member" in page.content.decode()
    assert Membership.objects.filter(project=other_project, user=charlie).exists()


def test_a_forgotten_password_is_replaced_and_the_new_one_shown_once(signed_in, alice, bob, url, client):
    page = signed_in(alice).post(url, {"action": "password", "username": "bob"})
    assert page.context["password"] in page.content.decode()
    assert not client.login(username="bob", password="a-long-passphrase")
    assert client.login(username="bob", password=page.context["password"])


def _also_elsewhere(user, other_project):
    Membership.objects.create(project=other_project, user=user)


def _simulated(user, other_project):
    User.objects.filter(pk=user.pk).update(is_simulated=True)


def _site_admin(user, other_project):
    User.objects.filter(pk=user.pk).update(is_superuser=True)


@pytest.mark.parametrize("who", [_also_elsewhere, _simulated, _site_admin])
def test_no_account_that_reaches_further_is_taken_over_by_a_new_password(
    signed_in, alice, bob, other_project, url, who
):
    who(bob, other_project)
    assert "password" not in (signed_in(alice).post(url, {"action": "password", "username": "bob"}).context or {})
    assert User.objects.get(pk=bob.pk).check_password("a-long-passphrase")


def test_a_site_admin_replaces_any_password_but_nobody_their_own_or_an_outsiders(
    signed_in, alice, bob, charlie, other_project, url
):
    for name in ("alice", "charlie"):
        signed_in(alice).post(url, {"action": "password", "username": name})
        assert User.objects.get(username=name).check_password("a-long-passphrase")
    _also_elsewhere(bob, other_project)
    _site_admin(alice, other_project)
    assert signed_in(alice).post(url, {"action": "password", "username": "bob"}).context["password"]


def test_simulated_people_are_marked(signed_in, alice, project, url):
    robot = User.objects.create_user("robot", is_simulated=True)
    Membership.objects.create(project=project, user=robot)
    assert "simulated" in signed_in(alice).get(url).content.decode()


def test_manager_makes_a_project_and_manages_it(signed_in, alice):
    page = signed_in(alice).post(reverse("project_new"), {"name": "Otra plaza", "guidelines": "Sé amable."})
    made = Project.objects.get(name="Otra plaza")
    assert page["Location"] == reverse("overview", args=[made.slug])
    assert made.guidelines == "Sé amable."
    assert Membership.objects.get(project=made).user == alice


def test_who_manages_nothing_makes_no_project(signed_in, bob):
    assert signed_in(bob).post(reverse("project_new"), {"name": "X"}).status_code == 403
    assert not Project.objects.filter(name="X").exists()
