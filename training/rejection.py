"""Stage `rejection`: write n answers to each prompt, keep the best by the reward model, learn from those.

Rejection-sampling SFT, or best-of-n distillation (Touvron et al. 2023, "rejection sampling"): the steps first sample,
then learn. Only answers that end are learned from, EOS included.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from training import checkpoint, data, device, memory, optim, parallel
from training.checkpoints import Checkpoints
from training.config import TrainingError
from training.config_baselines import RejectionConfig
from training.device import Compute
from training.engine import generate
from training.evaluate import rewards_of, sequence_kl
from training.generate import completion_seeds
from training.model import GPT
from training.parallel import Together
from training.pool import Answer, Pool, Writer
from training.ppo import read_prompts
from training.report import Report, Stopped
from training.rollout import Demonstration, demonstration_loss
from training.vocabulary import Tokenizer

READ_AT_ONCE, SAMPLES = 64, 4


def run(config: RejectionConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    """A policy, a reward model and prompts in, the policy that learned its own best answers out."""
    started = time.monotonic()
    compute = device.prepare_exact(config)
    policy, tokenizer, _ = checkpoint.load_model(data.resolve(run_dir, config.base), compute.device)
    reward_model, other, _ = checkpoint.load_reward_model(data.resolve(run_dir, config.reward_model), compute.device)
    checkpoint.require_same_tokenizer(tokenizer, other, ("The policy", "the reward model"))
    room = min(policy.config.n_positions, reward_model.config.n_positions)
    prompts, skipped = read_prompts(data.resolve(run_dir, config.prompts), tokenizer, room, config.max_new_tokens)
    ids = [ids for _, ids in prompts]
    writer = Writer(
        policy.eval(), reward_model.eval(), tokenizer, compute, config.seed, config.temperature, config.max_new_tokens
    )
    pool = Pool(run_dir, ids, config.n, config.write_batch)
    checkpoints = Checkpoints(run_dir, report.fence, config.keep_checkpoints)
    saved = checkpoints.latest()
    report.rewind(pool.done + (saved[0] if saved else 0))
    steps = pool.parts + config.epochs * math.ceil(len(prompts) / config.batch_size)
    answers = pool.fill(writer, report, steps)
    kept = [best_ended(row) for row in answers]
    if not any(kept):
        raise TrainingError(
            f"None of {len(kept) * config.n} answers ended within {config.max_new_tokens} tokens: raise "
            "max_new_tokens, or begin with a model whose SFT taught it to end."
        )
    examples = [_example(p, answer) for p, answer in zip(ids, kept, strict=True) if answer is not None]
    rewards = [answer.reward for answer in kept if answer is not None]
    loss = _learn(config, report, policy, examples, tokenizer, compute, checkpoints, saved, pool.parts, writer)
    result = {"train_loss": loss, "rows": len(examples), "skipped_too_long": skipped, "prompts": len(prompts)}
    result["score_before"] = statistics.fmean(answer.reward for row in answers for answer in row)
    result["score_best"] = statistics.fmean(rewards)
    result |= _measure(config, run_dir, writer, ids)
    report.fence()
    meta = {"stage": "rejection", "run": run_dir.name, "parent": config.base, "reward_model": config.reward_model}
    checkpoint.save_model(run_dir / "model", policy, tokenizer, "policy", {**meta, "kl": result.get("kl")})
    return result | {"seconds": round(time.monotonic() - started, 2)}


def best_ended(answers: Sequence[Answer]) -> Answer | None:
    """The answer with the highest reward among those that end; None where all were cut off."""
    ended = [answer for answer in answers if answer.finish_reason == "eos"]
    return max(ended, key=lambda answer: answer.reward) if ended else None


def _example(prompt: list[int], answer: Answer) -> Demonstration:
    """The very tokens that were sampled: encoding the text again may split it otherwise."""
    return [*prompt, *answer.tokens], [0] * len(prompt) + [1] * len(answer.tokens)


def _learn(
    config: RejectionConfig,
    report: Report,
    policy: GPT,
    examples: list[Demonstration],
    tokenizer: Tokenizer,
    compute: Compute,
    checkpoints: Checkpoints,
    saved: tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None,
    before: int,
    writer: Writer,
) -> float:
    """SFT on the best answers; mean loss of the last tenth. `before` is how many steps of the curves were sampling."""
    loss_of = Together(policy, demonstration_loss)
    optimizer = optim.adamw(policy, config.learning_rate, config.weight_decay, config.beta2)
    per_epoch = math.ceil(len(examples) / config.batch_size)
    steps = per_epoch * config.epochs
    done, losses = 0, list[float]()
    if saved:
        done, losses = saved[0], saved[2]["losses"]
        optim.load_state_tensors(policy, optimizer, saved[1])

    def on_fewer(rows: int) -> object:
        longest = sorted(examples, key=lambda example: len(example[0]))[-rows:]
        return _step(config, policy, optimizer, longest, tokenizer, compute)

    for step in range(done + 1, steps + 1):
        epoch, place = divmod(step - 1, per_epoch)
        order = data.epoch_order(len(examples), config.seed, epoch)
        batch = [examples[i] for i in order[place * config.batch_size : (place + 1) * config.batch_size]]
        rate = optim.learning_rate(step - 1, steps, config.learning_rate, config.warmup_steps, config.min_lr_ratio)
        optim.set_learning_rate(optimizer, rate)
        with memory.explained(len(batch), on_fewer, "set batch_size to {fits}"):
            loss, grad_norm = _step(config, policy, optimizer, batch, tokenizer, compute, loss_of)
        optim.require_finite(loss, step, config.learning_rate, grad_norm)
        losses.append(loss)
        if step % config.log_every == 0 or step in (1, steps):
            figures = {"loss": loss, "grad_norm": grad_norm, "lr": rate}
            report(before + step, {"steps": before + steps, **figures})
        if step == steps:
            _sample(report, before + step, writer, examples)
        stopping = parallel.agree(report.stopping) and step < steps
        if checkpoints.due(step, config.checkpoint_every) or step == steps or stopping:
            checkpoints.save(step, optim.state_tensors(policy, optimizer), {"losses": losses})
        if stopping:
            raise Stopped(before + step)
    return statistics.fmean(losses[-max(1, steps // 10) :])


def _step(
    config: RejectionConfig,
    policy: GPT,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Demonstration],
    tokenizer: Tokenizer,
    compute: Compute,
    loss_of: Together | None = None,
) -> tuple[float, float]:
    """Mean loss per answer token and the gradient's norm."""
    loss_of, own = loss_of or Together(policy, demonstration_loss), batch[parallel.share(len(batch))]
    learned, of_all = (sum(sum(mask[1:]) for _, mask in rows) for rows in (own, batch))
    # A rank without an answer reads one that weighs nothing.
    loss = loss_of(own or batch[:1], tokenizer.pad_id, compute) * (learned / of_all)
    optimizer.zero_grad(set_to_none=True)
    loss_of.backward(loss)
    grad_norm = float(optim.clip(policy, config.grad_clip))
    optimizer.step()
    return parallel.totals({"loss": loss.item()})["loss"], grad_norm


