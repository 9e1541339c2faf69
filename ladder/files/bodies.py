"""The body of an upload as it arrives: how large it may be, and how long its client may send nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable

import anyio
from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

STALL_TIMEOUT = 60.0
"""Seconds without a byte after which an upload counts as interrupted."""


class UploadInterrupted(HTTPException):
    """No more bytes arrive, or another request has taken the upload over."""

    def __init__(self) -> None:
        super().__init__(408, "the upload was interrupted")


INTERRUPTIONS = (ClientDisconnect, UploadInterrupted, asyncio.CancelledError)
"""What ends a request without a fault of the upload: its client may resume it."""


def announced_size(request: Request, offset: int = 0) -> int | None:
    """The size of the file when this request has ended, if the client says it beforehand."""
    length = request.headers.get("content-length")
    return offset + int(length) if length else None


def limited_body(request: Request, limit: int, offset: int = 0) -> AsyncGenerator[bytes]:
    """What a client sends, up to the limit, until it sends nothing for too long.

    A request that announces too much is refused before any of its body is read.
    """
    too_large = HTTPException(413, f"an upload may have at most {limit} bytes")
    if (announced_size(request, offset) or offset) > limit:
        raise too_large

    async def chunks() -> AsyncGenerator[bytes]:
        size = offset
        body = request.stream()
        while (chunk := await before_timeout(anext(body, None))) is not None:
            size += len(chunk)
            if size > limit:
                raise too_large
            if chunk:
                yield chunk

    return chunks()


async def before_timeout(chunk: Awaitable[bytes | None]) -> bytes | None:
    try:
        with anyio.fail_after(STALL_TIMEOUT):
            return await chunk
    except TimeoutError:
        raise UploadInterrupted from None
