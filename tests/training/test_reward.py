"""Stage reward: what it learns, what it writes, and runs that are killed."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import curve, jsonl, kill_at, rows_of, run_stage
from tests.training.tiny import make_reward_model, make_tokenizer
from training import device, reward
from training.checkpoint import load_model, load_reward_model
from training.config import RewardConfig, TrainingError
from training.device import Compute
from training.parse import parse
from training.report import Report

CPU = Compute(torch.device("cpu"), bf16=False)
KIND, RUDE = ["gracias", "con gusto", "thank you"], ["no", "calla", "go away"]


def _rankings(n: int, seed: int, k: int = 3) -> list[dict[str, Any]]:
    """Kind answers before rude ones; two of a sort tie."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        kinds = [rng.random() < 0.5 for _ in range(k - 2)] + [True, False]
        rng.shuffle(kinds)
        responses = [f"{rng.choice(KIND if kind else RUDE)} {rng.randint(0, 9)}" for kind in kinds]
        tiers = [[j for j in range(k) if kinds[j]], [j for j in range(k) if not kinds[j]]]
        ranking = [tier[0] if len(tier) == 1 else tier for tier in tiers]
        rows.append({"prompt": f"pan {i}", "responses": responses, "ranking": ranking, "id": str(i)})
    return rows


DEMONSTRATIONS = [{"instruction": f"miel {i}", "response": f"gracias {i}"} for i in range(9)]


@pytest.fixture
def reward_run(make_run: Callable[..., Path], base_dir: Path) -> Callable[..., Path]:
    def build(name: str = "run", rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
        config = {
            "base": str(base_dir), "val": "data/val.jsonl", "demonstrations": "data/demos.jsonl", "batch_size": 4,
            "learning_rate": 3e-3, "log_every": 1, "checkpoint_every": 5,
        }  # fmt: skip
        files = {
            "train.jsonl": jsonl(_rankings(60, 1) if rows is None else rows),
            "val.jsonl": jsonl(_rankings(20, 2)),
            "demos.jsonl": jsonl(DEMONSTRATIONS),
        }
        return make_run({**config, **changes}, files, name)

    return build


def _run(run_dir: Path) -> dict[str, Any]:
    settings = json.loads((run_dir / "config.json").read_text())
    return reward.run(parse("reward", settings), run_dir, Report(run_dir))


def test_it_learns_to_tell_kind_from_rude_on_prompts_it_never_saw(reward_run):
    run_dir = reward_run(rows=_rankings(150, 1))
    result = _run(run_dir)
    assert result["val_accuracy"] > 0.9
    assert result["val_accuracy_low"] < result["val_accuracy"] <= result["val_accuracy_high"]
    pairs = rows_of(run_dir / "val_pairs.jsonl")
    assert len(pairs) == result["val_pairs"] == sum(len(r["responses"]) - 1 for r in _rankings(20, 2))
    right = sum(pair["chosen_reward"] > pair["rejected_reward"] for pair in pairs)
    assert right / len(pairs) == pytest.approx(result["val_accuracy"])


def test_demonstrations_score_zero_after_saving_and_loading(reward_run):
    run_dir = reward_run()
    result = _run(run_dir)
    model, tok, card = load_reward_model(run_dir / "model")
    examples = [reward.render_example(tok, row["instruction"], row["response"])[0] for row in DEMONSTRATIONS]
    scores = reward.score_all(model.eval(), examples, tok.pad_id, CPU)
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)
    assert result["mean_on_demonstrations"] == pytest.approx(0, abs=1e-4)
    assert card["kind"] == "reward"
    assert card["reward_std"] == result["reward_std"] > 0


def test_the_head_begins_as_stiennon_says(base_dir):
    config = RewardConfig(base=str(base_dir))
    torch.manual_seed(0)
    trunk, _, _ = load_model(base_dir)
    drawn = torch.cat([reward.RewardModel(trunk).head.weight.flatten() for _ in range(200)])
    assert drawn.std().item() == pytest.approx((trunk.config.n_embd + 1) ** -0.5, rel=0.05)
    assert device.prepare_exact(config).bf16 is False


