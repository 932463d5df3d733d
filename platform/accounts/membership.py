"""Changing and ending memberships: a project never loses its last manager."""

from django.db import transaction
from django.utils.translation import gettext as _

from accounts.models import Membership, Project, Role, User
from accounts.services import first_password


class MembershipError(Exception):
    """What was asked for cannot be done: one sentence with the next step."""


@transaction.atomic
def change_role(*, project: Project, username: str, role: str) -> Membership:
    membership = _locked(project, username)
    if role != Role.MANAGER:
        _keep_a_manager(membership)
    membership.role = role
    membership.save(update_fields=["role"])
    return membership


@transaction.atomic
def remove_member(*, project: Project, username: str) -> None:
    """The person loses access; what they wrote and ranked stays."""
    membership = _locked(project, username)
    _keep_a_manager(membership)
    membership.delete()


@transaction.atomic
def new_password(*, project: Project, username: str, by: User) -> tuple[Membership, str]:
    """For somebody who forgot theirs, returned once. Nobody may so take over an account that reaches further."""
    membership = _locked(project, username)
    user = membership.user
    if user == by:
        raise MembershipError(_("Your own password you change in the menu under your initial."))
    if user.is_simulated:
        raise MembershipError(_("%(name)s is simulated and never signs in.") % {"name": username})
    elsewhere = Membership.objects.filter(user=user).exclude(project__in=Project.objects.managed_by(by))
    if not by.is_superuser and (user.is_superuser or user.is_staff or elsewhere.exists()):
        raise MembershipError(
            _("%(name)s also works where you are no manager: a site admin runs `manage.py changepassword %(name)s`.")
            % {"name": username}
        )
    password = first_password()
    user.set_password(password)
    user.save(update_fields=["password"])
    return membership, password


def _locked(project: Project, username: str) -> Membership:
    Project.objects.select_for_update().get(pk=project.pk)  # two managers removing each other leave one
    membership = Membership.objects.filter(project=project, user__username=username).first()
    if membership is None:
        raise MembershipError(_("%(name)s is not a member of this project.") % {"name": username})
    return membership


def _keep_a_manager(membership: Membership) -> None:
    others = Membership.objects.filter(project=membership.project, role=Role.MANAGER).exclude(pk=membership.pk)
    if membership.role == Role.MANAGER and not others.exists():
        raise MembershipError(
            _("%(name)s is the only manager: make another person a manager first.") % {"name": membership.user.username}
        )
