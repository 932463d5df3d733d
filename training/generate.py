"""Stage `generate`: write completions for prompts, each on its own seed and with its log-probabilities."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from training import checkpoint, data, device
from training.chat import render_prompt
from training.config import GenerateConfig, TrainingError
from training.engine import Engine, Request
from training.report import Report
from training.rollout import generator

REPORT_EVERY = 1.0  # seconds


def run(config: GenerateConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """Prompts in, completions.jsonl out. Nothing is kept of a run that was stopped: the same seeds write it again."""
    started = time.monotonic()
    compute = device.prepare_exact(config)
    model, tokenizer, _ = checkpoint.load_model(data.resolve(run_dir, config.model), compute.device)
    prompts = _prompts(config, run_dir)
    engine = Engine(model, tokenizer, config.batch_size, compute)
    seeds = completion_seeds(config.seed, len(prompts) * config.n)
    requests = [
        Request(
            render_prompt(tokenizer, prompt),
            config.max_new_tokens,
            config.temperature,
            config.top_k,
            config.top_p,
            seed,
        )
        for prompt, seed in zip((p for p in prompts for _ in range(config.n)), seeds, strict=True)
    ]
    for request in requests:
        engine.submit(request)
    report.rewind(-1)
    _write_all(engine, requests, report)
    rows = [_row(prompts[i // config.n], i % config.n, request) for i, request in enumerate(requests)]
    report.fence()
    data.write_rows(run_dir / "completions.jsonl", rows)
    seconds = time.monotonic() - started
    tokens = sum(len(request.tokens) for request in requests)
    return {
        "prompts": len(prompts),
        "completions": len(requests),
        "tokens": tokens,
        "eos_share": sum(request.finish_reason == "eos" for request in requests) / len(requests),
        "tokens_per_s": round(tokens / seconds, 1),
        "seconds": round(seconds, 2),
    }


def completion_seeds(seed: int, n: int) -> list[int]:
    """One seed per completion, below 2**53 so that a browser's numbers hold it."""
    return [int(s) for s in generator(seed, 3).integers(2**53, size=n)]


def _prompts(config: GenerateConfig, run_dir: Path) -> list[str]:
    if isinstance(config.prompts, str):
        return [row["prompt"] for row in data.read_rows(data.resolve(run_dir, config.prompts), {"prompt": str})]
    if not config.prompts or not all(prompt.strip() for prompt in config.prompts):
        raise TrainingError(f"Of {len(config.prompts)} prompts at least 1 is empty: write it or take it out.")
    return config.prompts


def _write_all(engine: Engine, requests: list[Request], report: Report) -> None:
    """Step until all is written. SIGTERM is not waited for: no gradient is lost, and the run is short."""
    told = time.monotonic()
    while not engine.idle:
        engine.step()
        if time.monotonic() - told >= REPORT_EVERY or engine.idle:
            told = time.monotonic()
            report(sum(request.finish_reason is not None for request in requests), {"steps": len(requests)})


def _row(prompt: str, index: int, request: Request) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "index": index,
        "text": request.text,
        "tokens": request.tokens,
        "logprobs": request.logprobs,
        "filtered": request.filtered,
        "seed": request.seed,
        "finish_reason": request.finish_reason,
    }
