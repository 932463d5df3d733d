"""Dataset, Run, Metric, ModelVersion, Deployment and WorkerProcess."""

from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import models
from django.utils.timezone import now
from django.utils.translation import gettext_lazy as _

from accounts.models import Project, User


class Dataset(models.Model):
    """Frozen rows on disk: a corpus that came in, or an export made for a run."""

    class Kind(models.TextChoices):
        CORPUS = "corpus", _("Corpus")
        PROMPTS = "prompts", _("Prompts")
        DEMONSTRATIONS = "demonstrations", _("Demonstrations")
        RANKINGS = "rankings", _("Rankings")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="datasets")
    kind = models.CharField(max_length=16, choices=Kind)
    name = models.CharField(max_length=200)
    path = models.CharField(max_length=500, help_text="relative to the artifacts")
    sha256 = models.CharField(max_length=64)
    rows = models.PositiveBigIntegerField(default=0)
    bytes = models.PositiveBigIntegerField(default=0)
    weight = models.FloatField(_("mixture weight"), default=1.0)
    # What exactly is inside: ids of demonstrations or judgements, names of files.
    manifest = models.JSONField(default=dict)
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return self.name

    @property
    def file(self) -> Path:
        return settings.ARTIFACTS / self.path


class ModelVersion(models.Model):
    """An artifact that never changes, and where it came from."""

    class Kind(models.TextChoices):
        TOKENIZER = "tokenizer", _("Tokenizer")
        BASE = "base", _("Base model")
        SFT = "sft", _("SFT model")
        REWARD = "reward", _("Reward model")
        POLICY = "policy", _("Policy")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="models")
    kind = models.CharField(max_length=16, choices=Kind)
    number = models.PositiveIntegerField()
    parent = models.ForeignKey("self", null=True, on_delete=models.PROTECT, related_name="children")
    run = models.OneToOneField("Run", null=True, on_delete=models.PROTECT, related_name="model")
    path = models.CharField(max_length=500, help_text="relative to the artifacts")
    sha256 = models.CharField(max_length=64)
    parameters = models.PositiveBigIntegerField(default=0)
    figures = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "kind", "number"], name="one_number_a_kind")]
        ordering = ["-pk"]

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number}"

    @property
    def folder(self) -> Path:
        return settings.ARTIFACTS / self.path

    @property
    def can_write(self) -> bool:
        """Whether it can be prompted for text."""
        return self.kind in {self.Kind.BASE, self.Kind.SFT, self.Kind.POLICY}


class RunQuerySet(models.QuerySet["Run"]):
    def queued(self) -> "RunQuerySet":
        return self.filter(status=Run.Status.QUEUED)

    def active(self) -> "RunQuerySet":
        return self.filter(status__in=[Run.Status.QUEUED, Run.Status.RUNNING])

    def silent(self) -> "RunQuerySet":
        """Running, but nobody has given a sign of life for too long."""
        return self.filter(
            status=Run.Status.RUNNING, heartbeat_at__lt=now() - timedelta(seconds=settings.STALE_SECONDS)
        )


class Run(models.Model):
    """One training stage, from the queue to its end. The row is the truth; a message only rings."""

    class Stage(models.TextChoices):
        TOKENIZER = "tokenizer", _("Tokenizer")
        PRETRAIN = "pretrain", _("Pretraining")
        SFT = "sft", _("Supervised fine-tuning")
        REWARD = "reward", _("Reward model")
        PPO = "ppo", _("PPO")
        DPO = "dpo", _("DPO")
        GRPO = "grpo", _("GRPO or RLOO")
        REJECTION = "rejection", _("Rejection sampling")
        BEST_OF_N = "best_of_n", _("Best of n")
        EVALUATE = "evaluate", _("Evaluation")

    class Status(models.TextChoices):
        QUEUED = "queued", _("Queued")
        RUNNING = "running", _("Running")
        SUCCEEDED = "succeeded", _("Succeeded")
        FAILED = "failed", _("Failed")
        CANCELLED = "cancelled", _("Cancelled")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="runs")
    stage = models.CharField(max_length=16, choices=Stage)
    status = models.CharField(max_length=16, choices=Status, default=Status.QUEUED)
    config = models.JSONField(default=dict, help_text="settings chosen by a person; the rest are defaults")
    # Inputs. What a stage needs of them is checked by services.start_run.
    tokenizer = models.ForeignKey(ModelVersion, null=True, on_delete=models.PROTECT, related_name="+")
    base = models.ForeignKey(ModelVersion, null=True, on_delete=models.PROTECT, related_name="used_as_base")
    reference = models.ForeignKey(
        ModelVersion, null=True, on_delete=models.PROTECT, related_name="+", help_text="the old model of an evaluation"
    )
    reward_model = models.ForeignKey(ModelVersion, null=True, on_delete=models.PROTECT, related_name="used_as_reward")
    datasets = models.ManyToManyField(Dataset, related_name="runs")

    attempt = models.PositiveIntegerField(default=0, help_text="fencing token: grows with every claim")
    attempts_lost = models.PositiveIntegerField(default=0, help_text="attempts that fell silent or were killed")
    worker = models.CharField(max_length=120, blank=True)
    heartbeat_at = models.DateTimeField(null=True)
    rung_at = models.DateTimeField(null=True, help_text="when the queue was last told of it")
    cancel_requested = models.BooleanField(default=False)
    step = models.PositiveIntegerField(default=0)
    steps = models.PositiveIntegerField(default=0)
    error = models.TextField(blank=True)
    result = models.JSONField(default=dict)
    created_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="runs")
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    objects = RunQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        indexes = [models.Index(fields=["status", "heartbeat_at"])]

    def __str__(self) -> str:
        return f"{self.get_stage_display()} #{self.pk}"

    @property
    def directory(self) -> Path:
        return settings.ARTIFACTS / self.path

    @property
    def path(self) -> str:
        return f"projects/{self.project_id}/runs/{self.pk}"

    @property
    def is_over(self) -> bool:
        return self.status in {self.Status.SUCCEEDED, self.Status.FAILED, self.Status.CANCELLED}

    @property
    def percent(self) -> int:
        if self.status == self.Status.SUCCEEDED:
            return 100
        return min(99, 100 * self.step // self.steps) if self.steps else 0


class Metric(models.Model):
    """What a run reported at one step: {"loss": 1.2, "lr": 0.001, ...}."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="metrics")
    step = models.PositiveIntegerField()
    values = models.JSONField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "step"], name="one_metric_a_step")]
        ordering = ["step"]


class Sample(models.Model):
    """A text a run wrote on its way."""

    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="samples")
    position = models.PositiveIntegerField(help_text="line in samples.jsonl")
    values = models.JSONField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["run", "position"], name="one_sample_a_line")]
        ordering = ["position"]


class Deployment(models.Model):
    """A move of the pointer to the live model: the newest row of a project counts, older ones are history."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="deployments")
    model = models.ForeignKey(ModelVersion, on_delete=models.PROTECT, related_name="deployments")
    promoted_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL)
    promoted_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]


class WorkerProcess(models.Model):
    """A sign of life from a worker process, so that a page can say who is missing."""

    class Queue(models.TextChoices):
        DEFAULT = "default"
        TRAIN = "train"
        SERVE = "serve"

    name = models.CharField(max_length=120, unique=True)
    queue = models.CharField(max_length=16, choices=Queue)
    seen_at = models.DateTimeField()
