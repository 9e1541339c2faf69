"""Scenes: what clients do on a server in demos and benchmarks, and the figures that result.

Everything is measured at the client. What a scene is meant to show is explained in the rungs.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from ladder.engine.trace import Step
from ladder.lab.client import PROBE_INTERVAL, Client, Measurement, OnToken, clock
from ladder.stats import median, percentile

Request = Mapping[str, Any]
Figures = dict[str, float]

REQUEST: Request = {"prompt": "Tell me a story about a fox.", "temperature": 0, "max_tokens": 100}
STREAM: Request = {**REQUEST, "stream": True}
SHORT: Request = {**STREAM, "max_tokens": 32}
QUESTION: Request = {"prompt": "What is 2 + 2?", "temperature": 0, "max_tokens": 10, "stream": True}


Probe = tuple[float, float]
"""When /health was probed, and the seconds until its response."""


@dataclass(frozen=True)
class Observation:
    """Requests that were sent together, and the probes of /health while they ran."""

    measurements: list[Measurement]
    health: list[Probe]

    @property
    def measurement(self) -> Measurement:
        """The first one, which is shown live."""
        return self.measurements[0]

    @property
    def seconds(self) -> float:
        return max(one.ended for one in self.measurements) - min(one.sent for one in self.measurements)

    @property
    def tokens_per_second(self) -> float:
        return sum(one.tokens for one in self.measurements) / self.seconds


Load = Sequence[Request]
"""The requests that several clients send at once."""


async def observe(
    url: str, load: Load, on_token: OnToken | None = None, interval: float | None = PROBE_INTERVAL
) -> Observation:
    """Send all requests at once, and probe /health beside them, unless `interval` is None."""
    async with Client(url) as client:
        async with client.probing_health(interval) if interval else nullcontext(list[Probe]()) as health:
            first, *others = load
            measurements = await asyncio.gather(
                client.generate(**first, on_token=on_token),
                *(client.generate(**request) for request in others),
            )
        ended = max(one.ended for one in measurements)
        return Observation(list(measurements), [sample for sample in health if sample[0] < ended])


DISCONNECT_ROWS = {
    "passes": "forward passes, complete text",
    "passes_after_leaving": "forward passes, client disconnects at 1/4",
}


async def disconnect_figures(url: str, request: Request, seen: Sequence[Observation]) -> Figures:
    """The work that a server does for a client that disconnects after a quarter of the time."""
    async with Client(url) as client:
        before = (await client.idle())["steps"]
        try:
            async with asyncio.timeout(seen[0].measurement.e2el / 4):
                await client.generate(**request)
        except TimeoutError:
            pass
        spent = (await client.idle())["steps"] - before
    return {"passes": len(seen[0].measurement.token_ids), "passes_after_leaving": spent}


async def warm_up(url: str, request: Request) -> None:
    """Send a short request first, because the first one is slower: memory and code are loaded for it."""
    async with Client(url) as client:
        await client.generate(**{**request, "max_tokens": 4})


async def throughput(servers: Mapping[str, str], load: Load) -> Figures:
    """Tokens per second of each server when all requests are sent at once. The servers take turns."""
    seen = {name: [await observe(url, load)] for name, url in servers.items()}
    longest = max(observations[0].seconds for observations in seen.values())
    for _ in range(1, rounds_for(longest)):
        for name, url in servers.items():
            seen[name].append(await observe(url, load))
    return {name: median([one.tokens_per_second for one in seen[name]]) for name in servers}


LATE_ROWS = {
    "late_alone_ms": "TTFT of a short question, alone",
    "late_ms": "TTFT of the same, just after a long story began",
}


async def late_figures(url: str) -> Figures:
    """TTFT of a short question: on an idle server, and beside a story that has begun."""
    alone, late = [], []
    async with Client(url) as client:
        for _ in range(3):
            alone.append((await client.generate(**QUESTION)).ttft)
            begun = asyncio.Event()
            async with asyncio.TaskGroup() as both:
                both.create_task(client.generate(**STREAM, on_token=lambda *_, begun=begun: begun.set()))
                await begun.wait()
                question = both.create_task(client.generate(**QUESTION))
            late.append(question.result().ttft)
    return {"late_alone_ms": 1000 * median(alone), "late_ms": 1000 * median(late)}


async def new_steps(client: Client, running: Awaitable[object]) -> list[Step]:
    """The forward passes that a server runs for these requests."""
    before = (await client.idle())["steps"]
    await running
    return [step for step in await client.steps() if step.number > before]


def wasted_percent(steps: Sequence[Step]) -> float:
    """The share of the computed rows that are wasted."""
    rows = [row for step in steps for row in step.rows]
    return 100 * sum(not row.used for row in rows) / len(rows)


async def measure_wasted_rows(url: str) -> float:
    """Eight requests at once, one of them long."""
    async with Client(url) as client:
        requests = [client.generate(**{**STREAM, "max_tokens": tokens}) for tokens in (100, *[12] * 7)]
        return wasted_percent(await new_steps(client, asyncio.gather(*requests)))


@dataclass(frozen=True)
class Scene:
    """What happened on one server while requests arrived one after the other."""

    measurements: list[Measurement]
    steps: list[Step]


ARRIVALS = [(0, 80), (0, 20), (4, 8), (8, 30), (12, 8), (18, 24), (24, 12), (30, 40)]
"""For each request: after how many tokens of the first one it is sent, and its own `max_tokens`."""

LONG, LATE = 0, 2
"""The request that runs from beginning to end, and the first that arrives after it has begun."""


async def arrivals(url: str, watchers: Mapping[int, OnToken]) -> Scene:
    """The same arrivals on every server, counted in tokens of the first request, not in seconds."""
    due = [asyncio.Event() for _ in ARRIVALS]

    def first_has(tokens: int) -> None:
        for event, (after, _) in zip(due, ARRIVALS, strict=True):
            if tokens >= after:
                event.set()

    async def request(place: int) -> Measurement:
        def on_token(measurement: Measurement, token: str) -> None:
            if place == LONG:
                first_has(len(measurement.token_ids))
            if place in watchers:
                watchers[place](measurement, token)

        await due[place].wait()
        return await client.generate(**{**STREAM, "max_tokens": ARRIVALS[place][1]}, on_token=on_token)

    async with Client(url) as client:
        first_has(0)
        requests = asyncio.gather(*(request(place) for place in range(len(ARRIVALS))))
        steps = await new_steps(client, requests)
        return Scene(await requests, steps)


def scene_figures(scene: Scene) -> Figures:
    first_tokens = [one.ttft for one in scene.measurements]
    return {
        "first_token_ms": 1000 * median(first_tokens),
        "worst_first_token_ms": 1000 * max(first_tokens),
        "late_done_ms": 1000 * (scene.measurements[2].ended - scene.measurements[0].sent),
        "long_done_ms": 1000 * (scene.measurements[0].ended - scene.measurements[0].sent),
        "all_done_ms": 1000 * (max(one.ended for one in scene.measurements) - scene.measurements[0].sent),
        "steps": len(scene.steps),
        "wasted_percent": wasted_percent(scene.steps),
    }


SCENE_ROWS = {
    "first_token_ms": "TTFT, median of 8 requests",
    "worst_first_token_ms": "TTFT, worst",
    "late_done_ms": "short late request complete after",
    "long_done_ms": "long first request complete after",
    "all_done_ms": "all requests complete after",
    "steps": "forward passes",
    "wasted_percent": "wasted rows",
}


def rounds_for(seconds: float) -> int:
    """Short runs are repeated, because they vary more."""
    return 5 if seconds < 0.5 else 3 if seconds < 2 else 1


LATENCY_ROWS = {
    "first_token_ms": "time to first token (TTFT)",
    "complete_ms": "complete text",
    "health_median_ms": "/health latency, median",
    "health_p95_ms": "/health latency, p95",
    "health_worst_ms": "/health latency, worst",
}


def latency_figures(observations: Sequence[Observation]) -> Figures:
    """Medians over the rounds; the /health probes of all rounds together."""
    health = [seconds for observation in observations for _, seconds in observation.health]
    measurements = [measurement for observation in observations for measurement in observation.measurements]
    return {
        "first_token_ms": 1000 * median([one.ttft for one in measurements]),
        "complete_ms": 1000 * median([one.e2el for one in measurements]),
        "tokens_per_second": median([one.tokens_per_second for one in observations]),
        "health_median_ms": 1000 * median(health),
        "health_p95_ms": 1000 * percentile(health, 95),
        "health_worst_ms": 1000 * max(health),
    }


async def beside_a_long_prompt(
    url: str, streams: Load, long: Request
) -> tuple[list[Measurement], Measurement]:
    """Streams, and a long prompt from another client, sent when the first stream has twenty tokens."""
    begun = asyncio.Event()

    def on_token(measurement: Measurement, _: str) -> None:
        if len(measurement.token_times) == 20:
            begun.set()

    async with Client(url) as client, asyncio.TaskGroup() as all_of_them:
        first, *others = streams
        running = [all_of_them.create_task(client.generate(**first, on_token=on_token))]
        running[0].add_done_callback(lambda _: begun.set())
        running += [all_of_them.create_task(client.generate(**request)) for request in others]
        await begun.wait()
        prompted = all_of_them.create_task(client.generate(**long))
    return [task.result() for task in running], prompted.result()


async def gaps_beside_a_long_prompt(url: str) -> list[tuple[float, float]]:
    """A stream's inter-token latencies, as (when, seconds), while a long prompt is prefilled."""
    long = {"prompt": "Tell me a story about a fox. " * 80, "temperature": 0, "max_tokens": 1}
    (seen,), _ = await beside_a_long_prompt(url, [STREAM], long)
    return [(moment - seen.sent, gap) for moment, gap in zip(seen.token_times[1:], seen.itl, strict=True)]


