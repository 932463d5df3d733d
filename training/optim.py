"""AdamW, its learning rate, and its state as named tensors."""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from training import parallel
from training.config import TrainingError

_STATE = ("exp_avg", "exp_avg_sq", "step")


class AdamW(torch.optim.AdamW):
    """torch's AdamW without its decorators, which import torch._dynamo: 2 s at the first step, for nothing here."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    _step = inspect.unwrap(torch.optim.AdamW.step)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        self._step()


def adamw(model: nn.Module, learning_rate: float, weight_decay: float = 0.0, beta2: float = 0.99) -> AdamW:
    """AdamW with decay on matrices only; eps 1e-8."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)


def learning_rate(step: int, steps: int, highest: float, warmup: int, min_ratio: float) -> float:
    """Straight warm-up from 0, then a cosine down to min_ratio; step counts from 0."""
    warmup = min(warmup, steps)
    if step < warmup:
        return highest * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return highest * (min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip(model: nn.Module, limit: float) -> Tensor:
    """Scale gradients down to the limit (0 = none); returns their norm before."""
    weights = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in weights])
    whole = parallel.whole(norm)
    # A GPU would have to be waited for; a CPU saves a pass over all gradients.
    if limit and not (whole.device.type == "cpu" and whole <= limit):
        nn.utils.clip_grads_with_norm_(weights, limit, norm)
    return whole


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, prefix: str = "") -> dict[str, Tensor]:
    """Weights and optimizer state by parameter name: what a checkpoint holds."""
    tensors = {f"{prefix}model.{name}": parallel.whole(tensor) for name, tensor in model.state_dict().items()}
    for name, p in model.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            tensors[f"{prefix}optimizer.{key}.{name}"] = parallel.whole(value)
    return tensors


def load_state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str = ""
) -> None:
    """The inverse of state_tensors, in place; refuses a checkpoint of another shape."""
    weights = f"{prefix}model."
    stored = {k.removeprefix(weights): v for k, v in tensors.items() if k.startswith(weights)}
    for name, own in model.state_dict().items():
        if name not in stored or stored[name].shape != own.shape:
            found = f"as {tuple(stored[name].shape)}" if name in stored else "0 times"
            raise TrainingError(
                f"The checkpoint holds {prefix}{name} {found} and this run's settings ask for {tuple(own.shape)}: put "
                "the settings back, or remove the run's folder checkpoints to start again."
            )
    parallel.load(model, stored)
    for name, p in model.named_parameters():
        found = {key: tensors.get(f"{prefix}optimizer.{key}.{name}") for key in _STATE}
        if all(value is not None for value in found.values()):
            optimizer.state[p] = {k: parallel.spread(v, p).clone() for k, v in found.items() if v is not None}


def step_seed(seed: int, step: int) -> int:
    """One seed per step, so that a resumed run draws what an undisturbed one draws."""
    return (seed * 1_000_003 + step) % 2**63


def require_finite(loss: float, step: int, learning_rate: float, norm: float = 0.0) -> None:
    """Stop before weights that are no numbers reach a checkpoint; norm: the gradient's, which may go first."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        name, figure = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        raise TrainingError(
            f"The {name} is {figure} at step {step}: lower learning_rate below {learning_rate:g} and run again; "
            "it goes on from its last checkpoint."
        )
