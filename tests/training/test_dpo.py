"""Stage dpo: its loss, its gradient, what it learns, and runs that are killed."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from tests.training.conftest import curve, jsonl, kill_at, rows_of, run_stage
from tests.training.tiny import make_model, make_tokenizer
from training import dpo
from training.checkpoint import load_model, save_model
from training.config import TrainingError
from training.config_baselines import DPOConfig
from training.device import Compute
from training.dpo import Known
from training.model import GPT
from training.parse import parse
from training.rankings import read_ranking
from training.report import Report

CPU = Compute(torch.device("cpu"), bf16=False)
TOKENIZER = make_tokenizer()
KIND, RUDE = ["gracias", "con gusto", "thank you"], ["no", "calla", "go away"]


def _rankings(n: int, seed: int) -> list[dict[str, Any]]:
    """Three answers each, kind before rude, the two of a sort tied."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        kinds = [rng.random() < 0.5, True, False]
        rng.shuffle(kinds)
        responses = [f"{rng.choice(KIND if kind else RUDE)} {rng.randint(0, 9)}" for kind in kinds]
        tiers = [[j for j in range(3) if kinds[j]], [j for j in range(3) if not kinds[j]]]
        rows.append({"prompt": f"pan {i}", "responses": responses, "ranking": tiers, "id": str(i)})
    return rows


def _known(policy: GPT, responses: list[str], ranking: list[Any]) -> Known:
    row = read_ranking({"prompt": "pan", "responses": responses, "ranking": ranking}, "row", TOKENIZER)
    examples = list(zip(row.examples, row.answer_lengths, strict=True))
    with torch.no_grad():
        return Known(row, dpo.answer_logprobs(policy, examples, TOKENIZER.pad_id, CPU).tolist())


def _loss(policy: GPT, batch: list[Known], **changes: Any) -> torch.Tensor:
    config = DPOConfig(base="b", **changes)
    rewards = dpo.implicit_rewards(policy, batch, config, TOKENIZER, CPU)
    return dpo.preference_loss(rewards, [known.ranking for known in batch], config.label_smoothing)[0]


def _whole_logprob(policy: GPT, ids: list[int], answer: int) -> torch.Tensor:
    """The answer's log-probability, one token after the other, without batch and without padding."""
    logprobs = policy.logits(policy(torch.tensor([ids]))[0]).log_softmax(-1)
    return sum(logprobs[t - 1, ids[t]] for t in range(len(ids) - answer, len(ids)))  # type: ignore[return-value]


@pytest.fixture
def world() -> tuple[GPT, GPT, list[Known]]:
    """A policy that has moved away from its reference, the reference, and rankings of 4 (one tie) and of 2."""
    reference = make_model(TOKENIZER, spread=2.0)
    batch = [
        _known(reference, ["gracias", "no", "calla ya", "si"], [3, [0, 1], 2]),
        _known(reference, ["con gusto", "no quiero"], [0, 1]),
    ]
    return make_model(TOKENIZER, seed=7, spread=2.0), reference, batch


def test_the_loss_starts_at_ln_2_whatever_k_and_ties(world):
    _, reference, batch = world
    assert _loss(reference, batch).item() == pytest.approx(math.log(2), abs=1e-5)
    assert _loss(reference, batch, label_smoothing=0.2, beta=2.0).item() == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_loss_and_gradient_are_those_of_brute_force_over_pairs(world, smoothing):
    policy, reference, batch = world
    policy.zero_grad()
    loss = _loss(policy, batch, beta=0.3, label_smoothing=smoothing)
    loss.backward()
    gradient = torch.cat([p.grad.flatten().clone() for p in policy.parameters()])

    policy.zero_grad()
    total, weights = torch.zeros(()), 0.0
    for known in batch:
        row = known.ranking
        for better, worse in row.pairs():
            reward = []
            for i in (better, worse):
                with torch.no_grad():
                    ref = _whole_logprob(reference, row.examples[i], row.answer_lengths[i])
                reward.append(0.3 * (_whole_logprob(policy, row.examples[i], row.answer_lengths[i]) - ref))
            weight = 2 / (len(row.examples) * (len(row.examples) - 1))
            gap = reward[0] - reward[1]
            total = total - weight * ((1 - smoothing) * F.logsigmoid(gap) + smoothing * F.logsigmoid(-gap))
            weights += weight
    expected = total / weights
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    brute = torch.cat([p.grad.flatten() for p in policy.parameters()])
    assert brute.abs().max() > 1e-3
    assert torch.allclose(gradient, brute, atol=1e-5)


def test_a_tie_has_no_gradient(world):
    policy, reference, _ = world
    tied = _known(reference, ["gracias", "no"], [[0, 1]])
    ordered = _known(reference, ["con gusto", "no quiero"], [0, 1])
    assert tied.ranking.pairs() == []
    with_tie, without = _loss(policy, [tied, ordered]), _loss(policy, [ordered])
    assert with_tie.item() == pytest.approx(without.item(), abs=1e-6)