def _sample(report: Report, step: int, writer: Writer, examples: Sequence[Demonstration]) -> None:
    """What the policy answers now to the first prompts, with the reward of each answer."""
    prompts = [ids[: mask.index(1)] for ids, mask in examples[:SAMPLES]]
    special = writer.tokenizer.special.values()
    for prompt, (answer,) in zip(prompts, writer.write(prompts, 1, 0), strict=True):
        text = writer.tokenizer.decode(i for i in prompt if i not in special)
        report.sample(step, prompt=text, text=answer.text, score=answer.reward, finish_reason=answer.finish_reason)


def _measure(config: RejectionConfig, run_dir: Path, writer: Writer, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Reward, KL from the reference, length and ends of what the policy writes now."""
    if not config.kl_samples:
        return {}
    asked = [prompts[i % len(prompts)] for i in range(config.kl_samples)]
    answers = generate(
        writer.policy,
        writer.tokenizer,
        asked,
        completion_seeds(config.seed, len(asked)),
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        compute=writer.compute,
    )
    reference, _, _ = checkpoint.load_model(data.resolve(run_dir, config.base), writer.compute.device)
    pad, temperature = writer.tokenizer.pad_id, config.temperature
    return {
        "score": statistics.fmean(rewards_of(writer.reward_model, answers, writer.tokenizer, writer.compute)),
        "kl": sequence_kl(writer.policy, reference.eval(), answers, pad, temperature, READ_AT_ONCE, writer.compute),
        "length": statistics.fmean(len(answer.tokens) for answer in answers),
        "eos_share": statistics.fmean(answer.finish_reason == "eos" for answer in answers),
    }
