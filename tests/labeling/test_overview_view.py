"""The loop as a picture: what stands where, and the next sensible action at every point of the way."""

import pytest
from django.urls import reverse
from django.utils.timezone import now

from labeling.loop import loop_of
from labeling.models import Completion, Demonstration, Prompt, Ranking, Round, Slot, Task
from registry.models import Dataset, Deployment, ModelVersion, Run


def _model(project, kind):
    number = ModelVersion.objects.filter(project=project, kind=kind).count() + 1
    return ModelVersion.objects.create(project=project, kind=kind, number=number, path="p", sha256="f" * 64)


def _action(project, alice):
    return loop_of(project, alice, "manager").action


def _stations(project, alice):
    loop = loop_of(project, alice, "manager")
    return {station.key: station for station in [*loop.lead_in, *loop.circle]}


@pytest.fixture
def started(project):
    """A project whose model can answer, with prompts."""
    _model(project, "base")
    sft = _model(project, "sft")
    Deployment.objects.create(project=project, model=sft)
    Prompt.objects.create(project=project, text="¿Cuánto cuesta el pan?")
    return sft


@pytest.fixture
def ranking(project, started):
    round = Round.objects.create(project=project, number=1, policy=started, status="ranking", k=2)
    task = Task.objects.create(project=project, kind="rank", round=round, prompt=Prompt.objects.get())
    Slot.objects.create(task=task, number=0)
    for position in range(2):
        Completion.objects.create(project=project, task=task, position=position, status="done", prompt_text="p")
    return round


def test_the_way_from_nothing_to_a_round(project, alice):
    new = f"/p/{project.slug}/runs/new/"
    assert _action(project, alice).url == reverse("data", args=[project.slug])
    Dataset.objects.create(project=project, kind="corpus", name="t", path="t", sha256="0" * 64)
    assert _action(project, alice).url == f"{new}tokenizer/"
    _model(project, "tokenizer")
    assert _action(project, alice).url == f"{new}pretrain/"
    _model(project, "base")
    assert _action(project, alice).url == reverse("data", args=[project.slug])
    prompt = Prompt.objects.create(project=project, text="¿Qué es el ahorro?")
    Demonstration.objects.create(project=project, prompt=prompt, response="Guardar monedas.")
    assert _action(project, alice).url == f"{new}sft/"
    _model(project, "sft")
    assert _action(project, alice).url == reverse("round_new", args=[project.slug])


def test_a_run_under_way_is_what_to_watch(project, alice):
    run = Run.objects.create(project=project, stage="tokenizer", status="running")
    assert _action(project, alice).url == reverse("run", args=[project.slug, run.pk])


def test_missing_rankings_come_before_closing(project, alice, bob, ranking):
    assert _action(project, alice).url == reverse("rank", args=[project.slug])
    Slot.objects.update(done_at=now(), holder=bob)
    closing = _action(project, alice)
    assert closing.url == reverse("round", args=[project.slug, 1])
    assert "Close" in closing.label or "Cerrar" in closing.label


def test_a_round_that_stands_still_says_why(project, alice, ranking):
    Round.objects.update(status="training_reward", error="Only 3 comparisons.")
    assert _action(project, alice).why == "Only 3 comparisons."


def test_station_of_the_round_is_lit(project, alice, ranking):
    for status, key in [("generating", "completions"), ("ranking", "rankings"), ("training_reward", "reward"),
                        ("optimizing", "ppo"), ("awaiting_approval", "policy")]:  # fmt: skip
        Round.objects.update(status=status)
        assert [k for k, s in _stations(project, alice).items() if s.state == "now"] == [key]


def test_arc_grows_with_the_round(project, alice, ranking):
    shares = []
    for status in ("generating", "ranking", "training_reward", "optimizing", "evaluating", "awaiting_approval"):
        Round.objects.update(status=status)
        shares.append(loop_of(project, alice, "manager").share)
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 100


def test_simulated_rankings_are_marked(project, alice, bob, ranking, signed_in):
    Ranking.objects.create(project=project, task=Task.objects.get(), annotator=bob, source="simulated", tiers=[])
    assert "1" in _stations(project, alice)["rankings"].detail
    assert "1 simulated" in signed_in(alice).get(reverse("overview", args=[project.slug])).content.decode()


def test_playground_answers_are_no_completions_of_the_loop(project, alice, ranking):
    Completion.objects.create(project=project, status="done", prompt_text="p", position=9)
    assert _stations(project, alice)["completions"].count == "2"


def test_annotator_sees_the_picture_without_links_to_closed_pages(signed_in, bob, project, ranking):
    text = signed_in(bob).get(reverse("overview", args=[project.slug])).content.decode()
    assert reverse("models", args=[project.slug]) not in text
    assert reverse("rank", args=[project.slug]) in text


def test_outsider_sees_404(signed_in, charlie, project):
    assert signed_in(charlie).get(reverse("overview", args=[project.slug])).status_code == 404


def test_picture_keeps_itself_up_to_date(signed_in, alice, project, ranking):
    client, url = signed_in(alice), reverse("overview", args=[project.slug])
    page = client.get(url).content.decode()
    seen = page.split('data-seen="')[1].split('"')[0]
    assert client.get(f"{url}?seen={seen}", headers={"HX-Request": "true"}).status_code == 204
    Round.objects.update(status="awaiting_approval")
    assert client.get(f"{url}?seen={seen}", headers={"HX-Request": "true"}).status_code == 200


def test_someone_elses_data_is_not_counted(project, other_project, alice):
    _model(other_project, "base")
    Dataset.objects.create(project=other_project, kind="corpus", name="t", path="t", sha256="0" * 64)
    assert {station.count for station in _stations(project, alice).values()} == {"0"}
