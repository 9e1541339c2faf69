"""Uploads as their clients and watchers see them: how far they are, where to go on, how they ended."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import anyio
from fastapi import HTTPException, Path, Query, Request
from fastapi.sse import format_sse_event

from ladder.folder import Stored

PATIENCE = 60.0
"""Seconds without a byte, after which an upload counts as broken off."""

PROGRESS_INTERVAL = 0.1
"""As often as a progress bar can show; a gigabyte of small pieces makes no more events than that."""

ID = r"^[A-Za-z0-9_-]{8,64}$"
GivenId = Annotated[
    str | None, Query(pattern=ID, description="Chosen by the client, hard to guess. Makes it resumable.")
]
KnownId = Annotated[str, Path(pattern=ID)]

State = Literal["receiving", "interrupted", "failed", "done"]


class BrokenOff(HTTPException):
    """The bytes have stopped coming, or the same upload goes on in another connection."""

    def __init__(self) -> None:
        super().__init__(408, "the upload was broken off", {"Connection": "close"})


@dataclass(eq=False)
class Transfer:
    """One upload. Without an id from its client it cannot be gone on with, and nothing of it is kept."""

    name: str
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    resumable: bool = False
    received: int = 0
    total: int | None = None
    state: State = "receiving"
    stored: Stored | None = None
    touched: float = field(default_factory=time.monotonic)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the one request that writes."""
    _scope: anyio.CancelScope | None = None

    def begin(self, offset: int) -> None:
        self.state, self.received, self.stored = "receiving", offset, None
        self.touched = time.monotonic()

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Ends the block when nothing has arrived for too long, or when `interrupt` is called."""
        with anyio.CancelScope(deadline=anyio.current_time() + PATIENCE) as self._scope:
            yield
        if self._scope.cancelled_caught:
            raise BrokenOff

    def arrived(self, size: int) -> None:
        self.received += size
        self.touched = time.monotonic()
        assert self._scope
        self._scope.deadline = anyio.current_time() + PATIENCE

    def interrupt(self) -> None:
        """A client that comes back is believed: its old connection is dead, though nobody has told us."""
        if self._scope:
            self._scope.cancel()

    def completed(self, stored: Stored) -> Stored:
        self.state, self.stored = "done", stored
        return stored

    def status(self) -> dict[str, Any]:
        status = {"name": self.name, "state": self.state, "received": self.received, "total": self.total}
        return status | (asdict(self.stored) if self.stored else {})


class Transfers:
    """Uploads by their ids: those under way, and those that can be gone on with."""

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._known: dict[str, Transfer] = {}
        self._stopping = False

    def enter(self, name: str, id: str | None = None, total: int | None = None) -> Transfer:
        """A new upload, or one that goes on, for which its old connection is given up."""
        self._forget()
        new = Transfer(name) if id is None else Transfer(name, id, resumable=True)
        transfer = self._known.setdefault(new.id, new)
        transfer.interrupt()
        transfer.name, transfer.total, transfer.touched = name, total, time.monotonic()
        return transfer

    async def settled(self, id: str) -> Stored | None:
        """Give up the connection that an upload came by; say whether all of it had arrived."""
        if id not in self._known:
            return None
        transfer = self._known[id]
        transfer.interrupt()
        async with transfer.turn:
            return transfer.stored

    async def events(self, id: str) -> AsyncGenerator[bytes]:
        """How far an upload is, whenever that has changed, until it is done or has failed.

        It may be asked for before the upload begins, so that nothing of it is missed.
        """
        shown: dict[str, Any] = {}
        waiting_since = time.monotonic()
        while not self._stopping:
            transfer = self._known.get(id)
            if transfer is None and time.monotonic() - waiting_since > PATIENCE:
                return
            if transfer and (status := transfer.status()) != shown:
                shown = status
                yield format_sse_event(event=transfer.state, data_str=json.dumps(status))
                if transfer.state in ("done", "failed"):
                    return
            await asyncio.sleep(PROGRESS_INTERVAL)

    def stop(self) -> None:
        self._stopping = True
        for transfer in self._known.values():
            transfer.interrupt()

    def _forget(self) -> None:
        """What has come to its end, or has rested for longer than its bytes are kept."""
        oldest = time.monotonic() - self._keep_seconds
        for one in [*self._known.values()]:
            if not one.turn.locked() and (one.touched < oldest or not one.resumable):
                del self._known[one.id]


def announced(request: Request, offset: int = 0) -> int | None:
    """How large the file will be when this request has ended, if the client has said so."""
    length = request.headers.get("content-length")
    return offset + int(length) if length else None


def body_of(request: Request, limit: int, offset: int = 0) -> AsyncGenerator[bytes]:
    """What a client sends, up to the limit. What is announced as too large is not even begun."""
    # Without `close` the client would go on sending, and the server go on throwing away.
    too_large = HTTPException(413, f"at most {limit} bytes are taken", {"Connection": "close"})
    if (announced(request, offset) or offset) > limit:
        raise too_large

    async def bounded() -> AsyncGenerator[bytes]:
        size = offset
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise too_large
            if piece:
                yield piece

    return bounded()
