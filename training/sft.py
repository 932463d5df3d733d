"""Stage `sft`: learn to answer from demonstrations; the loss is on the answer and its EOS only. Dropout is off."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import chat, checkpoint, data, demonstrations, device, memory, monitors, optim, parallel
from training.checkpoints import Checkpoints
from training.config import SFTConfig, TrainingError
from training.demonstrations import Batch, Example, collate
from training.device import Compute
from training.engine import generate
from training.model import GPT
from training.parallel import Together
from training.pretrain import token_loss
from training.report import Pace, Report, Stopped
from training.vocabulary import Tokenizer


def run(config: SFTConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    compute = device.prepare(config)
    model, tok, _ = checkpoint.load_model(data.resolve(run_dir, config.base), compute.device)
    model.eval()
    train, val, skipped = load_examples(config, run_dir, tok, model.config.n_positions)
    monitors.learned_ends(sum(e.mask[-1] == 1 and e.ids[-1] == tok.eos_id for e in train), len(train))
    steps = config.epochs * math.ceil(len(train) / config.batch_size)
    loss_of = Together(model, token_loss, config.sharded)
    optimizer = optim.adamw(model, config.learning_rate, config.weight_decay, config.beta2)
    checkpoints = Checkpoints(run_dir, report.fence, config.keep_checkpoints)
    step, newest = 0, {}
    if saved := checkpoints.latest():
        step, newest = saved[0], saved[2]["newest"]
        optim.load_state_tensors(model, optimizer, saved[1])
    report.rewind(step if saved else -1)
    if not saved and val:
        report(0, {"steps": steps, "val_loss": loss_of.run(validate, val, config, tok, compute)})
    pace, figures = Pace(), {}

    def on_fewer(rows: int) -> object:
        longest = sorted(train, key=lambda example: len(example.ids))[-rows:]
        fewer = collate(longest, tok.pad_id, model.config.n_positions, config.packing)
        return learn(model, optimizer, fewer, config, compute, step, steps)

    while step < steps:
        last = step + 1 == steps
        batch = step_batch(train, config, tok, model.config.n_positions, step)
        learned = monitors.learned_tokens(batch.targets)
        with pace.of(batch.tokens), memory.explained(config.batch_size, on_fewer, "set batch_size to {fits}"):
            rate, loss, norm = learn(model, optimizer, batch, config, compute, step, steps, loss_of)
            step += 1
            stopping = parallel.agree(report.stopping) and not last
            save = checkpoints.due(step, config.checkpoint_every) or last or stopping
            if step % config.log_every == 0 or save:
                optim.require_finite(float(loss), step, config.learning_rate, float(norm))
            if step % config.log_every == 0 or last:
                figures = {"loss": float(loss), "lr": rate, "grad_norm": float(norm)}
                figures["learned_share"] = learned / batch.tokens
        if figures:
            figures["tokens_per_s"] = pace.lap()
        if val and (step % config.val_every == 0 or last):
            figures["val_loss"] = loss_of.run(validate, val, config, tok, compute)
            checkpoints.keep_best(step, figures["val_loss"], model)
        if figures:
            report(step, {"steps": steps, **figures})
            newest, figures = {**newest, **figures}, {}
        if config.sample_every and (step % config.sample_every == 0 or last):
            report.sample(step, **loss_of.run(_sample, tok, val or train, config, step))
        if save:
            checkpoints.save(step, optim.state_tensors(model, optimizer), {"newest": newest})
        if stopping:
            raise Stopped(step)
    step = checkpoints.load_best(model) if config.save_best else step
    report.fence()
    card = {"stage": "sft", "run": run_dir.name, "parent": config.base, "step": step}
    checkpoint.save_model(run_dir / "model", model, tok, "sft", card)
    counts = {"rows": len(train), "val_rows": len(val), "skipped_too_long": skipped, "steps": steps}
    counts |= checkpoints.about(step)
    return {**newest, **counts, "tokens_per_s": pace.overall(), "seconds": round(pace.seconds, 1)}


def load_examples(
    config: SFTConfig, run_dir: Path, tok: Tokenizer, context: int
) -> tuple[list[Example], list[Example], int]:
    """Training rows, validation rows, and how many of both were too long for the context."""
    train, longest, dropped = demonstrations.read(data.resolve(run_dir, config.data), tok, context)
    if not train:
        raise TrainingError(
            f"All {dropped} rows are longer than the context of {context} tokens (the longest has {longest}): "
            "shorten them or take a base model with a longer context."
        )
    if config.val:
        val, _, more = demonstrations.read(data.resolve(run_dir, config.val), tok, context)
        return train, val, dropped + more
    order = data.epoch_order(len(train), config.seed, -1)
    kept = min(math.ceil(len(train) * config.val_fraction), len(train) - 1)
    return [train[i] for i in order[kept:]], [train[i] for i in order[:kept]], dropped


def step_batch(train: Sequence[Example], config: SFTConfig, tok: Tokenizer, context: int, step: int) -> Batch:
    """The demonstrations of a step: each epoch visits every one once, in an order of its own."""
    per_epoch = math.ceil(len(train) / config.batch_size)
    order = data.epoch_order(len(train), config.seed, step // per_epoch)
    first = step % per_epoch * config.batch_size
    chosen = [train[i] for i in order[first : first + config.batch_size]]
    return collate(chosen, tok.pad_id, context, config.packing)


def learn(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: SFTConfig,
    compute: Compute,
    step: int,
    steps: int,
    loss_of: Together | None = None,
) -> tuple[float, Tensor, Tensor]:
    """One optimizer step; returns learning rate, mean loss per learned token and the gradient's norm."""
    torch.manual_seed(optim.step_seed(config.seed, step))
    rate = optim.learning_rate(step, steps, config.learning_rate, config.warmup_steps, config.min_lr_ratio)
    optim.set_learning_rate(optimizer, rate)
    loss_of, learned = loss_of or Together(model, token_loss), int((batch.targets >= 0).sum())
    inputs, targets, positions, documents = batch.to(compute.device)
    targets, inputs, positions, documents = parallel.mine(targets, inputs, positions, documents)
    loss = loss_of(inputs, targets, compute, positions, documents) / learned
    loss_of.backward(loss)
    norm = optim.clip(model, config.grad_clip)
    monitors.gradient(float(norm), f"at step {step + 1}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return rate, parallel.total(loss.detach()), norm


@torch.no_grad()
def validate(model: GPT, val: Sequence[Example], config: SFTConfig, tok: Tokenizer, compute: Compute) -> float:
    """Mean loss per answer token of the held-out rows."""
    total, tokens = 0.0, 0
    for first in range(0, len(val), config.batch_size):
        chosen = val[first : first + config.batch_size]
        batch = collate(chosen, tok.pad_id, model.config.n_positions, config.packing)
        total += float(_loss(model, batch, compute))
        tokens += int((batch.targets >= 0).sum())
    return total / tokens


def _loss(model: GPT, batch: Batch, compute: Compute) -> Tensor:
    inputs, targets, positions, documents = batch.to(compute.device)
    return token_loss(model, inputs, targets, compute, positions, documents)


def _sample(model: GPT, tok: Tokenizer, examples: Sequence[Example], config: SFTConfig, step: int) -> dict[str, str]:
    prompt = examples[step // config.sample_every % len(examples)].prompt
    ids = chat.render_prompt(tok, prompt)
    prompt = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    ids, seed = ids[-(model.config.n_positions - 1) :], optim.step_seed(config.seed, step)
    (new,) = generate(model, tok, [ids], [seed], max_new_tokens=config.sample_tokens, temperature=0.8)
    return {"prompt": prompt, "text": new.text}
