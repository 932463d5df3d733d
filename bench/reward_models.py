"""Reward models on people's judgements: ours and TRL's RewardTrainer on the same model, rows, split and budget.

`python -m bench reward_models --data DATA_DIR [--seconds 100]`. The base model is the English SFT model of
`python -m bench curves`. Prompts are dealt into four folds; each fold is held out once, by a run with a seed of its own
that learns from the other three, so that every pair is judged by a model that never saw its prompt.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from bench import curves, runs
from bench.harness import section
from bench.runs import Clock
from training import comparisons, vocabulary
from training.intervals import wilson
from training.vocabulary import Tokenizer

WORK = Path("var/bench/reward_models")
FOLDS = 4
LEAST_ROOM = 32  # tokens that must be left for the prompt
TRAIN = {"learning_rate": 5e-4, "warmup_steps": 5, "min_lr_ratio": 0.1, "precision": "fp32", "epochs": 1}
TRAIN |= {"val_every": 1_000_000}  # ours too is validated at the end only
Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """A file of judgements; keep says which end of a long prompt stays, folds how many of the four are held out.

    batch_size and most count rankings; most bounds the time of TRL, which reads each answer K - 1 times.
    """

    file: str
    batch_size: int
    keep: str
    folds: int
    most: int = 10_000


SETS = {
    "pandalm": Judged("preferences/en_pandalm_human", 16, "first", folds=FOLDS),
    "hh harmless": Judged("preferences/en_hh_rlhf_harmless", 16, "last", folds=1),
    "qa_feedback": Judged("rankings/en_qa_feedback_k4", 4, "first", folds=1, most=120),
}


def ranking(row: Row) -> Row:
    """A row of any of the files as {prompt, responses, ranking}; equal points tie, passages follow the question."""
    if "chosen" in row:
        return {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]], "ranking": [0, 1]}
    tiers = [
        [index for index, own in enumerate(row["points"]) if own == points]
        for points in sorted(set(row["points"]), reverse=True)
    ]
    return {"prompt": f"{row['prompt']}\n\n{row['context']}".strip(), "responses": row["responses"], "ranking": tiers}


def room(row: Row, tok: Tokenizer, context: int) -> int:
    """Tokens that the longest answer leaves for the prompt, beside the marks of user and assistant and the EOS."""
    return context - 3 - max(len(tok.encode(response)) for response in row["responses"])


def cut(prompt: str, room: int, tok: Tokenizer, keep: str) -> str:
    """The first or the last `room` tokens of a prompt."""
    ids, size = tok.encode(prompt), room
    while len(tok.encode(prompt)) > room:  # decoding and encoding again may give a token more
        prompt = tok.decode(ids[:size] if keep == "first" else ids[-size:]).strip("\ufffd ")
        size -= 1
    return prompt


def read(judged: Judged, data: Path, tok: Tokenizer, context: int) -> tuple[list[Row], int]:
    """Rows whose answers leave room for a prompt and that are not all tied, and how many were left out.

    A prompt is cut alike in all its rows: it stays one prompt, of which no part may lie on both sides of a split.
    """
    rows = [ranking(row) for row in runs.rows(data / f"{judged.file}.jsonl")]
    rooms = [room(row, tok, context) for row in rows]
    kept = [(row, left) for row, left in zip(rows, rooms, strict=True) if left >= LEAST_ROOM and pairs(row)]
    least: dict[str, int] = {}
    for row, left in kept:
        least[row["prompt"]] = min(left, least.get(row["prompt"], left))
    short = {prompt: cut(prompt, left, tok, judged.keep) for prompt, left in least.items()}
    return [{**row, "prompt": short[row["prompt"]]} for row, _ in kept], len(rows) - len(kept)


def pairs(row: Row) -> list[Row]:
    """The untied pairs of a ranking as {prompt, chosen, rejected}."""
    groups = comparisons.tiers(row["ranking"], len(row["responses"]))
    return [
        {"prompt": row["prompt"], "chosen": row["responses"][pair.first], "rejected": row["responses"][pair.second]}
        for pair in comparisons.comparisons(groups)
        if pair.target == 1.0
    ]


def split(rows: Sequence[Row], fold: int, folds: int = FOLDS) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and held-out rows; all rows of a prompt fall on the same side."""
    prompts = sorted({row["prompt"] for row in rows})
    random.Random(0).shuffle(prompts)
    held_out = set(prompts[fold::folds])
    return [row for row in rows if row["prompt"] not in held_out], [row for row in rows if row["prompt"] in held_out]


