"""One GPU against the marks of the field: pretraining and its MFU, decoding, a PPO update in its parts, DDP.

Pretraining: 124M at context 1,024 in bf16, compiled; llm.c's 460 k tokens/s and 40 % on an H100 are the mark. Decoding:
the same weights in bf16 at 1, 8, 64 and 256 rows of 64 + 128 tokens beside transformers' generate. `--dry` runs every
path on a CPU at tiny sizes, which says that the code runs and nothing about speed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench import harness
from training import checkpoint, device, optim, ppo
from training.config import ModelConfig, PPOConfig
from training.engine import generate
from training.model import GPT, RewardModel, parameter_count
from training.ppo_update import Frozen, Learner, ppo_update
from training.pretrain import token_loss
from training.vocabulary import EOS, GPT2_PATTERN, Tokenizer, named

H100 = 989e12  # bf16 operations/s of the dense tensor cores; 1,979 is the figure with 2:4 sparsity


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how large."""

    model: ModelConfig
    batch: int  # rows of one pretraining step
    steps: int
    decode: tuple[int, ...]  # rows
    prompt: int
    new: int
    answers: int  # of one PPO update
    repeats: int


GPT2 = ModelConfig(vocab_size=50_304, n_positions=1024, n_embd=768, n_layer=12, n_head=12)  # ids rounded up to 128
REAL = Sizes(GPT2, 64, 20, (1, 8, 64, 256), 64, 128, 128, 5)
DRY = Sizes(replace(GPT2, vocab_size=260, n_positions=32, n_embd=32, n_layer=2, n_head=2), 2, 2, (1, 3), 8, 6, 4, 1)


def flops_per_token(config: ModelConfig, parameters: int) -> float:
    """Operations of forward and backward for one token of a full context: 6N + 12LHQT (Chowdhery et al. 2022, B).

    N counts the weights that are multiplied with, so the position embeddings are left out; L blocks, H heads of width
    Q, T tokens of context.
    """
    multiplied = parameters - (config.n_positions * config.n_embd if config.positions == "learned" else 0)
    width = config.n_embd // config.n_head
    return 6 * multiplied + 12 * config.n_layer * config.n_head * width * config.n_positions


def pretraining(sizes: Sizes, where: torch.device) -> tuple[float, float]:
    """Tokens/s and MFU of a training step, compiled on a GPU."""
    torch.set_float32_matmul_precision("high")
    model = GPT(sizes.model).to(where).train()
    compute = device.Compute(where, bf16=True, compile="on" if where.type == "cuda" else "off")
    step = compute.compiled(token_loss, float("inf"))
    optimizer = optim.adamw(model, 6e-4, 0.1, 0.95)
    ids = torch.randint(sizes.model.vocab_size, (sizes.batch, sizes.model.n_positions + 1), device=where)

    def work() -> int:
        for _ in range(sizes.steps):
            loss = step(model, ids[:, :-1], ids[:, 1:], compute) / ids[:, 1:].numel()
            loss.backward()
            optim.clip(model, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return sizes.steps * ids[:, 1:].numel()

    speed = _median(work, sizes.repeats, where)
    return speed, speed * flops_per_token(sizes.model, parameter_count(model)) / H100


def decoding(sizes: Sizes, where: torch.device, root: Path) -> dict[int, tuple[float, float]]:
    """New tokens/s by rows: ours, sampling with log-probabilities, and transformers, greedy."""
    from transformers import AutoModelForCausalLM

    model, tok, _ = checkpoint.load_model(root / "policy", where)
    tok.eos_id = -1  # nothing ends a text early
    peer = AutoModelForCausalLM.from_pretrained(root / "policy", dtype=torch.bfloat16).to(where).eval()
    compute = device.Compute(where, bf16=True)
    found = {}
    for rows in sizes.decode:
        prompts = torch.randint(256, (rows, sizes.prompt))

        def ours(prompts: torch.Tensor = prompts, rows: int = rows) -> int:
            generate(
                model, tok, prompts.tolist(), range(rows), max_new_tokens=sizes.new, max_batch=rows, compute=compute
            )
            return rows * sizes.new

        @torch.inference_mode()
        def theirs(prompts: torch.Tensor = prompts, rows: int = rows) -> int:
            ids = prompts.to(where)
            peer.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=sizes.new, min_new_tokens=sizes.new,
                do_sample=False, use_cache=True, pad_token_id=0,
            )  # fmt: skip
            return rows * sizes.new

        found[rows] = _median(ours, sizes.repeats, where), _median(theirs, sizes.repeats, where)
    return found


