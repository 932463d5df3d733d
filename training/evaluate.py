"""Stage `evaluate`: a new policy against an old one on the same prompts, judged by a reward model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training import checkpoint, comparisons, data, device
from training.config import EvaluateConfig
from training.device import Compute
from training.engine import Request, generate
from training.intervals import clustered
from training.model import GPT, RewardModel
from training.ppo import read_prompts
from training.report import Report, Stopped
from training.reward import score_all
from training.rollout import Episodes, completion_logprobs, generator
from training.vocabulary import Tokenizer


def run(config: EvaluateConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """Two policies, a reward model and prompts in; figures and samples.jsonl out."""
    started = time.monotonic()
    compute = device.prepare_exact(config)
    new, tokenizer, _ = checkpoint.load_model(data.resolve(run_dir, config.new), compute.device)
    old, old_tokenizer, _ = checkpoint.load_model(data.resolve(run_dir, config.old), compute.device)
    reward_model, its_tokenizer, _ = checkpoint.load_reward_model(
        data.resolve(run_dir, config.reward_model), compute.device
    )
    checkpoint.require_same_tokenizer(tokenizer, old_tokenizer, ("The new policy", "the old policy"))
    checkpoint.require_same_tokenizer(tokenizer, its_tokenizer, ("The new policy", "the reward model"))
    room = min(model.config.n_positions for model in (new, old, reward_model))
    prompts, skipped = read_prompts(data.resolve(run_dir, config.prompts), tokenizer, room, config.max_new_tokens)
    tasks = [prompt for prompt in prompts for _ in range(config.samples_per_prompt)]
    report.rewind(-1)

    new_answers, old_answers = [], []
    for part in _parts(len(tasks), config.batch_size):
        new_answers += _write(new, tokenizer, tasks, part, config, compute)
        old_answers += _write(old, tokenizer, tasks, part, config, compute)
        report(part.stop, {"steps": len(tasks)})
        if report.stopping and part.stop < len(tasks):
            raise Stopped(0)
    new_rewards = rewards_of(reward_model.eval(), new_answers, tokenizer, compute)
    old_rewards = rewards_of(reward_model, old_answers, tokenizer, compute)
    kl = sequence_kl(new, old, new_answers, tokenizer.pad_id, config.temperature, config.batch_size, compute)
    for (prompt, _), ours, theirs, high, low in zip(
        tasks, new_answers, old_answers, new_rewards, old_rewards, strict=True
    ):
        report.sample(0, prompt=prompt, new=ours.text, old=theirs.text, reward_new=high, reward_old=low)
    gaps = [ours - theirs for ours, theirs in zip(new_rewards, old_rewards, strict=True)]
    result = {"prompts": len(prompts), "skipped_too_long": skipped, "reward_new": statistics.fmean(new_rewards)}
    result |= {"reward_old": statistics.fmean(old_rewards), "kl": kl} | win_rate(gaps, [text for text, _ in tasks])
    result |= _shape("new", new_answers) | _shape("old", old_answers)
    return result | {"seconds": round(time.monotonic() - started, 2)}


def win_rate(gaps: Sequence[float], prompts: Sequence[str]) -> dict[str, float]:
    """Share of answers in which the new policy scores higher (equal scores half) and its clustered 95 % interval."""
    share, _ = comparisons.accuracy(gaps)
    low, high = clustered(comparisons.hits(gaps), prompts)
    return {"win_rate": share, "win_rate_low": low, "win_rate_high": high}


def _parts(n: int, size: int) -> list[range]:
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def _write(
    policy: GPT,
    tokenizer: Tokenizer,
    tasks: Sequence[tuple[str, list[int]]],
    part: range,
    config: EvaluateConfig,
    compute: Compute,
) -> list[Request]:
    """Both policies answer a task on the same seed; it depends on the task's place, not on the batch size."""
    seeds = [int(generator(config.seed, 5, i).integers(2**53)) for i in part]
    return generate(
        policy,
        tokenizer,
        [tasks[i][1] for i in part],
        seeds,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        max_batch=config.batch_size,
        compute=compute,
    )


def rewards_of(
    reward_model: RewardModel, answers: Sequence[Request], tokenizer: Tokenizer, compute: Compute
) -> list[float]:
    """Rewards as people would meet the answers: one that was cut off is read as if it ended there."""
    room = reward_model.config.n_positions
    examples = [[*a.prompt_ids, *a.tokens] for a in answers]
    ended = [ids if ids[-1] == tokenizer.eos_id else [*ids[: room - 1], tokenizer.eos_id] for ids in examples]
    return score_all(reward_model, ended, tokenizer.pad_id, compute)


@torch.no_grad()
def sequence_kl(
    new: GPT, old: GPT, answers: Sequence[Request], pad_id: int, temperature: float, rows: int, compute: Compute
) -> float:
    """KL(new, old) in nats per answer, at the sampling temperature: at every state of the new policy's answers the
    whole distributions are compared, not only the token drawn there, so it is never negative and varies far less.
    """
    total = 0.0
    for part in _parts(len(answers), rows):
        episodes = Episodes.of([answers[i] for i in part], pad_id, compute.device)
        _, ours = completion_logprobs(new, episodes, temperature, compute)  # (n, V)
        _, theirs = completion_logprobs(old, episodes, temperature, compute)
        total += (ours.exp() * (ours - theirs)).double().sum().item()
    return total / len(answers)


def _shape(name: str, answers: Sequence[Request]) -> dict[str, float]:
    return {
        f"length_{name}": statistics.fmean(len(a.tokens) for a in answers),
        f"eos_{name}": statistics.fmean(a.finish_reason == "eos" for a in answers),
    }
