"""python -m bench baselines: PPO and what is simpler, from one SFT model, one set of rankings and one reward model.

The small world has a judge that no model ever saw (its hidden utility), so that a policy's reward can be told from
its worth. Everything is written under --out and goes on where it was stopped; with --home a finished demo is taken.
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import ENVIRONMENT, machine, section
from labeling import world
from labeling.world import recipe
from training.intervals import wilson

ROOT = Path(__file__).resolve().parents[1]
K, OVERLAP, NOISE, HELD_OUT = 6, 2, 0.25, 15  # completions a prompt, rankings a prompt, wrong pairs, % of prompts
BEST_OF = 16
SMALL = 8  # with --small everything is an eighth of the demo's size
SAMPLED = {**recipe.SAMPLING}
# One price of KL for all that have one, the demo's (PPO divides scores by their spread, DPO's beta is in raw scores);
# each method's other settings are its defaults.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "PPO": ("ppo", recipe.PPO),
    "RLOO": ("grpo", {**recipe.PPO, "estimator": "rloo"}),
    "GRPO": ("grpo", {**recipe.PPO, "estimator": "grpo"}),
    "DPO": ("dpo", {"batch_size": recipe.REWARD["batch_size"], "max_new_tokens": 40}),
    "Rejection sampling": ("rejection", SAMPLED),
}


@dataclass(frozen=True)
class Start:
    """What every method begins with: two models and four files of rows."""

    sft: Path
    reward: Path
    rankings: Path
    held_out_rankings: Path
    prompts: Path
    held_out_prompts: Path


@dataclass(frozen=True)
class Row:
    """One line of the table. Each trial is an answer and one of the SFT model's to the same prompt."""

    name: str
    proxy: tuple[float, int] | None  # win rate by the reward model and its trials
    reward: float
    kl: float
    length: float
    ends: float
    seconds: float | None
    trials: list[tuple[str, str, str]]  # prompt, answer, the SFT model's answer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench baselines", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "var" / "baselines")
    parser.add_argument("--home", type=Path, help="BUCLE_HOME of a finished `manage.py demo`: its models and rankings")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--language", choices=("es", "en"), default="es")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs; writes no results")
    options = parser.parse_args(arguments)
    out: Path = options.out / f"{options.language}-{options.seed}"
    out.mkdir(parents=True, exist_ok=True)
    part = SMALL if options.small else 1
    start = from_home(options.home) if options.home else from_nothing(out, options.seed, options.language, part)
    rows = [measure(name, out, start, options.seed, options.small) for name in METHODS]
    rows += best_of_n(out, start, options.seed, options.small)
    table = markdown(rows, reference(out), options.seed)
    print(table)
    if not options.small:
        section("baselines", table)


# What is common to all


