"""POST /page/clients: the requests of several clients in one connection, and their responses in one stream.

The page plays up to sixteen clients, but a browser opens only six connections to a server. It would queue the
other requests, and the page could not tell that wait from a wait in the server. So an ASGI rung accepts the
requests of all clients in one connection. It passes each to the app as if it had arrived alone, and sends the
responses back as they are produced.

Rung 01 cannot do this: the one connection would occupy its only worker. There the page uses separate
connections, and marks a request that it has not sent yet as "not sent".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, MutableMapping
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.sse import format_sse_event
from pydantic import BaseModel, Field

from ladder.log import log_failure
from ladder.web.http import EventStream

MOST_CLIENTS = 16


class ClientRequests(BaseModel):
    """The requests of several clients, each as it would be sent to /generate."""

    requests: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_CLIENTS)]


Part = dict[str, Any]
"""A part of one client's response: first `status` and `type`, then any number of `body`, then `ended`."""


def add_clients(app: FastAPI) -> None:
    in_flight: set[asyncio.Task[None]] = set()  # asyncio itself keeps no strong reference to a waiting task

    @app.post("/page/clients", include_in_schema=False)
    async def clients(body: ClientRequests) -> EventStream:
        """Start all requests. When the stream ends, so do those that are still in flight."""
        disconnected = asyncio.Event()
        parts: asyncio.Queue[Part] = asyncio.Queue()
        for client, request in enumerate(body.requests):
            content = json.dumps(request).encode()
            task = asyncio.create_task(send_to_app(app, client, content, parts, disconnected))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
        return EventStream(merge(parts, len(body.requests)), on_close=disconnected.set)


async def merge(parts: asyncio.Queue[Part], clients: int) -> AsyncGenerator[bytes]:
    """The parts of all responses as server-sent events; parts that are ready together are sent together."""
    while clients:
        events = [await parts.get()]
        while not parts.empty():
            events.append(parts.get_nowait())
        clients -= sum("ended" in event for event in events)
        yield b"".join(format_sse_event(data_str=json.dumps(event)) for event in events)


async def send_to_app(
    app: FastAPI, client: int, content: bytes, parts: asyncio.Queue[Part], disconnected: asyncio.Event
) -> None:
    """Pass one request to the app, as a server does that has read it from a connection.

    This task is never cancelled. When the browser disconnects, the app gets a disconnect message and ends the
    request in its own way.
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
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))],
        "client": None,
        "server": None,
    }
    unread = [content]

    async def receive() -> MutableMapping[str, Any]:
        if unread:
            return {"type": "http.request", "body": unread.pop()}
        await disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = {name.lower(): value for name, value in message["headers"]}
            media_type = headers[b"content-type"].decode("latin-1")
            parts.put_nowait({"client": client, "status": message["status"], "type": media_type})
        elif message.get("body"):
            # One character per byte: a part may end in the middle of a character of the text.
            parts.put_nowait({"client": client, "body": message["body"].decode("latin-1")})

    try:
        await app(scope, receive, send)
    except Exception as error:
        log_failure(error)
    finally:
        parts.put_nowait({"client": client, "ended": True})
