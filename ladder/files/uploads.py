"""Uploads as their clients and watchers see them: how far they are, where to go on, how they ended."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import anyio
from fastapi import HTTPException, Path, Query, Request
from fastapi.sse import format_sse_event

from ladder.files.folder import Folder, Stored
from ladder.log import log_failure

PATIENCE = 60.0
"""Seconds without a byte, after which an upload counts as broken off."""

PROGRESS_INTERVAL = 0.1
"""As often as a progress bar can show; a gigabyte of small pieces makes no more events than that."""

SWEEP_SECONDS = 60.0
"""How often the folder is searched for uploads that nobody goes on with."""

ID = r"^[A-Za-z0-9_-]{8,64}$"
GivenId = Annotated[
    str | None, Query(pattern=ID, description="Chosen by the client, hard to guess. Makes it resumable.")
]
KnownId = Annotated[str, Path(pattern=ID)]

State = Literal["receiving", "interrupted", "failed", "done"]


class BrokenOff(HTTPException):
    """The bytes have stopped coming, or the same upload goes on in another connection."""

    def __init__(self) -> None:
        super().__init__(408, "the upload was broken off")


@dataclass(eq=False)
class Transfer:
    """One upload. Without an id from its client it cannot be resumed, and nothing of it is kept."""

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
    _scopes: list[anyio.CancelScope] = field(default_factory=list)
    """Of every request that writes or waits for its turn."""

    def begin(self, offset: int) -> None:
        self.state, self.received, self.stored = "receiving", offset, None
        self.touched = time.monotonic()

    @asynccontextmanager
    async def in_turn(self) -> AsyncGenerator[None]:
        """Waits until no other request writes. `interrupt` ends the block, and the waiting too."""
        with anyio.CancelScope() as scope:
            self._scopes.append(scope)
            try:
                async with self.turn:
                    yield
            finally:
                self._scopes.remove(scope)
        if scope.cancelled_caught:
            raise BrokenOff

    def arrived(self, size: int) -> None:
        self.received += size
        self.touched = time.monotonic()

    def interrupt(self) -> None:
        """A client that comes back is believed: its old connections are dead, though nobody has told us."""
        for scope in self._scopes:
            scope.cancel()

    def completed(self, stored: Stored) -> Stored:
        self.state, self.stored = "done", stored
        return stored

    def status(self) -> dict[str, Any]:
        status = {"name": self.name, "state": self.state, "received": self.received, "total": self.total}
        return status | (asdict(self.stored) if self.stored else {})


class Transfers:
    """Uploads by their ids: those under way, and those that can be resumed."""

    def __init__(self, folder: Folder, keep_seconds: float, in_worker: Callable[..., Awaitable[Any]]) -> None:
        self._folder = folder
        self._keep_seconds = keep_seconds
        self._in_worker = in_worker
        self._known: dict[str, Transfer] = {}

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
        """How far an upload is, until it is done or has failed; nothing while that has not changed.

        It may be asked for before the upload begins, so that nothing of it is missed.
        """
        shown: dict[str, Any] = {}
        waiting_since = time.monotonic()
        while True:
            transfer = self._known.get(id)
            if transfer is None and time.monotonic() - waiting_since > PATIENCE:
                return
            if transfer and (status := transfer.status()) != shown:
                shown = status
                yield format_sse_event(event=transfer.state, data_str=json.dumps(status))
                if transfer.state in ("done", "failed"):
                    return
            else:
                yield b""
            await asyncio.sleep(PROGRESS_INTERVAL)

    @asynccontextmanager
    async def sweeping(self, _app: object) -> AsyncGenerator[None]:
        """While the server runs, what nobody has resumed for too long is removed."""

        async def again_and_again() -> None:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                await self.sweep()

        await self.sweep()
        task = asyncio.create_task(again_and_again())
        yield
        task.cancel()

    async def sweep(self) -> None:
        try:
            for old in await self._in_worker(self._folder.unfinished, self._keep_seconds):
                transfer = self._known.setdefault(old, Transfer("", old, resumable=True, touched=-math.inf))
                if not transfer.turn.locked():
                    async with transfer.turn:  # whoever comes back in this moment waits, and finds nothing
                        await self._in_worker(self._folder.forget, old, self._keep_seconds)
        except OSError as error:
            log_failure(error)
        self._forget()

    def stop(self) -> None:
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
    """What a client sends, up to the limit, as long as it keeps coming. What is announced as too large is
    not even begun."""
    too_large = HTTPException(413, f"at most {limit} bytes are taken")
    if (announced(request, offset) or offset) > limit:
        raise too_large

    async def bounded() -> AsyncGenerator[bytes]:
        size = offset
        pieces = request.stream()
        while (piece := await in_time(anext(pieces, None))) is not None:
            size += len(piece)
            if size > limit:
                raise too_large
            if piece:
                yield piece

    return bounded()


async def in_time(piece: Awaitable[bytes | None]) -> bytes | None:
    try:
        with anyio.fail_after(PATIENCE):
            return await piece
    except TimeoutError:
        raise BrokenOff from None
