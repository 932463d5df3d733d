"""Whole rankings in one batch against their pairs shuffled apart: which over-fits (Ouyang et al. 2022, C.2).

`python -m bench pairing --data DATA_DIR [--seconds 100]`. Two sets of rankings, the same model, steps, comparisons per
step and schedule for both; several passes, several seeds, held-out loss along the way.
"""

import argparse
import math
import random
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from bench import curves, reward_models, runs
from bench.harness import section
from bench.reward_models import Row
from bench.runs import Clock
from training import vocabulary

WORK = Path("var/bench/pairing")
PAIRINGS = ("k-wise", "pairs")
SETS = ("made, K = 4-9", "people, K = 4")
EPOCHS, SEEDS = 3, (1,)
PEOPLE, MADE, HELD_OUT = 120, 200, 80  # rankings
TRAIN = {"epochs": EPOCHS, "batch_size": 8, "learning_rate": 5e-4, "precision": "fp32", "log_every": 1, "val_every": 5}

# The known utility of a made answer is the sum of its words' worth; judges rank by it with Gumbel noise on top, so that
# each pair is a Bradley-Terry comparison of the utilities and the best possible accuracy is known.
NOUNS = "king queen forest river bread gold wolf bird castle garden shoe apple horse sister stone window cake lion"
WORDS = NOUNS.split()
QUESTIONS = [f"Tell me about the {a} and the {b}." for a in WORDS for b in WORDS if a != b]


def worth() -> dict[str, float]:
    draw = random.Random(7)
    return {word: draw.gauss(0, 0.7) for word in WORDS}


def utility(answer: str, values: dict[str, float]) -> float:
    return sum(values[word] for word in answer.split())


def made_rankings(count: int, seed: int) -> list[Row]:
    """Rankings of K = 4 to 9 answers of three to eight words, by utility plus Gumbel noise; no question comes twice."""
    draw, values = random.Random(seed), worth()
    rows = []
    for question in draw.sample(QUESTIONS, count):
        answers = [" ".join(draw.choices(WORDS, k=draw.randint(3, 8))) for _ in range(draw.randint(4, 9))]
        seen = [utility(answer, values) - math.log(-math.log(draw.random())) for answer in answers]
        order = sorted(range(len(answers)), key=lambda i: -seen[i])
        rows.append({"prompt": question, "responses": answers, "ranking": order})
    return rows


def best_accuracy(rows: Sequence[Row]) -> float:
    """How many of the noisy comparisons the utility itself gets right: what no reward model can pass for long."""
    values, hits = worth(), []
    for row in rows:
        for pair in reward_models.pairs(row):
            gap = utility(pair["chosen"], values) - utility(pair["rejected"], values)
            hits.append(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0)
    return statistics.fmean(hits)


def sets(data: Path, base: Path) -> dict[str, tuple[list[Row], list[Row]]]:
    """Rankings to learn from and held-out ones, by name."""
    tok, context = vocabulary.load(base), curves.MODEL["n_positions"]
    rows = runs.rows(data / f"{reward_models.SETS['qa_feedback'].file}.jsonl")
    questions = [reward_models.ranking({**row, "context": ""}) for row in rows]
    people = [row for row in questions if reward_models.room(row, tok, context) >= 32 and reward_models.pairs(row)]
    made = made_rankings(MADE + HELD_OUT, seed=1)
    return {
        SETS[0]: (made[:MADE], made[MADE:]),
        SETS[1]: (people[:PEOPLE], people[PEOPLE : PEOPLE + HELD_OUT]),
    }


def by_epoch(run_dir: Path) -> list[dict[str, float]]:
    """Mean training loss of each pass, and held-out loss and accuracy at its end."""
    points = runs.rows(run_dir / "metrics.jsonl")
    per_epoch = points[-1]["steps"] // EPOCHS
    found = []
    for epoch in range(EPOCHS):
        inside = [row for row in points if epoch * per_epoch < row["step"] <= (epoch + 1) * per_epoch]
        last = inside[-1]
        assert last["step"] == (epoch + 1) * per_epoch, last
        loss = statistics.fmean(row["loss"] for row in inside)
        found.append({"loss": loss, "val_loss": last["val_loss"], "val_accuracy": last["val_accuracy"]})
    return found


def mean(run_dirs: Sequence[Path]) -> list[dict[str, float]]:
    """The passes of several seeds, averaged figure by figure."""
    seeds = [by_epoch(run_dir) for run_dir in run_dirs]
    return [
        {key: statistics.fmean(run[epoch][key] for run in seeds) for key in seeds[0][epoch]} for epoch in range(EPOCHS)
    ]


