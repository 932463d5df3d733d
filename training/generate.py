"""Stage `generate`: write completions for prompts, each on its own seed and with its log-probabilities."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from training import checkpoint, data, device
from training.beam import beam_search
from training.chat import render_prompt
from training.config import GenerateConfig, TrainingError
from training.device import Compute
from training.engine import Engine, Request
from training.model import GPT
from training.report import Report
from training.rollout import Episodes, completion_logprobs, generator
from training.vocabulary import Tokenizer

REPORT_EVERY = 1.0  # seconds
GAP_MEASURED_ON = 8  # completions, read once more by the trainer's code


def run(config: GenerateConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """Prompts in, completions.jsonl out. Nothing is kept of a run that was stopped: the same seeds write it again."""
    started = time.monotonic()
    compute = device.prepare_exact(config)
    model, tokenizer, _ = checkpoint.load_model(data.resolve(run_dir, config.model), compute.device)
    prompts = _prompts(config, run_dir)
    report.rewind(-1)
    if config.beams:
        rows, figures = _search_all(model, tokenizer, prompts, config, compute, report), dict[str, float]()
    else:
        rows, figures = _sample_all(model, tokenizer, prompts, config, compute, report)
    report.fence()
    data.write_rows(run_dir / "completions.jsonl", rows)
    seconds = time.monotonic() - started
    tokens = sum(len(row["tokens"]) for row in rows)
    return {
        "prompts": len(prompts),
        "completions": len(rows),
        "tokens": tokens,
        "eos_share": sum(row["finish_reason"] == "eos" for row in rows) / len(rows),
        **figures,
        "tokens_per_s": round(tokens / seconds, 1),
        "seconds": round(seconds, 2),
    }


def _sample_all(
    model: GPT, tokenizer: Tokenizer, prompts: list[str], config: GenerateConfig, compute: Compute, report: Report
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    engine = Engine(model, tokenizer, config.batch_size, compute)
    seeds = completion_seeds(config.seed, len(prompts) * config.n)
    requests = [
        engine.submit(
            Request(
                render_prompt(tokenizer, prompts[i // config.n]),
                config.max_new_tokens,
                config.temperature,
                config.top_k,
                config.top_p,
                seed,
                repetition_penalty=config.repetition_penalty,
                stop=config.stop,
                bad_words=[tokenizer.encode(word) for word in config.bad_words if word],
            )
        )
        for i, seed in enumerate(seeds)
    ]
    _write_all(engine, requests, report)
    rows = [_row(prompts[i // config.n], i % config.n, request) for i, request in enumerate(requests)]
    return rows, {"sampler_gap": sampler_gap(model, tokenizer, requests[:GAP_MEASURED_ON], compute)}


def _search_all(
    model: GPT, tokenizer: Tokenizer, prompts: list[str], config: GenerateConfig, compute: Compute, report: Report
) -> list[dict[str, Any]]:
    """The n likeliest completions of each prompt that the beams find, with their scores in place of seeds."""
    rows = []
    for done, prompt in enumerate(prompts, 1):
        found = beam_search(
            model,
            tokenizer,
            render_prompt(tokenizer, prompt),
            beams=config.beams,
            max_new_tokens=config.max_new_tokens,
            n=config.n,
            length_penalty=config.length_penalty,
            compute=compute,
        )
        for index, hypothesis in enumerate(found):
            text = tokenizer.decode([t for t in hypothesis.tokens if t not in tokenizer.special.values()])
            rows.append({"prompt": prompt, "index": index, "text": text, "filtered": True, **asdict(hypothesis)})
        report(done * config.n, {"steps": len(prompts) * config.n})
    return rows


@torch.no_grad()
def sampler_gap(model: GPT, tokenizer: Tokenizer, requests: Sequence[Request], compute: Compute) -> float:
    """Largest difference between the log-probabilities of engine and trainer for the same tokens and precision.

    In fp32 it is rounding, below 1e-5; in bf16 it says how far samples are from the policy that would learn from them.
    """
    gap = 0.0
    for request in requests:
        if request.tokens:
            episodes = Episodes.of([request], tokenizer.pad_id, compute.device)
            trainer, _ = completion_logprobs(model, episodes, request.temperature, compute)
            gap = max(gap, (trainer.cpu() - torch.tensor(request.logprobs)).abs().max().item())
    return gap


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
    """Step until all is written."""
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
