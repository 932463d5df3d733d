"""The world of bench/overoptimisation.py: a taste that no model sees, a policy, reward models of comparisons."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training import checkpoint, reward, sft
from training.chat import render_example, render_prompt
from training.config import ModelConfig, RewardConfig, SFTConfig
from training.device import Compute
from training.engine import generate
from training.model import GPT, RewardModel
from training.report import Report
from training.rollout import generator
from training.vocabulary import EOS, GPT2_PATTERN, Tokenizer

GOODS, LONGEST = "abcdefgh", 14
CPU = Compute(torch.device("cpu"), bf16=False)
TOKENIZER = Tokenizer({good.encode(): i for i, good in enumerate(GOODS)}, GPT2_PATTERN, {EOS: len(GOODS)})
MODEL = {"n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
FEW, MANY = 200, 2000  # comparisons that a proxy learns from
SHOWN = 8000  # comparisons that a judge learns from
NOISE = 0.7  # of people: spreads of utility at which a choice is e : 1
Row = dict[str, Any]


@dataclass(frozen=True)
class Taste:
    """values (G, G): what good g is worth to whoever asks with good p; mean and spread put answers on a scale."""

    values: np.ndarray
    mean: float = 0.0
    spread: float = 1.0

    @staticmethod
    def of(seed: int, common: float = 0.8) -> Taste:
        draw = generator(seed, 1)
        shared, own = draw.normal(size=(1, len(GOODS))), draw.normal(size=(len(GOODS), len(GOODS)))
        return Taste(common * shared + math.sqrt(1 - common**2) * own)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """(N,) utilities."""
        counts = np.array([[answer.count(good) for good in GOODS] for answer in answers])  # (N, G)
        values = self.values[[GOODS.index(prompt) for prompt in prompts]]
        enough = np.where(counts <= 2, counts, 2 - 0.5 * np.maximum(counts - 3, 0))
        return (np.where(values > 0, values * enough, values * counts).sum(1) - self.mean) / self.spread


def reference(folder: Path, seed: int) -> Path:
    """A policy that learned to write goods in a row: which one follows which, and often the same again."""
    torch.manual_seed(seed)
    network = GPT(ModelConfig(vocab_size=TOKENIZER.vocab_size, **MODEL))
    checkpoint.save_model(folder / "base", network, TOKENIZER, "base", {})
    draw = generator(seed, 2)
    follows = 0.7 * draw.dirichlet(np.ones(len(GOODS)), size=len(GOODS)) + 0.3 * np.eye(len(GOODS))
    rows = []
    for _ in range(4000):
        text = [int(draw.integers(len(GOODS)))]
        for _ in range(int(draw.integers(6, 13))):
            text.append(int(draw.choice(len(GOODS), p=follows[text[-1]])))
        written = "".join(GOODS[i] for i in text)
        rows.append({"instruction": written[0], "response": written[1:]})
    write_rows(folder / "sft" / "data" / "train.jsonl", rows)
    config = SFTConfig(
        base=str(folder / "base"), epochs=2, batch_size=64, learning_rate=3e-3, sample_every=0, seed=seed, device="cpu"
    )
    sft.run(config, folder / "sft", Report(folder / "sft"))
    return folder / "sft" / "model"


def write(policy: GPT, prompts: Sequence[str], seed: int) -> list[str]:
    """One answer per prompt, sampled unfiltered."""
    answers = list[str]()
    for start in range(0, len(prompts), 1024):
        part = prompts[start : start + 1024]
        seeds = generator(seed, 3, start).integers(2**62, size=len(part)).tolist()
        ids = [render_prompt(TOKENIZER, prompt) for prompt in part]
        requests = generate(
            policy, TOKENIZER, ids, seeds, max_new_tokens=LONGEST, temperature=1.0, max_batch=len(part), compute=CPU
        )
        answers += [request.text for request in requests]
    return answers


def compared(policy: GPT, taste: Taste, n: int, seed: int) -> list[Row]:
    """n pairs of a policy's answers, ranked."""
    asked = [GOODS[i] for i in generator(seed, 4).integers(len(GOODS), size=n)]
    answers = write(policy, [prompt for prompt in asked for _ in range(2)], seed)
    return ranked(asked, [answers[2 * i : 2 * i + 2] for i in range(n)], taste, seed)


def ranked(prompts: Sequence[str], pairs: Sequence[Sequence[str]], taste: Taste, seed: int) -> list[Row]:
    """Rankings with the probability that Bradley and Terry give to the utilities."""
    first, second = (taste(prompts, [pair[place] for pair in pairs]) for place in (0, 1))
    wins = generator(seed, 6).random(len(pairs)) < 1 / (1 + np.exp((second - first) / NOISE))
    return [
        {"prompt": prompt, "responses": list(pair), "ranking": [0, 1] if won else [1, 0]}
        for prompt, pair, won in zip(prompts, pairs, wins, strict=True)
    ]


def reward_model(
    folder: Path, base: Path, rows: list[Row], held_out: list[Row], epochs: int, learning_rate: float
) -> dict[str, Any]:
    """The result of the stage; the model lies in folder/model."""
    write_rows(folder / "data" / "train.jsonl", rows)
    write_rows(folder / "data" / "val.jsonl", held_out)
    config = RewardConfig(
        base=str(base), val="data/val.jsonl", epochs=epochs, batch_size=16, learning_rate=learning_rate, device="cpu"
    )
    return reward.run(config, folder, Report(folder))


def train_proxy(folder: Path, base: Path, rows: list[Row], held_out: list[Row]) -> dict[str, Any]:
    return reward_model(folder, base, rows, held_out, epochs=4 if len(rows) < 1000 else 2, learning_rate=2e-3)


def train_judge(folder: Path, base: Path, rows: list[Row], held_out: list[Row]) -> dict[str, Any]:
    """Smaller steps and more passes than a proxy's: chosen on seeds 1, 2, 11 and 13."""
    return reward_model(folder, base, rows, held_out, epochs=4, learning_rate=1e-3)


def load(path: Path) -> tuple[RewardModel, float]:
    """A reward model and the spread of its scores."""
    model, _, card = checkpoint.load_reward_model(path)
    return model.eval(), float(card["reward_std"])


def rewards(model: RewardModel, spread: float, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    examples = [render_example(TOKENIZER, *pair)[0] for pair in zip(prompts, answers, strict=True)]
    return [score / spread for score in reward.score_all(model, examples, TOKENIZER.pad_id, CPU)]


def world(folder: Path, seed: int, sizes: Sequence[int] = (FEW, MANY)) -> tuple[Path, Taste, dict[int, float]]:
    """Reference, taste, and under folder the proxies of these sizes and a judge of answers of the reference.

    Returned with the proxies' accuracies on held-out pairs.
    """
    base = reference(folder, seed)
    policy = checkpoint.load_model(base)[0].eval()
    prompts = list(GOODS) * 256
    raw = Taste.of(seed)
    first = raw(prompts, write(policy, prompts, seed + 1))
    taste = Taste(raw.values, float(first.mean()), float(first.std()))
    held_out = compared(policy, taste, 1000, 100 * seed + 1)
    train_judge(folder / "blind", base, compared(policy, taste, SHOWN, 100 * seed + 2), held_out)
    found = {}
    for n in sizes:
        rows = compared(policy, taste, n, 100 * seed + n)
        found[n] = train_proxy(folder / f"proxy-{n}", base, rows, held_out)["val_accuracy"]
    return base, taste, found


def write_rows(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
