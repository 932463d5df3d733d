"""Over-optimisation: what people really want against what a reward model of few comparisons thinks they want.

An answer is a basket of goods. People have a taste that no model ever sees (bench/taste.py): each of eight goods has
its value, which depends on who asks, and one of a kind is welcome, a second too; a third changes nothing and each
further one is a nuisance. They compare pairs of the reference policy's answers, not without error (Bradley-Terry).
Proxies learn from 200 and from 2,000 such comparisons, PPO maximises each without a price of KL, and at every update
proxy and taste are asked about the same answers.

The run keeps snapshots along its path, people compare 8,000 pairs of the snapshots' answers, and a reward model of
those is the judge of a second, otherwise equal run: where its smoothed score has had no new peak for ten updates, the
run ends, and its model is the policy of the peak. Beside it stands a judge of as many comparisons that saw no answers
but the reference's. Best of n is the second way from the same reference.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import harness
from bench.taste import (
    FEW,
    GOODS,
    LONGEST,
    MANY,
    SHOWN,
    Row,
    Taste,
    load,
    ranked,
    rewards,
    train_judge,
    world,
    write,
    write_rows,
)  # fmt: skip
from training import checkpoint, ppo
from training.config import PPOConfig
from training.kl_path import past_peak, peak, smoothed
from training.report import Report
from training.rollout import generator

PATIENCE = 10  # of the judge, in updates
NOTICED = 0.06  # two standard errors of the mean taste of five updates' answers
HELD_OUT = 300  # comparisons of answers from the path
POOL, BEST_OF = 256, (1, 2, 4, 8, 16, 32, 64, 128, 256)  # answers per prompt; n <= POOL


@dataclass(frozen=True)
class Run:
    """What one PPO run gave, a figure per update; `answers` are (prompts, completions)."""

    root_kl: list[float]
    proxy: list[float]
    gold: list[float]
    answers: list[tuple[list[str], list[str]]]
    snapshots: list[Path]
    result: dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """One PPO run, a figure per update: the square root of the KL, the proxy's score and the taste."""

    root_kl: list[float]
    proxy: list[float]
    gold: list[float]
    judge: list[float]  # scores of the judge who was shown the path's answers
    blind: list[float]  # scores of a judge who has seen the reference's answers only
    best_of_n: list[tuple[float, float, float]]  # root of the KL, proxy, gold
    accuracy: float  # of the proxy, on held-out pairs
    updates: int  # after which the judge ended a second, otherwise equal run
    kept: int  # and the updates behind the policy that was kept


def climb(folder: Path, base: Path, taste: Taste, n: int, seed: int, updates: int, judge: Path | None = None) -> Run:
    """PPO against the proxy in folder/proxy-n; the taste is asked in passing and pays nothing."""
    run_dir = folder / f"ppo-{n}{'-judged' if judge else ''}"
    write_rows(run_dir / "data" / "prompts.jsonl", [{"prompt": good} for good in GOODS])
    where = folder / f"proxy-{n}" / "model"
    proxy, spread = load(where)
    answers = list[tuple[list[str], list[str]]]()

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        answers.append((prompts, completions))
        return rewards(proxy, spread, prompts, completions)

    config = PPOConfig(
        base=str(base), reward_model=str(where), judge_model=str(judge) if judge else "", judge_patience=PATIENCE,
        updates=updates, batch_size=256, kl_coef=0.0, score_clip=0.0, learning_rate=3e-4, value_learning_rate=2e-3,
        min_lr_ratio=1.0, max_new_tokens=LONGEST, kl_snapshots=0.5, sample_every=0, checkpoint_every=updates,
        seed=seed, device="cpu",
    )  # fmt: skip
    result = ppo.run(config, run_dir, Report(run_dir), score)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    root_kl = [math.sqrt(max(row["kl_k1"], 0.0)) for row in rows]
    gold = [float(taste(*asked).mean()) for asked in answers]
    snapshots = [run_dir / entry["path"] for entry in result["snapshots"]]
    return Run(root_kl, [row["score"] for row in rows], gold, answers, snapshots, result)


def shown(snapshots: Sequence[Path], base: Path, taste: Taste, n: int, seed: int) -> list[Row]:
    """n comparisons of answers that policies along the path gave, the reference among them."""
    policies = [checkpoint.load_model(path)[0].eval() for path in (base, *snapshots)]
    each = math.ceil(2 * n / len(policies))
    draw, pool = generator(seed, 5), list[tuple[str, str]]()
    for place, policy in enumerate(policies):
        asked = [GOODS[i % len(GOODS)] for i in range(each)]
        pool += zip(asked, write(policy, asked, seed + 20_000 + place), strict=True)
    by_prompt = {good: [answer for prompt, answer in pool if prompt == good] for good in GOODS}
    asked = [GOODS[i] for i in draw.integers(len(GOODS), size=n)]
    pairs = [[str(answer) for answer in draw.choice(by_prompt[prompt], size=2, replace=False)] for prompt in asked]
    return ranked(asked, pairs, taste, seed)


