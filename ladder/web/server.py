"""Starting and stopping: the listening socket, the ready line, a clean end on Ctrl-C and SIGTERM."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import uvicorn
from fastapi import FastAPI
from flask import Flask
from rich.console import Console
from waitress.server import create_server

from ladder.cli import ListenConfig, ServerConfig
from ladder.errors import UserError
from ladder.web.websockets import MAX_MESSAGE_BYTES, PING_SECONDS, WebSocketProtocol

if TYPE_CHECKING:
    from ladder.llm.loading import Model

GRACE_SECONDS = 3
"""How long open requests may take to notice that the server is stopping, before they are cut off."""

UNSENT_BYTES = 128 * 1024

TICKS_PER_SECOND = 10
LINGER_SECONDS = 30
"""How long a connection that is being closed may stay open without its client reading anything."""


def prepare(config: ServerConfig) -> tuple[Model, socket.socket]:
    """What every server does first: take the port, so that a busy one is told at once, then load."""
    listener = take_port(config)
    with Console(stderr=True).status(f"loading {config.model}"):
        return load(config), listener


def take_port(config: ListenConfig) -> socket.socket:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    return listen(config.host, config.port)


def load(config: ServerConfig) -> Model:
    """The model, in a thread that will not run it."""
    # Imported here because it takes longer than all the rest, and a server of files needs no torch.
    import torch

    from ladder.llm.loading import load_model

    threads = config.threads or torch.get_num_threads()
    # Each thread that computes gets helpers of its own from OpenMP. Once there are more helpers than cores,
    # none of them waits awake any more, and every small product pays for waking them: the bundled model took
    # two to three times as long for a token. So this thread loads alone and leaves helpers to the engine.
    torch.set_num_threads(1)
    model = load_model(config.model, config.dtype, config.device)
    torch.set_num_threads(threads)
    leave_to_the_collector_only_what_is_new()
    return model


def leave_to_the_collector_only_what_is_new() -> None:
    """Torch and its company are some 370,000 objects that stay for ever. Now and then Python's garbage
    collector would look at each of them, and for 0.2 s nothing else would move, the model included."""
    gc.collect()
    gc.freeze()


def listen(host: str, port: int) -> socket.socket:
    """Bind the address; port 0 takes a free one."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # which names the address again
        raise UserError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port or --host"
        ) from error
    # Accepted connections inherit this. Without it a small write, such as one token, may be held back
    # until the client has acknowledged the one before, and clients put that off for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # And this: so much may lie in the kernel that has not been sent yet. Else it takes megabytes, and says
    # that it has room again only when a third of them is gone: a client that reads slowly would look like
    # one that does not read.
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return listener


def announce(listener: socket.socket) -> None:
    """The one line that says that requests are answered now; whoever started the server waits for it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"ready: http://{shown}:{port}", flush=True)


class ReadyServer(uvicorn.Server):
    """Uvicorn that prints the ready line, and lets the engine end its streams when it is to stop."""

    def __init__(
        self,
        app: FastAPI,
        listener: socket.socket,
        stop_engine: Callable[[], None],
        start_engine: Callable[[], Awaitable[None]] | None = None,
        until_ready: Callable[[], Awaitable[None]] | None = None,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            ws=WebSocketProtocol,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=ping_seconds,
            ws_ping_timeout=ping_seconds,
            ws_per_message_deflate=False,  # 64 KB of memory and much time for each, to save a few bytes
        )
        super().__init__(settings)
        self._listener = listener
        self._stop_engine = stop_engine
        self._start_engine = start_engine
        self._until_ready = until_ready
        self._unsent: dict[object, int] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._start_engine:
            with leaving_at_once():
                await self._start_engine()
        await super().startup(sockets)
        if self._until_ready:
            try:
                await self._until_ready()
            except BaseException:
                await self.shutdown(sockets)
                raise
        leave_to_the_collector_only_what_is_new()
        announce(self._listener)

    async def on_tick(self, counter: int) -> bool:
        if counter % (TICKS_PER_SECOND * LINGER_SECONDS) == 0:
            self._abort_who_does_not_read()
        return await super().on_tick(counter)

    def _abort_who_does_not_read(self) -> None:
        """To close a connection is to send first what is in its buffer, and a client that reads nothing
        would keep it open for ever. So it is aborted when the buffer is as full as it was the last time."""
        before, self._unsent = self._unsent, {}
        for connection in self.server_state.connections:
            if connection.transport.is_closing():
                unsent = self._unsent[connection] = connection.transport.get_write_buffer_size()
                if before.get(connection) == unsent:
                    connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stop_engine()
        await super().shutdown(sockets)


def serve_asgi(
    app: FastAPI,
    listener: socket.socket,
    stop_engine: Callable[[], None],
    start_engine: Callable[[], Awaitable[None]] | None = None,
    until_ready: Callable[[], Awaitable[None]] | None = None,
    ping_seconds: float = PING_SECONDS,
) -> NoReturn:
    """Serve until Ctrl-C or SIGTERM; open streams get their last event before the process ends.

    `start_engine` comes before the first connection is accepted; `until_ready` after it, so that /health
    answers meanwhile. A WebSocket that has not answered a ping after `ping_seconds` is closed.
    """

    def stop() -> None:
        # A thread that waits for a disk cannot be interrupted; what still hangs after the grace is cut off.
        cut_off = threading.Timer(GRACE_SECONDS + 1, leave)
        cut_off.daemon = True
        cut_off.start()
        stop_engine()

    ReadyServer(app, listener, stop, start_engine, until_ready, ping_seconds).run(sockets=[listener])
    leave()


def serve_wsgi(app: Flask, listener: socket.socket, workers: int) -> NoReturn:
    """Serve with so many worker threads until Ctrl-C or SIGTERM, which cut off what is under way."""
    # Waitress logs every request that has to wait for a worker; here that is the lesson, not news.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    # Waitress stops accepting at 100 connections unless told otherwise: /health would not even be queued.
    server = create_server(
        app, sockets=[listener], threads=workers, connection_limit=10_000, asyncore_use_poll=True
    )
    announce(listener)
    server.run()
    leave()


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """For the time before the engine is ready: there is nothing yet that would have to end in good order."""
    handlers = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def leave(*_: object) -> NoReturn:
    """End the process now, with status 0.

    A model step cannot be interrupted, and Python would wait for the thread that runs it: with a large
    model and a long prompt, longer than anyone waits after Ctrl-C.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
