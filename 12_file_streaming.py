"""Rung 12: files stream in and out, one chunk at a time.

Rung 11 sends many small messages. A file is one message that is too large to hold in memory. The code that is
usually written first for it has one of three faults. It reads the whole file, which costs a gigabyte of
memory per client. Or it reads chunks, but inside an `async def`, where every read blocks the event loop (a
`yield` awaits nothing). Or it looks at an upload only after all of it has arrived.

- A plain generator reads the file, and a worker thread runs it, as rung 02 does with tokens. Each client has
  one chunk in memory. The next is read only when its connection has taken the last.
- A body is a list of parts: ranges of a file, and bytes between them. So a client that seeks in a video, or
  resumes a download, causes no needless reads.
- An upload is written to disk as it arrives, under a hidden name, and hashed on the way. When it is complete,
  one rename gives it its own name. If it is interrupted, its client can ask where to resume it.
- Every other iterator of bytes streams in the same way. A table for export costs CPU time instead of waits
  for the disk, so all exports share one thread of their own.

    disk           read ─┐                   read ─┐
    worker thread        └─ chunk ─┐               └─ chunk ─┐
    event loop     /health ok      └─▶ send    /health ok    └─▶ send ── waits while the client reads nothing
    client         GET, Range: bytes=5000-  ─▶ 206, the bytes from 5000 on

    python 12_file_streaming.py --demo
    python 12_file_streaming.py
    curl -r 0-99 localhost:5000/stream-video/batching.webm | xxd
    curl -T some.file localhost:5000/upload/some.file

The demo's slow disk is simulated: `--slow-disk-ms` adds a wait to each read.

What is still wrong: each byte passes through Python on its way from the disk to the socket, while nginx with
`sendfile` leaves that to the kernel. And every client that can reach the port can upload.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Annotated, Any, TypeVar, TypeVarTuple

import anyio
from fastapi import FastAPI, Header, Request, Response

from ladder import ROOT
from ladder.cli import DemoOptions, ListenConfig, option, whole_number
from ladder.files.bodies import INTERRUPTIONS, announced_size, limited_body
from ladder.files.export import add_export
from ladder.files.folder import Folder, OpenFile, Stored
from ladder.files.follow import add_log
from ladder.files.forms import files_in_form
from ladder.files.names import InvalidName, check_name
from ladder.files.responses import add_file_error_handlers, add_listing, plan_response
from ladder.files.uploads import GivenId, KnownId, Transfer, Transfers, add_progress
from ladder.files.watchers import Watchers
from ladder.lab.file_scenes import compare_files
from ladder.lab.show import Show
from ladder.web.http import Stream, portions
from ladder.web.pages import add_page, describe
from ladder.web.server import Lifecycle, serve, take_port


@dataclass(frozen=True)
class Config(ListenConfig):
    videos: str | None = option(None, "folder for /stream-video; default: the bundled clip")
    models: str | None = option(None, "folder for /download/model; default: the bundled weights")
    uploads: str = option("uploads", "folder in which uploads are stored")
    log: str | None = option(None, "access log, for /logs/stream; default: .log in the folder of uploads")
    chunk_kib: int = option(256, "KiB per read", whole_number(1, 65536))
    max_upload_mib: int = option(2048, "MiB of the largest upload; larger ones get 413", whole_number(1))
    max_unfinished_mib: int = option(8192, "MiB of all unfinished uploads together", whole_number(1))
    keep_minutes: int = option(60, "minutes after which an interrupted upload is removed", whole_number(0))
    workers: int = option(16, "threads that wait for the disk", whole_number(1))
    slow_disk_ms: int = option(0, "simulate a slow disk: milliseconds added to each read", whole_number(0))


RUNG = describe(__file__, __doc__)
T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class PartialUpload:
    """An upload until it is complete: a file with a hidden name, hashed while it is written."""

    def __init__(self, folder: Folder, id: str, offset: int) -> None:
        self.folder = folder
        self.path = folder.prepare_partial(id, offset)
        self.content = FileIO(self.path, "r+" if offset else "w+")
        self.hash = hashlib.file_digest(self.content, "sha256")  # of what arrived before an interruption
        self.size = self.content.seek(0, os.SEEK_END)

    def write(self, chunk: bytes) -> None:
        self.folder.reserve(len(chunk))
        self.hash.update(chunk)
        self.size += len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[self.content.write(view) :]

    def publish(self, name: str) -> Stored:
        """Rename the complete file, in one step: other clients see the old file or the new one."""
        target = self.folder.path / name
        if target.is_dir():
            raise InvalidName("a folder has this name")
        os.fsync(self.content.fileno())
        self.content.close()
        with self.folder.publishing:  # or two uploads of one name could both find that it is free
            replaced = os.path.lexists(target)
            self.path.replace(target)
        self.folder.release(self.size)
        return Stored(name, self.size, self.hash.hexdigest(), replaced)

    def discard(self) -> None:
        self.content.close()
        self.path.unlink(missing_ok=True)
        self.folder.release(self.size)


class Engine(Lifecycle):
    """Moves bytes between files and clients. Only worker threads touch the disk, never the event loop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.chunk_size = 1024 * config.chunk_kib
        self.max_upload = 2**20 * config.max_upload_mib
        self.videos = Folder(config.videos or ROOT / "ladder" / "data" / "clips")
        self.models = Folder(config.models or ROOT / "ladder" / "data" / "weights")
        self.uploads = Folder(config.uploads, create=True, space=2**20 * config.max_unfinished_mib)
        self.log = Path(config.log) if config.log else self.uploads.path / ".log"
        self.transfers = Transfers(self.uploads, 60 * config.keep_minutes, self.in_worker)
        self.watchers, self.followers = Watchers(), Watchers()  # of uploads, of the log
        self.sending = self.receiving = 0
        self.threads = anyio.CapacityLimiter(config.workers)  # a disk that hangs blocks only these

    async def in_worker(self, work: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        """If cancelled, this waits until the work in flight ends. So a cleanup never runs beside it."""
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self.threads)

    async def iterate_in_worker(
        self, chunks: Iterator[bytes], threads: anyio.CapacityLimiter
    ) -> AsyncGenerator[memoryview]:
        """The event loop is free while a worker makes the next chunk. An empty chunk is the end."""
        self.sending += 1
        try:
            while chunk := await anyio.to_thread.run_sync(next, chunks, b"", limiter=threads):
                for portion in portions(chunk):
                    yield portion
        finally:
            self.sending -= 1

    def read(self, file: OpenFile, parts: Iterable[bytes | range]) -> Iterator[bytes]:
        """The parts of a body: ranges of the file are read chunk by chunk, bytes are sent as they are."""
        for part in parts:
            if isinstance(part, bytes):
                yield part
                continue
            file.content.seek(part.start)
            left = len(part)
            while left:
                time.sleep(self.config.slow_disk_ms / 1000)
                chunk = file.content.read(min(left, self.chunk_size))
                if not chunk:
                    raise EOFError(f"{file.name} was truncated while it was sent")
                left -= len(chunk)
                yield chunk

    async def receive(self, transfer: Transfer, body: AsyncIterator[bytes], offset: int = 0) -> Stored:
        """Write an upload as it arrives, and publish it when it is complete.

        If it fails, nothing of it is left, with one exception: an upload that can be resumed is kept when its
        connection is interrupted.
        """
        async with transfer.exclusive():
            partial = await self.in_worker(PartialUpload, self.uploads, transfer.id, offset)
            transfer.begin(offset)
            self.receiving += 1
            try:
                async for chunk in body:
                    await self.in_worker(partial.write, chunk)
                    transfer.advance(len(chunk))
                with anyio.CancelScope(shield=True):  # no interruption between the rename and "done"
                    stored = await self.in_worker(partial.publish, transfer.name)
                    transfer.complete(stored)
            except BaseException as error:
                keep = transfer.resumable and isinstance(error, INTERRUPTIONS)
                with anyio.CancelScope(shield=True):
                    await self.in_worker(partial.content.close if keep else partial.discard)
                transfer.state = "interrupted" if keep else "failed"
                raise
            finally:
                self.receiving -= 1
        return stored

    def stop(self) -> None:
        self.watchers.stop()
        self.followers.stop()
        self.transfers.stop()