def from_nothing(out: Path, seed: int, language: str, part: int) -> Start:
    """The demo's recipe with the engine alone: text, tokenizer, base, SFT, completions, rankings, reward model."""
    data = out / "data"
    train, asked = (
        world.prompts(seed, recipe.PROMPTS[split] // part, language, split=split) for split in ("train", "holdout")
    )
    shown = world.demonstrations(seed, recipe.DEMONSTRATIONS // part, language)
    _once(data / "town.txt", lambda: "\n\n".join(world.corpus(seed, recipe.CHARACTERS // part, language)))
    _once(data / "demonstrations.jsonl", lambda: _jsonl({k: r[k] for k in ("instruction", "response")} for r in shown))
    _once(data / "prompts.jsonl", lambda: _jsonl({"prompt": p.text} for p in train))
    _once(data / "held_out.jsonl", lambda: _jsonl({"prompt": p.text} for p in asked))
    stage(out / "tokenizer", "tokenizer", {**recipe.TOKENIZER, "files": [str(data / "town.txt")]})
    source = {"path": str(data / "town.txt"), "weight": 1.0, "documents": "paragraphs"}
    tokenizer = str(out / "tokenizer" / "model")
    steps = {"steps": recipe.PRETRAIN["steps"] // part}
    stage(out / "pretrain", "pretrain", {**recipe.PRETRAIN, **steps, "sources": [source], "tokenizer": tokenizer}, seed)
    demonstrations = {"base": str(out / "pretrain" / "model"), "data": str(data / "demonstrations.jsonl")}
    sft = stage(out / "sft", "sft", {**recipe.SFT, **demonstrations}, seed) / "model"
    written = {"model": str(sft), "prompts": str(data / "prompts.jsonl"), "n": K}
    completions = stage(out / "generate", "generate", {**SAMPLED, **written}, seed) / "completions.jsonl"
    rankings = list(_rankings(_read(completions), seed))
    for name, held_out in (("train", False), ("val", True)):
        rows = [row for row in rankings if _is_held_out(row["prompt"]) == held_out]
        _once(data / f"rankings_{name}.jsonl", lambda rows=rows: _jsonl(rows))
    learned = {"data": str(data / "rankings_train.jsonl"), "val": str(data / "rankings_val.jsonl")}
    shown_to = {"base": str(sft), "demonstrations": str(data / "demonstrations.jsonl")}
    reward = stage(out / "reward", "reward", {**recipe.REWARD, **learned, **shown_to}, seed) / "model"
    files = (data / name for name in ("rankings_train.jsonl", "rankings_val.jsonl", "prompts.jsonl", "held_out.jsonl"))
    return Start(sft, reward, *files)


def from_home(home: Path) -> Start:
    """The newest reward, PPO and evaluate runs of a demo, by what their directories say."""
    runs = sorted(home.glob("artifacts/projects/*/runs/*/config.json"), key=lambda p: int(p.parent.name))
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in runs:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = "evaluate" if "new" in config else "ppo" if "updates" in config else ""
        kind = "reward" if "demonstrations" in config and "val" in config else kind
        if kind and (file.parent / "result.json").exists():
            found[kind] = (file.parent, config)
    if missing := {"reward", "ppo", "evaluate"} - set(found):
        raise SystemExit(f"{home} has 0 finished {sorted(missing)[0]} runs: run `manage.py demo --exit` in it first.")
    folder, config = found["reward"]
    ppo, evaluate = found["ppo"][0], found["evaluate"][0]
    sft = (folder / config["base"]).resolve()
    files = (folder / "data" / "data.jsonl", folder / "data" / "val.jsonl")
    return Start(sft, folder / "model", *files, ppo / "data" / "prompts.jsonl", evaluate / "data" / "prompts.jsonl")


def _rankings(completions: list[dict[str, Any]], seed: int) -> Iterable[dict[str, Any]]:
    """As simulated annotators rank: by the hidden utility, wrong in a quarter of the comparisons."""
    by_prompt: dict[str, list[str]] = {}
    for row in completions:
        by_prompt.setdefault(row["prompt"], []).append(row["text"])
    for prompt, texts in by_prompt.items():
        responses = list(dict.fromkeys(texts))
        for annotator in range(OVERLAP):
            tiers = world.rank(prompt, responses, NOISE, random.Random(f"{seed} {annotator} {prompt}"))
            if len(responses) > 1:
                ranking = [tier if len(tier) > 1 else tier[0] for tier in tiers]
                yield {
                    "prompt": prompt, "responses": responses, "ranking": ranking, "annotator": f"simulated-{annotator}"
                }  # fmt: skip


def _is_held_out(prompt: str) -> bool:
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) % 100 < HELD_OUT


# One method


def measure(name: str, out: Path, start: Start, seed: int, small: bool) -> Row:
    """Train by one method, then ask it the held-out prompts beside the SFT model."""
    kind, settings = METHODS[name]
    inputs = {"base": str(start.sft)}
    if kind == "dpo":
        spread = _json(start.reward / "bucle.json")["reward_std"]
        settings = {**settings, "beta": recipe.PPO["kl_coef"] * spread}
        inputs |= {"data": str(start.rankings), "val": str(start.held_out_rankings)}
    else:
        inputs |= {"reward_model": str(start.reward), "prompts": str(start.prompts)}
    if small and "updates" in settings:
        settings = {**settings, "updates": 5}
    trained = stage(out / name.lower().replace(" ", "_"), kind, {**settings, **inputs}, seed)
    against = {"new": str(trained / "model"), "old": str(start.sft), "reward_model": str(start.reward)}
    asked = {**recipe.EVALUATE, **against, "prompts": str(start.held_out_prompts)}
    folder = stage(out / f"evaluate_{trained.name}", "evaluate", asked, seed)
    result, samples = _json(folder / "result.json"), _read(folder / "samples.jsonl")
    trials = [(s["prompt"], s["new"], s["old"]) for s in samples]
    return Row(
        name, (result["win_rate"], len(samples)), result["reward_new"], result["kl"], result["length_new"],
        result["eos_new"], _json(trained / "result.json")["seconds"], trials,
    )  # fmt: skip


def best_of_n(out: Path, start: Start, seed: int, small: bool) -> list[Row]:
    """The best of the first n and of the last n answers of a pool, each against the answer at the other end."""
    inputs = {"base": str(start.sft), "reward_model": str(start.reward), "prompts": str(start.held_out_prompts)}
    n = 4 if small else BEST_OF
    folder = stage(out / "best_of_n", "best_of_n", {**SAMPLED, **inputs, "n": n}, seed)
    by_n = _json(folder / "result.json")["by_n"]
    prompts = [row["prompt"] for row in _read(folder / "completions.jsonl")[:: len(by_n)]]
    pool = [answers for part in _read(folder / "pool.jsonl") for answers in part]
    rows = []
    for entry in by_n[1:]:
        trials = []
        for prompt, answers in zip(prompts, pool, strict=True):
            for one in (answers, answers[::-1]):
                best = max(one[: entry["n"]], key=lambda answer: answer["reward"])
                trials.append((prompt, best["text"], one[-1]["text"]))
        proxy = (entry["win_rate"], len(prompts))
        name = f"Best of {entry['n']}"
        rows.append(Row(name, proxy, entry["score"], entry["kl"], entry["length"], entry["eos_share"], None, trials))
    return rows


def reference(out: Path) -> Row:
    """The SFT model itself, from the other side of the first evaluation."""
    folder = out / f"evaluate_{next(iter(METHODS)).lower()}"
    result, samples = _json(folder / "result.json"), _read(folder / "samples.jsonl")
    trials = [(s["prompt"], s["old"], s["old"]) for s in samples]
    return Row("SFT model", None, result["reward_old"], 0.0, result["length_old"], result["eos_old"], None, trials)


def stage(folder: Path, kind: str, settings: dict[str, Any], seed: int | None = None) -> Path:
    """Run a stage of the engine in its directory, or find it finished."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "result.json").exists():
        print(f"  {kind} in {folder.name} ...", file=sys.stderr, flush=True)
        config = settings | ({} if seed is None else {"seed": seed})
        (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "training", kind, str(folder)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{kind} in {folder} ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
    return folder


# The table


def markdown(rows: list[Row], base: Row, seed: int) -> str:
    """One line a method; intervals are Wilson's at 95 %."""
    lines = [
        "## PPO and what is simpler, from the same rankings",
        "",
        f"`python -m bench baselines` (seed {seed}; {machine()}). One SFT model, one set of simulated rankings, one "
        "reward model; every policy answers the same held-out prompts with the same sampling, against one answer of "
        "the SFT model. The hidden utility is the small world's own judge, which nothing was trained on.",
        "",
        "| method | win rate, reward model | win rate, hidden utility | utility | right | kind | reward | KL | tokens "
        "| ends | training |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_line(row) for row in [base, *rows])])


def _line(row: Row) -> str:
    judged = [(world.judge(p, ours), world.judge(p, theirs)) for p, ours, theirs in row.trials]
    wins = statistics.fmean(0.5 if a.utility == b.utility else float(a.utility > b.utility) for a, b in judged)
    utility = statistics.fmean(ours.utility for ours, _ in judged)
    right, kind = (statistics.fmean(float(getattr(ours, name)) for ours, _ in judged) for name in ("right", "kind"))
    proxy = _share(*row.proxy) if row.proxy else "–"
    hidden = _share(wins, len(judged)) if row.proxy else "–"
    seconds = "–" if row.seconds is None else f"{row.seconds:.0f} s"
    figures = f"{utility:.2f} | {right:.0%} | {kind:.0%} | {row.reward:.2f} | {row.kl:.2f} | {row.length:.1f}"
    return f"| {row.name} | {proxy} | {hidden} | {figures} | {row.ends:.0%} | {seconds} |"


def _share(share: float, n: int) -> str:
    low, high = wilson(share, n)
    return f"{share:.1%} ({low:.1%}–{high:.1%})"


# Files


def _once(path: Path, text: Callable[[], str]) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(), encoding="utf-8")


def _jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _read(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as lines:  # not splitlines: a text may hold U+2028
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
