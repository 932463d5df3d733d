"""What people write and judge: prompts, demonstrations, rounds, tasks, completions and rankings."""

import hashlib
import unicodedata
import uuid
from datetime import timedelta

from django.db import models
from django.db.models import Q
from django.utils.timezone import now
from django.utils.translation import gettext_lazy as _

from accounts.models import Project, User
from registry.models import Dataset, ModelVersion, Run

# The axes of the course: each completion may be scored from 1 to 5 on them.
AXES = {
    "helpfulness": _("Helpfulness"),
    "truthfulness": _("Truthfulness"),
    "safety": _("Safety"),
    "fairness": _("Fairness"),
}


class Source(models.TextChoices):
    """Who a judgement or a text comes from; shown wherever it appears."""

    HUMAN = "human", _("Human")
    SIMULATED = "simulated", _("Simulated")
    IMPORTED = "imported", _("Imported")


def fingerprint(text: str) -> str:
    """The same for texts that differ only in case, accents' encoding or white space."""
    return hashlib.sha256(" ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode()).hexdigest()


class Prompt(models.Model):
    """A question or an instruction. Hold-out prompts are never used by any training."""

    class Split(models.TextChoices):
        TRAIN = "train", _("Training")
        HOLDOUT = "holdout", _("Held out")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="prompts")
    text = models.TextField(_("prompt"))
    fingerprint = models.CharField(max_length=64)
    split = models.CharField(_("split"), max_length=8, choices=Split, default=Split.TRAIN)
    source = models.CharField(max_length=10, choices=Source, default=Source.HUMAN)
    dataset = models.ForeignKey(Dataset, null=True, on_delete=models.SET_NULL, related_name="+")
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "fingerprint"], name="one_prompt_a_text")]
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.text[:80]

    def save(self, *args: object, **kwargs: object) -> None:
        self.fingerprint = fingerprint(self.text)
        super().save(*args, **kwargs)  # type: ignore[arg-type]


