"""Measures the throughput of rungs 02 to 05 and of other engines, alternately, with the same weights.

    python -m benchmarks.engine [--model random:smollm2-135m] [--dtype bfloat16] [--rounds 5]
                                [--concurrency 1 4 16 32] [--only NAME ...] [--llama-server PATH]

A burst is N requests sent at once, each with its own 64 prompt tokens and 64 greedy output tokens. Its speed
is the number of its output tokens over the time from the first request to the end of the last response, so
prefill counts. /health is not probed, because only some contenders have it and would pay for it.
Each contender is a process of its own that is idle while another is measured; they take turns.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import asyncio
import json
import os
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypedDict

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.results_file import RESULTS, write_result
from benchmarks.scenarios import Server
from ladder import ROOT
from ladder.cli import DTYPES, whole_number
from ladder.lab.client import Completions
from ladder.lab.launch import RungProcess, ServerProcess
from ladder.lab.scenes import Request, observe
from ladder.llm.linear import onednn_has_bfloat16
from ladder.llm.loading import load_model
from ladder.stats import median

PROMPT_TOKENS = OUTPUT_TOKENS = 64

RUNGS = {
    "02": ("02_async_streaming.py",),
    "03": ("03_batching.py", "--max-batch", "32"),
    "04": ("04_continuous_batching.py",),
    "05": ("05_async_scheduling.py",),
    "05 overlapped": ("05_async_scheduling.py", "--loop", "overlapped"),
}
LLAMA_CPP = "llama.cpp"
PEERS = ("bare", "transformers", "handmade", LLAMA_CPP)
RATIOS = (
    ("04", "02"),
    ("04", "transformers"),
    ("04", LLAMA_CPP),
    ("05", "bare"),
    ("05", "04"),
    ("03", "02"),
)


@dataclass(frozen=True)
class Burst:
    """One measurement: requests sent at once to one contender."""

    contender: str
    concurrency: int
    tokens_per_second: float
    first_token: float | None = None  # seconds, the median of the burst


@dataclass(frozen=True)
class Asked:
    """The request of one client, for a server and, as tokens, for a peer without HTTP."""

    request: Request
    prompt_ids: list[int]


def asked_by(clients: int, model: str) -> list[Asked]:
    """A different prompt per client, so that no engine can reuse the work of another request."""
    tokenizer = load_model(model).tokenizer
    requests = Server("").requests(clients, PROMPT_TOKENS, OUTPUT_TOKENS)
    found = [Asked(request, tokenizer.encode(request["prompt"])) for request in requests]
    assert all(len(one.prompt_ids) == PROMPT_TOKENS for one in found)
    return found


class Contender(Protocol):
    async def burst(self, asked: Sequence[Asked]) -> Burst: ...


@dataclass(frozen=True)
class OverHttp:
    name: str
    url: str

    async def burst(self, asked: Sequence[Asked]) -> Burst:
        seen = await observe(self.url, [one.request for one in asked], interval=None)
        assert all(one.done for one in seen.measurements)
        # The hand-made server sends chunks of text, not tokens; its responses have equally many tokens.
        assert self.name == "handmade" or all(one.tokens == OUTPUT_TOKENS for one in seen.measurements)
        return Burst(
            self.name,
            len(asked),
            len(asked) * OUTPUT_TOKENS / seen.seconds,
            median([one.ttft for one in seen.measurements]),
        )


@dataclass(frozen=True)
class OverPipe:
    """A peer without a server: it reads a burst from its stdin and writes the seconds to its stdout."""

    name: str
    process: subprocess.Popen[str]

    async def burst(self, asked: Sequence[Asked]) -> Burst:
        assert self.process.stdin
        assert self.process.stdout
        prompts = [one.prompt_ids for one in asked]
        self.process.stdin.write(json.dumps({"prompts": prompts, "tokens": OUTPUT_TOKENS}) + "\n")
        self.process.stdin.flush()
        seconds = float(await asyncio.to_thread(self.process.stdout.readline))
        return Burst(self.name, len(asked), len(asked) * OUTPUT_TOKENS / seconds)


@contextmanager
def contenders(options: Options, console: Console) -> Iterator[list[Contender]]:
    """Start them one after the other; they stop at the end of the block."""
    model, dtype = options.model, options.dtype
    started: list[Contender] = []
    with ExitStack() as stack:
        for name in options.chosen:
            with console.status(f"starting {name}"):
                if name in ("bare", "transformers"):
                    command = [sys.executable, "-m", "benchmarks.peers", name, model, dtype]
                    process = subprocess.Popen(
                        command,
                        cwd=ROOT,
                        text=True,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                    )
                    stack.callback(process.wait)
                    stack.callback(process.kill)
                    assert process.stdout
                    process.stdout.readline()
                    started.append(OverPipe(name, process))
                else:
                    server = start_server(name, options)
                    stack.callback(server.close)
                    path = Completions.path if name == LLAMA_CPP else ""
                    started.append(OverHttp(name, server.wait_ready() + path))
        yield started


def start_server(name: str, options: Options) -> ServerProcess:
    model, dtype = options.model, options.dtype
    if name == "handmade":
        return ServerProcess("-m", "benchmarks.peers", name, model, dtype)
    if name == LLAMA_CPP:
        built = ["--server", str(options.llama_server)] if options.llama_server else []
        return ServerProcess("-m", "benchmarks.llama_cpp", model, dtype, *built)
    script, *flags = RUNGS[name]
    return RungProcess(script, [*flags, "--model", model, "--dtype", dtype, "--device", "cpu"])


async def measure(
    running: Sequence[Contender],
    asked: Sequence[Asked],
    options: Options,
    console: Console,
) -> list[Burst]:
    """Round by round, so that a drift of the machine's speed affects all. Ctrl-C keeps what was measured."""
    bursts: list[Burst] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    total = options.rounds * len(options.concurrency) * len(running)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("warming up", total=total)
        for contender in running:
            await contender.burst(asked[:2])
        with suppress(asyncio.CancelledError):
            for number in range(1, options.rounds + 1):
                for clients in options.concurrency:
                    for contender in running:
                        burst = await contender.burst(asked[:clients])
                        bursts.append(burst)
                        what = f"round {number}, {clients} at once: {burst.contender} "
                        progress.update(
                            task, advance=1, description=f"{what}{burst.tokens_per_second:.0f} tokens/s"
                        )
    return bursts


