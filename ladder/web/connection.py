"""A connection before its request reaches the app: how much a client may send, and how long it may take.

Uvicorn leaves these limits to a proxy in front of it. A server on a laptop has none. Without limits, one
client with an endless header fills the memory, and a few hundred that send nothing keep all others out.
"""

from __future__ import annotations

import json
import sys
import time
from asyncio import Transport
from http import HTTPStatus

import httptools
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ladder.log import Occasional

MAX_URL_BYTES = 16 * 1024
MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
HEAD_SECONDS = 10.0
"""How long a client may take from its connection, or from the first byte of a later request, to the end of
the request's head."""
BODY_SECONDS = 30.0
MIN_BODY_BYTES = 1024
"""In each `BODY_SECONDS`, so much of a body must arrive, unless the server does not read."""
KEEP_ALIVE_SECONDS = 5
"""How long a connection may stay open without a request."""
LINGER_SECONDS = 1.0
"""How long a refused client is read, and ignored. Closing at once could discard the response on its way."""
TOO_MANY = "too many connections; send the request again in a while"
RESERVED_FILES = 32
"""Of the files that the process may open, connections leave so many to everything else: files that are sent,
pipes to a new engine, and connections that ask for /health."""


busy = Occasional(60.0)


def file_limit() -> float:
    """How many files, connections included, the process may open."""
    if sys.platform == "win32":  # it has no such limit
        return float("inf")
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft


def only_health(app: ASGIApp) -> ASGIApp:
    """For a connection in the reserve: /health is answered, anything else is to be sent again later."""
    later = JSONResponse({"detail": TOO_MANY}, 503, {"Retry-After": "1", "Connection": "close"})

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["path"] == "/health" else later)(scope, receive, send)

    return answer


class TooLarge(Exception):
    """Stops the parser, after the client has been told."""


class HttpConnection(HttpToolsProtocol):
    """Uvicorn's protocol, with limits. `check` is called once a second."""

    waiting_since: float | None = None
    """Since when there has been no request, or only part of its head; None while one is being answered."""
    uses_reserve = False
    crowded = False
    """Whether there is no room for it: only /health is answered."""
    fruitless = 0
    """Bytes since the parser last had something for the app: a head, or part of a body."""
    head_complete = False
    body_bytes = 0
    body_checked = 0.0
    refused = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.waiting_since = time.monotonic()
        # The system gives out the lowest free number, so a high one tells that many files are open.
        raw = transport.get_extra_info("socket")
        self.uses_reserve = raw is not None and raw.fileno() >= file_limit() - RESERVED_FILES
        if any(isinstance(one, HttpConnection) and one.uses_reserve for one in self.connections):
            self.make_room()

    def make_room(self) -> None:
        """Close the connection that has waited longest for a request. If none waits, serve only /health."""
        others = [one for one in self.connections if isinstance(one, HttpConnection) and one is not self]
        waiting = [(one.waiting_since, id(one), one) for one in others if one.waiting_since is not None]
        if waiting:
            _, _, oldest = min(waiting)
            oldest.waiting_since = None
            oldest.transport.abort()
        else:
            self.crowded, self.app = True, only_health(self.app)
        busy.warning("the limit of %g open files is near; connections that wait are closed", file_limit())

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.waiting_since is not None and self.cycle is not None and not self.fruitless:
            self.waiting_since = time.monotonic()  # the first byte after an earlier request
        while data and not self.refused and not self.transport.is_closing():
            room = MAX_HEAD_BYTES - self.fruitless
            portion, data = data[:room], data[room:]
            self.fruitless += len(portion)
            self.parse(portion)
            if self.fruitless >= MAX_HEAD_BYTES:
                self.refuse_head()

    def parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():  # any other request to upgrade is answered as if it were none
                self.handle_websocket_upgrade()
        except httptools.HttpParserError:
            self.refuse(400, "this is no request of HTTP/1.1")

    def handle_websocket_upgrade(self) -> None:
        if self.crowded:
            self.refuse(503, TOO_MANY)
        else:
            super().handle_websocket_upgrade()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self.refuse(414, f"the address of a request may have at most {MAX_URL_BYTES} bytes")
            raise TooLarge

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self.refuse_head()
            raise TooLarge

    def refuse_head(self) -> None:
        self.refuse(431, f"a head may have at most {MAX_HEADERS} lines and {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        self.fruitless, self.head_complete, self.waiting_since = 0, True, None
        self.body_bytes, self.body_checked = 0, time.monotonic()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.fruitless = 0
        self.body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.fruitless, self.head_complete = 0, False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # and no further request waits behind it
            self.waiting_since = time.monotonic()

    def check(self, now: float) -> None:
        """Refuse a client that takes too long to send."""
        if self.refused or self.transport.is_closing():
            return
        if self.waiting_since is not None and now - self.waiting_since > HEAD_SECONDS:
            if self.fruitless == 0:
                self.transport.close()  # a browser that has connected in advance
            else:
                self.refuse(408, f"the head of a request must be complete within {HEAD_SECONDS:g} s")
        elif self.is_reading_body() and now - self.body_checked > BODY_SECONDS:
            if self.body_bytes < MIN_BODY_BYTES:
                self.refuse(408, f"a body must send {MIN_BODY_BYTES} bytes every {BODY_SECONDS:g} s")
            self.body_bytes, self.body_checked = 0, now

    def is_reading_body(self) -> bool:
        """And not waiting for the app to take what has arrived."""
        return (
            self.head_complete
            and self.cycle.more_body
            and not self.flow.read_paused
            and not self.cycle.waiting_for_100_continue
        )

    def refuse(self, status: int, reason: str) -> None:
        """Say why, if no response has begun; then close."""
        if self.refused:
            return
        self.refused, self.waiting_since = True, None
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = json.dumps({"detail": reason}).encode()
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)