def train(data: Path, clock: Clock, work: Path = WORK) -> dict[str, dict[str, list[Path]]]:
    """Run directories by set of rankings and pairing, one per seed."""
    curves.train("english", data, clock)
    base = (curves.WORK / "english" / "sft" / "model").resolve()
    found: dict[str, dict[str, list[Path]]] = {}
    for number, (name, (learn, held_out)) in enumerate(sets(data, base).items()):
        folder = work / f"set-{number}"
        files = {
            "data": str(runs.write_rows(folder / "learn.jsonl", learn).resolve()),
            "val": str(runs.write_rows(folder / "held_out.jsonl", held_out).resolve()),
        }
        run_dirs: dict[str, list[Path]] = {pairing: [] for pairing in PAIRINGS}
        try:
            for seed, pairing in product(SEEDS, PAIRINGS):
                run_dir = folder / f"{pairing}-{seed}"
                settings = {"base": str(base), **files, **TRAIN, "pairing": pairing, "seed": seed}
                runs.stage("reward", run_dir, settings, clock)
                run_dirs[pairing].append(run_dir)
            found[name] = run_dirs
        except runs.OutOfTime:
            print(f"{name}: not finished")
    return found


def draw(found: dict[str, dict[str, list[Path]]]) -> None:
    """docs/pairing.svg: the held-out loss of every seed, thin, and their mean; training loss per pass, dashed."""
    from bench import plots

    figure, row = plots.panels(len(found), "Passes over the rankings", "Loss (nats per comparison)", list(found))
    for axes, by_pairing in zip(row, found.values(), strict=True):
        axes.set_xticks(range(EPOCHS + 1))
        for colour, (pairing, run_dirs) in zip(plots.COLOURS, by_pairing.items(), strict=False):
            curves_of = [curves.curve(run_dir, "val_loss") for run_dir in run_dirs]
            for steps, losses in curves_of:
                axes.plot(
                    [EPOCHS * step / steps[-1] for step in steps], losses, color=colour, alpha=0.35, linewidth=0.8
                )
            steps = curves_of[0][0]
            middle = [statistics.fmean(values) for values in zip(*(losses for _, losses in curves_of), strict=True)]
            axes.plot([EPOCHS * step / steps[-1] for step in steps], middle, color=colour, label=f"{pairing}, held out")
            learned = [epoch["loss"] for epoch in mean(run_dirs)]
            centres = [epoch + 0.5 for epoch in range(EPOCHS)]
            axes.plot(centres, learned, color=colour, linestyle="--", marker=".", label=f"{pairing}, training")
    plots.save(figure, "pairing")


HEAD = """\
`python -m bench pairing --data DATA_DIR`. The English SFT model of `curves` learns from {made} made rankings of
four to nine answers, whose utility is known, and from {people} rankings of four answers by people
(`qa_feedback`, the question without its passages); {held_out} more of each are held out. Both ways take the
same number of steps with the same number of comparisons in each ({batch} rankings' worth), {epochs} passes,
highest learning rate {rate:g} falling by a cosine over all passes, seeds: {seeds} (means below). K-wise reads
each answer once a pass, pairs read it K - 1 times. The training loss of a pass is the mean over its batches,
each before it is learned.

| rankings | pairing | pass | training loss | held-out loss | held-out accuracy | seconds for all passes |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
"""


def report(found: dict[str, dict[str, list[Path]]], counts: dict[str, Any]) -> str:
    head = HEAD.format(
        **counts, batch=TRAIN["batch_size"], epochs=EPOCHS, rate=TRAIN["learning_rate"], seeds=len(SEEDS)
    )
    lines = []
    for name, by_pairing in found.items():
        for pairing, run_dirs in by_pairing.items():
            seconds = statistics.median(runs.result(run_dir)["seconds"] for run_dir in run_dirs)
            for number, epoch in enumerate(mean(run_dirs), start=1):
                lines.append(
                    f"| {name} | {pairing} | {number} | {epoch['loss']:.3f} | {epoch['val_loss']:.3f} | "
                    f"{epoch['val_accuracy']:.3f} | {f'{seconds:.0f}' if number == EPOCHS else ''} |"
                )
    if missing := len(SETS) - len(found):
        lines.append(f"\nNot run: {', '.join(SETS[-missing:])}.")
    return head + "\n".join(lines) + "\n\n![Loss in training and on held-out rankings](pairing.svg)"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench pairing", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the rankings")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long and go on at the next call")
    parser.add_argument("--report", action="store_true", help="write down what is finished, train nothing")
    options = parser.parse_args(arguments)
    try:
        found = train(options.data, Clock(1e-9 if options.report else options.seconds))
    except runs.OutOfTime:
        print("the base model is not finished: call again to go on")
        return
    if len(found) < 2 and not options.report:
        return
    draw(found)
    held_out = runs.rows(WORK / "set-0" / "held_out.jsonl")
    counts = {"people": PEOPLE, "made": MADE, "held_out": HELD_OUT}
    ceiling = f"\n\nThe known utility itself gets {best_accuracy(held_out):.3f} of the made held-out pairs right."
    section("pairing", report(found, counts) + ceiling)
