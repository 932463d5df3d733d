"""The serve worker with a real, tiny model: a round is written whole, and nobody waits for ever."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from accounts.models import Project
from labeling import rounds
from labeling.models import Completion, Round
from labeling.playground import ask
from registry.models import ModelVersion
from tests.make import make_model, make_prompt
from tests.training import tiny
from training.chat import render_prompt
from training.engine import Engine, EngineThread, generate
from workers import serving, tasks

SAMPLING = {"max_new_tokens": 8, "temperature": 1.0}


@pytest.fixture(autouse=True)
def _no_engines_left():
    yield
    for one in serving._served.values():
        one.thread.close(timeout=5)
    serving._served.clear()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(serving, "publish", lambda stream, event: events.append((stream, event)))
    return events


def _open(project: Project, policy: ModelVersion, prompts: int = 3, **changes: Any) -> Round:
    for n in range(prompts):
        make_prompt(project, f"¿Sube {n}?")
    return rounds.open_round(
        **{"project": project, "policy": policy, "prompts": prompts, "k": 3, "seed": 1, "sampling": SAMPLING, **changes}
    )


def _ask(project: Project, model: ModelVersion, **changes: Any) -> Completion:
    asked = {"project": project, "user": None, "model": model, "prompt": "¿Sube?", "sampling": SAMPLING, "seed": 7}
    return ask(**{**asked, **changes})


def test_a_round_is_written_with_all_that_is_needed_to_write_it_again(project: Project, writer: ModelVersion) -> None:
    round = _open(project, writer)
    tasks.write_round(round.pk)
    round.refresh_from_db()
    assert round.status == "ranking"
    written = list(Completion.objects.all())
    assert len(written) == 9
    for completion in written:
        assert completion.status == "done"
        assert completion.model == writer
        assert 0 < len(completion.tokens) == len(completion.logprobs) <= 8
        assert all(logprob <= 0 for logprob in completion.logprobs)
        assert completion.finish_reason in {"eos", "length"}
        assert completion.written_at
    for task in round.tasks.all():
        texts = [c.text for c in task.completions.all()]
        assert len(set(texts)) == len(texts)


def test_a_stored_seed_writes_the_same_text_again(project: Project, writer: ModelVersion) -> None:
    serving.write_round(_open(project, writer, prompts=1).pk)
    tokenizer = tiny.make_tokenizer()
    for completion in Completion.objects.all():
        (again,) = generate(
            tiny.make_model(tokenizer), tokenizer, [render_prompt(tokenizer, completion.prompt_text)],
            [completion.seed], max_new_tokens=8,
        )  # fmt: skip
        assert again.tokens == completion.tokens
        assert again.logprobs == pytest.approx(completion.logprobs, abs=1e-4)


def test_the_command_stops_at_texts_and_refuses_what_cannot_be(project: Project, writer: ModelVersion) -> None:
    def said(**options: Any) -> dict[str, Any]:
        out = StringIO()
        name = f"{project.slug}/{writer.name}"
        call_command("generate", model=name, prompt="¿Sube?", n=3, seed=7, json=True, stdout=out, **options)
        return dict(json.loads(out.getvalue()))

    free = [completion["text"] for completion in said()["completions"]]
    letter = next(letter for text in free for letter in text if letter != "\ufffd")
    stopped = said(stop=[letter])
    assert [c["text"] for c in stopped["completions"]] == [text.split(letter)[0] for text in free]
    assert {c["finish_reason"] for c in stopped["completions"]} >= {"stop"}
    assert stopped["stop"] == [letter]
    assert said(repetition_penalty=5.0)["completions"] != said()["completions"]
    with pytest.raises(CommandError, match="repetition-penalty is 0"):
        said(repetition_penalty=0.0)


def test_a_text_that_repeats_another_is_drawn_again_and_its_new_seed_stored(
    project: Project, writer: ModelVersion
) -> None:
    round = _open(project, writer, prompts=1)
    Completion.objects.update(seed=5)
    serving.write_round(round.pk)
    written = Completion.objects.values_list("seed", "text")
    assert len({seed for seed, _text in written}) == len({text for _seed, text in written}) == 3


def test_a_model_with_one_answer_only_gives_that_answer(project: Project, writer: ModelVersion) -> None:
    serving.write_round(_open(project, writer, prompts=1, sampling={**SAMPLING, "temperature": 0}).pk)
    assert set(Completion.objects.values_list("status", flat=True)) == {"done"}
    assert Completion.objects.values("text").distinct().count() == 1


def test_writing_a_round_again_changes_nothing(project: Project, writer: ModelVersion) -> None:
    round = _open(project, writer)
    serving.write_round(round.pk)
    before = list(Completion.objects.values())
    serving.write_round(round.pk)
    assert list(Completion.objects.values()) == before


@pytest.mark.parametrize("broken", ["missing", "torn"])
def test_a_model_that_cannot_be_loaded_fails_with_a_sentence(
    project: Project, artifacts: Path, writer: ModelVersion, broken: str
) -> None:
    policy = make_model(project, "policy")
    if broken == "torn":
        writer.folder.rename(policy.folder)
        weights = policy.folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    round = _open(project, policy, prompts=1)
    tasks.write_round(round.pk)
    assert set(Completion.objects.values_list("status", flat=True)) == {"failed"}
    for sentence in Completion.objects.values_list("error", flat=True):
        assert len(sentence) > 20
        assert sentence.endswith(".")
    round.refresh_from_db()
    assert (round.status, round.error) == ("generating", Completion.objects.first().error)


def test_a_prompt_longer_than_the_context_fails_alone(project: Project, writer: ModelVersion) -> None:
    make_prompt(project, "¿" + "muy " * 40 + "largo?")
    round = _open(project, writer, prompts=1)
    rounds.reject_round(round)
    serving.write_round(rounds.open_round(project=project, policy=writer, prompts=2, k=2, sampling=SAMPLING).pk)
    found = dict(Completion.objects.filter(task__round__number=2).values_list("prompt_text", "status"))
    assert sorted(found.values()) == ["done", "failed"]
    assert "tokens" in Completion.objects.filter(status="failed", task__round__number=2).first().error


def test_a_writer_that_lost_its_claim_stores_nothing(
    project: Project, writer: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    round = _open(project, writer, prompts=1)
    original = serving._write_all

    def slow(todo: Any) -> Any:
        written = original(todo)
        Completion.objects.update(claim=None, status="pending")  # the reconciler took them back
        monkeypatch.setattr(serving.stopping, "is_set", lambda: True)
        return written

    monkeypatch.setattr(serving, "_write_all", slow)
    serving.write_round(round.pk)
    assert set(Completion.objects.values_list("status", "text")) == {("pending", "")}


def test_a_question_is_streamed_and_stored(project: Project, writer: ModelVersion, heard: list[Any]) -> None:
    asked = _ask(project, writer)
    tasks.write(asked.pk)
    tasks.write(asked.pk)
    asked.refresh_from_db()
    assert (asked.status, asked.seed, len(asked.tokens)) == ("done", 7, len(asked.logprobs))
    assert {stream for stream, _event in heard} == {f"completion:{asked.pk}"}
    last = heard[-1][1]
    assert last == {"done": True, "text": asked.text, "finish_reason": asked.finish_reason}
    assert [event for _stream, event in heard if event.get("done")] == [last]
    assert all(asked.text.startswith(event["text"].strip()) for _stream, event in heard)


def test_a_question_to_a_missing_model_ends_with_the_sentence(
    project: Project, artifacts: Path, heard: list[Any]
) -> None:
    asked = _ask(project, make_model(project))
    tasks.write(asked.pk)
    asked.refresh_from_db()
    assert asked.status == "failed"
    assert heard == [(f"completion:{asked.pk}", {"error": asked.error})]


def test_an_engine_that_breaks_fails_the_question_and_the_next_one_gets_a_new_engine(
    project: Project, writer: ModelVersion, heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Engine) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", broken)
        patch.setattr("threading.excepthook", lambda _args: None)
        asked = _ask(project, writer)
        tasks.write(asked.pk)
    asked.refresh_from_db()
    assert (asked.status, asked.text) == ("failed", "")
    assert heard[-1][1] == {"error": asked.error}
    assert isinstance(serving.served(writer).thread, EngineThread)
    again = _ask(project, writer)
    tasks.write(again.pk)
    again.refresh_from_db()
    assert again.status == "done"


def test_the_byte_0_is_stored_readably(project: Project, writer: ModelVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.vocabulary.Tokenizer.decode", lambda _self, _ids: "a\x00b")
    asked = _ask(project, writer)
    tasks.write(asked.pk)
    asked.refresh_from_db()
    assert (asked.status, asked.text) == ("done", "a\ufffdb")


def test_a_base_model_continues_the_text_as_it_is(project: Project, writer: ModelVersion) -> None:
    tokenizer = tiny.make_tokenizer()
    answers = serving.served(writer).request("Hola", {"top_k": 0, "top_p": 1.0, **SAMPLING}, 1)
    base = make_model(project, "base", path=writer.path)
    continues = serving.served(base).request("Hola", {"top_k": 0, "top_p": 1.0, **SAMPLING}, 1)
    assert list(answers.prompt_ids) == render_prompt(tokenizer, "Hola")
    assert list(continues.prompt_ids) == tokenizer.encode("Hola")


def test_few_models_are_kept_the_longest_unused_makes_room(project: Project, writer: ModelVersion) -> None:
    versions = [make_model(project, "policy", n, path=writer.path) for n in range(1, 6)]
    for version in versions[:3]:
        serving.warm(version.pk)
    first = serving.served(versions[0])
    for version in versions[3:]:
        serving.warm(version.pk)
    assert list(serving._served) == [versions[0].pk, versions[3].pk, versions[4].pk]
    assert serving.served(versions[0]) is first


def test_what_cannot_write_is_not_loaded(project: Project) -> None:
    serving.warm(make_model(project, "reward").pk)
    serving.warm(10**9)
    assert not serving._served
