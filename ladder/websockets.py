"""What a rung's WebSockets rely on and no rung teaches: limits of a connection, and who may open one."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from asyncio.transports import BaseTransport
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

MAX_MESSAGE_BYTES = 64 * 1024
PING_SECONDS = 20.0
BUFFER_BYTES = 64 * 1024
"""What may be on its way to a client that does not read; more waits where it is counted."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's, which lets go of clients that do not read.

    To close a transport is to send first what is in its buffer. A client that never reads would keep its
    connection open for ever.
    """

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        raw = cast("socket.socket | None", transport.get_extra_info("socket"))
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)

    async def run_asgi(self) -> None:
        await super().run_asgi()
        if not self.writable.is_set():
            self.transport.abort()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        asyncio.get_running_loop().call_later(1, self.transport.abort)


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
