"""The table of PPO and what is simpler: rankings as people would make them, and figures by the hidden utility."""

import json
from pathlib import Path

import pytest

from bench import baselines
from bench.baselines import Row
from labeling import world


def _right_and_wrong() -> tuple[str, str, str]:
    row = next(r for r in world.demonstrations(1, 50, "es") if world.judge(r["instruction"], r["response"]).right)
    return row["instruction"], row["response"], "zzz"


def test_rankings_are_whole_and_their_prompts_lie_on_one_side():
    prompts = [p.text for p in world.prompts(1, 60, "es", split="train")]
    completions = [{"prompt": p, "text": f"answer {i}"} for p in prompts for i in range(4)]
    rankings = list(baselines._rankings(completions, seed=1))
    assert len(rankings) == 60 * baselines.OVERLAP
    for row in rankings:
        flat = [i for tier in row["ranking"] for i in (tier if isinstance(tier, list) else [tier])]
        assert sorted(flat) == list(range(4))
    held_out = {row["prompt"] for row in rankings if baselines._is_held_out(row["prompt"])}
    assert 0 < len(held_out) < 30


def test_a_line_counts_wins_by_the_hidden_utility():
    prompt, right, wrong = _right_and_wrong()
    trials = [(prompt, right, wrong)] * 3 + [(prompt, wrong, right)]
    line = baselines._line(Row("DPO", (0.6, 100), 0.1, 1.5, 9.0, 1.0, 12.0, trials))
    assert line.startswith("| DPO | 60.0% (50.2%–69.1%) | 75.0% (")
    assert "| 75% |" in line  # right answers
    assert line.endswith("| 0.10 | 1.50 | 9.0 | 100% | 12 s |")


def test_a_home_without_a_demo_is_one_sentence(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"has 0 finished evaluate runs: run `manage.py demo --exit` in it first"):
        baselines.from_home(tmp_path)


def test_a_finished_demo_is_taken_as_it_is(tmp_path: Path):
    runs = tmp_path / "artifacts" / "projects" / "1" / "runs"
    configs = {
        3: {"base": "../../models/sft", "data": "data/data.jsonl", "val": "data/val.jsonl", "demonstrations": "d"},
        4: {"base": "../../models/sft", "reward_model": "../3/model", "prompts": "data/prompts.jsonl", "updates": 3},
        5: {"new": "../4/model", "old": "../../models/sft", "reward_model": "../3/model", "prompts": "p"},
    }
    for number, config in configs.items():
        (runs / str(number)).mkdir(parents=True)
        (runs / str(number) / "config.json").write_text(json.dumps(config))
        (runs / str(number) / "result.json").write_text("{}")
    start = baselines.from_home(tmp_path)
    assert start.sft == tmp_path / "artifacts" / "projects" / "1" / "models" / "sft"
    assert start.reward == runs / "3" / "model"
    assert (start.prompts, start.held_out_prompts) == tuple(runs / n / "data" / "prompts.jsonl" for n in ("4", "5"))
