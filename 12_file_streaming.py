"""Rung 12: bytes stream in and out, a piece at a time.

Rung 11 sends many small messages. A file is one message that is too large to hold, and the code that
everyone writes first for it is wrong in one of three ways: it reads the whole file, a gigabyte of memory for
each client; or it reads in pieces, but inside an `async def`, where every read stops the event loop (a
`yield` awaits nothing); or it waits until an upload has arrived before it looks at the first byte.

- A plain generator reads the file, a worker thread moves it on, as rung 02 did with tokens. Each client has
  one piece in memory, and the next is read only when its connection has taken the last.
- A client may ask for parts: a player that seeks, a download that goes on after a break. A tag says which
  file the parts are of, so that parts of two versions are never put together.
- An upload goes to disk as it arrives, is hashed on the way, and gets its name in one step at the end.
- What is made on the fly (a table, a compressed table, a log that is still being written) goes the same way.

    disk           read ─┐                  read ─┐
    worker thread        └─ piece ─┐              └─ piece ─┐
    event loop     /health ok      └─▶ send   /health ok    └─▶ send ── waits while the client reads nothing
    client         GET, Range: bytes=5000-  ─▶ 206, the bytes from 5000 on

    python 12_file_streaming.py --demo
    python 12_file_streaming.py
    curl -r 0-99 localhost:5000/stream-video/batching.webm | xxd
    curl -T some.file localhost:5000/upload/some.file

What is still wrong: the file goes through Python on its way from the disk to the socket, where nginx and
`sendfile` would not touch it; and whoever can reach the port can upload.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import FastAPI, Header, Query, Request, Response
from starlette.requests import ClientDisconnect
from werkzeug.http import http_date, parse_accept_header

from ladder import ROOT
from ladder.cli import DemoOptions, ListenConfig, option, whole_number
from ladder.files.export import csv_pieces, gzip_pieces
from ladder.files.folder import Folder, Listed, OpenFile, Stored, attachment, check_name
from ladder.files.follow import Follower
from ladder.files.forms import files_in_form
from ladder.files.ranges import Unsatisfiable, content_range, multipart, parse_ranges
from ladder.files.responses import FILE_HEADERS, answer_file_errors, not_modified
from ladder.files.uploads import BrokenOff, GivenId, KnownId, Transfer, Transfers, announced, body_of
from ladder.files.watchers import Watchers
from ladder.lab import file_scenes
from ladder.lab.show import Show
from ladder.web.access_log import AccessLog
from ladder.web.guard import guard
from ladder.web.http import EventStream, Stream, portions
from ladder.web.pages import add_page, describe
from ladder.web.server import Lifecycle, serve, take_port


@dataclass(frozen=True)
class Config(ListenConfig):
    videos: str | None = option(None, "folder for /stream-video; default: the bundled clip")
    models: str | None = option(None, "folder for /download/model; default: the bundled weights")
    uploads: str = option("uploads", "folder that uploads are put into")
    log: str | None = option(None, "log to write and to follow; default: .log in the folder of uploads")
    chunk_kib: int = option(256, "KiB that are read at a time", whole_number(1, 65536))
    max_upload_mib: int = option(2048, "MiB of the largest upload; more is refused with 413", whole_number(1))
    max_unfinished_mib: int = option(8192, "MiB of all unfinished uploads together", whole_number(1))
    keep_minutes: int = option(60, "how long half an upload waits for the other half", whole_number(0))
    hosts: str = option("", "further names by which the server is called, with commas between them")
    workers: int = option(16, "threads that wait for the disk", whole_number(1))
    slow_disk_ms: int = option(0, "pretend that each read takes so much longer", whole_number(0))


RUNG = describe(__file__, __doc__)
T = TypeVar("T")


class Engine(Lifecycle):
    """Moves bytes between files and clients. Only worker threads touch the disk, never the event loop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.chunk = 1024 * config.chunk_kib
        self.limit = 2**20 * config.max_upload_mib
        self.videos = Folder(config.videos or ROOT / "ladder" / "data" / "clips")
        self.models = Folder(config.models or ROOT / "ladder" / "data" / "weights")
        self.uploads = Folder(config.uploads, create=True, room=2**20 * config.max_unfinished_mib)
        self.log = Path(config.log) if config.log else self.uploads.path / ".log"
        self.transfers = Transfers(self.uploads, 60 * config.keep_minutes, self.in_worker)
        self.watchers = Watchers()
        self.sending = self.receiving = 0
        # Threads of its own: a disk that hangs holds up those who wait for it, and nobody else.
        self.threads = anyio.CapacityLimiter(config.workers)
        self.log_threads = anyio.CapacityLimiter(1)

    async def in_worker(self, work: Callable[..., T], *arguments: Any) -> T:
        """Cancelled, it waits until the work in flight is done: whoever cleans up then is alone."""
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self.threads)

    async def moved_on(self, pieces: Iterator[bytes]) -> AsyncGenerator[memoryview]:
        """The event loop is free while a worker makes the next piece. None is empty: that is the end."""
        self.sending += 1
        try:
            while piece := await self.in_worker(next, pieces, b""):
                for portion in portions(piece):
                    yield portion
        finally:
            self.sending -= 1

    def read(self, file: OpenFile, parts: Iterable[bytes | range]) -> Iterator[bytes]:
        """Parts of a file, and what is to stand between them."""
        for part in parts:
            if isinstance(part, bytes):
                yield part
                continue
            file.content.seek(part.start)
            left = len(part)
            while left:
                time.sleep(self.config.slow_disk_ms / 1000)
                piece = file.content.read(min(left, self.chunk))
                if not piece:
                    raise EOFError(f"{file.name} has become shorter while it was sent")
                left -= len(piece)
                yield piece

    async def receive(self, transfer: Transfer, body: AsyncIterator[bytes], offset: int = 0) -> Stored:
        """Write what arrives to a hidden file, and give that its name when the end has arrived.

        Of an upload that its client can go on with, what has arrived is kept when the connection breaks.
        Of any other, and whatever else goes wrong, nothing is left.
        """
        async with transfer.in_turn():
            partial = await self.in_worker(self.uploads.partial, transfer.id, offset)
            transfer.begin(offset)
            self.receiving += 1
            try:
                async for piece in body:
                    await self.in_worker(partial.write, piece)
                    transfer.arrived(len(piece))
                with anyio.CancelScope(shield=True):  # a file that has its name is told to be done
                    stored = transfer.completed(await self.in_worker(partial.publish, transfer.name))
            except BaseException as error:
                broken = isinstance(error, ClientDisconnect | BrokenOff | asyncio.CancelledError)
                keep = transfer.resumable and broken
                with anyio.CancelScope(shield=True):
                    await self.in_worker(partial.leave if keep else partial.discard)
                transfer.state = "interrupted" if keep else "failed"
                raise
            finally:
                self.receiving -= 1
        return stored

    def stop(self) -> None:
        self.watchers.stop()
        self.transfers.stop()


