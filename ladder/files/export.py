"""A table that is made while it is sent: sums with their answers, as a CSV file of any length."""

from __future__ import annotations

import csv
import io
import random
import zlib
from collections.abc import Generator, Iterator


def csv_pieces(rows: int, size: int) -> Generator[bytes]:
    """The table in pieces of about this size. The same rows every time: each has a seed of its own."""
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


def gzip_pieces(pieces: Iterator[bytes]) -> Generator[bytes]:
    """The same, compressed: each piece can be unpacked as soon as it has arrived."""
    gzip = zlib.compressobj(wbits=31)
    for piece in pieces:
        yield gzip.compress(piece) + gzip.flush(zlib.Z_SYNC_FLUSH)
    yield gzip.flush()
