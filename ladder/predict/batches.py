"""Reads the bodies of batches without holding the event loop.

A body of a thousand rows is long, and a parser in a worker thread would not help: it keeps the interpreter's
lock until it is done. So a body is parsed in portions of a few rows, and between
two portions the event loop serves other requests. One body is parsed at a time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import msgspec
import numpy as np
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute

from ladder.predict.predictor import Rows
from ladder.predict.wire import MAX_FEATURES, MAX_NUMBER, MAX_ROWS, BatchInput

PORTION = 16
"""Rows. At most 16,384 numbers, which take a millisecond."""


class UnparsedBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A `BatchInput` whose rows are still text."""

    instances: list[msgspec.Raw]


Number = Annotated[float, msgspec.Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Row = Annotated[list[Number], msgspec.Meta(min_length=1, max_length=MAX_FEATURES)]

read_batch = msgspec.json.Decoder(UnparsedBatch).decode
read_row = msgspec.json.Decoder(Row).decode


def batch_router(app: FastAPI) -> APIRouter:
    """A router for routes whose body is a `BatchInput`."""
    app.state.parsing = asyncio.Lock()
    return APIRouter(route_class=BatchRoute)


class BatchRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_batch(request: Request) -> Response:
            return await handle(BatchRequest(request.scope, request.receive))

        return handle_batch


class BatchRequest(Request):
    """Returns a batch that is already checked, or what FastAPI is to check: its error names what is wrong."""

    async def json(self) -> object:
        body = await self.body()
        async with self.app.state.parsing:
            try:
                return BatchInput.of(await parse(body))
            except (msgspec.MsgspecError, ValueError, RecursionError):
                return await asyncio.to_thread(json.loads, body)


async def parse(body: bytes) -> Rows:
    """The rows of a batch; an error if one is wrong, or not as long as the others."""
    unparsed = read_batch(body).instances
    if not 1 <= len(unparsed) <= MAX_ROWS:
        raise ValueError("too few or too many rows")
    portions = []
    for start in range(0, len(unparsed), PORTION):
        await asyncio.sleep(0)
        portions.append(np.array([read_row(row) for row in unparsed[start : start + PORTION]], np.float32))
    return np.concatenate(portions)