Speeds = dict[str, dict[int, list[float]]]


def by_contender(bursts: Sequence[Burst]) -> Speeds:
    speeds: Speeds = {}
    for burst in bursts:
        of_one = speeds.setdefault(burst.contender, {})
        of_one.setdefault(burst.concurrency, []).append(burst.tokens_per_second)
    return speeds


def ratio(speeds: Speeds, one: str, other: str, clients: int) -> list[float]:
    """The ratio of each round, in which both were measured within a minute."""
    pairs = zip(speeds[one].get(clients, []), speeds[other].get(clients, []), strict=False)
    return [a / b for a, b in pairs]


class Summary(TypedDict):
    """Medians by contender or pair of contenders, and by concurrency."""

    tokens_per_second: dict[str, dict[int, float]]
    ratios: dict[str, dict[int, float]]


def report(bursts: Sequence[Burst], console: Console) -> Summary:
    """Print medians with their spread, and the ratios of RATIOS."""
    speeds = by_contender(bursts)
    concurrency = sorted({burst.concurrency for burst in bursts})
    table = Table("tokens/s", *(f"{clients} at once" for clients in concurrency))
    summary: Summary = {"tokens_per_second": {}, "ratios": {}}
    for name, of_one in speeds.items():
        medians = {clients: median(of_one[clients]) for clients in concurrency if clients in of_one}
        summary["tokens_per_second"][name] = medians
        table.add_row(
            name,
            *(f"{value:.0f} ({min(of_one[c]):.0f}–{max(of_one[c]):.0f})" for c, value in medians.items()),
        )
    table.add_section()
    for one, other in RATIOS:
        if one in speeds and other in speeds:
            ratios = {clients: ratio(speeds, one, other, clients) for clients in concurrency}
            medians = {clients: median(values) for clients, values in ratios.items() if values}
            summary["ratios"][f"{one} / {other}"] = medians
            table.add_row(f"{one} / {other}", *(f"{value:.2f}" for value in medians.values()))
    console.print(table)
    return summary


@dataclass(frozen=True)
class Options:
    """The command line."""

    model: str
    dtype: str
    rounds: int
    concurrency: Sequence[int]
    only: Sequence[str] | None
    llama_server: Path | None
    output: Path

    @property
    def chosen(self) -> list[str]:
        """The contenders: by default all that are installed. Transformers has no int8 of the rungs' kind."""
        unable = ("transformers", "handmade") if self.dtype == "int8" else ()
        installed = [name for name in (*RUNGS, *PEERS) if name != LLAMA_CPP or self.has_llama_cpp]
        return [name for name in self.only or installed if name not in unable]

    @property
    def has_llama_cpp(self) -> bool:
        return self.llama_server is not None or find_spec("xllamacpp") is not None

    @property
    def command(self) -> str:
        flags = ["--model", self.model, "--dtype", self.dtype, "--rounds", str(self.rounds)]
        flags += ["--concurrency", *map(str, self.concurrency), "--only", *self.chosen]
        if self.llama_server:
            flags += ["--llama-server", self.llama_server.name]  # its folder says nothing to anyone else
        return shlex.join(["python", "-m", "benchmarks.engine", *flags])


def read_options() -> Options:
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    names = [*RUNGS, *PEERS]
    best = "bfloat16" if onednn_has_bfloat16() else "float32"
    parser.add_argument("--model", default="random:smollm2-135m", help="default: %(default)s")
    parser.add_argument("--dtype", default=best, choices=DTYPES, help="default here: %(default)s")
    parser.add_argument("--rounds", type=whole_number(1), default=5, help="default: %(default)s")
    parser.add_argument("--concurrency", type=whole_number(1, 32), nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--llama-server", type=Path, metavar="PATH", help="a llama.cpp server built on this machine"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "engine.json", help="file for the samples")
    return Options(**vars(parser.parse_args()))


def builds_of(options: Options) -> dict[str, str]:
    """Of the contenders that are not of this repository and differ from machine to machine."""
    if LLAMA_CPP not in options.chosen:
        return {}
    from benchmarks.llama_cpp import build_of  # imports transformers, which takes seconds

    return {LLAMA_CPP: build_of(options.llama_server)}


def main() -> None:
    options = read_options()
    console = Console()
    with errors_in_one_line("benchmarks.engine"):
        asked = asked_by(max(2, *options.concurrency), options.model)
        builds = builds_of(options)
        with contenders(options, console) as running:
            bursts = asyncio.run(measure(running, asked, options, console))
    summary = report(bursts, console)
    result = {
        "interrupted": len(bursts) < options.rounds * len(options.concurrency) * len(options.chosen),
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "model": options.model,
        "builds": builds,
        "summary": summary,
        "samples": [asdict(burst) for burst in bursts],
    }
    write_result(options.output, options.command, result)
    console.print(f"raw samples: {os.path.relpath(options.output)}")


if __name__ == "__main__":
    main()
