"""Stage `grpo`: raise the reward of answers without a value model; a prompt's other answers are the baseline.

Two estimators. "rloo" (Ahmadian et al. 2024): an answer is one action, its reward is score - kl_coef * log(policy /
reference), its baseline the mean reward of the prompt's other answers. "grpo" (Shao et al. 2024): every token gets
(score - group mean) / group deviation, losses are means over an answer's tokens and then over answers, and the KL is
k3 per token in the loss. Both clip their ratio as PPO does, so that one sampling may serve several steps.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import advantages as adv
from training import checkpoint, data, device, memory, monitors, optim, parallel
from training.checkpoints import Checkpoints
from training.config_baselines import GRPOConfig
from training.device import Compute
from training.engine import Request
from training.model import GPT, RewardModel
from training.parallel import Together
from training.ppo import read_prompts
from training.report import Report, Stopped
from training.rollout import Episodes, completion_logprobs, generator, padded, prompts_of_update, scores, write_answers
from training.vocabulary import Tokenizer

SAMPLES = 4  # answers stored at a time
ADAM_EPS = 1e-5  # as in PPO: 1e-8 makes the first steps so large that the ratio leaves its clip at once
SPREAD_EPS = 1e-4  # in GRPO's division: a group of equal scores gets advantages of 0
KEPT = ("reward", "score", "kl", "kl_k1", "entropy", "eos_share", "length")


@dataclass(frozen=True)
class Frozen:
    """What an update only reads."""

    ref_policy: GPT
    reward_model: RewardModel
    tokenizer: Tokenizer
    prompts: list[list[int]]
    compute: Compute
    skipped: int = 0  # prompts too long to use


@dataclass(frozen=True)
class Judged:
    """Episodes with all that was computed before the first gradient; tensors are (B, S) unless noted."""

    episodes: Episodes
    logprobs: Tensor
    ref_logprobs: Tensor
    scores: Tensor  # (B,)
    advantages: Tensor  # (B,)
    entropy: float  # nats per token, of the policy that sampled


def run(config: GRPOConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """A policy, a reward model and prompts in, the updated policy out."""
    started = time.monotonic()
    policy, frozen = _load(config, run_dir)
    logprobs_of = Together(policy, completion_logprobs)
    optimizer = optim.adamw(policy, config.learning_rate, config.weight_decay, config.beta2)
    for group in optimizer.param_groups:
        group["eps"] = ADAM_EPS
    checkpoints = Checkpoints(run_dir, report.fence, config.keep_checkpoints)
    checksum = monitors.checksum(frozen.ref_policy, frozen.reward_model)
    done, history = 0, list[dict[str, float]]()
    if saved := checkpoints.latest():
        done, tensors, state = saved
        monitors.frozen(state.get("frozen", checksum), checksum)
        history = state["history"]
        optim.load_state_tensors(policy, optimizer, tensors)
    report.rewind(done)
    over_budget = bool(history) and 0 < config.kl_budget < history[-1]["kl"]
    unit = math.lcm(config.group_size, config.minibatches)

    def on_fewer(rows: int) -> object:
        longest = replace(frozen, prompts=sorted(frozen.prompts, key=len)[-rows:])
        return grpo_update(policy, optimizer, longest, replace(config, batch_size=rows, epochs=1), done)

    while done < config.updates and not over_budget:
        begun = time.monotonic()
        with memory.explained(config.batch_size, on_fewer, "set batch_size to {fits}", unit):
            figures, requests, judged = grpo_update(policy, optimizer, frozen, config, done, logprobs_of)
        done += 1
        history.append({name: figures[name] for name in KEPT})
        monitors.frozen(checksum, monitors.checksum(frozen.ref_policy, frozen.reward_model))
        monitors.answers(history, config.batch_size)
        over_budget = 0 < config.kl_budget < figures["kl"]
        last = done == config.updates or over_budget
        if done % config.log_every == 0 or done == 1 or last:
            seconds = round(time.monotonic() - begun, 3)
            report(done, {"steps": config.updates, **figures, "seconds": seconds})
        if config.sample_every and (done % config.sample_every == 0 or done == 1 or last):
            _sample(report, done, frozen, requests, judged)
        stopping = parallel.agree(report.stopping) and not last
        if checkpoints.due(done, config.checkpoint_every) or last or stopping:
            checkpoints.save(done, optim.state_tensors(policy, optimizer), {"history": history, "frozen": checksum})
        if stopping:
            raise Stopped(done)
    report.fence()
    meta = {"stage": "grpo", "run": run_dir.name, "parent": config.base, "reward_model": config.reward_model}
    card = {**meta, "estimator": config.estimator, "kl": history[-1]["kl"]}
    checkpoint.save_model(run_dir / "model", policy, frozen.tokenizer, "policy", card)
    result = _result(config, history, over_budget)
    result |= {"prompts": len(frozen.prompts), "skipped_too_long": frozen.skipped}
    return result | {"seconds": round(time.monotonic() - started, 2)}


def _load(config: GRPOConfig, run_dir: Path) -> tuple[GPT, Frozen]:
    """The three networks, without dropout. Refuses a reward model of another vocabulary and prompts that do not fit."""
    compute = device.prepare_exact(config)
    base, judge = data.resolve(run_dir, config.base), data.resolve(run_dir, config.reward_model)
    policy, tokenizer, _ = checkpoint.load_model(base, compute.device)
    ref_policy, _, _ = checkpoint.load_model(base, compute.device)
    reward_model, other, card = checkpoint.load_reward_model(judge, compute.device)
    checkpoint.require_same_tokenizer(tokenizer, other, ("The policy", "the reward model"))
    if config.scale_scores:
        spread = float(card.get("reward_std") or 1.0)
        reward_model.head.weight.data /= spread
        reward_model.bias /= spread
    for model in (policy, ref_policy, reward_model):
        model.eval()
    for model in (ref_policy, reward_model):
        model.requires_grad_(False)
    room = min(policy.config.n_positions, reward_model.config.n_positions)
    prompts, skipped = read_prompts(data.resolve(run_dir, config.prompts), tokenizer, room, config.max_new_tokens)
    return policy, Frozen(ref_policy, reward_model, tokenizer, [ids for _, ids in prompts], compute, skipped)


def grpo_update(
    policy: GPT,
    optimizer: torch.optim.Optimizer,
    frozen: Frozen,
    config: GRPOConfig,
    update: int,
    logprobs_of: Together | None = None,
) -> tuple[dict[str, float], list[Request], Judged]:
    """One round of sampling and learning; everything random in it depends on (seed, update) alone.

    Several ranks share it as they share PPO's (ppo_update.py).
    """
    torch.manual_seed(optim.step_seed(config.seed, update))
    began = time.perf_counter()
    requests = _sample_answers(policy, frozen, config, update)
    sampled = time.perf_counter()
    episodes = Episodes.of(requests, frozen.tokenizer.pad_id, policy.device)
    parts = [_parts(config, update, epoch) for epoch in range(config.epochs)]
    monitors.sampled_tokens(int(episodes.mask.sum()), sum(len(r.tokens) for r in requests))
    judged = judge(policy, frozen, config, episodes, parts[0])
    if update == 0:
        monitors.same_policy((judged.logprobs - judged.ref_logprobs).abs().max().item())
    described = _describe(judged, config, requests)
    monitors.finite(described, update)
    monitors.kl(*_per_answer_kl(judged), update)
    monitors.sampler(_sampler_gaps(judged, requests).mean().item(), frozen.compute.bf16)
    scored = time.perf_counter()
    left = 1 - update / config.updates
    warm = min(1.0, (update + 1) / (config.warmup_steps + 1))
    rate = config.learning_rate * warm * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
    optim.set_learning_rate(optimizer, rate)
    figures: dict[str, list[float]] = {}
    logprobs_of = logprobs_of or Together(policy, completion_logprobs)
    for place, index in enumerate(index for epoch in parts for index in epoch):
        seen = _policy_step(policy, logprobs_of, optimizer, config, judged, index, frozen.compute, first=place == 0)
        for name, figure in seen.items():
            figures.setdefault(name, []).append(figure)
    means = {name: math.fsum(seen) / len(seen) for name, seen in figures.items()} | {"lr": rate}
    means |= described
    monitors.finite(means, update)
    phases = {"rollout": sampled - began, "scoring": scored - sampled, "update": time.perf_counter() - scored}
    return means | {f"seconds_{name}": round(took, 3) for name, took in phases.items()}, requests, judged


def _sample_answers(policy: GPT, frozen: Frozen, config: GRPOConfig, update: int) -> list[Request]:
    """group_size answers to each of the update's prompts; a group's answers stand one after the other."""
    n = config.batch_size // config.group_size
    chosen = prompts_of_update(len(frozen.prompts), update, n, config.seed)
    prompts = [frozen.prompts[i] for i in chosen for _ in range(config.group_size)]
    seeds = generator(config.seed, 3, update).integers(2**62, size=len(prompts)).tolist()
    limits = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    return write_answers(policy, frozen.tokenizer, prompts, seeds, **limits, compute=frozen.compute)


def _parts(config: GRPOConfig, update: int, epoch: int) -> list[Tensor]:
    order = generator(config.seed, 4, update, epoch).permutation(config.batch_size)
    return list(torch.from_numpy(order).chunk(config.minibatches))


@torch.no_grad()
def judge(policy: GPT, frozen: Frozen, config: GRPOConfig, episodes: Episodes, parts: list[Tensor]) -> Judged:
    """All that must be known before the first gradient, in the very minibatches of the first epoch (see ppo_update)."""
    logprobs, ref_logprobs = torch.zeros_like(episodes.mask), torch.zeros_like(episodes.mask)
    raw, entropy = torch.zeros_like(episodes.mask[:, 0]), 0.0
    limits = {"missing_eos_penalty": config.missing_eos_penalty, "score_clip": config.score_clip}
    for index in map(_own, parts):
        part = episodes.rows(index)
        width = part.mask.shape[1]
        chosen, everything = completion_logprobs(policy, part, config.temperature, frozen.compute)
        logprobs[index, :width] = padded(chosen, part.mask)
        entropy -= (everything.exp() * everything).sum().item()
        ref, _ = completion_logprobs(frozen.ref_policy, part, config.temperature, frozen.compute)
        ref_logprobs[index, :width] = padded(ref, part.mask)
        raw[index] = scores(frozen.reward_model, part, frozen.compute, **limits)
    for tensor in (logprobs, ref_logprobs, raw):
        parallel.total(tensor)  # each row is one rank's, and 0 on the others
    entropy = parallel.totals({"entropy": entropy})["entropy"]
    rewards = raw
    if config.estimator == "rloo":
        rewards = raw - config.kl_coef * ((logprobs - ref_logprobs) * episodes.mask).sum(1)
    advantages = group_advantages(rewards, config.group_size, config.estimator)
    return Judged(episodes, logprobs, ref_logprobs, raw, advantages, entropy / episodes.mask.sum().item())


def group_advantages(rewards: Tensor, group_size: int, estimator: str) -> Tensor:
    """(B,) rewards, groups one after the other -> (B,) advantages.

    rloo: reward - mean of the group's others; grpo: (reward - mean) / standard deviation of the group (biased).
    """
    groups = rewards.view(-1, group_size)
    mean = groups.mean(1, keepdim=True)
    if estimator == "rloo":
        return ((groups - mean) * group_size / (group_size - 1)).flatten()
    return ((groups - mean) / (groups.std(1, keepdim=True, unbiased=False) + SPREAD_EPS)).flatten()


def _own(index: Tensor) -> Tensor:
    """This rank's share of a minibatch, which has a row for each (GRPOConfig sees to it)."""
    return index[parallel.share(len(index))]


