"""Changing and ending memberships: a project never loses its last manager."""

from django.db import transaction
from django.utils.translation import gettext as _

from accounts.models import Membership, Project, Role


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
