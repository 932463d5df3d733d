"""Stage `reward`: learn from rankings which answers people prefer (Stiennon et al. 2020; Ouyang et al. 2022, C.2).

One element of a batch is a whole ranking: each of its K completions is read once, and its C(K, 2) pair losses weigh 1
together. The score is read at the EOS only. One pass is enough: more overfits.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import checkpoint, comparisons, data, device, memory, optim, parallel, reward_report
from training.chat import render_example
from training.checkpoints import Checkpoints
from training.config import RewardConfig, TrainingError
from training.device import Compute
from training.model import RewardModel
from training.parallel import Together
from training.rankings import Ranking, read_rankings
from training.report import Report, Stopped
from training.rollout import stack
from training.vocabulary import Tokenizer

SCORED_AT_ONCE = 64
VALIDATIONS_A_PASS, MOST_IN_A_VALIDATION = 4, 256


def run(config: RewardConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """Rankings and an SFT model in, a reward model out whose mean on demonstrations is 0."""
    started = time.monotonic()
    compute = device.prepare(config)
    exact = dataclasses.replace(compute, bf16=False)  # for the figures that other runs are compared by
    torch.manual_seed(optim.step_seed(config.seed, 0))  # the head's first weights
    trunk, tokenizer, card = checkpoint.load_model(data.resolve(run_dir, config.base), compute.device)
    model = RewardModel(trunk).to(compute.device).eval()  # eval: dropout is off in training too
    context = model.config.n_positions
    rankings, skipped = read_rankings(data.resolve(run_dir, config.data), tokenizer, context)
    held_out, more = read_rankings(data.resolve(run_dir, config.val), tokenizer, context) if config.val else ([], 0)
    demonstrations, long = _demonstrations(config, run_dir, tokenizer, context)
    n = sum(len(ranking.pairs()) for ranking in rankings)
    if n < config.min_comparisons:
        raise TrainingError(f"Only {n} comparisons; this run needs {config.min_comparisons}: rank more completions.")

    result = _train(config, run_dir, report, model, rankings, held_out, tokenizer, compute)
    result |= {"train_pairs": n, "rankings": len(rankings), "skipped_too_long": skipped + more + long}
    result |= _centre(model, rankings, demonstrations, tokenizer, exact)
    result |= _validate(model, rankings, held_out, tokenizer, exact, run_dir)
    report.fence()
    meta = {"stage": "reward", "run": run_dir.name, "parent": config.base, "step": result["model_step"]}
    meta |= {"reward_std": result["reward_std"]}
    checkpoint.save_model(run_dir / "model", model, tokenizer, "reward", meta | _lineage(card))
    return result | {"seconds": round(time.monotonic() - started, 2)}


def _demonstrations(
    config: RewardConfig, run_dir: Path, tokenizer: Tokenizer, context: int
) -> tuple[list[list[int]], int]:
    """Demonstrations as ids, and how many were left out because they pass the context."""
    if not config.demonstrations:
        return [], 0
    rows = data.read_rows(data.resolve(run_dir, config.demonstrations), {"instruction": str, "response": str})
    examples = [render_example(tokenizer, row["instruction"], row["response"])[0] for row in rows]
    fitting = [ids for ids in examples if len(ids) <= context]
    if not fitting:
        raise TrainingError(
            f"All {len(rows)} demonstrations are longer than the context of {context} tokens: shorten them, or name "
            "none, so that the ranked answers score 0 on average."
        )
    return fitting, len(rows) - len(fitting)


def _train(
    config: RewardConfig,
    run_dir: Path,
    report: Report,
    model: RewardModel,
    rankings: list[Ranking],
    held_out: list[Ranking],
    tokenizer: Tokenizer,
    compute: Compute,
) -> dict[str, Any]:
    """Mean loss of the last tenth of the run, and which step the weights are from.

    Which rankings a step takes depends on (seed, step) alone.
    """
    scores_of = Together(model, scores)
    optimizer = optim.adamw(model, config.learning_rate, config.weight_decay, config.beta2)
    checkpoints = Checkpoints(run_dir, report.fence, config.keep_checkpoints)
    per_epoch = math.ceil(len(rankings) / config.batch_size)
    steps = per_epoch * config.epochs
    units, rows = _units(config, rankings)
    val_every = config.val_every or math.ceil(per_epoch / VALIDATIONS_A_PASS)
    done, losses = 0, list[float]()
    if saved := checkpoints.latest():
        done, tensors, state = saved
        losses = state["losses"]
        optim.load_state_tensors(model, optimizer, tensors)
    report.rewind(done if done else -1)
    if not done and held_out:
        report(0, {"steps": steps} | _curve(model, held_out, tokenizer, compute))

    def on_fewer(rows: int) -> object:
        longest = sorted(units, key=lambda ranking: ranking.longest)[-rows:]
        return _step(config, model, optimizer, longest, tokenizer, compute)

    for step in range(done + 1, steps + 1):
        epoch, place = divmod(step - 1, per_epoch)
        order = data.epoch_order(len(units), config.seed, epoch)
        batch = [units[i] for i in order[place * rows : (place + 1) * rows]]
        rate = optim.learning_rate(step - 1, steps, config.learning_rate, config.warmup_steps, config.min_lr_ratio)
        optim.set_learning_rate(optimizer, rate)
        with memory.explained(len(batch), on_fewer, "set batch_size to {fits}"):
            figures = _step(config, model, optimizer, batch, tokenizer, compute, scores_of)
        optim.require_finite(figures["loss"], step, config.learning_rate, figures["grad_norm"])
        losses.append(figures["loss"])
        validate = bool(held_out) and (step % val_every == 0 or step % per_epoch == 0)
        if validate:
            figures |= _curve(model, held_out, tokenizer, compute)
            checkpoints.keep_best(step, figures["val_loss"], model)
        if step % config.log_every == 0 or step in (1, steps) or validate:
            report(step, {"steps": steps, **figures, "lr": rate})
        stopping = parallel.agree(report.stopping) and step < steps
        if checkpoints.due(step, config.checkpoint_every) or step == steps or stopping:
            checkpoints.save(step, optim.state_tensors(model, optimizer), {"losses": losses})
        if stopping:
            raise Stopped(step)
    chosen = checkpoints.load_best(model) if config.save_best else steps
    return {"train_loss": statistics.fmean(losses[-max(1, steps // 10) :])} | checkpoints.about(chosen)


def _units(config: RewardConfig, rankings: list[Ranking]) -> tuple[list[Ranking], int]:
    """What is shuffled, and how many of it a step takes.

    Single pairs take as many steps as whole rankings and as many comparisons a step: only their company differs.
    """
    if config.pairing == "k-wise":
        return rankings, config.batch_size
    pairs = [pair for ranking in rankings for pair in ranking.split()]
    return pairs, math.ceil(len(pairs) / math.ceil(len(rankings) / config.batch_size))


def _curve(model: RewardModel, held_out: list[Ranking], tokenizer: Tokenizer, compute: Compute) -> dict[str, float]:
    """Loss and accuracy on held-out rankings (the first 256): where they part from training, it over-fits."""
    some = held_out[:MOST_IN_A_VALIDATION]
    rewards = score_all(model, [ids for r in some for ids in r.examples], tokenizer.pad_id, compute)
    share, n = comparisons.accuracy(gap for _, _, gap in reward_report.pair_gaps(some, rewards))
    return {"val_loss": _loss(some, rewards)} | ({"val_accuracy": share} if n else {})


def _step(
    config: RewardConfig,
    model: RewardModel,
    optimizer: torch.optim.Optimizer,
    batch: list[Ranking],
    tokenizer: Tokenizer,
    compute: Compute,
    scores_of: Together | None = None,
) -> dict[str, float]:
    scores_of, own = scores_of or Together(model, scores), batch[parallel.share(len(batch))]
    read = own or batch[:1]  # a rank without a ranking reads one that weighs nothing
    tokens, lengths = stack([ids for r in read for ids in r.examples], tokenizer.pad_id, compute.device)
    rewards = scores_of(tokens, lengths, compute)  # (N,)
    loss = comparisons.k_wise_loss(rewards, [ranking.groups for ranking in read]) * bool(own) / len(batch)
    optimizer.zero_grad(set_to_none=True)
    scores_of.backward(loss)
    grad_norm = float(optim.clip(model, config.grad_clip))
    optimizer.step()
    share, n = comparisons.accuracy(gap for _, _, gap in reward_report.pair_gaps(own, rewards.tolist()))
    right, n, mean = parallel.total(
        torch.tensor([round(2 * share * n) / 2 if n else 0.0, n, loss.item()], dtype=torch.float64)
    ).tolist()
    return {"loss": mean, "grad_norm": grad_norm} | ({"accuracy": right / n} if n else {})


def scores(model: RewardModel, tokens: Tensor, lengths: Tensor, compute: Compute) -> Tensor:
    """(N,) scores read at the EOS of tokens (N, T), whose lengths are (N,)."""
    with compute.autocast():
        return model.score(tokens, lengths - 1)


@torch.no_grad()
def score_all(model: RewardModel, examples: Sequence[Sequence[int]], pad_id: int, compute: Compute) -> list[float]:
    """One reward per example (ids that end in EOS), in their order; near lengths share a batch."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    rewards = [0.0] * len(examples)
    for start in range(0, len(order), SCORED_AT_ONCE):
        chosen = order[start : start + SCORED_AT_ONCE]
        tokens, lengths = stack([examples[i] for i in chosen], pad_id, compute.device)
        with compute.autocast():
            scores = model.score(tokens, lengths - 1)
        for i, score in zip(chosen, scores.tolist(), strict=True):
            rewards[i] = score
    return rewards


