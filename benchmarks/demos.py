"""Runs every rung's `--demo` several times; the medians are the numbers in the README's table of rungs.

    python -m benchmarks.demos [--only 03 04] [--rounds 3]

The demos take turns, so that a drift of the machine's speed affects all of them. `results/demos.json` holds
the medians by rung, column and figure, and the figures of each run of `--demo --json`. With --only, the
figures of the other rungs stay as they were. The page of rung 11 shows some of its rung's figures.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks.results_file import RESULTS, Result, rounds_parser, save, write_result
from ladder import ROOT
from ladder.errors import UserError
from ladder.lab.machine import describe_machine
from ladder.stats import median

SCRIPTS = {script.name[:2]: script.name for script in sorted(ROOT.glob("[0-9][0-9]_*.py"))}

DEMOS = RESULTS / "demos.json"
MEASURED = ROOT / "ladder" / "pages" / "realtime" / "measured.json"

Figures = dict[str, dict[str, float | None]]
"""A demo's table: by column and name; None where a run has no such figure."""


def run_demo(script: str) -> Figures:
    command = [sys.executable, script, "--demo", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{script} --demo failed: {done.stderr.strip().splitlines()[-1]}")
    figures: Figures = json.loads(done.stdout)["figures"]
    return figures


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of each figure, over the runs that have it."""
    found: Figures = {}
    for column, figures in runs[0].items():
        for name in figures:
            values = [value for run in runs if (value := run[column][name]) is not None]
            found.setdefault(column, {})[name] = median(values) if values else None
    return found


def known(file: Path) -> Result:
    """The figures of an earlier run, by rung."""
    try:
        rungs: Result = json.loads(file.read_text())["rungs"]
    except OSError:
        return {}
    return rungs


def show_on_the_page(transports: Figures) -> None:
    """Rung 11's page shows what a browser cannot measure: bytes on the wire and the server's CPU time."""
    told = {"command": "python 11_realtime.py --demo", "machine": describe_machine(), "figures": transports}
    save(MEASURED, told)


def main() -> None:
    parser = rounds_parser(__doc__, 3, DEMOS)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), metavar="RUNG")
    options = parser.parse_args()
    console = Console()
    runs: dict[str, list[Figures]] = {rung: [] for rung in options.only}
    with errors_in_one_line("benchmarks.demos"):
        for turn in track(options.only * options.rounds, "running the demos", console=console):
            runs[turn].append(run_demo(SCRIPTS[turn]))
    summaries = {rung: medians(seen) for rung, seen in runs.items()}
    measured = {rung: {"summary": summaries[rung], "samples": seen} for rung, seen in runs.items()}
    rungs = dict(sorted((known(options.output) | measured).items()))
    flags = f"--only {' '.join(options.only)} --rounds {options.rounds}"
    write_result(options.output, f"python -m benchmarks.demos {flags}", {"rungs": rungs})
    if "11" in summaries and options.output == DEMOS:
        show_on_the_page(summaries["11"])
    console.print(f"medians and raw figures: {os.path.relpath(options.output)}")


if __name__ == "__main__":
    main()
