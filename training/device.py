"""Where and in which number format a run computes."""

import contextlib
import ctypes
import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training import kernels
from training.config import TrainingError

# A compiled step is some tenths faster and costs up to a minute first: worth it from this many floating-point
# operations on, which are minutes of work on a GPU.
WORTH_COMPILING = 6e16


@dataclass(frozen=True)
class Compute:
    """The device, whether products are taken in bf16 (weights, sums and losses stay fp32), and whether to compile."""

    device: torch.device
    bf16: bool
    compile: str = "off"  # auto, on or off

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def compiled(self, function: Callable[..., Any], flops: float) -> Callable[..., Any]:
        """On a GPU, `function` through torch.compile where the whole run's `flops` repay it; for calls of ONE shape.

        The answer depends on settings, sizes and machine alone, never on the step: a resumed run computes the same
        bits. One shape, because dynamo's choices for further shapes depend on those it has seen before. On a CPU
        kernels.py does what the compiler would do, in a second instead of a minute, and better.
        """
        if self.device.type != "cuda" or self.compile == "off":
            return function
        if self.compile == "auto" and flops < WORTH_COMPILING:
            return function
        fast = torch.compile(function, dynamic=False)
        return _or_else(fast, function) if self.compile == "auto" else fast


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
    fast = torch.cuda.is_bf16_supported() if cuda else cpu_has_bf16()
    setting = getattr(config, "compile", "auto")
    kernels.enable("off" if cuda else setting)
    keep_memory()
    bf16 = config.precision == "bf16" or (config.precision == "auto" and fast)
    return Compute(device, bf16, setting)


def cpu_has_bf16() -> bool:
    """Whether bf16 products are faster than fp32 ones here: on CPUs with AMX tiles or AVX-512's bf16 instructions."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    if not any(name in allowed for name in ("ALL", "DEFAULT", "BF16", "FP16", "AMX")):
        return False
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
        return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)
    return False


def keep_memory() -> None:
    """Have glibc keep what a step frees for the next one.

    By default large tensors go back to the system and come anew, zeroed page by page: a quarter of a step of GPT-2.
    """
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(parameter, value)


def prepare_exact(config: Any) -> Compute:
    """As prepare, but "auto" means fp32: ratios near 1 and gaps between scores drown in bf16's 8 bits."""
    return prepare(dataclasses.replace(config, precision="fp32") if config.precision == "auto" else config)
