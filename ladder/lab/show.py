"""How the demos show what they measure: live in the terminal, in a table at the end, as JSON, as a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ladder.cli import DemoOptions, ListenConfig, summary
from ladder.engine.trace import Step
from ladder.lab.client import Measurement, clock
from ladder.lab.launch import running_rungs
from ladder.lab.machine import busy_percent, command_line, describe_machine
from ladder.lab.scenes import (
    Figures,
)

MOST_COLUMNS = 4
MOST_BUSY_PERCENT = 25
"""Above this load from other programs, figures are not comparable."""

LANE_COLUMNS, LANE_LINES = 24, 10
"""The smallest width of a lane, and the number of lines that lanes below each other share."""

Draw = Callable[[Path], None]
"""Draws the figure for --plot."""


class Contender:
    """A rung's server in a demo: its script, the configuration class with the flags it knows, more flags."""

    def __init__(self, script: str, known: type[ListenConfig], *further: str) -> None:
        self.script = script
        self.known = known
        self.further = further

    def flags(self, options: DemoOptions) -> list[str]:
        """What was given beside `--demo` and this server knows; further flags take precedence."""
        return [*options.flags(self.known), *self.further]


class Show:
    """The terminal, or with --json one object on stdout and nothing else."""

    def __init__(self, doc: str | None, config: ListenConfig, options: DemoOptions) -> None:
        """The title is the first line of a rung's docstring."""
        self.title = summary(doc).splitlines()[0].removesuffix(".")
        title = self.title
        self.config = config
        self.options = options
        self.console = Console(quiet=options.json, highlight=False)
        self.console.print(f"\n[bold]{title}[/bold]")
        # Measured before the servers start: later their load cannot be told from that of others.
        self.others_percent = 0 if options.json else busy_percent()

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """A spinner while the block runs."""
        with self.console.status(what):
            yield

    @contextmanager
    def starting(self, *contenders: Contender) -> Iterator[list[str]]:
        """Start these rungs and wait until all are ready; they end with the block."""
        commands = [(one.script, one.flags(self.options)) for one in contenders]
        with ExitStack() as servers:
            with self.busy(
                "starting " + " and ".join(" ".join([script, *flags]) for script, flags in commands)
            ):
                urls = servers.enter_context(running_rungs(*commands))
            yield urls

    @contextmanager
    def lanes(self, *names: str) -> Iterator[list[Lane]]:
        """One panel for each request that is shown, side by side as far as there is room."""
        lanes = [Lane(name) for name in names]
        if self.options.json:
            yield lanes
            return
        with Live(
            get_renderable=lambda: side_by_side(lanes, self.console),
            console=self.console,
            refresh_per_second=15,
        ):
            yield lanes
        if not self.console.is_terminal:
            self.console.line()  # Live ends its last line only on a terminal

    def timelines(self, servers: Mapping[str, Sequence[Step]]) -> None:
        """One below the other, with the same scale."""
        for name, steps in servers.items():
            self.console.print(timeline(name, steps, self.console.width - 12))
        self.console.print(Text("one letter per request; capital: prefill; · wasted row", "dim"))

    def conclude(
        self,
        rows: Mapping[str, str],
        figures: Mapping[str, Figures],
        rounds: int,
        draw: Draw,
        remark: str = "",
    ) -> None:
        """The table at the end, or the JSON object: `rows` labels the figures, `figures` has the columns.

        The remark below the table explains a figure that could be misunderstood.
        """
        if self.options.plot:
            draw(self.options.plot)
        machine = describe_machine()
        if self.options.json:
            result = {
                "demo": self.title,
                **self.config.subject(),
                "machine": machine,
                "command": command_line(),
                "rounds": rounds,
                "figures": figures,
            }
            print(json.dumps(result, indent=2))
            return
        for table in tables(rows, figures):
            self.console.print(table)
        if remark:
            self.console.print(remark)
        self.console.print(
            f"[dim]measured just now: {machine['processor']}, {machine['cores']} cores, "
            f"torch {machine['torch']}\n{command_line()}[/dim]",
            soft_wrap=True,
        )
        if self.others_percent > MOST_BUSY_PERCENT:
            self.console.print(
                f"[yellow]Other programs kept this machine busy ({self.others_percent:.0f} % of it when the "
                "demo began): the figures are not comparable.[/yellow]",
                soft_wrap=True,
            )