def best_of(base: Path, taste: Taste, proxy: Path, seed: int) -> list[tuple[float, float, float]]:
    """Expected proxy and taste of the answer that the proxy likes best of n, over all choices of n from a pool."""
    policy, _, _ = checkpoint.load_model(base)
    prompts = [good for good in GOODS for _ in range(POOL * 2)]
    answers = write(policy.eval(), prompts, seed + 10_000)
    scores = np.array(rewards(*load(proxy), prompts, answers)).reshape(-1, POOL)
    order = scores.argsort(1)
    scores = np.take_along_axis(scores, order, 1).mean(0)  # the mean score of each rank, worst first
    gold = np.take_along_axis(taste(prompts, answers).reshape(-1, POOL), order, 1).mean(0)
    points = []
    for n in BEST_OF:
        # The best of n has rank r with probability (r / POOL)^n - ((r - 1) / POOL)^n.
        weights = np.diff((np.arange(POOL + 1) / POOL) ** n)
        kl = math.log(n) - (n - 1) / n
        points.append((math.sqrt(kl), float(weights @ scores), float(weights @ gold)))
    return points


def fit(root_kl: Sequence[float], gain: Sequence[float]) -> tuple[float, float, float]:
    """(a, b, d at the peak) of Gao's curve for RL, gain = d (a - b ln d), by least squares; no peak is infinity."""
    d, y = (np.array(values) for values in (root_kl, gain))
    d, y = d[d > 0.05], y[d > 0.05]
    (a, b), *_ = np.linalg.lstsq(np.stack([d, -d * np.log(d)], 1), y, rcond=None)
    return float(a), float(b), math.exp(min(a / b - 1, 20)) if b > 0 else math.inf


@dataclass(frozen=True)
class Stop:
    """Where a run stops and what it keeps, by people's taste."""

    update: int
    kept: int
    best: int
    gold_first: float
    gold_kept: float
    gold_best: float
    gold_last: float

    @property
    def lost(self) -> float:
        """The share of the possible gain that the kept policy lacks; nan where there is no gain but noise."""
        gain = self.gold_best - self.gold_first
        return (self.gold_best - self.gold_kept) / gain if gain > NOTICED else math.nan

    @property
    def cell(self) -> str:
        """The taste of the kept policy and what it lacks."""
        lost = "nothing to gain" if math.isnan(self.lost) else f"{self.lost:.1%} lost"
        return f"{self.gold_kept:+.2f}, {lost}"


def stop(judge: Sequence[float], gold: Sequence[float], patience: int = PATIENCE) -> Stop:
    """The stage's rule replayed on a whole curve."""
    ends = next((n for n in range(1, len(judge) + 1) if past_peak(judge[:n], patience)), len(judge))
    return worth(ends, peak(judge[:ends]), gold)


def worth(ends: int, kept: int, gold: Sequence[float]) -> Stop:
    """A choice against the best one; the taste of a policy is smoothed with that of its neighbours."""
    level = [statistics.fmean(gold[max(0, i - 2) : i + 3]) for i in range(len(gold))]
    best = max(range(len(level)), key=level.__getitem__)
    return Stop(ends, kept, best, level[0], level[kept], level[best], smoothed(gold)[-1])


HEAD = """`python -m bench overoptimisation`, one thread.
"""
TABLE = """
| comparisons | seed | proxy right | people's taste at first, peak, end | peak at sqrt(KL) | run ends after \
| keeps update | taste kept | a judge of the reference's answers keeps |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def line(n: int, seed: int, curve: Curve) -> str:
    """A row of the table."""
    told, blind = worth(curve.updates, curve.kept, curve.gold), stop(curve.blind, curve.gold)
    return (
        f"| {n:,} | {seed} | {curve.accuracy:.3f} | {told.gold_first:+.2f}, {told.gold_best:+.2f}, "
        f"{told.gold_last:+.2f} | {curve.root_kl[told.best]:.2f} | {told.update} | {told.kept} | "
        f"**{told.cell}** | {blind.cell} |"
    )


def pooled(curves: Sequence[Curve]) -> tuple[float, float, float]:
    """Gao's curve through the gains of all seeds."""
    gains = [gold - curve.gold[0] for curve in curves for gold in curve.gold]
    return fit([d for curve in curves for d in curve.root_kl], gains)


