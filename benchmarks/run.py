"""Measure every rung with the same client and metrics, or any other server.

    python benchmarks/run.py            everything, under 40 minutes on two cores
    python benchmarks/run.py --quick    less of everything, under 3 minutes
    python benchmarks/run.py --only burst arrivals
    python benchmarks/run.py --url http://localhost:8000/v1/completions --name vllm

Each rung runs as a server of its own and gets its requests from the measuring client. The rungs take turns.
The results are written to results/SCENARIO.json. Ctrl-C keeps what was measured so far; the same command
continues from there. `python benchmarks/plot.py` draws the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

if not __package__:
    # When this file runs as a script, its own folder is first in the path; imports need the repository.
    sys.path[0] = str(Path(__file__).parents[1])

from ladder.script import errors_in_one_line

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from benchmarks.metrics import LatencyTarget, Record, records, summary_of
from benchmarks.results_file import RESULTS, Result, commit, now, save, versions
from benchmarks.scenarios import CONTENDERS, Scenario, Server, Setting, Turn, TurnKey, scenarios, turns
from ladder.cli import DTYPES, OneLineParser, whole_number
from ladder.errors import UserError
from ladder.lab.client import Client
from ladder.lab.launch import RungProcess, undisturbed
from ladder.lab.machine import describe_machine
from ladder.lab.scenes import warm_up

MODEL, DTYPE = "random:smollm2-135m", "int8"
"""The smallest model of a real architecture, in the dtype that is fastest on a CPU."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    output: Path
    """The folder of the results."""
    target: LatencyTarget
    quick: bool = False
    only: Sequence[str] = ()
    """The scenarios to run; empty means all."""
    model: str = MODEL
    dtype: str = DTYPE
    threads: int | None = None
    """Of each rung; None means one per core."""
    url: str = ""
    """The server to measure instead of the rungs."""
    name: str = ""
    """With a URL: the server's name in the results."""


Command = tuple[str, ...]


class Servers:
    """The contenders that are running. While one is measured, the others are idle."""

    def __init__(self, run: Run, stack: ExitStack, loop: asyncio.Runner) -> None:
        self.run = run
        self.stack = stack
        self.loop = loop
        self.processes: dict[Command, RungProcess] = {}
        self.urls: dict[Command, str] = {}

    def of(self, turn: Turn) -> Server:
        if url := self.run.options.url:
            return Server(url)
        command = self.command(turn)
        if command not in self.urls:
            self.start(turn)
        return Server(self.urls[command], CONTENDERS[turn.contender].streams)

    def command(self, turn: Turn) -> Command:
        options, contender = self.run.options, CONTENDERS[turn.contender]
        flags = ["--model", self.run.model(turn.scenario), "--dtype", options.dtype]
        flags += ["--threads", str(options.threads)] if options.threads else []
        return (contender.script, *contender.flags, *flags)

    def start(self, turn: Turn) -> None:
        """Start this turn's server. With the run's own model, start the servers of all turns that are left.

        A scenario with a larger model runs one server at a time.
        """
        self.close()
        needed = [turn]
        if not self.run.plan[turn.scenario].model:
            needed = [other for other in self.run.left if not self.run.plan[other.scenario].model]
        for command in dict.fromkeys(self.command(other) for other in needed):
            with undisturbed():
                self.processes[command] = RungProcess(command[0], command[1:])
                self.stack.callback(self.processes[command].close)
        for command, process in self.processes.items():
            self.urls[command] = process.wait_ready()
        for url in self.urls.values():
            self.loop.run(warm_up(url, Server(url, streams=False).request(64, 4, 0)))

    def close(self) -> None:
        for process in self.processes.values():
            process.close()
        self.processes.clear()
        self.urls.clear()


