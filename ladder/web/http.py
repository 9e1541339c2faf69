"""The parts of an HTTP answer that are the same on every ASGI rung: event streams and errors."""

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
"""Nobody reads this answer; the number is the one that proxies log for it."""

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


class _ReadsNothing(Exception):
    """A name of its own: a disk that times out raises a `TimeoutError` as well."""


class Stream(StreamingResponse):
    """A response from an async generator that is closed the moment the response is over.

    Starlette cancels the response when the client leaves, but it closes the generator only if that
    happens to be running; one that waits for its turn would live on until it is garbage collected.
    """

    patience = 30.0
    """Seconds that a client may go without reading, once the buffers on the way to it are full."""

    def __init__(
        self, pieces: AsyncGenerator[bytes | memoryview, None], over: Callable[[], None], **settings: Any
    ) -> None:
        """`over` is called when the response is, even if not one piece of it was asked for."""
        super().__init__(pieces, **settings)
        self._pieces = pieces
        self._over = over

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: MutableMapping[str, Any]) -> None:
            try:
                async with asyncio.timeout(self.patience):
                    await send(message)
            except TimeoutError:
                raise _ReadsNothing from None

        try:
            await super().stream_response(send_in_time)
        except _ReadsNothing:
            logger.warning("a client read nothing for %g s and was dropped", self.patience)
        finally:
            self._over()
            await self._pieces.aclose()


PORTION = 64 * 1024


def portions(piece: bytes) -> Iterator[memoryview]:
    """A large piece, to be sent bit by bit: a client that reads slowly, but reads, does not use up the
    patience, which is for each of them."""
    view = memoryview(piece)
    return (view[start : start + PORTION] for start in range(0, len(piece), PORTION))


class EventStream(Stream):
    """Server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], over: Callable[[], None]) -> None:
        # Without these two headers, caches and proxies collect the stream before they pass it on.
        super().__init__(events, over, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


def answer_errors_in_our_shape(app: FastAPI) -> None:
    """Wrong requests get 422 and `{"detail": [...]}`, without an echo of what was sent."""

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
        # FastAPI's answer to a body that is not even text, such as bytes that are no UTF-8.
        if error.status_code == 400:
            return unprocessable([{"type": "json_invalid", "loc": ("body",), "msg": str(error.detail)}])
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return failure(error)  # and the server logs it


def failure(error: Exception) -> JSONResponse:
    """The answer to a request that failed before anything of its answer went out."""
    body = ErrorBody.of(error).model_dump()
    if isinstance(error, Unavailable):
        return JSONResponse(body, 503, {"Retry-After": str(error.retry_after)})
    return JSONResponse(body, 500)


def unprocessable(details: list[dict[str, Any]]) -> JSONResponse:
    return JSONResponse({"detail": details}, status_code=422)