async def answer(engine: Engine, folder: Folder, name: str, request: Request, save: bool = False) -> Response:
    """A file, or the parts of it that were asked for, or the news that the client has it already."""
    file = await engine.in_worker(folder.open, name)
    with ExitStack() as unless_sent:
        unless_sent.enter_context(file.content)
        tag, date = f'"{file.tag}"', http_date(file.modified)
        headers = {**FILE_HEADERS, "Accept-Ranges": "bytes", "ETag": tag, "Last-Modified": date}
        if not_modified(request.headers, file):
            return Response(status_code=304, headers=headers)
        if save:
            headers["Content-Disposition"] = attachment(name)
        status, media_type, size = 200, file.media_type, file.size
        parts: list[bytes | range] = [range(size)]
        # If-Range: parts only of the file that the client has the rest of; else all of the new one.
        if request.method == "GET" and request.headers.get("if-range", tag) in (tag, date):
            try:
                ranges = parse_ranges(request.headers.get("range", ""), size)
            except Unsatisfiable:
                return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
            if ranges:
                status, parts = 206, [*ranges]
            if ranges and len(ranges) == 1:
                headers["Content-Range"] = content_range(ranges[0], size)
            elif ranges:
                media_type, parts = multipart(ranges, size, media_type)
        headers["Content-Length"] = str(sum(map(len, parts)))
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type=media_type)
        pieces = engine.moved_on(engine.read(file, parts))
        sent = unless_sent.pop_all()
        return Stream(pieces, sent.close, status_code=status, headers=headers, media_type=media_type)


