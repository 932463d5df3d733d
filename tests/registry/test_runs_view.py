"""The runs list and the page of one run."""

import json
import re

import pytest
from django.urls import reverse
from django.utils.timezone import now

from registry.models import Dataset, Metric, ModelVersion, Run, Sample, WorkerProcess


def _run(project, **changes):
    return Run.objects.create(**{"project": project, "stage": "pretrain", "steps": 100, **changes})


def _page(client, run, name="run"):
    return client.get(reverse(name, args=[run.project.slug, run.pk]))


@pytest.fixture
def alices(signed_in, alice):
    return signed_in(alice)


def test_list_shows_each_run_with_its_state_and_figure(alices, project):
    _run(project, status="succeeded", result={"val_loss": 1.2345})
    _run(project, stage="ppo", status="failed", error="Only 12 comparisons; this run needs 32.")
    text = alices.get(reverse("runs", args=[project.slug])).content.decode()
    assert "1.23" in text
    assert "Only 12 comparisons; this run needs 32." in text


def test_list_asks_again_only_while_something_is_under_way(alices, project):
    url = reverse("runs", args=[project.slug])
    run = _run(project, status="running")
    assert "every 3s" in alices.get(url).content.decode()
    Run.objects.filter(pk=run.pk).update(status="succeeded")
    assert "every 3s" not in alices.get(url).content.decode()


def test_list_answers_204_while_nothing_changed_and_the_part_when_it_did(alices, project):
    url, headers = reverse("runs", args=[project.slug]), {"HX-Request": "true"}
    run = _run(project, status="running")
    seen = re.search(r'data-seen="(\w+)', alices.get(url).content.decode())[1]
    assert alices.get(f"{url}?seen={seen}", headers=headers).status_code == 204
    Run.objects.filter(pk=run.pk).update(status="failed", error="It broke.")
    changed = alices.get(f"{url}?seen={seen}", headers=headers)
    assert "It broke." in changed.content.decode()
    assert "<html" not in changed.content.decode()


def test_page_brings_its_curves_along(alices, project):
    run = _run(project, status="running")
    Metric.objects.create(run=run, step=10, values={"loss": 2.5})
    page = _page(alices, run).content.decode()
    data = json.loads(re.search(r'id="run-data" type="application/json">(.*?)</script>', page)[1])
    assert data["metrics"] == [{"step": 10, "loss": 2.5}]
    assert any(series["key"] == "loss" for chart in data["charts"] for series in chart["series"])
    assert data["over"] is False


def test_page_shows_error_lineage_and_output(alices, project):
    base = ModelVersion.objects.create(project=project, kind="base", number=1, path="x", sha256="a" * 64)
    run = _run(project, stage="sft", status="succeeded", base=base, config={"epochs": 7})
    run.datasets.add(
        Dataset.objects.create(project=project, kind="demonstrations", name="d", path="d", sha256="beef" * 16, rows=9)
    )
    ModelVersion.objects.create(project=project, kind="sft", number=4, run=run, path="y", sha256="c" * 64, parent=base)
    Sample.objects.create(run=run, position=0, values={"step": 3, "prompt": "Hola", "text": "<b>Buenas</b>"})
    text = _page(alices, run).content.decode()
    assert "base-1" in text
    assert "sft-4" in text
    assert "beefbeefbe" in text
    assert "epochs" in text
    assert "&lt;b&gt;Buenas" in text


def test_page_shows_what_more_answers_gain_and_which_policies_were_kept(alices, project):
    by_n = [{"n": 4, "score": 0.62, "win_rate": 0.8, "win_rate_low": 0.7, "win_rate_high": 0.9, "kl": 0.573,
             "kl_bound": 0.636, "length": 9.0, "eos_share": 1.0}]  # fmt: skip
    text = _page(alices, _run(project, stage="best_of_n", status="succeeded", result={"by_n": by_n})).content.decode()
    assert "0.573" in text
    assert "0.636" in text
    kept = [{"mark": 1.0, "path": "snapshots/kl-1", "update": 7, "kl": 1.1, "kl_k1": 1.07, "score": 0.4}]
    text = _page(alices, _run(project, stage="ppo", status="succeeded", result={"snapshots": kept})).content.decode()
    assert "snapshots/kl-1" in text
    assert "1.07" in text


def test_page_says_which_worker_is_missing_and_what_to_do(alices, project):
    run = _run(project)
    waiting = re.compile(r'<div data-missing role="status"( hidden)?>(.*?)</div>', re.S)
    hidden, text = waiting.search(_page(alices, run).content.decode()).groups()
    assert not hidden
    assert "train worker" in text
    assert "python manage.py up" in text
    WorkerProcess.objects.create(name="t", queue="train", seen_at=now())
    assert waiting.search(_page(alices, run).content.decode())[1] == " hidden"


def test_queued_run_is_cancelled_at_once_a_running_one_is_asked_to_stop(alices, project):
    queued, running = _run(project), _run(project, status="running")
    for run in (queued, running):
        alices.post(reverse("run_cancel", args=[project.slug, run.pk]))
        run.refresh_from_db()
    assert queued.status == "cancelled"
    assert running.status == "running"
    assert running.cancel_requested
    assert "disabled" in _page(alices, running).content.decode()


def test_cancelling_needs_a_post(alices, project):
    assert _page(alices, _run(project), "run_cancel").status_code == 405


def test_run_of_another_project_is_not_found(alices, project, other_project):
    theirs = _run(other_project)
    for name in ("run", "run_events", "run_cancel"):
        url = reverse(name, args=[project.slug, theirs.pk])
        assert (alices.post if name == "run_cancel" else alices.get)(url).status_code == 404
    theirs.refresh_from_db()
    assert theirs.status == "queued"


def test_only_managers_see_runs(signed_in, bob, charlie, project):
    run = _run(project)
    for url in (reverse("runs", args=[project.slug]), reverse("run", args=[project.slug, run.pk])):
        assert signed_in(bob).get(url).status_code == 403
        assert signed_in(charlie).get(url).status_code == 404
