"""Live views over a real Valkey; without one they are missing and nothing else is."""

import time
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from redis.exceptions import RedisError

from registry import live

pytestmark = pytest.mark.services


def _heard(stream: str, count: int, after: str = "0") -> list[tuple[str, Any]]:
    async def listen() -> list[tuple[str, Any]]:
        found = []
        async for item in live.follow(stream, after, wait=0.1):
            found.append(item)
            if len(found) == count:
                break
        return found

    return async_to_sync(listen)()


def test_events_come_in_order_then_silence_is_said(valkey_url: str, use_redis: Any) -> None:
    use_redis(valkey_url)
    for step in (1, 2, 3):
        live.publish("run:1", {"step": step, "text": "año\u2028\x00"})
    heard = _heard("run:1", 4)
    assert [event and event["step"] for _id, event in heard] == [1, 2, 3, None]
    assert heard[0][1]["text"] == "año\u2028\x00"
    assert heard[3] == ("", None)


def test_who_comes_back_hears_what_was_missed_and_no_more(valkey_url: str, use_redis: Any) -> None:
    use_redis(valkey_url)
    for step in (1, 2):
        live.publish("run:2", {"step": step})
    first_id = _heard("run:2", 1)[0][0]
    assert [event["step"] for _id, event in _heard("run:2", 1, after=first_id)] == [2]
    assert live.client().ttl("run:2") > 3000


def test_without_redis_publishing_is_quick_and_silent(silent_url: str, use_redis: Any) -> None:
    for url in ("redis://127.0.0.1:1/0", silent_url):
        use_redis(url)
        began = time.monotonic()
        live.publish("run:3", {"step": 1})
        assert time.monotonic() - began < 3
    assert not live.is_reachable()


def test_a_listener_without_redis_hears_of_it(use_redis: Any) -> None:
    use_redis("redis://127.0.0.1:1/0")
    with pytest.raises(RedisError):
        _heard("run:4", 1)


def test_reachable_is_reachable(valkey_url: str, use_redis: Any) -> None:
    use_redis(valkey_url)
    assert live.is_reachable()
