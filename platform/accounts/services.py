"""Creating projects and putting people into them."""

from django.db import transaction
from django.utils.crypto import get_random_string
from django.utils.text import slugify

from accounts.models import Membership, Project, Role, User


@transaction.atomic
def create_project(*, name: str, manager: User | None = None, slug: str = "", description: str = "") -> Project:
    """A project and its first manager; the address is made from the name where none is given."""
    slug = free_slug(slug or slugify(name) or "project")
    project = Project.objects.create(name=name, slug=slug, description=description)
    if manager is not None:
        Membership.objects.create(project=project, user=manager, role=Role.MANAGER)
    return project


def free_slug(wanted: str) -> str:
    wanted = wanted[:50]
    taken = set(Project.objects.filter(slug__startswith=wanted).values_list("slug", flat=True))
    if wanted not in taken:
        return wanted
    return next(f"{wanted}-{n}" for n in range(2, len(taken) + 3) if f"{wanted}-{n}" not in taken)


def first_password() -> str:
    return get_random_string(14)


@transaction.atomic
def add_member(*, project: Project, username: str, role: str) -> tuple[Membership, str]:
    """Put a person into a project; a new person gets a random password, returned once (else an empty string)."""
    password = ""
    username = User.normalize_username(username)  # as create_user stores it, so that the same name finds it again
    user = User.objects.filter(username=username).first()
    if user is None:
        password = first_password()
        user = User.objects.create_user(username, password=password)
    membership, _ = Membership.objects.update_or_create(project=project, user=user, defaults={"role": role})
    return membership, password