class Run:
    """What has been measured so far. Each turn is saved, so that an interrupted run can continue."""

    def __init__(self, options: Options, plan: dict[str, Scenario]) -> None:
        self.options = options
        self.plan = plan
        self.turns = turns(plan)
        self.file = options.output / "unfinished.json"
        self.origin: Result = {
            "command": command_of(options),
            "commit": commit(),
            "machine": describe_machine(),
            "versions": versions(),
        }
        self.played: dict[TurnKey, list[Record]] = {}
        if self.file.exists():
            self.resume(json.loads(self.file.read_text()))

    def resume(self, before: Result) -> None:
        """Take over an interrupted run, if command, commit, machine and versions are the same."""
        if different := [key for key in self.origin if before.get(key) != self.origin[key]]:
            other = ", ".join(
                f"another {key} ({before.get(key)})" for key in different if key in ("command", "commit")
            )
            raise UserError(
                f"{os.path.relpath(self.file)} belongs to an interrupted run of "
                f"{other or 'another machine'}: go on with that one, or delete the file"
            )
        for turn in before["turns"]:
            self.played[TurnKey(*turn["key"])] = turn["records"]

    def model(self, scenario: str) -> str:
        return self.plan[scenario].model or self.options.model

    @property
    def left(self) -> list[Turn]:
        return [turn for turn in self.turns if turn.key not in self.played]

    def note(self, turn: Turn, found: list[Record]) -> None:
        head = {"contender": turn.contender, "round": turn.round, **turn.setting}
        self.played[turn.key] = [head | record for record in found]
        kept = [{"key": key, "records": records} for key, records in self.played.items()]
        save(self.file, {**self.origin, "turns": kept})
        if not any(other.scenario == turn.scenario for other in self.left):
            self.finish(turn.scenario)

    def records(self, turn: Turn) -> list[Record]:
        """The records of this turn's contender in this scenario and round, all settings together."""
        return [record for key, found in self.played.items() if key[:3] == turn.key[:3] for record in found]

    def records_of(self, scenario: str) -> list[Record]:
        return [record for key, found in self.played.items() if key.scenario == scenario for record in found]

    def finish(self, name: str) -> None:
        """Write the file of a scenario, once all of its turns are played."""
        scenario, options = self.plan[name], self.options
        runs = self.records_of(name)
        result = {
            "question": scenario.question,
            "quick": options.quick,
            "rounds": scenario.rounds,
            "model": self.model(name),
            "dtype": options.dtype,
            "threads": options.threads or self.origin["machine"]["cores"],
            "objective_ms": asdict(options.target),
            "summary": summary_of(runs),
            "runs": runs,
        }
        save(options.output / f"{name}.json", {**self.origin, "finished": now(), **result})


SERIAL = ("01", "02", "02, whole")


def expected_seconds(turn: Turn) -> float:
    """A guess, for the display of the time left. The measured times of earlier turns correct it."""
    setting: Setting = turn.setting
    guess = {"one_client": 3, "one_client_1b": 12, "eight": 3, "loops": 12, "mixed": 3, "long_prompt": 3}
    if turn.scenario in guess:
        return guess[turn.scenario]
    if rate := setting.get("request_rate"):
        requests = setting["num_prompts"]
        return float(max(requests / rate, requests / 2 if turn.contender in SERIAL else 0))
    clients, requests = (setting.get(key, 9) for key in ("max_concurrency", "num_prompts"))
    speed = 65 if turn.contender in SERIAL else 65 + 12 * min(clients, 32)
    return float(max(requests, setting.get("clients", 0)) * setting["output_tokens"] / speed)


