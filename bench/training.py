"""Training steps: ours, nanoGPT's and transformers', in turns. `make bench ARGS="training"`, or --size a while working.

nanoGPT is no package: NANOGPT names a checkout (a folder with its model.py). Weights and tokens are random, which takes
the same time.
"""

import argparse
import contextlib
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench import harness
from bench.harness import NotRun
from training import device, optim
from training.config import ModelConfig, PretrainConfig
from training.model import GPT
from training.pretrain import token_loss

# Numbers of the model, rows per step, steps per round.
SIZES: dict[str, tuple[dict[str, int], int, int]] = {
    "a": ({"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 128, "vocab_size": 1024}, 32, 5),
    "b": ({"n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 256, "vocab_size": 4096}, 16, 2),
    "c": ({"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 256, "vocab_size": 50257}, 4, 1),
}
NAMES = {
    "ours": "ours, bf16",
    "ours_fp32": "ours, fp32",
    "nanogpt": "nanoGPT as shipped (fp32)",
    "nanogpt_fast": "nanoGPT, bf16 + compile",
    "transformers": "transformers, bf16 + compile",
    "fastest": "the fastest setting found: nanoGPT, bf16 + compile, explicit softmax(QK)V, fused AdamW",
    "fastest_malloc": "the same with our setting of the allocator",
}
USUAL = [name for name in NAMES if name != "nanogpt_fast"]  # SDPA is slower here than explicit products
Step = Callable[[torch.Tensor, torch.Tensor], None]


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--only", choices=NAMES, nargs="+", default=USUAL)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="where our step's time goes, and nothing else")
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    options = parser.parse_args(list(arguments))
    if options.child:
        harness.serve(lambda: _work(options.child, options.size[0]))
        return
    if options.profile:
        harness.section("training-profile", profile(options.size))
        return
    for size in options.size:
        command = [sys.executable, "-m", "bench.training", "--size", size, "--child"]
        found = harness.compare({name: [*command, name] for name in options.only}, options.rounds)
        text = _table(size, found)
        print(text)
        harness.section(f"training-{size}", text)
    if len(options.size) == len(SIZES):
        harness.section("training-profile", profile(options.size))


# Where a step's time goes: events of torch's profiler by the part they belong to; what is not named is "the rest".
SHARES = {
    "products of weights": ("aten::mm", "aten::addmm"),
    "products of attention": ("aten::bmm", "aten::baddbmm"),
    "softmax, heads apart and together": ("_Attention", "_AttentionBackward", "aten::_softmax"),
    "GELU": ("_Gelu", "_GeluBackward", "aten::gelu", "aten::gelu_backward", "aten::mul"),
    "LayerNorm and residual": ("_AddNorm", "_AddNormBackward", "aten::native_layer_norm"),
    "cross entropy": ("_CrossEntropy", "_CrossEntropyBackward", "aten::_log_softmax"),
    "casts and copies": ("aten::copy_", "aten::_to_copy", "aten::fill_", "aten::zero_"),
    "AdamW and clipping": ("aten::_fused_adamw_", "Optimizer.step#AdamW.step", "aten::_foreach_norm", "aten::mul_"),
}


def profile(sizes: Sequence[str]) -> str:
    """A table of shares of our step, by size."""
    columns = {size: _shares(size) for size in sizes}
    lines = ["| part of the step | " + " | ".join(sizes) + " |", "| --- |" + " ---: |" * len(sizes)]
    for part in (*SHARES, "the rest"):
        lines.append(f"| {part} | " + " | ".join(f"{columns[size][part]:.1%}" for size in sizes) + " |")
    return "\n".join(lines)


def _shares(size: str) -> dict[str, float]:
    numbers, rows, steps = SIZES[size]
    step = _ours("ours", numbers)
    tokens = torch.randint(numbers["vocab_size"], (rows, numbers["n_positions"] + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    step(x, y)
    step(x, y)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            step(x, y)
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(times.values())
    shares = {part: sum(times.get(name, 0.0) for name in names) / total for part, names in SHARES.items()}
    return {**shares, "the rest": 1 - sum(shares.values())}


def flops_per_token(numbers: dict[str, int]) -> int:
    """6 N + 12 L T d: forward and backward products of N weights in matrices, and of attention (all T x T of it)."""
    layers, width, time = numbers["n_layer"], numbers["n_embd"], numbers["n_positions"]
    return 6 * (12 * layers * width**2 + numbers["vocab_size"] * width) + 12 * layers * time * width


def _table(size: str, found: dict[str, harness.Measured]) -> str:
    numbers, rows, _ = SIZES[size]
    speed = found["ours"].extra.get("matmul", 0.0) if "ours" in found else 0.0
    ours = found["ours"].median if "ours" in found else 0.0
    lines = [
        f"Size {size}: width {numbers['n_embd']}, {numbers['n_layer']} layers, context {numbers['n_positions']}, "
        f"vocabulary {numbers['vocab_size']:,}, {rows} rows a step. {harness.machine()}, torch {torch.__version__}; "
        f"one large bf16 product runs at {speed:,.0f} GFLOP/s.",
        "",
        "| training step | tokens/s (lowest-highest) | GFLOP/s | share of matrix speed | peak MiB | ours is |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in found.items():
        if one.reason:
            lines.append(f"| {NAMES[name]} | {one} | | | | |")
            continue
        rate = one.median * flops_per_token(numbers) / 1e9
        share = f"{rate / speed:.0%}" if speed else ""
        times = f"{ours / one.median:.2f} x" if ours and name != "ours" else ""
        lines.append(f"| {NAMES[name]} | {one} | {rate:,.0f} | {share} | {one.peak_mib:,} | {times} |")
    return "\n".join(lines)


def _work(name: str, size: str) -> Callable[[], dict[str, Any]]:
    """A contender's piece of work: some steps, after enough of them to have compiled and settled."""
    numbers, rows, steps = SIZES[size]
    torch.manual_seed(1)
    tokens = torch.randint(numbers["vocab_size"], (rows, numbers["n_positions"] + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if name == "fastest_malloc":
        device.keep_memory()
    setups = {"ours": _ours, "transformers": _transformers}
    step = setups.get(name.removesuffix("_fp32"), _nanogpt)(name, numbers)
    for _ in range(3):
        step(x, y)
    products = list[float]()

    def work() -> dict[str, Any]:
        began = time.perf_counter()
        for _ in range(steps):
            step(x, y)
        rate = steps * x.numel() / (time.perf_counter() - began)
        if name == "ours":
            products.append(matmul_speed())
        return {"rate": rate, "unit": "tokens/s", "matmul": statistics.median(products or [0.0])}

    return work


def matmul_speed(side: int = 2048) -> float:
    """GFLOP/s of one bf16 product of two square matrices: what the chip can do."""
    one, other = torch.randn(2, side, side).bfloat16()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        one @ other
        times.append(time.perf_counter() - began)
    return 2 * side**3 / statistics.median(times) / 1e9


def _ours(name: str, numbers: dict[str, int]) -> Step:
    precision = "fp32" if name.endswith("fp32") else "auto"
    compute = device.prepare(PretrainConfig(sources=[{"path": "none"}], precision=precision))
    model = GPT(ModelConfig(**numbers)).train()
    optimizer = optim.adamw(model, 1e-4, 0.1)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        (token_loss(model, x, y, compute) / y.numel()).backward()
        optim.clip(model, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _nanogpt(name: str, numbers: dict[str, int]) -> Step:
    """nanoGPT's own model and optimizer, and its train.py's step."""
    module = _module()
    sizes = {("block_size" if key == "n_positions" else key): value for key, value in numbers.items()}
    model = module.GPT(module.GPTConfig(**sizes, bias=True, dropout=0.0)).train()
    if name.startswith("fastest"):
        time_ = numbers["n_positions"]
        for block in model.transformer.h:  # its own second way of attention
            block.attn.flash = False
            block.attn.register_buffer("bias", torch.ones(time_, time_).tril().view(1, 1, time_, time_))
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), "cpu")
    if name.startswith("fastest"):
        groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in optimizer.param_groups]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
    plain = name == "nanogpt"
    return _step(model if plain else torch.compile(model), lambda m, x, y: m(x, y)[1], optimizer, bf16=not plain)


def _module() -> ModuleType:
    folder = os.environ.get("NANOGPT")
    if not folder:
        raise NotRun("set NANOGPT to a checkout of nanoGPT")
    path = Path(folder) / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise NotRun("NANOGPT holds no model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _transformers(name: str, numbers: dict[str, int]) -> Step:
    from transformers import GPT2Config, GPT2LMHeadModel

    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**numbers, **drop, use_cache=False)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)

    def loss(m: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = m(input_ids=x).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())

    return _step(torch.compile(model), loss, optimizer, bf16=True)


def _step(model: Any, loss: Callable[..., torch.Tensor], optimizer: torch.optim.Optimizer, bf16: bool) -> Step:
    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
            value = loss(model, x, y)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main(sys.argv[1:])
