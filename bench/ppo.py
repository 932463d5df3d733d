"""One PPO update, ours beside TRL 1.12 (the last TRL with PPO): size b, prompts of 32, answers of 48, 32 of them.

Both load the same folders: random weights, a vocabulary of 4,096, and prompts of random ids. 4 epochs of 4 minibatches;
policy, reference, reward and value model are four networks of one size. Answers run to their full length.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import harness
from training import checkpoint, device, ppo, vocabulary
from training.config import ModelConfig, PPOConfig
from training.model import GPT, RewardModel
from training.ppo_update import Frozen, Learner, ppo_update
from training.vocabulary import EOS, GPT2_PATTERN, Tokenizer

SIZE = {"n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 256, "vocab_size": 4096}
LARGE = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50_261}
PROMPT, ANSWER, BATCH, EPOCHS, MINIBATCHES = 32, 48, 32, 4, 4
PHASES = ("rollout", "scoring", "update")
NOTES = """
Three quarters of an update are matrix products (torch.profiler, one thread: `mm` 49 %, `addmm` 22 %, `bmm` 4 %). What
made it fast: kernels for what lies between them, bf16, logits and the last block for completion tokens alone (for
scores at the EOS alone), values and scores of all answers in one batch, no pass over the gradients where nothing is
clipped. What did not help or was not worth it: taking the sampler's log-probabilities for the old ones saves a forward
pass, but in bf16 they are up to 0.006 nats off and the first ratio is no longer 1; a bf16 head would put logits of 4 to
8 on steps of 0.03, so only its gradients are bf16; torch.compile wants one width, and answers differ in length.
"""


def tokenizer() -> Tokenizer:
    """4,096 ids: bytes, pairs of bytes, and the four special ones."""
    pairs = [bytes([a, b]) for a in range(32, 127) for b in range(32, 127)][: 4096 - 256 - 4]
    words = [*(bytes([byte]) for byte in range(256)), *pairs]
    return Tokenizer({word: rank for rank, word in enumerate(words)}, GPT2_PATTERN, {EOS: len(words)})


def folders(root: Path, size: dict[str, int] = SIZE) -> None:
    """A policy and a reward model with random weights, as Hugging Face folders."""
    torch.manual_seed(1)
    tok = tokenizer() if size is SIZE else vocabulary.named("gpt2")
    policy = GPT(ModelConfig(**size))
    checkpoint.save_model(root / "policy", policy, tok, "sft", {})
    checkpoint.save_model(root / "reward", RewardModel(policy), tok, "reward", {})


def prompts() -> list[list[int]]:
    return torch.randint(256, 4000, (BATCH * 8, PROMPT), generator=torch.Generator().manual_seed(2)).tolist()


def ours(root: Path, precision: str, rows: str = "32") -> Callable[[], dict[str, Any]]:
    batch = int(rows)
    config = PPOConfig(
        base=str(root / "policy"), reward_model=str(root / "reward"), batch_size=batch, epochs=EPOCHS,
        minibatches=MINIBATCHES, max_new_tokens=ANSWER, learning_rate=1e-6, value_learning_rate=1e-6, updates=1000,
        value_warmup=0, precision=precision,
    )  # fmt: skip
    compute = device.prepare(config)
    policy, tok, _ = checkpoint.load_model(root / "policy")
    ref_policy, _, _ = checkpoint.load_model(root / "policy")
    reward_model, value_model = (checkpoint.load_reward_model(root / "reward")[0] for _ in range(2))
    ref_policy.requires_grad_(False)
    reward_model.requires_grad_(False)
    learner = Learner(
        policy, value_model, ppo._adamw(policy, 1e-6, config), ppo._adamw(value_model, 1e-6, config), config.kl_coef
    )
    frozen = Frozen(ref_policy.eval(), reward_model.eval(), tok, prompts(), compute)
    policy.eval()
    value_model.eval()
    done = 0

    def work() -> dict[str, Any]:
        nonlocal done
        began = time.perf_counter()
        figures, _, _ = ppo_update(learner, frozen, config, done)
        done += 1
        seconds = time.perf_counter() - began
        phases = {name: figures[f"seconds_{name}"] for name in PHASES}
        return {"rate": batch / seconds, "unit": "samples/s", **phases, "gap": figures["sampler_gap"]}

    if batch == BATCH:
        work()  # warms the memory up
    return work


def in_background(train: Callable[[], Any]) -> None:
    """A trainer that dies takes its process along: nobody waits for it."""

    def run() -> None:
        try:
            train()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=run, daemon=True).start()


def trl(root: Path, precision: str) -> Callable[[], dict[str, Any]]:
    """TRL's own train() in a thread, held at the start of each update until the harness says go."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig as Settings
    from trl.experimental.ppo import PPOTrainer, ppo_trainer

    go, over, marks = threading.Semaphore(0), threading.Semaphore(0), list[float]()
    write, forward = ppo_trainer.batch_generation, ppo_trainer.forward

    class Ends(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())
            over.release()

    def rollout(*arguments: Any, **named: Any) -> Any:
        go.acquire()
        marks[:] = [time.perf_counter()]
        written = write(*arguments, **named)
        marks.append(time.perf_counter())
        return written

    def update(model: Any, *arguments: Any) -> Any:
        if len(marks) == 2 and model is trainer.model:
            marks.append(time.perf_counter())
        return forward(model, *arguments)

    ppo_trainer.batch_generation, ppo_trainer.forward = rollout, update
    heads = [
        AutoModelForSequenceClassification.from_pretrained(root / "reward", num_labels=1, dtype=torch.float32)
        for _ in range(2)
    ]
    networks = [AutoModelForCausalLM.from_pretrained(root / "policy", dtype=torch.float32) for _ in range(2)]
    data = Dataset.from_dict({"input_ids": prompts()})
    trainer = PPOTrainer(
        Settings(
            output_dir=str(root / "out"), per_device_train_batch_size=BATCH, gradient_accumulation_steps=1,
            num_mini_batches=MINIBATCHES, num_ppo_epochs=EPOCHS, local_rollout_forward_batch_size=BATCH,
            total_episodes=BATCH * 1000, response_length=ANSWER, temperature=1.0, learning_rate=1e-6,
            num_sample_generations=0, gradient_checkpointing=False, bf16=precision == "bf16", use_cpu=True,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, optim="adamw_torch_fused",
        ),
        AutoTokenizer.from_pretrained(root / "policy"), networks[0], networks[1], heads[0], data, heads[1],
        eval_dataset=data, callbacks=[Ends()],
    )  # fmt: skip
    in_background(trainer.train)

    def work() -> dict[str, Any]:
        go.release()
        over.acquire()
        phases = {name: after - before for name, before, after in zip(PHASES, marks, marks[1:], strict=False)}
        return {"rate": BATCH / (marks[-1] - marks[0]), "unit": "samples/s", **phases}

    work()
    return work


