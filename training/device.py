"""Where and in which number format a run computes."""

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config import TrainingError


@dataclass(frozen=True)
class Compute:
    """The device, and whether products are taken in bf16 (weights, sums and losses stay fp32)."""

    device: torch.device
    bf16: bool

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def prepare(config: Any) -> Compute:
    """Set the thread count and choose from the config's device, precision and threads."""
    # torch's own default (OMP_NUM_THREADS, else the cores) is what "all" means.
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device is 'cuda' and this machine shows 0 CUDA devices: set device to 'cpu' or 'auto'.")
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    fast = torch.cuda.is_bf16_supported() if cuda else cpu_has_amx()
    return Compute(device, config.precision == "bf16" or (config.precision == "auto" and fast))


def cpu_has_amx() -> bool:
    """Whether bf16 products are faster than fp32 ones here: true with AMX tiles, false on other CPUs."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "AMX").upper().find("AMX") < 0:
        return False
    with contextlib.suppress(OSError):
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    return False


def prepare_exact(config: Any) -> Compute:
    """As prepare, but "auto" means fp32: ratios near 1 and gaps between scores drown in bf16's 8 bits."""
    return prepare(dataclasses.replace(config, precision="fp32") if config.precision == "auto" else config)
