"""One PPO update: sample answers, judge them, then a few epochs of clipped losses (Schulman et al. 2017).

What learns is in `Learner`, what is only read in `Frozen`; dropout is off in all four networks, always. Several ranks
write and judge their shares of the answers and all get all, so that what is said of a whole batch (whitening, KL, the
monitors) is the same everywhere; of a minibatch each learns its share, and divides by the tokens of all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from training import advantages as adv
from training import monitors, optim, parallel
from training.config import PPOConfig, TrainingError
from training.device import Compute
from training.engine import Request
from training.model import GPT, RewardModel
from training.parallel import Together
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
    write_answers,
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

    def __post_init__(self) -> None:
        self.policy_terms = Together(self.policy, policy_terms)
        self.values_of = Together(self.value_model, completion_values)


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
    chosen = prompts_of_update(len(frozen.prompts), update, config.batch_size, config.seed)
    prompts = [frozen.prompts[i] for i in chosen]
    seeds = generator(config.seed, 3, update).integers(2**62, size=len(prompts)).tolist()
    limits = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature}
    return write_answers(policy, frozen.tokenizer, prompts, seeds, **limits, compute=frozen.compute)


def _parts(config: PPOConfig, update: int, epoch: int) -> list[Tensor]:
    order = generator(config.seed, 4, update, epoch).permutation(config.batch_size)
    return list(torch.from_numpy(order).chunk(config.minibatches))


def _given_scores(frozen: Frozen, requests: list[Request]) -> Tensor | None:
    """(B,) what a Python function says of the answers, if one scores this run."""
    if frozen.score is None:
        return None
    own, special = requests[parallel.share(len(requests))], set(frozen.tokenizer.special.values())
    prompts = [frozen.tokenizer.decode(i for i in r.prompt_ids if i not in special) for r in own]
    given = [float(reward) for reward in frozen.score(prompts, [r.text for r in own])]
    if len(given) != len(own):
        raise TrainingError(f"score gave {len(given)} rewards for {len(own)} answers: return one for each.")
    return torch.tensor(parallel.gather(given), device=frozen.compute.device)


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
    compute, rows = frozen.compute, torch.arange(len(episodes.mask))
    logprobs, ref_logprobs, values = (torch.zeros_like(episodes.mask) for _ in range(3))
    raw, entropy = torch.zeros_like(episodes.mask[:, 0]), 0.0
    for index in map(_own, parts):
        part = episodes.rows(index)
        width = part.mask.shape[1]
        chosen, everything = completion_logprobs(learner.policy, part, config.temperature, compute)
        logprobs[index, :width] = padded(chosen, part.mask)
        entropy -= (everything.exp() * everything).sum().item()
        ref = completion_logprobs(frozen.ref_policy, part, config.temperature, compute)[0]
        ref_logprobs[index, :width] = padded(ref, part.mask)
    part = episodes.rows(_own(rows))
    values[_own(rows), : part.mask.shape[1]] = padded(completion_values(learner.value_model, part, compute), part.mask)
    limits = {"missing_eos_penalty": config.missing_eos_penalty, "score_clip": config.score_clip}
    if given is None:
        raw[_own(rows)] = scores(frozen.reward_model, part, compute, **limits)
        parallel.total(raw)
    else:
        raw = settled(given, episodes.ended, **limits)
    for tensor in (logprobs, ref_logprobs, values):
        parallel.total(tensor)  # each row is one rank's, and 0 on the others
    entropy = parallel.totals({"entropy": entropy})["entropy"]
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
            first = "ratio_first" not in figures
            shown = _demonstrations(frozen, config, (update, place), len(index))
            seen |= _policy_step(learner, frozen, config, judged, index, shown, first=first)
        for name, figure in seen.items():
            figures.setdefault(name, []).append(figure)
        # The step that went too far is kept; the rest of this update's passes are not taken.
        teach_policy = teach_policy and not 0 < config.target_kl < seen.get("approx_kl", 0.0)
    rate = learner.policy_optimizer.param_groups[0]["lr"]
    return {name: math.fsum(seen) / len(seen) for name, seen in figures.items()} | {"lr": rate}


def _own(index: Tensor) -> Tensor:
    """This rank's share of a minibatch, which has a row for each (PPOConfig sees to it)."""
    return index[parallel.share(len(index))]


