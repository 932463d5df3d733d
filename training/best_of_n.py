"""Stage `best_of_n`: answer n times, take the best by the reward model; what that gains, and what it costs in KL.

Nothing is trained. Its KL from the policy has the bound log n - (n - 1) / n (Stiennon et al. 2020, appendix G), which
is reached where no two answers share a reward (Beirami et al. 2024); measured beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training import checkpoint, data, device
from training.config_baselines import BestOfNConfig
from training.intervals import wilson
from training.pool import Answer, Pool, Writer
from training.ppo import read_prompts
from training.report import Report
from training.rollout import generator

DRAWS = 64  # ways in which a pool is dealt into n candidates and independent answers
SAMPLES = 4
NOTHING = -1e9  # a logarithm of 0 that may be multiplied by 0


def run(config: BestOfNConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """A policy, a reward model and prompts in; figures for n = 1, 2, 4 ... and completions.jsonl out."""
    started = time.monotonic()
    compute = device.prepare_exact(config)
    policy, tokenizer, _ = checkpoint.load_model(data.resolve(run_dir, config.base), compute.device)
    reward_model, other, _ = checkpoint.load_reward_model(data.resolve(run_dir, config.reward_model), compute.device)
    checkpoint.require_same_tokenizer(tokenizer, other, ("The policy", "the reward model"))
    room = min(policy.config.n_positions, reward_model.config.n_positions)
    prompts, skipped = read_prompts(data.resolve(run_dir, config.prompts), tokenizer, room, config.max_new_tokens)
    writer = Writer(
        policy, reward_model.eval(), tokenizer, compute, config.seed, config.temperature, config.max_new_tokens
    )
    pool = Pool(run_dir, [ids for _, ids in prompts], config.pool or 2 * config.n, config.write_batch)
    report.rewind(pool.done)
    answers = pool.fill(writer, report, pool.parts)
    steps = _powers(config.n)
    table = measure(answers, steps, config.seed)
    _show(report, pool.parts + 1, [text for text, _ in prompts], answers, config.n)
    report.fence()
    texts = [text for text, _ in prompts]
    if report.writes:
        data.write_rows(run_dir / "completions.jsonl", _completions(texts, answers, steps))
    counts = {"prompts": len(prompts), "skipped_too_long": skipped, "answers": len(answers) * pool.n}
    return {**counts, **table[-1], "by_n": table, "seconds": round(time.monotonic() - started, 2)}


def _powers(highest: int) -> list[int]:
    """1, 2, 4 ... and the highest itself."""
    powers = [1 << i for i in range(highest.bit_length()) if 1 << i < highest]
    return [*powers, highest]


def measure(answers: Sequence[Sequence[Answer]], steps: Sequence[int], seed: int) -> list[dict[str, float]]:
    """For each n the means over prompts and over DRAWS ways to deal a prompt's answers into n and the others.

    The win rate is against one of the others (equal rewards half); its interval takes a prompt for one trial.
    """
    rewards, lengths, ended = (
        np.array([[value(a) for a in row] for row in answers], dtype=float)
        for value in (lambda a: a.reward, lambda a: len(a.tokens), lambda a: a.finish_reason == "eos")
    )  # (P, M)
    deals = generator(seed, 9).permuted(np.tile(np.arange(rewards.shape[1]), (DRAWS, len(rewards), 1)), axis=-1)
    rows = np.arange(len(rewards))[None, :, None]
    dealt = rewards[rows, deals]  # (D, P, M)
    table = []
    for n in steps:
        chosen = dealt[..., :n].argmax(-1)  # (D, P)
        place = np.take_along_axis(deals, chosen[..., None], -1)[..., 0]
        best, others = np.take_along_axis(dealt, chosen[..., None], -1), dealt[..., n:]
        win = float(((best > others[..., :1]) + 0.5 * (best == others[..., :1])).mean())
        low, high = wilson(win, len(rewards))
        table.append(
            {
                "n": n,
                "score": float(best.mean()),
                "win_rate": win,
                "win_rate_low": low,
                "win_rate_high": high,
                "kl": best_of_n_kl(best[..., 0], others, n),
                "kl_bound": float(np.log(n) - (n - 1) / n),
                "length": float(lengths[rows[..., 0], place].mean()),
                "eos_share": float(ended[rows[..., 0], place].mean()),
            }
        )
    return table


def best_of_n_kl(best: np.ndarray, others: np.ndarray, n: int) -> float:
    """Mean of log density ratio (best of n) / (one sample), from where the best lies among m independent rewards.

    With F the share of rewards up to the best and G the share below it, the ratio is (F^n - G^n) / (F - G) =
    sum over j of F^j G^(n-1-j): n F^(n-1) where nothing ties, less where answers share a reward. A logarithm of a
    share of b in m is taken as H(b) - H(m), H the harmonic numbers: the plain log(b / m) lies low by about 1 / 2b.
    best (...), others (..., m).
    """
    m = others.shape[-1]
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, m + 1))])
    below, equal = (others < best[..., None]).sum(-1), (others == best[..., None]).sum(-1)
    log_f, log_g = harmonic[below + equal] - harmonic[m], harmonic[below] - harmonic[m]
    log_g = np.where((below == 0) & (equal > 0), NOTHING, log_g)  # nothing lies below the lowest of several equals
    j = np.arange(n)
    terms = j * log_f[..., None] + (n - 1 - j) * log_g[..., None]  # (..., n)
    top = terms.max(-1, keepdims=True)
    return float((top[..., 0] + np.log(np.exp(terms - top).sum(-1))).mean())


def _best(answers: Sequence[Answer], n: int) -> Answer:
    return max(answers[:n], key=lambda answer: answer.reward)


def _completions(
    prompts: Sequence[str], answers: Sequence[Sequence[Answer]], steps: Sequence[int]
) -> list[dict[str, Any]]:
    """For every prompt the best of its first 1, 2, 4 ... answers, as stage `generate` writes completions."""
    rows = []
    for prompt, row in zip(prompts, answers, strict=True):
        for index, n in enumerate(steps):
            best = _best(row, n)
            written = {"text": best.text, "tokens": best.tokens, "logprobs": best.logprobs, "seed": best.seed}
            rows.append(
                {"prompt": prompt, "index": index, **written, "filtered": n > 1, "finish_reason": best.finish_reason}
                | {"n": n, "reward": best.reward}
            )
    return rows


def _show(report: Report, step: int, prompts: Sequence[str], answers: Sequence[Sequence[Answer]], n: int) -> None:
    for prompt, row in list(zip(prompts, answers, strict=True))[:SAMPLES]:
        best, one = _best(row, n), row[0]
        report.sample(step, prompt=prompt, new=best.text, old=one.text, reward_new=best.reward, reward_old=one.reward)