class TimeLeft:
    """How long the remaining turns will take, if they keep the pace of the earlier ones."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.guessed = self.taken = 0.0
        self.left = sum(expected_seconds(turn) for turn in turns)

    def played(self, turn: Turn, seconds: float) -> None:
        self.taken += seconds
        self.guessed += expected_seconds(turn)
        self.left -= expected_seconds(turn)

    def __str__(self) -> str:
        seconds = self.left * (self.taken / self.guessed if self.taken else 1)
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


def measure(run: Run, servers: Servers, console: Console) -> None:
    left = run.left
    time_left = TimeLeft(left)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=time_left.left, left=str(time_left))
        for turn in left:
            what = f"{turn.scenario}, {turn.setting['label']}: {turn.contender} (round {turn.round})"
            progress.update(task, description=f"starting servers for {what}")
            server = servers.of(turn)
            progress.update(task, description=what)
            started = time.perf_counter()
            play(turn, server, run, servers.loop)
            time_left.played(turn, time.perf_counter() - started)
            progress.update(task, advance=expected_seconds(turn), left=str(time_left))


def play(turn: Turn, server: Server, run: Run, loop: asyncio.Runner) -> None:
    scenario = run.plan[turn.scenario]
    if scenario.skip(turn.setting, run.records(turn)):
        run.note(turn, [])
        return
    played = loop.run(scenario.play(server, turn.setting))
    run.note(turn, records(played, run.options.target))


COLUMNS = {
    "median_ttft_ms": "TTFT",
    "p90_ttft_ms": "TTFT 90 %",
    "median_tpot_ms": "TPOT",
    "p99_itl_ms": "ITL 99 %",
    "output_throughput": "tokens/s",
    "p99_health_ms": "/health 99 %",
}


def report(run: Run, console: Console) -> None:
    """Print one table per scenario: medians of the rounds, times in milliseconds."""
    for name, scenario in run.plan.items():
        summary = summary_of(run.records_of(name))
        table = Table("", "", *COLUMNS.values(), title=f"{name}: {scenario.question}", title_justify="left")
        for contender, labels in summary.items():
            for label, figures in labels.items():
                cells = (f"{figures[key]['median']:.1f}" if key in figures else "–" for key in COLUMNS)
                table.add_row(contender, label, *cells)
        console.print(table)


def read_options(arguments: Sequence[str] | None = None) -> Options:
    parser = OneLineParser(prog="run.py", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    names = list(scenarios(quick=False))
    parser.add_argument("--quick", action="store_true", help="less of everything, in under 3 minutes")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=(), metavar="SCENARIO", help=", ".join(names)
    )
    parser.add_argument("--model", default=MODEL, help="of the rungs; default: %(default)s")
    parser.add_argument("--dtype", default=DTYPE, choices=DTYPES, help="of the rungs; default: %(default)s")
    parser.add_argument("--threads", type=whole_number(1), help="of the rungs; default: one per core")
    parser.add_argument(
        "--goodput",
        nargs="+",
        type=bound,
        metavar="NAME:MS",
        default=[],
        help="the latency target; default: ttft:500 tpot:50",
    )
    parser.add_argument("--url", default="", help="measure this server instead: its address or API endpoint")
    parser.add_argument("--name", default="", help="with --url: the server's name in the results")
    parser.add_argument(
        "--output", type=Path, help="folder of the results; default: results, or with --url results/NAME"
    )
    given = vars(parser.parse_args(arguments))
    url, name = given.pop("url"), given.pop("name")
    if name and not url:
        parser.error("--name belongs to --url")
    if url and not urlsplit(url).hostname:
        parser.error(f"--url {url}: an address looks like http://localhost:8000/v1/completions")
    name = name or urlsplit(url).netloc.replace(":", "-")
    output = given.pop("output") or RESULTS / name
    target = LatencyTarget(**dict(given.pop("goodput")))
    return Options(output=output, target=target, url=url, name=name, **given)


def bound(text: str) -> tuple[str, float]:
    name, _, milliseconds = text.partition(":")
    try:
        if name in ("ttft", "tpot") and float(milliseconds) > 0:
            return name, float(milliseconds)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not like ttft:500 or tpot:50")


def command_of(options: Options) -> str:
    """The command line, without flags that have their default value."""
    flags = ["--quick"] if options.quick else []
    flags += ["--only", *options.only] if options.only else []
    flags += ["--url", options.url, "--name", options.name] if options.url else []
    flags += ["--model", options.model] if options.model != MODEL else []
    flags += ["--dtype", options.dtype] if options.dtype != DTYPE else []
    flags += ["--threads", str(options.threads)] if options.threads else []
    bounds = [f"{name}:{value:g}" for name, value in asdict(options.target).items()]
    flags += ["--goodput", *bounds] if options.target != LatencyTarget() else []
    return shlex.join(["python", "benchmarks/run.py", *flags])


def planned(options: Options) -> dict[str, Scenario]:
    plan = {name: one for name, one in scenarios(options.quick).items() if name in (options.only or [name])}
    if not options.url:
        return plan
    return {name: replace(one, contenders=[options.name]) for name, one in plan.items() if not one.model}


@contextmanager
def unreachable_in_one_line() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientError as error:
        raise UserError(f"the server does not answer as expected: {error}") from None


async def check(url: str) -> None:
    """Send one short request before the measurement starts."""
    async with Client(url) as client:
        seen = await client.generate(**Server(url).request(8, 4, 0))
    if not seen.done:
        raise UserError(f"{url} answered {seen.status}: {str(seen.error)[:200]}")


def main() -> None:
    options = read_options()
    console = Console(highlight=False)
    with errors_in_one_line("run.py"), unreachable_in_one_line(), ExitStack() as stack:
        options.output.mkdir(parents=True, exist_ok=True)
        run = Run(options, planned(options))
        # One event loop for all turns: Ctrl-C while a loop is created would leave a warning about it.
        loop = stack.enter_context(asyncio.Runner())
        if options.url:
            loop.run(check(options.url))
        if run.played:
            console.print(f"going on after {len(run.played)} of {len(run.turns)} turns")
        try:
            measure(run, Servers(run, stack, loop), console)
        except BaseException:
            console.print(
                f"kept {len(run.played)} of {len(run.turns)} turns; the same command goes on from there"
            )
            raise
    report(run, console)
    run.file.unlink()
    console.print(f"results: {os.path.relpath(options.output)}/; draw them: python benchmarks/plot.py")


if __name__ == "__main__":
    main()
