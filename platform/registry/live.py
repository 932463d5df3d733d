"""Live views over Redis streams. Losing Redis loses nothing but these: pages read the database as well."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import redis
import redis.asyncio
from django.conf import settings
from redis.exceptions import RedisError

log = logging.getLogger(__name__)
KEEP = 5_000  # events of one stream
EXPIRE = 3_600  # seconds after its last event

_client: redis.Redis | None = None


def client() -> redis.Redis:
    global _client
    if _client is None:
        _client = redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2)
    return _client


def publish(stream: str, event: dict[str, Any]) -> None:
    """Append an event; a lost Redis is only logged."""
    try:
        pipe = client().pipeline(transaction=False)
        pipe.xadd(stream, {"event": json.dumps(event)}, maxlen=KEEP, approximate=True)
        pipe.expire(stream, EXPIRE)
        pipe.execute()
    except RedisError as error:
        log.warning("No live view of %s: %s", stream, error)


async def follow(stream: str, after: str = "0", wait: float = 2.0) -> AsyncIterator[tuple[str, dict[str, Any] | None]]:
    """Events after an id, then ("", None) each time nothing came for `wait` seconds; raises RedisError."""
    connection = redis.asyncio.Redis.from_url(settings.REDIS_URL, socket_timeout=wait + 5, socket_connect_timeout=2)
    try:
        while True:
            answer = await connection.xread({stream: after}, count=200, block=int(wait * 1000))
            if not answer:
                yield "", None
                continue
            pairs: Any = answer[0][1] if isinstance(answer, list) else next(iter(answer.values()))
            for raw_id, fields in pairs:
                after = raw_id.decode()
                yield after, json.loads(fields[b"event"])
    finally:
        await connection.aclose()


def is_reachable() -> bool:
    try:
        return bool(client().ping())
    except RedisError:
        return False
