"""What every answer passes through."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.deprecation import MiddlewareMixin


class FormsOnlyPage(MiddlewareMixin):
    """Who opens an address that only takes forms (signing in again leads there) reads what to do, not a blank page."""

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        accepts = request.headers.get("Accept", "")
        if response.status_code != 405 or request.method != "GET" or "text/html" not in accepts:
            return response
        page = render(request, "405.html", status=405)
        page["Allow"] = response["Allow"]
        return page
