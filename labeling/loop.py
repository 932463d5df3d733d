"""The loop of a project as a picture: what stands at each station, where the round is, what to do next."""

from collections import Counter
from dataclasses import dataclass

from django.db.models import Count, Q, Sum
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy as lazy
from django.utils.translation import ngettext

from accounts.models import Project, Role, User
from labeling import queue
from labeling.models import Completion, Demonstration, Prompt, Ranking, Round
from labeling.rounds import current_round, progress
from registry import figures
from registry.models import Dataset, ModelVersion, Run
from registry.services import live_model

Kind, Status = ModelVersion.Kind, Round.Status

NAMES: dict[str, str | Promise] = {
    "text": lazy("Text"),
    "tokens": lazy("Tokens"),
    "pretrain": lazy("Pretraining"),
    "base": lazy("Base model"),
    "demonstrations": lazy("Demonstrations"),
    "sft": lazy("SFT"),
    "completions": lazy("Completions"),
    "rankings": lazy("Rankings"),
    "reward": lazy("Reward model"),
    "ppo": lazy("PPO"),
    "policy": lazy("New policy"),
}
LEAD_IN = ["text", "tokens", "pretrain", "base", "demonstrations", "sft"]
CIRCLE = ["completions", "rankings", "reward", "ppo", "policy"]
# At which station of the circle a round stands.
PLACE = {
    Status.OPEN: "completions",
    Status.GENERATING: "completions",
    Status.RANKING: "rankings",
    Status.TRAINING_REWARD: "reward",
    Status.OPTIMIZING: "ppo",
    Status.EVALUATING: "policy",
    Status.AWAITING_APPROVAL: "policy",
}


@dataclass(frozen=True)
class Station:
    """One stop of the loop: how much is there, in a short and in a full form."""

    key: str
    count: str
    detail: str
    page: str
    state: str  # empty, filled, busy, now

    @property
    def name(self) -> str:
        return str(NAMES[self.key])


@dataclass(frozen=True)
class Action:
    """The next sensible thing to do: why, and the button."""

    why: str
    label: str
    url: str


