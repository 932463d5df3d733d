"""User, Project and Membership: who may do what where."""

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils.translation import gettext_lazy as _


class User(AbstractUser):
    """A person, or a simulated annotator, which is marked wherever it appears."""

    is_simulated = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.get_full_name() or self.username


class Role(models.TextChoices):
    ANNOTATOR = "annotator", _("Annotator")
    REVIEWER = "reviewer", _("Reviewer")
    MANAGER = "manager", _("Manager")


class ProjectQuerySet(models.QuerySet["Project"]):
    def seen_by(self, user: User) -> "ProjectQuerySet":
        """The projects of a person; all of them for a site admin."""
        return self if user.is_superuser else self.filter(memberships__user=user)

    def managed_by(self, user: User) -> "ProjectQuerySet":
        if user.is_superuser:
            return self
        return self.filter(memberships__user=user, memberships__role=Role.MANAGER)


class Project(models.Model):
    """One model being taught by one group of people."""

    name = models.CharField(_("name"), max_length=120)
    slug = models.SlugField(_("address"), max_length=60, unique=True)
    description = models.TextField(_("description"), blank=True)
    guidelines = models.TextField(_("guidelines"), blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    members = models.ManyToManyField(User, through="Membership", related_name="projects")

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """A person's role in a project."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(_("role"), max_length=16, choices=Role, default=Role.ANNOTATOR)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "user"], name="one_membership_a_person")]
        ordering = ["user__username"]

    def __str__(self) -> str:
        return f"{self.user}: {self.get_role_display()}"
