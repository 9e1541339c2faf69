"""Following a log as it is written, through rotation and truncation, as `tail -F` does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from io import FileIO
from pathlib import Path

import anyio
from fastapi.sse import format_sse_event

BLOCK = 64 * 1024
"""How much is read at a time; a line longer than this is given out in pieces."""

POLL_SECONDS = 0.2


class Follower:
    """Gives out the lines that have been added since it was last asked."""

    def __init__(self, path: Path, last: int = 0) -> None:
        """Begin with so many of the lines that are there already."""
        self.path = path
        self._file: FileIO | None = None
        self._rest = b""  # a line of which the end has not been written yet
        self._begun: list[str] = []
        if self._open() and self._file is not None:
            end = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(0, end - BLOCK))
            lines = self._lines(self._file.read(min(end, BLOCK)))
            self._begun = lines[len(lines) - last :] if last else []

    def read(self) -> list[str]:
        """New lines; none if there are none, or if there is no file yet."""
        if self._begun:
            begun, self._begun = self._begun, []
            return begun
        if self._file is None and not self._open():
            return []
        assert self._file is not None
        if data := self._file.read(BLOCK):
            return self._lines(data)
        return self._after_the_end(self._file)

    async def events(self, threads: anyio.CapacityLimiter) -> AsyncGenerator[bytes]:
        """The lines as server-sent events; nothing while nothing is added."""
        while True:
            lines = await anyio.to_thread.run_sync(self.read, limiter=threads)
            yield b"".join(format_sse_event(data_str=line) for line in lines)
            if not lines:
                await asyncio.sleep(POLL_SECONDS)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _after_the_end(self, file: FileIO) -> list[str]:
        """Nothing more in this file: has it been cut short, or has another taken its name?"""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return []  # between the renaming of the old one and the making of the new one
        ours = os.fstat(file.fileno())
        if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino):
            if now.st_size < file.tell():
                file.seek(0)
                self._rest = b""
            return []
        # Its writer may have added a last line after we came to the end and before it was renamed.
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
