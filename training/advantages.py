"""PPO's arithmetic on padded sequences: masked moments, whitening, GAE, clipped losses, KL estimators and controllers.

Symbols follow Schulman et al. 2016 (GAE) and 2017 (PPO) and Ziegler et al. 2019 (the adaptive KL coefficient).
Every tensor is (B, S): S states, state s chooses token s + 1, and mask is 1 where that token is the completion's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the entries where mask is 1. A product with the mask would let a NaN in the padding through."""
    return torch.where(mask.bool(), values, 0.0).sum() / mask.sum()


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Biased variance (divided by n, as in the 2019 code: torch's own default divides by n - 1)."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Variance 1 on the mask; mean 0 too, unless shift_mean is off (rewards keep their mean). Zero outside the mask."""
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_var(values, mask) + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, 0.0)


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """(B, S) rewards: -kl_coef * kl everywhere on the mask, plus the score (B,) at the last completion token.

    The one index convention of this project: the state that chooses the last completion token (the EOS itself when
    there is one) gets the whole score. Nothing is ever placed at EOS + 1.
    """
    rewards = torch.where(mask.bool(), -kl_coef * kl, 0.0)
    rows = torch.arange(mask.shape[0], device=mask.device)
    rewards[rows, last_index(mask)] += scores
    return rewards


def last_index(mask: Tensor) -> Tensor:
    """(B,) index of the last 1 in every row of the mask."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return (mask.long() * positions).argmax(dim=1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, S). An episode ends after its last masked state: the value behind it is 0.

    Returns are advantages + values taken here, before anybody whitens the advantages.
    """
    mask = mask.to(values.dtype)
    values = torch.where(mask.bool(), values, 0.0)
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(running)
    for s in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, s] + gamma * next_value - values[:, s]
        running = (delta + gamma * lam * running) * mask[:, s]
        advantages[:, s] = running
        next_value = values[:, s]
    return advantages, advantages + values


def policy_loss(ratio: Tensor, advantages: Tensor, cliprange: float) -> tuple[Tensor, Tensor]:
    """Clipped surrogate, entry by entry (not averaged), and where clipping took the gradient away."""
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(plain, clipped), (clipped > plain).float()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> Tensor:
    """Half the larger of the plain and the clipped squared error, entry by entry; cliprange_value 0 = no clipping."""
    plain = (values - returns) ** 2
    if cliprange_value <= 0:
        return 0.5 * plain
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * torch.maximum(plain, (near - returns) ** 2)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Share of the returns' variance that the values foresaw: 1 is all, 0 what their mean would, below 0 is worse."""
    spread = masked_var(returns, mask).item()
    return 1 - masked_var(returns - values, mask).item() / spread if spread else 0.0


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Schulman's low-variance estimate of KL(policy, ref) from the policy's own samples: never negative."""
    difference = ref_logprobs - logprobs
    return torch.expm1(difference) - difference


def next_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: int, episodes: int) -> float:
    """Ziegler's controller: raise the coefficient while the KL per sequence is above target; target 0 = fixed."""
    if target <= 0:
        return kl_coef
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)
