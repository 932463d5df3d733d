"""A part of a page that keeps itself up to date: htmx asks again, and gets 204 while nothing has changed."""

import hashlib
import re
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils.safestring import SafeString, mark_safe

from accounts.permissions import MemberRequest

# The token is masked anew in every answer and says nothing about the page.
TOKEN = re.compile(r'name="csrfmiddlewaretoken" value="[^"]*"')


def part(
    request: HttpRequest, template: str, context: dict[str, Any], *, every: str = "4s", lasting: bool = True
) -> SafeString:
    """The fragment in its wrapper, which asks again while `lasting`; goes into the page as {{ live }}."""
    inner = render_to_string(template, context, request)
    seen = hashlib.sha256(TOKEN.sub("", inner).encode()).hexdigest()[:16]
    wrapped = render_to_string(
        "registry/_live.html",
        {"inner": mark_safe(inner), "seen": seen, "every": every, "lasting": lasting, "here": _here(request)},  # noqa: S308
        request,
    )
    return mark_safe(wrapped)  # noqa: S308 (both come from templates that escape)


def _here(request: HttpRequest) -> str:
    """This page with its own choices in the address, ready for one more."""
    chosen = request.GET.copy()
    chosen.pop("seen", None)
    return f"{request.path}?{chosen.urlencode()}&" if chosen else f"{request.path}?"


def page(request: MemberRequest, template: str, live: SafeString, context: dict[str, Any]) -> HttpResponse:
    """The whole page, or to htmx's question only the part, or 204."""
    seen = request.GET.get("seen")
    if request.htmx and seen is not None:
        if f"seen={seen}" in live or f'data-seen="{seen}"' in live:
            return HttpResponse(status=204)
        return HttpResponse(live)
    return render(request, template, {**context, "live": live})
