"""Stage sft: what is learned from a demonstration, exact resume, and refusals."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import curve, error_of, jsonl, kill_at, rows_of, run_stage
from training import chat, checkpoint, device, optim, sft
from training.__main__ import main
from training.config import TrainingError
from training.model import GPT, continue_text
from training.parse import parse
from training.report import Report
from training.vocabulary import Tokenizer

MakeRun = Callable[..., Path]


def demonstrations(n: int) -> list[dict[str, str]]:
    goods = ["pan", "queso", "miel", "bread", "cheese", "honey"]
    return [{"instruction": f"{goods[i % 6]}?", "response": f"{i % 6 + 1} monedas."} for i in range(n)]


def payload(base_dir: Path, **changes: Any) -> dict[str, Any]:
    return {"base": str(base_dir), "batch_size": 4, "warmup_steps": 2, "precision": "fp32", **changes}


def train(make_run: MakeRun, settings: dict[str, Any], rows: list[dict[str, str]]) -> tuple[Path, dict[str, Any]]:
    run_dir = make_run(settings, {"train.jsonl": jsonl(rows)})
    return run_dir, sft.run(parse("sft", settings), run_dir, Report(run_dir))


def example(tok: Tokenizer, prompt: str, answer: str) -> sft.Example:
    return sft.Example(*chat.render_example(tok, prompt, answer), prompt)


def test_targets_are_the_answer_and_its_eos(tok: Tokenizer) -> None:
    rows = [example(tok, "¿pan?", "Cinco."), example(tok, "miel", "Nueve monedas, y gracias.")]
    inputs, targets = sft.collate(rows, tok.pad_id)
    for row, answer in zip(targets, ("Cinco.", "Nueve monedas, y gracias."), strict=True):
        assert row[row >= 0].tolist() == chat.render_response(tok, answer)
    learned = targets >= 0
    assert (inputs[:, 1:][learned[:, :-1]] == targets[:, :-1][learned[:, :-1]]).all()  # shifted by one
    assert inputs[learned][0] == tok.assistant_id  # the first answer token is learned too


def test_loss_is_the_mean_over_answer_tokens_computed_one_by_one(tok: Tokenizer, tiny: Callable[..., GPT]) -> None:
    model = tiny()
    rows = [example(tok, "¿pan?", "Cinco."), example(tok, "miel", "Nueve monedas.")]
    surprises = []
    for row in rows:
        logprobs = model.logits(model(torch.tensor([row.ids])))[0].log_softmax(-1)
        surprises += [-logprobs[t - 1, row.ids[t]].item() for t in range(len(row.ids)) if row.mask[t]]
    config = parse("sft", {"base": "m", "batch_size": 2})
    compute = device.Compute(torch.device("cpu"), bf16=False)
    assert sft.validate(model, rows, config, tok, compute) == pytest.approx(sum(surprises) / len(surprises), abs=1e-5)


def test_labels_of_prompt_and_padding_do_not_reach_the_gradient(tok: Tokenizer, tiny: Callable[..., GPT]) -> None:
    rows = [example(tok, "¿pan?", "Cinco."), example(tok, "miel", "Nueve monedas, y gracias.")]
    inputs, targets = sft.collate(rows, tok.pad_id)
    padded = torch.cat([inputs, torch.full((2, 3), tok.pad_id)], 1), torch.cat([targets, torch.full((2, 3), -1)], 1)
    changed_answer = targets.clone()
    changed_answer[0, (targets[0] >= 0).nonzero()[0]] += 1

    def gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        model = tiny()
        config = parse("sft", {"base": "m", "learning_rate": 0.0, "grad_clip": 0.0})
        compute = device.Compute(torch.device("cpu"), bf16=False)
        return sft.learn(model, optim.adamw(model, 0.0), x, y, config, compute, 0, 1)[2]

    torch.testing.assert_close(gradient(*padded), gradient(inputs, targets), atol=1e-6, rtol=1e-5)
    assert abs(gradient(inputs, changed_answer) - gradient(inputs, targets)) > 1e-4


def test_it_learns_the_answers_and_to_stop(make_run: MakeRun, base_dir: Path) -> None:
    settings = payload(base_dir, epochs=60, learning_rate=1e-2, val_fraction=0.0, sample_every=50)
    run_dir, result = train(make_run, settings, demonstrations(12))
    model, tok, card = checkpoint.load_model(run_dir / "model")
    assert (card["kind"], card["parent"]) == ("sft", str(base_dir))
    assert result["loss"] < 0.1
    new = continue_text(model.eval(), chat.render_prompt(tok, "miel?"), 20, 0.0, 1, tok.eos_id)
    assert new == chat.render_response(tok, "3 monedas.")
    assert "val_loss" not in result
    assert {"prompt", "text"} <= set(rows_of(run_dir / "samples.jsonl")[0])


def test_killed_it_ends_as_if_undisturbed(make_run: MakeRun, base_dir: Path) -> None:
    settings = payload(base_dir, epochs=20, log_every=1, checkpoint_every=7, val_every=25, sample_every=30)
    settings |= {"precision": "auto", "sample_tokens": 5}
    files = {"train.jsonl": jsonl(demonstrations(26))}
    calm, killed = make_run(settings, files, "calm"), make_run(settings, files, "killed")
    assert run_stage("sft", calm).returncode == 0
    kill_at("sft", killed, 31)
    assert run_stage("sft", killed).returncode == 0
    assert curve(killed) == curve(calm)
    assert len(curve(calm)) > 100
    assert (killed / "samples.jsonl").read_bytes() == (calm / "samples.jsonl").read_bytes()
    assert (killed / "model/model.safetensors").read_bytes() == (calm / "model/model.safetensors").read_bytes()


def test_steps_visit_every_row_once_an_epoch(tok: Tokenizer) -> None:
    rows = [example(tok, f"{i}", "x") for i in range(10)]
    config = parse("sft", {"base": "m", "batch_size": 4})
    seen = [tuple(row.tolist()) for step in range(3) for row in sft.step_batch(rows, config, tok, step)[0]]
    assert len(seen) == len(set(seen)) == 10


def test_a_share_is_held_out_and_not_trained_on(make_run: MakeRun, base_dir: Path) -> None:
    rows = [{"instruction": f"n{i}", "response": "x"} for i in range(20)]
    settings = payload(base_dir, val_fraction=0.25)
    run_dir = make_run(settings, {"train.jsonl": jsonl(rows)})
    _, tok, _ = checkpoint.load_model(base_dir)
    train_rows, val_rows, _ = sft.load_examples(parse("sft", settings), run_dir, tok, 64)
    assert (len(train_rows), len(val_rows)) == (15, 5)
    assert len({row.prompt for row in train_rows + val_rows}) == 20


def test_rows_longer_than_the_context_are_skipped_and_counted(make_run: MakeRun, base_dir: Path) -> None:
    rows = demonstrations(8)
    rows[1]["response"] = rows[4]["response"] = "zyx " * 200
    _, result = train(make_run, payload(base_dir, epochs=1, val_fraction=0.0), rows)
    assert (result["skipped_too_long"], result["rows"], result["steps"]) == (2, 6, 2)


def test_only_rows_that_are_too_long_are_refused(make_run: MakeRun, base_dir: Path) -> None:
    with pytest.raises(TrainingError, match=r"All 2 rows are longer than the context of 64 tokens \(the longest has"):
        train(make_run, payload(base_dir), [{"instruction": "a", "response": "zyx " * 200}] * 2)


@pytest.mark.parametrize(
    ("changes", "content", "sentence"),
    [
        ({"base": "nowhere"}, "", "There is no model at"),
        ({}, "", "train.jsonl is empty (0 bytes)"),
        ({}, "\n\n", "train.jsonl has 0 rows"),
        ({}, '{"instruction": "a"}\n', "train.jsonl line 1 lacks 'response'"),
        ({"data": "data/other.jsonl"}, "", "There is no file"),
        ({"learnin_rate": 1}, "", "did you mean 'learning_rate'"),
        ({"base": ""}, "", "base is missing"),
    ],
)
def test_bad_input_is_one_sentence(
    changes: dict, content: str, sentence: str, make_run: MakeRun, base_dir: Path
) -> None:
    run_dir = make_run(payload(base_dir, **changes), {"train.jsonl": content})
    assert main(["sft", str(run_dir)]) == 1
    assert sentence in error_of(run_dir)


def test_first_loss_is_that_of_a_guess(make_run: MakeRun, base_dir: Path, tok: Tokenizer) -> None:
    run_dir, _ = train(make_run, payload(base_dir, epochs=1), demonstrations(20))
    assert rows_of(run_dir / "metrics.jsonl")[0]["val_loss"] == pytest.approx(math.log(tok.vocab_size), abs=0.2)
