"""Draw what `benchmarks/run.py` and `benchmarks/engine.py` have measured.

    python benchmarks/plot.py                                   results/ into figures/
    python benchmarks/plot.py benchmarks/results/vllm --figures vllm-figures

Each figure is written as SVG and as PNG. Folders named together are drawn together.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    # Run as a script: Python looks in this file's folder first, but the repository is meant.
    sys.path[0] = str(Path(__file__).parents[1])

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich.console import Console

from benchmarks.results_file import RESULTS
from benchmarks.scenarios import EIGHT
from ladder.cli import OneLineParser
from ladder.client import percentile
from ladder.errors import UserError, errors_in_one_line

FIGURES = Path(__file__).parent / "figures"

COLOURS = {"01": "#D55E00", "02": "#E69F00", "03": "#9467BD", "04": "#0072B2", "05": "#009E73"}
"""Okabe and Ito's, told apart by almost every eye; each rung has its own in every figure."""

NAMES = {
    "01": "01 blocking",
    "02": "02 streaming",
    "03": "03 batching",
    "04": "04 continuous",
    "05": "05 own process",
}
MARKERS = {"01": "s", "02": "^", "03": "D", "04": "o", "05": "v"}
INK, PAPER, GRID = "#24292f", "#ffffff", "#d8dee4"
GREY = "#8c959f"

STYLE: Any = {
    # A white card: it reads the same on a light page and on a dark one.
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "legend.frameon": False,
    "svg.hashsalt": "serving-ladder",
    "svg.fonttype": "path",
}

Result = dict[str, Any]


class Results:
    """The result files of some folders; the runs of the same scenario are put together."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders

    def __call__(self, name: str) -> Result | None:
        found = [
            json.loads(file.read_text())
            for folder in self.folders
            if (file := folder / f"{name}.json").exists()
        ]
        if not found:
            return None
        merged = {**found[0]}
        for other in found[1:]:
            merged["runs"] = merged["runs"] + other["runs"]
            merged["summary"] = merged["summary"] | other["summary"]
        return merged


def colour(contender: str) -> str:
    return COLOURS.get(contender[:2], INK)


def name_of(contender: str) -> str:
    return NAMES.get(contender, contender)


def runs_of(result: Result, contender: str, round_number: int | None = None) -> list[Result]:
    return [
        run
        for run in result["runs"]
        if run["contender"] == contender and round_number in (None, run["round"])
    ]


def contenders(result: Result) -> list[str]:
    """In the order in which they are climbed."""
    return sorted({run["contender"] for run in result["runs"]})


def setup(result: Result) -> str:
    """The small print: what was measured on."""
    machine = result["machine"]
    return f"{result['model']}, {result['dtype']} · {machine['processor']}, {machine['cores']} cores"


def finish(figure: Any, title: str, small_print: str) -> Any:
    """The title says the point; below stands what was measured, and on what."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=15, fontweight="bold")
    figure.text(0.99, -0.01, small_print, ha="right", va="top", fontsize=7.5, color=GREY)
    return figure


def who_waited(results: Results) -> Any:
    """A timeline of the same eight requests on each rung: waiting, prompt, every token."""
    result = results("eight")
    if not result:
        return None
    order = contenders(result)
    figure, panels = pyplot.subplots(
        len(order), 1, figsize=(9, 1.75 * len(order)), sharex=True, layout="constrained"
    )
    for panel, contender in zip(panels, order, strict=True):
        run = runs_of(result, contender, 1)[0]
        draw_waiting(panel, run, colour(contender))
        last = max(
            start + latency for start, latency in zip(run["start_times"], run["latencies"], strict=True)
        )
        panel.set_title(f"{name_of(contender)}: everyone is served after {last:.1f} s")
        panel.set(yticks=range(8), yticklabels=[str(number) for number in range(1, 9)], ylim=(7.7, -0.7))
        panel.tick_params(axis="y", labelsize=7, length=0)
        panel.grid(axis="y", visible=False)
    panels[-1].set_xlabel("seconds since the first request was sent")
    panels[-1].legend(
        handles=[
            Patch(facecolor="#e4e7eb", label="waits, sees nothing"),
            Patch(facecolor=GREY, label="its prompt is read"),
            Line2D([], [], color=INK, marker="|", linestyle="", markersize=11, label="a token"),
        ],
        loc="lower right",
        fontsize=9,
    )
    lengths = ", ".join(str(tokens) for _, tokens in EIGHT)
    return finish(
        figure,
        "Who waited for what",
        f"the same eight requests on each rung, {lengths} tokens · {setup(result)}",
    )