def create_app(engine: Engine) -> FastAPI:
    # No redirects: they repeat what was asked for.
    app = FastAPI(title=RUNG.title, redirect_slashes=False, lifespan=engine.transfers.sweeping)
    answer_file_errors(app)
    add_page(app, RUNG, "files")
    guard(app, [engine.config.host, *engine.config.hosts.split(",")])
    app.add_middleware(AccessLog(engine.log).middleware)

    @app.api_route("/stream-video/{filename}", methods=["GET", "HEAD"])
    async def stream_video(filename: str, request: Request) -> Response:
        """A file to play, with ranges for seeking."""
        return await answer(engine, engine.videos, filename, request)

    @app.api_route("/uploads/{name}", methods=["GET", "HEAD"])
    async def uploaded(name: str, request: Request) -> Response:
        return await answer(engine, engine.uploads, name, request)

    @app.api_route("/download/model/{name}", methods=["GET", "HEAD"])
    async def download_model(name: str, request: Request) -> Response:
        """A file to save under its own name; ranges let a download go on where it broke off."""
        return await answer(engine, engine.models, name, request, save=True)

    @app.get("/files")
    async def files() -> dict[str, Any]:
        """What can be asked for, and how much may be sent."""
        folders = {"videos": engine.videos, "models": engine.models, "uploads": engine.uploads}
        listed: dict[str, list[Listed]] = {}
        for key, folder in folders.items():
            listed[key] = await engine.in_worker(folder.files)
        return {**listed, "max_upload": engine.limit}

    @app.head("/upload/{id}")
    async def where_to_go_on(id: KnownId) -> Response:
        """How much of an upload there is. The connection that it came by is given up, should it be open."""
        if stored := await engine.transfers.settled(id):
            return Response(headers={"Upload-Offset": str(stored.size), "Upload-Complete": "?1"})
        size = await engine.in_worker(engine.uploads.partial_size, id)
        return Response(headers={"Upload-Offset": str(size), "Upload-Complete": "?0"})

    @app.get("/upload/{id}/events")
    async def progress(id: KnownId) -> EventStream:
        """How far an upload is, as server-sent events."""
        return engine.watchers.stream(engine.transfers.events(id))

    @app.put("/upload/{name:path}", status_code=201)
    async def upload(
        name: str, request: Request, id: GivenId = None, upload_offset: Annotated[int, Header(ge=0)] = 0
    ) -> Stored:
        """One file. With an `id` it can be resumed where HEAD /upload/{id} says."""
        check_name(name)
        body = body_of(request, engine.limit, upload_offset)
        transfer = engine.transfers.enter(name, id, announced(request, upload_offset))
        return await engine.receive(transfer, body, upload_offset)

    @app.post("/upload/stream", status_code=201)
    async def upload_form(request: Request) -> list[Stored]:
        """What a form sends. Each file has its name when its end has arrived, before the next begins."""
        parts = files_in_form(request.headers.get("content-type", ""), body_of(request, engine.limit))
        enter = engine.transfers.enter
        return [await engine.receive(enter(check_name(name)), body) async for name, body in parts]

    @app.get("/export.csv")
    async def export(request: Request, rows: Annotated[int, Query(ge=0, le=10_000_000)] = 1000) -> Stream:
        """A table that is made while it is sent, compressed if the client can unpack it."""
        headers = {"Content-Disposition": attachment("export.csv"), "Vary": "Accept-Encoding"}
        pieces = csv_pieces(rows, engine.chunk)
        if parse_accept_header(request.headers.get("accept-encoding"))["gzip"]:
            pieces, headers["Content-Encoding"] = gzip_pieces(pieces), "gzip"
        media_type = "text/csv; charset=utf-8"
        return Stream(engine.moved_on(pieces), on_close=pieces.close, media_type=media_type, headers=headers)

    @app.get("/logs/stream")
    async def logs(last: Annotated[int, Query(ge=0, le=1000)] = 20) -> EventStream:
        """The server's log as it is written, beginning with its last lines."""
        log = await anyio.to_thread.run_sync(Follower, engine.log, last, limiter=engine.log_threads)
        return engine.watchers.stream(log.events(engine.log_threads), log.close)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Answered by the event loop, whatever the disk is doing."""
        busy = {"sending": engine.sending, "receiving": engine.receiving}
        return {"status": "ok", "rung": RUNG.number, **busy, "pid": os.getpid()}

    return app


def demo(config: Config, options: DemoOptions) -> None:
    """The same file from servers that read it in different ways: memory, first byte, speed, /health."""
    file_scenes.compare(Show(__doc__, config, options))


def start(config: Config) -> None:
    listener = take_port(config)
    engine = Engine(config)
    serve(create_app(engine), listener, engine)


def main() -> None:
    run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
