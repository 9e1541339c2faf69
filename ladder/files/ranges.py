"""HTTP's Range header (RFC 9110, section 14): which bytes a client wants, and how several ranges are sent."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from itertools import pairwise

MAX_RANGES = 16
"""A player asks for one, a document viewer for a few. A client that asks for more gets the whole file."""

PART = re.compile(r"(\d*)-(\d*)", re.ASCII)
MAX_DIGITS = 18


class Unsatisfiable(Exception):
    """Every range of the request begins past the end of the file: 416."""


def parse_ranges(header: str, size: int) -> list[range] | None:
    """The ranges of a file that a client wants; None if the header is ignored and the whole file is sent.

    HTTP says that a server ignores a header that it does not understand. This one also ignores a header whose
    ranges overlap: it would turn a small request into a very large response.
    """
    unit, _, parts = header.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    ranges = []
    for part in parts.split(","):
        match = PART.fullmatch(part.strip())
        if match is None or max(map(len, match.groups())) > MAX_DIGITS:
            return None
        first, last = match.groups()
        if first and last and int(last) < int(first):
            return None
        if first:
            wanted = range(int(first), min(int(last) + 1, size) if last else size)
        elif last:
            wanted = range(max(size - int(last), 0), size)  # that many bytes at the end
        else:
            return None
        if wanted:
            ranges.append(wanted)
    if not ranges:
        raise Unsatisfiable
    ascending = sorted(ranges, key=lambda one: one.start)
    overlap = any(later.start < earlier.stop for earlier, later in pairwise(ascending))
    return None if overlap or len(ranges) > MAX_RANGES else ranges


def content_range(part: range, size: int) -> str:
    return f"bytes {part.start}-{part.stop - 1}/{size}"


def multipart(ranges: Sequence[range], size: int, media_type: str) -> tuple[str, list[bytes | range]]:
    """Several ranges in one response: its media type, and the parts of its body."""
    boundary = secrets.token_hex(16)
    parts: list[bytes | range] = []
    for one in ranges:
        lines = (
            f"--{boundary}",
            f"Content-Type: {media_type}",
            f"Content-Range: {content_range(one, size)}",
        )
        parts += ["\r\n".join([*lines, "", ""]).encode(), one, b"\r\n"]
    parts.append(f"--{boundary}--\r\n".encode())
    return f"multipart/byteranges; boundary={boundary}", parts
