"""Every rung's `--demo`, several times over, and the medians of its figures: what the README's ladder quotes.

    python -m benchmarks.demos [--only 03 04] [--rounds 3]

The demos take turns, so that a machine whose speed drifts does so for all. `results/demos.json` has, by rung,
column and figure, the medians; beside them what each run of `--demo --json` has printed. With --only, the
other rungs' figures stay as they were. Rung 11's page shows some of its rung's.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.results_file import RESULTS, save, write_result
from ladder import ROOT
from ladder.cli import whole_number
from ladder.errors import UserError
from ladder.lab.machine import describe_machine
from ladder.stats import median

SCRIPTS = {script.name[:2]: script.name for script in sorted(ROOT.glob("[0-9][0-9]_*.py"))}

DEMOS = RESULTS / "demos.json"
MEASURED = ROOT / "ladder" / "pages" / "realtime" / "measured.json"

Figures = dict[str, dict[str, Any]]
"""A demo's table: by column, by figure."""


def run_demo(script: str) -> dict[str, Any]:
    command = [sys.executable, script, "--demo", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{script} --demo failed: {done.stderr.strip().splitlines()[-1]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def medians(runs: Sequence[Figures]) -> Figures:
    """Figure by figure; one that a run could not tell is left out of the median."""
    found: Figures = {}
    for column, figures in runs[0].items():
        for name in figures:
            values = [run[column][name] for run in runs if run[column][name] is not None]
            found.setdefault(column, {})[name] = median(values) if values else None
    return found


def known(file: Path) -> dict[str, Any]:
    """What an earlier run has left, by rung."""
    try:
        rungs: dict[str, Any] = json.loads(file.read_text())["rungs"]
    except OSError:
        return {}
    return rungs


def show_on_the_page(transports: Figures) -> None:
    """Rung 11's page tells what a browser cannot measure: bytes on the wire, and the server's time."""
    told = {"command": "python 11_realtime.py --demo", "machine": describe_machine(), "figures": transports}
    save(MEASURED, told)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), metavar="RUNG")
    parser.add_argument("--rounds", type=whole_number(1), default=3, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=DEMOS, help="file for the figures")
    options = parser.parse_args()
    console = Console()
    runs: dict[str, list[Figures]] = {rung: [] for rung in options.only}
    with errors_in_one_line("benchmarks.demos"):
        for turn in track(options.only * options.rounds, "running the demos", console=console):
            runs[turn].append(run_demo(SCRIPTS[turn])["figures"])
    measured: dict[str, Any] = {
        rung: {"summary": medians(seen), "samples": seen} for rung, seen in runs.items()
    }
    rungs = dict(sorted((known(options.output) | measured).items()))
    flags = f"--only {' '.join(options.only)} --rounds {options.rounds}"
    write_result(options.output, f"python -m benchmarks.demos {flags}", {"rungs": rungs})
    if "11" in measured and options.output == DEMOS:
        show_on_the_page(measured["11"]["summary"])
    console.print(f"medians and raw figures: {os.path.relpath(options.output)}")


if __name__ == "__main__":
    main()
