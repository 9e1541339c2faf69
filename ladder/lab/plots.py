"""The figures that the demos draw with --plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ladder.engine.trace import Step
from ladder.lab import looks
from ladder.lab.scenes import Observation

if TYPE_CHECKING:  # importing it takes long, and only --plot needs it
    from matplotlib.axes import Axes


@contextmanager
def drawing(file: Path, title: str, rows: int, **settings: Any) -> Iterator[list[Axes]]:
    """A figure with a number of panels, one below the other. It is saved when the block ends."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update(looks.STYLE)
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(rows, 1, layout="constrained", **settings)
    figure.suptitle(title)
    yield list(panels)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    pyplot.close(figure)


def plot_latency(file: Path, title: str, observations: Mapping[str, Observation]) -> None:
    """Tokens over time for each client, and the latency of /health beside them."""
    with drawing(file, title, 2, figsize=(8, 6), sharex=True) as (tokens, health):
        draw_latency(tokens, health, observations)


def draw_latency(tokens: Axes, health: Axes, observations: Mapping[str, Observation]) -> None:
    for name, observation in observations.items():
        seen = [moment - observation.measurement.sent for moment in observation.measurement.token_times]
        (line,) = tokens.step([0, *seen], range(len(seen) + 1), where="post", label=name)
        tokens.plot(seen[0], 1, "o", color=line.get_color())
        asked = [moment - observation.measurement.sent for moment, _ in observation.health]
        waits = [1000 * seconds for _, seconds in observation.health]
        health.plot(asked, waits, "o-", label=name, markersize=3)
    tokens.set_ylabel("tokens received")
    tokens.legend()
    health.set(ylabel="/health latency (ms)", xlabel="seconds since the request was sent", yscale="log")
    health.legend()


def of_latency(title: str, seen: Mapping[str, Sequence[Observation]]) -> tuple[int, Callable[[Path], None]]:
    """The number of rounds, and a function that plots the first one, which the reader has watched."""
    first = {name: observations[0] for name, observations in seen.items()}
    return len(next(iter(seen.values()))), lambda file: plot_latency(file, title, first)


def plot_slots(
    file: Path,
    title: str,
    servers: Mapping[str, Sequence[Step]],
    gaps: Mapping[str, Sequence[tuple[float, float]]],
) -> None:
    """Which request had which slot at each step, a panel per server; then a stream's inter-token latency."""
    with drawing(file, title, len(servers) + 1, figsize=(9, 8)) as panels:
        for panel, (name, steps) in zip(panels, servers.items(), strict=False):
            draw_slots(panel, name, steps)
        longest = max(len(steps) for steps in servers.values())
        for panel in panels[:-1]:
            panel.set_xlim(0, longest)
        for name, samples in gaps.items():
            panels[-1].plot(*zip(*((when, 1000 * gap) for when, gap in samples), strict=True), label=name)
        panels[-1].set(
            title="a stream while a long prompt is prefilled",
            xlabel="seconds since the stream began",
            ylabel="inter-token latency (ms)",
            yscale="log",
        )
        panels[-1].legend()


def draw_slots(panel: Axes, name: str, steps: Sequence[Step]) -> None:
    """One colour per request: dark during prefill, hatched grey for wasted rows."""
    from matplotlib import colormaps

    colours = colormaps["tab10"]
    requests = sorted({row.request for step in steps for row in step.rows})
    for place, step in enumerate(steps):
        for row in step.rows:
            number = requests.index(row.request)
            look: dict[str, Any] = {"facecolor": colours(number % 10), "alpha": 0.55, "linewidth": 0}
            if not row.used:
                look = {"facecolor": "0.85", "hatch": "////", "edgecolor": "0.6", "linewidth": 0}
            elif step.kind == "prefill":
                look["alpha"] = 1.0
            panel.broken_barh([(place, 1)], (row.slot - 0.45, 0.9), **look)
    for number, request in enumerate(requests):
        places = ((place, row) for place, step in enumerate(steps) for row in step.rows)
        place, slot = next((place, row.slot) for place, row in places if row.request == request)
        panel.text(place + 0.5, slot, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number % 26], va="center", fontsize=9)
    panel.invert_yaxis()
    panel.grid(visible=False)  # it would be visible through the rows
    panel.set(title=name, ylabel="slot", xlabel="step")


def plot_bars(
    file: Path, title: str, figures: Mapping[str, Mapping[str, float]], panels: Mapping[str, str]
) -> None:
    """One panel per figure, one bar for each column that has it."""
    with drawing(file, title, len(panels), figsize=(8, 6)) as axes:
        for panel, (key, label) in zip(axes, panels.items(), strict=True):
            values = {name: column[key] for name, column in figures.items() if key in column}
            bars = panel.barh(list(values), list(values.values()))
            panel.bar_label(bars, fmt="%.0f", padding=3)
            panel.invert_yaxis()
            panel.margins(x=0.1)
            panel.set_xlabel(label)
