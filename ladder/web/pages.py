"""The web page of a rung: static files, what they must know of the rung, many clients in one connection.

Every file is read once, when the app is made. To send one touches neither the disk nor the engine, so the
page loads as long as the server answers anything at all.

The page plays up to sixteen clients, but a browser opens only six connections to a server, and would queue
the other requests where nobody sees it. So an ASGI rung takes the requests of all clients in one connection
(`POST /page/clients`), puts each to the app as if it had come alone, and sends their answers back as they
come. Rung 01 cannot: there the one connection would hold the one worker. For it the page keeps to the
browser's connections, and shows a request that it has not sent yet as not sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, MutableMapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import flask
from fastapi import FastAPI, Request, Response
from fastapi.sse import format_sse_event
from pydantic import BaseModel, Field

from ladder import ROOT
from ladder.log import log_failure
from ladder.web.http import EventStream

MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
FOLDER = ROOT / "ladder" / "page"
MOST_CLIENTS = 16

HEADERS = {
    # Nothing from elsewhere, nothing inline: even if text of a model were taken for HTML, it could not run.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "media-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # may be kept, but is asked for again: the next rung has the same address
}


@dataclass(frozen=True)
class Rung:
    """What the page and /docs say about a rung."""

    number: str
    name: str
    idea: str
    source: str
    streams: bool

    @property
    def title(self) -> str:
        return f"Rung {self.number}: {self.name}"


def describe(file: str, doc: str | None, streams: bool = True) -> Rung:
    """A rung by the name of its file and the first line of its docstring."""
    path = Path(file)
    number, _, name = path.stem.partition("_")
    idea = (doc or "").partition("\n")[0].partition(": ")[2]
    return Rung(number, name.replace("_", " "), idea, path.name, streams)


@dataclass(frozen=True)
class StaticFile:
    content: bytes
    media_type: str

    @cached_property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:20]}"'

    @property
    def headers(self) -> dict[str, str]:
        encoding = "; charset=utf-8" if self.media_type.startswith("text/") else ""
        return HEADERS | {"Content-Type": self.media_type + encoding, "ETag": self.tag}


def static_files(rung: Rung, *folders: str) -> dict[str, StaticFile]:
    """Everything there is to see, by its path: the page at /, its parts, the rung in words and in Python.

    Where two folders have a file of the same name, the later one's is taken.
    """
    about = asdict(rung) | {"page": [FOLDER.name, *folders][-1]}
    files = {
        f"/page/{file.name}": StaticFile(file.read_bytes(), MEDIA_TYPES[file.suffix])
        for folder in (FOLDER.name, *folders)
        for file in sorted((FOLDER.parent / folder).iterdir())
        if file.suffix in MEDIA_TYPES
    }
    return files | {
        "/": files["/page/index.html"],
        "/rung": StaticFile(json.dumps(about).encode(), "application/json"),
        "/source": StaticFile((ROOT / rung.source).read_bytes(), "text/plain"),
    }


def add_flask_page(app: flask.Flask, rung: Rung) -> None:
    def serve(file: StaticFile) -> flask.Response:
        response = flask.Response(file.content, headers=file.headers)
        response.make_conditional(flask.request)
        return response

    for path, file in static_files(rung).items():
        app.add_url_rule(path, endpoint=path, view_func=lambda file=file: serve(file))


def add_page(app: FastAPI, rung: Rung, *folders: str) -> None:
    """The page of a rung that serves a language model, or with `folders` another one."""

    def serve(file: StaticFile, request: Request) -> Response:
        if file.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=file.headers)
        return Response(file.content, headers=file.headers)

    def add(path: str, file: StaticFile) -> None:
        async def page(request: Request) -> Response:
            return serve(file, request)

        app.add_route(path, page, methods=["GET"], include_in_schema=False)

    for path, file in static_files(rung, *folders).items():
        add(path, file)
    if not folders:
        add_clients(app)


class Crowd(BaseModel):
    """The requests of several clients, each as it would be sent to /generate."""

    requests: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_CLIENTS)]


def add_clients(app: FastAPI) -> None:
    under_way: set[asyncio.Task[None]] = set()  # asyncio itself would let go of a task that only waits

    @app.post("/page/clients", include_in_schema=False)
    async def clients(crowd: Crowd) -> EventStream:
        """Many requests, and their answers in one stream, which takes all of them with it when it ends."""
        gone = asyncio.Event()
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        for client, body in enumerate(crowd.requests):
            task = asyncio.create_task(ask(app, client, json.dumps(body).encode(), pieces, gone))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        return EventStream(collect(pieces, len(crowd.requests)), on_close=gone.set)


Piece = dict[str, Any]
"""A part of one client's answer: `status` and `type` first, then `body` by and by, then `ended`."""


async def collect(pieces: asyncio.Queue[Piece], clients: int) -> AsyncGenerator[bytes]:
    """The pieces of all answers as server-sent events; what is there at the same time goes out together."""
    while clients:
        events = [await pieces.get()]
        while not pieces.empty():
            events.append(pieces.get_nowait())
        clients -= sum("ended" in event for event in events)
        yield b"".join(format_sse_event(data_str=json.dumps(event)) for event in events)


async def ask(
    app: FastAPI, client: int, body: bytes, pieces: asyncio.Queue[Piece], gone: asyncio.Event
) -> None:
    """Put one request to the app, as a server would that had read it from a connection of its own.

    It is never cancelled: when the client is gone the app is told so, and ends the request in its own way.
    """
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/generate",
        "raw_path": b"/generate",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
        "client": None,
        "server": None,
    }
    unread = [body]

    async def receive() -> MutableMapping[str, Any]:
        if unread:
            return {"type": "http.request", "body": unread.pop()}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message["headers"]}
            kind = headers[b"content-type"].decode("latin-1")
            pieces.put_nowait({"client": client, "status": message["status"], "type": kind})
        elif message.get("body"):
            # A character for each byte: a piece may end within a character of the text.
            pieces.put_nowait({"client": client, "body": message["body"].decode("latin-1")})

    try:
        await app(scope, receive, send)
    except Exception as error:
        log_failure(error)
    finally:
        pieces.put_nowait({"client": client, "ended": True})