def _policy_step(
    policy: GPT,
    logprobs_of: Together,
    optimizer: torch.optim.Optimizer,
    config: GRPOConfig,
    judged: Judged,
    index: Tensor,
    compute: Compute,
    *,
    first: bool,
) -> dict[str, float]:
    own, mask = _own(index), judged.episodes.mask[index]
    part = judged.episodes.rows(own)
    width = part.mask.shape[1]
    logprobs = padded(logprobs_of(part, config.temperature, compute)[0], part.mask)  # (n, S)
    old, ref = judged.logprobs[own, :width], judged.ref_logprobs[own, :width]
    log_ratio = logprobs - old
    if first:
        monitors.first_ratio(log_ratio.exp())
    loss, clipped, kl = losses(log_ratio, logprobs, ref, part.mask, judged.advantages[own], config)
    rows, tokens = len(own) / len(index), (part.mask.sum() / mask.sum()).item()  # what this rank's means weigh
    optimizer.zero_grad(set_to_none=True)
    logprobs_of.backward(rows * (loss + config.kl_coef * kl if config.estimator == "grpo" else loss))
    grad_norm = float(optim.clip(policy, config.grad_clip))
    monitors.gradient(grad_norm, "in this update")
    optimizer.step()
    with torch.no_grad():
        approx_kl = adv.masked_mean(log_ratio.exp() - 1 - log_ratio, part.mask).item()
    figures = {"policy_loss": rows * loss.item(), "approx_kl": tokens * approx_kl}
    figures["clipfrac"] = (rows if config.estimator == "rloo" else tokens) * clipped.item()
    if first:
        figures["ratio_first"] = tokens * log_ratio.exp()[part.mask.bool()].mean().item()
    return parallel.totals(figures) | {"grad_norm": grad_norm}


