"""Draw the figures from the results of `benchmarks/run.py` and `benchmarks/engine.py`.

    python benchmarks/plot.py                                   results/ into figures/
    python benchmarks/plot.py benchmarks/results/vllm --figures vllm-figures

Each figure is written as SVG and as PNG. If several folders are named, a figure shows the contenders of all
of them. Numbers in a title are computed from the results. The metadata of a file names the results that it
was drawn from.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

if not __package__:
    # When this file runs as a script, its own folder is first in the path; imports need the repository.
    sys.path[0] = str(Path(__file__).parents[1])

import matplotlib as mpl

mpl.use("agg")

from ladder.script import errors_in_one_line

import numpy as np
from matplotlib import pyplot
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich.console import Console

from benchmarks.results_file import RESULTS, Result
from ladder.cli import OneLineParser
from ladder.errors import UserError
from ladder.lab.looks import COLOURS, GREY, INK, MARKERS, NAMES, PALE, SKY, SMALL_PRINT, STYLE

FIGURES = Path(__file__).parent / "figures"


class Results:
    """The result files of some folders; the runs of the same scenario are merged."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.read: dict[str, str] = {}  # name of each result that was read, and the digest of its files

    def __call__(self, name: str) -> Result | None:
        files = [file for folder in self.folders if (file := folder / f"{name}.json").exists()]
        if not files:
            return None
        contents = [file.read_bytes() for file in files]
        self.read[name] = digest(contents)
        first, *others = map(json.loads, contents)
        merged: Result = {**first}
        for other in others:
            merged["runs"] = merged["runs"] + other["runs"]
            merged["summary"] = merged["summary"] | other["summary"]
        return merged