def one_fold(name: str, rows: list[Row], fold: int, base: Path, clock: Clock, work: Path = WORK) -> dict[str, Path]:
    """Train and score both contenders on one fold; their run directories."""
    folder = work / name.replace(" ", "_") / f"fold-{fold}"
    learn, held_out = split(rows, fold)
    learn = learn[: SETS[name].most]
    names = {"data": "learn.jsonl", "val": "held_out.jsonl"}
    files = {
        key: str(runs.write_rows(folder / file, part).resolve())
        for (key, file), part in zip(names.items(), (learn, held_out), strict=True)
    }
    settings = {"base": str(base.resolve()), **files, **TRAIN, "batch_size": SETS[name].batch_size, "seed": fold + 1}
    runs.stage("reward", folder / "ours", settings, clock)
    trl = folder / "trl"
    if not (trl / "result.json").is_file():
        clock.left()  # TRL's trainer does not stop and go on as ours does: once begun, it runs to its end
    runs.run([sys.executable, "-m", "bench.trl_reward", str(trl)], trl, settings, Clock())
    return {"ours": folder / "ours", "trl": trl}


def gaps(run_dirs: Sequence[Path]) -> list[tuple[str, float]]:
    """Prompt, and reward of the better answer minus that of the worse, of every held-out pair."""
    scored = [row for run_dir in run_dirs for row in runs.rows(run_dir / "val_pairs.jsonl")]
    return [(row["prompt"], row["chosen_reward"] - row["rejected_reward"]) for row in scored]


def difference(ours: Sequence[tuple[str, float]], theirs: Sequence[tuple[str, float]]) -> tuple[float, float, float]:
    """Accuracy of ours minus theirs on the same pairs, and its 95 % interval by resampling prompts 2,000 times."""
    assert [prompt for prompt, _ in ours] == [prompt for prompt, _ in theirs], "both must score the same pairs in order"
    by_prompt: dict[str, list[float]] = {}
    for (prompt, a), (_, b) in zip(ours, theirs, strict=True):
        by_prompt.setdefault(prompt, []).append(_right(a) - _right(b))
    sums = [(sum(values), len(values)) for values in by_prompt.values()]
    draw, means = random.Random(0), []
    for _ in range(2000):
        drawn = draw.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in drawn) / sum(n for _, n in drawn))
    means.sort()
    return sum(total for total, _ in sums) / len(ours), means[49], means[1949]


def _right(gap: float) -> float:
    return 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0


def agreement(rows: Sequence[Row]) -> float | None:
    """How often two annotators of the same pair give the same verdict; None where one verdict per pair is known."""
    votes = [row["annotators"] for row in rows if "annotators" in row]
    same = [a == b for row in votes for a, b in combinations(row, 2)]
    return statistics.fmean(same) if same else None


def share(right: float, n: int) -> str:
    low, high = wilson(right, n)
    return f"{right:.3f} ({low:.3f}-{high:.3f})"


def spent(run_dirs: Sequence[Path]) -> str:
    """Median seconds of the runs that were made in one piece: another one's figure is its last piece's."""
    whole = [run_dir for run_dir in run_dirs if "stopped at" not in (run_dir / "log.txt").read_text(encoding="utf-8")]
    return f"{statistics.median(runs.result(run_dir)['seconds'] for run_dir in whole):.0f}" if whole else "in pieces"


