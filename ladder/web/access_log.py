"""The log of a server: a line a request, written by a thread of its own, in a file that is rotated."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from typing import Any

from ladder.errors import UserError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LARGEST = 2**20
"""Bytes; the log before this one is kept, the one before that is not."""

UNLOGGED = ("/health",)
"""Asked ten times a second by the page alone."""


class DroppingHandler(QueueHandler):
    """Passes lines on to the thread that writes. On a disk that hangs they are lost, not piled up."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


class AccessLog:
    def __init__(self, file: Path) -> None:
        self.logger = logging.Logger("access", logging.INFO)
        lines: queue.Queue[logging.LogRecord] = queue.Queue(10_000)
        self.logger.addHandler(DroppingHandler(lines))
        try:
            to_file = RotatingFileHandler(file, maxBytes=LARGEST, backupCount=1, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write the log {file}: {error.strerror}; name another --log") from error
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._writer = QueueListener(lines, to_file)
        self._writer.start()

    def middleware(self, app: App) -> App:
        """A plain ASGI wrapper, because FastAPI's own kind would hide from the app that a client has left."""

        async def logged(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in UNLOGGED:
                await app(scope, receive, send)
                return
            started, sent, status, part = time.perf_counter(), 0, 0, ""

            async def counted(message: Message) -> None:
                nonlocal sent, status, part
                if message["type"] == "http.response.start":
                    status = message["status"]
                    part = dict(message["headers"]).get(b"content-range", b"").decode("latin-1")
                await send(message)
                sent += len(message.get("body", b""))

            try:
                await app(scope, receive, counted)
            finally:
                milliseconds = 1000 * (time.perf_counter() - started)
                words = (
                    scope["method"], path_of(scope), str(status), part, f"{sent} B", f"{milliseconds:.0f} ms"
                )  # fmt: skip
                self.logger.info(" ".join(word for word in words if word))

        return logged


def path_of(scope: MutableMapping[str, Any]) -> str:
    """Without what may be private: the query, and an id, by which whoever knows it goes on with an upload."""
    if "id" in scope.get("path_params", {}):
        route: str = scope["route"].path
        return route
    # As it was sent, percent-encoded, it cannot forge a line.
    path: str = scope["raw_path"].decode("ascii", "backslashreplace")
    return path
