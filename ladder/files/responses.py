"""What HTTP says about files that is the same for each of them: safe headers, conditions, errors."""

from __future__ import annotations

import errno

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from werkzeug.http import parse_date, parse_etags

from ladder.files.folder import InvalidName, NoRoom, NotThere, OpenFile, WrongOffset
from ladder.files.forms import BrokenForm
from ladder.log import log_failure
from ladder.web.http import CLIENT_CLOSED_REQUEST, add_error_handlers, unprocessable

FILE_HEADERS = {
    # An uploaded page or picture may hold scripts. Here they can do nothing: no guessing that it might be a
    # page after all, and a page runs in a sandbox, as if it came from elsewhere.
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox",
    "Cache-Control": "no-cache",  # may be kept, but is asked for again with the tag: 304 if it still holds
}

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)


def not_modified(asked: Headers, file: OpenFile) -> bool:
    """Whether the client has this file already: 304 instead of its bytes."""
    if (tags := asked.get("if-none-match")) is not None:
        return parse_etags(tags).contains_weak(file.tag)
    since = parse_date(asked.get("if-modified-since"))
    return since is not None and file.modified <= since


def answer_file_errors(app: FastAPI) -> None:
    add_error_handlers(app)

    @app.exception_handler(NotThere)
    async def not_there(_: Request, _error: NotThere) -> JSONResponse:
        return JSONResponse({"detail": "no such file"}, 404)

    @app.exception_handler(InvalidName)
    @app.exception_handler(BrokenForm)
    async def unusable(request: Request, error: ValueError) -> JSONResponse:
        place = ("path", "name") if "name" in request.path_params else ("body",)  # a form's files
        return unprocessable([{"type": "value_error", "loc": place, "msg": str(error)}])

    @app.exception_handler(WrongOffset)
    async def wrong_offset(_: Request, error: WrongOffset) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 409, {"Upload-Offset": str(error.size)})

    @app.exception_handler(NoRoom)
    async def no_room(_: Request, error: NoRoom) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 507)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, _error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(OSError)
    async def disk_failed(_: Request, error: OSError) -> JSONResponse:
        log_failure(error)
        if error.errno in DISK_FULL:
            return JSONResponse({"detail": "the disk is full"}, 507)
        if error.errno in TOO_MANY_OPEN:
            return JSONResponse({"detail": "too many files are open"}, 503, {"Retry-After": "1"})
        return JSONResponse({"detail": "the disk failed"}, 500)
