"""Starting and stopping: the listening socket, the ready line, a graceful shutdown on Ctrl-C and SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NoReturn, TypedDict

import uvicorn
from fastapi import FastAPI
from flask import Flask
from rich.console import Console
from waitress.server import create_server

from ladder.cli import ListenConfig, ServerConfig
from ladder.errors import UserError
from ladder.web.connection import (
    KEEP_ALIVE_SECONDS,
    MAX_HEAD_BYTES,
    RESERVED_FILES,
    HttpConnection,
    file_limit,
)
from ladder.web.guard import CloseUnread, Guard, Trusted, guard_wsgi

if TYPE_CHECKING:
    from ladder.llm.loading import Model

GRACE_SECONDS = 3
"""How long open requests may take to end when the server stops, before the process exits by force."""

UNSENT_BYTES = 128 * 1024

TICKS_PER_SECOND = 10
STALL_SECONDS = 30
"""How long a connection that is being closed may stay open while its client reads nothing."""


@dataclass(frozen=True)
class Listener:
    """Where a server accepts connections, and which requests are meant for it."""

    socket: socket.socket
    trusted: Trusted = field(default_factory=Trusted)


def prepare(config: ServerConfig) -> tuple[Model, Listener]:
    """Take the port first, so that a busy one is reported at once; then load the model."""
    listener = take_port(config)
    with Console(stderr=True).status(f"loading {config.model}"):
        return load(config), listener


def take_port(config: ListenConfig) -> Listener:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    return Listener(listen(config.host, config.port), Trusted.of(config))


def load(config: ServerConfig) -> Model:
    """The model, in a thread that will not run it."""
    # Imported here because it takes longer than all the rest, and a server of files needs no torch.
    import torch

    from ladder.llm.loading import load_model

    threads = config.threads or torch.get_num_threads()
    # OpenMP gives each thread that computes helper threads of its own. With more helpers than cores, idle
    # helpers sleep instead of spinning, and every small matrix multiplication pays for waking them: a token
    # of the bundled model took two to three times as long. So this thread loads without helpers, and only
    # the engine's thread gets them.
    torch.set_num_threads(1)
    model = load_model(config.model, config.dtype, config.device)
    torch.set_num_threads(threads)
    freeze_loaded_objects()
    return model


def freeze_loaded_objects() -> None:
    """Exclude what is loaded from garbage collection.

    Torch and the other libraries keep some 370,000 objects for the life of the process. A full collection
    would visit all of them, which stops the process, the model included, for 0.2 s.
    """
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
    # Accepted connections inherit this. Without it the kernel may delay a small write, such as one token,
    # until the client acknowledges the one before, and clients delay that for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # And this: the kernel buffers at most so many unsent bytes for a connection. By default it takes
    # megabytes, and reports room again only when a third is sent: a client that reads slowly would look
    # like one that does not read.
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return listener


def announce(listener: socket.socket) -> None:
    """Print the line that says that the server answers requests. Whatever started the server waits for it."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"ready: http://{shown}:{port}", flush=True)


class Lifecycle:
    """The three moments at which `serve` calls an engine. An engine overrides those that it needs."""

    async def start(self) -> None:
        """Before the first connection is accepted. A `UserError` ends the server."""

    async def until_ready(self) -> None:
        """After it: /health answers while this waits, and the ready line is printed when it returns."""

    def stop(self) -> None:
        """End every request in flight with `ServerStopping`, and accept no more."""


class WebSocketSettings(TypedDict, total=False):
    """What uvicorn needs to know of WebSockets; `ladder.web.websockets` has the settings of rung 11."""

    ws: type[asyncio.Protocol] | Literal["none"]
    ws_max_size: int
    ws_ping_interval: float
    ws_ping_timeout: float
    ws_per_message_deflate: bool


NO_WEBSOCKETS: WebSocketSettings = {"ws": "none"}


