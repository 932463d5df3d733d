"""Random walks, trlX's first benchmark: shortest paths learned from random ones. PPO beside REINFORCE and no RL at all.

A directed graph of 21 nodes, the first of them the goal; 1,000 random walks of at most 10 nodes are demonstrations.
The reward of a walk is its optimality: (10 - its nodes) / (10 - nodes of the shortest path), and 0 where it takes an
edge that is not there or does not arrive.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from bench import harness
from training import checkpoint, ppo, sft
from training.config import ModelConfig, PPOConfig, SFTConfig
from training.model import GPT
from training.report import Report
from training.vocabulary import EOS, GPT2_PATTERN, Tokenizer

NODES, LONGEST, WALKS, EDGES = "abcdefghijklmnopqrstu", 10, 1000, 0.1
GOAL = NODES[0]
MODEL = {"n_positions": 16, "n_embd": 64, "n_layer": 3, "n_head": 4}
# trlX: learning rate 3e-4, 128 answers an update, 4 epochs, no price of KL.
RL = {
    "reward_model": "", "batch_size": 128, "updates": 100, "epochs": 4, "minibatches": 1, "learning_rate": 1e-3,
    "value_learning_rate": 1e-3, "kl_coef": 0.0, "value_warmup": 1, "max_new_tokens": LONGEST + 1,
    "missing_eos_penalty": 0.0, "sample_every": 0, "checkpoint_every": 1000,
}  # fmt: skip
# One step on the policy's own fresh answers, whole rewards, no value model (its head stays at 0): REINFORCE, whitened.
REINFORCE = RL | {"epochs": 1, "value_learning_rate": 0.0, "lam": 1.0, "value_warmup": 0}


HEAD = f"""### Random walks (`python -m bench walks`)

{(__doc__ or "").strip()}
Both take {RL["updates"]} updates of {RL["batch_size"]} sampled walks. The figure is the mean optimality of what the
last five updates sampled; of SFT, of what the first one did.

| seed | SFT alone | REINFORCE | PPO |
| --- | ---: | ---: | ---: |"""


@dataclass(frozen=True)
class Graph:
    edges: dict[str, list[str]]
    shortest: dict[str, int]  # nodes on the shortest path to the goal, both ends counted

    def walks(self, n: int, seed: int) -> list[str]:
        """Random walks from every node but the goal, until they arrive or grow too long."""
        draw, found = random.Random(seed), []
        for _ in range(n):
            walk = draw.choice(NODES[1:])
            while walk[-1] != GOAL and len(walk) < LONGEST:
                walk += draw.choice(self.edges[walk[-1]])
            found.append(walk)
        return found

    def optimality(self, walk: str) -> float:
        steps_exist = all(b in self.edges.get(a, []) for a, b in pairwise(walk))
        if walk[-1] != GOAL or GOAL in walk[:-1] or len(walk) > LONGEST or not steps_exist:
            return 0.0
        return (LONGEST - len(walk)) / (LONGEST - self.shortest[walk[0]])

    def score(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [self.optimality(start + rest) for start, rest in zip(prompts, completions, strict=True)]


def graph(seed: int) -> Graph:
    """Every node has two edges at least, and a way to the goal that is shorter than the longest walk."""
    draw = random.Random(seed)
    while True:
        edges = {node: [other for other in NODES if other != node and draw.random() < EDGES] for node in NODES}
        for node, ends in edges.items():
            while len(ends) < 2:
                ends.append(draw.choice([other for other in NODES if other not in (node, *ends)]))
        shortest = _distances(edges)
        if len(shortest) == len(NODES) and max(shortest.values()) < LONGEST:
            return Graph(edges, shortest)


def _distances(edges: dict[str, list[str]]) -> dict[str, int]:
    nodes, reached = {GOAL: 1}, [GOAL]
    while reached:
        reached = [node for node in NODES if node not in nodes and set(edges[node]) & set(reached)]
        nodes |= dict.fromkeys(reached, max(nodes.values()) + 1)
    return nodes


def train(folder: Path, seed: int) -> dict[str, float]:
    """Mean optimality of sampled answers: after SFT on the walks alone, then with REINFORCE and with PPO."""
    world = graph(seed)
    walks = world.walks(WALKS, seed)
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, GPT2_PATTERN, {EOS: 256})
    torch.manual_seed(seed)
    checkpoint.save_model(
        folder / "base", GPT(ModelConfig(vocab_size=tokenizer.vocab_size, **MODEL)), tokenizer, "base", {}
    )
    _write(folder / "sft", [{"instruction": walk[0], "response": walk[1:]} for walk in walks])
    sft.run(
        SFTConfig(base=str(folder / "base"), batch_size=50, epochs=10, learning_rate=2e-3, sample_every=0, seed=seed),
        folder / "sft", Report(folder / "sft"),
    )  # fmt: skip
    shares = {}
    for name, settings in (("REINFORCE", REINFORCE), ("PPO", RL)):
        _write(folder / name, [{"prompt": node} for node in NODES[1:]])
        config = PPOConfig(base=str(folder / "sft" / "model"), prompts="data/train.jsonl", seed=seed, **settings)
        result = ppo.run(config, folder / name, Report(folder / name), world.score)
        shares |= {"SFT": result["score_before"], name: result["score"]}
    return shares


def _write(run_dir: Path, rows: list[dict[str, str]]) -> None:
    (run_dir / "data").mkdir(parents=True)
    (run_dir / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    rows = []
    for seed in (1, 2, 3, 4):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(train(Path(folder), seed))
        print(f"  seed {seed}: {rows[-1]}", file=sys.stderr, flush=True)
    names = ("SFT", "REINFORCE", "PPO")
    lines = [f"| {n} | {' | '.join(f'{row[name]:.3f}' for name in names)} |" for n, row in enumerate(rows, start=1)]
    means = " | ".join(f"{statistics.fmean(row[name] for row in rows):.3f}" for name in names)
    harness.section("walks", "\n".join([HEAD, *lines, f"| mean | {means} |"]))


if __name__ == "__main__":
    main()