def ppo_parts(sizes: Sizes, where: torch.device, root: Path) -> dict[str, float]:
    """Seconds of rollout, scoring and update of one PPO update, the second one; the first one warms up."""
    config = PPOConfig(
        base="policy", reward_model="reward", batch_size=sizes.answers, epochs=4, minibatches=4, updates=1000,
        max_new_tokens=sizes.new, learning_rate=1e-6, value_learning_rate=1e-6, value_warmup=0, precision="bf16",
    )  # fmt: skip
    policy, tok, _ = checkpoint.load_model(root / "policy", where)
    ref_policy, _, _ = checkpoint.load_model(root / "policy", where)
    reward_model, value_model = (checkpoint.load_reward_model(root / "reward", where)[0] for _ in range(2))
    learner = Learner(
        policy, value_model, ppo._adamw(policy, 1e-6, config), ppo._adamw(value_model, 1e-6, config), config.kl_coef
    )
    prompts = torch.randint(256, (sizes.answers, sizes.prompt)).tolist()
    frozen = Frozen(ref_policy.eval(), reward_model.eval(), tok, prompts, device.Compute(where, bf16=True))
    figures: dict[str, float] = {}
    for update in range(2):
        figures, _, _ = ppo_update(learner, frozen, config, update)
    return {name: figures[f"seconds_{name}"] for name in ("rollout", "scoring", "update")}


def ddp(sizes: Sizes, dry: bool) -> tuple[int, float]:
    """Processes and their tokens/s together, one process a device; two on a CPU in a dry run."""
    ranks = 2 if dry else torch.cuda.device_count()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", "bench.gpu", "--rank", *(["--dry"] if dry else [])]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return ranks, float(done.stdout.strip().splitlines()[-1])


def _rank(sizes: Sizes) -> None:
    """One process of `ddp`: the training step under DistributedDataParallel; the first one prints the speed of all."""
    cuda = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    where = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(where)
    model = torch.nn.parallel.DistributedDataParallel(_Loss(GPT(sizes.model)).to(where))
    step = torch.compile(model) if cuda else model
    optimizer = optim.adamw(model, 6e-4, 0.1, 0.95)
    ids = torch.randint(sizes.model.vocab_size, (sizes.batch, sizes.model.n_positions + 1), device=where)

    def work() -> int:
        for _ in range(sizes.steps):
            step(ids).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return ranks * sizes.steps * ids[:, 1:].numel()

    speed = _median(work, sizes.repeats, where)
    if rank == 0:
        print(speed, flush=True)
    torch.distributed.destroy_process_group()


class _Loss(torch.nn.Module):
    """The mean loss as a module: what DistributedDataParallel wraps."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        compute = device.Compute(ids.device, bf16=True)
        return token_loss(self.model, ids[:, :-1], ids[:, 1:], compute) / ids[:, 1:].numel()


def _median(work: Callable[[], int], repeats: int, where: torch.device) -> float:
    """Median tokens/s of `work`, which answers how many tokens it did, after one round to warm up."""
    speeds = []
    for number in range(repeats + 1):
        began = time.perf_counter()
        tokens = work()
        if where.type == "cuda":
            torch.cuda.synchronize()
        if number:
            speeds.append(tokens / (time.perf_counter() - began))
    return sorted(speeds)[len(speeds) // 2]


def measure(sizes: Sizes, where: torch.device, dry: bool) -> str:
    """The section's markdown."""
    speed, mfu = pretraining(sizes, where)
    lines = ["| work | |", "| --- | ---: |", f"| pretraining, tokens/s | {speed:,.0f} |", f"| its MFU | {mfu:.1%} |"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _save(root, sizes.model)
        for rows, (ours, theirs) in decoding(sizes, where, root).items():
            lines.append(
                f"| decoding, {rows} rows, new tokens/s; transformers; ratio "
                f"| {ours:,.0f}; {theirs:,.0f}; {ours / theirs:.1f} |"
            )
        for name, seconds in ppo_parts(sizes, where, root).items():
            lines.append(f"| PPO, {sizes.answers} answers, seconds of {name} | {seconds:.2f} |")
    ranks, together = ddp(sizes, dry)
    lines.append(f"| DDP, {ranks} processes, tokens/s together; per process against one | ")
    lines[-1] += f"{together:,.0f}; {together / ranks / speed:.2f} |"
    return "\n".join(lines)


def _save(root: Path, config: ModelConfig) -> None:
    small = Tokenizer({bytes([byte]): byte for byte in range(256)}, GPT2_PATTERN, {EOS: 256})
    tok = small if config.vocab_size == small.vocab_size else named("gpt2")
    policy = GPT(replace(config, vocab_size=tok.vocab_size))
    checkpoint.save_model(root / "policy", policy, tok, "sft", {})
    checkpoint.save_model(root / "reward", RewardModel(policy), tok, "reward", {})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="every path on the CPU at tiny sizes; writes nothing")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments or [])
    sizes = DRY if options.dry else REAL
    if options.rank:
        _rank(sizes)
    elif options.dry:
        print(measure(sizes, torch.device("cpu"), dry=True))
    elif not torch.cuda.is_available():
        print("not run: no CUDA device")
    else:
        name = torch.cuda.get_device_name()
        table = measure(sizes, torch.device("cuda"), dry=False)
        harness.section("gpu", f"`make bench-gpu`; {name}, torch {torch.__version__}.\n\n{table}")


if __name__ == "__main__":
    main(sys.argv[1:])
