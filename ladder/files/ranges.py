"""The Range header of HTTP (RFC 9110, section 14): which bytes are asked for, and how several are sent."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from itertools import pairwise

MOST_RANGES = 16
"""A player asks for one, a document viewer for a few. Whoever asks for more gets the whole file."""

PART = re.compile(r"(\d*)-(\d*)", re.ASCII)
LONGEST_NUMBER = 18


class Unsatisfiable(Exception):
    """Every range that was asked for begins past the end: 416."""


def parse_ranges(header: str, size: int) -> list[range] | None:
    """The wanted parts of a file; None when the header is to be ignored, so that the whole file is sent.

    A header that means nothing must be ignored, because its meaning may yet be invented. So are headers
    that ask for the same bytes again and again, which would make a small request into a huge answer.
    """
    unit, _, parts = header.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    ranges = []
    for part in parts.split(","):
        match = PART.fullmatch(part.strip())
        if match is None or max(map(len, match.groups())) > LONGEST_NUMBER:
            return None
        first, last = match.groups()
        if first and last and int(last) < int(first):
            return None
        if first:
            wanted = range(int(first), min(int(last) + 1, size) if last else size)
        elif last:
            wanted = range(max(size - int(last), 0), size)  # the last so many bytes
        else:
            return None
        if wanted:
            ranges.append(wanted)
    if not ranges:
        raise Unsatisfiable
    ascending = sorted(ranges, key=lambda one: one.start)
    overlap = any(later.start < earlier.stop for earlier, later in pairwise(ascending))
    return None if overlap or len(ranges) > MOST_RANGES else ranges


def content_range(part: range, size: int) -> str:
    return f"bytes {part.start}-{part.stop - 1}/{size}"


def multipart(ranges: Sequence[range], size: int, media_type: str) -> tuple[str, list[bytes | range]]:
    """Several ranges in one answer: its media type, and what it consists of."""
    boundary = secrets.token_hex(16)
    pieces: list[bytes | range] = []
    for part in ranges:
        lines = (
            f"--{boundary}",
            f"Content-Type: {media_type}",
            f"Content-Range: {content_range(part, size)}",
        )
        pieces += ["\r\n".join([*lines, "", ""]).encode(), part, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return f"multipart/byteranges; boundary={boundary}", pieces
