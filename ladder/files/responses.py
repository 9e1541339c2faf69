"""The HTTP details of file responses: safe headers, conditions, ranges, errors."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from werkzeug.http import http_date, parse_date, parse_etags

from ladder.files.folder import Folder, InWorker, Listed, NoSpace, NoSuchFile, OpenFile, WrongOffset
from ladder.files.forms import BrokenForm
from ladder.files.names import InvalidName
from ladder.files.ranges import Unsatisfiable, content_range, multipart, parse_ranges
from ladder.log import log_failure, logger
from ladder.web.http import CLIENT_CLOSED_REQUEST, add_error_handlers, unprocessable

FILE_HEADERS = {
    # An uploaded page or picture may contain scripts. They must not run: browsers may not guess another
    # media type, and a page runs in a sandbox, as if it came from another site.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox",
    "Cache-Control": "no-cache",  # the client may keep it, but asks with the tag before it uses it: 304
    "Accept-Ranges": "bytes",
}

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)


class Head(TypedDict):
    """What a response says before its body."""

    status_code: int
    headers: dict[str, str]
    media_type: str | None


@dataclass
class Plan:
    """A response to a request for a file."""

    head: Head
    parts: list[bytes | range] | None
    """The body: ranges of the file, and bytes between them; None for a response without a body."""


def plan_response(request: Request, file: OpenFile, download: bool) -> Plan:
    """The file, the parts of it that the client asks for, or 304 if it has the file already.

    For a download, the response says that the file is to be saved under its name.
    """
    tag, date = f'"{file.tag}"', http_date(file.modified)
    headers = {**FILE_HEADERS, "ETag": tag, "Last-Modified": date}
    head = Head(status_code=200, headers=headers, media_type=file.media_type)
    if not_modified(request.headers, file):
        return Plan(Head(status_code=304, headers=headers, media_type=None), None)
    if download:
        headers["Content-Disposition"] = attachment(file.name)
    parts: list[bytes | range] = [range(file.size)]
    # If-Range: send parts only of the file that the client has the rest of; otherwise all of the new one.
    if request.method == "GET" and request.headers.get("if-range", tag) in (tag, date):
        try:
            ranges = parse_ranges(request.headers.get("range", ""), file.size)
        except Unsatisfiable:
            headers["Content-Range"] = f"bytes */{file.size}"
            return Plan(Head(status_code=416, headers=headers, media_type=None), None)
        if ranges:
            head["status_code"], parts = 206, [*ranges]
        if ranges and len(ranges) == 1:
            headers["Content-Range"] = content_range(ranges[0], file.size)
        elif ranges:
            head["media_type"], parts = multipart(ranges, file.size, file.media_type)
    headers["Content-Length"] = str(sum(map(len, parts)))
    return Plan(head, parts if request.method == "GET" else None)


def not_modified(asked: Headers, file: OpenFile) -> bool:
    """Whether the client has this file already: 304 instead of its bytes."""
    if (tags := asked.get("if-none-match")) is not None:
        return parse_etags(tags).contains_weak(file.tag)
    since = parse_date(asked.get("if-modified-since"))
    return since is not None and file.modified <= since


def attachment(name: str) -> str:
    """A Content-Disposition that saves under any name (RFC 6266).

    It has an approximation in ASCII for old clients, and the name itself as percent-encoded UTF-8 (RFC 8187),
    which other clients prefer.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().strip()
    safe = "".join(c if c.isalnum() or c in " .-_()" else "_" for c in plain)
    if not safe or safe.startswith("."):  # only the ending is left
        safe = "download" + safe
    encoded = quote(name, safe="!#$&+-.^_`|~")
    return f"attachment; filename=\"{safe}\"; filename*=UTF-8''{encoded}"


def add_listing(app: FastAPI, folders: Mapping[str, Folder], max_upload: int, in_worker: InWorker) -> None:
    @app.get("/files")
    async def files() -> dict[str, Any]:
        """All files that can be read, by folder, and the largest size of an upload."""
        listed: dict[str, list[Listed]] = {}
        for name, folder in folders.items():
            listed[name] = await in_worker(folder.files)
        return {**listed, "max_upload": max_upload}


def add_file_error_handlers(app: FastAPI) -> None:
    add_error_handlers(app)

    @app.exception_handler(NoSuchFile)
    async def no_such_file(_: Request, _error: NoSuchFile) -> JSONResponse:
        return JSONResponse({"detail": "no such file"}, 404)

    @app.exception_handler(InvalidName)
    @app.exception_handler(BrokenForm)
    async def unusable(request: Request, error: ValueError) -> JSONResponse:
        place = ("path", "name") if "name" in request.path_params else ("body",)  # the files of a form
        return unprocessable([{"type": "value_error", "loc": place, "msg": str(error)}])

    @app.exception_handler(WrongOffset)
    async def wrong_offset(_: Request, error: WrongOffset) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 409, {"Upload-Offset": str(error.size)})

    @app.exception_handler(NoSpace)
    async def no_space(_: Request, error: NoSpace) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 507)

    @app.exception_handler(ClientDisconnect)
    async def client_disconnected(_: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(OSError)
    async def disk_failed(_: Request, error: OSError) -> JSONResponse:
        # A client can fill the disk and open many files: that is one line, without a traceback.
        if error.errno in DISK_FULL:
            logger.warning("a file was not stored: %s", os.strerror(error.errno))
            return JSONResponse({"detail": "the disk is full"}, 507)
        if error.errno in TOO_MANY_OPEN:
            logger.warning("a request was rejected: %s", os.strerror(error.errno))
            return JSONResponse({"detail": "too many files are open"}, 503, {"Retry-After": "1"})
        log_failure(error)
        return JSONResponse({"detail": "the disk failed"}, 500)
