"""Stage `dpo`: rankings in, a policy out, with neither reward model nor sampling (Rafailov et al. 2023).

An answer's reward is beta * log(policy / reference), summed over its tokens and its EOS. One element of a batch is a
whole ranking: its untied pairs weigh 1 / C(K, 2) each, and every completion is read once whatever K is.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from training import checkpoint, comparisons, data, device, memory, monitors, optim, parallel
from training.chat import render_prompt
from training.checkpoints import Checkpoints
from training.config import TrainingError
from training.config_baselines import DPOConfig
from training.device import Compute
from training.engine import Request, generate
from training.evaluate import sequence_kl
from training.generate import completion_seeds
from training.intervals import clustered
from training.model import GPT
from training.parallel import Together
from training.rankings import Ranking, read_rankings
from training.report import Report, Stopped
from training.rollout import Episodes, completion_logprobs, padded, stack
from training.vocabulary import Tokenizer

READ_AT_ONCE = 64
VALIDATIONS_A_PASS, SAMPLES = 4, 4

Prompt = tuple[str, list[int]]  # text and ids


@dataclass(frozen=True)
class Known:
    """A ranking and its completions' log-probabilities under the reference."""

    ranking: Ranking
    ref_logprobs: list[float]


def run(config: DPOConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """Rankings and a policy in, the updated policy out; the reference is read once and needs no memory after."""
    started = time.monotonic()
    compute = device.prepare_exact(config)
    policy, tokenizer, _ = checkpoint.load_model(data.resolve(run_dir, config.base), compute.device)
    policy.eval()  # dropout is off in training too
    train, held_out, skipped = _read(config, run_dir, tokenizer, policy.config.n_positions)
    pairs = sum(len(ranking.pairs()) for ranking in train)
    if pairs < config.min_comparisons:
        raise TrainingError(f"Only {pairs} comparisons; this run needs {config.min_comparisons}: rank more.")
    with parallel.first():
        known = _with_reference(policy, [*train, *held_out], run_dir / "ref_logprobs.safetensors", tokenizer, compute)
    prompts = _prompts(config, held_out or train, policy.config.n_positions, tokenizer)
    train_loss = _train(config, run_dir, report, policy, known, len(train), prompts, tokenizer, compute)
    result = {"train_loss": train_loss, "train_pairs": pairs, "rankings": len(train), "skipped_too_long": skipped}
    result |= validate(policy, known[len(train) :], config, tokenizer, compute)
    result |= _measure_kl(config, run_dir, policy, prompts, tokenizer, compute)
    report.fence()
    meta = {"stage": "dpo", "run": run_dir.name, "parent": config.base, "kl": result.get("kl")}
    checkpoint.save_model(run_dir / "model", policy, tokenizer, "policy", meta)
    return result | {"seconds": round(time.monotonic() - started, 2)}


def _read(
    config: DPOConfig, run_dir: Path, tokenizer: Tokenizer, context: int
) -> tuple[list[Ranking], list[Ranking], int]:
    """Training and held-out rankings that say something (all ties say nothing), and how many were too long."""
    train, skipped = read_rankings(data.resolve(run_dir, config.data), tokenizer, context)
    held_out, more = read_rankings(data.resolve(run_dir, config.val), tokenizer, context) if config.val else ([], 0)
    return [r for r in train if r.pairs()], [r for r in held_out if r.pairs()], skipped + more


def _with_reference(
    policy: GPT, rankings: Sequence[Ranking], kept: Path, tokenizer: Tokenizer, compute: Compute
) -> list[Known]:
    """Read the reference's log-probabilities from `kept`, or take them now, while the policy still is its base."""
    examples = [(ids, n) for r in rankings for ids, n in zip(r.examples, r.answer_lengths, strict=True)]
    of = f"{monitors.checksum(policy)} {hashlib.sha256(repr(examples).encode()).hexdigest()}"
    if not kept.exists():
        aside = kept.with_suffix(".part")
        save_file({"logprobs": _read_all(policy, examples, tokenizer, compute)}, aside, {"of": of})
        aside.replace(kept)
    with safe_open(kept, "pt") as file:
        flat, known_of = file.get_tensor("logprobs").tolist(), (file.metadata() or {}).get("of")
    if known_of != of:
        raise TrainingError(
            f"{kept.name} holds {len(flat)} log-probabilities of other rankings or of another base: put those back, or "
            "delete it and the folder checkpoints and run again."
        )
    known, start = [], 0
    for ranking in rankings:
        known.append(Known(ranking, flat[start : start + len(ranking.examples)]))
        start += len(ranking.examples)
    return known


@torch.no_grad()
def _read_all(policy: GPT, examples: Sequence[tuple[list[int], int]], tokenizer: Tokenizer, compute: Compute) -> Tensor:
    """(N,) log-probabilities of (ids, answer length), in their order; near lengths share a batch."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    logprobs = torch.zeros(len(examples))
    for start in range(0, len(order), READ_AT_ONCE):
        chosen = order[start : start + READ_AT_ONCE]
        logprobs[chosen] = answer_logprobs(policy, [examples[i] for i in chosen], tokenizer.pad_id, compute).cpu()
    return logprobs


def answer_logprobs(policy: GPT, examples: Sequence[tuple[list[int], int]], pad_id: int, compute: Compute) -> Tensor:
    """(N,) log-probability of each whole answer, EOS included; an example is its ids and the answer's length."""
    tokens, lengths = stack([ids for ids, _ in examples], pad_id, compute.device)  # (N, T), (N,)
    answers = torch.tensor([length for _, length in examples], device=compute.device)
    chosen = torch.arange(1, tokens.shape[1], device=compute.device)
    mask = (chosen >= (lengths - answers)[:, None]) & (chosen < lengths[:, None])
    episodes = Episodes(tokens, mask.float(), lengths, torch.ones_like(lengths, dtype=torch.bool))
    logprobs, _ = completion_logprobs(policy, episodes, 1.0, compute)
    return padded(logprobs, episodes.mask).sum(1)


def implicit_rewards(
    policy: GPT | Together, batch: Sequence[Known], config: DPOConfig, tokenizer: Tokenizer, compute: Compute
) -> Tensor:
    """(N,) beta * log(policy / reference) of all completions, ranking after ranking."""
    rankings = [known.ranking for known in batch]
    examples = [(ids, n) for r in rankings for ids, n in zip(r.examples, r.answer_lengths, strict=True)]
    read = policy if isinstance(policy, Together) else partial(answer_logprobs, policy)
    logprobs = read(examples, tokenizer.pad_id, compute)
    return config.beta * (logprobs - logprobs.new_tensor([x for known in batch for x in known.ref_logprobs]))


def preference_loss(
    rewards: Tensor, rankings: Sequence[Ranking], label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weighted mean over the untied pairs, each 1 / C(K, 2) of its ranking, and the pairs' gaps (P,).

    Smoothing s takes a share s of the pairs for turned round: -(1 - s) log sigmoid(gap) - s log sigmoid(-gap)
    (Mitchell 2023, "conservative DPO").
    """
    better, worse, weight, start = list[int](), list[int](), list[float](), 0
    for ranking in rankings:
        k = len(ranking.examples)
        for one, other in ranking.pairs():
            better.append(start + one)
            worse.append(start + other)
            weight.append(1 / math.comb(k, 2))
        start += k
    assert start == rewards.shape[0], (start, rewards.shape)
    gaps = rewards[better] - rewards[worse]
    losses = -(1 - label_smoothing) * F.logsigmoid(gaps) - label_smoothing * F.logsigmoid(-gaps)
    shares = gaps.new_tensor(weight)
    return (shares * losses).sum() / shares.sum(), gaps


def _train(
    config: DPOConfig,
    run_dir: Path,
    report: Report,
    policy: GPT,
    known: list[Known],
    n: int,
    prompts: list[Prompt],
    tokenizer: Tokenizer,
    compute: Compute,
) -> float:
    """Learn from the first n rankings, look at the others; returns the mean loss of the last tenth of the run.

    Which rankings a step takes depends on (seed, step) alone.
    """
    train, held_out = known[:n], known[n:]
    logprobs_of = Together(policy, answer_logprobs)
    optimizer = optim.adamw(policy, config.learning_rate, config.weight_decay, config.beta2)
    checkpoints = Checkpoints(run_dir, report.fence, config.keep_checkpoints)
    per_epoch = math.ceil(len(train) / config.batch_size)
    steps = per_epoch * config.epochs
    val_every = config.val_every or math.ceil(per_epoch / VALIDATIONS_A_PASS)
    done, losses = 0, list[float]()
    if saved := checkpoints.latest():
        done, tensors, state = saved
        losses = state["losses"]
        optim.load_state_tensors(policy, optimizer, tensors)
    report.rewind(done if done else -1)

    def on_fewer(rows: int) -> object:
        longest = sorted(train, key=lambda known: known.ranking.longest)[-rows:]
        return _step(config, policy, optimizer, longest, tokenizer, compute)

    for step in range(done + 1, steps + 1):
        epoch, place = divmod(step - 1, per_epoch)
        order = data.epoch_order(len(train), config.seed, epoch)
        batch = [train[i] for i in order[place * config.batch_size : (place + 1) * config.batch_size]]
        rate = optim.learning_rate(step - 1, steps, config.learning_rate, config.warmup_steps, config.min_lr_ratio)
        optim.set_learning_rate(optimizer, rate)
        with memory.explained(len(batch), on_fewer, "set batch_size to {fits}"):
            figures = _step(config, policy, optimizer, batch, tokenizer, compute, logprobs_of)
        optim.require_finite(figures["loss"], step, config.learning_rate, figures["grad_norm"])
        losses.append(figures["loss"])
        look = step % val_every == 0 or step == steps
        if look and held_out:
            seen = validate(policy, held_out, config, tokenizer, compute)
            figures |= {name: seen[name] for name in ("val_loss", "val_accuracy")}
        if step % config.log_every == 0 or step in (1, steps) or look:
            report(step, {"steps": steps, **figures, "lr": rate})
        if look and prompts:
            _sample(report, step, policy, prompts, config, tokenizer, compute)
        stopping = parallel.agree(report.stopping) and step < steps
        if checkpoints.due(step, config.checkpoint_every) or step == steps or stopping:
            checkpoints.save(step, optim.state_tensors(policy, optimizer), {"losses": losses})
        if stopping:
            raise Stopped(step)
    return statistics.fmean(losses[-max(1, steps // 10) :])


def _step(
    config: DPOConfig,
    policy: GPT,
    optimizer: torch.optim.Optimizer,
    batch: list[Known],
    tokenizer: Tokenizer,
    compute: Compute,
    logprobs_of: Together | None = None,
) -> dict[str, float]:
    logprobs_of, own = logprobs_of or Together(policy, answer_logprobs), batch[parallel.share(len(batch))]
    read = own or batch[:1]  # a rank without a ranking reads one that weighs nothing
    rewards = implicit_rewards(logprobs_of, read, config, tokenizer, compute)
    loss, gaps = preference_loss(rewards, [known.ranking for known in read], config.label_smoothing)
    loss = loss * (_weight(own) / _weight(batch))
    optimizer.zero_grad(set_to_none=True)
    logprobs_of.backward(loss)
    grad_norm = float(optim.clip(policy, config.grad_clip))
    optimizer.step()
    # Both rewards may fall while their gap grows: the policy then moves its mass to answers that nobody ranked.
    best = rewards[[i for i, first in enumerate(_is_best(read)) if first]]
    share, n = comparisons.accuracy(gaps.tolist())
    sums = [share * n, gaps.sum().item(), n, best.sum().item(), len(best), rewards.sum().item(), len(rewards)]
    sums = [loss.item(), *(figure if own else 0.0 for figure in sums)]
    mean, right, gap, n, top, firsts, every, answers = parallel.total(torch.tensor(sums, dtype=torch.float64)).tolist()
    figures = {"loss": mean, "accuracy": right / n, "margin": gap / n, "grad_norm": grad_norm}
    return figures | {"reward_best": top / firsts, "reward_mean": every / answers}


def _weight(batch: Sequence[Known]) -> float:
    """What the pairs of these rankings weigh together."""
    return sum(len(k.ranking.pairs()) / math.comb(len(k.ranking.examples), 2) for k in batch)


def _is_best(batch: Sequence[Known]) -> list[bool]:
    return [i in known.ranking.groups[0] for known in batch for i in range(len(known.ranking.examples))]


@torch.no_grad()
def validate(
    policy: GPT, held_out: Sequence[Known], config: DPOConfig, tokenizer: Tokenizer, compute: Compute
) -> dict[str, Any]:
    """Loss on held-out rankings and how often the implicit reward orders a pair as people did, with its interval."""
    if not held_out:
        return {"val_loss": None, "val_accuracy": None, "val_pairs": 0}
    rewards = torch.cat(
        [
            implicit_rewards(policy, held_out[i : i + config.batch_size], config, tokenizer, compute)
            for i in range(0, len(held_out), config.batch_size)
        ]
    )
    loss, gaps = preference_loss(rewards, [known.ranking for known in held_out], config.label_smoothing)
    share, n = comparisons.accuracy(gaps.tolist())
    prompts = [known.ranking.prompt for known in held_out for _ in known.ranking.pairs()]
    low, high = clustered(comparisons.hits(gaps.tolist()), prompts)
    figures = {"val_loss": loss.item(), "val_accuracy": share, "val_pairs": n}
    return figures | {"val_accuracy_low": low, "val_accuracy_high": high}


def _prompts(config: DPOConfig, rankings: Sequence[Ranking], context: int, tokenizer: Tokenizer) -> list[Prompt]:
    """Each prompt once, where a whole answer fits behind it."""
    texts = dict.fromkeys(ranking.prompt for ranking in rankings)
    prompts = [(text, render_prompt(tokenizer, text)) for text in texts]
    return [prompt for prompt in prompts if len(prompt[1]) + config.max_new_tokens <= context]


def _answers(
    policy: GPT, prompts: Sequence[Prompt], seed: int, config: DPOConfig, tokenizer: Tokenizer, compute: Compute
) -> list[Request]:
    ids = [ids for _, ids in prompts]
    seeds = completion_seeds(seed, len(ids))
    return generate(policy, tokenizer, ids, seeds, max_new_tokens=config.max_new_tokens, compute=compute)


def _sample(
    report: Report,
    step: int,
    policy: GPT,
    prompts: list[Prompt],
    config: DPOConfig,
    tokenizer: Tokenizer,
    compute: Compute,
) -> None:
    shown = prompts[:SAMPLES]
    answers = _answers(policy, shown, optim.step_seed(config.seed, step), config, tokenizer, compute)
    for (prompt, _), answer in zip(shown, answers, strict=True):
        report.sample(step, prompt=prompt, text=answer.text, finish_reason=answer.finish_reason)


def _measure_kl(
    config: DPOConfig, run_dir: Path, policy: GPT, prompts: list[Prompt], tokenizer: Tokenizer, compute: Compute
) -> dict[str, float]:
    """KL from the reference on answers that the policy writes now: the rankings hold none of its own."""
    if not prompts or not config.kl_samples:
        return {}
    asked = [prompts[i % len(prompts)] for i in range(config.kl_samples)]
    answers = _answers(policy, asked, config.seed, config, tokenizer, compute)
    reference, _, _ = checkpoint.load_model(data.resolve(run_dir, config.base), compute.device)
    kl = sequence_kl(policy, reference.eval(), answers, tokenizer.pad_id, 1.0, READ_AT_ONCE, compute)
    length = statistics.fmean(len(answer.tokens) for answer in answers)
    return {"kl": kl, "length": length, "eos_share": statistics.fmean(a.finish_reason == "eos" for a in answers)}
