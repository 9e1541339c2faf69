"""Rung 11: server and client speak whenever they have something to say.

Rung 10 only answers. A client that wants to know what has changed must ask again and again, and each question
is a whole request. Here connections stay open, in three ways:

- A WebSocket carries messages both ways. Each connection has a bounded queue and a task that sends from it.
  If a client reads slowly, senders wait (*backpressure*). If it does not read at all, it is evicted.
- Server-sent events go one way, over plain HTTP, and are numbered. A client that reconnects sends the number
  of the last event that it has seen, and gets exactly the ones that it has missed.
- A training run streams its loss, and stops when its client disconnects. Its model becomes the next version
  in rung 10's registry.

    a drawing ─── message ──▶ predict ─┬─▶ queue ─▶ task ─▶ client reads
                                       ├─▶ queue ─▶ task ─▶ client reads
                                       └─▶ FULL             client does not read: evicted

    python 11_realtime.py --demo
    python 11_realtime.py
    curl -N localhost:5000/stream/events

What is still wrong: everything that is sent fits into one message. A video or the logs of a year do not.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import APIRouter, FastAPI, Header, Query
from fastapi.sse import format_sse_event
from starlette.websockets import WebSocket

from ladder import import_rung
from ladder.cli import DemoOptions, PredictionConfig, option, seconds, whole_number
from ladder.lab import realtime_scenes as scenes
from ladder.lab.prediction_scenes import rejections_in_one_line
from ladder.lab.show import Contender, Show
from ladder.predict import wire
from ladder.predict.monitor import Meter, Metered
from ladder.predict.protocols import VersionsRung
from ladder.predict.trainer import Trainer
from ladder.web import websockets
from ladder.web.http import EventStream
from ladder.web.pages import describe
from ladder.web.protocols import StreamingRung
from ladder.web.server import Lifecycle, serve, take_port

rung_02 = import_rung("02_async_streaming", StreamingRung)
rung_10 = import_rung("10_model_versions", VersionsRung)

EVICTION_TIMEOUT = 2.0
"""Seconds that a client with a full queue has to read, before it is evicted."""


@dataclass(frozen=True)
class Config(PredictionConfig):
    max_connections: int = option(500, "WebSockets at the same time; more are rejected", whole_number(1))
    max_unsent: int = option(64, "messages that wait for a client; with more it is evicted", whole_number(1))
    history: int = option(1000, "events that are kept for clients that reconnect", whole_number(1))
    max_trained: int = option(4, "trained versions that are kept; the oldest is unloaded", whole_number(1))
    ping_seconds: float = option(websockets.PING_SECONDS, "silence before the server sends a ping", seconds)


class Connection:
    """One WebSocket: the messages that are not sent yet, a task that reads and a task that writes."""

    def __init__(self, socket: WebSocket, max_unsent: int, on_message: OnMessage) -> None:
        self.socket = socket
        self.unsent: asyncio.Queue[str] = asyncio.Queue(max_unsent)
        self.sending_since: float | None = None
        self.evicted = False
        self.tasks = [asyncio.create_task(self.read(on_message)), asyncio.create_task(self.write())]

    async def read(self, on_message: OnMessage) -> None:
        while (message := await self.socket.receive())["type"] == "websocket.receive":
            await on_message(self, message.get("text"))

    async def write(self) -> None:
        while True:
            text = await self.unsent.get()
            self.sending_since = time.monotonic()
            await self.socket.send_text(text)  # waits while the client does not read
            self.sending_since = None
            self.unsent.task_done()

    async def ended(self) -> None:
        await websockets.until_one_ends(self.tasks)
        if self.evicted:
            await websockets.say_goodbye(self.socket, 1013, "you read too slowly; come back")

    async def catch_up(self) -> None:
        """Wait until the queue is empty, the client has disconnected, or it has read nothing for too long."""
        spent = time.monotonic() - self.sending_since if self.sending_since else 0
        await websockets.until_empty(self.unsent, self.tasks, EVICTION_TIMEOUT - spent)

    def evict(self) -> None:
        self.evicted = True
        for task in self.tasks:
            task.cancel()


OnMessage = Callable[[Connection, str | None], Awaitable[None]]  # None: the message is not text


class Manager:
    """The connections of one path."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.connections: set[Connection] = set()
        self.turn = asyncio.Lock()
        self.evicted = 0

    async def serve(self, socket: WebSocket, on_message: OnMessage) -> None:
        if len(self.connections) >= self.config.max_connections:
            return await websockets.refuse(socket, 503, "too many connections")
        await socket.accept()
        connection = Connection(socket, self.config.max_unsent, on_message)
        self.connections.add(connection)
        try:
            await connection.ended()
        finally:
            self.connections.discard(connection)

    async def broadcast(self, text: str) -> None:
        """Send to all, with backpressure: no faster than the slowest client that still reads."""
        async with self.turn:
            behind = [connection for connection in self.connections if connection.unsent.full()]
            await asyncio.gather(*(connection.catch_up() for connection in behind))
            self.enqueue(text)

    def enqueue(self, text: str) -> None:
        """Put a message into each queue, without waiting. Evict the clients whose queue is full."""
        for connection in self.connections.copy():
            try:
                connection.unsent.put_nowait(text)
            except asyncio.QueueFull:
                self.evicted += 1
                self.connections.discard(connection)
                connection.evict()


