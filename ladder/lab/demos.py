"""What the demos of the engine track compare: one function per rung, which its `demo` calls.

Each starts its servers, runs the same scenes on all of them, and ends with a table of what the clients
measured. The scenes are in `ladder.lab.scenes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ladder.lab import plots, scenes
from ladder.lab.client import Client
from ladder.lab.scenes import Figures, Load, Observation, Scene
from ladder.lab.show import Contender, Show

__all__ = [
    "Contender",
    "Show",
    "compare_arrivals",
    "compare_batching",
    "compare_processes",
    "compare_streaming",
    "compare_workers",
]


async def watch(show: Show, loads: Mapping[str, tuple[str, Load]]) -> dict[str, list[Observation]]:
    """Send each load: the first time live on the screen, then again for the medians."""
    with show.busy("warming up"):
        for url, load in loads.values():
            await scenes.warm_up(url, load[0])
    seen: dict[str, list[Observation]] = {}
    with show.lanes(*loads) as lanes:
        for lane, (name, (url, load)) in zip(lanes, loads.items(), strict=True):
            lane.begin()
            seen[name] = [await scenes.observe(url, load, lane.on_token)]
    longest = max(observations[0].seconds for observations in seen.values())
    for number in range(2, scenes.rounds_for(longest) + 1):
        with show.busy(f"round {number}, for the medians"):
            for name, (url, load) in loads.items():
                seen[name].append(await scenes.observe(url, load))
    return seen


async def watch_arrivals(show: Show, servers: Mapping[str, str]) -> dict[str, Scene]:
    """The same arrivals on one server after the other; the long request and a late one are shown."""
    seen: dict[str, Scene] = {}
    names = [f"{name}: {who}" for name in servers for who in ("long request", "late request")]
    with show.lanes(*names) as lanes:
        for number, (name, url) in enumerate(servers.items()):
            long, late = lanes[2 * number : 2 * number + 2]
            long.begin()
            late.begin()
            seen[name] = await scenes.arrivals(url, {scenes.LONG: long.on_token, scenes.LATE: late.on_token})
    return seen


async def warm_up_all(show: Show, servers: Mapping[str, str]) -> None:
    with show.busy("warming up"):
        for url in servers.values():
            await scenes.warm_up(url, scenes.REQUEST)


def compare_workers(show: Show, contenders: Mapping[str, Contender]) -> None:
    """Rung 01: one client generates; others ask for /health, send a short question, or disconnect early."""
    with show.starting(*contenders.values()) as urls:
        asyncio.run(_compare_workers(show, dict(zip(contenders, urls, strict=True))))


async def _compare_workers(show: Show, servers: Mapping[str, str]) -> None:
    loads = {name: (url, [scenes.REQUEST]) for name, url in servers.items()}
    seen = await watch(show, loads)
    figures = {name: scenes.latency_figures(observations) for name, observations in seen.items()}
    for name, url in servers.items():
        with show.busy(f"{name}: a second client, and one that disconnects"):
            figures[name] |= await second_client(url)
            figures[name] |= await scenes.disconnect_figures(url, scenes.REQUEST, seen[name])
    rows = scenes.LATENCY_ROWS | SECOND_CLIENT_ROWS | scenes.DISCONNECT_ROWS
    show.conclude(rows, figures, *plots.of_latency(show.title, seen))


SECOND_CLIENT_ROWS = {
    "second_alone_ms": "short question, alone",
    "second_beside_ms": "short question behind a long one",
}


async def second_client(url: str) -> Figures:
    """A short question, sent to an idle server, and just after another client's long one."""
    question: scenes.Request = {"prompt": "What is 2 + 2?", "temperature": 0, "max_tokens": 10}
    async with Client(url) as client:
        alone = await client.generate(**question)
        async with asyncio.TaskGroup() as both:
            both.create_task(client.generate(**scenes.REQUEST))
            await asyncio.sleep(0.02)
            second = both.create_task(client.generate(**question))
    return {"second_alone_ms": 1000 * alone.e2el, "second_beside_ms": 1000 * second.result().e2el}


def compare_streaming(show: Show, blocking: Contender, streaming: Contender) -> None:
    """Rung 02: the same prompt to rung 01 and to rung 02, and what the client of each sees."""
    with show.starting(blocking, streaming) as urls:
        asyncio.run(_compare_streaming(show, *urls))


