"""A table that is generated while it is sent: sums with their results, as a CSV file of any length."""

from __future__ import annotations

import csv
import io
import random
import zlib
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Annotated

from fastapi import FastAPI, Query, Request
from werkzeug.http import parse_accept_header

from ladder.files.responses import attachment
from ladder.web.http import Stream


def add_export(
    app: FastAPI, chunk_size: int, iterate: Callable[[Iterator[bytes]], AsyncGenerator[memoryview]]
) -> None:
    """`iterate` runs the generator of the table somewhere else than in the event loop."""

    @app.get("/export.csv")
    async def export(request: Request, rows: Annotated[int, Query(ge=0, le=10_000_000)] = 1000) -> Stream:
        """A table that is generated while it is sent, compressed if the client accepts gzip."""
        headers = {"Content-Disposition": attachment("export.csv"), "Vary": "Accept-Encoding"}
        chunks = csv_chunks(rows, chunk_size)
        if parse_accept_header(request.headers.get("accept-encoding"))["gzip"]:
            chunks, headers["Content-Encoding"] = gzip_chunks(chunks), "gzip"
        return Stream(iterate(chunks), chunks.close, media_type="text/csv; charset=utf-8", headers=headers)


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