def digest(contents: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()[:12]


def colour(contender: str) -> str:
    return COLOURS.get(contender[:2], INK)


def name_of(contender: str) -> str:
    return NAMES.get(contender, contender)


def runs_of(result: Result, contender: str) -> list[Result]:
    return [run for run in result["runs"] if run["contender"] == contender]


def middle_round(result: Result, contender: str, figure: str) -> Result:
    """The round whose value of `figure` is the median, so that the drawing shows the number in the text."""
    runs = sorted(runs_of(result, contender), key=lambda run: run[figure])
    return runs[(len(runs) - 1) // 2]


def contenders(result: Result) -> list[str]:
    """In the order of the ladder."""
    return sorted({run["contender"] for run in result["runs"]})


def setup(result: Result) -> str:
    """The small print: model, dtype and machine."""
    machine = result["machine"]
    return f"{result['model']}, {result['dtype']} · {machine['processor']}, {machine['cores']} cores"


def finish(figure: Figure, title: str, small_print: str) -> Figure:
    """Add the title, which states the result, and the small print, which states the setup."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    figure.text(0.99, -0.01, small_print, ha="right", va="top", fontsize=7.5, color=SMALL_PRINT)
    return figure


def stacked(count: int, height: float, rest: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with one panel per contender, below each other, with a common x axis.

    `height` is that of a panel in inches, `rest` that of the axis and the legend.
    """
    figure, panels = pyplot.subplots(
        count, 1, figsize=(9, height * count + rest), sharex=True, layout="constrained", squeeze=False
    )
    return figure, list(panels[:, 0])


def legend_above(panel: Axes, height: float = 1.0, handles: Sequence[Artist] | None = None) -> None:
    """A legend in one line above the panel, where it covers no data."""
    panel.legend(
        handles=panel.get_legend_handles_labels()[0] if handles is None else handles,
        loc="lower left",
        bbox_to_anchor=(0, height),
        ncols=6,
        borderaxespad=0.2,
        columnspacing=1.5,
        handletextpad=0.5,
        fontsize=9,
    )


def stroke(label: str, width: float | None = None) -> Line2D:
    """A vertical stroke, as an entry of a legend."""
    return Line2D(
        [], [], color=INK, marker="|", linestyle="", markersize=11, markeredgewidth=width, label=label
    )


def in_words(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.0f} ms"


def listed(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def who_waited(results: Results) -> Figure | None:
    """A timeline of the same eight requests on each rung: waiting, prefill, every token."""
    result = results("eight")
    if not result:
        return None
    order = contenders(result)
    figure, panels = stacked(len(order), 1.9)
    for panel, contender in zip(panels, order, strict=True):
        run = middle_round(result, contender, "median_ttft_ms")
        draw_waiting(panel, run, colour(contender))
        half, done = in_words(run["median_ttft_ms"]), in_words(1000 * run["duration"])
        panel.set_title(f"{name_of(contender)}: median TTFT {half}, all complete after {done}")
        count = len(run["output_lens"])
        panel.set(
            yticks=range(count),
            yticklabels=[f"{tokens} tokens" for tokens in run["output_lens"]],
            ylim=(count - 0.3, -0.7),
            ylabel="request",
        )
        panel.tick_params(axis="y", labelsize=7.5, length=0)
        panel.grid(axis="y", visible=False)
    panels[-1].set_xlabel("seconds since the first request was sent")
    handles: list[Artist] = [
        Patch(facecolor=PALE, label="waiting, no output yet"),
        Patch(facecolor=GREY, label="prefill"),
        stroke("a token, in the rung's colour"),
        stroke("the complete text at once", 4),
    ]
    legend_above(panels[0], 1.17, handles)
    title = "Where eight requests spend their time: in pale grey they wait"
    return finish(figure, title, f"the same eight requests on each rung · {setup(result)}")


def draw_waiting(panel: Axes, run: Result, rung_colour: str) -> None:
    for number, start in enumerate(run["start_times"]):
        first = start + run["ttfts"][number]
        end = start + run["latencies"][number]
        prefill = run["server_prefills"][number] or 0.0
        panel.barh(number, first - start, left=start, height=0.74, color=PALE)
        if (total := run["server_totals"][number]) is not None:
            # A response without streaming: prefill and decode stay invisible until the text arrives.
            panel.barh(number, prefill, left=end - total, height=0.74, color=GREY)
            panel.vlines(end, number - 0.42, number + 0.42, color=rung_colour, linewidth=4)
            continue
        panel.barh(number, prefill, left=first - prefill, height=0.74, color=GREY)
        times = list(accumulate(run["itls"][number], initial=first))
        panel.barh(number, end - first, left=first, height=0.74, color=rung_colour, alpha=0.25)
        panel.vlines(times, number - 0.37, number + 0.37, color=rung_colour, linewidth=0.9)


def first_tokens(results: Results) -> Figure | None:
    """Every request of a burst is a dot: its TTFT on the left, its TPOT on the right."""
    result = results("burst")
    if not result:
        return None
    order = contenders(result)
    figure, (first, then) = pyplot.subplots(
        1, 2, figsize=(9.5, 0.6 * len(order) + 1.3), sharey=True, layout="constrained"
    )
    for row, contender in enumerate(order):
        run = middle_round(result, contender, "median_ttft_ms")
        draw_dots(first, row, contender, [1000 * wait for wait in run["ttfts"]], run["median_ttft_ms"])
        if paces := paces_of(run):
            draw_dots(then, row, contender, paces, run["median_tpot_ms"])
        else:
            then.annotate(
                "no streaming: the text arrives at once",
                (0, row),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
            )
    first.set(
        title="Time to first token …",
        xscale="log",
        yticks=range(len(order)),
        yticklabels=[name_of(contender) for contender in order],
        ylim=(len(order) - 0.4, -0.85),
        xlabel="time to first token, TTFT (ms, logarithmic)",
    )
    first.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 3)))
    first.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    first.minorticks_off()
    then.set(title="… and per token after it", xlim=(0, None), xlabel="time per output token, TPOT (ms)")
    for panel in (first, then):
        panel.grid(axis="y", visible=False)
    clients = result["runs"][0]["clients"]
    return finish(
        figure,
        f"A burst of {clients} requests: an early first token does not mean fast tokens after it",
        f"one dot per request of one round; the bar is their median · {setup(result)}",
    )


def paces_of(run: Result) -> list[float]:
    """TPOT of each request in milliseconds; a response without streaming has none."""
    return [
        1000 * (latency - wait) / (tokens - 1)
        for latency, wait, tokens, whole in zip(
            run["latencies"], run["ttfts"], run["output_lens"], run["server_totals"], strict=True
        )
        if whole is None and tokens > 1
    ]


def draw_dots(panel: Axes, row: int, contender: str, values: Sequence[float], middle: float) -> None:
    values = sorted(values)
    shift = [row + 0.5 * (number / max(1, len(values) - 1) - 0.5) for number in range(len(values))]
    panel.plot([middle, middle], [row - 0.36, row + 0.36], color=INK, linewidth=1.5, zorder=1)
    panel.scatter(values, shift, s=24, color=colour(contender), alpha=0.8, linewidths=0, zorder=2)
    panel.annotate(
        f"{middle:,.0f} ms", (middle, row - 0.37), ha="center", va="bottom", fontsize=9.5, fontweight="bold"
    )


