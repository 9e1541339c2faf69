"""Protects a server on the user's own machine: which requests it accepts, and how it refuses the others."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def guard(app: FastAPI, hosts: Collection[str]) -> None:
    """Accept only requests that are meant for this server. `hosts` are the names that it may have."""
    app.add_middleware(Guard, hosts=hosts)
    app.add_middleware(CloseUnread)


class Guard:
    """Checks two headers that no web page can forge: Host, the server's name, and Origin, the page's address.

    A browser sends requests for every page that it shows, also to servers on its own machine. The owner of a
    domain can point it to this machine, and a page of that domain could then read everything here. So the
    only names that are accepted are localhost and `hosts`. And every page may send a form to every server. So
    a request that writes must come from a page of this server, or have no origin: then no browser sent it.

    This is plain ASGI: FastAPI's own kind of middleware hides from the app that a client disconnects.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = {host.strip().lower() for host in hosts} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: ASGIApp = self.app
        if scope["type"] == "http":
            request = HTTPConnection(scope)
            if not self.has_known_host(request):
                detail = "unknown host name; allow it with --hosts"
                response = JSONResponse({"detail": detail}, 421)
            elif scope["method"] not in SAFE_METHODS and not self.has_own_origin(request):
                response = JSONResponse({"detail": "this origin may not write"}, 403)
        await response(scope, receive, send)

    def has_known_host(self, request: HTTPConnection) -> bool:
        host = request.headers.get("host")
        if host is None:  # HTTP/1.0, which browsers do not use
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.hosts or is_local_or_address(name)

    def has_own_origin(self, request: HTTPConnection) -> bool:
        """Called when Host is known to be ours, so a page with the same name is ours too."""
        host = request.headers.get("host", "")
        return same_origin(request, f"http://{host}, https://{host}")


class CloseUnread:
    """Closes the connection after a response that was sent before the whole request was read.

    Otherwise a client that is refused would keep sending, and the server would keep discarding its bytes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unread = scope["type"] == "http" and has_body(Headers(scope=scope))
        if not unread:
            await self.app(scope, receive, send)
            return

        async def read() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def respond(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, read, respond)


def has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def same_origin(connection: HTTPConnection, allowed: str) -> bool:
    """Whether the page that opens this connection is one of ours.

    Browsers let every page open WebSockets to every server, and only tell the server the page's origin. Other
    clients send no origin. The owner of a domain can point it to this machine, so the only name that is
    trusted is localhost. Other origins must be in `allowed`, a list separated by commas.
    """
    origin = connection.headers.get("origin")
    if origin is None or origin in (one.strip() for one in allowed.split(",") if one.strip()):
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:  # not an address, such as http://[
        return False
    return parts.netloc == connection.headers.get("host") and is_local_or_address(parts.hostname or "")


def is_local_or_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