class ReadyServer(uvicorn.Server):
    """Uvicorn that prints the ready line, and lets the engine end its streams when it is to stop."""

    def __init__(
        self,
        app: FastAPI,
        listener: Listener,
        engine: Lifecycle,
        websockets: WebSocketSettings = NO_WEBSOCKETS,
    ) -> None:
        settings = uvicorn.Config(
            CloseUnread(Guard(app, listener.trusted)),
            http=HttpConnection,
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            **websockets,
        )
        super().__init__(settings)
        self._listener = listener
        self._engine = engine
        self._unsent: dict[object, int] = {}

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.start_engine()
        await super().startup(sockets)
        try:
            await self._engine.until_ready()
        except BaseException:
            await self.shutdown(sockets)
            raise
        freeze_loaded_objects()
        announce(self._listener.socket)

    async def start_engine(self) -> None:
        await self._engine.start()

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_SECOND == 0:
            self._check_connections()
        if counter % (TICKS_PER_SECOND * STALL_SECONDS) == 0:
            self._abort_stalled_connections()
        return await super().on_tick(counter)

    def _check_connections(self) -> None:
        now = time.monotonic()
        for connection in self.server_state.connections.copy():
            if isinstance(connection, HttpConnection):
                connection.check(now)

    def _abort_stalled_connections(self) -> None:
        """Abort connections that are being closed and whose client reads nothing.

        Closing a connection first sends what is in its buffer, so a client that reads nothing would keep it
        open for ever. A buffer that is as full as at the last check belongs to such a client.
        """
        before, self._unsent = self._unsent, {}
        for connection in self.server_state.connections:
            if connection.transport.is_closing():
                unsent = self._unsent[connection] = connection.transport.get_write_buffer_size()
                if before.get(connection) == unsent:
                    connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.stop()
        await super().shutdown(sockets)


class ProcessServer(ReadyServer):
    """The server of a whole process: it handles signals, and exits by force when its shutdown hangs."""

    async def start_engine(self) -> None:
        with exit_at_once_on_signals():
            await super().start_engine()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # A thread that waits for a disk cannot be interrupted.
        forced_exit = threading.Timer(GRACE_SECONDS + 1, leave)
        forced_exit.daemon = True
        forced_exit.start()
        await super().shutdown(sockets)


def serve(
    app: FastAPI,
    listener: Listener,
    engine: Lifecycle,
    websockets: WebSocketSettings = NO_WEBSOCKETS,
) -> NoReturn:
    """Serve until Ctrl-C or SIGTERM; open streams get their last event before the process ends."""
    ProcessServer(app, listener, engine, websockets).run(sockets=[listener.socket])
    leave()


def serve_wsgi(app: Flask, listener: Listener, workers: int) -> NoReturn:
    """Serve with so many worker threads until Ctrl-C or SIGTERM, which end requests in flight by force."""
    # Waitress logs every request that has to wait for a worker; in rung 01 that is the lesson.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    server = create_server(
        guard_wsgi(app.wsgi_app, listener.trusted),
        sockets=[listener.socket],
        threads=workers,
        max_request_header_size=MAX_HEAD_BYTES,
        # By default waitress stops accepting at 100 connections: /health would not even be queued.
        connection_limit=int(min(10_000, file_limit() - RESERVED_FILES)),
        channel_timeout=KEEP_ALIVE_SECONDS,
        cleanup_interval=1,
        asyncore_use_poll=True,
    )
    announce(listener.socket)
    server.run()
    leave()


@contextmanager
def exit_at_once_on_signals() -> Iterator[None]:
    """For the time before the engine is ready, when there is nothing to shut down gracefully."""
    handlers = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def leave(*_: object) -> NoReturn:
    """End the process now, with status 0.

    A forward pass cannot be interrupted, and Python would wait for the thread that runs it: with a large
    model and a long prompt that takes longer than a user waits after Ctrl-C.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
