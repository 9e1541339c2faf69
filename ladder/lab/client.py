"""The measuring client: the same for demos, tests, notebooks and benchmarks.

Names and definitions are those of `vllm bench serve`, with two differences. E2EL, and so TPOT, lasts until
the stream is closed, where vLLM's ends with the last token. A percentile is always a value that was measured.

    E2EL   end-to-end latency: from before the request is sent until the response is complete
    TTFT   time to first token: from before the request is sent until the first token arrives
    ITL    inter-token latency: each gap between two tokens
    TPOT   time per output token: (E2EL - TTFT) / (tokens - 1)

A response without streaming has its first token at the same time as its last. Responsiveness is the latency
of /health, probed every 50 ms even if earlier probes have no response yet. So a server that is blocked for a
second delays twenty probes, not one.

The same client can measure other servers through OpenAI's /v1/completions, which vLLM, SGLang and llama.cpp's
server have: give it that address.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import aiohttp

from ladder.engine.trace import Step
from ladder.web.sse import Event, EventParser

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
    done: bool = False  # the response ended as it should
    error: dict[str, Any] | None = None
    ended: float = 0.0
    prompt: str = ""
    prefill_ms: float | None = None  # the time for the prompt, as the server reports it
    total_ms: float | None = None  # and for the whole response, if it was not streamed
    completion_tokens: int | None = None  # as the server counts them, if it reports that

    @property
    def tokens(self) -> int:
        """A server that does not report the number of tokens is assumed to send one per event."""
        return len(self.token_times) if self.completion_tokens is None else self.completion_tokens

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
        return (self.e2el - self.ttft) / max(1, self.tokens - 1)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.e2el


OnToken = Callable[[Measurement, str], None]


class Dialect(Protocol):
    """The protocol of a server: what requests and responses look like."""

    path: str

    def body(self, prompt: str, settings: dict[str, Any]) -> dict[str, Any]: ...

    def take_data(self, measurement: Measurement, data: dict[str, Any]) -> str | None:
        """Note one event of a stream; return the text of its token, or None if it has no token."""

    def take_answer(self, measurement: Measurement, answer: dict[str, Any]) -> None:
        """Note a response without streaming."""


class Generate:
    """This repository's own protocol: one event per token."""

    path = "/generate"

    def body(self, prompt: str, settings: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": prompt, **settings}

    def take_data(self, measurement: Measurement, data: dict[str, Any]) -> str | None:
        measurement.token_ids.append(data["token_id"])
        measurement.finish_reason = data.get("finish_reason")
        measurement.prefill_ms = data.get("prefill_time_ms", measurement.prefill_ms)
        token: str = data["token"]
        return token

    def take_answer(self, measurement: Measurement, answer: dict[str, Any]) -> None:
        measurement.token_times = [measurement.ended] * answer["completion_tokens"]
        measurement.token_ids = answer["token_ids"]
        measurement.text = answer["text"]
        measurement.finish_reason = answer["finish_reason"]
        measurement.prefill_ms = answer.get("prefill_time_ms")
        measurement.total_ms = answer.get("total_time_ms")


class Completions:
    """OpenAI's protocol: an event may hold several tokens, or none; the number is reported at the end."""

    path = "/v1/completions"

    def __init__(self, model: str) -> None:
        self.model = model

    def body(self, prompt: str, settings: dict[str, Any]) -> dict[str, Any]:
        # Without ignore_eos the amount of work would differ between servers.
        asked = {"model": self.model, "prompt": prompt, "ignore_eos": True, **settings}
        return asked | ({"stream_options": {"include_usage": True}} if settings.get("stream") else {})

    def take_data(self, measurement: Measurement, data: dict[str, Any]) -> str | None:
        self.take_usage(measurement, data)
        for choice in data.get("choices", []):
            measurement.finish_reason = choice.get("finish_reason") or measurement.finish_reason
            return choice.get("text") or ""
        return None

    def take_answer(self, measurement: Measurement, answer: dict[str, Any]) -> None:
        (choice,) = answer["choices"]
        measurement.text = choice["text"]
        measurement.finish_reason = choice["finish_reason"]
        self.take_usage(measurement, answer)
        measurement.token_times = [measurement.ended] * measurement.tokens

    def take_usage(self, measurement: Measurement, data: dict[str, Any]) -> None:
        if usage := data.get("usage"):
            measurement.completion_tokens = usage["completion_tokens"]


GENERATE = Generate()


class Client:
    """Requests to one server. Use it as an async context manager.

    For an address that ends in /v1/completions it uses OpenAI's protocol, with the first model that the
    server lists.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.speaks_openai = parts.path.rstrip("/") == Completions.path
        self.dialect: Dialect = GENERATE

    async def __aenter__(self) -> Self:
        # No limit: a client that waits for a free connection would measure itself.
        connector = aiohttp.TCPConnector(limit=0)
        self.session = aiohttp.ClientSession(
            self.url, connector=connector, timeout=aiohttp.ClientTimeout(total=None)
        )
        if self.speaks_openai:
            try:
                async with self.session.get("/v1/models") as response:
                    self.dialect = Completions((await response.json())["data"][0]["id"])
            except BaseException:
                await self.session.close()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def generate(
        self,
        prompt: str,
        *,
        on_token: OnToken | None = None,
        leave_after: int | None = None,
        pause: float = 0,
        **settings: Any,
    ) -> Measurement:
        """Send one request and note when each token arrives.

        The client disconnects after `leave_after` tokens. A slow client makes a `pause` after each event.
        """
        measurement = Measurement(sent=clock(), prompt=prompt)
        body = self.dialect.body(prompt, settings)
        async with self.session.post(self.dialect.path, json=body) as response:
            measurement.status = response.status
            if response.content_type == "text/event-stream":
                async for event in read_events(response):
                    take_event(measurement, event, on_token, self.dialect)
                    if leave_after is not None and len(measurement.token_times) >= leave_after:
                        response.close()
                        break
                    if pause:
                        await asyncio.sleep(pause)
            else:
                take_answer(measurement, await response.json(), on_token, self.dialect)
        measurement.ended = measurement.ended or clock()
        return measurement

    async def health(self) -> dict[str, Any]:
        async with self.session.get("/health") as response:
            answer: dict[str, Any] = await response.json()
            return answer

    async def until_ready(self) -> None:
        """Wait until /ready says that the engine can serve a request."""
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
        """Wait until no request is in flight or queued; return the /health that says so."""
        while True:
            health = await self.health()
            if health["running"] + health["waiting"] == 0:
                return health
            await asyncio.sleep(PROBE_INTERVAL)

    @asynccontextmanager
    async def probing_health(
        self, interval: float = PROBE_INTERVAL
    ) -> AsyncIterator[list[tuple[float, float]]]:
        """Probe /health at every `interval` while the block runs.

        The list fills with (time of the probe, seconds until its response). The block ends when every probe
        has its response.
        """
        samples: list[tuple[float, float]] = []
        asked: list[asyncio.Task[None]] = []

        async def ask() -> None:
            started = clock()
            async with self.session.get("/health") as response:
                await response.read()  # other servers respond with something else, or nothing
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


def take_event(
    measurement: Measurement, event: Event, on_token: OnToken | None, dialect: Dialect = GENERATE
) -> None:
    if event.data == DONE:
        measurement.done = measurement.error is None
        measurement.ended = clock()
        return
    data = json.loads(event.data)
    if "error" in data:
        measurement.error = data["error"]
        return
    now = clock()
    token = dialect.take_data(measurement, data)
    if token is not None:
        measurement.token_times.append(now)
        measurement.text += token
        if on_token:
            on_token(measurement, token)


def take_answer(
    measurement: Measurement, answer: dict[str, Any], on_token: OnToken | None, dialect: Dialect = GENERATE
) -> None:
    measurement.ended = clock()
    if measurement.status != 200:
        measurement.error = answer.get("error", answer)
        return
    dialect.take_answer(measurement, answer)
    measurement.done = True
    if on_token:
        on_token(measurement, measurement.text)
