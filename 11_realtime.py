"""Rung 11: server and client speak whenever they have something to say.

Rung 10 answers, and only that: a client must ask to learn anything, again and again, and each question is
a whole request. Three ways of staying connected mend that, each at a price:

- A WebSocket carries messages both ways. Each connection has a bounded queue and a task that empties it.
  Who speaks faster than the others read is slowed down. Who does not read at all fills its queue and is
  dropped, and nobody waits for it any more.
- Server-sent events go one way, over plain HTTP. Each has a number. A client that was cut off names the last
  one it has seen, and gets exactly those that it has missed.
- Work that takes long says how it is going, and ends when nobody listens: a training run streams its loss,
  and its model is the next version in rung 10's registry.

    a drawing ─── message ──▶ predict ─┬─▶ queue ─▶ task ─▶ reads
                                       ├─▶ queue ─▶ task ─▶ reads
                                       └─▶ FULL             does not read: evicted

    python 11_realtime.py --demo
    python 11_realtime.py
    curl -N localhost:5000/stream/events

What is still wrong: everything that is sent fits into one message; a video or a year of logs does not.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, HTTPException, Query, Request
from fastapi.sse import format_sse_event
from starlette.websockets import WebSocket

from ladder import import_rung
from ladder.cli import DemoOptions, PredictionConfig, option, seconds, whole_number
from ladder.lab import realtime_scenes
from ladder.lab.show import Contender, Show
from ladder.predict import wire
from ladder.predict.monitor import Meter, Metered
from ladder.predict.registry import Registry
from ladder.predict.trainer import Trainer
from ladder.web import websockets
from ladder.web.guard import same_origin
from ladder.web.http import EventStream
from ladder.web.pages import describe
from ladder.web.server import Lifecycle, serve, take_port

rung_10 = import_rung("10_model_versions")

PATIENCE = 2.0
"""Seconds that a client with a full queue has to read on, before it is dropped."""


@dataclass(frozen=True)
class Config(PredictionConfig):
    max_connections: int = option(500, "WebSockets at the same time; more are refused", whole_number(1))
    max_unsent: int = option(64, "messages that wait for a client; with more it is dropped", whole_number(1))
    history: int = option(1000, "events that are kept for clients that come back", whole_number(1))
    max_trained: int = option(4, "trained versions that are kept; the oldest goes", whole_number(1))
    origins: str = option("", "further origins whose pages may connect, with commas between them")
    ping_seconds: float = option(websockets.PING_SECONDS, "silence after which a client is tried", seconds)

    def allows(self, connection: Request | WebSocket) -> bool:
        return same_origin(connection, self.origins)


class Connection:
    """One WebSocket: what is still to be sent to its client, and the two tasks that read and write."""

    def __init__(self, socket: WebSocket, max_unsent: int, take: Take) -> None:
        self.socket = socket
        self.unsent: asyncio.Queue[str] = asyncio.Queue(max_unsent)
        self.sending_since: float | None = None
        self.evicted = False
        self.tasks = [asyncio.create_task(self.read(take)), asyncio.create_task(self.write())]

    async def read(self, take: Take) -> None:
        while (message := await self.socket.receive())["type"] == "websocket.receive":
            await take(self, message.get("text"))

    async def write(self) -> None:
        while True:
            text = await self.unsent.get()
            self.sending_since = time.monotonic()
            await self.socket.send_text(text)  # waits for as long as the client does not read
            self.sending_since = None
            self.unsent.task_done()

    async def ended(self) -> None:
        await websockets.until_one_ends(self.tasks)
        if self.evicted:
            await websockets.say_goodbye(self.socket, 1013, "you read too slowly; come back")

    async def catch_up(self) -> None:
        """Until all is sent; or until nothing has been taken for too long, or the client is gone."""
        spent = time.monotonic() - self.sending_since if self.sending_since else 0
        await websockets.until_empty(self.unsent, self.tasks, PATIENCE - spent)

    def evict(self) -> None:
        self.evicted = True
        for task in self.tasks:
            task.cancel()


Take = Callable[[Connection, str | None], Awaitable[None]]
"""What is done with a client's message; None stands for one that is no text."""


