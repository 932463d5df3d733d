"""Stage `pretrain`: next-token prediction on texts. A run directory in, a base model out."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import checkpoint, data, device, fused, memory, mixture, optim, parallel, vocabulary
from training.checkpoints import Checkpoints
from training.config import PretrainConfig, TrainingError
from training.device import Compute
from training.engine import generate
from training.mixture import Source
from training.model import GPT, parameter_count
from training.parallel import Together
from training.report import Pace, Report, Stopped
from training.vocabulary import Tokenizer

ADVICE = "set batch_size to {fits}, or multiply grad_accum by {parts}"


def run(config: PretrainConfig, run_dir: Path, report: Report) -> dict[str, Any]:
    compute = device.prepare(config)
    model, tok = _start(config, run_dir, compute)
    context = model.config.n_positions
    with parallel.first():
        sources = mixture.open_sources(config.sources, run_dir, tok, context, config.val_fraction, report)
    work = 6 * parameter_count(model) * config.steps * config.batch_size * context
    loss_of = Together(model, compute.compiled(token_loss, work), config.sharded)
    optimizer = optim.adamw(model, config.learning_rate, config.weight_decay, config.beta2)
    checkpoints = Checkpoints(run_dir, report.fence, config.keep_checkpoints)
    step, newest = 0, {}
    if saved := checkpoints.latest():
        step, newest = saved[0], saved[2]["newest"]
        optim.load_state_tensors(model, optimizer, saved[1])
    report.rewind(step if saved else -1)
    if not saved and config.val_fraction:
        report(0, {"steps": config.steps, **loss_of.run(validate, sources, config, compute)})
    pace, figures = Pace(), {}
    at_once = math.ceil(config.batch_size / config.grad_accum)

    def on_fewer(rows: int) -> object:
        fewer = dataclasses.replace(config, batch_size=rows, grad_accum=1)
        return learn(model, optimizer, sources, fewer, compute, step)

    while step < config.steps:
        last = step + 1 == config.steps
        with pace.of(config.batch_size * model.config.n_positions), memory.explained(at_once, on_fewer, ADVICE):
            rate, loss, norm = learn(model, optimizer, sources, config, compute, step, loss_of)
            step += 1
            stopping = parallel.agree(report.stopping) and not last
            save = checkpoints.due(step, config.checkpoint_every) or last or stopping
            if step % config.log_every == 0 or save:
                optim.require_finite(float(loss), step, config.learning_rate, float(norm))
            if step % config.log_every == 0 or last:
                figures = {"loss": float(loss), "lr": rate, "grad_norm": float(norm)}
        if figures:
            figures["tokens_per_s"] = pace.lap()
        if config.val_fraction and (step % config.val_every == 0 or last):
            figures |= loss_of.run(validate, sources, config, compute)
            checkpoints.keep_best(step, figures["val_loss"], model)
        if figures:
            report(step, {"steps": config.steps, **figures})
            newest, figures = {**newest, **figures}, {}
        if config.sample_every and (step % config.sample_every == 0 or last):
            report.sample(step, prompt=config.sample_prompt, text=loss_of.run(_sample, tok, config, step))
        if save:
            checkpoints.save(step, optim.state_tensors(model, optimizer), {"newest": newest})
        if stopping:
            raise Stopped(step)
    step = checkpoints.load_best(model) if config.save_best else step
    report.fence()
    card = {"stage": "pretrain", "run": run_dir.name, "parent": config.base or None, "step": step}
    checkpoint.save_model(run_dir / "model", model, tok, "base", card)
    return _result(newest, model, sources, pace) | checkpoints.about(step)


def learn(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    sources: Sequence[Source],
    config: PretrainConfig,
    compute: Compute,
    step: int,
    loss_of: Together | None = None,
) -> tuple[float, Tensor, Tensor]:
    """One optimizer step, a function of the weights and (seed, step) alone; returns learning rate, loss and norm."""
    torch.manual_seed(parallel.seed(optim.step_seed(config.seed, step)))
    rate = optim.learning_rate(step, config.steps, config.learning_rate, config.warmup_steps, config.min_lr_ratio)
    optim.set_learning_rate(optimizer, rate)
    inputs, targets = mixture.batch(sources, config.seed, step, config.batch_size, model.config.n_positions)
    model.train()
    total = torch.zeros((), device=compute.device)
    loss_of = loss_of or Together(model, token_loss)
    learned, parts = targets.numel(), max(1, min(config.grad_accum, len(inputs) // parallel.size()))
    targets, inputs = parallel.mine(targets, inputs)
    for number, (x, y) in enumerate(zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True), start=1):
        with loss_of.part(last=number == parts):
            loss = loss_of(*_on(compute, x, y, config, sources)) / learned
            loss_of.backward(loss)
        total += loss.detach()
    norm = optim.clip(model, config.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return rate, parallel.total(total), norm


def token_loss(
    model: GPT,
    inputs: Tensor,
    targets: Tensor,
    compute: Compute,
    positions: Tensor | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Cross entropy summed over the tokens; all (B, T), targets -1 = not learned, the rest as GPT.forward takes it."""
    with compute.autocast():
        hidden = model(inputs, positions, documents=documents)
        return fused.cross_entropy(hidden.flatten(0, 1), model.head, targets.flatten())