class EventLog:
    """The latest events, numbered. A client that reconnects gets the ones that it has missed."""

    def __init__(self, size: int, ping_seconds: float = websockets.PING_SECONDS) -> None:
        self.ping_seconds = ping_seconds
        self.run_id = secrets.token_hex(4)  # after a restart, the numbers start at 1 again
        self.last = 0
        self.kept: deque[bytes] = deque(maxlen=size)
        self.changed = asyncio.Event()
        self.closed = False

    def append(self, name: str, data: Mapping[str, object]) -> None:
        self.last += 1
        self.kept.append(self.event(name, data, self.last))
        self.changed.set()
        self.changed = asyncio.Event()

    def close(self) -> None:
        self.closed = True
        self.changed.set()

    def id(self, number: int) -> str:
        return f"{self.run_id}-{number}"

    def event(self, name: str, data: Mapping[str, object], number: int) -> bytes:
        return format_sse_event(event=name, data_str=json.dumps(data), id=self.id(number))

    async def follow(self, last_seen: str | None) -> AsyncGenerator[bytes]:
        """All events after the last one that the client has seen; without it, all events from now on."""
        run_id, _, number = (last_seen or self.id(self.last)).rpartition("-")
        known = run_id == self.run_id and number.isdecimal() and int(number) <= self.last
        place = int(number) if known else 0
        # First the number alone: a client that is disconnected before its first event can resume, too.
        yield format_sse_event(retry=1000, id=self.id(place))
        if not known:
            yield self.event("gap", {"missed": None}, place)
        while True:
            while place < self.last:
                oldest = self.last - len(self.kept) + 1
                if place < oldest - 1:
                    yield self.event("gap", {"missed": oldest - 1 - place}, oldest - 1)
                    place = oldest - 1
                else:
                    place += 1
                    yield self.kept[place - oldest]
            if self.closed:
                return
            if not await websockets.happens(self.changed, self.ping_seconds):
                yield format_sse_event(comment="still here")  # proxies close silent connections


class Engine(Lifecycle):
    """Rung 10's engine, unchanged, with the open connections, the event log and the trainer."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.predicting = rung_10.Engine(config)
        self.registry = self.predicting.registry
        self.trainer = Trainer(self.registry, rung_10.MAIN, config.max_trained)
        self.log = EventLog(config.history, config.ping_seconds)
        self.registry.watchers.append(lambda what, version: self.log.append(what, {"version": version}))
        self.managers = {path: Manager(config) for path in ("predict", "predictions", "monitor")}
        self.meter = Meter()

    async def answer(self, text: str | None) -> tuple[bool, str]:
        """Whether the message was good, and the answer: a prediction or an error. The socket stays open."""
        started = time.monotonic()
        try:
            question = wire.Question.model_validate_json(text or "")
            async with self.registry.lease(question.model, question.version) as lease:
                outcome = await self.predicting.predict(lease, question.features)
            return True, wire.to_reply(question, outcome, lease.names())
        except Exception as error:
            return False, wire.error_reply(error, text)
        finally:
            self.meter.record(time.monotonic() - started)

    async def reply(self, connection: Connection, text: str | None) -> None:
        """Answer the client that sent the message. Waits while its queue is full, and reads no further."""
        _, answer = await self.answer(text)
        await connection.unsent.put(answer)

    async def publish(self, connection: Connection, text: str | None) -> None:
        """Send a prediction to all clients, an error only to the client that caused it."""
        good, answer = await self.answer(text)
        if good:
            await self.managers["predictions"].broadcast(answer)
        else:
            await connection.unsent.put(answer)

    async def until_ready(self) -> None:
        await self.registry.until_loaded()

    def stop(self) -> None:
        self.predicting.stop()
        self.trainer.stop()
        self.log.close()


def create_app(engine: Engine) -> FastAPI:
    """Rung 10's web side, and the paths whose connections stay open."""
    router = APIRouter(lifespan=lambda _: engine.meter.watching(engine.registry, engine.managers))
    handlers = {"predict": engine.reply, "predictions": engine.publish, "monitor": engine.reply}
    for path, manager in engine.managers.items():
        router.add_websocket_route(f"/ws/{path}", partial(manager.serve, on_message=handlers[path]))

    @router.get("/stream/events")
    async def events(last_event_id: Annotated[str | None, Header(max_length=100)] = None) -> EventStream:
        """Changes of the models as numbered events, without end. A browser resumes the stream by itself."""
        return EventStream(engine.log.follow(last_event_id), on_close=lambda: None)

    @router.post("/train/stream")
    async def train(epochs: Annotated[int, Query(ge=1, le=200)] = 20) -> EventStream:
        """Train a new version of the digits. The training ends early if the client disconnects."""
        return EventStream(rung_02.stream(engine.trainer.start(epochs)), on_close=engine.trainer.finish)

    app = rung_10.create_app(engine.predicting, describe(__file__, __doc__), "realtime")
    app.include_router(router)
    app.add_middleware(Metered, meter=engine.meter)
    return app


def demo(config: Config, options: DemoOptions) -> None:
    """The same predictions over plain HTTP, a WebSocket and server-sent events; then a broadcast to 40."""
    show = Show(__doc__, config, options)
    with show.starting(Contender("11_realtime.py", Config)) as (url,), rejections_in_one_line():
        asyncio.run(scenes.show_transports(show, url))


def start(config: Config) -> None:
    engine, listener = Engine(config), take_port(config)
    serve(create_app(engine), listener, engine, websockets.settings(config.ping_seconds))


def main() -> None:
    run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
