"""The parts of an HTTP response that are the same on every ASGI rung: event streams and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from ladder.errors import RequestError, Unavailable
from ladder.log import logger
from ladder.web.schema import NOT_SENT_AS_JSON, ErrorBody, public_details

CLIENT_CLOSED_REQUEST = 499
"""The client disconnected before its response; proxies log the same number for it."""

STREAM_AND_ERRORS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One JSON object, or with `stream` a text/event-stream that ends in `data: [DONE]`.",
        "content": {
            "text/event-stream": {
                "example": 'data: {"token": " The", "token_id": 450, "prefill_time_ms": 12.3}\n\n'
            }
        },
    },
    500: {"model": ErrorBody, "description": "The engine failed."},
    503: {"model": ErrorBody, "description": "Not now: the queue is full, or the server is stopping."},
}
"""What POST /generate can answer, for /docs."""

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class ClientStalled(Exception):
    """The client reads nothing. Not a `TimeoutError`, because a disk that times out raises one as well."""


class Stream(StreamingResponse):
    """A response from an async generator that is closed as soon as the response ends.

    Starlette cancels the response when the client disconnects, but it closes the generator only if that
    happens to be running. A generator that waits for its turn would stay until it is garbage collected.
    """

    send_timeout = 30.0
    """Seconds that a client may go without reading, once the buffers on the way to it are full."""

    def __init__(
        self, pieces: AsyncGenerator[bytes | memoryview, None], on_close: Callable[[], None], **settings: Any
    ) -> None:
        """`on_close` is called when the response ends, even if none of it was sent."""
        super().__init__(pieces, **settings)
        self._pieces = pieces
        self._on_close = on_close

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: MutableMapping[str, Any]) -> None:
            try:
                async with asyncio.timeout(self.send_timeout):
                    await send(message)
            except TimeoutError:
                raise ClientStalled from None

        try:
            await super().stream_response(send_in_time)
        except ClientStalled:
            logger.warning("a client read nothing for %g s and was disconnected", self.send_timeout)
        finally:
            self._on_close()
            await self._pieces.aclose()


PORTION = 64 * 1024


def portions(piece: bytes) -> Iterator[memoryview]:
    """Cut a large piece into portions, because the timeout for sending is per portion: a client that reads
    slowly is not disconnected."""
    view = memoryview(piece)
    return (view[start : start + PORTION] for start in range(0, len(piece), PORTION))


class EventStream(Stream):
    """Server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], on_close: Callable[[], None]) -> None:
        # Without these two headers, caches and proxies buffer the stream before they pass it on.
        super().__init__(events, on_close, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


def add_error_handlers(app: FastAPI) -> None:
    """Wrong requests get 422 and `{"detail": [...]}`, which does not repeat what was sent."""

    @app.exception_handler(RequestValidationError)
    async def wrong_field(_: Request, error: RequestValidationError) -> JSONResponse:
        if isinstance(error.body, bytes):  # FastAPI parses only what is sent as JSON
            return JSONResponse({"detail": NOT_SENT_AS_JSON}, 415)
        return unprocessable(public_details(error.errors()))

    @app.exception_handler(RequestError)
    async def does_not_fit_the_model(_: Request, error: RequestError) -> JSONResponse:
        return unprocessable(error.details)

    @app.exception_handler(Unavailable)
    async def not_now(_: Request, error: Unavailable) -> JSONResponse:
        return failure(error)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        # FastAPI's response to a body that is no text, such as bytes that are not UTF-8.
        if error.status_code == 400:
            return unprocessable([{"type": "json_invalid", "loc": ("body",), "msg": str(error.detail)}])
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return failure(error)  # and the server logs it


def failure(error: Exception) -> JSONResponse:
    """The response to a request that failed before any of its response was sent."""
    body = ErrorBody.of(error).model_dump()
    if isinstance(error, Unavailable):
        return JSONResponse(body, 503, {"Retry-After": str(error.retry_after)})
    return JSONResponse(body, 500)


def unprocessable(details: list[dict[str, Any]]) -> JSONResponse:
    return JSONResponse({"detail": details}, status_code=422)
