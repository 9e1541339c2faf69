"""The monitor's measurements: requests, latency, memory and CPU time of the server."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sized
from contextlib import asynccontextmanager
from typing import Protocol

import psutil
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ladder.predict.protocols import VersionRegistry
from ladder.stats import percentile

WINDOW_SECONDS = 10.0
MAX_LATENCIES = 20_000


class MonitorSample(BaseModel):
    """The message that each monitor gets once per second."""

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


class Connections(Protocol):
    """The WebSockets of one path: what the monitor needs of rung 11's `Manager`."""

    @property
    def connections(self) -> Sized: ...

    @property
    def evicted(self) -> int: ...

    def enqueue(self, text: str) -> None: ...


class Meter:
    """Counts responses, and keeps the time from each request to the first byte of its response.

    The rate counts all responses; the latencies are those of the last `MAX_LATENCIES` at most.
    """

    def __init__(self) -> None:
        self._answers: deque[tuple[float, float]] = deque(maxlen=MAX_LATENCIES)
        self._total = 0
        self._process = psutil.Process()
        self._process.cpu_percent()  # each call measures from the one before
        self._totals = deque([(time.monotonic(), 0)], maxlen=int(WINDOW_SECONDS))  # one per second

    def record(self, seconds: float) -> None:
        self._total += 1
        self._answers.append((time.monotonic(), seconds))

    @asynccontextmanager
    async def watching(
        self, registry: VersionRegistry, managers: Mapping[str, Connections]
    ) -> AsyncGenerator[None]:
        """Send a sample to all monitors once per second, until the block ends."""
        watch = asyncio.create_task(self._watch(registry, managers))
        yield
        watch.cancel()

    async def _watch(self, registry: VersionRegistry, managers: Mapping[str, Connections]) -> None:
        while True:
            await asyncio.sleep(1)
            sample = self.sample(
                active_models=registry.in_memory(),
                connections={name: len(manager.connections) for name, manager in managers.items()},
                evicted=sum(manager.evicted for manager in managers.values()),
            )
            managers["monitor"].enqueue(sample.model_dump_json())

    def sample(self, active_models: list[str], connections: dict[str, int], evicted: int) -> MonitorSample:
        now = time.monotonic()
        then, before = self._totals[0]
        self._totals.append((now, self._total))
        while self._answers and self._answers[0][0] < now - WINDOW_SECONDS:
            self._answers.popleft()
        seconds = [seconds for _, seconds in self._answers]
        p50, p95, p99 = (1000 * percentile(seconds, rank) if seconds else None for rank in (50, 95, 99))
        return MonitorSample(
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
    """Records every HTTP request except those for /health, which only ask whether the server answers.

    Plain ASGI: Starlette's middleware for functions would hide disconnects.
    """

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self.app = app
        self.meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.meter.record(time.monotonic() - started)
            await send(message)

        await self.app(scope, receive, recorded)
