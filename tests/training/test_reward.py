"""Stage reward: what it learns, what it writes, and runs that are killed."""

import json
import math
import random
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import curve, jsonl, kill_at, rows_of, run_stage
from tests.training.tiny import make_model, make_reward_model, make_tokenizer, save
from training import device, reward
from training.checkpoint import load_model, load_reward_model
from training.config import RewardConfig, TrainingError
from training.device import Compute
from training.parse import parse
from training.rankings import read_ranking
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


def test_padding_on_the_left_moves_no_reward():
    """As the field's generators pad: positions begin at the text, which does not see its padding."""
    tok = make_tokenizer()
    model = make_reward_model(tok)
    rng = random.Random(0)
    examples = [[rng.randrange(256) for _ in range(rng.randint(2, 50))] + [tok.eos_id] for _ in range(40)]
    longest = max(map(len, examples))
    tokens = torch.tensor([[tok.pad_id] * (longest - len(ids)) + ids for ids in examples])
    text = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in examples])
    with torch.no_grad():
        hidden = model.trunk(tokens, positions=(text.cumsum(1) - 1).clamp(min=0), documents=text)
        left = model.head(hidden[:, -1]).squeeze(-1) + model.bias
    right = reward.score_all(model, examples, tok.pad_id, CPU)
    assert left.tolist() == pytest.approx(right, abs=1e-4)
    assert max(right) - min(right) > 0.5


def test_one_row_of_k_weighs_as_much_as_one_of_two(reward_run, base_dir):
    """The loss of a step is the mean over rankings of the mean over their pairs."""
    _, tok, _ = load_model(base_dir)
    model = reward.RewardModel(load_model(base_dir)[0]).eval()
    rankings = [read_ranking(row, "row", tok) for row in (*_rankings(1, 1, k=2), *_rankings(1, 3, k=6))]
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


UTILITY = {"d": -2.1, "a": -1.5, "h": -0.9, "c": -0.3, "f": 0.3, "b": 0.9, "g": 1.5, "e": 2.1}


