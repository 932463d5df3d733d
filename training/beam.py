"""Beam search: the likeliest completions of a prompt instead of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import TrainingError
from training.decode import Decoder
from training.device import Compute
from training.model import GPT
from training.vocabulary import Tokenizer


@dataclass(frozen=True)
class Hypothesis:
    """A completion and its score, the sum of its log-probabilities / (number of tokens) ** length_penalty."""

    tokens: list[int]
    logprobs: list[float]
    score: float
    finish_reason: str  # eos or length


@torch.inference_mode()
def beam_search(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    beams: int,
    max_new_tokens: int,
    n: int = 1,
    length_penalty: float = 1.0,
    compute: Compute | None = None,
) -> list[Hypothesis]:
    """The n best completions that were found, the best first; exact where `beams` holds all beginnings.

    An EOS counts as a token. Of 2 x beams candidates at most half can end in EOS, so `beams` always live on; the
    search ends when no living beginning can reach the n-th best any more, since log-probabilities only fall.
    """
    room = min(model.config.n_positions, len(prompt) + max_new_tokens)
    if not 0 < len(prompt) < room:
        raise TrainingError(
            f"The prompt has {len(prompt)} tokens and this model reads 1 to {model.config.n_positions - 1} "
            "before it answers: change its length."
        )
    decoder = Decoder(model, beams, room, compute or Compute(model.device, bf16=False))
    zero = torch.zeros(1, dtype=torch.long, device=model.device)
    length = torch.tensor([len(prompt)], device=model.device)
    logits = decoder.prefill(torch.tensor([list(prompt)], device=model.device), length, zero, zero)
    living, sums = [Hypothesis([], [], 0.0, "length")], torch.zeros(1, device=model.device)
    ended: list[Hypothesis] = []
    longest = room - len(prompt)
    for written in range(1, longest + 1):
        logprobs = logits.float().log_softmax(-1)
        candidates = sums[:, None] + logprobs  # (b, V)
        totals, index = candidates.flatten().topk(min(2 * beams, candidates.numel()))
        parents, tokens = index // logits.shape[1], index % logits.shape[1]
        steps = logprobs.flatten()[index]
        grown, kept = [], []
        for i, (total, parent, token, step) in enumerate(
            zip(totals.tolist(), parents.tolist(), tokens.tolist(), steps.tolist(), strict=True)
        ):
            before, end = living[parent], token == tokenizer.eos_id
            score, reason = total / written**length_penalty, "eos" if end else "length"
            new = Hypothesis([*before.tokens, token], [*before.logprobs, step], score, reason)
            if end:
                ended.append(new)
            elif len(grown) < beams:
                grown.append(new)
                kept.append(i)
        living, sums = grown, totals[kept]
        ended = sorted(ended, key=lambda h: -h.score)[:n]
        if written == longest or not living or _decided(ended, n, sums, written, longest, length_penalty):
            break
        decoder.cache.reorder(parents[kept], len(prompt) + written - 1)
        at = length + written - 1
        logits = decoder.step(tokens[kept], at.expand(len(kept)), len(prompt) + written)
    whole = living if written == longest else []
    return sorted([*ended, *whole], key=lambda h: -h.score)[:n]


def _decided(
    ended: Sequence[Hypothesis], n: int, sums: Tensor, written: int, longest: int, length_penalty: float
) -> bool:
    """Whether n ended hypotheses are better than whatever may still come of the living ones."""
    if len(ended) < n:
        return False
    most = longest if length_penalty > 0 else written + 1
    return ended[-1].score >= float(sums.max()) / most**length_penalty
