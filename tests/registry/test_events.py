"""Live news of a run: who may listen, what is sent, and that it ends. Redis is away in these tests."""

import asyncio
import json
from contextlib import suppress

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient
from django.urls import reverse
from django.utils.timezone import now

from registry import sse
from registry.models import Metric, Run, Sample, WorkerProcess
from registry.news import MOST, Reader, news_of, thinned


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(sse, "EVERY", 0.01)


def _run(project, **changes):
    return Run.objects.create(**{"project": project, "stage": "sft", "status": "running", "steps": 100, **changes})


def _listen(user, run, slug=None, query="", during=None):
    """The events of a stream up to its end, or up to 5 seconds."""

    async def main():
        client = AsyncClient()
        if user:
            await client.aforce_login(user)
        answer = await client.get(reverse("run_events", args=[slug or run.project.slug, run.pk]) + query)
        if not answer.streaming:
            return answer, []
        text = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                async for part in answer.streaming_content:
                    text += part.decode()
                    if during and "data:" in text:
                        await during()
        return answer, parse(text)

    return async_to_sync(main)()


def parse(text):
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in lines:
            events.append((lines["event"], json.loads(lines["data"])))
    return events


def test_a_run_that_is_over_gets_its_news_and_an_end(alice, project):
    run = _run(project, status="succeeded")
    Metric.objects.create(run=run, step=10, values={"loss": 1.5})
    answer, events = _listen(alice, run)
    assert answer["Content-Type"] == "text/event-stream"
    assert "no-cache" in answer["Cache-Control"]
    assert answer["X-Accel-Buffering"] == "no"
    assert [name for name, _ in events] == ["message", "end"]
    assert events[0][1]["metrics"] == [{"step": 10, "loss": 1.5}]
    assert events[0][1]["run"]["status"] == "succeeded"


def test_news_arrive_while_the_run_goes_on_without_redis(alice, project):
    run = _run(project)

    async def go_on():
        await Metric.objects.aget_or_create(run=run, step=20, defaults={"values": {"loss": 0.5}})
        await Run.objects.filter(pk=run.pk).aupdate(status="succeeded", step=100)

    _answer, events = _listen(alice, run, during=go_on)
    assert {"step": 20, "loss": 0.5} in [m for name, data in events if name == "message" for m in data["metrics"]]
    assert events[-1][0] == "end"


def test_stream_names_the_missing_worker(alice, project):
    run = _run(project, status="queued")
    assert news_of(run.pk, Reader("en"))["missing"] == ["train"]
    WorkerProcess.objects.create(name="t", queue="train", seen_at=now())
    assert news_of(run.pk, Reader("en"))["missing"] == []


def test_question_without_a_stream_goes_on_where_the_reader_was(alice, project):
    run = _run(project)
    first = Metric.objects.create(run=run, step=10, values={"loss": 2.0})
    Metric.objects.create(run=run, step=20, values={"loss": 1.0})
    Sample.objects.create(run=run, position=0, values={"step": 10, "text": "uno"})
    answer, _ = _listen(alice, run, query=f"?poll=1&metric={first.pk}&sample=0")
    news = json.loads(answer.content)
    assert [m["step"] for m in news["metrics"]] == [20]
    assert news["samples"][0]["text"] == "uno"
    again, _ = _listen(alice, run, query="?poll=1&metric={metric}&sample={sample}".format(**news["after"]))
    assert json.loads(again.content)["metrics"] == []


def test_outsider_annotator_and_stranger_hear_nothing(charlie, bob, project):
    run = _run(project)
    assert _listen(charlie, run)[0].status_code == 404
    assert _listen(bob, run)[0].status_code == 403
    assert _listen(None, run)[0].status_code == 404


def test_run_of_another_project_is_not_heard(alice, project, other_project):
    theirs = _run(other_project)
    assert _listen(alice, theirs, slug=project.slug)[0].status_code == 404


def test_state_keeps_the_newest_value_of_each_figure(project):
    run = _run(project)
    Metric.objects.create(run=run, step=10, values={"loss": 2.0, "val_loss": 3.0})
    Metric.objects.create(run=run, step=20, values={"loss": 1.5})
    assert news_of(run.pk, Reader("en"))["run"]["figures"] == {"loss": "1.5", "val_loss": "3"}


def test_state_is_written_in_the_readers_language(project):
    run = _run(project, step=1200, steps=6000)
    assert news_of(run.pk, Reader("en"))["run"]["progress"] == "step 1,200 of 6,000"


def test_long_curves_are_thinned_but_keep_their_newest_point():
    metrics = [Metric(step=step, values={}) for step in range(3 * MOST + 1)]
    few = thinned(metrics)
    assert len(few) <= MOST + 1
    assert few[-1].step == 3 * MOST
    assert thinned(metrics[:5]) == metrics[:5]
    assert thinned([]) == []