def responsiveness(results: Results) -> Figure | None:
    """/health during a burst: one stroke per response. Without strokes, the server did not respond."""
    result = results("burst")
    if not result:
        return None
    order = contenders(result)
    figure, panels = stacked(len(order), 0.62, 1.2)
    runs = {contender: middle_round(result, contender, "worst_health_ms") for contender in order}
    for panel, (contender, run) in zip(panels, runs.items(), strict=True):
        panel.barh(0.5, run["duration"], height=1, color=colour(contender), alpha=0.2)
        answered = [asked + waited for asked, waited in run["health"]]
        panel.vlines(answered, 0, 1, color=colour(contender), linewidth=0.7)
        panel.annotate(
            f"worst {in_words(run['worst_health_ms'])}",
            (1.01, 0.5),
            xycoords="axes fraction",
            va="center",
            fontweight="bold",
        )
        panel.set_ylabel(name_of(contender), rotation=0, ha="right", va="center")
        panel.set(yticks=[], ylim=(-0.08, 1.08), xlim=(0, None))
    panels[-1].set_xlabel("seconds since the burst began")
    handles: list[Artist] = [
        Patch(facecolor=PALE, label="requests are running (pale, in the rung's colour)"),
        stroke("a response of /health"),
    ]
    legend_above(panels[0], 1.02, handles)
    worst = " and ".join(
        f"{in_words(runs[name]['worst_health_ms'])} on {name}"
        for name in dict.fromkeys((order[0], order[-1]))
    )
    clients = result["runs"][0]["clients"]
    return finish(
        figure,
        f"While {clients} requests run, /health takes up to {worst}",
        f"/health is requested every 50 ms, even while earlier probes wait; one round · {setup(result)}",
    )


