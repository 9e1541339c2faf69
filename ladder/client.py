"""The measuring client: the same for demos, tests, notebooks and benchmarks.

Names and definitions are those of `vllm bench serve`:

    E2EL   end-to-end latency: from before the request is sent until the answer is complete
    TTFT   time to first token: from before the request is sent until the first token is there
    ITL    inter-token latency: each gap between two tokens
    TPOT   time per output token: (E2EL - TTFT) / (tokens - 1)

An answer that comes all at once has its first visible token when it has its last. Responsiveness is the
latency of /health, asked every 50 ms whether or not the earlier answers have come, so that a server
that is blocked for a second is seen to keep twenty askers waiting, not one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from ladder.sse import Event, EventParser
from ladder.trace import Step

clock = time.perf_counter
PROBE_INTERVAL = 0.05
DONE = "[DONE]"


@dataclass
class Measurement:
    """One request as its client saw it; times are `clock()` readings."""

    sent: float
    status: int = 0
    token_times: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    done: bool = False  # the answer came to its proper end
    error: dict[str, Any] | None = None
    ended: float = 0.0

    @property
    def e2el(self) -> float:
        return self.ended - self.sent

    @property
    def ttft(self) -> float:
        return self.token_times[0] - self.sent

    @property
    def itl(self) -> list[float]:
        return [
            later - earlier for earlier, later in zip(self.token_times, self.token_times[1:], strict=False)
        ]

    @property
    def tpot(self) -> float:
        return (self.e2el - self.ttft) / max(1, len(self.token_ids) - 1)

    @property
    def tokens_per_second(self) -> float:
        return len(self.token_ids) / self.e2el


OnToken = Callable[[Measurement, str], None]


class Client:
    """Requests to one server. Use it as an async context manager."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __aenter__(self) -> Self:
        # No limit: a client that waits for a free connection would measure itself.
        connector = aiohttp.TCPConnector(limit=0)
        self.session = aiohttp.ClientSession(
            self.url, connector=connector, timeout=aiohttp.ClientTimeout(total=None)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def generate(
        self, prompt: str, *, on_token: OnToken | None = None, leave_after: int | None = None, **settings: Any
    ) -> Measurement:
        """Send one request and note when each token came; `leave_after` tokens the client is gone."""
        measurement = Measurement(sent=clock())
        async with self.session.post("/generate", json={"prompt": prompt, **settings}) as response:
            measurement.status = response.status
            if response.content_type == "text/event-stream":
                async for event in read_events(response):
                    take_event(measurement, event, on_token)
                    if leave_after is not None and len(measurement.token_ids) >= leave_after:
                        response.close()
                        break
            else:
                take_answer(measurement, await response.json(), on_token)
        measurement.ended = measurement.ended or clock()
        return measurement

    async def health(self) -> dict[str, Any]:
        async with self.session.get("/health") as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def until_ready(self) -> None:
        """Wait until the engine of rung 05 would serve a request."""
        while True:
            async with self.session.get("/ready") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(PROBE_INTERVAL)

    async def steps(self) -> list[Step]:
        """The last forward passes, from a rung that keeps them."""
        async with self.session.get("/steps") as response:
            return [Step.model_validate(step) for step in await response.json()]

    async def idle(self) -> dict[str, Any]:
        """Wait until no request is under way; return the /health that says so."""
        while True:
            health = await self.health()
            if health["running"] + health["waiting"] == 0:
                return health
            await asyncio.sleep(PROBE_INTERVAL)

    @asynccontextmanager
    async def probing_health(
        self, interval: float = PROBE_INTERVAL
    ) -> AsyncIterator[list[tuple[float, float]]]:
        """Ask /health at every `interval` for as long as the block runs.

        The list it gives fills with (when asked, seconds until answered); the block ends when every
        answer has come.
        """
        samples: list[tuple[float, float]] = []
        asked: list[asyncio.Task[None]] = []

        async def ask() -> None:
            started = clock()
            await self.health()
            samples.append((started, clock() - started))

        async def ask_regularly() -> None:
            while True:
                asked.append(asyncio.create_task(ask()))
                await asyncio.sleep(interval)

        asker = asyncio.create_task(ask_regularly())
        try:
            yield samples
        finally:
            asker.cancel()
            await asyncio.gather(*asked)
            samples.sort()


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[Event]:
    parser = EventParser()
    async for piece in response.content.iter_any():
        for event in parser.feed(piece):
            yield event


def take_event(measurement: Measurement, event: Event, on_token: OnToken | None) -> None:
    if event.name == "error":
        measurement.error = json.loads(event.data)["error"]
    elif event.data == DONE:
        measurement.done = True
        measurement.ended = clock()
    else:
        data = json.loads(event.data)
        measurement.token_times.append(clock())
        measurement.token_ids.append(data["token_id"])
        measurement.text += data["token"]
        measurement.finish_reason = data.get("finish_reason")
        if on_token:
            on_token(measurement, data["token"])


def take_answer(measurement: Measurement, answer: dict[str, Any], on_token: OnToken | None) -> None:
    measurement.ended = clock()
    if measurement.status != 200:
        measurement.error = answer.get("error", answer)
        return
    measurement.token_times = [measurement.ended] * answer["completion_tokens"]
    measurement.token_ids = answer["token_ids"]
    measurement.text = answer["text"]
    measurement.finish_reason = answer["finish_reason"]
    measurement.done = True
    if on_token:
        on_token(measurement, answer["text"])


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)
