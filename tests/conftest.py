"""The cast: alice manages, bob and dana annotate, rita reviews, charlie is an outsider."""

from collections.abc import Iterator

import pytest
from django.test import Client
from django.utils.translation import override

from accounts.models import Membership, Project, Role, User


def _member(project: Project, name: str, role: str) -> User:
    user = User.objects.create_user(name, password="a-long-passphrase")
    Membership.objects.create(project=project, user=user, role=role)
    return user


@pytest.fixture(autouse=True)
def _quick_passwords(settings) -> None:
    """The real hasher is slow on purpose."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def _in_english() -> Iterator[None]:
    """What services say, whichever language the test before this one ended in."""
    with override("en"):
        yield


@pytest.fixture
def project(db: None) -> Project:
    return Project.objects.create(name="Plaza", slug="plaza")


@pytest.fixture
def other_project(db: None) -> Project:
    return Project.objects.create(name="Puerto", slug="puerto")


@pytest.fixture
def alice(project: Project) -> User:
    return _member(project, "alice", Role.MANAGER)


@pytest.fixture
def bob(project: Project) -> User:
    return _member(project, "bob", Role.ANNOTATOR)


@pytest.fixture
def dana(project: Project) -> User:
    return _member(project, "dana", Role.ANNOTATOR)


@pytest.fixture
def rita(project: Project) -> User:
    return _member(project, "rita", Role.REVIEWER)


@pytest.fixture
def charlie(other_project: Project) -> User:
    """A manager, but of another project."""
    return _member(other_project, "charlie", Role.MANAGER)


@pytest.fixture
def signed_in(client: Client):
    """signed_in(user) -> a client that is signed in as that person, in English."""

    def _signed_in(user: User) -> Client:
        fresh = Client(headers={"accept-language": "en"})
        fresh.force_login(user)
        return fresh

    return _signed_in