CONTENDERS: dict[str, tuple[str, ...]] = {
    "ours": ("ours", "auto"),
    "TRL PPOTrainer, fp32": ("trl", "fp32"),
    "TRL PPOTrainer, bf16": ("trl", "bf16"),
}


def main(rounds: int = 5) -> None:
    with tempfile.TemporaryDirectory() as root:
        folders(Path(root))
        commands = {name: [sys.executable, "-m", "bench.ppo", root, *what] for name, what in CONTENDERS.items()}
        found = harness.compare(commands, rounds)
        with tempfile.TemporaryDirectory() as large:
            folders(Path(large), LARGE)
            command = [sys.executable, "-m", "bench.ppo", large, "ours", "auto", "4"]
            (memory,) = harness.compare({"124M": command}, 1).values()
    best = max((m.median for name, m in found.items() if name.startswith("TRL")), default=0.0)
    lines = [
        f"### PPO (`python -m bench ppo`)\n\n{(__doc__ or '').strip()}\n",
        f"{harness.machine()}; median (lowest-highest) of {rounds}.\n",
        "| | samples/s | against TRL's better | rollout s | scoring s | update s | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, m in found.items():
        phases = " | ".join(f"{m.extra[phase]:.2f}" if phase in m.extra else "-" for phase in PHASES)
        ratio = f"{m.median / best:.2f}" if best and m.median else "-"
        lines.append(f"| {name} | {m} | {ratio} | {phases} | {m.peak_mib or '-'} |")
    lines.append(
        f"\nGPT-2 124M, four networks, 4 answers an update (4 minibatches of 1): {memory.peak_mib:,} MiB at the peak, "
        f"{memory} samples/s."
    )
    harness.section("ppo", "\n".join([*lines, NOTES]))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        root, who, *how = sys.argv[1:]
        harness.serve(lambda: {"ours": ours, "trl": trl}[who](Path(root), *how))
    else:
        main()
