"""What the demos measure, and how they show it; what is measured, and why, stands in each rung.

A demo starts real servers, asks them as a client would, and shows in the terminal what the client saw.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ladder.cli import DemoOptions, ServerConfig
from ladder.client import Client, Measurement, OnToken, clock, median, percentile
from ladder.launch import running_rungs
from ladder.machine import command_line, describe_machine

Request = Mapping[str, Any]
Figures = dict[str, float]

REQUEST: Request = {"prompt": "Tell me a story about a fox.", "temperature": 0, "max_tokens": 100}


@dataclass(frozen=True)
class Observation:
    """One request, and how /health answered while it ran."""

    measurement: Measurement
    health: list[tuple[float, float]]  # (when asked, seconds until answered)


async def observe(url: str, request: Request, on_token: OnToken | None = None) -> Observation:
    async with Client(url) as client:
        async with client.probing_health() as health:
            measurement = await client.generate(**request, on_token=on_token)
        return Observation(measurement, [sample for sample in health if sample[0] < measurement.ended])


LEAVING_ROWS = {
    "passes": "passes, whole text",
    "passes_after_leaving": "passes, client left at 1/4",
}


async def leaving_figures(url: str, request: Request, seen: Sequence[Observation]) -> Figures:
    """How much work a server does for a client who is gone after a quarter of the time."""
    async with Client(url) as client:
        before = (await client.idle())["steps"]
        try:
            async with asyncio.timeout(seen[0].measurement.e2el / 4):
                await client.generate(**request)
        except TimeoutError:
            pass
        spent = (await client.idle())["steps"] - before
    return {"passes": len(seen[0].measurement.token_ids), "passes_after_leaving": spent}


async def watch(show: Show, requests: Mapping[str, tuple[str, Request]]) -> dict[str, list[Observation]]:
    """Send one request after the other, the first time for all to see, then again for the medians."""
    with show.busy("warming up"):
        for url, request in requests.values():
            await warm_up(url, request)
    seen: dict[str, list[Observation]] = {}
    with show.lanes(*requests) as lanes:
        for lane, (name, (url, request)) in zip(lanes, requests.items(), strict=True):
            lane.begin()
            seen[name] = [await observe(url, request, lane.on_token)]
    longest = max(observations[0].measurement.e2el for observations in seen.values())
    for number in range(2, rounds_for(longest) + 1):
        with show.busy(f"the same again, for the medians: round {number}"):
            for name, (url, request) in requests.items():
                seen[name].append(await observe(url, request))
    return seen


async def warm_up(url: str, request: Request) -> None:
    """The first request of its kind pays for memory and code that later ones find ready."""
    async with Client(url) as client:
        await client.generate(**{**request, "max_tokens": 4})


def rounds_for(seconds: float) -> int:
    """Short runs are repeated, because chance weighs more in them."""
    return 5 if seconds < 1 else 3 if seconds < 4 else 1


LATENCY_ROWS = {
    "first_token_ms": "first visible token",
    "complete_ms": "complete text",
    "health_median_ms": "/health meanwhile, median",
    "health_p95_ms": "/health meanwhile, 95 %",
    "health_worst_ms": "/health meanwhile, worst",
}


def latency_figures(observations: Sequence[Observation]) -> Figures:
    """Medians over the rounds; the /health answers of all rounds together."""
    health = [seconds for observation in observations for _, seconds in observation.health]
    return {
        "first_token_ms": 1000 * median([one.measurement.ttft for one in observations]),
        "complete_ms": 1000 * median([one.measurement.e2el for one in observations]),
        "tokens_per_second": median([one.measurement.tokens_per_second for one in observations]),
        "health_median_ms": 1000 * median(health),
        "health_p95_ms": 1000 * percentile(health, 95),
        "health_worst_ms": 1000 * max(health),
    }


class Show:
    """The terminal, or with --json nothing but one object on stdout."""

    def __init__(self, title: str, config: ServerConfig, options: DemoOptions) -> None:
        self.title = title
        self.config = config
        self.options = options
        self.console = Console(quiet=options.json, highlight=False)
        self.console.print(f"\n[bold]{title}[/bold]")

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """A spinner for as long as the block runs."""
        with self.console.status(what):
            yield

    @contextmanager
    def starting(self, *commands: tuple[str, Sequence[str]]) -> Iterator[list[str]]:
        """Start these rungs and wait until all are ready; they end with the block."""
        with ExitStack() as servers:
            with self.busy(
                "starting " + " and ".join(" ".join([script, *flags]) for script, flags in commands)
            ):
                urls = servers.enter_context(running_rungs(*commands))
            yield urls

    @contextmanager
    def lanes(self, *names: str) -> Iterator[list[Lane]]:
        """One panel for each request that is watched, side by side."""
        lanes = [Lane(name) for name in names]
        if self.options.json:
            yield lanes
            return
        with Live(get_renderable=lambda: side_by_side(lanes), console=self.console, refresh_per_second=15):
            yield lanes

    def conclude(
        self,
        rows: Mapping[str, str],
        figures: Mapping[str, Figures],
        seen: Mapping[str, Sequence[Observation]],
    ) -> None:
        """The closing table, or the JSON object: `rows` names the figures, `figures` has a column each."""
        if self.options.plot:
            plot(
                self.options.plot, self.title, {name: observations[0] for name, observations in seen.items()}
            )
        machine = describe_machine()
        if self.options.json:
            result = {
                "demo": self.title,
                "model": self.config.model,
                "machine": machine,
                "command": command_line(),
                "rounds": len(next(iter(seen.values()))),
                "figures": figures,
            }
            print(json.dumps(result, indent=2))
            return
        table = Table(*["", *figures], box=box.SIMPLE_HEAD, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for key, title in rows.items():
            table.add_row(title, *(formatted(key, column.get(key)) for column in figures.values()))
        self.console.print(table)
        self.console.print(
            f"[dim]measured just now: {machine['processor']}, {machine['cores']} cores, "
            f"torch {machine['torch']}\n{command_line()}[/dim]",
            soft_wrap=True,
        )


def formatted(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key.endswith("_ms"):
        return (
            f"{value / 1000:.1f} s"
            if value >= 1000
            else f"{value:.0f} ms"
            if value >= 10
            else f"{value:.1f} ms"
        )
    return f"{value:.0f}"


class Lane:
    """A watched request: what its client has on the screen, and since when it waits."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.started: float | None = None
        self.measurement: Measurement | None = None

    def begin(self) -> None:
        self.started = clock()

    def on_token(self, measurement: Measurement, token: str) -> None:
        self.measurement = measurement
        self.text += token

    def status(self) -> str:
        if self.started is None:
            return "not yet"
        if self.measurement is None:
            return f"nothing for {clock() - self.started:.1f} s"
        first = formatted("_ms", 1000 * self.measurement.ttft)
        if not self.measurement.ended:
            return f"first token {first}"
        return f"{first} to {formatted('_ms', 1000 * self.measurement.e2el)}"

    def __rich__(self) -> Panel:
        return Panel(Text(self.text.strip()), title=self.name, subtitle=self.status(), height=12)


def side_by_side(lanes: Sequence[Lane]) -> RenderableType:
    grid = Table.grid(expand=True)
    for _ in lanes:
        grid.add_column(ratio=1)
    grid.add_row(*lanes)
    return grid


def plot(file: Path, title: str, observations: Mapping[str, Observation]) -> None:
    """Time to first token and responsiveness: what each client saw when, and how long /health took."""
    # Imported here because it takes as long as a whole demo step, and only --plot needs it.
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "serving-ladder"
    from matplotlib import pyplot

    figure, (tokens, health) = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    figure.suptitle(title)
    for name, observation in observations.items():
        seen = [moment - observation.measurement.sent for moment in observation.measurement.token_times]
        (line,) = tokens.step([0, *seen], range(len(seen) + 1), where="post", label=name)
        tokens.plot(seen[0], 1, "o", color=line.get_color())
        asked = [moment - observation.measurement.sent for moment, _ in observation.health]
        waits = [1000 * seconds for _, seconds in observation.health]
        health.plot(asked, waits, "o-", label=name)
    tokens.set_ylabel("tokens on the client's screen")
    tokens.legend()
    health.set(
        ylabel="/health answered after (ms)", xlabel="seconds since the request was sent", yscale="log"
    )
    health.legend()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)