def picture(curves: dict[int, list[Curve]]) -> Path:
    """docs/overoptimisation.svg."""
    from bench import plots

    titles = [f"A proxy of {n:,} comparisons" for n in curves]
    figure, panels = plots.panels(len(curves), "distance from the reference, sqrt(KL)", "mean score", titles)
    proxy, gold, kept, best = plots.COLOURS
    for axes, several in zip(panels, curves.values(), strict=True):
        for place, curve in enumerate(several):
            names = ("the proxy", "people's taste", "what the judge keeps") if place == 0 else (None, None, None)
            axes.plot(curve.root_kl, smoothed(curve.proxy), color=proxy, linewidth=1, label=names[0])
            axes.plot(curve.root_kl, smoothed(curve.gold), color=gold, linewidth=1, label=names[1])
            here = curve.root_kl[curve.kept], worth(curve.updates, curve.kept, curve.gold).gold_kept
            axes.plot(*here, marker="*", markersize=10, linestyle="none", color=kept, zorder=3, label=names[2])
        a, b, _ = pooled(several)
        d = np.linspace(0.05, max(max(curve.root_kl) for curve in several), 80)
        start = statistics.fmean(curve.gold[0] for curve in several)
        axes.plot(d, start + d * (a - b * np.log(d)), "--", color=gold, linewidth=1.6, label="d (a - b ln d)")
        means = np.mean([curve.best_of_n for curve in several], axis=0)
        axes.plot(means[:, 0], means[:, 2], ":", color=best, linewidth=1.6, label="taste, best of n")
    return plots.save(figure, "overoptimisation")


def report(curves: dict[int, list[Curve]], seeds: Sequence[int]) -> str:
    """The section of docs/results.md."""
    lines = [HEAD + (__doc__ or "").strip().split("\n", 1)[1], TABLE]
    for n, several in curves.items():
        lines += [line(n, seed, curve) for seed, curve in zip(seeds, several, strict=True)]
    lines.append("")
    for n, several in curves.items():
        a, b, at = pooled(several)
        peaks = f"its peak at sqrt(KL) = {at:.2f}" if at < 20 else "no peak within reach"
        n_best = max((curve.best_of_n[-1][2] for curve in several), default=0.0)
        lines.append(
            f"- {n:,} comparisons: d (a - b ln d) with a = {a:.2f} and b = {b:.2f}, {peaks}. Best of {BEST_OF[-1]} "
            f"reaches sqrt(KL) = {several[0].best_of_n[-1][0]:.2f} and at most {n_best:+.2f}."
        )
    return "\n".join([*lines, "", "![People's taste and the proxy along the KL path](overoptimisation.svg)"])


def measured(folder: Path, seed: int, updates: int, sizes: Sequence[int] = (FEW, MANY)) -> dict[int, Curve]:
    """By number of comparisons: a whole run, a judge who is shown its snapshots, and the run with that judge."""
    base, taste, accuracies = world(folder, seed, sizes)
    found = {}
    for n in sizes:
        whole = climb(folder, base, taste, n, seed, updates)
        rows, held_out = (shown(whole.snapshots, base, taste, size, 100 * seed + size) for size in (SHOWN, HELD_OUT))
        train_judge(folder / f"judge-{n}", base, rows, held_out)
        told = climb(folder, base, taste, n, seed, updates, folder / f"judge-{n}" / "model")
        assert told.gold == whole.gold[: len(told.gold)], "the judge only watches: both runs take the same path"
        seen, blind = (asked(folder / name / "model", whole) for name in (f"judge-{n}", "blind"))
        points = best_of(base, taste, folder / f"proxy-{n}" / "model", seed)
        ends, kept = told.result["updates"], told.result["model_update"]
        found[n] = Curve(whole.root_kl, whole.proxy, whole.gold, seen, blind, points, accuracies[n], ends, kept)
    return found


def asked(path: Path, run: Run) -> list[float]:
    """The judge's mean score of every update's answers."""
    model, spread = load(path)
    return [statistics.fmean(rewards(model, spread, *answers)) for answers in run.answers]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench overoptimisation", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 7, 9])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="keep each seed's curves there, and do not measure them again")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # networks of this size are slower on two
    curves: dict[int, list[Curve]] = {FEW: [], MANY: []}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (options.folder or Path(scratch)) / f"seed-{seed}"
            for n, curve in stored(folder, seed, options.updates).items():
                curves[n].append(curve)
                print(line(n, seed, curve), file=sys.stderr, flush=True)
    picture(curves)
    harness.section("overoptimisation", report(curves, options.seeds))


def stored(folder: Path, seed: int, updates: int) -> dict[int, Curve]:
    """What was measured, from folder/curves.json where it has been."""
    path = folder / "curves.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {n: vars(curve) for n, curve in measured(folder, seed, updates).items()}
        path.write_text(json.dumps(found), encoding="utf-8")
    return {int(n): Curve(**curve) for n, curve in json.loads(path.read_text(encoding="utf-8")).items()}


if __name__ == "__main__":
    main(sys.argv[1:])