class Manager:
    """All connections of one kind."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.connections: set[Connection] = set()
        self.speaking = asyncio.Lock()
        self.evicted = 0

    async def serve(self, socket: WebSocket, take: Take) -> None:
        if not self.config.allows(socket):
            return await websockets.refuse(socket, 403, "this origin may not connect")
        if len(self.connections) >= self.config.max_connections:
            return await websockets.refuse(socket, 503, "too many connections")
        await socket.accept()
        connection = Connection(socket, self.config.max_unsent, take)
        self.connections.add(connection)
        try:
            await connection.ended()
        finally:
            self.connections.discard(connection)

    async def tell(self, text: str) -> None:
        """Broadcast, no faster than the slowest reads who reads at all."""
        async with self.speaking:
            behind = [connection for connection in self.connections if connection.unsent.full()]
            await asyncio.gather(*(connection.catch_up() for connection in behind))
            self.broadcast(text)

    def broadcast(self, text: str) -> None:
        """Waits for nobody: it only fills the queues, and drops those whose queue is full."""
        for connection in self.connections.copy():
            try:
                connection.unsent.put_nowait(text)
            except asyncio.QueueFull:
                self.evicted += 1
                self.connections.discard(connection)
                connection.evict()


class EventLog:
    """The latest events, numbered; a client that comes back gets those that it has missed."""

    def __init__(self, size: int, ping_seconds: float = websockets.PING_SECONDS) -> None:
        self.ping_seconds = ping_seconds
        self.run = secrets.token_hex(4)  # numbers begin anew when the server does
        self.last = 0
        self.kept: deque[bytes] = deque(maxlen=size)
        self.news = asyncio.Event()
        self.closed = False

    def append(self, name: str, data: dict[str, Any]) -> None:
        self.last += 1
        self.kept.append(self.event(name, data, self.last))
        self.wake()

    def wake(self) -> None:
        self.news.set()
        self.news = asyncio.Event()

    def close(self) -> None:
        self.closed = True
        self.wake()

    def id(self, number: int) -> str:
        return f"{self.run}-{number}"

    def event(self, name: str, data: dict[str, Any], number: int) -> bytes:
        return format_sse_event(event=name, data_str=json.dumps(data), id=self.id(number))

    async def follow(self, last_seen: str | None) -> AsyncGenerator[bytes]:
        """Everything after the last event that the client has seen; without one, everything from now on."""
        run, _, number = (last_seen or self.id(self.last)).rpartition("-")
        known = run == self.run and number.isdecimal() and int(number) <= self.last
        place = int(number) if known else 0
        # The number comes first, alone: who is cut off before the first event can come back all the same.
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
            if not await websockets.happens(self.news, self.ping_seconds):
                yield format_sse_event(comment="still here")  # proxies end what is silent


class Engine(Lifecycle):
    """Rung 10's engine, unchanged, and all that is connected to it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.predicting = rung_10.Engine(config)
        self.registry: Registry = self.predicting.registry
        self.trainer = Trainer(self.registry, rung_10.MAIN, config.max_trained)
        self.log = EventLog(config.history, config.ping_seconds)
        self.registry.watchers.append(lambda what, version: self.log.append(what, {"version": version}))
        self.managers = {path: Manager(config) for path in ("predict", "predictions", "monitor")}
        self.meter = Meter()

    async def answer(self, text: str | None) -> tuple[bool, str]:
        """A prediction; or what is wrong with the message, which is no reason to hang up."""
        started = time.monotonic()
        try:
            question = wire.Question.model_validate_json(text or "")
            async with self.predicting.using(question.model, question.version) as leased:
                outcome = await self.predicting.predict(leased, question.features)
            return True, wire.to_reply(question, outcome, leased.names())
        except Exception as error:
            return False, wire.error_reply(error, text)
        finally:
            self.meter.note(time.monotonic() - started)

    async def reply(self, connection: Connection, text: str | None) -> None:
        """To the one who asked. Who does not read is not read either, and a ping goes unanswered."""
        _, answer = await self.answer(text)
        await connection.unsent.put(answer)

    async def publish(self, connection: Connection, text: str | None) -> None:
        """A prediction to everybody, an error only to the one who made it."""
        good, answer = await self.answer(text)
        if good:
            await self.managers["predictions"].tell(answer)
        else:
            await connection.unsent.put(answer)

    async def until_ready(self) -> None:
        await self.registry.until_loaded()

    def stop(self) -> None:
        self.predicting.stop()
        self.trainer.stop()
        self.log.close()


def create_app(engine: Engine) -> FastAPI:
    """Rung 10's web side, and the paths of those who stay."""

    router = APIRouter(lifespan=lambda _: engine.meter.watching(engine.registry, engine.managers))

    takes = {"predict": engine.reply, "predictions": engine.publish, "monitor": engine.reply}
    for path, manager in engine.managers.items():
        router.add_websocket_route(f"/ws/{path}", partial(manager.serve, take=takes[path]))

    @router.get("/stream/events")
    async def events(last_event_id: Annotated[str | None, Header(max_length=100)] = None) -> EventStream:
        """What happens to the models, numbered, without end; a browser resumes it by itself."""
        return EventStream(engine.log.follow(last_event_id), on_close=lambda: None)

    @router.post("/train/stream")
    async def train(request: Request, epochs: Annotated[int, Query(ge=1, le=200)] = 20) -> EventStream:
        """Train a further version of the digits. It ends when it is done, or when the client leaves."""
        if not engine.config.allows(request):
            raise HTTPException(403, "this origin may not train")
        return engine.trainer.stream(epochs)

    app: FastAPI = rung_10.create_app(engine.predicting, describe(__file__, __doc__), "realtime")
    app.include_router(router)
    app.add_middleware(Metered, meter=engine.meter)
    return app


def demo(config: Config, options: DemoOptions) -> None:
    """The same predictions by plain HTTP, as server-sent events and over a WebSocket; then a crowd."""
    show = Show(__doc__, config, options)
    with show.starting(Contender("11_realtime.py", Config)) as (url,):
        asyncio.run(realtime_scenes.show_transports(show, url))


def start(config: Config) -> None:
    engine, listener = Engine(config), take_port(config)
    serve(create_app(engine), listener, engine, websockets.settings(config.ping_seconds))


def main() -> None:
    run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