def test_the_score_is_read_at_eos_and_padding_changes_nothing():
    tok = make_tokenizer()
    model = make_reward_model(tok)
    rng = random.Random(0)
    examples = [[rng.randrange(256) for _ in range(rng.randint(2, 50))] + [tok.eos_id] for _ in range(40)]
    together = reward.score_all(model, examples, tok.pad_id, CPU)
    alone = [reward.score_all(model, [ids], tok.pad_id, CPU)[0] for ids in examples]
    assert together == pytest.approx(alone, abs=1e-5)
    with torch.no_grad():
        first = model.values(torch.tensor([examples[0]]))[0]
    assert first[-1].item() == pytest.approx(alone[0], abs=1e-5)
    assert abs(first[-2].item() - alone[0]) > 1e-4


def test_one_row_of_k_weighs_as_much_as_one_of_two(reward_run, base_dir):
    """The loss of a step is the mean over rankings of the mean over their pairs."""
    _, tok, _ = load_model(base_dir)
    model = reward.RewardModel(load_model(base_dir)[0]).eval()
    rankings = [reward._ranking(row, "row", tok) for row in (*_rankings(1, 1, k=2), *_rankings(1, 3, k=6))]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    config = RewardConfig(base="x")
    both = reward._step(config, model, optimizer, rankings, tok, CPU)["loss"]
    each = [reward._step(config, model, optimizer, [ranking], tok, CPU)["loss"] for ranking in rankings]
    assert both == pytest.approx(sum(each) / 2, abs=1e-6)


def test_a_run_killed_anywhere_ends_like_an_undisturbed_one(reward_run):
    whole, broken = (reward_run(name, rows=_rankings(160, 1)) for name in ("whole", "broken"))
    assert run_stage("reward", whole).returncode == 0
    kill_at("reward", broken, 3)
    kill_at("reward", broken, 18)
    assert run_stage("reward", broken).returncode == 0
    assert curve(broken) == curve(whole)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (broken, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    bias = [json.loads((run / "model" / "bucle.json").read_text())["reward_bias"] for run in (broken, whole)]
    assert bias[0] == bias[1]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"responses": ["a"], "ranking": [0]}, "train.jsonl row 2 has 1 responses: give at least 2"),
        ({"responses": ["a", "b"], "ranking": [0, 0]}, "train.jsonl row 2: .* no permutation of 0 to 1"),
        ({"responses": ["a", 3], "ranking": [0, 1]}, "row 2 has 2 responses: give at least 2 texts"),
        ({"responses": ["a", "b"]}, "train.jsonl line 2 lacks 'ranking'"),
    ],
)
def test_a_bad_row_is_named(reward_run, row, sentence):
    run_dir = reward_run(rows=[*_rankings(1, 1), {"prompt": "p", **row}])
    with pytest.raises(TrainingError, match=sentence):
        _run(run_dir)
    assert not (run_dir / "model").exists()


def test_too_few_comparisons_are_counted_without_ties(reward_run):
    tie = {"prompt": "p", "responses": ["a", "b", "c"], "ranking": [[0, 1, 2]]}
    rows = [*[{"prompt": "p", "responses": ["a", "b"], "ranking": [1, 0]}] * 12, *[tie] * 30]
    with pytest.raises(TrainingError, match=r"Only 12 comparisons; this run needs 32: rank more completions\."):
        _run(reward_run(rows=rows))


def test_rankings_that_pass_the_context_are_left_out_and_counted(reward_run):
    long = {"prompt": "p", "responses": ["palabra " * 60, "b"], "ranking": [0, 1]}
    assert _run(reward_run(rows=[*_rankings(40, 1), long]))["skipped_too_long"] == 1
    with pytest.raises(TrainingError, match="All 2 rankings are longer than the context of 64 tokens"):
        _run(reward_run("other", rows=[long, long]))


def test_without_held_out_rankings_there_is_no_accuracy(reward_run):
    result = _run(reward_run(val="", demonstrations=""))
    assert result["val_accuracy"] is None
    assert result["mean_on_demonstrations"] == 0.0
