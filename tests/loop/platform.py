"""A whole installation for tests: `manage.py up` in a home of its own, driven by commands alone."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Everything that waits, waits briefly.
QUICK = {"STALE_SECONDS": "4", "HEARTBEAT_SECONDS": "1", "RECONCILE_SECONDS": "1", "OMP_NUM_THREADS": "1"}


class Installation:
    """A running platform. `manage` runs a command and returns its JSON."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {**os.environ, **QUICK, "BUCLE_HOME": str(home)}
        for name in ("REDIS_URL", "DATABASE_URL", "BUCLE_TEST_HOME"):
            self.env.pop(name, None)
        self.up: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "manage.py", "up", "--port", "0"]
        log = (self.home / "up.log").open("a")
        self.up = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=log, stderr=log, text=True)
        self.wait_for(lambda: (self.home / "url").exists() and "is up" in (self.home / "up.log").read_text(), 90)

    def stop(self) -> None:
        if self.up is not None:
            self.up.terminate()
            self.up.wait(timeout=60)

    @property
    def url(self) -> str:
        return (self.home / "url").read_text()

    def run(self, *args: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "manage.py", *args], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=300
        )

    def manage(self, *args: str) -> dict[str, Any]:
        done = self.run(*args, "--json")
        assert done.returncode == 0, f"manage.py {' '.join(args)}: {done.stdout}{done.stderr}"
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))

    def shell(self, code: str) -> str:
        done = self.run("shell", "--no-imports", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def query(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{self.home / 'bucle.sqlite3'}?mode=ro", uri=True, timeout=20)
        try:
            return connection.execute(sql, args).fetchall()
        finally:
            connection.close()

    def wait_for(self, condition: Callable[[], Any], within: float = 60, every: float = 0.1) -> Any:
        until = time.monotonic() + within
        while time.monotonic() < until:
            found = condition()
            if found:
                return found
            time.sleep(every)
        logs = "".join(f"\n--- {f.name}\n{f.read_text()[-2000:]}" for f in sorted((self.home / "logs").glob("*.log")))
        raise AssertionError(f"not within {within} seconds{logs}")

    def kill_worker(self, queue: str) -> int:
        """kill -9 of the worker that serves a queue; `up` starts a new one. Returns the pid killed."""
        pid = self.worker_pid(queue)
        os.kill(pid, signal.SIGKILL)
        return pid

    def worker_pid(self, queue: str) -> int:
        names = self.query("SELECT name FROM registry_workerprocess WHERE queue = ? ORDER BY seen_at DESC", queue)
        return int(names[0][0].rsplit(":", 1)[1])

    def lines(self, run: int, name: str) -> int:
        """How many lines a file of a run's directory has by now: sooner than the database knows."""
        file = next((self.home / "artifacts").glob(f"projects/*/runs/{run}/{name}"), None)
        return file.read_bytes().count(b"\n") if file else 0

    def run_row(self, pk: int) -> dict[str, Any]:
        names = ("status", "step", "attempt", "attempts_lost", "error")
        return dict(
            zip(names, self.query(f"SELECT {', '.join(names)} FROM registry_run WHERE id = ?", pk)[0], strict=True)
        )