def throughput(results: Results) -> Figure | None:
    """Tokens per second against the number of clients in a closed loop; beside it the other engines."""
    result = results("concurrency")
    if not result:
        return None
    peers = results("engine")
    if peers and not same_machine(result, peers):
        peers = None
    figure, panels = pyplot.subplots(
        1,
        2 if peers else 1,
        figsize=(11 if peers else 6.5, 4.4),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    panel = panels[0, 0]
    order = contenders(result)
    summaries = {contender: result["summary"][contender] for contender in order}
    speeds = {
        contender: {int(label): summary[label]["output_throughput"] for label in sorted(summary, key=int)}
        for contender, summary in summaries.items()
    }
    for contender, speed in speeds.items():
        draw_line(panel, contender, list(speed), list(speed.values()))
    finish_levels(panel, sorted({level for speed in speeds.values() for level in speed}))
    panel.set(
        title=f"{result['dtype']}, closed loop",
        xlabel="clients; each sends its next request after a response",
        ylabel="output tokens per second",
        ylim=(0, None),
    )
    if peers:
        draw_peers(panels[0, 1], peers)
    for panel in panels[0]:
        label_ends(panel)
    shown = [name for name in ("02", "04") if name in speeds] or order
    most = max(set.intersection(*(set(speeds[name]) for name in shown)))  # a level may have been skipped
    gains = {name: speeds[name][most]["median"] / speeds[name][min(speeds[name])]["median"] for name in shown}
    first, *others = [f"{gains[name]:.1f} times" for name in shown]
    title = f"{most} clients together get {first} the tokens/s of one on {shown[0]}" + "".join(
        f", {times} on {name}" for name, times in zip(shown[1:], others, strict=True)
    )
    small = setup(result) + (f"; right panel: {peers['dtype']}" if peers else "")
    return finish(figure, title, small)


def same_machine(one: Result, other: Result) -> bool:
    """Whether both results name the same processor and number of cores."""
    return all(one["machine"][key] == other["machine"][key] for key in ("processor", "cores"))


def draw_line(
    panel: Axes, contender: str, places: Sequence[float], figures: Sequence[Mapping[str, float]]
) -> None:
    """Medians, with a band from the minimum to the maximum of the rounds."""
    tint = colour(contender)
    middle = [each["median"] for each in figures]
    panel.plot(places, middle, color=tint, marker=MARKERS.get(contender, "o"), label=name_of(contender))
    least, most = ([each[kind] for each in figures] for kind in ("min", "max"))
    panel.fill_between(places, least, most, color=tint, alpha=0.12, linewidth=0)


def finish_levels(panel: Axes, levels: Sequence[float]) -> None:
    panel.set_xscale("log", base=2)
    panel.set(xticks=levels, xticklabels=[f"{level:g}" for level in levels])
    panel.minorticks_off()


def label_ends(panel: Axes) -> None:
    """Write the name of each line beside its end. Where names would overlap, they are moved apart."""
    lines = panel.get_lines()
    ends = [(float(x), float(y)) for x, y in (np.asarray(line.get_xydata())[-1] for line in lines)]
    top = panel.get_ylim()[1]
    for line, end, place in zip(lines, ends, apart([y / top for _, y in ends], 0.055), strict=True):
        panel.annotate(
            str(line.get_label()),
            end,
            xytext=(1.06, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            arrowprops=dict(
                arrowstyle="-", color=line.get_color(), linewidth=1.2, relpos=(0, 0.5), shrinkA=1, shrinkB=4
            ),
        )


def apart(heights: Sequence[float], least: float) -> list[float]:
    """The same heights in the same order, moved until neighbours are `least` apart."""
    places = list(heights)
    order = sorted(range(len(places)), key=places.__getitem__)
    for _ in range(1000):
        for low, high in pairwise(order):
            overlap = max(0.0, places[low] + least - places[high])
            places[low] -= overlap / 2
            places[high] += overlap / 2
    return places


PEER_LOOKS = {
    "bare": ("04's engine, no server", SKY, "P"),
    "transformers": ("transformers' batching", INK, "X"),
    "handmade": ("`generate` behind FastAPI", GREY, "s"),
    "llama.cpp": ("llama.cpp's server", "#7a4b00", "d"),
}


def draw_peers(panel: Axes, peers: Result) -> None:
    speeds = peers["summary"]["tokens_per_second"]
    looks = {name: (NAMES[name], COLOURS[name], MARKERS[name]) for name in ("02", "03", "04", "05")}
    for name, (label, tint, marker) in (looks | PEER_LOOKS).items():
        if name in speeds:
            speed = {int(level): speeds[name][level] for level in sorted(speeds[name], key=int)}
            panel.plot(
                list(speed),
                list(speed.values()),
                color=tint,
                linestyle="--" if name in PEER_LOOKS else "-",
                marker=marker,
                label=label,
            )
    finish_levels(panel, sorted({int(level) for speed in speeds.values() for level in speed}))
    panel.set(
        title=f"{peers['dtype']}, bursts, beside other engines",
        xlabel="requests sent at once; all engines have the same weights",
    )


def latency_and_rate(results: Results) -> Figure | None:
    """The 90th percentiles of TTFT and TPOT against the request rate; the knee is ringed.

    The 90th percentile, because the knee is where 90 % meet the latency target. The 99th percentile of a few
    dozen requests would be the worst of them.
    """
    result = results("arrivals")
    if not result:
        return None
    figure, panels = pyplot.subplots(2, 1, figsize=(9, 6), sharex=True, layout="constrained")
    order = contenders(result)
    knees = {contender: knee_of(result["summary"][contender]) for contender in order}
    for number, contender in enumerate(order):
        aside = 2 ** (0.05 * (number - (len(order) - 1) / 2))  # so that no point covers another
        draw_rates(panels[0], contender, result["summary"][contender], "p90_ttft_ms", 1000, aside)
        draw_rates(panels[1], contender, result["summary"][contender], "p90_tpot_ms", 1, aside)
    target = result["objective_ms"]
    draw_target(panels[0], target["ttft"] / 1000, "s")
    draw_target(panels[1], target["tpot"], "ms")
    for panel in panels:
        finish_levels(panel, rates_of(result))
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        panel.minorticks_off()
    panels[0].set_ylabel("TTFT, 90th percentile (s)")
    panels[1].set_ylabel("TPOT, 90th percentile (ms)")
    panels[1].set_xlabel("request rate (requests per second, random arrivals)")
    legend_above(panels[0])
    return finish(
        figure,
        f"The knee, in requests per second: {told(knees, rates_of(result)[0])}",
        f"ringed: the knee, the highest rate at which {CONTENT} % meet both targets; "
        f"points of one rate are moved apart · {setup(result)}",
    )


def draw_rates(
    panel: Axes, contender: str, summary: Result, figure: str, divisor: float, aside: float
) -> None:
    """A line over the rates, with a ring at its knee. Rung 01 does not stream, so it has no line for TPOT."""
    seen = {label: summary[label][figure] for label in sorted(summary, key=float) if figure in summary[label]}
    if not seen:
        return
    scaled = {
        label: {kind: value / divisor for kind, value in figures.items()} for label, figures in seen.items()
    }
    draw_line(panel, contender, [aside * float(label) for label in scaled], list(scaled.values()))
    knee = knee_of(summary)
    if knee in scaled:
        panel.plot(
            aside * float(knee),
            scaled[knee]["median"],
            "o",
            markersize=16,
            markerfacecolor="none",
            color=colour(contender),
            markeredgewidth=2,
        )


def draw_target(panel: Axes, bound: float, unit: str) -> None:
    panel.axhline(bound, color=INK, linestyle=":", linewidth=1.5)
    panel.annotate(
        f"latency target:\n{bound:g} {unit}",
        (1.01, bound),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=9,
    )


def rates_of(result: Result) -> list[float]:
    return sorted({float(label) for summary in result["summary"].values() for label in summary})


def told(knees: dict[str, str | None], lowest: float) -> str:
    """The knees as text, the highest first; contenders with the same knee are named together."""
    alike: dict[float, list[str]] = {}
    for contender, knee in knees.items():
        alike.setdefault(float(knee or 0), []).append(contender)
    return ", ".join(
        f"{f'{knee:g}' if knee else f'under {lowest:g}'} on {listed(alike[knee])}"
        for knee in sorted(alike, reverse=True)
    )


CONTENT = 90
"""Percent of the requests that must meet the latency target."""


def knee_of(summary: Result) -> str | None:
    """The highest rate at which enough requests met the latency target, as at every lower rate."""
    knee = None
    for label in sorted(summary, key=float):
        if summary[label]["good_percent"]["median"] < CONTENT:
            break
        knee = label
    return knee


def goodput(results: Results) -> Figure | None:
    """Completed requests per second at each rate; in full colour those that met the latency target."""
    result = results("arrivals")
    if not result:
        return None
    order, rates = contenders(result), rates_of(result)
    figure, panels = pyplot.subplots(
        1, len(order), figsize=(1.4 + 1.8 * len(order), 3.8), sharey=True, layout="constrained", squeeze=False
    )
    for panel, contender in zip(panels[0], order, strict=True):
        summary = result["summary"][contender]
        places = [rates.index(float(label)) for label in summary]
        answered, good = (
            [figures[key]["median"] for figures in summary.values()]
            for key in ("request_throughput", "request_goodput")
        )
        tint = colour(contender)
        panel.bar(places, answered, width=0.8, color=tint, alpha=0.25)
        panel.bar(places, answered, width=0.8, fill=False, edgecolor=tint, linewidth=1)
        panel.bar(places, good, width=0.8, color=tint)
        panel.set(
            title=name_of(contender),
            xticks=range(len(rates)),
            xticklabels=[f"{rate:g}" for rate in rates],
            xlim=(-0.7, len(rates) - 0.3),
        )
        panel.tick_params(axis="x", length=0)
        panel.grid(axis="x", visible=False)
    panels[0, 0].set_ylabel("completed requests per second")
    panels[0, len(order) // 2].set_xlabel("request rate (requests per second, random arrivals)")
    ttft, tpot = (result["objective_ms"][name] for name in ("ttft", "tpot"))
    return finish(
        figure,
        "Goodput: solid bars met the latency target, pale bars came too late",
        f"target: TTFT up to {ttft:g} ms, TPOT up to {tpot:g} ms; "
        f"no bar: not measured, a lower rate was too high · {setup(result)}",
    )


FIGURE_MAKERS: dict[str, Callable[[Results], Figure | None]] = {
    "who-waited": who_waited,
    "first-token": first_tokens,
    "responsiveness": responsiveness,
    "throughput": throughput,
    "latency-and-rate": latency_and_rate,
    "goodput": goodput,
}


def draw(results: Results, folder: Path) -> Iterator[Path]:
    """Draw every figure for which there are results; yield each file's path without its suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, make in FIGURE_MAKERS.items():
            results.read.clear()
            if figure := make(results):
                origin = {"Description": origin_of(results.read)}
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None, **origin}, bbox_inches="tight")
                figure.savefig(folder / f"{name}.png", metadata=origin, dpi=110, bbox_inches="tight")
                pyplot.close(figure)
                yield folder / name


def origin_of(read: dict[str, str]) -> str:
    return "drawn from " + ", ".join(f"{name}.json {content}" for name, content in read.items())


def main() -> None:
    parser = OneLineParser(prog="plot.py", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("results", nargs="*", type=Path, default=[RESULTS], help="folders; default: results")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder; default: figures")
    options = parser.parse_args()
    console = Console(highlight=False)
    with errors_in_one_line("plot.py"):
        drawn = list(draw(Results(options.results), options.figures))
        if not drawn:
            raise UserError(
                f"no results in {', '.join(map(str, options.results))}: run benchmarks/run.py first"
            )
    for file in drawn:
        console.print(f"{os.path.relpath(file)}.svg, .png")


if __name__ == "__main__":
    main()
