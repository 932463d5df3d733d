"""Ringing on a real Valkey; and that nobody waits for one that is away."""

import json
import time
from typing import Any

import pytest
import redis

from registry.bell import ring

pytestmark = pytest.mark.services


def _messages(url: str, queue: str) -> list[tuple[str, Any]]:
    raw = redis.Redis.from_url(url).lrange(queue, 0, -1)
    bodies = [json.loads(message) for message in raw]
    return [(m["headers"]["task"], m["headers"]["argsrepr"]) for m in bodies]


@pytest.mark.parametrize(
    ("task", "queue"),
    [
        ("workers.train", "train"),
        ("workers.serve.write_round", "serve"),
        ("workers.serve.write", "serve"),
        ("workers.serve.warm", "serve"),
        ("workers.reconcile", "default"),
    ],
)
def test_each_task_rings_its_own_queue(task: str, queue: str, valkey_url: str, use_redis: Any) -> None:
    use_redis(valkey_url)
    redis.Redis.from_url(valkey_url).flushdb()
    assert ring(task, 7)
    assert _messages(valkey_url, queue) == [(task, "(7,)")]


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_redis_that_is_away_costs_seconds_and_no_error(how: str, silent_url: str, use_redis: Any) -> None:
    use_redis(silent_url if how == "silent" else "redis://127.0.0.1:1/0")
    began = time.monotonic()
    assert ring("workers.train", 7) is False
    assert time.monotonic() - began < 3


def test_it_rings_again_once_redis_is_back(valkey_url: str, use_redis: Any) -> None:
    use_redis("redis://127.0.0.1:1/0")
    assert not ring("workers.train", 7)
    use_redis(valkey_url)
    redis.Redis.from_url(valkey_url).flushdb()
    assert ring("workers.train", 8)
    assert _messages(valkey_url, "train") == [("workers.train", "(8,)")]
