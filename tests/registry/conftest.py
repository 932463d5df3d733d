"""A real Valkey, and a server that takes connections and never says a word."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry import live


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from workers.processes import valkey_binary, valkey_config, wait_for_redis

    folder: Path = tmp_path_factory.mktemp("valkey")
    url, config = valkey_config(folder)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([valkey_binary(), str(config)], stdout=log, stderr=log)
    wait_for_redis(url)
    yield url
    server.terminate()
    server.wait(timeout=10)


@pytest.fixture
def silent_url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


@pytest.fixture
def use_redis(settings: Any, monkeypatch: pytest.MonkeyPatch):
    """use_redis(url): from now on both the queues and the live views are there."""

    def _use(url: str) -> None:
        settings.REDIS_URL = url
        monkeypatch.setenv("CELERY_BROKER_URL", url)
        monkeypatch.setattr(live, "_client", None)

    return _use


class Bell:
    """In place of the queues: remembers who was rung for, and answers as it is told."""

    def __init__(self) -> None:
        self.rung: list[tuple[Any, ...]] = []
        self.is_there = True

    def __call__(self, task: str, *args: Any) -> bool:
        if self.is_there:
            self.rung.append((task, *args))
        return self.is_there


@pytest.fixture
def bell(monkeypatch: pytest.MonkeyPatch) -> Bell:
    fake = Bell()
    monkeypatch.setattr("registry.lifecycle.ring", fake)
    monkeypatch.setattr("registry.bell.ring", fake)
    return fake
