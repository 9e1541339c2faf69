"""Streams the server's log as it is written, through rotation and truncation, as `tail -F` does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from io import FileIO
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import FastAPI, Query
from fastapi.sse import format_sse_event

from ladder.files.watchers import Watchers
from ladder.web.access_log import AccessLog
from ladder.web.http import EventStream

BLOCK = 64 * 1024
"""Bytes per read. A line longer than this is returned in parts."""

POLL_SECONDS = 0.2


def add_log(app: FastAPI, file: Path, watchers: Watchers) -> None:
    """Log every request, and let clients follow the log."""
    app.add_middleware(AccessLog(file).middleware)
    threads = anyio.CapacityLimiter(1)  # its own: when the disk of the files hangs, the log still streams

    @app.get("/logs/stream")
    async def logs(last: Annotated[int, Query(ge=0, le=1000)] = 20) -> EventStream:
        """The server's log as it is written, beginning with its last lines."""
        log = await anyio.to_thread.run_sync(Follower, file, last, limiter=threads)
        return watchers.stream(log.events(threads), log.close)


class Follower:
    """Returns the lines that were added since it was last asked."""

    def __init__(self, path: Path, last: int = 0) -> None:
        """Begin with the `last` lines that exist already."""
        self.path = path
        self._file: FileIO | None = None
        self._rest = b""  # a line whose end has not been written yet
        self._first: list[str] = []
        if self._open() and self._file is not None:
            end = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(0, end - BLOCK))
            lines = self._lines(self._file.read(min(end, BLOCK)))
            self._first = lines[len(lines) - last :] if last else []

    def read(self) -> list[str]:
        """New lines. The list is empty if there are none, or no file yet."""
        if self._first:
            first, self._first = self._first, []
            return first
        if self._file is None and not self._open():
            return []
        assert self._file is not None
        if data := self._file.read(BLOCK):
            return self._lines(data)
        return self._read_at_end(self._file)

    async def events(self, threads: anyio.CapacityLimiter) -> AsyncGenerator[bytes]:
        """The lines as server-sent events, and empty bytes while there are none."""
        while True:
            lines = await anyio.to_thread.run_sync(self.read, limiter=threads)
            yield b"".join(format_sse_event(data_str=line) for line in lines)
            if not lines:
                await asyncio.sleep(POLL_SECONDS)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read_at_end(self, file: FileIO) -> list[str]:
        """At the end of the file: check whether it was truncated, or another file has taken its name."""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return []  # the old file was renamed, and the new one does not exist yet
        ours = os.fstat(file.fileno())
        if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
            if now.st_size < file.tell():
                file.seek(0)
                self._rest = b""
            return []
        # A last line may have been added after our last read and before the file was renamed.
        lines = self._lines(file.read(BLOCK))
        if not lines:
            lines = [self._rest.decode(errors="replace")] if self._rest else []
            self._rest = b""
            file.close()
            self._file = None
        return lines

    def _open(self) -> bool:
        try:
            self._file = FileIO(self.path)
        except FileNotFoundError:
            return False
        return True

    def _lines(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > BLOCK:
            lines.append(self._rest)
            self._rest = b""
        return [line.removesuffix(b"\r").decode(errors="replace") for line in lines]
