"""A server that sends files in the ways that are usually written first. Rung 12 is compared with it.

python -m ladder.lab.naive_files --folder FOLDER --port 0
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from ladder.cli import ListenConfig, option, parse, whole_number
from ladder.files.folder import Folder
from ladder.files.responses import add_file_error_handlers
from ladder.web.server import Lifecycle, serve, take_port

BLOCK = 8192


@dataclass(frozen=True)
class Config(ListenConfig):
    folder: str = option(".", "folder whose files are sent")
    slow_disk_ms: int = option(0, "simulate a slow disk: milliseconds added to each read", whole_number(0))


class LargerChunks(FileResponse):
    chunk_size = 1024 * 1024


def create_app(config: Config) -> FastAPI:
    app = FastAPI()
    add_file_error_handlers(app)
    folder = Folder(config.folder)

    @app.get("/read-all/{name}")
    async def read_all(name: str) -> Response:
        """The whole file in memory, for each client, before the first byte is sent."""
        with folder.open(name).content as content:
            return Response(content.readall())

    @app.get("/blocking/{name}")
    async def blocking(name: str) -> StreamingResponse:
        """In chunks, but each read blocks the event loop: `yield` awaits nothing."""

        async def chunks() -> AsyncGenerator[bytes]:
            with folder.open(name).content as content:
                while chunk := content.read(BLOCK):
                    time.sleep(config.slow_disk_ms / 1000)  # noqa: ASYNC251, the simulated disk
                    yield chunk

        return StreamingResponse(chunks())

    @app.get("/file-response/{name}")
    async def file_response(name: str) -> FileResponse:
        folder.open(name).content.close()  # checks the name: FileResponse takes any path
        return FileResponse(folder.path / name)

    @app.get("/larger-chunks/{name}")
    async def larger_chunks(name: str) -> FileResponse:
        folder.open(name).content.close()
        return LargerChunks(folder.path / name)

    @app.put("/upload/{name}")
    async def upload(request: Request) -> int:
        """The whole body in memory before the server looks at the first byte."""
        return len(await request.body())

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def main() -> None:
    config, _ = parse(Config, __doc__)
    with errors_in_one_line("ladder.lab.naive_files"):
        serve(create_app(config), take_port(config), Lifecycle())


if __name__ == "__main__":
    main()