class Demonstration(models.Model):
    """An answer a person wrote for a prompt. An edit keeps what stood before in `history`."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="demonstrations")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="demonstrations")
    response = models.TextField(_("response"))
    author = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="demonstrations")
    source = models.CharField(max_length=10, choices=Source, default=Source.HUMAN)
    dataset = models.ForeignKey(Dataset, null=True, on_delete=models.SET_NULL, related_name="+")
    task = models.ForeignKey("Task", null=True, on_delete=models.SET_NULL, related_name="demonstrations")
    key = models.UUIDField(default=uuid.uuid4, unique=True, help_text="sent by the form: posted twice, stored once")
    history = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ["-pk"]


class Round(models.Model):
    """One turn of the loop: a policy writes, people rank, a reward model learns, PPO optimises, a manager decides."""

    class Status(models.TextChoices):
        OPEN = "open", _("Open")
        GENERATING = "generating", _("Writing completions")
        RANKING = "ranking", _("Ranking")
        TRAINING_REWARD = "training_reward", _("Training the reward model")
        OPTIMIZING = "optimizing", _("Optimising with PPO")
        EVALUATING = "evaluating", _("Evaluating")
        AWAITING_APPROVAL = "awaiting_approval", _("Awaiting approval")
        PROMOTED = "promoted", _("Promoted")
        REJECTED = "rejected", _("Rejected")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="rounds")
    number = models.PositiveIntegerField()
    status = models.CharField(max_length=20, choices=Status, default=Status.OPEN)
    policy = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="rounds")
    k = models.PositiveIntegerField(_("completions per prompt"), default=4)
    overlap = models.PositiveIntegerField(_("rankings per prompt"), default=1)
    sampling = models.JSONField(default=dict)
    # Settings of the runs a round starts: {"reward": {...}, "ppo": {...}, "evaluate": {...}}.
    plan = models.JSONField(default=dict)
    # A reward model below this held-out accuracy does not steer PPO.
    min_accuracy = models.FloatField(_("reward model's gate"), default=0.55)
    reward_run = models.ForeignKey(Run, null=True, on_delete=models.PROTECT, related_name="+")
    ppo_run = models.ForeignKey(Run, null=True, on_delete=models.PROTECT, related_name="+")
    evaluate_run = models.ForeignKey(Run, null=True, on_delete=models.PROTECT, related_name="+")
    error = models.TextField(blank=True, help_text="why it stands still, and what to do")
    opened_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    opened_at = models.DateTimeField(auto_now_add=True)
    closed_at = models.DateTimeField(null=True)
    decided_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    decided_at = models.DateTimeField(null=True)

    OVER = [Status.PROMOTED, Status.REJECTED]

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "number"], name="one_number_a_round"),
            models.UniqueConstraint(
                fields=["project"], condition=~Q(status__in=["promoted", "rejected"]), name="one_round_at_a_time"
            ),
        ]
        ordering = ["-number"]

    def __str__(self) -> str:
        return _("Round %(number)d") % {"number": self.number}

    @property
    def is_over(self) -> bool:
        return self.status in self.OVER

    @property
    def reward_model(self) -> ModelVersion | None:
        return getattr(self.reward_run, "model", None)

    @property
    def candidate(self) -> ModelVersion | None:
        """The policy this round trained, once there is one."""
        return getattr(self.ppo_run, "model", None)

    @property
    def evaluation(self) -> dict[str, float]:
        return self.evaluate_run.result if self.evaluate_run else {}


class Task(models.Model):
    """A piece of work for people: write an answer to a prompt, or rank its completions."""

    class Kind(models.TextChoices):
        WRITE = "write", _("Write")
        RANK = "rank", _("Rank")

    class Status(models.TextChoices):
        WAITING = "waiting", _("Waiting for completions")
        OPEN = "open", _("Open")
        CLOSED = "closed", _("Closed")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="tasks")
    kind = models.CharField(max_length=8, choices=Kind)
    status = models.CharField(max_length=8, choices=Status, default=Status.OPEN)
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="tasks")
    round = models.ForeignKey(Round, null=True, on_delete=models.CASCADE, related_name="tasks")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["round", "prompt"], name="one_task_a_prompt_and_round"),
            models.UniqueConstraint(fields=["prompt"], condition=Q(kind="write"), name="one_writing_task_a_prompt"),
        ]
        indexes = [models.Index(fields=["project", "kind", "status"])]


class SlotQuerySet(models.QuerySet["Slot"]):
    def free(self) -> "SlotQuerySet":
        """Neither done nor lent to anybody at this moment."""
        return self.filter(Q(leased_until=None) | Q(leased_until__lt=now()), done_at=None)

    def lent(self) -> "SlotQuerySet":
        return self.filter(leased_until__gte=now(), done_at=None)


class Slot(models.Model):
    """One of the judgements a task asks for (its overlap), lent to one person at a time."""

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="slots")
    number = models.PositiveIntegerField()
    holder = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="slots")
    leased_until = models.DateTimeField(null=True)
    done_at = models.DateTimeField(null=True)

    objects = SlotQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["task", "number"], name="one_slot_a_number"),
            models.UniqueConstraint(fields=["task", "holder"], name="nobody_holds_a_task_twice"),
        ]
        indexes = [models.Index(fields=["done_at", "leased_until"])]


class Completion(models.Model):
    """A text a model wrote (or that came in with a ranking), and all that is needed to write it again."""

    class Status(models.TextChoices):
        PENDING = "pending", _("Waiting for the serve worker")
        WRITING = "writing", _("Being written")
        DONE = "done", _("Written")
        FAILED = "failed", _("Failed")

    LEASE = timedelta(seconds=60)

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="completions")
    task = models.ForeignKey(Task, null=True, on_delete=models.CASCADE, related_name="completions")
    position = models.PositiveIntegerField(default=0)
    prompt_text = models.TextField()
    model = models.ForeignKey(ModelVersion, null=True, on_delete=models.PROTECT, related_name="completions")
    policy_name = models.CharField(max_length=60, blank=True, help_text="what an imported file says wrote it")
    sampling = models.JSONField(default=dict)
    seed = models.BigIntegerField(default=0)
    status = models.CharField(max_length=8, choices=Status, default=Status.PENDING)
    claim = models.UUIDField(null=True, help_text="fencing token of the worker that writes it")
    leased_until = models.DateTimeField(null=True)
    text = models.TextField(blank=True)
    tokens = models.JSONField(default=list)
    logprobs = models.JSONField(default=list)
    finish_reason = models.CharField(max_length=16, blank=True)
    error = models.TextField(blank=True)
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    written_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["task", "position", "pk"]
        constraints = [models.UniqueConstraint(fields=["task", "position"], name="one_completion_a_position")]
        indexes = [models.Index(fields=["status", "leased_until"])]


class Ranking(models.Model):
    """One person's order of a task's completions, best tier first. An edit keeps what stood before in `history`."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="rankings")
    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="rankings")
    # None: a judgement beyond the overlap, kept because its author's lease ran out while working on it.
    slot = models.OneToOneField(Slot, null=True, on_delete=models.SET_NULL, related_name="ranking")
    annotator = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="rankings")
    annotator_name = models.CharField(max_length=60, blank=True, help_text="who judged, as an imported file says")
    source = models.CharField(max_length=10, choices=Source, default=Source.HUMAN)
    tiers = models.JSONField(help_text="[[completion ids that tie for best], ..., [worst]]")
    none_good = models.BooleanField(default=False)
    scores = models.JSONField(default=dict, help_text='{"completion id": {"axis": 1..5}}')
    comment = models.TextField(blank=True)
    shown_order = models.JSONField(default=list)
    seconds = models.PositiveIntegerField(default=0, help_text="from opening to submitting")
    dataset = models.ForeignKey(Dataset, null=True, on_delete=models.SET_NULL, related_name="+")
    key = models.UUIDField(default=uuid.uuid4, unique=True, help_text="sent by the form: posted twice, stored once")
    history = models.JSONField(default=list)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["task", "annotator"], name="one_ranking_a_person")]
        ordering = ["-pk"]


class Draft(models.Model):
    """What a person has begun, saved on the server at every change."""

    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="drafts")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="drafts")
    data = models.JSONField(default=dict)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["task", "user"], name="one_draft_a_person")]