def draw_waiting(panel: Any, run: Result, rung_colour: str) -> None:
    for number, start in enumerate(run["start_times"]):
        first = start + run["ttfts"][number]
        end = start + run["latencies"][number]
        prefill = run["server_prefills"][number] or 0.0
        panel.barh(number, first - start, left=start, height=0.74, color="#e4e7eb")
        if (total := run["server_totals"][number]) is not None:
            # All at once: what the server did unseen, then the text.
            panel.barh(number, prefill, left=end - total, height=0.74, color=GREY)
            panel.vlines(end, number - 0.42, number + 0.42, color=rung_colour, linewidth=3)
            continue
        panel.barh(number, prefill, left=first - prefill, height=0.74, color=GREY)
        times = [first]
        for gap in run["itls"][number]:
            times.append(times[-1] + gap)
        panel.barh(number, end - first, left=first, height=0.74, color=rung_colour, alpha=0.25)
        panel.vlines(times, number - 0.37, number + 0.37, color=rung_colour, linewidth=0.9)


def first_tokens(results: Results) -> Any:
    """Every request of a burst is a dot: how long it saw nothing."""
    result = results("burst")
    if not result:
        return None
    order = contenders(result)
    figure, panel = pyplot.subplots(figsize=(9, 3.9), layout="constrained")
    for row, contender in enumerate(order):
        waits = sorted(wait for run in runs_of(result, contender) for wait in run["ttfts"])
        shift = [row + 0.55 * (number / max(1, len(waits) - 1) - 0.5) for number in range(len(waits))]
        panel.scatter(waits, shift, s=26, color=colour(contender), alpha=0.75, linewidths=0)
        middle = percentile(waits, 50)
        panel.plot([middle, middle], [row - 0.3, row + 0.3], color=INK, linewidth=2.5)
        panel.annotate(
            f"{1000 * middle:,.0f} ms",
            (middle, row - 0.31),
            ha="center",
            va="bottom",
            fontsize=9.5,
            fontweight="bold",
        )
    clients = result["runs"][0]["clients"]
    panel.set(
        xscale="log",
        yticks=range(len(order)),
        yticklabels=[name_of(contender) for contender in order],
        ylim=(len(order) - 0.4, -0.85),
        xlabel="time to first token (s), logarithmic",
    )
    panel.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    panel.minorticks_off()
    panel.grid(axis="y", visible=False)
    return finish(
        figure,
        f"{clients} ask at once: how long does each see nothing?",
        f"a dot a request, the bar is the median · {setup(result)}",
    )


def responsiveness(results: Results) -> Any:
    """/health during a burst, on each rung: when it was asked, and how long it took to answer."""
    result = results("burst")
    if not result:
        return None
    order = contenders(result)
    figure, panel = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    for contender in order:
        (run,) = runs_of(result, contender, 1)
        times, waits = zip(*run["health"], strict=True)
        panel.plot(
            times,
            [1000 * wait for wait in waits],
            marker=MARKERS.get(contender, "o"),
            markersize=3,
            linewidth=1.4,
            color=colour(contender),
            label=f"{name_of(contender)}, worst {run['worst_health_ms']:,.0f} ms",
        )
    panel.set(
        yscale="log",
        xlabel="seconds since the burst began: when /health was asked",
        ylabel="it answered after (ms)",
    )
    panel.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.legend(loc="center left", bbox_to_anchor=(0.02, 0.52), fontsize=9.5)
    clients = result["runs"][0]["clients"]
    return finish(
        figure,
        f"Is anyone at home? /health while {clients} texts are written",
        f"asked every 50 ms; one round · {setup(result)}",
    )


def throughput(results: Results) -> Any:
    """Tokens per second against the number of clients in a closed loop; beside it the peers."""
    result = results("concurrency")
    if not result:
        return None
    peers = results("engine")
    figure, panels = pyplot.subplots(
        1, 2 if peers else 1, figsize=(10 if peers else 6, 4.2), layout="constrained", squeeze=False
    )
    panel = panels[0][0]
    for contender in contenders(result):
        labels = sorted(result["summary"][contender], key=int)
        figures = [result["summary"][contender][label]["output_throughput"] for label in labels]
        draw_line(panel, contender, [int(label) for label in labels], figures)
    finish_levels(panel, [int(label) for label in labels], "clients, each asking again when answered")
    panel.set(title="The rungs", ylabel="output tokens a second")
    if peers:
        draw_peers(panels[0][1], peers)
    small = f"left: {setup(result)}" + (f"; right: {setup(peers)}" if peers else "")
    return finish(figure, "Sharing each step makes more of the machine", small)


def draw_line(panel: Any, contender: str, places: Sequence[float], figures: Sequence[Any]) -> None:
    """Medians, with a band from the least to the most of the rounds, and the name at the end of the line."""
    middle = [each["median"] for each in figures]
    tint = colour(contender)
    panel.plot(places, middle, color=tint, marker=MARKERS.get(contender, "o"), label=name_of(contender))
    panel.fill_between(
        places,
        [each["min"] for each in figures],
        [each["max"] for each in figures],
        color=tint,
        alpha=0.18,
        linewidth=0,
    )


def finish_levels(panel: Any, levels: Sequence[int], label: str) -> None:
    panel.set_xscale("log", base=2)
    panel.set(xticks=levels, xticklabels=[str(level) for level in levels], xlabel=label, ylim=(0, None))
    panel.minorticks_off()
    panel.legend(loc="upper left", fontsize=9)


