"""The state of uploads, for their clients and watchers: how much has arrived, and how each upload ended."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

import anyio
from fastapi import FastAPI, Path, Query
from fastapi.sse import format_sse_event

from ladder.files.bodies import UploadInterrupted
from ladder.files.folder import Folder, InWorker, Stored
from ladder.files.watchers import Watchers
from ladder.log import log_failure
from ladder.web.http import EventStream

PROGRESS_INTERVAL = 0.1
"""Seconds between two progress events, at least: a progress bar needs no more of them."""

WATCH_TIMEOUT = 60.0
"""Seconds that a client may watch an id before its upload begins."""

SWEEP_SECONDS = 60.0
"""Seconds between two searches of the folder for uploads that no client has resumed."""

ID = r"^[A-Za-z0-9_-]{8,64}$"
GivenId = Annotated[
    str | None, Query(pattern=ID, description="Chosen by the client, hard to guess. Makes it resumable.")
]
KnownId = Annotated[str, Path(pattern=ID)]

State = Literal["receiving", "interrupted", "failed", "done"]


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
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the one request that writes."""
    _scopes: list[anyio.CancelScope] = field(default_factory=list)
    """Of each request that writes, or waits until it may write."""

    @asynccontextmanager
    async def exclusive(self) -> AsyncGenerator[None]:
        """Wait until no other request writes. `interrupt` ends the block, and the waiting too."""
        with anyio.CancelScope() as scope:
            self._scopes.append(scope)
            try:
                async with self.lock:
                    yield
            finally:
                self._scopes.remove(scope)
        if scope.cancelled_caught:
            raise UploadInterrupted

    def interrupt(self) -> None:
        """End all requests that send this upload.

        A client that sends a new one has lost the old connections, even if the server does not know it yet.
        """
        for scope in self._scopes:
            scope.cancel()

    def begin(self, offset: int) -> None:
        self.state, self.received, self.stored = "receiving", offset, None
        self.touched = time.monotonic()

    def advance(self, size: int) -> None:
        self.received += size
        self.touched = time.monotonic()

    def complete(self, stored: Stored) -> None:
        self.state, self.stored = "done", stored

    def status(self) -> dict[str, object]:
        status = {"name": self.name, "state": self.state, "received": self.received, "total": self.total}
        return status | (asdict(self.stored) if self.stored else {})


class Transfers:
    """Uploads by their ids: those in flight, and those that can be resumed."""

    def __init__(self, folder: Folder, keep_seconds: float, in_worker: InWorker) -> None:
        self._folder = folder
        self._keep_seconds = keep_seconds
        self._in_worker = in_worker
        self._known: dict[str, Transfer] = {}

    def register(self, name: str, id: str | None = None, total: int | None = None) -> Transfer:
        """The upload that a request sends: a new one, or one that it takes over from earlier requests."""
        self._forget_ended()
        new = Transfer(name) if id is None else Transfer(name, id, resumable=True)
        transfer = self._known.setdefault(new.id, new)
        transfer.interrupt()
        transfer.name, transfer.total, transfer.touched = name, total, time.monotonic()
        return transfer

    async def interrupt(self, id: str) -> Stored | None:
        """End the request that sends an upload. If the upload was complete by then, return its file."""
        if id not in self._known:
            return None
        transfer = self._known[id]
        transfer.interrupt()
        async with transfer.lock:
            return transfer.stored

    async def events(self, id: str) -> AsyncGenerator[bytes]:
        """The progress of an upload until it is done or has failed, and empty bytes while it does not change.

        A client may watch before the upload begins, so that it misses nothing.
        """
        shown: dict[str, object] = {}
        waiting_since = time.monotonic()
        while True:
            transfer = self._known.get(id)
            if transfer is None and time.monotonic() - waiting_since > WATCH_TIMEOUT:
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
        """While the server runs, remove uploads that no client has resumed for too long."""

        async def sweep_repeatedly() -> None:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                await self.sweep()

        await self.sweep()
        task = asyncio.create_task(sweep_repeatedly())
        yield
        task.cancel()

    async def sweep(self) -> None:
        try:
            for old in await self._in_worker(self._folder.unfinished, self._keep_seconds):
                transfer = self._known.setdefault(old, Transfer("", old, resumable=True, touched=-math.inf))
                if not transfer.lock.locked():
                    async with transfer.lock:  # a client that resumes it now waits, and finds nothing
                        await self._in_worker(self._folder.remove_stale, old, self._keep_seconds)
        except OSError as error:
            log_failure(error)
        self._forget_ended()

    def stop(self) -> None:
        for transfer in self._known.values():
            transfer.interrupt()

    def _forget_ended(self) -> None:
        """Forget uploads that cannot be resumed, or not any more."""
        oldest = time.monotonic() - self._keep_seconds
        for transfer in [*self._known.values()]:
            if not transfer.lock.locked() and (transfer.touched < oldest or not transfer.resumable):
                del self._known[transfer.id]


def add_progress(app: FastAPI, transfers: Transfers, watchers: Watchers) -> None:
    @app.get("/upload/{id}/events")
    async def progress(id: KnownId) -> EventStream:
        """The progress of an upload, as server-sent events."""
        return watchers.stream(transfers.events(id))
