"""Where and in which number format a run computes."""

import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config import TrainingError

# A compiled step is some tenths faster and costs up to a minute first: worth it from this many floating-point
# operations on, which are about ten minutes of work.
WORTH_COMPILING = {"cpu": 1.5e14, "cuda": 6e16}


@dataclass(frozen=True)
class Compute:
    """The device, whether products are taken in bf16 (weights, sums and losses stay fp32), and whether to compile."""

    device: torch.device
    bf16: bool
    compile: str = "off"  # auto, on or off

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def compiled(self, function: Callable[..., Any], flops: float) -> Callable[..., Any]:
        """`function` through torch.compile where the whole run's `flops` repay it; for calls of ONE shape.

        The answer depends on settings, sizes and machine alone, never on the step: a resumed run computes the same
        bits. One shape, because dynamo's choices for further shapes depend on those it has seen before.
        """
        if self.compile == "off":
            return function
        if self.compile == "auto" and (flops < WORTH_COMPILING[self.device.type] or not _has_compiler()):
            return function
        fast = torch.compile(function, dynamic=False)
        return _or_else(fast, function) if self.compile == "auto" else fast


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))


def _or_else(fast: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """`fast` until the compiler fails, which is said once; then `plain`."""
    chosen = fast

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal chosen
        try:
            return chosen(*args, **kwargs)
        except Exception as error:
            if chosen is plain or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            print(f"torch.compile failed ({type(error).__name__}): this run goes on uncompiled.", file=sys.stderr)
            chosen = plain
            return plain(*args, **kwargs)

    return call


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
    bf16 = config.precision == "bf16" or (config.precision == "auto" and fast)
    return Compute(device, bf16, getattr(config, "compile", "off"))


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
