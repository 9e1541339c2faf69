"""What the monitor shows: requests, latency, memory and processor time, all of it measured."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping, Sized
from contextlib import asynccontextmanager
from typing import Any, Protocol

import psutil
from pydantic import BaseModel

from ladder.predict.registry import Registry
from ladder.stats import percentile

WINDOW_SECONDS = 10.0
MOST_SAMPLES = 20_000

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Figures(BaseModel):
    """One second's message to those who watch."""

    time: float
    rss_bytes: int
    cpu_percent: float
    requests_per_second: float
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    active_models: list[str]
    connections: dict[str, int]
    evicted: int


class Manager(Protocol):
    """What rung 11 has of each kind of WebSocket."""

    @property
    def connections(self) -> Sized: ...

    @property
    def evicted(self) -> int: ...

    def broadcast(self, text: str) -> None: ...


class Meter:
    """Answers of the last seconds, with the time that each took from its request to its first byte.

    The rate counts all of them; the latencies are those of the last `MOST_SAMPLES` at most.
    """

    def __init__(self) -> None:
        self._answers: deque[tuple[float, float]] = deque(maxlen=MOST_SAMPLES)
        self._total = 0
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first reading is the beginning of the next
        self._totals = deque([(time.monotonic(), 0)], maxlen=int(WINDOW_SECONDS))  # a second apart

    def note(self, seconds: float) -> None:
        self._total += 1
        self._answers.append((time.monotonic(), seconds))

    @asynccontextmanager
    async def watching(self, registry: Registry, managers: Mapping[str, Manager]) -> AsyncGenerator[None]:
        """Tell all monitors once a second, until the block ends."""
        watch = asyncio.create_task(self._watch(registry, managers))
        yield
        watch.cancel()

    async def _watch(self, registry: Registry, managers: Mapping[str, Manager]) -> None:
        while True:
            await asyncio.sleep(1)
            figures = self.figures(
                active_models=registry.in_memory(),
                connections={name: len(manager.connections) for name, manager in managers.items()},
                evicted=sum(manager.evicted for manager in managers.values()),
            )
            managers["monitor"].broadcast(figures.model_dump_json())

    def figures(self, active_models: list[str], connections: dict[str, int], evicted: int) -> Figures:
        now = time.monotonic()
        then, before = self._totals[0]
        self._totals.append((now, self._total))
        while self._answers and self._answers[0][0] < now - WINDOW_SECONDS:
            self._answers.popleft()
        seconds = [seconds for _, seconds in self._answers]
        p50, p95, p99 = (1000 * percentile(seconds, rank) if seconds else None for rank in (50, 95, 99))
        return Figures(
            time=time.time(),
            rss_bytes=self._process.memory_info().rss,
            cpu_percent=self._process.cpu_percent(),
            requests_per_second=(self._total - before) / max(1.0, now - then),
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            latency_p99_ms=p99,
            active_models=active_models,
            connections=connections,
            evicted=evicted,
        )


class Metered:
    """Notes every HTTP request but those for /health, which only ask whether the server lives.

    Plain ASGI: Starlette's middleware for functions would hide disconnects.
    """

    def __init__(self, app: App, meter: Meter) -> None:
        self.app = app
        self.meter = meter

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.meter.note(time.monotonic() - started)
            await send(message)

        await self.app(scope, receive, noted)
