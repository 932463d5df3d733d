"""One PPO update: sample answers, judge them, then a few epochs of clipped losses (Schulman et al. 2017).

What learns is in `Learner`, what is only read in `Frozen`; dropout is off in all four networks, always.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training import advantages as adv
from training import monitors, optim
from training.config import PPOConfig, TrainingError
from training.device import Compute
from training.engine import Request, generate
from training.model import GPT, RewardModel
from training.rollout import (
    Demonstration,
    Episodes,
    completion_logprobs,
    completion_values,
    demonstration_loss,
    generator,
    padded,
    prompts_of_update,
    scores,
    settled,
)
from training.vocabulary import Tokenizer

Score = Callable[[list[str], list[str]], Sequence[float]]  # (prompts, completions) -> rewards


@dataclass
class Learner:
    """Everything an update changes: what a checkpoint holds."""

    policy: GPT
    value_model: RewardModel
    policy_optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer
    kl_coef: float


@dataclass(frozen=True)
class Frozen:
    """What an update only reads."""

    ref_policy: GPT
    reward_model: RewardModel | None  # None: `score` judges
    tokenizer: Tokenizer
    prompts: list[list[int]]
    compute: Compute
    demonstrations: list[Demonstration] = field(default_factory=list)
    skipped: int = 0  # prompts too long to use
    score: Score | None = None


@dataclass(frozen=True)
class Judged:
    """Episodes with all that was computed before the first gradient; tensors are (B, S) unless noted."""

    episodes: Episodes
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor  # (B,)
    entropy: float  # nats per token, of the policy that sampled


Watch = Callable[[Judged, dict[str, float]], None]


def ppo_update(
    learner: Learner, frozen: Frozen, config: PPOConfig, update: int, watch: Watch | None = None
) -> tuple[dict[str, float], list[Request], Judged]:
    """One round of sampling and learning; everything random in it depends on (seed, update) alone.

    `watch` sees the answers and their figures, to which it may add, while the policy is still the one that wrote them.
    """
    torch.manual_seed(optim.step_seed(config.seed, update))
    began = time.perf_counter()
    requests = _sample_answers(learner.policy, frozen, config, update)
    sampled = time.perf_counter()
    episodes = Episodes.of(requests, frozen.tokenizer.pad_id, learner.policy.device)
    parts = [_parts(config, update, epoch) for epoch in range(config.epochs)]
    monitors.sampled_tokens(int(episodes.mask.sum()), sum(len(r.tokens) for r in requests))
    judged = judge(learner, frozen, config, episodes, parts[0], _given_scores(frozen, requests))
    if update == 0:
        monitors.same_policy((judged.logprobs - judged.ref_logprobs).abs().max().item())
    described = describe(judged, learner.kl_coef, requests)
    monitors.finite(described, update)
    monitors.kl(*per_answer_kl(judged), update)
    monitors.sampler(sampler_gaps(judged, requests).mean().item(), frozen.compute.bf16)
    if watch is not None:
        watch(judged, described)
    scored = time.perf_counter()
    figures = described | _learn(learner, frozen, config, judged, parts, update)
    learned = time.perf_counter()
    monitors.finite(figures, update)
    learner.kl_coef = adv.next_kl_coef(
        learner.kl_coef,
        figures["kl_k1"],
        target=config.kl_target,
        horizon=config.kl_horizon,
        episodes=config.batch_size,
    )
    phases = {"rollout": sampled - began, "scoring": scored - sampled, "update": learned - scored}
    return figures | {f"seconds_{name}": round(took, 3) for name, took in phases.items()}, requests, judged


def _sample_answers(policy: GPT, frozen: Frozen, config: PPOConfig, update: int) -> list[Request]:
    """Unfiltered samples (no top-k, no top-p): only those come from the distribution that the losses speak of."""
    chosen = prompts_of_update(len(frozen.prompts), update, config.batch_size, config.seed)
    prompts = [frozen.prompts[i] for i in chosen]
    seeds = generator(config.seed, 3, update).integers(2**62, size=len(prompts)).tolist()
    return generate(
        policy,
        frozen.tokenizer,
        prompts,
        seeds,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        max_batch=len(prompts),
        compute=frozen.compute,
    )


def _parts(config: PPOConfig, update: int, epoch: int) -> list[Tensor]:
    order = generator(config.seed, 4, update, epoch).permutation(config.batch_size)
    return list(torch.from_numpy(order).chunk(config.minibatches))


def _given_scores(frozen: Frozen, requests: list[Request]) -> Tensor | None:
    """(B,) what a Python function says of the answers, if one scores this run."""
    if frozen.score is None:
        return None
    special = set(frozen.tokenizer.special.values())
    prompts = [frozen.tokenizer.decode(i for i in r.prompt_ids if i not in special) for r in requests]
    given = torch.tensor(list(frozen.score(prompts, [r.text for r in requests])), dtype=torch.float32)
    if given.shape != (len(requests),):
        raise TrainingError(f"score gave {given.numel()} rewards for {len(requests)} answers: return one for each.")
    return given.to(frozen.compute.device)


@torch.no_grad()
def judge(
    learner: Learner,
    frozen: Frozen,
    config: PPOConfig,
    episodes: Episodes,
    parts: list[Tensor],
    given: Tensor | None = None,
) -> Judged:
    """All that must be known before the first gradient; `given` (B,) are scores that no reward model need read.

    Old log-probabilities are computed in the very minibatches of the first epoch: the same shapes give the same
    roundings, so the first ratio is 1 and not almost 1.
    """
    compute = frozen.compute
    logprobs, ref_logprobs, entropy = torch.zeros_like(episodes.mask), torch.zeros_like(episodes.mask), 0.0
    for index in parts:
        part = episodes.rows(index)
        width = part.mask.shape[1]
        chosen, everything = completion_logprobs(learner.policy, part, config.temperature, compute)
        logprobs[index, :width] = padded(chosen, part.mask)
        entropy -= (everything.exp() * everything).sum().item()
        ref = completion_logprobs(frozen.ref_policy, part, config.temperature, compute)[0]
        ref_logprobs[index, :width] = padded(ref, part.mask)
    values = padded(completion_values(learner.value_model, episodes, compute), episodes.mask)
    limits = {"missing_eos_penalty": config.missing_eos_penalty, "score_clip": config.score_clip}
    if given is None:
        raw = scores(frozen.reward_model, episodes, compute, **limits)
    else:
        raw = settled(given, episodes.ended, **limits)
    rewards = adv.token_rewards(logprobs - ref_logprobs, raw, episodes.mask, learner.kl_coef)
    if config.whiten_rewards:
        rewards = adv.whiten(rewards, episodes.mask, shift_mean=False)
    advantages, returns = adv.gae(rewards, values, episodes.mask, config.gamma, config.lam)
    advantages = adv.whiten(advantages, episodes.mask)
    return Judged(
        episodes, logprobs, ref_logprobs, values, advantages, returns, raw, entropy / episodes.mask.sum().item()
    )


def _learn(
    learner: Learner, frozen: Frozen, config: PPOConfig, judged: Judged, parts: list[list[Tensor]], update: int
) -> dict[str, float]:
    """The epochs of one update; in the first `value_warmup` updates only the value model learns."""
    _set_rates(learner, config, update)
    figures: dict[str, list[float]] = {}
    teach_policy = update >= config.value_warmup
    for place, index in enumerate(index for epoch in parts for index in epoch):
        seen = _value_step(learner, config, judged, index, frozen.compute)
        if teach_policy:
            extra = _demonstration_term(learner.policy, frozen, config, (update, place), len(index))
            first = "ratio_first" not in figures
            seen |= _policy_step(learner, config, judged, index, frozen.compute, extra, first=first)
        for name, figure in seen.items():
            figures.setdefault(name, []).append(figure)
        # The step that went too far is kept; the rest of this update's passes are not taken.
        teach_policy = teach_policy and not 0 < config.target_kl < seen.get("approx_kl", 0.0)
    rate = learner.policy_optimizer.param_groups[0]["lr"]
    return {name: math.fsum(seen) / len(seen) for name, seen in figures.items()} | {"lr": rate}


def _demonstration_term(
    policy: GPT, frozen: Frozen, config: PPOConfig, when: tuple[int, int], rows: int
) -> Tensor | None:
    """As many demonstrations as the minibatch has answers, drawn for this (update, minibatch) alone."""
    if not config.ptx_coef:
        return None
    drawn = generator(config.seed, 5, *when).integers(len(frozen.demonstrations), size=rows)
    batch = [frozen.demonstrations[i] for i in drawn]
    return config.ptx_coef * demonstration_loss(policy, batch, frozen.tokenizer.pad_id, frozen.compute)


def _policy_step(
    learner: Learner,
    config: PPOConfig,
    judged: Judged,
    index: Tensor,
    compute: Compute,
    extra: Tensor | None,
    *,
    first: bool,
) -> dict[str, float]:
    part = judged.episodes.rows(index)
    on = part.mask.bool()
    logprobs, _ = completion_logprobs(learner.policy, part, config.temperature, compute)  # (n,)
    old = judged.logprobs[index, : on.shape[1]][on]
    log_ratio = logprobs - old
    ratio = log_ratio.exp()
    if first:
        monitors.first_ratio(ratio)
    losses, clipped = adv.policy_loss(ratio, judged.advantages[index, : on.shape[1]][on], config.cliprange)
    loss = losses.mean()  # over the minibatch's tokens
    norm = _step(learner.policy_optimizer, learner.policy, loss if extra is None else loss + extra, config.grad_clip)
    with torch.no_grad():
        approx_kl = (ratio - 1 - log_ratio).mean()
    seen = {"policy_loss": loss.item(), "clipfrac": clipped.mean().item(), "approx_kl": approx_kl.item()}
    seen["grad_norm"] = norm
    if first:
        seen["ratio_first"] = ratio.mean().item()
    if extra is not None:
        seen["ptx_loss"] = extra.item() / config.ptx_coef
    return seen


def _value_step(
    learner: Learner, config: PPOConfig, judged: Judged, index: Tensor, compute: Compute
) -> dict[str, float]:
    part = judged.episodes.rows(index)
    on = part.mask.bool()
    values = completion_values(learner.value_model, part, compute)  # (n,)
    old, returns = (tensor[index, : on.shape[1]][on] for tensor in (judged.values, judged.returns))
    loss = adv.value_loss(values, old, returns, config.cliprange_value).mean()
    norm = _step(learner.value_optimizer, learner.value_model, config.vf_coef * loss, config.grad_clip)
    return {"value_loss": loss.item(), "value_grad_norm": norm}


def _step(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Tensor, grad_clip: float) -> float:
    """Returns the gradient's norm before clipping; a gradient that is no number reaches no weight."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = float(optim.clip(model, grad_clip))
    monitors.gradient(norm, "in this update")
    optimizer.step()
    return norm


