"""A run in the hands of workers that die, stop, come back and end at the same moment."""

import threading
from typing import Any

import pytest
from django.db import connection
from django.utils.timezone import now, timedelta

from accounts.models import Project
from registry import lifecycle
from registry.health import sign_of_life
from registry.lifecycle import beat_run, claim_run, end_cancelled, fail_run, finish_run, reconcile_runs, record
from registry.models import Metric, ModelVersion, Run, Sample
from tests.make import claimed, make_run

ARTIFACT = {"kind": "sft", "path": "x", "sha256": "1" * 64, "parameters": 10, "parent": None}


def _at_once(*calls: Any) -> list[Any]:
    """Each call in a thread of its own, begun together."""
    start, results = threading.Barrier(len(calls)), []

    def go(call: Any) -> None:
        start.wait()
        results.append(call())
        connection.close()

    threads = [threading.Thread(target=go, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _silent(run: Run, seconds: float = 31) -> None:
    Run.objects.filter(pk=run.pk).update(heartbeat_at=now() - timedelta(seconds=seconds))


def test_three_claims_give_one_run(project: Project) -> None:
    run = make_run(project)
    taken = [claim_run(run.pk, f"w{n}") for n in range(3)]
    assert [bool(t) for t in taken] == [True, False, False]
    assert (taken[0].status, taken[0].attempt, taken[0].worker) == ("running", 1, "w0")
    assert taken[0].started_at


@pytest.mark.django_db(transaction=True)
def test_three_claims_at_once_give_one_run() -> None:
    run = make_run(Project.objects.create(name="Plaza", slug="plaza"))
    taken = _at_once(*[lambda n=n: claim_run(run.pk, f"w{n}") for n in range(3)])
    assert sorted(bool(t) for t in taken) == [False, False, True]
    assert Run.objects.get().attempt == 1


def test_a_revived_older_attempt_changes_nothing(project: Project, bell: Any) -> None:
    older = claimed(make_run(project), "w1")
    _silent(older)
    reconcile_runs()
    newer = claimed(older, "w2")
    before = Run.objects.values().get()
    assert not record(older, [{"step": 5, "steps": 10, "loss": 1.0}], [(0, {"text": "x"})])
    assert not finish_run(older, {"loss": 1.0}, ARTIFACT)
    assert not fail_run(older, "I am late.")
    assert not lifecycle.requeue_run(older, lost=True)
    assert not lifecycle.requeue_run(older, lost=False)
    assert not beat_run(older)
    assert not end_cancelled(older)
    assert Run.objects.values().get() == before
    assert newer.attempt == 2
    assert not Metric.objects.exists()
    assert not Sample.objects.exists()
    assert not ModelVersion.objects.exists()
    assert finish_run(newer, {"loss": 1.0}, ARTIFACT)


def test_a_revived_attempt_cannot_cancel_or_see_the_newer_ones_wish(project: Project, bell: Any) -> None:
    older = claimed(make_run(project))
    _silent(older)
    reconcile_runs()
    newer = claimed(older)
    Run.objects.update(cancel_requested=True)
    assert lifecycle.wants_cancel(newer)
    assert not lifecycle.wants_cancel(older)


def test_a_silent_run_is_taken_back_a_living_one_is_not(project: Project, bell: Any) -> None:
    silent, living = claimed(make_run(project)), claimed(make_run(project))
    _silent(silent)
    _silent(living)
    assert beat_run(living)
    reconcile_runs()
    assert dict(Run.objects.values_list("pk", "status")) == {silent.pk: "queued", living.pk: "running"}
    assert bell.rung == [("workers.train", silent.pk)]


def test_a_run_that_keeps_falling_silent_fails_with_a_sentence(project: Project, bell: Any, settings: Any) -> None:
    settings.MAX_ATTEMPTS = 3
    run = make_run(project)
    for attempt in (1, 2, 3):
        assert claimed(run).attempt == attempt
        _silent(run)
        reconcile_runs()
    run.refresh_from_db()
    assert (run.status, run.attempt, run.attempts_lost) == ("failed", 3, 2)
    assert "ended 3 times without a word" in run.error
    assert "batch_size" in run.error
    assert claim_run(run.pk, "w") is None


def test_a_stopped_worker_costs_no_attempt(project: Project, bell: Any, settings: Any) -> None:
    settings.MAX_ATTEMPTS = 2
    run = make_run(project)
    for _ in range(4):
        assert lifecycle.requeue_run(claimed(run), lost=False)
    run.refresh_from_db()
    assert (run.status, run.attempts_lost, run.attempt) == ("queued", 0, 4)


def test_a_silent_run_that_was_cancelled_ends(project: Project, bell: Any) -> None:
    run = claimed(make_run(project))
    Run.objects.update(cancel_requested=True)
    _silent(run)
    reconcile_runs()
    run.refresh_from_db()
    assert run.status == "cancelled"
    assert bell.rung == []


def test_a_queued_row_nobody_came_for_is_rung_again_but_not_at_every_look(project: Project, bell: Any) -> None:
    fresh = make_run(project, rung_at=now())
    late = make_run(project, rung_at=now() - timedelta(minutes=1))
    reconcile_runs()
    reconcile_runs()
    assert bell.rung == [("workers.train", late.pk)]
    Run.objects.filter(pk=fresh.pk).update(rung_at=now() - timedelta(minutes=1))
    reconcile_runs()
    assert bell.rung == [("workers.train", late.pk), ("workers.train", fresh.pk)]


def test_while_every_train_worker_has_a_run_nobody_is_rung_for(project: Project, bell: Any) -> None:
    late = make_run(project, rung_at=now() - timedelta(minutes=1))
    busy = make_run(project, status="running", attempt=1, heartbeat_at=now())
    sign_of_life("train@a", "train")
    for _ in range(3):
        reconcile_runs()
    assert bell.rung == []
    sign_of_life("train@b", "train")
    reconcile_runs()
    assert bell.rung == [("workers.train", late.pk)]
    Run.objects.filter(pk=late.pk).update(rung_at=now() - timedelta(minutes=1))
    Run.objects.filter(pk=busy.pk).update(status="succeeded")
    reconcile_runs()
    assert bell.rung == 2 * [("workers.train", late.pk)]


def test_what_could_not_be_rung_is_tried_at_the_next_look(project: Project, bell: Any) -> None:
    run = make_run(project, rung_at=now() - timedelta(minutes=1))
    bell.is_there = False
    reconcile_runs()
    bell.is_there = True
    reconcile_runs()
    assert bell.rung == [("workers.train", run.pk)]


def test_finish_enters_one_model_under_the_next_number(project: Project, other_project: Project) -> None:
    for number in (1, 2):
        run = claimed(make_run(project, steps=40))
        assert finish_run(run, {"loss": 0.5}, ARTIFACT)
        assert not finish_run(run, {"loss": 0.5}, ARTIFACT)
        run.refresh_from_db()
        assert (run.status, run.step, run.model.name) == ("succeeded", 40, f"sft-{number}")
        assert run.model.figures == {"loss": 0.5}
    theirs = claimed(make_run(other_project))
    finish_run(theirs, {}, ARTIFACT)
    assert theirs.model.name == "sft-1"


@pytest.mark.django_db(transaction=True)
def test_runs_that_end_at_once_get_different_numbers() -> None:
    project = Project.objects.create(name="Plaza", slug="plaza")
    runs = [claimed(make_run(project)) for _ in range(4)]
    assert all(_at_once(*[lambda run=run: finish_run(run, {}, ARTIFACT) for run in runs]))
    assert sorted(ModelVersion.objects.values_list("number", flat=True)) == [1, 2, 3, 4]


def test_a_stage_without_a_model_enters_none(project: Project) -> None:
    run = claimed(make_run(project, "evaluate"))
    assert finish_run(run, {"win_rate": 0.7}, None)
    assert not ModelVersion.objects.exists()
    run.refresh_from_db()
    assert run.result == {"win_rate": 0.7}


def test_steps_reported_again_after_a_resume_are_stored_once(project: Project) -> None:
    run = claimed(make_run(project))
    assert record(
        run, [{"step": 10, "steps": 30, "loss": 2.0}, {"step": 20, "steps": 30, "loss": 1.5}], [(0, {"text": "a"})]
    )
    assert record(run, [{"step": 20, "loss": 1.4}, {"step": 20, "loss": 1.3}], [(0, {"text": "b"}), (1, {"text": "c"})])
    assert dict(Metric.objects.values_list("step", "values")) == {10: {"loss": 2.0}, 20: {"loss": 1.3}}
    assert [s.values["text"] for s in Sample.objects.all()] == ["b", "c"]
    run.refresh_from_db()
    assert (run.step, run.steps, run.percent) == (20, 30, 66)


def test_a_sample_with_the_byte_0_is_stored(project: Project) -> None:
    run = claimed(make_run(project))
    assert record(run, [], [(0, {"step": 1, "text": "a\x00b\u2028"})])
    assert Sample.objects.get().values == {"step": 1, "text": "a\ufffdb\u2028"}


def test_a_new_attempt_begins_without_the_old_error_and_keeps_its_start(project: Project) -> None:
    run = claimed(make_run(project))
    began = run.started_at
    Run.objects.update(status="queued", error="once")
    again = claimed(run)
    assert (again.error, again.attempt, again.started_at) == ("", 2, began)