def losses(
    log_ratio: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, advantages: Tensor, config: GRPOConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Policy loss, share clipped and mean k3-KL per token, from (n, S) log-probabilities and (n,) advantages.

    rloo's ratio is that of whole answers: in the first step its gradient is REINFORCE's, advantage * d log p(answer).
    """
    lengths = mask.sum(1)
    kl = ((adv.k3(logprobs, ref_logprobs) * mask).sum(1) / lengths).mean()
    if config.estimator == "rloo":
        loss, clipped = adv.policy_loss((log_ratio * mask).sum(1).exp(), advantages, config.cliprange)
        return loss.mean(), clipped.mean(), kl
    loss, clipped = adv.policy_loss(log_ratio.exp(), advantages[:, None], config.cliprange)  # (n, S)
    return ((loss * mask).sum(1) / lengths).mean(), adv.masked_mean(clipped, mask), kl


def _per_answer_kl(judged: Judged) -> tuple[Tensor, Tensor]:
    """(B,), (B,): the estimates k1 and k3 of KL(policy, reference), summed over each answer."""
    mask = judged.episodes.mask
    k1 = ((judged.logprobs - judged.ref_logprobs) * mask).sum(1)
    return k1, (adv.k3(judged.logprobs, judged.ref_logprobs) * mask).sum(1)


def _sampler_gaps(judged: Judged, requests: list[Request]) -> Tensor:
    """(n,) nats between what the sampler and the trainer say of each sampled token."""
    mask = judged.episodes.mask
    # Masked states lie row after row, in the order in which the engine wrote the tokens.
    sampled = torch.tensor([p for r in requests for p in r.logprobs], device=mask.device)
    return (judged.logprobs[mask.bool()] - sampled).abs()


def _describe(judged: Judged, config: GRPOConfig, requests: list[Request]) -> dict[str, float]:
    """What an update sampled, per answer. kl is Schulman's k3 (never negative); spread is that within a group."""
    mask = judged.episodes.mask
    k1, k3 = (estimate.mean() for estimate in _per_answer_kl(judged))
    groups = judged.scores.view(-1, config.group_size)
    return {
        "reward": (judged.scores.mean() - config.kl_coef * k1).item(),
        "score": judged.scores.mean().item(),
        "score_spread": groups.std(1, unbiased=False).mean().item(),
        "kl": k3.item(),
        "kl_k1": k1.item(),
        "entropy": judged.entropy,
        "eos_share": judged.episodes.ended.float().mean().item(),
        "length": mask.sum().item() / len(mask),
        "sampler_gap": _sampler_gaps(judged, requests).max().item(),
    }


def _sample(report: Report, step: int, frozen: Frozen, requests: list[Request], judged: Judged) -> None:
    for request, score in list(zip(requests, judged.scores.tolist(), strict=True))[:SAMPLES]:
        prompt = frozen.tokenizer.decode(i for i in request.prompt_ids if i not in frozen.tokenizer.special.values())
        report.sample(step, prompt=prompt, text=request.text, score=score, finish_reason=request.finish_reason)


def _result(config: GRPOConfig, history: list[dict[str, float]], over_budget: bool) -> dict[str, Any]:
    """Figures of the first update (still the base policy) beside the mean of the last five."""
    first, tail = history[0], history[-5:]
    after = {name: statistics.fmean(row[name] for row in tail) for name in KEPT}
    counts = {"updates": len(history), "episodes": len(history) * config.batch_size}
    before = {"score_before": first["score"], "reward_before": first["reward"]}
    return {**counts, **before, **after, "stopped_by_kl_budget": over_budget}