@dataclass(frozen=True)
class Loop:
    lead_in: list[Station]
    circle: list[Station]
    round: Round | None
    progress: dict[str, int]
    share: int  # percent of the circle that the round has gone through
    live: ModelVersion | None
    action: Action | None

    @property
    def rest(self) -> int:
        return 100 - self.share

    @property
    def arrows(self) -> list[int]:
        """Degrees at which an arrow stands: half way between two stations."""
        return [360 * (2 * i + 1) // (2 * len(CIRCLE)) for i in range(len(CIRCLE))]


def loop_of(project: Project, user: User, role: str) -> Loop:
    round = current_round(project)
    far = progress(round) if round else {}
    stations = _stations(project, round)
    lead_in, circle = [stations[key] for key in LEAD_IN], [stations[key] for key in CIRCLE]
    action = _manager_action(project, round, far) if role == Role.MANAGER else _member_action(project, user)
    return Loop(lead_in, circle, round, far, _share(round, far), live_model(project), action)


def _share(round: Round | None, far: dict[str, int]) -> int:
    if round is None:
        return 0
    place = CIRCLE.index(PLACE[Status(round.status)])
    part = 0.0
    if round.status == Status.RANKING and far["slots"]:
        part = far["slots_done"] / far["slots"]
    elif round.status == Status.GENERATING and far["completions"]:
        part = far["completions_done"] / far["completions"]
    elif round.status == Status.AWAITING_APPROVAL:
        part = 0.9
    elif run := active_run(round):
        part = run.percent / 100
    return int(100 * (place + part) / len(CIRCLE))


def active_run(round: Round) -> Run | None:
    """The run this round waits for."""
    return {
        Status.TRAINING_REWARD: round.reward_run,
        Status.OPTIMIZING: round.ppo_run,
        Status.EVALUATING: round.evaluate_run,
    }.get(Status(round.status))


def _stations(project: Project, round: Round | None) -> dict[str, Station]:
    texts = Dataset.objects.filter(project=project, kind=Dataset.Kind.CORPUS)
    corpus = texts.aggregate(n=Count("pk"), size=Sum("bytes"))
    kinds = Counter(ModelVersion.objects.filter(project=project).values_list("kind", flat=True))
    runs = Counter(Run.objects.filter(project=project).values_list("stage", flat=True))
    busy = set(Run.objects.filter(project=project).active().values_list("stage", flat=True))
    demonstrations = Demonstration.objects.filter(project=project).count()
    rankings = Ranking.objects.filter(project=project).aggregate(n=Count("pk"), sim=Count("pk", Q(source="simulated")))
    written = Completion.objects.filter(project=project, task__isnull=False, status=Completion.Status.DONE).count()
    newest = _newest(project)
    counted: dict[str, tuple[int, str, str, str]] = {
        # key: (how many, detail, page, the stage that makes it)
        "text": (corpus["n"], _bytes(corpus["size"] or 0), "data", ""),
        "tokens": (kinds[Kind.TOKENIZER], _figure(newest, Kind.TOKENIZER, "vocab_size"), "models", "tokenizer"),
        "pretrain": (runs["pretrain"], _figure(newest, Kind.BASE, "val_loss"), "runs", "pretrain"),
        "base": (kinds[Kind.BASE], _name(newest, Kind.BASE), "models", ""),
        "demonstrations": (demonstrations, "", "data", ""),
        "sft": (kinds[Kind.SFT], _name(newest, Kind.SFT), "models", "sft"),
        "completions": (written, "", "rounds", ""),
        "rankings": (rankings["n"], _simulated(rankings["sim"]), "rounds", ""),
        "reward": (kinds[Kind.REWARD], _figure(newest, Kind.REWARD, "val_accuracy"), "models", "reward"),
        "ppo": (runs["ppo"], _figure(newest, Kind.POLICY, "kl"), "runs", "ppo"),
        "policy": (kinds[Kind.POLICY], _name(newest, Kind.POLICY), "models", "evaluate"),
    }
    now = PLACE[Status(round.status)] if round else ""
    return {
        key: Station(
            key, figures.compact(n), detail, reverse(page, args=[project.slug]),
            "now" if key == now else "busy" if stage in busy else "filled" if n else "empty",
        )
        for key, (n, detail, page, stage) in counted.items()
    }  # fmt: skip


def _newest(project: Project) -> dict[str, ModelVersion]:
    newest: dict[str, ModelVersion] = {}
    for model in ModelVersion.objects.filter(project=project).order_by("kind", "number"):
        newest[model.kind] = model
    return newest


def _name(newest: dict[str, ModelVersion], kind: str) -> str:
    return newest[kind].name if kind in newest else ""


def _figure(newest: dict[str, ModelVersion], kind: str, key: str) -> str:
    value = newest[kind].figures.get(key) if kind in newest else None
    if value is None:
        return ""
    shown = figures.shown(key, value)
    short = {
        "vocab_size": _("%(n)s in the vocabulary"), "val_loss": _("loss %(n)s"), "val_accuracy": _("%(n)s right"),
        "kl": _("KL %(n)s"),
    }  # fmt: skip
    return short[key] % {"n": shown}


def _bytes(size: int) -> str:
    return filesizeformat(size) if size else ""


def _simulated(count: int) -> str:
    return _("%(n)s simulated") % {"n": figures.compact(count)} if count else ""


def _member_action(project: Project, user: User) -> Action | None:
    waiting = queue.counts(project, user)
    if waiting["rank"]:
        return Action(
            ngettext("%(n)d ranking waits for you.", "%(n)d rankings wait for you.", waiting["rank"])
            % {"n": waiting["rank"]},
            _("Rank"),
            reverse("rank", args=[project.slug]),
        )
    if waiting["write"]:
        return Action(
            ngettext("%(n)d prompt waits for an answer.", "%(n)d prompts wait for an answer.", waiting["write"])
            % {"n": waiting["write"]},
            _("Write"),
            reverse("write", args=[project.slug]),
        )
    return None


def _manager_action(project: Project, round: Round | None, far: dict[str, int]) -> Action:
    if round is not None:
        return _round_action(project, round, far)
    models = ModelVersion.objects.filter(project=project)
    has = set(models.values_list("kind", flat=True))
    busy = Run.objects.filter(project=project).active().order_by("pk").first()
    if busy is not None:
        return Action(
            _("%(run)s is under way.") % {"run": busy}, _("Watch it"), reverse("run", args=[project.slug, busy.pk])
        )
    data, new = reverse("data", args=[project.slug]), "run_new"
    if not has & {Kind.BASE, Kind.SFT, Kind.POLICY}:
        if not Dataset.objects.filter(project=project, kind=Dataset.Kind.CORPUS).exists():
            return Action(_("The loop begins with text to learn from."), _("Add a text"), data)
        stage = "pretrain" if Kind.TOKENIZER in has else "tokenizer"
        why = {
            "tokenizer": _("The text has to be cut into tokens before a model can read it."),
            "pretrain": _("Text and tokens are ready: a model can learn to continue them."),
        }[stage]
        label = {"tokenizer": _("Train the tokenizer"), "pretrain": _("Pretrain a base model")}[stage]
        return Action(why, label, reverse(new, args=[project.slug, stage]))
    if not has & {Kind.SFT, Kind.POLICY}:
        if not Demonstration.objects.filter(project=project).exists():
            return Action(
                _("The base model continues text; demonstrations teach it to answer."), _("Add demonstrations"), data
            )
        return Action(
            _("There are demonstrations to learn answering from."),
            _("Fine-tune on them"),
            reverse(new, args=[project.slug, "sft"]),
        )
    if not Prompt.objects.filter(project=project, split=Prompt.Split.TRAIN).exists():
        return Action(_("A round needs prompts for the model to answer."), _("Add prompts"), data)
    return Action(
        _("The model can answer: let it write completions for people to rank."),
        _("Open a round"),
        reverse("round_new", args=[project.slug]),
    )


def _round_action(project: Project, round: Round, far: dict[str, int]) -> Action:
    here = reverse("round", args=[project.slug, round.number])
    run = active_run(round)
    if round.error:
        return Action(round.error, _("Look at the round"), here)
    if round.status == Status.RANKING:
        if far["slots_done"] < far["slots"]:
            missing = far["slots"] - far["slots_done"]
            return Action(
                ngettext(
                    "%(n)d of %(all)d rankings is still missing.",
                    "%(n)d of %(all)d rankings are still missing.",
                    missing,
                )
                % {"n": missing, "all": far["slots"]},
                _("Rank"),
                reverse("rank", args=[project.slug]),
            )
        return Action(_("Everything is ranked."), _("Close the round"), here)
    if round.status == Status.AWAITING_APPROVAL:
        return Action(_("The new policy is measured and waits for your decision."), _("Decide"), here)
    if run is not None:
        return Action(
            _("%(run)s is under way.") % {"run": run}, _("Watch it"), reverse("run", args=[project.slug, run.pk])
        )
    return Action(_("The model is writing completions."), _("Look at the round"), here)