TALKATIVE = 16
"""Clients that each send one short request after the other: many writes, little computation."""


async def talk(url: str, seconds: float) -> Observation:
    """A closed loop of many short streams, while /health is probed a hundred times per second."""
    async with Client(url) as client:
        seen: list[Measurement] = []
        until = clock() + seconds

        async def chat() -> None:
            while clock() < until:
                seen.append(await client.generate(**SHORT))

        async with client.probing_health(0.01) as health:
            await asyncio.gather(*(chat() for _ in range(TALKATIVE)))
        return Observation(seen, [sample for sample in health if sample[0] < until])


def talk_figures(observations: Sequence[Observation]) -> Figures:
    measurements = [measurement for observation in observations for measurement in observation.measurements]
    gaps = [gap for measurement in measurements for gap in measurement.itl]
    health = [seconds for observation in observations for _, seconds in observation.health]
    return {
        "tokens_per_second": median([one.tokens_per_second for one in observations]),
        "first_token_ms": 1000 * median([one.ttft for one in measurements]),
        "complete_ms": 1000 * median([one.e2el for one in measurements]),
        "itl_median_ms": 1000 * median(gaps),
        "itl_p99_ms": 1000 * percentile(gaps, 99),
        "health_median_ms": 1000 * median(health),
        "health_p99_ms": 1000 * percentile(health, 99),
    }