def tables(rows: Mapping[str, str], figures: Mapping[str, Figures]) -> Iterator[Table]:
    """One line per figure and one column per contender. With many contenders it is one line per contender,
    and figures that only some of them have get a table of their own, so that all fits into 80 columns."""
    if len(figures) <= MOST_COLUMNS:
        yield table([["", *figures], *(line(key, title, figures) for key, title in rows.items())])
        return
    measured: dict[tuple[str, ...], list[list[str]]] = {}
    for key, title in rows.items():
        names = tuple(name for name, column in figures.items() if key in column)
        some = {name: figures[name] for name in names}
        measured.setdefault(names, [["", *names]]).append(line(key, title, some))
    for lines in measured.values():
        yield table([list(turned) for turned in zip(*lines, strict=True)])


def line(key: str, title: str, figures: Mapping[str, Figures]) -> list[str]:
    return [title, *(formatted(key, column.get(key)) for column in figures.values())]


def table(lines: Sequence[Sequence[str]]) -> Table:
    """The first line has the headings. Only the first column may be wrapped."""
    heading, *others = lines
    made = Table(*heading, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in made.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    for cells in others:
        made.add_row(*cells)
    return made


def formatted(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_percent"):
        return f"{value:.1f} %"
    if key.endswith("_ratio"):
        return f"{value:.2f}"
    if key.endswith("_ms"):
        return (
            f"{value / 1000:.1f} s"
            if value >= 1000
            else f"{value:.0f} ms"
            if value >= 10
            else f"{value:.1f} ms"
        )
    return f"{value:,.0f}"


class Lane:
    """A request that is shown live: the text that its client has, and how long it waits."""

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
        last = formatted("_ms", 1000 * self.measurement.e2el)
        return f"failed after {last}" if self.measurement.error else f"{first} to {last}"

    def body(self) -> Text:
        text = Text(self.text.strip())
        if self.measurement and self.measurement.error:
            text.append(f"\n\nerror: {self.measurement.error['message']}", "red")
        return text

    def panel(self, console: Console, width: int, height: int) -> Panel:
        """The last lines of the text in a frame."""
        lines = self.body().wrap(console, width - 4)[-height:]
        return Panel(
            Text("\n").join(lines), title=self.name, subtitle=self.status(), width=width, height=height + 2
        )


def side_by_side(lanes: Sequence[Lane], console: Console) -> RenderableType:
    """In as many rows as the titles need."""
    rows = -(-len(lanes) // max(1, console.width // LANE_COLUMNS))
    columns = -(-len(lanes) // rows)
    grid = Table.grid()
    for first in range(0, len(lanes), columns):
        row = lanes[first : first + columns]
        panels = (lane.panel(console, console.width // columns, LANE_LINES // rows) for lane in row)
        grid.add_row(*panels)
    return grid


LETTERS = "abcdefghijklmnopqrstuvwxyz"
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")


def timeline(name: str, steps: Sequence[Step], width: int) -> RenderableType:
    """Which request had which slot at each step: one line per slot, one letter per request."""
    requests = sorted({row.request for step in steps for row in step.rows})
    together = -(-len(steps) // width)  # steps that share a column
    slots = 1 + max(row.slot for step in steps for row in step.rows)
    lines = [Text(f"slot {slot:2}  ") for slot in range(slots)]
    for start in range(0, len(steps), together):
        shown = steps[start : start + together]
        step = next((step for step in shown if step.kind == "prefill"), shown[0])
        rows = {row.slot: row for row in step.rows}
        for slot, line in enumerate(lines):
            if row := rows.get(slot):
                number = requests.index(row.request)
                letter = LETTERS[number % 26]
                shape = letter.upper() if step.kind == "prefill" else letter if row.used else "·"
                line.append(shape, COLOURS[number % len(COLOURS)] if row.used else "dim")
            else:
                line.append(" ")
    title = f"{name}: {len(steps)} steps" + (f", {together} a column" if together > 1 else "")
    return Group(Text(title, "bold"), *lines)
