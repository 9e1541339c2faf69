"""Protects a server on the user's own machine: which requests it accepts, and how it refuses the others."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ladder.cli import ListenConfig
from ladder.web.connection import LINGER_SECONDS

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

Refusal = tuple[int, str]


@dataclass(frozen=True)
class Trusted:
    """Checks two headers that no web page can forge: Host, the server's name, and Origin, the page's address.

    A browser sends requests for every page that it shows, also to servers on its own machine. The owner of a
    domain can point it to this machine, and a page of that domain could then read everything here. So the
    only names that are accepted are localhost, addresses and `hosts`. And every page may send a form to every
    server, or open a WebSocket. So a request that writes must come from a page of this server or of one of
    `origins`, or have no origin: then no browser sent it.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: ListenConfig) -> Trusted:
        hosts = [config.host, *config.hosts.split(",")]
        return cls(
            frozenset(one.strip().lower() for one in hosts if one.strip()),
            frozenset(one.strip().rstrip("/") for one in config.origins.split(",") if one.strip()),
        )

    def refusal(self, headers: Mapping[str, str], writes: bool) -> Refusal | None:
        """Status and reason, or None for a request that is accepted."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self.is_known(host):  # HTTP/1.0 has none, and browsers do not use it
            return 421, "unknown host name; allow it with --hosts"
        # The host is known to be ours, so a page with the same name is ours too.
        own = (f"http://{host}", f"https://{host}")
        if writes and origin is not None and origin not in own and origin not in self.origins:
            return 403, "this origin may not write; allow it with --origins"
        return None

    def is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self.hosts or is_local_or_address(name)


def is_local_or_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


class Guard:
    """Accepts only requests that are meant for this server.

    This is plain ASGI: FastAPI's own kind of middleware hides from the app that a client disconnects.
    """

    def __init__(self, app: ASGIApp, trusted: Trusted) -> None:
        self.app = app
        self.trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = self.app
        if scope["type"] in ("http", "websocket"):
            writes = scope.get("method") not in SAFE_METHODS  # a WebSocket has no method
            if refusal := self.trusted.refusal(Headers(scope=scope), writes):
                status, reason = refusal
                response = JSONResponse({"detail": reason}, status)
        await response(scope, receive, send)


def guard_wsgi(app: WSGIApplication, trusted: Trusted) -> WSGIApplication:
    """The same for rung 01, whose server speaks WSGI."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        names = {"host": "HTTP_HOST", "origin": "HTTP_ORIGIN"}
        headers = {name: str(environ[key]) for name, key in names.items() if key in environ}
        refusal = trusted.refusal(headers, environ["REQUEST_METHOD"] not in SAFE_METHODS)
        if refusal is None:
            return app(environ, start_response)
        status, reason = refusal
        start_response(f"{status} {HTTPStatus(status).phrase}", [("Content-Type", "application/json")])
        return [json.dumps({"detail": reason}).encode()]

    return guarded


class CloseUnread:
    """Closes the connection after a response that was sent before the whole request was read.

    Otherwise a client that is refused would keep sending, and the server would keep discarding its bytes. It
    discards them for a moment: if it closed at once, the response could be lost on its way.
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
            if unread and message["type"] == "http.response.body" and not message.get("more_body"):
                await send({**message, "more_body": True})
                await discard(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, read, respond)


async def discard(receive: Receive) -> None:
    """Read until the end of the body, or for as long as the server lingers."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass


def has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
