"""Stage `sft`: learn to answer from demonstrations; the loss is on the answer and its EOS only. Dropout is off."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import chat, checkpoint, data, device, monitors, optim
from training.checkpoints import Checkpoints
from training.config import SFTConfig, TrainingError
from training.device import Compute
from training.model import GPT, continue_text
from training.pretrain import token_loss
from training.report import Pace, Report, Stopped
from training.vocabulary import Tokenizer

FIELDS = {"instruction": str, "response": str}


@dataclass(frozen=True)
class Example:
    ids: list[int]
    mask: list[int]  # 1 on the answer and its EOS
    prompt: str


def run(config: SFTConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    compute = device.prepare(config)
    model, tok, _ = checkpoint.load_model(data.resolve(run_dir, config.base), compute.device)
    model.eval()
    train, val, skipped = load_examples(config, run_dir, tok, model.config.n_positions)
    monitors.learned_ends(sum(e.mask[-1] == 1 and e.ids[-1] == tok.eos_id for e in train), len(train))
    steps = config.epochs * math.ceil(len(train) / config.batch_size)
    optimizer = optim.adamw(model, config.learning_rate, config.weight_decay, config.beta2)
    checkpoints = Checkpoints(run_dir, report.fence)
    step, newest = 0, {}
    if saved := checkpoints.latest():
        step, newest = saved[0], saved[2]["newest"]
        optim.load_state_tensors(model, optimizer, saved[1])
    report.rewind(step if saved else -1)
    if not saved and val:
        report(0, {"steps": steps, "val_loss": validate(model, val, config, tok, compute)})
    pace, figures = Pace(), {}
    while step < steps:
        last = step + 1 == steps
        inputs, targets = step_batch(train, config, tok, step)
        learned = monitors.learned_tokens(targets)
        with pace.of(inputs.numel()):
            rate, loss, norm = learn(model, optimizer, inputs, targets, config, compute, step, steps)
            step += 1
            if step % config.log_every == 0 or last:
                figures = {"loss": float(loss), "lr": rate, "grad_norm": float(norm)}
                figures["learned_share"] = learned / int((inputs != tok.pad_id).sum())
                optim.require_finite(figures["loss"], step, config.learning_rate)
        if figures:
            figures["tokens_per_s"] = pace.lap()
        if val and (step % config.val_every == 0 or last):
            figures["val_loss"] = validate(model, val, config, tok, compute)
        if figures:
            report(step, {"steps": steps, **figures})
            newest, figures = {**newest, **figures}, {}
        if config.sample_every and (step % config.sample_every == 0 or last):
            report.sample(step, **_sample(model, tok, val or train, config, step))
        if checkpoints.due(step, config.checkpoint_every) or last or report.stopping:
            checkpoints.save(step, optim.state_tensors(model, optimizer), {"newest": newest})
        if report.stopping and not last:
            raise Stopped(step)
    report.fence()
    card = {"stage": "sft", "run": run_dir.name, "parent": config.base}
    checkpoint.save_model(run_dir / "model", model, tok, "sft", card)
    counts = {"rows": len(train), "val_rows": len(val), "skipped_too_long": skipped, "steps": steps}
    return {**newest, **counts, "tokens_per_s": pace.overall(), "seconds": round(pace.seconds, 1)}


def load_examples(
    config: SFTConfig, run_dir: Path, tok: Tokenizer, context: int
) -> tuple[list[Example], list[Example], int]:
    """Training rows, validation rows, and how many of both were too long for the context."""
    train, longest, dropped = _examples(data.resolve(run_dir, config.data), tok, context)
    if not train:
        raise TrainingError(
            f"All {dropped} rows are longer than the context of {context} tokens (the longest has {longest}): "
            "shorten them or take a base model with a longer context."
        )
    if config.val:
        val, _, more = _examples(data.resolve(run_dir, config.val), tok, context)
        return train, val, dropped + more
    order = data.epoch_order(len(train), config.seed, -1)
    kept = min(math.ceil(len(train) * config.val_fraction), len(train) - 1)
    return [train[i] for i in order[kept:]], [train[i] for i in order[:kept]], dropped


def _examples(path: Path, tok: Tokenizer, context: int) -> tuple[list[Example], int, int]:
    rows = data.read_rows(path, FIELDS)
    pairs = [(row["instruction"], *chat.render_example(tok, row["instruction"], row["response"])) for row in rows]
    fitting = [Example(ids, mask, prompt) for prompt, ids, mask in pairs if len(ids) <= context]
    return fitting, max(len(ids) for _, ids, _ in pairs), len(pairs) - len(fitting)


def collate(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T - 1); targets are -1 on prompts and padding."""
    ids = data.pad_right([example.ids for example in examples], pad)
    learned = data.pad_right([example.mask for example in examples], 0).bool()
    return ids[:, :-1], ids.masked_fill(~learned, -1)[:, 1:]


def step_batch(train: Sequence[Example], config: SFTConfig, tok: Tokenizer, step: int) -> tuple[Tensor, Tensor]:
    """The rows of a step: each epoch visits every row once, in an order of its own."""
    per_epoch = math.ceil(len(train) / config.batch_size)
    order = data.epoch_order(len(train), config.seed, step // per_epoch)
    first = step % per_epoch * config.batch_size
    return collate([train[i] for i in order[first : first + config.batch_size]], tok.pad_id)


def learn(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    config: SFTConfig,
    compute: Compute,
    step: int,
    steps: int,
) -> tuple[float, Tensor, Tensor]:
    """One optimizer step; returns learning rate, mean loss per learned token and the gradient's norm."""
    torch.manual_seed(optim.step_seed(config.seed, step))
    rate = optim.learning_rate(step, steps, config.learning_rate, config.warmup_steps, config.min_lr_ratio)
    optim.set_learning_rate(optimizer, rate)
    learned = int((targets >= 0).sum())
    loss = token_loss(model, inputs.to(compute.device), targets.to(compute.device), compute) / learned
    loss.backward()
    norm = optim.clip(model, config.grad_clip)
    monitors.gradient(float(norm), f"at step {step + 1}")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return rate, loss.detach(), norm


@torch.no_grad()
def validate(model: GPT, val: Sequence[Example], config: SFTConfig, tok: Tokenizer, compute: Compute) -> float:
    """Mean loss per answer token of the held-out rows."""
    total, tokens = 0.0, 0
    for first in range(0, len(val), config.batch_size):
        inputs, targets = collate(val[first : first + config.batch_size], tok.pad_id)
        total += float(token_loss(model, inputs.to(compute.device), targets.to(compute.device), compute))
        tokens += int((targets >= 0).sum())
    return total / tokens


def _sample(model: GPT, tok: Tokenizer, examples: Sequence[Example], config: SFTConfig, step: int) -> dict[str, str]:
    prompt = examples[step // config.sample_every % len(examples)].prompt
    ids = chat.render_prompt(tok, prompt)
    new = continue_text(model, ids, config.sample_tokens, 0.8, optim.step_seed(config.seed, step), tok.eos_id)
    return {"prompt": prompt, "text": tok.decode(i for i in new if i != tok.eos_id)}
