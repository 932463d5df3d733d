"""Two real processes on this machine train what one trains; kills, stops and errors look like those of one."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import ranks_of
from tests.training.conftest import curve, error_of, jsonl, rows_of, run_stage, start_stage, wait_for
from tests.training.stages import Build
from training import parallel
from training.config import ConfigError
from training.parse import parse

MakeRun = Callable[..., Path]
TWO = {"devices": 2}
SHARDED = {"devices": 2, "sharded": "on"}
# Adam turns a gradient of nearly 0 into a step of full size, whatever its sign: a small rate keeps that below 1e-6.
COMMON = {"learning_rate": 1e-4, "warmup_steps": 0, "precision": "fp32", "log_every": 1, "threads": 1}


def pretraining(tokenizer_dir: Path, **changes: Any) -> dict[str, Any]:
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "steps": 6, "batch_size": 9, "val_every": 3}
    sources = [{"path": "data/a.txt"}]
    return {"tokenizer": str(tokenizer_dir), "sources": sources, "sample_tokens": 4, **sizes, **COMMON, **changes}


def demonstrations() -> str:
    """Answers of 1 to 11 words, the long ones last, so that ranks learn from unequal numbers of tokens."""
    return jsonl([{"instruction": f"pan {i}", "response": "miel " * (1 + i)} for i in range(11)])


def rankings() -> str:
    answers = ["miel", "miel y pan", "queso y pan y miel"]
    orders = ([0, 1, 2], [2, [0, 1]], [1, 0, 2])
    return jsonl([{"prompt": f"pan {i}", "responses": answers, "ranking": orders[i % 3]} for i in range(13)])


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def assert_same(one: Path, other: Path, tolerance: float) -> None:
    ours, theirs = weights(one), weights(other)
    apart = {name: (ours[name] - theirs[name]).abs().max().item() for name in ours}
    if "score.weight" in ours:  # a reward model's centre, a mean of scores near 1, is folded into this one
        assert apart.pop("transformer.ln_f.bias") <= 1e-5
    assert max(apart.values()) <= tolerance
    for row, twin in zip(curve(one), curve(other), strict=True):
        assert row.keys() == twin.keys()
        assert all(row[name] == pytest.approx(twin[name], rel=1e-4, abs=1e-6) for name in row)


def trained(make_run: MakeRun, stage: str, config: dict[str, Any], files: dict[str, str], name: str) -> Path:
    run_dir = make_run(config, files, name)
    done = run_stage(stage, run_dir)
    assert done.returncode == 0, done.stderr
    return run_dir


def test_nine_rows_are_the_same_at_once_in_parts_and_on_two_ranks(
    make_run: MakeRun, tokenizer_dir: Path, text: str
) -> None:
    settings, files = pretraining(tokenizer_dir), {"a.txt": text}
    alone = trained(make_run, "pretrain", settings, files, "alone")
    for name, changes in {"parts": {"grad_accum": 9}, "two": TWO | {"grad_accum": 2}}.items():
        other = trained(make_run, "pretrain", settings | changes, files, name)
        assert_same(alone, other, 1e-6)
        assert sorted(os.listdir(alone / "checkpoints")) == sorted(os.listdir(other / "checkpoints"))
        assert rows_of(other / "samples.jsonl") == rows_of(alone / "samples.jsonl")


def test_ranks_with_unequal_numbers_of_learned_tokens_train_what_one_trains(make_run: MakeRun, base_dir: Path) -> None:
    """11 rows in batches of 5: the last step has one row, so one rank has none."""
    settings = {"base": str(base_dir), "data": "data/train.jsonl", "batch_size": 5, "epochs": 2, **COMMON}
    settings |= {"val_fraction": 0.0, "sample_every": 0}
    files = {"train.jsonl": demonstrations()}
    assert_same(
        trained(make_run, "sft", settings, files, "alone"), trained(make_run, "sft", settings | TWO, files, "two"), 1e-6
    )


@pytest.mark.slow
def test_spread_over_the_ranks_it_trains_the_same_and_leaves_the_same_files(
    make_run: MakeRun, tokenizer_dir: Path, base_dir: Path, text: str
) -> None:
    settings, files = pretraining(tokenizer_dir, grad_accum=2, save_best=True), {"a.txt": text}
    alone = trained(make_run, "pretrain", settings, files, "alone")
    spread = trained(make_run, "pretrain", settings | SHARDED, files, "spread")
    assert_same(alone, spread, 1e-6)
    for name in ("step-00000006", "best"):
        stored = [load_file(run / "checkpoints" / name / "tensors.safetensors") for run in (alone, spread)]
        assert {k: v.shape for k, v in stored[0].items()} == {k: v.shape for k, v in stored[1].items()}
    settings = {"base": str(base_dir), "data": "data/train.jsonl", "batch_size": 5, "epochs": 2, **COMMON}
    files = {"train.jsonl": demonstrations()}
    assert_same(
        trained(make_run, "sft", settings, files, "sft"), trained(make_run, "sft", settings | SHARDED, files, "s"), 1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_rankings_split_over_two_ranks_train_the_same(make_run: MakeRun, base_dir: Path, stage: str) -> None:
    settings = {"base": str(base_dir), "data": "data/train.jsonl", "batch_size": 4, "min_comparisons": 1, **COMMON}
    settings["learning_rate"] = 2e-5
    files = {"train.jsonl": rankings(), "val.jsonl": rankings()}
    settings |= {"val": "data/val.jsonl"} | ({"max_new_tokens": 4, "kl_samples": 4} if stage == "dpo" else {})
    assert_same(
        trained(make_run, stage, settings, files, "alone"), trained(make_run, stage, settings | TWO, files, "two"), 1e-6
    )


# Minibatches of 5 and of 3 answers, so that ranks have unequal numbers of rows, of tokens and of demonstrations.
SAMPLED = {"updates": 4, "max_new_tokens": 40, "learning_rate": 1e-4, "precision": "fp32", "sample_every": 2}
POLICIES = {
    "ppo": {"batch_size": 10, "minibatches": 2, "value_learning_rate": 1e-4, "whiten_rewards": True, **SAMPLED},
    "rloo": {"batch_size": 12, "minibatches": 4, "group_size": 3, **SAMPLED},
    "grpo": {"batch_size": 12, "minibatches": 4, "group_size": 3, "kl_coef": 1.0, "estimator": "grpo", **SAMPLED},
    "rejection": {"epochs": 4, "batch_size": 3, "learning_rate": 1e-4, "precision": "fp32"},
}
NAMES = ["ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in POLICIES if name != "ppo")]


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_that_two_ranks_sample_and_train_is_the_one_of_one_rank(build: Build, name: str) -> None:
    """The whole of it: answers, whitening, KL and its coefficient, clipping, value model, demonstrations, monitors."""
    stage = "grpo" if name == "rloo" else name
    alone, two = build(stage, "alone", **POLICIES[name]), build(stage, "two", **POLICIES[name], **TWO)
    for run_dir in (alone, two):
        done = run_stage(stage, run_dir)
        assert done.returncode == 0, done.stderr
    assert_same(alone, two, 1e-5)
    texts = [[row["text"] for row in rows_of(run / "samples.jsonl")] for run in (alone, two)]
    assert texts[0] == texts[1]
    newest = sorted((alone / "checkpoints").glob("step-*"))[-1].name
    ours, theirs = (load_file(run / "checkpoints" / newest / "tensors.safetensors") for run in (alone, two))
    assert ours.keys() == theirs.keys(), "both models and what their optimizers remember"
    assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) <= 1e-5
    if stage != "rejection":
        assert any(row["length"] % 1 for row in curve(alone)), "answers of unequal lengths"
        assert any(row["kl"] > 0 for row in curve(alone)), "the policy has moved"


@pytest.mark.slow
def test_two_ranks_keep_the_snapshots_and_the_peak_that_one_keeps(build: Build, reward_dir: Path) -> None:
    changes = {**POLICIES["ppo"], "updates": 8, "learning_rate": 1e-3, "kl_snapshots": 0.02, "judge_patience": 3}
    judge = build("ppo", "judge") / "judge"  # the reward model under another name: it may not judge itself
    shutil.copytree(reward_dir, judge)
    runs = [build("ppo", name, **changes, judge_model=str(judge), **more) for name, more in (("one", {}), ("two", TWO))]
    for run_dir in runs:
        done = run_stage("ppo", run_dir)
        assert done.returncode == 0, done.stderr
    assert_same(*runs, 1e-4)
    kept = [sorted(folder.name for folder in (run_dir / "snapshots").iterdir()) for run_dir in runs]
    assert kept[0] == kept[1]
    assert len(kept[0]) > 1
    results = [json.loads((run_dir / "result.json").read_text()) for run_dir in runs]
    assert results[0]["model_update"] == results[1]["model_update"]
    assert [entry["update"] for entry in results[0]["snapshots"]] == [e["update"] for e in results[1]["snapshots"]]


@pytest.mark.slow
def test_best_of_n_is_the_same_whoever_writes_it(build: Build) -> None:
    alone, two = build("best_of_n", "alone"), build("best_of_n", "two", **TWO)
    for run_dir in (alone, two):
        done = run_stage("best_of_n", run_dir)
        assert done.returncode == 0, done.stderr
    for name in ("pool.jsonl", "completions.jsonl", "metrics.jsonl", "samples.jsonl"):
        ours, theirs = (_rounded(rows_of(run / name)) for run in (alone, two))
        assert ours == theirs, name


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo", "rejection"])
def test_a_policy_whose_ranks_were_stopped_and_killed_ends_as_if_undisturbed(build: Build, stage: str) -> None:
    longer = {"epochs": 80} if stage == "rejection" else {"updates": 40}
    calm, killed = build(stage, "calm", **longer, **TWO), build(stage, "killed", **longer, **TWO)
    assert run_stage(stage, calm).returncode == 0
    for line, sent, code in ((5, signal.SIGTERM, 0), (15, signal.SIGKILL, -signal.SIGKILL)):
        process = start_stage(stage, killed)
        wait_for(lambda line=line: len(rows_of(killed / "metrics.jsonl")) > line, process)
        os.kill(process.pid if sent == signal.SIGTERM else ranks_of(killed)[1], sent)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert not (killed / "result.json").exists()
        assert not ranks_of(killed)
    done = run_stage(stage, killed)
    assert done.returncode == 0, done.stderr
    assert curve(killed) == curve(calm)
    assert rows_of(killed / "samples.jsonl") == rows_of(calm / "samples.jsonl")
    assert (killed / "model/model.safetensors").read_bytes() == (calm / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("changes", [TWO, pytest.param(SHARDED, marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_run_and_the_next_start_ends_as_if_undisturbed(
    make_run: MakeRun, tokenizer_dir: Path, text: str, changes: dict[str, Any]
) -> None:
    settings = pretraining(tokenizer_dir, steps=60, checkpoint_every=7, val_every=20, dropout=0.1, **changes)
    calm, killed = make_run(settings, {"a.txt": text}, "calm"), make_run(settings, {"a.txt": text}, "killed")
    assert run_stage("pretrain", calm).returncode == 0
    process = start_stage("pretrain", killed)
    wait_for(lambda: len(rows_of(killed / "metrics.jsonl")) > 12, process)
    os.kill(ranks_of(killed)[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, "as if the one process had been killed: the worker takes it up again"
    assert not (killed / "error.json").exists()
    assert not (killed / "result.json").exists()
    assert run_stage("pretrain", killed).returncode == 0
    assert curve(killed) == curve(calm)
    assert (killed / "model/model.safetensors").read_bytes() == (calm / "model/model.safetensors").read_bytes()


def test_sigterm_saves_on_two_ranks_and_exits_0(make_run: MakeRun, tokenizer_dir: Path, text: str) -> None:
    run_dir = make_run(pretraining(tokenizer_dir, steps=100_000, **TWO), {"a.txt": text})
    process = start_stage("pretrain", run_dir)
    wait_for(lambda: len(rows_of(run_dir / "metrics.jsonl")) > 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    last = rows_of(run_dir / "metrics.jsonl")[-1]["step"]
    assert process.returncode == 0, err
    assert out.endswith(f"stopped at step {last}; run again to continue\n"), out  # older torches let gloo greet first
    assert (run_dir / "checkpoints" / f"step-{last:08d}" / "manifest.json").exists()
    assert not ranks_of(run_dir)


def test_the_ranks_die_with_whoever_started_them(make_run: MakeRun, tokenizer_dir: Path, text: str) -> None:
    run_dir = make_run(pretraining(tokenizer_dir, steps=100_000, **TWO), {"a.txt": text})
    process = start_stage("pretrain", run_dir)
    wait_for(lambda: len(rows_of(run_dir / "metrics.jsonl")) > 3, process)
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 20
    while ranks_of(run_dir):
        assert time.monotonic() < end, "they train on without a supervisor"
        time.sleep(0.1)


def test_an_error_on_the_ranks_is_its_sentence(make_run: MakeRun, tokenizer_dir: Path, text: str) -> None:
    settings = pretraining(tokenizer_dir, steps=50, **TWO) | {"learning_rate": 1e9, "grad_clip": 0.0}
    run_dir = make_run(settings, {"a.txt": text})
    assert run_stage("pretrain", run_dir).returncode == 1
    assert "lower learning_rate" in error_of(run_dir)


def test_a_newer_attempt_ends_both_ranks(make_run: MakeRun, tokenizer_dir: Path, text: str) -> None:
    run_dir = make_run(pretraining(tokenizer_dir, steps=100_000, **TWO), {"a.txt": text})
    (run_dir / "attempt").write_text("1")
    process = start_stage("pretrain", run_dir, "--attempt", "1")
    wait_for(lambda: len(rows_of(run_dir / "metrics.jsonl")) > 3, process)
    (run_dir / "attempt").write_text("2")
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert not (run_dir / "error.json").exists()
    assert not ranks_of(run_dir)


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_minibatch_has_an_answer_for_every_rank(stage: str) -> None:
    with pytest.raises(ConfigError, match="A minibatch has 2 answers and devices is 3: set fewer minibatches"):
        parse(stage, {"devices": 3, "batch_size": 8, "minibatches": 4, "base": "b", "reward_model": "r"})


def test_each_row_is_one_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "size", lambda: 3)
    taken = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        taken += list(range(8))[parallel.share(8)]
    assert taken == list(range(8))
    targets, inputs = parallel.mine(torch.tensor([[7, 8]]), torch.tensor([[5, 7]]))  # one row, and this is rank 2
    assert (targets.tolist(), inputs.tolist()) == ([[-1, -1]], [[5, 7]])


def test_every_rank_drops_otherwise_and_one_alone_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        seeds.append(parallel.seed(5))
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
