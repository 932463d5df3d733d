"""Stage generate: completions with their seeds and log-probabilities."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import jsonl, rows_of, run_stage
from training import generate
from training.chat import render_prompt
from training.checkpoint import load_model
from training.config import TrainingError
from training.engine import Engine, Request
from training.parse import parse
from training.report import Report


@pytest.fixture
def generate_run(make_run: Callable[..., Path], base_dir: Path) -> Callable[..., Path]:
    def build(name: str = "run", **changes: Any) -> Path:
        config = {"model": str(base_dir), "n": 3, "max_new_tokens": 10, "seed": 4, "batch_size": 5}
        return make_run({**config, **changes}, {"prompts.jsonl": jsonl([{"prompt": "pan"}, {"prompt": "miel"}])}, name)

    return build


def _run(run_dir: Path) -> dict[str, Any]:
    settings = json.loads((run_dir / "config.json").read_text())
    return generate.run(parse("generate", settings), run_dir, Report(run_dir))


def test_every_completion_says_how_it_came_about(generate_run, base_dir):
    run_dir = generate_run()
    result = _run(run_dir)
    rows = rows_of(run_dir / "completions.jsonl")
    assert [(row["prompt"], row["index"]) for row in rows] == [(p, i) for p in ("pan", "miel") for i in range(3)]
    assert result["completions"] == 6
    assert result["tokens"] == sum(len(row["tokens"]) for row in rows)
    model, tok, _ = load_model(base_dir)
    for row in rows:  # prompt and seed alone bring the same text back
        again = Request(render_prompt(tok, row["prompt"]), 10, seed=row["seed"])
        engine = Engine(model, tok, 1)
        engine.submit(again)
        engine.run_until_idle()
        assert (again.tokens, again.text, again.finish_reason) == (row["tokens"], row["text"], row["finish_reason"])
        assert again.logprobs == pytest.approx(row["logprobs"], abs=1e-5)
    assert len({row["seed"] for row in rows}) == 6


def test_prompts_can_stand_in_the_settings(generate_run):
    run_dir = generate_run(prompts=["¿Cuánto cuesta el queso?"], n=2, temperature=0.0)
    _run(run_dir)
    rows = rows_of(run_dir / "completions.jsonl")
    assert [row["prompt"] for row in rows] == ["¿Cuánto cuesta el queso?"] * 2
    assert rows[0]["tokens"] == rows[1]["tokens"]
    assert not rows[0]["filtered"]


def test_it_runs_as_a_program_and_says_how_far_it_is(generate_run):
    run_dir = generate_run(top_k=5)
    assert run_stage("generate", run_dir).returncode == 0
    assert json.loads((run_dir / "result.json").read_text())["prompts"] == 2
    assert rows_of(run_dir / "metrics.jsonl")[-1] == {"step": 6, "steps": 6}
    assert all(row["filtered"] for row in rows_of(run_dir / "completions.jsonl"))


def test_a_prompt_longer_than_the_context_is_one_sentence(generate_run):
    with pytest.raises(TrainingError, match=r"has \d+ tokens and this model reads 1 to 63 before it answers"):
        _run(generate_run(prompts=["palabra " * 80]))


def test_an_empty_prompt_is_refused(generate_run):
    with pytest.raises(TrainingError, match="Of 2 prompts at least 1 is empty"):
        _run(generate_run(prompts=["a", " "]))


def test_the_gap_between_engine_and_trainer_stands_on_the_run(generate_run):
    assert 0 <= _run(generate_run())["sampler_gap"] <= 1e-5
    assert 1e-5 < _run(generate_run("half", precision="bf16"))["sampler_gap"] < 0.2


def test_stops_bad_words_and_penalties_reach_the_engine(generate_run, base_dir):
    def written(name: str, **changes: Any) -> list[dict[str, Any]]:
        _run(run_dir := generate_run(name, max_new_tokens=20, n=20, **changes))
        return rows_of(run_dir / "completions.jsonl")

    free, stopped = written("free"), written("stopped", stop=["e"])
    assert any("e" in row["text"] for row in free)
    for row, cut in zip(free, stopped, strict=True):
        assert cut["text"] == row["text"].split("e")[0]
        assert cut["finish_reason"] == ("stop" if "e" in row["text"] else row["finish_reason"])
        assert not cut["filtered"]
    (e,) = load_model(base_dir)[1].encode("e")
    assert any(e in row["tokens"] for row in free)
    held = written("held", bad_words=["e"])
    assert not any(e in row["tokens"] for row in held)
    varied = written("varied", repetition_penalty=1e6)
    assert [row["tokens"] for row in varied] != [row["tokens"] for row in free]
    assert all(row["filtered"] for row in held + varied)


def test_beams_write_the_likeliest_completions_first(generate_run):
    _run(run_dir := generate_run(beams=4, n=3))
    rows = rows_of(run_dir / "completions.jsonl")
    assert [(row["prompt"], row["index"]) for row in rows] == [(p, i) for p in ("pan", "miel") for i in range(3)]
    assert rows[0]["score"] >= rows[1]["score"] >= rows[2]["score"]
    assert all(row["score"] == pytest.approx(sum(row["logprobs"]) / len(row["logprobs"])) for row in rows)
    with pytest.raises(TrainingError, match="beams is 2 and n is 3"):
        _run(generate_run("few", beams=2, n=3))