async def _compare_streaming(show: Show, blocking: str, streaming: str) -> None:
    loads = {
        "01": (blocking, [scenes.REQUEST]),
        "02, stream: false": (streaming, [scenes.REQUEST]),
        "02, stream: true": (streaming, [scenes.STREAM]),
    }
    seen = await watch(show, loads)
    figures = {name: scenes.latency_figures(observations) for name, observations in seen.items()}
    with show.busy("now the client disconnects after a quarter of the time"):
        for name, (url, (request,)) in loads.items():
            figures[name] |= await scenes.disconnect_figures(url, request, seen[name])
    show.conclude(scenes.LATENCY_ROWS | scenes.DISCONNECT_ROWS, figures, *plots.of_latency(show.title, seen))


def compare_batching(show: Show, single: Contender, batched: Contender) -> None:
    """Rung 03: more and more clients at rungs 02 and 03; then what a static batch costs."""
    with show.starting(single, batched) as urls:
        asyncio.run(_compare_batching(show, dict(zip(("02", "03"), urls, strict=True))))


async def _compare_batching(show: Show, servers: Mapping[str, str]) -> None:
    load = [scenes.STREAM] * 4
    seen = await watch(show, {name: (url, load) for name, url in servers.items()})
    figures = {name: scenes.latency_figures(observations) for name, observations in seen.items()}
    rows = {"first_token_ms": "TTFT, 4 clients", "complete_ms": "complete text, 4 clients"}
    for clients in (1, 4, 8, 16):
        rows[f"tokens_per_second_{clients}"] = f"tokens/s, concurrent clients: {clients}"
        with show.busy(f"concurrent clients: {clients}"):
            speeds = await scenes.throughput(servers, [scenes.SHORT] * clients)
        for name, speed in speeds.items():
            figures[name][f"tokens_per_second_{clients}"] = speed
    for name, url in servers.items():
        with show.busy(f"{name}: a short question, just after a long story has begun"):
            figures[name] |= await scenes.late_figures(url)
    with show.busy("03: seven short requests in a batch with a long one"):
        figures["03"]["wasted_percent"] = await scenes.measure_wasted_rows(servers["03"])
    rows |= scenes.LATE_ROWS | {"wasted_percent": "wasted rows, mixed lengths"}
    show.conclude(rows, figures, *plots.of_latency(show.title, seen))


def compare_arrivals(show: Show, static: Contender, continuous: Contender) -> None:
    """Rung 04: the same arrivals at rungs 03 and 04; then a long prompt beside a stream."""
    whole = Contender(continuous.script, continuous.known, "--prefill-chunk", "100000")
    with show.starting(static, continuous, whole) as urls:
        asyncio.run(_compare_arrivals(show, dict(zip(("03", "04", "04, prompts whole"), urls, strict=True))))


async def _compare_arrivals(show: Show, servers: Mapping[str, str]) -> None:
    await warm_up_all(show, servers)
    seen = await watch_arrivals(show, {name: servers[name] for name in ("03", "04")})
    show.timelines(steps := {name: scene.steps for name, scene in seen.items()})
    figures = {name: scenes.scene_figures(scene) for name, scene in seen.items()}
    gaps = {}
    for name in ("04", "04, prompts whole"):
        with show.busy(f"{name}: a long prompt beside a stream"):
            gaps[name] = await scenes.gaps_beside_a_long_prompt(servers[name])
        figures.setdefault(name, {})["worst_gap_ms"] = 1000 * max(gap for _, gap in gaps[name])
    rows = scenes.SCENE_ROWS | {"worst_gap_ms": "worst inter-token latency beside a long prompt"}
    show.conclude(rows, figures, 1, lambda file: plots.plot_slots(file, show.title, steps, gaps))


def compare_processes(show: Show, one_process: Contender, two_processes: Contender) -> None:
    """Rung 05: many clients with short requests at rungs 04 and 05; then the engine is killed."""
    with show.starting(one_process, two_processes) as urls:
        asyncio.run(_compare_processes(show, dict(zip(("04", "05"), urls, strict=True))))


async def _compare_processes(show: Show, servers: Mapping[str, str]) -> None:
    await warm_up_all(show, servers)
    seen: dict[str, list[Observation]] = {name: [] for name in servers}
    for number in (1, 2, 3):
        for name, url in servers.items():
            with show.busy(
                f"round {number}: many clients that send one short request after the other, {name}"
            ):
                seen[name].append(await scenes.talk(url, seconds=1))
    figures = {name: scenes.talk_figures(observations) for name, observations in seen.items()}
    for column in figures.values():
        column["throughput_ratio"] = column["tokens_per_second"] / figures["04"]["tokens_per_second"]
    with show.lanes("05: a story, until the engine is killed") as (lane,):
        lane.begin()
        figures["05"] |= await scenes.kill_engine(servers["05"], lane.on_token)
    rows = scenes.TALK_ROWS | {"throughput_ratio": "tokens/s relative to rung 04"} | scenes.KILL_ROWS
    show.conclude(rows, figures, *plots.of_latency(show.title, seen))