def _bradley_terry(n: int, seed: int) -> list[dict[str, Any]]:
    """Four answers in the order of their utilities with Gumbel noise: every pair then follows Bradley and Terry."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        letters = rng.sample(sorted(UTILITY), 4)
        noisy = [UTILITY[letter] - math.log(-math.log(rng.random())) for letter in letters]
        order = sorted(range(4), key=lambda j: -noisy[j])
        rows.append({"prompt": str(i % 50), "responses": letters, "ranking": order})
    return rows


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_latent_utilities_are_recovered_and_accuracy_comes_near_the_best_there_is(make_run, tmp_path, precision):
    tok = make_tokenizer()
    base = save(tmp_path / "base", make_model(tok), tok, "base")
    rows = _bradley_terry(400, 9)
    config = {"base": base, "val": "data/val.jsonl", "learning_rate": 2e-3, "batch_size": 16, "epochs": 2}
    config["precision"] = precision
    run_dir = make_run(config, {"train.jsonl": jsonl(_bradley_terry(600, 8)), "val.jsonl": jsonl(rows)})
    result = _run(run_dir)
    pairs = [(row["responses"][a], row["responses"][b]) for row in rows for a, b in combinations(row["ranking"], 2)]
    best = sum(UTILITY[better] > UTILITY[worse] for better, worse in pairs) / len(pairs)
    assert 0.75 < best < 0.9
    assert result["val_accuracy"] >= best - 0.02
    assert result["calibration_error"] < 0.05
    model, tok, _ = load_reward_model(run_dir / "model")
    examples = [reward.render_example(tok, "7", letter)[0] for letter in UTILITY]
    scores = reward.score_all(model.eval(), examples, tok.pad_id, CPU)
    assert scores == sorted(scores)
    assert scores[-1] - scores[0] == pytest.approx(4.2, abs=1.5)


def test_single_pairs_take_as_many_steps_and_comparisons_but_not_in_company(reward_run, base_dir):
    runs = [reward_run("whole"), reward_run("apart", pairing="pairs")]
    whole, apart = map(_run, runs)
    assert whole["train_pairs"] == apart["train_pairs"]
    assert [rows_of(run_dir / "metrics.jsonl")[-1]["step"] for run_dir in runs] == [15, 15]
    _, tok, _ = load_model(base_dir)
    rankings = [read_ranking(row, "row", tok) for row in _rankings(60, 1)]
    units, rows = reward._units(RewardConfig(base="x", batch_size=4, pairing="pairs"), rankings)
    assert (len(units), rows) == (180, 12)
    assert {len(unit.examples) for unit in units} == {2}
    assert sum(len(unit.pairs()) for unit in units) == whole["train_pairs"]  # ties come along, as ties


def test_the_curve_shows_held_out_loss_before_and_between_and_after(reward_run):
    run_dir = reward_run(epochs=2, log_every=100)
    result = _run(run_dir)
    curve = {row["step"]: row["val_loss"] for row in rows_of(run_dir / "metrics.jsonl") if "val_loss" in row}
    assert sorted(curve) == [0, 4, 8, 12, 15, 16, 20, 24, 28, 30]
    assert curve[30] == pytest.approx(result["val_loss"], abs=1e-5)  # a shift of all scores changes no loss
    assert curve[30] < curve[0]


def test_who_judged_and_what_wrote_reach_the_result(reward_run):
    rows = [row | {"annotator": f"person-{i % 2}", "policies": ["sft-1"] * 3} for i, row in enumerate(_rankings(20, 2))]
    run_dir = reward_run()
    (run_dir / "data" / "val.jsonl").write_text(jsonl(rows))
    result = _run(run_dir)
    assert set(result["by_annotator"]) == {"person-0", "person-1"}
    assert result["by_policy"]["sft-1"]["pairs"] == result["val_pairs"]
    assert result["agreement"] is None
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"responses": ["a"], "ranking": [0]}, "train.jsonl row 2 has 1 responses: give at least 2"),
        ({"responses": ["a", "b"], "ranking": [0, 0]}, "train.jsonl row 2: .* no permutation of 0 to 1"),
        ({"responses": ["a", 3], "ranking": [0, 1]}, "row 2 has 2 responses: give at least 2 texts"),
        (
            {"responses": ["a", "b"], "ranking": [0, 1], "policies": ["x"]},
            "row 2 has 1 policies: name one for each of 2",
        ),
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
    result = _run(reward_run(val=""))
    assert result["val_accuracy"] is None


def test_without_demonstrations_the_ranked_answers_score_zero_and_nothing_is_said_of_demonstrations(reward_run):
    rows = _rankings(60, 1)
    run_dir = reward_run(rows=rows, demonstrations="")
    result = _run(run_dir)
    assert result["mean_on_demonstrations"] is None
    model, tok, _ = load_reward_model(run_dir / "model")
    examples = [ids for row in rows for ids in read_ranking(row, "row", tok).examples]
    scores = torch.tensor(reward.score_all(model.eval(), examples, tok.pad_id, CPU))
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert result["reward_std"] == pytest.approx(scores.std(unbiased=False).item(), abs=1e-4)


def test_demonstrations_that_pass_the_context_are_left_out_and_counted(reward_run):
    run_dir = reward_run()
    long = {"instruction": "miel", "response": "gracias " * 60}
    (run_dir / "data" / "demos.jsonl").write_text(jsonl([*DEMONSTRATIONS, long]))
    assert _run(run_dir)["skipped_too_long"] == 1
    (run_dir / "data" / "demos.jsonl").write_text(jsonl([long]))
    (run_dir / "checkpoints").rename(run_dir / "gone")
    with pytest.raises(TrainingError, match="All 1 demonstrations are longer than the context of 64 tokens"):
        _run(run_dir)


@pytest.mark.parametrize("save_best", [False, True])
def test_the_model_is_the_last_or_the_best_steps(reward_run, monkeypatch, save_best):
    losses = {0: 9.0, 4: 2.0, 8: 3.0, 12: 4.0, 15: 5.0}
    told = iter(losses.values())
    monkeypatch.setattr(reward, "_curve", lambda *_: {"val_loss": next(told)})
    run_dir = reward_run(checkpoint_every=4, keep_checkpoints=9, save_best=save_best)
    result = _run(run_dir)
    chosen = 4 if save_best else 15
    assert (result["model_step"], result["best_step"]) == (chosen, 4)
    stored = load_file(run_dir / "checkpoints" / f"step-{chosen:08d}" / "tensors.safetensors")
    model = load_reward_model(run_dir / "model")[0]
    assert torch.equal(model.head.weight, stored["model.head.weight"])
