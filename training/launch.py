"""A run on several devices: torchrun as a child, whose end is told as that of one process. Standard library only."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from training.report import FENCED

GRACE = "50"  # seconds that torchrun gives its ranks between SIGTERM and SIGKILL: enough to write a checkpoint


def launched() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ


def launch(stage: str, run_dir: Path, devices: int, attempt: int | None, lock: int) -> int:
    """Run the stage on `devices` processes of this machine; the exit code that one process would give.

    lock: the descriptor that holds run.lock; torchrun keeps it too, until its last rank has gone.
    """
    (run_dir / "error.json").unlink(missing_ok=True)
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={devices}"]
    options = ["--stdin-lifeline", *([] if attempt is None else ["--attempt", str(attempt)])]
    threads = str(max(1, (os.cpu_count() or 1) // devices))
    environment = {"OMP_NUM_THREADS": threads, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": GRACE, **os.environ}
    # The ranks read this pipe: however this process dies, they see its end and die too.
    child = subprocess.Popen(
        [sys.executable, "-m", *torchrun, "-m", "training", stage, str(run_dir), *options],
        stdin=subprocess.PIPE,
        pass_fds=[lock],
        env=environment,
    )
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        child.terminate()  # torchrun passes it on

    signal.signal(signal.SIGTERM, stop)
    code = child.wait()
    if code == 0 or (run_dir / "error.json").exists():
        return int(code != 0)
    if _fenced(run_dir, attempt):
        return FENCED
    if stopped:
        return 0
    # torchrun turns every end of a rank into its own code 1. One that left no sentence was killed.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGKILL)
    return code


def _fenced(run_dir: Path, attempt: int | None) -> bool:
    try:
        return attempt is not None and int((run_dir / "attempt").read_text()) > attempt
    except (OSError, ValueError):
        return False