TALK_ROWS = {
    "tokens_per_second": "tokens/s",
    "first_token_ms": "TTFT",
    "itl_median_ms": "inter-token latency, median",
    "itl_p99_ms": "inter-token latency, p99",
    "health_median_ms": "/health latency, median",
    "health_p99_ms": "/health latency, p99",
}


async def kill_engine(url: str, watch: OnToken) -> Figures:
    """Kill the engine's process during a stream: what the client sees, and when the server is ready again."""
    async with Client(url) as client:
        killed = 0.0
        engine = (await client.health())["engine_pid"]

        def on_token(measurement: Measurement, token: str) -> None:
            nonlocal killed
            watch(measurement, token)
            if len(measurement.token_ids) == 20:
                os.kill(engine, signal.SIGKILL)
                killed = clock()

        broken = await client.generate(**STREAM, on_token=on_token)
        alive = await client.health()
        await client.until_ready()
        recovered = clock()
        again = await client.generate(**QUESTION)
        return {
            "error_after_ms": 1000 * (broken.ended - killed),
            "alive_meanwhile": alive["status"] == "ok",
            "ready_after_ms": 1000 * (recovered - killed),
            "answered_again": again.done,
        }


KILL_ROWS = {
    "error_after_ms": "error event after the engine was killed",
    "alive_meanwhile": "/health still answers",
    "ready_after_ms": "ready again after",
    "answered_again": "next request answered",
}
