"""Which requests a server takes that runs on somebody's own machine, and how it refuses the others."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READING = ("GET", "HEAD", "OPTIONS")


def guard(app: FastAPI, hosts: Collection[str]) -> None:
    """Take only what is meant for this server, `hosts` being the names by which it may be called."""
    app.add_middleware(Guard, hosts=hosts)
    app.add_middleware(CloseUnread)


class Guard:
    """Plain ASGI, because FastAPI's own kind of middleware would hide from the app that a client has left.

    Browsers send requests for every page that they show, also to servers on their own machine. Two headers
    that no page can forge tell what a request is: Host, the name under which the server was found, and
    Origin, the page. A name that somebody else owns may point to this machine, and their page could then
    read everything: so of names only localhost and `hosts` are answered to. And any page may send a form
    anywhere: so what writes must come from a page of this server, or from what is no browser, which sends
    no origin.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = {host.strip().lower() for host in hosts} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self.app
        if scope["type"] == "http":
            request = HTTPConnection(scope)
            if not self.is_called_by_its_name(request):
                detail = "this server is not known by that name; name it with --hosts"
                answer = JSONResponse({"detail": detail}, 421)
            elif scope["method"] not in READING and not self.comes_from_here(request):
                answer = JSONResponse({"detail": "this origin may not write"}, 403)
        await answer(scope, receive, send)

    def is_called_by_its_name(self, request: HTTPConnection) -> bool:
        host = request.headers.get("host")
        if host is None:  # HTTP/1.0, which no browser speaks
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.hosts or is_local_or_address(name)

    def comes_from_here(self, request: HTTPConnection) -> bool:
        """The name in Host is one of ours by now, so a page of the same name is ours too."""
        host = request.headers.get("host", "")
        return same_origin(request, f"http://{host}, https://{host}")


class CloseUnread:
    """Closes a connection when its request is answered before all of it was read.

    Otherwise a client that is refused would go on sending, and the server go on throwing away.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        unread = scope["type"] == "http" and has_body(Headers(scope=scope))
        if not unread:
            await self.app(scope, receive, send)
            return

        async def reading() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def answering(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, reading, answering)


def has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def same_origin(connection: HTTPConnection, allowed: str) -> bool:
    """Whether a page that opens this connection is one of ours.

    Browsers let every page open WebSockets to every server, and say only from where the page came. What is
    no browser sends no origin. A name that somebody else owns may point to this machine, so that of names
    only localhost is believed; others must be `allowed`, which is a list with commas.
    """
    origin = connection.headers.get("origin")
    if origin is None or origin in (one.strip() for one in allowed.split(",") if one.strip()):
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:  # an address that is none, such as http://[
        return False
    return parts.netloc == connection.headers.get("host") and is_local_or_address(parts.hostname or "")


def is_local_or_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
