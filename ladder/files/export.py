"""A table that is generated while it is sent: sums with their results, as a CSV file of any length."""

from __future__ import annotations

import csv
import io
import random
import zlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing
from typing import Annotated

import anyio
from fastapi import FastAPI, Query, Request
from werkzeug.http import parse_accept_header

from ladder.errors import Unavailable
from ladder.files.responses import attachment
from ladder.web.http import Stream

THREADS = 1
"""That make tables. Most of this work is Python code, which runs in one thread at a time, so a second thread
would gain little. It would delay the event loop and the threads that read files."""

MAX_WAITING = 8
"""Exports that wait for this thread, or use it. With more of them, each client would wait too long."""

CHUNK = 64 * 1024
"""Bytes of the table that an export makes in its turn. It is small so that turns are short."""

Iterate = Callable[[Iterator[bytes], anyio.CapacityLimiter], AsyncGenerator[memoryview]]


class TooManyExports(Unavailable):
    def __init__(self) -> None:
        super().__init__("the server is making other tables; try again later")


class Exports:
    """Exports take turns: making a table costs CPU time, while a read waits for the disk.

    An export whose client still reads the last chunk does not count: it costs nothing. So clients that read
    slowly keep no other client from its table.
    """

    def __init__(self, iterate: Iterate) -> None:
        """`iterate` runs a generator in the threads of a limiter."""
        self._iterate = iterate
        self._threads = anyio.CapacityLimiter(THREADS)
        self._waiting = 0

    def stream(self, chunks: Generator[bytes], headers: dict[str, str]) -> Stream:
        if self._waiting >= MAX_WAITING:
            raise TooManyExports

        def end() -> None:
            self._waiting -= 1
            chunks.close()

        self._waiting += 1
        return Stream(self._take_turns(chunks), end, media_type="text/csv; charset=utf-8", headers=headers)

    async def _take_turns(self, chunks: Iterator[bytes]) -> AsyncGenerator[memoryview]:
        async with aclosing(self._iterate(chunks, self._threads)) as portions:
            async for portion in portions:
                self._waiting -= 1
                try:
                    yield portion
                finally:
                    self._waiting += 1


def add_export(app: FastAPI, iterate: Iterate) -> None:
    exports = Exports(iterate)

    @app.get("/export.csv")
    async def export(request: Request, rows: Annotated[int, Query(ge=0, le=10_000_000)] = 1000) -> Stream:
        """A table that is generated while it is sent, compressed if the client accepts gzip."""
        headers = {"Content-Disposition": attachment("export.csv"), "Vary": "Accept-Encoding"}
        chunks = csv_chunks(rows, CHUNK)
        if parse_accept_header(request.headers.get("accept-encoding"))["gzip"]:
            chunks, headers["Content-Encoding"] = gzip_chunks(chunks), "gzip"
        return exports.stream(chunks, headers)


def csv_chunks(rows: int, size: int) -> Generator[bytes]:
    """The table in chunks of about this size. A row is the same in every export: its number is its seed."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(("row", "question", "answer"))
    for row in range(1, rows + 1):
        one, two = divmod(random.Random(row).randrange(441), 21)
        table.writerow((row, f"What is {one} + {two}?", f"The answer is {one + two}."))
        if text.tell() >= size:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    if text.tell():
        yield text.getvalue().encode()


def gzip_chunks(chunks: Iterator[bytes]) -> Generator[bytes]:
    """The same, compressed. The client can decompress each chunk as soon as it arrives."""
    gzip = zlib.compressobj(wbits=31)
    for chunk in chunks:
        yield gzip.compress(chunk) + gzip.flush(zlib.Z_SYNC_FLUSH)
    yield gzip.flush()
