"""Episodes of PPO: which prompts an update takes, the tensors of what was sampled, and how the models read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training import data, parallel
from training.device import Compute
from training.engine import Request, generate
from training.model import GPT, RewardModel
from training.sampling import scaled
from training.vocabulary import Tokenizer


def stack(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token lists as (N, T) right-padded, and their lengths (N,)."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return data.pad_right(rows, pad_id).to(device), lengths


Demonstration = tuple[list[int], list[int]]  # ids, and 1 on the answer's


@dataclass(frozen=True)
class Episodes:
    """B sampled answers: tokens (B, T) right-padded; mask (B, T - 1), 1 at the states that chose a completion token."""

    tokens: Tensor
    mask: Tensor
    lengths: Tensor  # (B,) tokens of prompt and completion together
    ended: Tensor  # (B,) the completion ended in EOS

    @staticmethod
    def of(requests: Sequence[Request], pad_id: int, device: torch.device | str) -> Episodes:
        """Whether an answer ended is read in the completion only: an EOS inside a prompt says nothing."""
        tokens, lengths = stack([[*r.prompt_ids, *r.tokens] for r in requests], pad_id, device)
        prompts = torch.tensor([len(r.prompt_ids) for r in requests], device=device)
        chosen = torch.arange(1, tokens.shape[1], device=device)  # the token that state s = 0, 1, ... chooses
        mask = (chosen >= prompts[:, None]) & (chosen < lengths[:, None])
        ended = torch.tensor([r.finish_reason == "eos" for r in requests], device=device)
        return Episodes(tokens, mask.float(), lengths, ended)

    def rows(self, index: Tensor) -> Episodes:
        """Some of the episodes, trimmed to the longest of them."""
        longest = int(self.lengths[index].max())
        return Episodes(
            self.tokens[index, :longest], self.mask[index, : longest - 1], self.lengths[index], self.ended[index]
        )


def write_answers(
    policy: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    compute: Compute,
) -> list[Request]:
    """An answer to each prompt, without top-k and top-p: only those come from the distribution that losses speak of.

    Each rank writes its share and gets all: an answer depends on its own seed, whoever writes it.
    """
    here = parallel.share(len(prompts))
    written: list[Request] = []
    if prompts[here]:
        written = generate(
            policy,
            tokenizer,
            prompts[here],
            seeds[here],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            max_batch=len(prompts[here]),
            compute=compute,
        )
    if parallel.size() == 1:
        return written
    told = parallel.gather([(r.tokens, r.logprobs, r.text, r.finish_reason) for r in written])
    requests = []
    for prompt, seed, fields in zip(prompts, seeds, told, strict=True):
        request = Request(prompt, max_new_tokens, temperature, seed=seed)
        request.tokens, request.logprobs, request.text, request.finish_reason = fields
        requests.append(request)
    return requests


def completion_logprobs(policy: GPT, episodes: Episodes, temperature: float, compute: Compute) -> tuple[Tensor, Tensor]:
    """Log-probabilities at the sampling temperature: of the n chosen tokens (n,), and of all tokens (n, V).

    Old, reference and new log-probabilities all come from here. The vocabulary is only spread out where a completion
    token is chosen: at prompts and padding the (B, T, V) logits would be most of the work and are never used.
    """
    with compute.autocast():
        hidden = policy(episodes.tokens[:, :-1], keep=episodes.mask.bool())  # (n, d)
    chosen = episodes.tokens[:, 1:][episodes.mask.bool()]
    return _Logprobs.apply(hidden.float(), policy.head, chosen, temperature, compute.bf16)


class _Logprobs(torch.autograd.Function):
    """Log-probabilities of the chosen tokens (n,), and of all (n, V), through which no gradient flows.

    The head's logits are fp32 always, as the sampler's are; its gradients, two thirds of its work, are products like
    all others.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, chosen: Tensor, temperature: float, bf16: bool
    ) -> tuple[Tensor, Tensor]:
        logprobs = scaled(F.linear(hidden, head), temperature).log_softmax(-1)
        ctx.save_for_backward(hidden, head, chosen, logprobs)
        ctx.temperature, ctx.dtype = temperature, torch.bfloat16 if bf16 else torch.float32
        ctx.mark_non_differentiable(logprobs)
        return logprobs.gather(-1, chosen[:, None]).squeeze(-1), logprobs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, chosen, logprobs = ctx.saved_tensors
        upstream = upstream[:, None] / ctx.temperature
        slope = logprobs.exp().mul_(-upstream).scatter_add_(-1, chosen[:, None], upstream).to(ctx.dtype)
        dhidden = (slope @ head.to(ctx.dtype)).float()
        return dhidden, (slope.t() @ hidden.to(ctx.dtype)).float(), None, None, None


def completion_values(value_model: RewardModel, episodes: Episodes, compute: Compute) -> Tensor:
    """Values (n,) of the states that choose the completions' n tokens, row after row."""
    with compute.autocast():
        return value_model.values(episodes.tokens[:, :-1], episodes.mask.bool())


def demonstration_loss(policy: GPT, demonstrations: Sequence[Demonstration], pad_id: int, compute: Compute) -> Tensor:
    """Mean loss per answer token, EOS included: the "ptx" term of Ouyang et al. 2022, taken on demonstrations."""
    tokens, _ = stack([ids for ids, _ in demonstrations], pad_id, compute.device)
    learned = stack([mask for _, mask in demonstrations], 0, compute.device)[0][:, 1:].bool()
    with compute.autocast():
        hidden = policy(tokens[:, :-1], keep=learned)  # (n, d)
    return F.cross_entropy(policy.logits(hidden.float()), tokens[:, 1:][learned])


def padded(flat: Tensor, mask: Tensor) -> Tensor:
    """(n,) back to (B, S), 0 outside the mask."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask.bool(), flat)


def scores(
    reward_model: RewardModel,
    episodes: Episodes,
    compute: Compute,
    *,
    missing_eos_penalty: float,
    score_clip: float,
) -> Tensor:
    """(B,) scores read at the EOS, clipped; an answer that does not end gets -missing_eos_penalty INSTEAD of its score.

    Replacing, not subtracting: the reward model was only ever asked about EOS, so what it says elsewhere means nothing.
    """
    with compute.autocast():
        raw = reward_model.score(episodes.tokens, episodes.lengths - 1)
    return settled(raw, episodes.ended, missing_eos_penalty=missing_eos_penalty, score_clip=score_clip)


def settled(raw: Tensor, ended: Tensor, *, missing_eos_penalty: float, score_clip: float) -> Tensor:
    """(B,) scores after the limit and the penalty, wherever they come from."""
    if score_clip > 0:
        raw = raw.clamp(-score_clip, score_clip)
    return torch.where(ended, raw, -missing_eos_penalty)


def generator(*key: int) -> np.random.Generator:
    """Random numbers that depend on the key alone, so that a resumed run draws what the undisturbed one drew."""
    return np.random.Generator(np.random.Philox(list(key)))


def prompts_of_update(n: int, update: int, batch_size: int, seed: int) -> list[int]:
    """Indices of the prompts of update 0, 1, ...: the list reshuffled pass after pass, without a cursor to lose."""
    start = update * batch_size
    passes = {p: data.epoch_order(n, seed, p) for p in {i // n for i in range(start, start + batch_size)}}
    return [passes[i // n][i % n] for i in range(start, start + batch_size)]