def _centre(
    model: RewardModel,
    rankings: list[Ranking],
    demonstrations: list[list[int]],
    tokenizer: Tokenizer,
    compute: Compute,
) -> dict[str, float | None]:
    """Shift the bias so that demonstrations (or, without any, the ranked completions) score 0 on average.

    Comparisons leave the level of a reward open; a fixed zero is what the missing-EOS penalty and the curves stand on.
    """
    ranked = score_all(model, [ids for r in rankings for ids in r.examples], tokenizer.pad_id, compute)
    level = score_all(model, demonstrations, tokenizer.pad_id, compute) if demonstrations else ranked
    model.bias -= statistics.fmean(level)
    after = score_all(model, demonstrations, tokenizer.pad_id, compute)
    mean = statistics.fmean(after) if demonstrations else None
    return {"mean_on_demonstrations": mean, "reward_std": statistics.pstdev(ranked)}


def _validate(
    model: RewardModel,
    rankings: list[Ranking],
    held_out: list[Ranking],
    tokenizer: Tokenizer,
    compute: Compute,
    run_dir: Path,
) -> dict[str, Any]:
    """Figures on the held-out pairs, beside what length alone would give; writes val_pairs.jsonl."""
    if not held_out:
        return {"val_accuracy": None, "val_pairs": 0, "agreement": reward_report.agreement(rankings)}
    rewards = score_all(model, [ids for r in held_out for ids in r.examples], tokenizer.pad_id, compute)
    if not parallel.rank():
        _write_pairs(run_dir / "val_pairs.jsonl", held_out, rewards)
    return {"val_loss": _loss(held_out, rewards)} | reward_report.report(rankings, held_out, rewards)


def _loss(rankings: list[Ranking], rewards: list[float]) -> float:
    """Mean K-wise loss of rankings whose rewards are known."""
    loss = comparisons.k_wise_loss(torch.tensor(rewards), [ranking.groups for ranking in rankings])
    return loss.item() / len(rankings)


def _write_pairs(path: Path, rankings: list[Ranking], rewards: list[float]) -> None:
    rows, start = [], 0
    for ranking in rankings:
        for better, worse in ranking.pairs():
            rows.append(
                {
                    "prompt": ranking.prompt,
                    "chosen": ranking.responses[better],
                    "rejected": ranking.responses[worse],
                    "chosen_reward": rewards[start + better],
                    "rejected_reward": rewards[start + worse],
                }
            )
        start += len(ranking.examples)
    data.write_rows(path, rows)


def _lineage(card: dict[str, Any]) -> dict[str, Any]:
    return {"parent_kind": card.get("kind")}
