"""Stage sft: what is learned from a demonstration, exact resume, and refusals."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import curve, error_of, jsonl, kill_at, rows_of, run_stage
from training import chat, checkpoint, demonstrations, device, optim, sft
from training.__main__ import main
from training.config import TrainingError
from training.engine import generate
from training.model import GPT
from training.parse import parse
from training.report import Report
from training.vocabulary import Tokenizer

MakeRun = Callable[..., Path]
CPU = device.Compute(torch.device("cpu"), bf16=False)


def demonstrations_of(n: int) -> list[dict[str, str]]:
    goods = ["pan", "queso", "miel", "bread", "cheese", "honey"]
    return [{"instruction": f"{goods[i % 6]}?", "response": f"{i % 6 + 1} monedas."} for i in range(n)]


def payload(base_dir: Path, **changes: Any) -> dict[str, Any]:
    return {"base": str(base_dir), "batch_size": 4, "warmup_steps": 2, "precision": "fp32", **changes}


def train(make_run: MakeRun, settings: dict[str, Any], rows: list[dict[str, str]]) -> tuple[Path, dict[str, Any]]:
    run_dir = make_run(settings, {"train.jsonl": jsonl(rows)})
    return run_dir, sft.run(parse("sft", settings), run_dir, Report(run_dir))


def example(tok: Tokenizer, prompt: str, answer: str) -> demonstrations.Example:
    return demonstrations.Example(*chat.render_example(tok, prompt, answer), prompt)


def batch_of(rows: list[demonstrations.Example], tok: Tokenizer, packing: bool = False) -> demonstrations.Batch:
    return demonstrations.collate(rows, tok.pad_id, 64, packing)


def gradient(model: GPT, batch: demonstrations.Batch) -> tuple[torch.Tensor, float]:
    """The whole gradient of one step as a vector, and the loss."""
    config = parse("sft", {"base": "m", "learning_rate": 0.0, "grad_clip": 0.0})
    optimizer = optim.adamw(model, 0.0)
    optimizer.zero_grad = lambda set_to_none=True: None
    _, loss, _ = sft.learn(model, optimizer, batch, config, CPU, 0, 1)
    return torch.cat([p.grad.flatten() for p in model.parameters()]), float(loss)


def test_loss_is_the_mean_over_answer_tokens_computed_one_by_one(tok: Tokenizer, tiny: Callable[..., GPT]) -> None:
    model = tiny()
    rows = [example(tok, "¿pan?", "Cinco."), example(tok, "miel", "Nueve monedas.")]
    surprises = []
    for row in rows:
        logprobs = model.logits(model(torch.tensor([row.ids])))[0].log_softmax(-1)
        surprises += [-logprobs[t - 1, row.ids[t]].item() for t in range(len(row.ids)) if row.mask[t]]
    config = parse("sft", {"base": "m", "batch_size": 2})
    assert sft.validate(model, rows, config, tok, CPU) == pytest.approx(sum(surprises) / len(surprises), abs=1e-5)


def test_labels_of_prompt_and_padding_do_not_reach_loss_or_gradient(tok: Tokenizer, tiny: Callable[..., GPT]) -> None:
    rows = [example(tok, "¿pan?", "Cinco."), example(tok, "miel", "Nueve monedas, y gracias.")]
    batch = batch_of(rows, tok)
    plain, loss = gradient(tiny(), batch)
    wider = [
        torch.cat([t, torch.full((2, 3), fill)], 1) for t, fill in ((batch.inputs, tok.pad_id), (batch.targets, -1))
    ]
    padded, same = gradient(tiny(), dataclasses.replace(batch, inputs=wider[0], targets=wider[1]))
    torch.testing.assert_close(padded, plain, atol=1e-6, rtol=1e-5)
    assert same == pytest.approx(loss, abs=1e-6)


def test_what_a_prompts_labels_would_be_changes_nothing_and_an_answers_does(
    tok: Tokenizer, tiny: Callable[..., GPT]
) -> None:
    ids, mask = chat.render_example(tok, "¿pan?", "Cinco.")
    plain, loss = gradient(tiny(), batch_of([demonstrations.Example(ids, mask, "")], tok))
    for changed, learned in enumerate(mask[1:]):
        batch = batch_of([demonstrations.Example(ids, mask, "")], tok)
        labels = torch.tensor([ids[1:]])
        labels[0, changed] = (labels[0, changed] + 1) % tok.vocab_size
        labels = labels.masked_fill(torch.tensor([mask[1:]]) == 0, -1)  # as collate does with the labels of a prompt
        other, its_loss = gradient(tiny(), dataclasses.replace(batch, targets=labels))
        assert (its_loss != loss) == bool(learned)
        assert bool((other != plain).any()) == bool(learned)


def test_packed_steps_have_the_loss_and_gradient_of_unpacked_ones(tok: Tokenizer, tiny: Callable[..., GPT]) -> None:
    rows = [example(tok, f"¿{'pan ' * (n % 5)}{n}?", "Cinco monedas. " * (1 + n % 3)) for n in range(13)]
    packed, unpacked = batch_of(rows, tok, packing=True), batch_of(rows, tok)
    assert len(packed.inputs) < len(unpacked.inputs)
    assert packed.documents is not None
    for kind in (
        {"n_positions": 64},
        {"n_positions": 64, "norm": "post"},
        {"n_positions": 64, "positions": "sinusoidal"},
    ):
        (one, loss), (other, same) = gradient(tiny(**kind), packed), gradient(tiny(**kind), unpacked)
        assert loss == pytest.approx(same, abs=1e-5)
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_each_packed_example_has_the_loss_it_has_alone(tok: Tokenizer, tiny: Callable[..., GPT]) -> None:
    model = tiny(n_positions=64)
    rows = [example(tok, f"¿{'pan ' * (n % 5)}{n}?", "Cinco monedas. " * (1 + n % 3)) for n in range(13)]
    batch = batch_of(rows, tok, packing=True)
    assert batch.documents is not None

    def means(batch: demonstrations.Batch) -> list[float]:
        """The mean loss of every example in the batch."""
        hidden = model(batch.inputs, batch.positions, documents=batch.documents)
        losses = torch.nn.functional.cross_entropy(
            model.logits(hidden).mT, batch.targets, ignore_index=-1, reduction="none"
        )
        documents = torch.ones_like(batch.targets) if batch.documents is None else batch.documents
        return [
            float(row[(own == number) & (targets >= 0)].mean())
            for row, own, targets in zip(losses, documents, batch.targets, strict=True)
            for number in range(1, int(own.max()) + 1)
        ]

    with torch.no_grad():
        alone = [loss for row in rows for loss in means(batch_of([row], tok))]
        assert sorted(means(batch)) == pytest.approx(sorted(alone), abs=1e-5)
    assert len(alone) == 13


def test_a_packed_run_learns_what_an_unpacked_one_learns(make_run: MakeRun, base_dir: Path) -> None:
    losses = []
    rows = [row | {"response": "monedas " * (i % 4) + "."} for i, row in enumerate(demonstrations_of(12))]
    for packing in (True, False):
        settings = payload(base_dir, epochs=4, packing=packing, log_every=1, sample_every=0, learning_rate=3e-3)
        run_dir = make_run(settings, {"train.jsonl": jsonl(rows)}, name=f"packing-{packing}")
        sft.run(parse("sft", settings), run_dir, Report(run_dir))
        losses.append([row["loss"] for row in curve(run_dir) if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)
    assert len(losses[0]) == 12
    assert losses[0][-1] < losses[0][0] - 1


def test_it_learns_the_answers_and_to_stop(make_run: MakeRun, base_dir: Path) -> None:
    settings = payload(base_dir, epochs=60, learning_rate=1e-2, val_fraction=0.0, sample_every=50)
    run_dir, result = train(make_run, settings, demonstrations_of(12))
    model, tok, card = checkpoint.load_model(run_dir / "model")
    assert (card["kind"], card["parent"]) == ("sft", str(base_dir))
    assert result["loss"] < 0.1
    (new,) = generate(model, tok, [chat.render_prompt(tok, "miel?")], [1], max_new_tokens=20, temperature=0.0)
    assert new.tokens == chat.render_response(tok, "3 monedas.")
    assert "val_loss" not in result
    assert {"prompt", "text"} <= set(rows_of(run_dir / "samples.jsonl")[0])


def test_killed_it_ends_as_if_undisturbed(make_run: MakeRun, base_dir: Path) -> None:
    settings = payload(base_dir, epochs=20, log_every=1, checkpoint_every=7, val_every=25, sample_every=30)
    settings |= {"precision": "auto", "sample_tokens": 5}
    files = {"train.jsonl": jsonl(demonstrations_of(26))}
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
    seen = [sft.step_batch(rows, config, tok, 64, step).inputs for step in range(6)]
    texts = [tok.decode(batch.flatten().tolist()) for batch in seen]
    numbers = [int(n) for text in texts for n in re.findall(r"\d+", text)]
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
    assert numbers[:10] != sorted(numbers[:10])
    assert numbers[:10] != numbers[10:]  # each epoch in an order of its own


@pytest.mark.parametrize("save_best", [False, True])
def test_the_model_is_the_last_or_the_best_steps(
    save_best: bool, make_run: MakeRun, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([9.0, 2.0, 3.0])  # at steps 0, 5, 10
    monkeypatch.setattr(sft, "validate", lambda *_: next(losses))
    settings = payload(base_dir, epochs=2, batch_size=2, val_every=5, checkpoint_every=5)
    settings |= {"save_best": save_best, "val_fraction": 0.2, "sample_every": 0}
    run_dir, result = train(make_run, settings, demonstrations_of(12))
    chosen = 5 if save_best else 10
    assert (result["steps"], result["model_step"], result["best_step"]) == (10, chosen, 5)
    stored = load_file(run_dir / "checkpoints" / f"step-{chosen:08d}" / "tensors.safetensors")
    assert torch.equal(checkpoint.load_model(run_dir / "model")[0].wte.weight, stored["model.wte.weight"])


def test_a_share_is_held_out_and_not_trained_on(make_run: MakeRun, base_dir: Path) -> None:
    rows = [{"instruction": f"n{i}", "response": "x"} for i in range(20)]
    settings = payload(base_dir, val_fraction=0.25)
    run_dir = make_run(settings, {"train.jsonl": jsonl(rows)})
    _, tok, _ = checkpoint.load_model(base_dir)
    train_rows, val_rows, _ = sft.load_examples(parse("sft", settings), run_dir, tok, 64)
    assert (len(train_rows), len(val_rows)) == (15, 5)
    assert len({row.prompt for row in train_rows + val_rows}) == 20


def test_rows_longer_than_the_context_are_skipped_and_counted(make_run: MakeRun, base_dir: Path) -> None:
    rows = demonstrations_of(8)
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
        ({}, '{"instruction": "a", "response": " "}\n', "train.jsonl line 1: response is empty (0 characters)"),
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
    run_dir, _ = train(make_run, payload(base_dir, epochs=1), demonstrations_of(20))
    assert rows_of(run_dir / "metrics.jsonl")[0]["val_loss"] == pytest.approx(math.log(tok.vocab_size), abs=0.2)
