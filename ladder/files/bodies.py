"""The body of an upload as it arrives: how large it may be, and what interrupts it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect


class UploadInterrupted(HTTPException):
    """Another request has taken the upload over."""

    def __init__(self) -> None:
        super().__init__(408, "the upload was interrupted")


INTERRUPTIONS = (ClientDisconnect, UploadInterrupted, asyncio.CancelledError)
"""What ends a request without a fault of the upload: its client may resume it. A client that stops sending is
disconnected by the server."""


def announced_size(request: Request, offset: int = 0) -> int | None:
    """The size of the file when this request has ended, if the client says it beforehand."""
    length = request.headers.get("content-length")
    return offset + int(length) if length else None


def limited_body(request: Request, limit: int, offset: int = 0) -> AsyncGenerator[bytes]:
    """What a client sends, up to the limit.

    A request that announces too much is refused before any of its body is read.
    """
    too_large = HTTPException(413, f"an upload may have at most {limit} bytes")
    if (announced_size(request, offset) or offset) > limit:
        raise too_large

    async def chunks() -> AsyncGenerator[bytes]:
        size = offset
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise too_large
            if chunk:
                yield chunk

    return chunks()
