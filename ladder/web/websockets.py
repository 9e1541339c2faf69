"""What rung 11's WebSockets need and the rung does not teach: limits of a connection, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from asyncio.transports import BaseTransport
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode

from ladder.log import log_failure
from ladder.web.server import WebSocketSettings

MAX_MESSAGE_BYTES = 64 * 1024
PING_SECONDS = 15.0
BUFFER_BYTES = 64 * 1024
"""Unsent bytes of a connection in the kernel and in uvicorn. Further messages wait in the rung's queue."""
PIECE_BYTES = 8 * 1024
"""Received bytes that are parsed at once: as an object, a short message takes many times its size."""
CLOSE_SECONDS = 1.0
"""How long a client may take to read the last message before the connection is closed."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's protocol, with bounded memory per connection, and a close that does not wait for the client.

    Closing a transport first sends what is in its buffer, so a client that never reads would keep its
    connection open for ever. Uvicorn also answers pings when the buffer is full. So this class reads from a
    client only while the client reads, and only while its messages are handled.

    And what a client does wrong is answered, but not logged: uvicorn takes some of it for errors of the app.
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

    def shutdown(self) -> None:
        if not self.transport.is_closing():  # the client has been sent a close already
            super().shutdown()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        self.handshake_complete |= self.close_sent  # it may have been refused

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.disconnected = True
        self.loop.call_later(CLOSE_SECONDS, self.transport.abort)

    def handle_parser_exception(self) -> None:
        """Close the connection of a client that breaks the protocol."""
        self.disconnected = True  # for the app, whose answers may still be on their way
        if self.conn.close_sent is None:  # the client did not wait for the response to its handshake
            self.transport.abort()
        else:
            super().handle_parser_exception()

    def send_receive_event_to_app(self) -> None:
        text = self.curr_msg_data_type == "text" and not self.close_sent
        if text and not is_utf8(b"".join(self.frames)):
            self.conn.fail(CloseCode.INVALID_DATA)
            self.handle_parser_exception()
        else:
            super().send_receive_event_to_app()

    def data_received(self, data: bytes) -> None:
        self.unread += data
        self.read_on()
        if self.conn.handshake_exc and not self.handshake_initiated:  # refused by the parser, and not sent
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

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
        """Uvicorn sets `read_paused` while a message waits to be handled."""
        return not (self.read_paused or self.transport.is_closing()) and self.writable.is_set()


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def settings(ping_seconds: float) -> WebSocketSettings:
    """For `serve`. A client that does not answer a ping within `ping_seconds` is disconnected."""
    return {
        "ws": WebSocketProtocol,
        "ws_max_size": MAX_MESSAGE_BYTES,
        "ws_ping_interval": ping_seconds,
        "ws_ping_timeout": ping_seconds,
        "ws_per_message_deflate": False,  # costs memory and time per message; these are short
    }


async def until_one_ends(tasks: Sequence[asyncio.Task[None]]) -> None:
    """When one of the tasks ends, by an error too, end all. A disconnect is not logged as an error."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(error, Exception) and not isinstance(error, WebSocketDisconnect):
                log_failure(error)


async def until_empty(queue: asyncio.Queue[str], tasks: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Wait until the tasks have handled the whole queue, one of them ends, or the time is up."""
    emptied = asyncio.create_task(queue.join())
    try:
        await asyncio.wait({emptied, *tasks}, timeout=max(0, seconds), return_when=asyncio.FIRST_COMPLETED)
    finally:
        emptied.cancel()


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event is set within that time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


async def refuse(socket: WebSocket, status: int, reason: str) -> None:
    """Reject the handshake with a plain HTTP response that says why."""
    headers = {"Retry-After": "1"} if status == 503 else {}
    await socket.send_denial_response(Response(reason, status, headers))


async def say_goodbye(socket: WebSocket, code: int, reason: str) -> None:
    """Close with a reason, if the client reads it in time."""
    with suppress(TimeoutError, WebSocketDisconnect):
        async with asyncio.timeout(CLOSE_SECONDS):
            await socket.close(code, reason)
