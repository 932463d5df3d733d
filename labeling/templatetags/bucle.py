"""What the templates share: the frame around every page, icons, form controls and the small loop."""

from typing import Any

from django import template
from django.db.models import Q
from django.forms import BoundField, CheckboxInput, FileInput, RadioSelect, Select
from django.templatetags.static import static
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from accounts.models import Project, Role, User
from labeling.models import Round
from registry.health import missing_queues

register = template.Library()

# The pages of a project: URL name, label, icon, the URL names that light it up, who sees it.
EVERYBODY = frozenset(Role.values)
MANAGERS = frozenset({Role.MANAGER.value})
PAGES: list[tuple[str, Any, str, set[str], frozenset[str]]] = [
    ("overview", _("Overview"), "loop", {"overview"}, MANAGERS),
    ("write", _("Write"), "write", {"write", "task:write"}, EVERYBODY),
    ("rank", _("Rank"), "rank", {"rank", "task:rank"}, EVERYBODY),
    ("data", _("Data"), "data", {"data"}, MANAGERS),
    ("runs", _("Runs"), "runs", {"runs", "run", "run_new"}, MANAGERS),
    ("models", _("Models"), "models", {"models", "model"}, MANAGERS),
    ("compare", _("Compare"), "compare", {"compare"}, MANAGERS),
    ("rounds", _("Rounds"), "rounds", {"rounds", "round", "round_new"}, MANAGERS),
    ("playground", _("Playground"), "playground", {"playground"}, MANAGERS),
    ("members", _("Members"), "members", {"members"}, MANAGERS),
]

# Where a round stands on the loop.
STEPS = [
    Round.Status.GENERATING,
    Round.Status.RANKING,
    Round.Status.TRAINING_REWARD,
    Round.Status.OPTIMIZING,
    Round.Status.EVALUATING,
    Round.Status.AWAITING_APPROVAL,
]


@register.simple_tag(takes_context=True)
def frame(context: template.Context) -> dict[str, Any]:
    """The navigation of this page and, for whoever manages a project, the queues that no worker serves."""
    request = context.get("request")
    if request is None or not request.user.is_authenticated:
        return {}
    project, role = getattr(request, "project", None), getattr(request, "role", "")
    manages = role == Role.MANAGER or Project.objects.managed_by(request.user).exists()
    return {
        "projects": [_entry(each, request.user, project) for each in _projects(request.user)],
        "project": project,
        "manages": manages,
        "missing": missing_queues() if manages else [],
        "pages": _pages(request, project, role, context.get("task")) if project else [],
    }


def _projects(user: User) -> list[Project]:
    """The person's projects, each with whether the person manages it."""
    managed = Project.objects.managed_by(user).values("pk")
    return list(Project.objects.seen_by(user).distinct().annotate(is_managed=Q(pk__in=managed)))


def _entry(project: Project, user: User, present: Project | None) -> dict[str, Any]:
    """Managers go to the overview, the others to their work in that project."""
    is_managed = getattr(project, "is_managed", False)
    url = reverse("overview", args=[project.slug]) if is_managed else f"{reverse('home')}#{project.slug}"
    return {"name": project.name, "url": url, "here": project == present}


def _pages(request: Any, project: Project, role: str, task: Any) -> list[dict[str, Any]]:
    here = request.resolver_match.url_name if request.resolver_match else ""
    if here == "task":
        here = f"task:{getattr(task, 'kind', '')}"
    return [
        {"url": reverse(name, args=[project.slug]), "label": label, "icon": image, "here": here in lit}
        for name, label, image, lit, roles in PAGES
        if role in roles
    ]


@register.simple_tag
def icon(name: str) -> SafeString:
    """A drawing from icons.svg; always beside a word or inside a labelled button, so hidden from screen readers."""
    return format_html(
        '<svg class="icon" aria-hidden="true"><use href="{}#{}"></use></svg>', static("bucle/icons.svg"), name
    )


@register.filter
def control(field: BoundField) -> SafeString:
    """A form's widget in the classes of the theme."""
    widget = field.field.widget
    if isinstance(widget, CheckboxInput | RadioSelect):
        name = "form-check-input"
    elif isinstance(widget, Select):
        name = "form-select"
    else:
        name = "form-control"
    if isinstance(widget, FileInput):
        name = "form-control"
    classes = [widget.attrs.get("class", ""), name, "is-invalid" if field.errors else ""]
    return field.as_widget(attrs={"class": " ".join(filter(None, classes))})


@register.filter
def is_check(field: BoundField) -> bool:
    return isinstance(field.field.widget, CheckboxInput)


@register.inclusion_tag("_ring.html")
def ring(round: Round | None) -> dict[str, Any]:
    """The loop in small: a segment a step, those behind filled, the present one lit."""
    at = -1
    if round is not None:
        at = len(STEPS) if round.status == Round.Status.PROMOTED else _place(round)
    share = 100 / len(STEPS)
    return {
        "round": round,
        "segments": [
            {"offset": f"{-i * share:.3f}", "state": "done" if i < at else "now" if i == at else "ahead"}
            for i in range(len(STEPS))
        ],
    }


def _place(round: Round) -> int:
    return STEPS.index(Round.Status(round.status)) if round.status in STEPS else 0
