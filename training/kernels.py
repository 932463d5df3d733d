"""The C++ parts of the engine (*.cpp), compiled by the machine's compiler in a few seconds, once.

Half of a small model's step went into GELU, softmax, LayerNorm, cross entropy and the casts between them. In one pass
each they cost a tenth; and a step of decoding is one call instead of eighty. Without a compiler everything works as
before, on torch's own operations.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config import TrainingError

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.cpp", "attention.cpp", "decode.cpp")]
HEADERS = [Path(__file__).with_name(name) for name in ("numbers.h", "tiles.h")]
FLAGS = (
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-thread-jumps",
    "-shared",
    "-fPIC",
)
PARTS = 16  # as in kernels.cpp
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_loaded: ctypes.CDLL | None = None


def enable(setting: str) -> bool:
    """Use the kernels from here on in this process: setting "on", "off", or "auto" (where they can be compiled)."""
    global _loaded
    try:
        _loaded = None if setting == "off" else _library()
    except (OSError, subprocess.SubprocessError) as error:
        _loaded = None
        if setting == "on":
            raise TrainingError(
                f"The C++ compiler made 0 kernels ({error}): install g++ or set compile to off."
            ) from None
        if not isinstance(error, FileNotFoundError):
            print(f"The C++ compiler failed ({error}): this run goes on with torch's own operations.", file=sys.stderr)
    return _loaded is not None


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels are enabled and read tensors like these."""
    return _loaded is not None and all(t.device.type == "cpu" and t.dtype in _NAMES for t in tensors)


def has_bf16() -> bool:
    """Whether the kernels were compiled for a processor whose vectors multiply bf16."""
    assert _loaded is not None
    return bool(ctypes.c_bool.in_dll(_loaded, "has_bf16"))


def run(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call a kernel; tensors (contiguous) go by address, None is a null pointer."""
    assert _loaded is not None
    getattr(_loaded, f"{name}_{_NAMES[dtype]}")(*map(_argument, arguments))


def _argument(value: Any) -> Any:
    if isinstance(value, Tensor):
        assert value.is_contiguous(), value.stride()
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, bool):
        return ctypes.c_bool(value)
    if isinstance(value, float):
        return ctypes.c_float(value)
    return ctypes.c_int64(value) if isinstance(value, int) else value  # None, or what ctypes knows


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    if compiler is None:
        raise FileNotFoundError("no g++ and no clang++")
    texts = [path.read_text(encoding="utf-8") for path in (*SOURCES, *HEADERS)]
    key = hashlib.sha256("\0".join((*texts, compiler, *FLAGS, _processor())).encode())
    cached = _cache() / f"kernels-{key.hexdigest()[:16]}.so"
    if not cached.exists():
        with tempfile.TemporaryDirectory(dir=cached.parent) as aside:
            made = Path(aside) / cached.name
            subprocess.run(
                [compiler, *FLAGS, *map(str, SOURCES), "-o", str(made)], check=True, capture_output=True, timeout=120
            )
            made.replace(cached)
    return ctypes.CDLL(str(cached))  # its libgomp.so.1 is the one torch has loaded: one pool of threads


def _cache() -> Path:
    """A folder of this user's: code that others could write is never loaded."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "bucle"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="bucle-"))


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return sys.platform
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