def test_the_prompt_is_not_scored_and_padding_has_no_say(world):
    policy, _, batch = world
    examples = [(ids, n) for k in batch for ids, n in zip(k.ranking.examples, k.ranking.answer_lengths, strict=True)]
    with torch.no_grad():
        together = dpo.answer_logprobs(policy, examples, TOKENIZER.pad_id, CPU)
        alone = torch.stack([_whole_logprob(policy, ids, n) for ids, n in examples])
        none = dpo.answer_logprobs(policy, [(ids, 0) for ids, _ in examples], TOKENIZER.pad_id, CPU)
    assert torch.allclose(together, alone, atol=1e-4)
    assert none.tolist() == [0.0] * len(examples)


# Whole runs


@pytest.fixture
def dpo_run(make_run: Callable[..., Path], base_dir: Path) -> Callable[..., Path]:
    def build(name: str = "run", rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
        config = {
            "base": str(base_dir), "val": "data/val.jsonl", "batch_size": 4, "learning_rate": 1e-3, "log_every": 1,
            "checkpoint_every": 5, "max_new_tokens": 8, "kl_samples": 16,
        }  # fmt: skip
        files = {"train.jsonl": jsonl(_rankings(60, 1) if rows is None else rows), "val.jsonl": jsonl(_rankings(20, 2))}
        return make_run({**config, **changes}, files, name)

    return build


def _run(run_dir: Path) -> dict[str, Any]:
    settings = json.loads((run_dir / "config.json").read_text())
    return dpo.run(parse("dpo", settings), run_dir, Report(run_dir))


def test_it_learns_to_tell_kind_from_rude_on_prompts_it_never_saw(dpo_run, base_dir):
    run_dir = dpo_run(rows=_rankings(150, 1), beta=0.2)
    result = _run(run_dir)
    assert result["val_accuracy"] > 0.9
    assert result["val_accuracy_low"] < result["val_accuracy"] <= result["val_accuracy_high"]
    assert result["val_loss"] < math.log(2) < curve(run_dir)[0]["loss"] + 1e-4
    assert result["kl"] > 0.1
    _, _, card = load_model(run_dir / "model")
    assert (card["kind"], card["stage"], card["parent"]) == ("policy", "dpo", str(base_dir))
    assert len(rows_of(run_dir / "samples.jsonl")) % dpo.SAMPLES == 0


def test_a_higher_beta_stays_nearer_to_the_reference(dpo_run):
    near, far = (_run(dpo_run(f"beta-{beta}", beta=beta, kl_samples=64))["kl"] for beta in (2.0, 0.05))
    assert near < far


def test_a_run_killed_anywhere_ends_like_an_undisturbed_one(dpo_run):
    whole, broken = (dpo_run(name, rows=_rankings(160, 1)) for name in ("whole", "broken"))
    assert run_stage("dpo", whole).returncode == 0
    kill_at("dpo", broken, 3)
    kill_at("dpo", broken, 18)
    assert run_stage("dpo", broken).returncode == 0
    assert curve(broken) == curve(whole)
    assert rows_of(broken / "samples.jsonl") == rows_of(whole / "samples.jsonl")
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    results = [json.loads((run / "result.json").read_text()) for run in (broken, whole)]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_the_reference_is_read_once_and_kept(dpo_run, monkeypatch):
    run_dir = dpo_run()
    _run(run_dir)
    (run_dir / "checkpoints").rename(run_dir / "gone")
    monkeypatch.setattr(dpo, "_read_all", lambda *_: pytest.fail("the reference was read again"))
    _run(run_dir)


def test_kept_reference_of_other_rankings_is_refused(dpo_run):
    run_dir = dpo_run()
    _run(run_dir)
    (run_dir / "data" / "train.jsonl").write_text(jsonl(_rankings(60, 5)))
    with pytest.raises(TrainingError, match=r"ref_logprobs.safetensors holds 240 log-probabilities of other rankings"):
        _run(run_dir)


def test_kept_reference_of_another_base_is_refused(dpo_run, base_dir, tmp_path):
    run_dir = dpo_run()
    _run(run_dir)
    model, tok, card = load_model(base_dir)
    with torch.no_grad():
        model.ln_f.bias[0] += 1e-3
    save_model(tmp_path / "other", model, tok, "sft", card)
    settings = json.loads((run_dir / "config.json").read_text()) | {"base": str(tmp_path / "other")}
    (run_dir / "config.json").write_text(json.dumps(settings))
    with pytest.raises(TrainingError, match="or of another base: put those back"):
        _run(run_dir)


def test_too_few_comparisons_are_counted_without_ties(dpo_run):
    tie = {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [[0, 1, 2]]}
    rows = [*[{"prompt": "p", "responses": ["a", "b"], "ranking": [1, 0]}] * 12, *[tie] * 30]
    with pytest.raises(TrainingError, match=r"Only 12 comparisons; this run needs 32: rank more"):
        _run(dpo_run(rows=rows))


def test_without_held_out_rankings_there_is_no_accuracy_but_a_kl(dpo_run):
    result = _run(dpo_run(val=""))
    assert result["val_accuracy"] is None
    assert result["kl"] > 0
