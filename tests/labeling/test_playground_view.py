"""The playground: two answers to one prompt, streamed. Redis is away unless a test puts a bell in its place."""

import asyncio
import json

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient
from django.urls import reverse
from django.utils.timezone import now

from labeling.models import Completion
from registry import sse
from registry.models import Deployment, ModelVersion, WorkerProcess


@pytest.fixture
def alices(signed_in, alice):
    return signed_in(alice)


@pytest.fixture
def models(project):
    made = [
        ModelVersion.objects.create(project=project, kind=kind, number=1, path="p", sha256="f" * 64)
        for kind in ("base", "sft", "policy", "reward")
    ]
    Deployment.objects.create(project=project, model=made[2])
    return {model.kind: model for model in made}


def _ask(client, project, models, **changes):
    body = {
        "prompt": "¿Cuánto cuesta el pan?", "left": models["policy"].pk, "right": models["sft"].pk,
        "temperature": "0.7", "top_p": "0.9", "max_new_tokens": "20", "seed": "7", **changes,
    }  # fmt: skip
    return client.post(reverse("playground_ask", args=[project.slug]), body, headers={"HX-Request": "true"})


def test_live_model_stands_first_and_another_beside_it(alices, project, models):
    form = alices.get(reverse("playground", args=[project.slug])).context["form"]
    assert form["left"].value() == models["policy"].pk
    assert form["right"].value() == models["sft"].pk
    assert models["reward"] not in form["left"].field.queryset


def test_both_models_are_asked_the_same(alices, alice, project, models):
    page = _ask(alices, project, models)
    asked = Completion.objects.order_by("pk")
    assert [c.model for c in asked] == [models["policy"], models["sft"]]
    for completion in asked:
        assert (completion.seed, completion.prompt_text, completion.created_by) == (7, "¿Cuánto cuesta el pan?", alice)
        assert completion.sampling["temperature"] == 0.7
        assert reverse("completion_events", args=[project.slug, completion.pk]) in page.content.decode()
    assert "<html" not in page.content.decode()


def test_without_a_seed_both_get_the_same_new_one(alices, project, models):
    for _ in range(2):
        _ask(alices, project, models, seed="")
    seeds = list(Completion.objects.order_by("pk").values_list("seed", flat=True))
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]


def test_one_model_alone_may_be_asked(alices, project, models):
    _ask(alices, project, models, right="")
    assert Completion.objects.count() == 1


@pytest.mark.parametrize(("field", "value"), [("temperature", "11"), ("prompt", "  "), ("left", ""), ("top_p", "2")])
def test_a_wrong_field_is_said_and_nobody_is_asked(alices, project, models, field, value):
    page = _ask(alices, project, models, **{field: value})
    assert 'role="alert"' in page.content.decode()
    assert not Completion.objects.exists()


def test_without_scripts_the_whole_page_comes_back(alices, project, models):
    body = {"prompt": "Hola", "left": models["sft"].pk, "temperature": 1, "top_p": 1, "max_new_tokens": 5}
    assert "<html" in alices.post(reverse("playground_ask", args=[project.slug]), body).content.decode()


def test_no_model_yet_leads_to_the_overview(alices, project):
    page = alices.get(reverse("playground", args=[project.slug])).content.decode()
    assert reverse("overview", args=[project.slug]) in page
    assert "<textarea" not in page


def _completion(project, models, **changes):
    return Completion.objects.create(**{"project": project, "model": models["sft"], "prompt_text": "p", **changes})


def _listen(user, completion, query="", slug=None):
    async def main():
        client = AsyncClient()
        await client.aforce_login(user)
        url = reverse("completion_events", args=[slug or completion.project.slug, completion.pk])
        answer = await client.get(url + query)
        if not answer.streaming:
            return answer, []
        async with asyncio.timeout(5):
            text = b"".join([part async for part in answer.streaming_content]).decode()
        blocks = [b.splitlines() for b in text.split("\n\n") if "data: " in b]
        return answer, [(b[-2].removeprefix("event: "), json.loads(b[-1].removeprefix("data: "))) for b in blocks]

    return async_to_sync(main)()


def test_written_completion_is_sent_whole(alice, project, models):
    completion = _completion(project, models, status="done", text="Dos monedas.", finish_reason="eos", tokens=[1, 2])
    answer, events = _listen(alice, completion)
    assert answer["Content-Type"] == "text/event-stream"
    assert events == [
        ("message", {"text": "Dos monedas.", "done": True, "finish_reason": "eos", "tokens": 2}),
        ("end", {}),
    ]


def test_text_arrives_as_it_is_written_and_the_database_has_the_last_word(alice, project, models, monkeypatch):
    completion = _completion(project, models, status="writing")

    async def bell(stream, after):
        assert (stream, after) == (f"completion:{completion.pk}", "0")
        yield {"text": "Dos"}
        yield {"text": "Dos mone"}
        await Completion.objects.filter(pk=completion.pk).aupdate(status="done", text="Dos monedas.")
        yield {"done": True, "text": "from a worker that lost its claim"}

    monkeypatch.setattr(sse, "bell", bell)
    _answer, events = _listen(alice, completion)
    assert [data.get("text") for name, data in events if name == "message"][1:] == ["Dos", "Dos mone", "Dos monedas."]
    assert events[-1][0] == "end"


def test_failure_is_one_sentence_and_an_end(alice, project, models):
    completion = _completion(project, models, status="failed", error="The prompt has 300 tokens; the model reads 128.")
    _answer, events = _listen(alice, completion)
    assert events[0][1]["error"] == "The prompt has 300 tokens; the model reads 128."
    assert events[-1][0] == "end"


def test_missing_serve_worker_is_named(alice, project, models):
    completion = _completion(project, models)
    answer, _ = _listen(alice, completion, "?poll=1")
    assert json.loads(answer.content) == {"missing": ["serve"]}
    WorkerProcess.objects.create(name="s", queue="serve", seen_at=now())
    assert json.loads(_listen(alice, completion, "?poll=1")[0].content) == {"missing": []}


def test_nobody_else_hears_it(bob, charlie, alice, project, other_project, models):
    completion = _completion(project, models, status="done", text="secret")
    assert _listen(bob, completion)[0].status_code == 403
    assert _listen(charlie, completion)[0].status_code == 404
    assert _listen(charlie, completion, slug=other_project.slug)[0].status_code == 404


def test_only_managers_ask(signed_in, bob, charlie, project, models):
    assert _ask(signed_in(bob), project, models).status_code == 403
    assert _ask(signed_in(charlie), project, models).status_code == 404
    assert not Completion.objects.exists()
