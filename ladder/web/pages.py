"""The web page of a rung: static files, and a description of the rung as JSON.

Every file is read once, when the app is made. A request for one does not need the disk or the engine, so the
page loads as long as the server can respond at all.

The files of all pages are in ladder/pages. The address of a file is /page/ and its path there. A page is a
folder with `main.html` (the content of <main>), `main.js` and `style.css`; `shared/shell.html` is the rest of
the document. In HTML, `<!-- include FILE -->` stands for the content of that file.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from string import Template
from textwrap import indent

import flask
from fastapi import FastAPI, Request, Response

from ladder import ROOT
from ladder.web.page_clients import add_clients

MEDIA_TYPES = {
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
PAGES = ROOT / "ladder" / "pages"
GENERATE = "generate"
"""The page of the rungs that serve a language model."""

EXTENDED = {"realtime": ["models"]}
"""The pages whose style sheets a page uses too. (Axe, which the tests run, cannot follow an `@import`.)"""

INCLUDE = re.compile(r"<!-- include (\S+) -->\n")
ENGINE_TRACK = "01", "09"
"""The first and last number that a rung of the engine track can have. Rungs above them are a second track."""

HEADERS = {
    # Nothing from other servers, nothing inline: generated text could not run even if it were taken for HTML.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "media-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser must revalidate: the next rung has the same address
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
    """Describe a rung by the name of its file and the first line of its docstring."""
    path = Path(file)
    number, _, name = path.stem.partition("_")
    idea = (doc or "").partition("\n")[0].partition(": ")[2]
    return Rung(number, name.replace("_", " "), idea, path.name, streams)


def tracks(scripts: Iterable[str]) -> list[list[str]]:
    """The numbers of the rungs, from the names of their files: the engine track, then the other one."""
    first, last = ENGINE_TRACK
    numbers = sorted(script[:2] for script in scripts)
    return [list(track) for _, track in groupby(numbers, lambda number: first <= number <= last)]


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


def read_html(file: Path) -> str:
    return INCLUDE.sub(lambda match: read_html(file.parent / match[1]), file.read_text("utf-8"))


def document(rung: Rung, page: str) -> str:
    """The whole HTML of a page: the shell around its own part."""
    folders = ["shared", *EXTENDED.get(page, []), page]
    return Template(read_html(PAGES / "shared" / "shell.html")).substitute(
        page=page,
        styles="\n  ".join(f'<link rel="stylesheet" href="/page/{folder}/style.css">' for folder in folders),
        title=html.escape(rung.title),
        description=html.escape(rung.idea),
        main=indent(read_html(PAGES / page / "main.html"), "    "),
    )


def static_files(rung: Rung, page: str) -> dict[str, StaticFile]:
    """All responses that never change, by path: the page at /, its parts, the rung as JSON and as Python."""
    about = asdict(rung) | {
        "page": page,
        "tracks": tracks(path.name for path in ROOT.glob("[0-9][0-9]_*.py")),
    }
    parts = {
        f"/page/{file.relative_to(PAGES).as_posix()}": StaticFile(file.read_bytes(), MEDIA_TYPES[file.suffix])
        for file in sorted(PAGES.glob("*/*"))
        if file.suffix in MEDIA_TYPES
    }
    return parts | {
        "/": StaticFile(document(rung, page).encode(), "text/html"),
        "/rung": StaticFile(json.dumps(about).encode(), "application/json"),
        "/source": StaticFile((ROOT / rung.source).read_bytes(), "text/plain"),
    }


def add_flask_page(app: flask.Flask, rung: Rung) -> None:
    """Serve the page of a Flask rung."""

    def serve(file: StaticFile) -> flask.Response:
        response = flask.Response(file.content, headers=file.headers)
        response.make_conditional(flask.request)
        return response

    for path, file in static_files(rung, GENERATE).items():
        app.add_url_rule(path, endpoint=path, view_func=lambda file=file: serve(file))


def add_page(app: FastAPI, rung: Rung, page: str = GENERATE) -> None:
    """Serve a page of a FastAPI rung; `page` is the name of its folder."""

    def serve(file: StaticFile, request: Request) -> Response:
        if file.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=file.headers)
        return Response(file.content, headers=file.headers)

    def add(path: str, file: StaticFile) -> None:
        async def respond(request: Request) -> Response:
            return serve(file, request)

        app.add_route(path, respond, methods=["GET"], include_in_schema=False)

    for path, file in static_files(rung, page).items():
        add(path, file)
    if page == GENERATE:
        add_clients(app)