def _set_rates(learner: Learner, config: PPOConfig, update: int) -> None:
    """Warm-up, then a straight line down to min_lr_ratio; counted in updates, so it needs no state."""
    warm = min(1.0, (update + 1) / (config.warmup_steps + 1))
    left = 1 - update / config.updates
    factor = warm * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
    for optimizer, highest in (
        (learner.policy_optimizer, config.learning_rate),
        (learner.value_optimizer, config.value_learning_rate),
    ):
        optim.set_learning_rate(optimizer, highest * factor)


def per_answer_kl(judged: Judged) -> tuple[Tensor, Tensor]:
    """(B,), (B,): the estimates k1 and k3 of KL(policy, reference), summed over each answer."""
    mask = judged.episodes.mask
    k1 = (judged.logprobs - judged.ref_logprobs) * mask
    return k1.sum(1), (adv.k3(judged.logprobs, judged.ref_logprobs) * mask).sum(1)


def sampler_gaps(judged: Judged, requests: list[Request]) -> Tensor:
    """(n,) nats between what the sampler and the trainer say of each sampled token."""
    mask = judged.episodes.mask
    # Masked states lie row after row, in the order in which the engine wrote the tokens.
    sampled = torch.tensor([p for r in requests for p in r.logprobs], device=mask.device)
    return (judged.logprobs[mask.bool()] - sampled).abs()


def describe(judged: Judged, kl_coef: float, requests: list[Request]) -> dict[str, float]:
    """What an update sampled, per answer. kl is Schulman's k3 (never negative); kl_k1 is what rewards paid."""
    mask = judged.episodes.mask
    rows = mask.shape[0]
    k1, k3 = (estimate.mean() for estimate in per_answer_kl(judged))
    score = judged.scores.mean()
    return {
        "reward": (score - kl_coef * k1).item(),
        "score": score.item(),
        "kl": k3.item(),
        "kl_k1": k1.item(),
        "kl_coef": kl_coef,
        "entropy": judged.entropy,
        "explained_variance": adv.explained_variance(judged.values, judged.returns, mask),
        "eos_share": judged.episodes.ended.float().mean().item(),
        "length": mask.sum().item() / rows,
        "learned_share": (mask.sum() / judged.episodes.lengths.sum()).item(),
        "sampler_gap": sampler_gaps(judged, requests).max().item(),
    }