PEER_LOOKS = {
    "bare": ("04's engine without a server", "#56B4E9", "--", "P"),
    "transformers": ("transformers' batching", "#CC79A7", "--", "X"),
    "handmade": ("`generate` behind FastAPI", GREY, "--", "s"),
}


def draw_peers(panel: Any, peers: Result) -> None:
    speeds = peers["summary"]["tokens_per_second"]
    for name in ("02", "04", "05"):
        levels = sorted(map(int, speeds.get(name, {})))
        panel.plot(
            levels,
            [speeds[name][str(level)] for level in levels],
            color=colour(name),
            marker=MARKERS[name],
            label=name_of(name),
        )
    for name, (label, tint, line, marker) in PEER_LOOKS.items():
        if name in speeds:
            levels = sorted(map(int, speeds[name]))
            panel.plot(
                levels,
                [speeds[name][str(level)] for level in levels],
                color=tint,
                linestyle=line,
                marker=marker,
                label=label,
            )
    finish_levels(panel, sorted(map(int, speeds["02"])), "requests sent at once")
    panel.set(title="Beside their peers, all with the same weights")


def latency_and_rate(results: Results) -> Any:
    """The 99th percentile of TTFT against the rate at which people come; the knee is marked."""
    result = results("arrivals")
    if not result:
        return None
    figure, panel = pyplot.subplots(figsize=(9, 4.4), layout="constrained")
    for contender in contenders(result):
        summary = result["summary"][contender]
        labels = sorted(summary, key=float)
        rates = [float(label) for label in labels]
        draw_line(panel, contender, rates, [in_seconds(summary[label]["p99_ttft_ms"]) for label in labels])
        knee = knee_of(summary)
        if knee is not None:
            height = summary[knee]["p99_ttft_ms"]["median"] / 1000
            panel.plot(
                float(knee),
                height,
                "o",
                markersize=15,
                markerfacecolor="none",
                color=INK,
                markeredgewidth=1.8,
            )
    objective = result["objective_ms"]["ttft"] / 1000
    panel.axhline(objective, color=INK, linestyle=":", linewidth=1.2)
    panel.annotate(
        f"too long: over {objective:g} s", (1, objective), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    panel.set(
        yscale="log",
        xlabel="people who come, a second, at random",
        ylabel="first token after (s), 99 of 100",
        xlim=(0, None),
    )
    panel.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    panel.legend(loc="lower right", fontsize=9)
    return finish(
        figure,
        "Up to the knee nobody waits; past it everybody does",
        f"ringed: the knee, the highest rate that 9 of 10 are content with · {setup(result)}",
    )


def in_seconds(figures: dict[str, float]) -> dict[str, float]:
    return {kind: value / 1000 for kind, value in figures.items()}


CONTENT = 90
"""Percent of the requests that must meet the objective."""


def knee_of(summary: Result) -> str | None:
    """The highest rate up to which enough requests met the objective, at it and at every lower one."""
    knee = None
    for label in sorted(summary, key=float):
        if summary[label]["good_percent"]["median"] < CONTENT:
            break
        knee = label
    return knee


def goodput(results: Results) -> Any:
    """Requests answered in time, a second, against those that come; the dashed line is everyone."""
    result = results("arrivals")
    if not result:
        return None
    figure, panel = pyplot.subplots(figsize=(9, 4.4), layout="constrained")
    most = 0.0
    for contender in contenders(result):
        summary = result["summary"][contender]
        labels = sorted(summary, key=float)
        rates = [float(label) for label in labels]
        figures = [
            {kind: rate * value / 100 for kind, value in summary[label]["good_percent"].items()}
            for rate, label in zip(rates, labels, strict=True)
        ]
        draw_line(panel, contender, [0, *rates], [dict.fromkeys(("median", "min", "max"), 0.0), *figures])
        most = max(most, *rates)
    panel.plot([0, most], [0, most], color=GREY, linestyle="--", linewidth=1.2)
    panel.annotate(
        "everyone",
        (most, most),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        color=INK,
        fontsize=9,
    )
    panel.set(
        xlabel="people who come, a second, at random",
        ylabel="of them served well",
        xlim=(0, None),
        ylim=(0, None),
    )
    panel.legend(loc="upper left", fontsize=9)
    first, each = result["objective_ms"].values()
    well = f"well: the first token within {first:g} ms, then {each:g} ms a token"
    return finish(figure, "How many people can it serve well?", f"{well} · {setup(result)}")


FIGURE_MAKERS: dict[str, Callable[[Results], Any]] = {
    "who-waited": who_waited,
    "first-token": first_tokens,
    "responsiveness": responsiveness,
    "throughput": throughput,
    "latency-and-rate": latency_and_rate,
    "goodput": goodput,
}


def draw(results: Results, folder: Path) -> Iterator[Path]:
    """Every figure for which there are results."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, make in FIGURE_MAKERS.items():
            if figure := make(results):
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
                figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
                pyplot.close(figure)
                yield folder / name


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