def _demonstrations(frozen: Frozen, config: PPOConfig, when: tuple[int, int], rows: int) -> list[Demonstration]:
    """As many demonstrations as the minibatch has answers, drawn for this (update, minibatch) alone."""
    if not config.ptx_coef:
        return []
    drawn = generator(config.seed, 5, *when).integers(len(frozen.demonstrations), size=rows)
    return [frozen.demonstrations[i] for i in drawn]


def policy_terms(
    policy: GPT, part: Episodes, temperature: float, shown: Sequence[Demonstration], pad_id: int, compute: Compute
) -> tuple[Tensor, Tensor]:
    """What one backward pass goes through: log-probabilities (n,), and the demonstrations' mean loss (0 for none)."""
    logprobs, _ = completion_logprobs(policy, part, temperature, compute)
    return logprobs, demonstration_loss(policy, shown, pad_id, compute) if shown else logprobs.new_zeros(())


def _policy_step(
    learner: Learner,
    frozen: Frozen,
    config: PPOConfig,
    judged: Judged,
    index: Tensor,
    shown: list[Demonstration],
    *,
    first: bool,
) -> dict[str, float]:
    own, tokens = _own(index), judged.episodes.mask[index].sum()
    part, own_shown = judged.episodes.rows(own), shown[parallel.share(len(shown))]
    on = part.mask.bool()
    logprobs, ptx = learner.policy_terms(
        part, config.temperature, own_shown, frozen.tokenizer.pad_id, frozen.compute
    )  # (n,), ()
    log_ratio = logprobs - judged.logprobs[own, : on.shape[1]][on]
    ratio = log_ratio.exp()
    if first:
        monitors.first_ratio(ratio)
    losses, clipped = adv.policy_loss(ratio, judged.advantages[own, : on.shape[1]][on], config.cliprange)
    loss = losses.sum() / tokens  # those of the minibatch, on all ranks
    ptx = ptx * (_learned(own_shown) / max(1, _learned(shown)))
    together = loss + config.ptx_coef * ptx if shown else loss
    norm = _step(learner.policy_optimizer, learner.policy_terms, learner.policy, together, config.grad_clip)
    with torch.no_grad():
        means = {"clipfrac": clipped.sum() / tokens, "approx_kl": (ratio - 1 - log_ratio).sum() / tokens}
        means |= {"ratio_first": ratio.sum() / tokens} if first else {}
    seen = {"policy_loss": loss, **means, **({"ptx_loss": ptx} if shown else {})}
    return parallel.totals({name: figure.item() for name, figure in seen.items()}) | {"grad_norm": norm}


def _learned(shown: Sequence[Demonstration]) -> int:
    return sum(sum(mask[1:]) for _, mask in shown)


def _value_step(
    learner: Learner, config: PPOConfig, judged: Judged, index: Tensor, compute: Compute
) -> dict[str, float]:
    own = _own(index)
    part = judged.episodes.rows(own)
    on = part.mask.bool()
    values = learner.values_of(part, compute)  # (n,)
    old, returns = (tensor[own, : on.shape[1]][on] for tensor in (judged.values, judged.returns))
    loss = adv.value_loss(values, old, returns, config.cliprange_value).sum() / judged.episodes.mask[index].sum()
    vf_loss = config.vf_coef * loss
    norm = _step(learner.value_optimizer, learner.values_of, learner.value_model, vf_loss, config.grad_clip)
    return parallel.totals({"value_loss": loss.item()}) | {"value_grad_norm": norm}


def _step(
    optimizer: torch.optim.Optimizer, together: Together, model: nn.Module, loss: Tensor, grad_clip: float
) -> float:
    """Returns the gradient's norm before clipping; a gradient that is no number reaches no weight."""
    optimizer.zero_grad(set_to_none=True)
    together.backward(loss)
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