def line(name: str, folds: Sequence[dict[str, Path]], human: float | None) -> str:
    """A row of the table; the baseline "the longer wins" or "the shorter wins" is chosen on the training rows."""
    scored = {who: gaps([fold[who] for fold in folds]) for who in ("ours", "trl")}
    found = {who: comparisons.accuracy(gap for _, gap in pairs) for who, pairs in scored.items()}
    results = {who: [runs.result(fold[who]) for fold in folds] for who in scored}
    n = found["ours"][1]
    length = sum(run["length_baseline"] * run["val_pairs"] for run in results["ours"]) / n
    apart, low, high = difference(scored["ours"], scored["trl"])
    seconds = {who: spent([fold[who] for fold in folds]) for who in scored}
    learned = statistics.fmean(run["train_pairs"] for run in results["ours"])
    return (
        f"| {name} | {learned:,.0f} | {n:,} in {len(folds)} | **{share(*found['ours'])}** | {share(*found['trl'])} | "
        f"{apart:+.3f} ({low:+.3f} to {high:+.3f}) | {length:.3f} | {'-' if human is None else f'{human:.3f}'} | "
        f"{seconds['ours']} / {seconds['trl']} |"
    )


HEAD = """\
`python -m bench reward_models --data DATA_DIR`: the English SFT model of `curves` ({parameters:,} parameters,
context {context}) learns from people's judgements, once in our stage `reward` and once in TRL 1.12's
`RewardTrainer`, which loads the same folder. Same token ids, pairs, number of steps, AdamW, warm-up, cosine and
clipping, one pass, {precision}, highest learning rate {rate:g}. Prompts are dealt into {folds} folds; a row
pools the folds in which its pairs were held out (one run and one seed per fold). Intervals are Wilson's at 95
%; the difference is taken on the same pairs, its interval comes from resampling prompts. *Length* is "the
longer (or shorter) wins", whichever held in training. *People* is how often two annotators of one pair agree,
where the file says. Seconds are one fold's, the start of Python left out.

| judgements | pairs learned | pairs held out | ours | TRL | ours - TRL | length | people | seconds ours / TRL |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench reward_models", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the judgements")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long and go on at the next call")
    parser.add_argument("--report", action="store_true", help="write down what is finished, train nothing")
    options = parser.parse_args(arguments)
    clock = Clock(1e-9 if options.report else options.seconds)
    done: dict[str, list[dict[str, Path]]] = {name: [] for name in SETS}
    left_out, human, unfinished = {}, {}, 0
    try:
        pretrained = curves.train("english", options.data, clock)["pretrain"]
    except runs.OutOfTime:
        print("the base model is not finished: call again to go on")
        return
    base = curves.WORK / "english" / "sft" / "model"
    tok, context, rows = vocabulary.load(base), curves.MODEL["n_positions"], {}
    for name, judged in SETS.items():
        rows[name], left_out[name] = read(judged, options.data, tok, context)
        human[name] = agreement(runs.rows(options.data / f"{judged.file}.jsonl"))
    for fold, name in sorted((fold, name) for name, judged in SETS.items() for fold in range(judged.folds)):
        try:
            done[name].append(one_fold(name, rows[name], fold, base, clock))
        except runs.OutOfTime:
            unfinished += 1
            print(f"{name}, fold {fold}: not finished")
    if unfinished and not options.report:
        return
    numbers = {"parameters": pretrained["parameters"], "context": context, "folds": FOLDS}
    head = HEAD.format(**numbers, rate=TRAIN["learning_rate"], precision=TRAIN["precision"])
    lines = [line(name, folds, human[name]) for name, folds in done.items() if folds]
    lines += [f"| {name} | not run |" + " |" * 7 for name, folds in done.items() if not folds]
    cut = ", ".join(f"{count} of {name}" for name, count in left_out.items())
    lines.append(f"\nToo long for the context or without an untied pair, so left out: {cut}.")
    if unfinished:
        lines.append(f"\nFolds of those asked for that are not run yet: {unfinished}.")
    section("reward_models", head + "\n".join(lines))
