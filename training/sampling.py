"""Choosing the next token: temperature, top-k, top-p (Holtzman et al. 2020), and a stream of uniforms per request."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def uniforms(seed: int, n: int) -> np.ndarray:
    """n uniforms in [0, 1) of one seed; a longer stream begins with the shorter one, and nobody shares it."""
    return np.random.Generator(np.random.Philox(seed)).random(n)


def scaled(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Logits / T in fp32; T = 0 is read as 1 here, since greedy choice has no distribution worth storing."""
    if isinstance(temperature, Tensor):
        safe = torch.where(temperature > 0, temperature, 1.0).float()
        return logits.float() / safe[:, None]
    return logits.float() if temperature in (0, 1) else logits.float() / temperature


def filtered(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Logits (B, V) with -inf outside the top k (0 = all) and outside the smallest set holding top_p of the mass.

    Both are read on the same unfiltered distribution, row by row; the best token always stays.
    """
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # (B, V): the mass of all better tokens
    drop = ((top_k[:, None] > 0) & (rank >= top_k[:, None])) | (before >= top_p[:, None])
    drop[:, 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), float("-inf"))


def choose(logits: Tensor, uniform: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Next tokens (B,) and their log-probabilities (B,), from logits (B, V) and one uniform a row.

    Log-probabilities are those of the temperature-scaled but unfiltered distribution: what the trainer computes.
    The cumulative distribution is inverted in float64: fp32 would round away the tail of a vocabulary of 200 k.
    """
    logprobs = scaled(logits, temperature).log_softmax(-1)
    allowed = logprobs
    if bool(((top_k > 0) | (top_p < 1)).any()):
        allowed = filtered(logprobs, top_k, top_p)
    cumulative = allowed.double().exp().cumsum(-1)
    threshold = uniform.double()[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    tokens = torch.where(temperature > 0, drawn, logits.argmax(-1))
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)
