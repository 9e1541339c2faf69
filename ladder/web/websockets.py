"""What a rung's WebSockets rely on and no rung teaches: limits of a connection, its end, who may open one."""

from __future__ import annotations

import asyncio
import socket
from asyncio.transports import BaseTransport
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from ladder.log import log_failure
from ladder.web.server import WebSocketSettings

MAX_MESSAGE_BYTES = 64 * 1024
PING_SECONDS = 15.0
BUFFER_BYTES = 64 * 1024
"""What may be on its way to a client that does not read; more waits where it is counted."""
PIECE_BYTES = 8 * 1024
"""What is taken apart at a time: a message of a few bytes takes many times as much once it is an object."""
CLOSE_SECONDS = 1.0
"""How long a client may take to read the last that it is sent."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's, which neither collects without end what a client sends or does not read, nor waits for it.

    To close a transport is to send first what is in its buffer. A client that never reads would keep its
    connection open for ever. And the answer to a ping is written whether there is room for it or not. So a
    client is read only while it reads, and only as far as its messages are taken.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.unread = b""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=BUFFER_BYTES)
        raw = cast("socket.socket | None", transport.get_extra_info("socket"))
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(CLOSE_SECONDS if self.writable.is_set() else 0, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        self.unread += data
        self.read_on()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        self.read_on()
        return message

    def resume_writing(self) -> None:
        super().resume_writing()
        self.read_on()

    def read_on(self) -> None:
        while self.wants_more() and self.unread:
            piece, self.unread = self.unread[:PIECE_BYTES], self.unread[PIECE_BYTES:]
            super().data_received(piece)
        if self.wants_more():
            self.transport.resume_reading()
        elif not self.transport.is_closing():
            self.transport.pause_reading()

    def wants_more(self) -> bool:
        """Uvicorn sets `read_paused` while a message waits to be taken."""
        return not (self.read_paused or self.transport.is_closing()) and self.writable.is_set()


def settings(ping_seconds: float) -> WebSocketSettings:
    """For `serve`. A client that does not answer a ping within `ping_seconds` is disconnected."""
    return {
        "ws": WebSocketProtocol,
        "ws_max_size": MAX_MESSAGE_BYTES,
        "ws_ping_interval": ping_seconds,
        "ws_ping_timeout": ping_seconds,
        "ws_per_message_deflate": False,  # 64 KB of memory and much time for each, to save a few bytes
    }


async def until_one_ends(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Whatever ends one of them, an error too, ends all; a client that is gone is no error."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(error, Exception) and not isinstance(error, WebSocketDisconnect):
                log_failure(error)


async def until_empty(queue: asyncio.Queue[str], tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Wait until all of a queue has been dealt with, at most so long, and only while those run that do it."""
    emptied = asyncio.create_task(queue.join())
    try:
        await asyncio.wait({emptied, *tasks}, timeout=max(0, seconds), return_when=asyncio.FIRST_COMPLETED)
    finally:
        emptied.cancel()


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether it does within that time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


async def refuse(socket: WebSocket, status: int, reason: str) -> None:
    """Answer as if it were plain HTTP, so that a client learns why."""
    headers = {"Retry-After": "1"} if status == 503 else {}
    await socket.send_denial_response(Response(reason, status, headers))


async def say_goodbye(socket: WebSocket, code: int, reason: str) -> None:
    """Close, and say why, if the client makes room for that in time."""
    with suppress(TimeoutError, WebSocketDisconnect):
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code, reason)