async def send_file(
    engine: Engine, folder: Folder, name: str, request: Request, download: bool = False
) -> Response:
    """A file, or the parts of it that the client asks for. It is closed when the response ends."""
    file = await engine.in_worker(folder.open, name)
    with ExitStack() as until_sent:
        until_sent.enter_context(file.content)
        plan = plan_response(request, file, download)
        if plan.parts is None:
            return Response(**plan.head)
        chunks = engine.iterate_in_worker(engine.read(file, plan.parts), engine.threads)
        return Stream(chunks, until_sent.pop_all().close, **plan.head)


def create_app(engine: Engine) -> FastAPI:
    # Without redirects, because they would repeat a hostile path.
    app = FastAPI(title=RUNG.title, redirect_slashes=False, lifespan=engine.transfers.sweeping)
    add_file_error_handlers(app)
    add_page(app, RUNG, "files")

    @app.api_route("/stream-video/{filename}", methods=["GET", "HEAD"])
    async def stream_video(filename: str, request: Request) -> Response:
        """A file to play, with ranges for seeking."""
        return await send_file(engine, engine.videos, filename, request)

    @app.api_route("/uploads/{name}", methods=["GET", "HEAD"])
    async def uploaded(name: str, request: Request) -> Response:
        return await send_file(engine, engine.uploads, name, request)

    @app.api_route("/download/model/{name}", methods=["GET", "HEAD"])
    async def download_model(name: str, request: Request) -> Response:
        """A file to save under its own name; with ranges a client can resume an interrupted download."""
        return await send_file(engine, engine.models, name, request, download=True)

    @app.head("/upload/{id}", operation_id="where_to_go_on_upload__id__head")  # as generated clients know it
    async def get_upload_offset(id: KnownId) -> Response:
        """Where to resume an upload. If a request still sends it, that request is interrupted."""
        if stored := await engine.transfers.interrupt(id):
            return Response(headers={"Upload-Offset": str(stored.size), "Upload-Complete": "?1"})
        size = await engine.in_worker(engine.uploads.partial_size, id)
        return Response(headers={"Upload-Offset": str(size), "Upload-Complete": "?0"})

    @app.put("/upload/{name:any_name}", status_code=201)
    async def upload(
        name: str, request: Request, id: GivenId = None, upload_offset: Annotated[int, Header(ge=0)] = 0
    ) -> Stored:
        """One file. With an `id` it can be resumed at the offset that HEAD /upload/{id} returns."""
        check_name(name)
        body = limited_body(request, engine.max_upload, upload_offset)
        transfer = engine.transfers.register(name, id, announced_size(request, upload_offset))
        return await engine.receive(transfer, body, upload_offset)

    @app.post("/upload/stream", status_code=201)
    async def upload_form(request: Request) -> list[Stored]:
        """The files of a form. Each is published when its end has arrived, before the next begins."""
        body = limited_body(request, engine.max_upload)
        files = files_in_form(request.headers.get("content-type", ""), body)
        register = engine.transfers.register
        return [await engine.receive(register(check_name(name)), content) async for name, content in files]

    folders = {"videos": engine.videos, "models": engine.models, "uploads": engine.uploads}
    add_listing(app, folders, engine.max_upload, engine.in_worker)
    add_progress(app, engine.transfers, engine.watchers)
    add_export(app, engine.iterate_in_worker)
    add_log(app, engine.log, engine.followers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Answered by the event loop, whatever the disk is doing."""
        busy = {"sending": engine.sending, "receiving": engine.receiving}
        return {"status": "ok", "rung": RUNG.number, **busy, "pid": os.getpid()}

    return app


def demo(config: Config, options: DemoOptions) -> None:
    """The same files from servers that read them in different ways; then from a simulated slow disk."""
    compare_files(Show(__doc__, config, options), Config, config.slow_disk_ms)


def start(config: Config) -> None:
    listener = take_port(config)
    engine = Engine(config)
    serve(create_app(engine), listener, engine)


def main() -> None:
    run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
