"""Server-sent events: who may listen, how an event is written, and a bell that rings with or without Redis."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, StreamingHttpResponse
from redis.exceptions import RedisError

from accounts.models import Project, Role, User
from accounts.permissions import INCLUDES, role_in
from registry import live

EVERY = 2.0  # seconds between two looks at the database


async def project_for(request: HttpRequest, slug: str, role: Role) -> Project:
    """The project, for a signed-in member with the role; an outsider and a stranger see 404."""
    user = await request.auser()
    if not isinstance(user, User):
        raise Http404
    return await sync_to_async(_project_for)(user, slug, role)


def _project_for(user: User, slug: str, role: Role) -> Project:
    project = Project.objects.seen_by(user).filter(slug=slug).first()
    if project is None:
        raise Http404
    if role_in(user, project) not in INCLUDES[role]:
        raise PermissionDenied
    return project


def event(data: dict[str, Any], name: str = "message") -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def answer(events: AsyncIterator[str]) -> StreamingHttpResponse:
    """The response; the first comment makes proxies and browsers open the stream at once."""

    async def body() -> AsyncIterator[str]:
        yield ": open\nretry: 2000\n\n"
        async for written in events:
            yield written

    response = StreamingHttpResponse(body(), content_type="text/event-stream")
    response["Cache-Control"] = "no-cache, no-store"
    response["X-Accel-Buffering"] = "no"
    return response


async def bell(stream: str, after: str = "$", every: float = EVERY) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Each event of a Redis stream as it comes, None at least every few seconds; without Redis only the Nones."""
    while True:
        try:
            async with aclosing(live.follow(stream, after, wait=every)) as events:  # type: ignore[type-var]
                async for event_id, news in events:
                    after = event_id or after
                    yield news
        except (RedisError, OSError):
            await asyncio.sleep(every)
            yield None
