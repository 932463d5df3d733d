"""Real runs with the engine alone: a tokenizer, a base model and an SFT model on each of three bodies of text.

`python -m bench curves --data DATA_DIR`; with `--seconds 100` it stops after so long and goes on at the next call, as
every stage of the engine can. Plots docs/curves-*.svg and writes the section of docs/results.md.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import runs
from bench.harness import section
from bench.runs import Clock

WORK = Path("var/bench/curves")
MODEL = {"n_layer": 4, "n_embd": 192, "n_head": 4, "n_positions": 384}
PRETRAIN = {"batch_size": 12, "learning_rate": 2e-3, "val_every": 50, "precision": "bf16"}
SFT = {"epochs": 4, "batch_size": 16, "learning_rate": 5e-4, "val_fraction": 0.1, "val_every": 20, "precision": "bf16"}
VOCABULARY = 2048


@dataclass(frozen=True)
class Subject:
    """What one model reads, what it learns to answer, and how its samples begin."""

    title: str
    texts: tuple[str, ...]
    instructions: tuple[str, ...]
    beginning: str
    question: str
    steps: int = 600


SUBJECTS = {
    "english": Subject(
        "English stories",
        ("grimm_en", "oz_alice_en", "tinystories_slice"),
        ("en_short_llms_from_scratch",),
        "Once upon a time",
        "Rewrite the sentence in the past tense.\n\nThe king walks to the river.",
    ),
    "spanish": Subject(
        "Spanish stories",
        ("cuentos_es_cligs", "quijote_es_pg2000_first90"),
        ("es_chatterbot", "es_openstax_estadistica"),
        "Una noche de invierno",
        "¿Qué es la media?",
    ),
    "economics": Subject(
        "Economics and statistics",
        ("economics_en_openstax3e", "estadistica_empresarial_es_openstax"),
        ("en_openstax_economics",),
        "The demand curve",
        "What is inflation?",
        steps=300,
    ),
}


def texts(subject: Subject, data: Path) -> list[Path]:
    return [(data / "pretrain" / f"{name}.txt").resolve() for name in subject.texts]


def train(name: str, data: Path, clock: Clock, work: Path = WORK) -> dict[str, dict[str, Any]]:
    """Results of tokenizer, pretrain and sft; the models lie in WORK/NAME/STAGE/model."""
    subject, folder = SUBJECTS[name], work / name
    files = texts(subject, data)
    tokenizer = {"files": [str(path) for path in files], "vocab_size": VOCABULARY}
    sources = [{"path": str(path), "weight": path.stat().st_size} for path in files]  # every byte is read alike
    results = {"tokenizer": runs.stage("tokenizer", folder / "tokenizer", tokenizer, clock)}
    settings = {"tokenizer": "../tokenizer/model", "sources": sources, **MODEL, "steps": subject.steps, **PRETRAIN}
    results["pretrain"] = runs.stage("pretrain", folder / "pretrain", settings, clock)
    pairs = [row for part in subject.instructions for row in runs.rows(data / "instructions" / f"{part}.jsonl")]
    taught = runs.write_rows(
        folder / "instructions.jsonl", [{key: row[key] for key in ("instruction", "response")} for row in pairs]
    )
    settings = {"base": "../pretrain/model", "data": str(taught.resolve()), **SFT}
    results["sft"] = runs.stage("sft", folder / "sft", settings, clock)
    return results


def samples(name: str, work: Path = WORK, tokens: int = 70) -> dict[str, list[str]]:
    """Two texts of the base model and two answers of the SFT model, sampled at temperature 0.7."""
    from training import chat, checkpoint
    from training.engine import generate

    subject, written = SUBJECTS[name], {}
    for stage, prompt in (("pretrain", subject.beginning), ("sft", subject.question)):
        model, tok, _ = checkpoint.load_model(work / name / stage / "model")
        ids = tok.encode(prompt) if stage == "pretrain" else chat.render_prompt(tok, prompt)
        answers = generate(model.eval(), tok, [ids, ids], [1, 2], max_new_tokens=tokens, temperature=0.7)
        written[stage] = [" ".join(answer.text.split()) for answer in answers]
    return written


def curve(run_dir: Path, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one figure of a run."""
    points = [(row["step"], row[key]) for row in runs.rows(run_dir / "metrics.jsonl") if key in row]
    return [step for step, _ in points], [value for _, value in points]


def pace(run_dir: Path) -> float:
    """Median tokens per second: a run in pieces knows its last piece's only."""
    return statistics.median(curve(run_dir, "tokens_per_s")[1])


