"""What must hold while a run learns. A violation stops it with one sentence: the likely cause, and what to do.

Every limit is far from what healthy runs show: a monitor is for what is broken.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.config import TrainingError

RATIO = 1e-6  # the first ratio of an update against 1, and policy against reference before the first update
GRADIENT = 1e4  # healthy runs were seen between 0.3 and 5
SAMPLER = {False: 1e-3, True: 0.1}  # nats between sampler and trainer in fp32 and, by its roundings, in bf16
SURE = 5  # standard errors below 0 at which an estimated KL is no accident
RECENT = 5  # updates whose mean is compared with the first one's
SILENT = 256  # answers in a row without a single EOS
ENDED, ENDING = 0.5, 0.25  # runs whose answers ended more often than the one, and now end that much less often
SHRUNK, GROWN = 0.2, 5.0  # mean lengths against the first update's,
SHORT, LONG = 8.0, 40.0  # where answers had this many tokens at first, or have that many now


def same_policy(gap: float) -> None:
    """Before its first gradient a policy is its own reference; `gap` is the largest difference in nats."""
    if not gap <= RATIO:
        raise TrainingError(
            f"At update 1 policy and reference differ by {gap:.1e} nats (at most {RATIO:.0e} is allowed): "
            "start the run again from its base model."
        )


def first_ratio(ratio: Tensor) -> None:
    """The first minibatch of an update meets the policy that judged it: every ratio is 1."""
    off = (ratio - 1).abs().max().item()
    if not off <= RATIO:
        raise TrainingError(
            f"The first ratio of an update is off by {off:.1e} (at most {RATIO:.0e} is allowed), so old and "
            "new log-probabilities disagree: run again with precision fp32."
        )


def kl(k1: Tensor, k3: Tensor, update: int) -> None:
    """k1, k3 (B,): per answer, sums of the two estimates of KL(policy, reference) from the policy's own samples.

    k3 is never negative; k1 may be, by chance, but its mean is not: where it is, the samples are somebody else's.
    """
    if k3.min() < -1e-6:
        raise TrainingError(
            f"An answer's KL estimate is {k3.min():.2g} at update {update + 1} and can only be positive: its "
            "log-probabilities are no logarithms of shares; run again with precision fp32."
        )
    error = k1.std(unbiased=True).item() / math.sqrt(len(k1)) if len(k1) > 1 else math.inf
    if k1.mean().item() < -max(SURE * error, 0.01):
        raise TrainingError(
            f"The mean KL from the reference is {k1.mean():.3g} at update {update + 1} and cannot be below 0: the "
            "answers were not sampled from the policy that is scored; sample without top-k and top-p, at the trainer's "
            "temperature."
        )


def sampler(gap: float, bf16: bool) -> None:
    """Sampler and trainer give the sampled tokens the same log-probabilities; `gap` is the mean difference in nats."""
    limit = SAMPLER[bf16]
    if not gap <= limit:
        raise TrainingError(
            f"The sampler's log-probabilities are {gap:.2g} nats from the trainer's (at most {limit:g} is allowed): "
            "they differ in temperature or weights" + ("; run again with precision fp32." if bf16 else "; start again.")
        )


def answers(history: Sequence[dict[str, Any]], batch_size: int) -> None:
    """Whether answers still end and keep a sensible length; `history` has eos_share and length of every update."""
    recent, first = history[-RECENT:], history[0]
    silent = math.ceil(SILENT / batch_size)
    if len(history) >= silent and not any(row["eos_share"] for row in history[-silent:]):
        raise TrainingError(
            f"None of the last {silent * batch_size} answers ended with EOS, so none was scored: raise max_new_tokens, "
            "or begin with a model whose SFT taught it to end."
        )
    if len(history) <= RECENT:
        return
    ending = statistics.fmean(row["eos_share"] for row in recent)
    if first["eos_share"] >= ENDED and ending < ENDING * first["eos_share"]:
        raise TrainingError(
            f"{ending:.0%} of the answers end, and {first['eos_share']:.0%} did at first: the policy has unlearned its "
            "EOS; raise missing_eos_penalty or kl_coef, or lower learning_rate."
        )
    length = statistics.fmean(row["length"] for row in recent)
    shrunk = first["length"] >= SHORT and length < SHRUNK * first["length"]
    if shrunk or length > max(GROWN * first["length"], LONG):
        raise TrainingError(
            f"Answers have {length:.0f} tokens, and had {first['length']:.0f} at first: the reward model is paid in "
            "length; look at the samples, raise kl_coef, and rank short against long answers before the next run."
        )


def learned_tokens(targets: Tensor) -> int:
    """How many of the targets (B, T) are learned (not -1): some, and none where a row begins, which is in a prompt."""
    learned, begins = int((targets >= 0).sum()), int((targets[:, 0] >= 0).sum())
    if not learned or begins:
        raise TrainingError(
            f"A batch learns {learned} tokens, {begins} of them where a row begins with its prompt: the mask of the "
            "answers is lost; check that every row has an instruction and a response."
        )
    return learned


def learned_ends(ends: int, answers: int) -> None:
    """Answers end in an EOS that is learned; a policy that never saw one never stops."""
    if 2 * ends < answers:
        raise TrainingError(
            f"Only {ends} of {answers} answers end in a learned EOS, so the model would not learn to stop: "
            "shorten the rows, or take a base model with a longer context."
        )


def sampled_tokens(learned: int, sampled: int) -> None:
    """PPO learns every token the policy sampled, and no other."""
    if learned != sampled:
        raise TrainingError(
            f"{learned} tokens are learned and {sampled} were sampled: the mask of the completions is off; "
            "start the run again, and report it if it happens twice."
        )


def gradient(norm: float, where: str) -> None:
    """A norm before clipping; beyond the limit a clipped step points anywhere."""
    if not norm <= GRADIENT:
        raise TrainingError(
            f"The gradient's norm is {norm:.3g} {where} (at most {GRADIENT:.0e} is allowed): "
            "lower learning_rate, or set grad_clip to 1 if it is 0."
        )


def finite(figures: dict[str, float], update: int) -> None:
    broken = [name for name, figure in figures.items() if not math.isfinite(figure)]
    if broken:
        raise TrainingError(
            f"{broken[0]} is {figures[broken[0]]} at update {update + 1}: lower learning_rate or raise kl_coef."
        )


def checksum(*models: nn.Module | None) -> int:
    """The bits of all weights, as one number: what is frozen keeps it."""
    total = 0
    for model in models:
        for place, tensor in enumerate([] if model is None else model.state_dict().values()):
            bits = tensor.detach().contiguous().view(torch.int32)
            total = (total + (place + 1) * int(bits.sum(dtype=torch.int64))) % 2**63
    return total


def frozen(before: int, now: int) -> None:
    """Reward model and reference are the same bits as when the run began, after a resume too."""
    if before != now:
        raise TrainingError(
            f"The reward model or the reference has changed since the run began (checksum {now % 10**6:06d}, it was "
            f"{before % 10**6:06d}): put the model's files back, or start a new run."
        )
