"""The access log: a line per request that reaches the app, written by its own thread into rotated files."""

from __future__ import annotations

import logging
import queue
import sys
import time
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ladder.errors import UserError
from ladder.log import logger

MAX_LOG_BYTES = 2**20
"""A longer log is renamed, and a new file begins. Only the last renamed file is kept."""

NOT_LOGGED = ("/health",)
"""The page alone sends ten of these requests per second."""


class DroppingHandler(QueueHandler):
    """Passes lines to the thread that writes. If the disk hangs, a full queue drops further lines."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with suppress(queue.Full):
            self.queue.put_nowait(record)


class LogFile(RotatingFileHandler):
    """Reports in one line when lines cannot be written, for example because the disk is full.

    The standard library would write a traceback for each line.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(file, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")
        self._failed = self._reported = False

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        self._reported = self._failed

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name is the library's
        self._failed = True
        if not self._reported:
            logger.warning("lines of the access log are lost: %s", sys.exception())


class AccessLog:
    def __init__(self, file: Path) -> None:
        self.logger = logging.Logger("access", logging.INFO)
        lines: queue.Queue[logging.LogRecord] = queue.Queue(10_000)
        self.logger.addHandler(DroppingHandler(lines))
        try:
            to_file = LogFile(file)
        except OSError as error:
            raise UserError(f"cannot write the log {file}: {error.strerror}; name another --log") from error
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._writer = QueueListener(lines, to_file)
        self._writer.start()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Plain ASGI: FastAPI's own kind of middleware hides from the app that a client disconnects."""

        async def logged(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in NOT_LOGGED:
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


def path_of(scope: Scope) -> str:
    """The path, without what may be private: the query, and an upload's id, with which it can be resumed."""
    if "id" in scope.get("path_params", {}):
        route: str = scope["route"].path
        return route
    # Percent-encoded, as it was sent, the path cannot contain a line break and forge a line.
    path: str = scope["raw_path"].decode("ascii", "backslashreplace")
    return path