@torch.no_grad()
def validate(model: GPT, sources: Sequence[Source], config: PretrainConfig, compute: Compute) -> dict[str, float]:
    """Mean loss on the validation tails, each source by its weight, and the same in bits per byte of text."""
    model.eval()
    loss = bits = 0.0
    weights = sum(source.weight for source in sources)
    most = math.ceil(config.val_batches / len(sources))
    for source in sources:
        total, tokens = 0.0, 0
        for x, y in mixture.val_batches(source, config.batch_size, model.config.n_positions, most):
            total += float(token_loss(model, *_on(compute, x, y, config, sources)))
            tokens += y.numel()
        loss += source.weight / weights * total / tokens
        bits += source.weight / weights * total / tokens / math.log(2) / source.bytes_per_token
    return {"val_loss": loss, "val_bits_per_byte": bits}


def _on(
    compute: Compute, inputs: Tensor, targets: Tensor, config: PretrainConfig, sources: Sequence[Source]
) -> tuple[Any, ...]:
    """What token_loss takes after the model, on the device; positions and documents only with document_mask."""
    inputs, targets = inputs.to(compute.device), targets.to(compute.device)
    if not config.document_mask:
        return inputs, targets, compute
    return inputs, targets, compute, *mixture.apart(inputs, sources[0].eos_id)


def _start(config: PretrainConfig, run_dir: Path, compute: Compute) -> tuple[GPT, Tokenizer]:
    if config.base:
        model, tok, _ = checkpoint.load_model(data.resolve(run_dir, config.base), compute.device)
        if config.tokenizer:
            own = vocabulary.load(data.resolve(run_dir, config.tokenizer))
            checkpoint.require_same_tokenizer(tok, own, ("The base model", "the tokenizer"))
        return model, tok
    if not config.tokenizer:
        raise TrainingError(
            "There are 0 tokenizers in the settings: run the stage tokenizer and name its model folder."
        )
    tok = vocabulary.load(data.resolve(run_dir, config.tokenizer))
    torch.manual_seed(config.seed)
    return GPT(config.model(tok.vocab_size)).to(compute.device), tok


def _sample(model: GPT, tok: Tokenizer, config: PretrainConfig, step: int) -> str:
    model.eval()
    ids = tok.encode(config.sample_prompt) or [tok.eos_id]
    seed = optim.step_seed(config.seed, step)
    ids = ids[-(model.config.n_positions - 1) :]
    return generate(model, tok, [ids], [seed], max_new_tokens=config.sample_tokens, temperature=0.8)[0].text


def _result(newest: dict[str, float], model: GPT, sources: Sequence[Source], pace: Pace) -> dict[str, Any]:
    tokens = {source.name: len(source.train) + len(source.val) for source in sources}
    sizes = {"parameters": parameter_count(model), "corpus_tokens": tokens}
    return {**newest, **sizes, "tokens_per_s": pace.overall(), "seconds": round(pace.seconds, 1)}
