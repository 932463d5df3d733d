"""New projects get an address of their own, new people a password that works."""

import pytest

from accounts.models import Membership, Project, Role, User
from accounts.services import add_member, create_project


def test_a_project_gets_an_address_from_its_name_and_its_manager(alice: User) -> None:
    made = create_project(name="El Mercado de Ávila", manager=alice)
    assert made.slug == "el-mercado-de-avila"
    assert Membership.objects.get(project=made, user=alice).role == Role.MANAGER


def test_two_projects_of_one_name_get_two_addresses(db: None) -> None:
    assert [create_project(name="Plaza").slug for _ in range(3)] == ["plaza", "plaza-2", "plaza-3"]
    assert create_project(name="!!!").slug == "project"


def test_a_long_name_leaves_room_for_its_number(db: None) -> None:
    slugs = [create_project(name="a" * 120).slug for _ in range(2)]
    assert len(set(slugs)) == 2
    assert max(map(len, slugs)) <= 60


def test_a_new_person_gets_a_password_that_works(project: Project) -> None:
    membership, password = add_member(project=project, username="nora", role=Role.ANNOTATOR)
    assert len(password) >= 12
    assert membership.user.check_password(password)


def test_a_known_person_keeps_the_password_and_gets_the_new_role(project: Project, bob: User) -> None:
    membership, password = add_member(project=project, username="bob", role=Role.REVIEWER)
    assert password == ""
    assert membership.role == Role.REVIEWER
    bob.refresh_from_db()
    assert bob.check_password("a-long-passphrase")
    assert Membership.objects.filter(user=bob).count() == 1


@pytest.mark.parametrize("name", ["Ana@Example.COM", "jose\u0301", "ﬁna"])
def test_the_same_name_finds_the_same_person_again(project: Project, other_project: Project, name: str) -> None:
    first, password = add_member(project=project, username=name, role=Role.ANNOTATOR)
    again, nothing = add_member(project=other_project, username=name, role=Role.MANAGER)
    assert (bool(password), nothing) == (True, "")
    assert first.user == again.user
    assert User.objects.count() == 1
