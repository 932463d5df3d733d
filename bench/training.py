"""Speed of the engine on this machine: training steps and generation, medians of five. `make bench ARGS="--size a"`.

Reads nothing and leaves nothing: weights and tokens are random, which takes the same time.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from training import device, optim
from training.config import ModelConfig, PretrainConfig
from training.engine import Engine, Request
from training.model import GPT, parameter_count
from training.pretrain import token_loss
from training.vocabulary import named

SIZES = {
    "a": ({"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 128, "vocab_size": 1024}, 32),
    "b": ({"n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 256, "vocab_size": 4096}, 16),
}
REPEATS = 5


def rate(work: Callable[[], int]) -> tuple[float, float]:
    """Median and spread (highest minus lowest) of `work`'s tokens per second, after one run to warm up."""
    work()
    rates = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        rates.append(work() / (time.perf_counter() - began))
    return statistics.median(rates), max(rates) - min(rates)


def training(model: GPT, batch: int, precision: str) -> Callable[[], int]:
    compute = device.prepare(PretrainConfig(sources=[{"path": "none"}], precision=precision))
    optimizer = optim.adamw(model, 1e-4)
    tokens = torch.randint(model.config.vocab_size, (batch, model.config.n_positions + 1))

    def work(steps: int = 10) -> int:
        for _ in range(steps):
            loss = token_loss(model, tokens[:, :-1], tokens[:, 1:], compute) / batch / model.config.n_positions
            loss.backward()
            optim.clip(model, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return steps * batch * model.config.n_positions

    return work


def generation(model: GPT, batch: int) -> Callable[[], int]:
    """64 new tokens after prompts of 64; the EOS cannot be drawn, so every request runs to its length."""
    engine = Engine(model, named("gpt2"), batch)

    def work() -> int:
        prompts = torch.randint(model.config.vocab_size, (batch, 64)).tolist()
        requests = [engine.submit(Request(prompt, 64, seed=n)) for n, prompt in enumerate(prompts)]
        engine.run_until_idle()
        return sum(len(request.tokens) for request in requests)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES))
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", file=sys.stderr)
    print("| work | tokens/s | spread |\n| --- | ---: | ---: |")
    for size in options.size:
        numbers, batch = SIZES[size]
        model = GPT(ModelConfig(**numbers))
        name = f"{size} ({parameter_count(model):,} parameters)"
        for precision in ("fp32", "bf16"):
            middle, spread = rate(training(model, batch, precision))
            print(f"| training step, {name}, {precision} | {middle:,.0f} | {spread:,.0f} |", flush=True)
        for rows in (1, 8, 32):
            middle, spread = rate(generation(model, rows))
            print(f"| generation, {name}, batch {rows} | {middle:,.0f} | {spread:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
