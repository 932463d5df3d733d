"""What every stage's settings are made of. Standard library only: the web process imports this module."""

from dataclasses import dataclass, field
from typing import Any


class TrainingError(Exception):
    """What a user can mend: one sentence with a number and the next step."""


class ConfigError(TrainingError, ValueError):
    """A setting that cannot be used as given."""


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A field with its help line; limits are low, high (inclusive), choices, required, advanced."""
    metadata = {"help": help, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def require_rows(rows: int, devices: int) -> None:
    """Refuse minibatches in which a process would have nothing to learn from."""
    if rows < devices:
        raise ConfigError(
            f"A minibatch has {rows} answers and devices is {devices}: set fewer minibatches or fewer devices."
        )


@dataclass(frozen=True, kw_only=True)
class Common:
    seed: int = setting(1, "Seed of everything random in this run.", low=0, high=2**31 - 1)
    device: str = setting("auto", "Where to compute.", choices=("auto", "cpu", "cuda"), advanced=True)
    precision: str = setting("auto", "Number format of the products.", choices=("auto", "fp32", "bf16"), advanced=True)
    threads: int = setting(0, "CPU threads; 0 = all.", low=0, high=1024, advanced=True)


@dataclass(frozen=True, kw_only=True)
class Optimised(Common):
    """What every stage with a gradient shares."""

    batch_size: int = setting(16, "Rows per step.", low=1)
    learning_rate: float = setting(3e-4, "Highest learning rate.", low=0.0)
    min_lr_ratio: float = setting(0.1, "Learning rate at the end, as a share of the highest.", low=0.0, high=1.0)
    warmup_steps: int = setting(10, "Steps in which the learning rate rises from 0.", low=0)
    weight_decay: float = setting(0.0, "AdamW's decay of matrices.", low=0.0)
    beta2: float = setting(0.99, "AdamW's memory of squared gradients.", low=0.0, high=0.99999, advanced=True)
    grad_clip: float = setting(1.0, "Largest norm of a gradient; 0 = no limit.", low=0.0)
    compile: str = setting(
        "auto", "Compile parts of the network; auto = where it pays.", choices=("auto", "on", "off"), advanced=True
    )
    log_every: int = setting(10, "Steps between two points of the curves.", low=1, advanced=True)
    checkpoint_every: int = setting(100, "Steps between checkpoints.", low=1, advanced=True)
    devices: int = setting(1, "Processes that share each step's rows, one per GPU.", low=1, high=1024, advanced=True)
    keep_checkpoints: int = setting(2, "Newest checkpoints that are kept.", low=1, advanced=True)