def draw(names: Sequence[str], work: Path = WORK) -> None:
    """The loss of every run: docs/curves-pretrain.svg and docs/curves-sft.svg."""
    from bench import plots  # matplotlib is there after `make bench` only

    titles = [SUBJECTS[name].title for name in names]
    for stage, ylabel in (("pretrain", "Loss (nats per token)"), ("sft", "Loss (nats per answer token)")):
        figure, row = plots.panels(len(names), "Optimizer steps", ylabel, titles)
        for name, axes in zip(names, row, strict=True):
            axes.plot(*curve(work / name / stage, "loss"), color=plots.COLOURS[0], label="training batch", linewidth=1)
            axes.plot(*curve(work / name / stage, "val_loss"), color=plots.COLOURS[1], label="held out", marker=".")
        plots.save(figure, f"curves-{stage}")


HEAD = """\
`python -m bench curves --data DATA_DIR`. Each model learns its own byte-level BPE, is pretrained from random
weights on batches of {batch_size} x {context} tokens in {precision}, and is then taught by {epochs} passes over
instructions. Held out are the last 5 % of every file (of the stories: other stories; of the textbooks: later
chapters) and 10 % of the instructions.

| text | MB | bytes/token | parameters | steps | held-out loss | bits per byte | lowest, at step | seconds | tokens/s |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


def report(results: dict[str, dict[str, dict[str, Any]]], data: Path, work: Path = WORK) -> str:
    """The section of docs/results.md."""
    numbers = {"context": MODEL["n_positions"], "epochs": SFT["epochs"], **PRETRAIN}
    lines = HEAD.format(**numbers).splitlines()
    for name, run_of in results.items():
        subject, run = SUBJECTS[name], run_of["pretrain"]
        size = sum(path.stat().st_size for path in texts(subject, data))
        read = sum(run["corpus_tokens"].values())
        steps, losses = curve(work / name / "pretrain", "val_loss")
        lowest, speed = min(losses), pace(work / name / "pretrain")
        seconds = subject.steps * PRETRAIN["batch_size"] * MODEL["n_positions"] / speed
        bits = curve(work / name / "pretrain", "val_bits_per_byte")[1]
        lines.append(
            f"| {subject.title} | {size / 1e6:.1f} | {size / read:.2f} | {run['parameters']:,} | {subject.steps} | "
            f"{losses[0]:.2f} -> "
            f"{run['val_loss']:.2f} | {bits[0]:.2f} -> **{run['val_bits_per_byte']:.2f}** | "
            f"{lowest:.2f}, {steps[losses.index(lowest)]} | {seconds:.0f} | {speed:,.0f} |"
        )
    lines += [
        "",
        "![Pretraining: loss on training batches and on held-out text](curves-pretrain.svg)",
        "",
        "| instructions | rows, held out | steps | held-out loss | lowest, at step |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, run_of in results.items():
        subject, run = SUBJECTS[name], run_of["sft"]
        steps, losses = curve(work / name / "sft", "val_loss")
        lines.append(
            f"| {', '.join(subject.instructions)} | {run['rows']}, {run['val_rows']} | {run['steps']} | "
            f"{losses[0]:.2f} -> **{losses[-1]:.2f}** | {min(losses):.2f}, {steps[losses.index(min(losses))]} |"
        )
    lines += ["", "![SFT: loss on training batches and on held-out answers](curves-sft.svg)", ""]
    lines += ["Two texts of each base model and two answers of each SFT model (temperature 0.7, seeds 1 and 2):", ""]
    for name in results:
        subject, written = SUBJECTS[name], samples(name, work)
        question = " ".join(subject.question.split())
        lines += [f'- **{subject.title}**, after "{subject.beginning}": *{written["pretrain"][0]}*']
        lines += [f"  Again: *{written['pretrain'][1]}*"]
        lines += [f'  Asked "{question}": *{written["sft"][0]}* and *{written["sft"][1]}*']
    missing = [subject.title for name, subject in SUBJECTS.items() if name not in results]
    return "\n".join(lines + ([f"\nNot run: {', '.join(missing)}."] if missing else []))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench curves", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with pretrain/, instructions/"
    )
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long and go on at the next call")
    parser.add_argument("--report", action="store_true", help="write down what is finished, train nothing")
    options = parser.parse_args(arguments)
    clock, results = Clock(1e-9 if options.report else options.seconds), {}
    for name in SUBJECTS:
        try:
            results[name] = train(name, options.data, clock)
        except runs.OutOfTime:
            print(f"{name}: not finished")
    if options.report or len(results) == len(SUBJECTS):
        draw(list(results))
        section("curves", report(results, options.data))
