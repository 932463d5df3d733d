"""Steps of a reward model, ours beside TRL's RewardTrainer: size b, 16 pairs a step, every answer 128 tokens long.

Both load the same folder with random weights and learn the same pairs of random ids.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.ppo import folders, in_background
from training import checkpoint, device, optim, reward
from training.config import RewardConfig
from training.rankings import Ranking

PAIRS, LENGTH, STEPS = 16, 128, 4  # pairs a step; tokens; steps per measured piece of work


def answers(eos_id: int) -> list[tuple[list[int], list[int]]]:
    """(chosen, rejected): a prompt of 32 tokens in common, then random ids and EOS."""
    drawn = torch.randint(256, 4000, (PAIRS * STEPS, 2, LENGTH), generator=torch.Generator().manual_seed(3))
    drawn[:, 1, :32] = drawn[:, 0, :32]
    drawn[:, :, -1] = eos_id
    return [(chosen, rejected) for chosen, rejected in drawn.tolist()]


def ours(root: Path, precision: str) -> Callable[[], dict[str, Any]]:
    config = RewardConfig(base=str(root / "reward"), batch_size=PAIRS, learning_rate=1e-5, precision=precision)
    compute = device.prepare(config)
    model, tok, _ = checkpoint.load_reward_model(root / "reward")
    model.eval()
    optimizer = optim.adamw(model, config.learning_rate)
    rankings = [Ranking("", ["a", "b"], list(pair), [96, 96], [[0], [1]]) for pair in answers(tok.eos_id)]

    def work() -> dict[str, Any]:
        began = time.perf_counter()
        for step in range(STEPS):
            batch = rankings[step * PAIRS : (step + 1) * PAIRS]
            reward._step(config, model, optimizer, batch, tok, compute)
        return {"rate": PAIRS * STEPS / (time.perf_counter() - began), "unit": "pairs/s"}

    work()
    return work


def trl(root: Path, precision: str, compile: str) -> Callable[[], dict[str, Any]]:
    """TRL's own train() in a thread, held before every measured piece of work until the harness says go."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl import RewardConfig as Settings
    from trl import RewardTrainer

    go, over = threading.Semaphore(0), threading.Semaphore(0)

    class Gate(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step % STEPS == 0:
                go.acquire()

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step % STEPS == 0:
                over.release()

    tok = AutoTokenizer.from_pretrained(root / "reward")
    rows = [{"chosen_ids": one, "rejected_ids": other} for one, other in answers(tok.eos_token_id)]
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(root / "reward", num_labels=1, dtype=torch.float32),
        args=Settings(
            output_dir=str(root / "out"), per_device_train_batch_size=PAIRS, max_steps=10_000, learning_rate=1e-5,
            max_length=None, bf16=precision == "bf16", torch_compile=compile == "on", gradient_checkpointing=False,
            optim="adamw_torch_fused", use_cpu=True, save_strategy="no", logging_strategy="no", report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows), processing_class=tok, callbacks=[Gate()],
    )  # fmt: skip
    in_background(trainer.train)

    def work() -> dict[str, Any]:
        began = time.perf_counter()
        go.release()
        over.acquire()
        return {"rate": PAIRS * STEPS / (time.perf_counter() - began), "unit": "pairs/s"}

    work()
    work()
    return work


CONTENDERS: dict[str, tuple[str, ...]] = {
    "ours": ("ours", "auto"),
    "ours, fp32": ("ours", "fp32"),
    "TRL RewardTrainer, fp32": ("trl", "fp32", "off"),
    "TRL RewardTrainer, bf16 + compile": ("trl", "bf16", "on"),
}


def main(rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory() as root:
        folders(Path(root))
        commands = {name: [sys.executable, "-m", "bench.reward", root, *what] for name, what in CONTENDERS.items()}
        found = harness.compare(commands, rounds)
    best = max((m.median for name, m in found.items() if name.startswith("TRL")), default=0.0)
    lines = [
        f"### Reward model (`python -m bench reward`)\n\n{(__doc__ or '').strip()}\n",
        f"{harness.machine()}; median (lowest-highest) of {rounds}.\n",
        "| | pairs/s | against TRL's best | peak MiB |\n| --- | ---: | ---: | ---: |",
    ]
    for name, m in found.items():
        ratio = f"{m.median / best:.2f}" if best and m.median else "-"
        lines.append(f"| {name} | {m} | {ratio} | {m.peak_mib or '-'} |")
    lines.append(
        "\nA score is read at the EOS alone, so the last block's products behind the attention are taken for one token "
        "an answer: an eighth of the work of six blocks. The head is fp32 in both formats."
    )
    harness.section("reward", "\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        root, who, *how = sys.argv[1:]
        harness.serve(lambda: {"ours": ours, "trl": trl}[who](Path(root), *how))
    else:
        main()
