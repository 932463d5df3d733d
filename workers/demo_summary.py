"""What the demo achieved, measured by the small world's hidden utility, which no model ever saw."""

import json
from pathlib import Path
from typing import Any

from accounts.models import Project
from labeling import world
from labeling.exports import pairs
from labeling.models import Round
from registry.models import Dataset, Run, Sample
from training.intervals import clustered

ORDER = (
    "seconds", "tokens_per_s", "val_loss", "sft_loss", "rm_accuracy", "rm_ceiling", "win_rate", "win_rate_low",
    "win_rate_high", "kl", "utility_before", "utility_after", "right_before", "right_after", "kind_before",
    "kind_after", "seed",
)  # fmt: skip


def summarise(project: Project, round: Round, seconds: float, seed: int) -> dict[str, Any]:
    """The figures of summary.json and, under "examples", three answers before and after."""
    results = {run.stage: run.result for run in Run.objects.filter(project=project, status="succeeded").order_by("-pk")}
    assert round.reward_run is not None
    assert round.evaluate_run is not None
    results |= {run.stage: run.result for run in (round.reward_run, round.evaluate_run)}
    samples = [s.values for s in Sample.objects.filter(run=round.evaluate_run)] or _samples_of(round.evaluate_run)
    before = [world.judge(s["prompt"], s["old"]) for s in samples]
    after = [world.judge(s["prompt"], s["new"]) for s in samples]
    wins = [_win(new.utility, old.utility) for new, old in zip(after, before, strict=True)]
    low, high = clustered(wins, [s["prompt"] for s in samples])
    return {
        "seconds": round_to(seconds, 1),
        "tokens_per_s": round_to(results["pretrain"]["tokens_per_s"], 0),
        "val_loss": results["pretrain"]["val_loss"],
        "sft_loss": results["sft"].get("val_loss", results["sft"].get("train_loss")),
        "rm_accuracy": results["reward"]["val_accuracy"],
        "rm_ceiling": ceiling(round),
        "win_rate": sum(wins) / len(wins),
        "win_rate_low": low,
        "win_rate_high": high,
        "kl": results["evaluate"]["kl"],
        "utility_before": _mean([j.utility for j in before]),
        "utility_after": _mean([j.utility for j in after]),
        "right_before": _mean([j.right for j in before]),
        "right_after": _mean([j.right for j in after]),
        "kind_before": _mean([j.kind for j in before]),
        "kind_after": _mean([j.kind for j in after]),
        "seed": seed,
        "comparisons": len(wins),
        "model": round.candidate.name if round.candidate else None,
        "examples": [{name: s[name] for name in ("prompt", "old", "new")} for s in _three(samples)],
    }


def _samples_of(run: Run) -> list[dict[str, Any]]:
    return _read(run.directory / "samples.jsonl")


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:  # not splitlines: a text may hold U+2028
        return [json.loads(line) for line in lines]


def ceiling(round: Round) -> float:
    """How well the hidden utility itself predicts the noisy held-out rankings: no reward model can do better."""
    assert round.reward_run is not None
    held_out = round.reward_run.datasets.filter(kind=Dataset.Kind.RANKINGS, manifest__role="val").first()
    rows = _read(held_out.file) if held_out else []
    return world.noise_ceiling([pair for row in rows for pair in pairs(row)])


def _three(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first samples of three different prompts."""
    first = {s["prompt"]: s for s in reversed(samples)}
    return list(reversed(first.values()))[:3]


def _win(new: float, old: float) -> float:
    return 0.5 if new == old else float(new > old)


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))


def round_to(value: float, digits: int) -> float:
    return round(value, digits)


def table(s: dict[str, Any]) -> str:
    """The summary as people read it."""
    percent = "{:.0%}".format
    allowed, interval = percent(s["rm_ceiling"]), f"{percent(s['win_rate_low'])}-{percent(s['win_rate_high'])}"
    lines = [
        ("Pretraining", f"{s['tokens_per_s']:,.0f} tokens/s, validation loss {s['val_loss']:.3f}"),
        ("Fine-tuning (SFT)", f"loss {s['sft_loss']:.3f}"),
        ("Reward model", f"{percent(s['rm_accuracy'])} of held-out pairs right; the noise allows {allowed}"),
        ("PPO against SFT", f"wins {percent(s['win_rate'])} ({interval}) of {s['comparisons']} unseen prompts, "
                            f"KL {s['kl']:.2f}"),
        ("Utility", f"{s['utility_before']:.2f} -> {s['utility_after']:.2f}"),
        ("Right answers", f"{percent(s['right_before'])} -> {percent(s['right_after'])}"),
        ("Kind answers", f"{percent(s['kind_before'])} -> {percent(s['kind_after'])}"),
        ("Time", f"{s['seconds']:.0f} s, seed {s['seed']}; rankings by simulated annotators"),
    ]  # fmt: skip
    width = max(len(name) for name, _text in lines)
    shown = ["", *(f"  {name:<{width}}  {text}" for name, text in lines), ""]
    for example in s["examples"]:
        shown += [f"  {example['prompt']}", f"    before  {example['old']}", f"    after   {example['new']}", ""]
    return "\n".join(shown)
