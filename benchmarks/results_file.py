"""The command lines of the benchmarks, and their result files, which name machine, command and commit."""

from __future__ import annotations

import json
import re
import subprocess
from argparse import ArgumentParser
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ladder.cli import whole_number
from ladder.lab.machine import describe_machine

RESULTS = Path(__file__).parent / "results"

Result = dict[str, Any]
"""The content of a result file, as JSON reads and writes it."""


def rounds_parser(doc: str | None, rounds: int, output: Path) -> ArgumentParser:
    """The command line of a benchmark that repeats its measurement and writes one file."""
    parser = ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=whole_number(1), default=rounds, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=output, help="file for the result")
    return parser


def write_result(file: Path, command: str, result: Result) -> None:
    head = {"command": command, "commit": commit(), "machine": describe_machine(), "versions": versions()}
    save(file, {**head, "finished": now(), **result})


def versions() -> dict[str, str]:
    """The versions of the packages that take part in every measurement."""
    return {
        name: version(name) for name in ("torch", "transformers", "numpy", "fastapi", "uvicorn", "aiohttp")
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def save(file: Path, content: Result) -> None:
    """Write JSON, each list of numbers in one line. The file is replaced as a whole or not at all."""
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[\n[-\d.eE,\snul]+\]", lambda numbers: "".join(numbers[0].split()), text)
    unfinished = file.with_suffix(".new")
    unfinished.write_text(text + "\n")
    unfinished.replace(file)


def commit() -> str:
    """The commit that was measured, with a mark if Python files differ from it."""
    return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "*.py") else "")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=RESULTS, check=False)
    return done.stdout.strip()
