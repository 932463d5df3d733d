"""Choosing the next token: temperature, top-k, top-p (Holtzman et al. 2020), penalties, uniforms of each request."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training import kernels

CHUNK = 64  # tokens whose mass is summed before the inner search


def uniforms(seed: int, n: int) -> np.ndarray:
    """n uniforms in [0, 1) of one seed; a longer stream begins with the shorter one, and nobody shares it."""
    return np.random.Generator(np.random.Philox(seed)).random(n)


def scaled(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Logits / T in fp32; T = 0 is read as 1 here, since greedy choice has no distribution worth storing."""
    if isinstance(temperature, Tensor):
        safe = temperature.float().masked_fill(temperature <= 0, 1.0)
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


def penalised(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Logits (B, V) in which seen (B, V) tokens are less likely by penalty (B,); 1 changes nothing.

    Keskar et al. 2019 (CTRL) divide the logits of tokens that stand in the text already. A negative one is multiplied
    instead: division would make such a token likelier.
    """
    by = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / by, logits * by), logits)


def draw(shares: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (B,) of shares (B, V), which need not sum to 1: the cumulative sum inverted at one uniform a row.

    In two steps, chunks and then the tokens of one chunk, since a cumulative sum in float64 over a whole vocabulary
    would be the longest part of drawing; fp32 would round away the tail of a vocabulary of 200 k. A token of share 0
    is never drawn, whatever the rounding.
    """
    rows, vocabulary = shares.shape
    if vocabulary % CHUNK:
        shares = F.pad(shares, (0, CHUNK - vocabulary % CHUNK))
    chunks = shares.view(rows, -1, CHUNK)
    upto = chunks.sum(-1).double().cumsum(-1)  # (B, C)
    target = uniform.double()[:, None] * upto[:, -1:]
    chunk = torch.searchsorted(upto, torch.minimum(target, upto[:, -1:] * (1 - 1e-12)), right=True)  # (B, 1)
    before = F.pad(upto, (1, 0)).gather(1, chunk)
    inner = chunks.gather(1, chunk[:, :, None].expand(rows, 1, CHUNK))[:, 0].double().cumsum(-1)  # (B, CHUNK)
    rest = torch.minimum(target - before, inner[:, -1:] * (1 - 1e-12))
    return (chunk * CHUNK + torch.searchsorted(inner, rest, right=True)).squeeze(-1)


def choose(
    logits: Tensor, uniform: Tensor, temperature: Tensor, allowed: Tensor | None = None, greedy: bool = True
) -> tuple[Tensor, Tensor]:
    """Next tokens (B,) and their log-probabilities (B,), from logits (B, V) and one uniform a row.

    Log-probabilities are those of the temperature-scaled but unfiltered distribution: what the trainer computes.
    `allowed` (B, V) are scaled logits with every filter and penalty, where there is one. greedy=False says that no
    row has temperature 0.
    """
    if allowed is None and logits.dtype == torch.float32 and kernels.usable(logits):
        tokens, logprobs = torch.empty(len(logits), dtype=torch.long), torch.empty(len(logits))
        kernels.run(
            "choose", torch.float32, logits.data_ptr(), logits.stride(0), logits.shape[1], uniform.double(),
            temperature.float(), tokens, logprobs, len(logits), torch.get_num_threads(),
        )  # fmt: skip
        return tokens, logprobs
    logprobs = scaled(logits, temperature).log_softmax(-1)
    shares = (logprobs if allowed is None else allowed).softmax(-1)
    tokens = draw(shares, uniform)
    if greedy:
        tokens = torch.where(temperature > 0, tokens, (logits if allowed is None else allowed).argmax(-1))
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)
