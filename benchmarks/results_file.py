"""Writing a result so that it can be trusted later: with the machine, the command and the commit."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ladder.lab.machine import describe_machine

RESULTS = Path(__file__).parent / "results"


def write_result(file: Path, command: str, result: dict[str, Any]) -> None:
    head = {"command": command, "commit": commit(), "machine": describe_machine(), "versions": versions()}
    save(file, {**head, "finished": now(), **result})


def versions() -> dict[str, str]:
    """Of what takes part in every measurement."""
    return {
        name: version(name) for name in ("torch", "transformers", "numpy", "fastapi", "uvicorn", "aiohttp")
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def save(file: Path, content: dict[str, Any]) -> None:
    """Numbers that belong together stand in one line. A file is there as a whole, or as it was before."""
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[\n[-\d.eE,\snul]+\]", lambda numbers: "".join(numbers[0].split()), text)
    unfinished = file.with_suffix(".new")
    unfinished.write_text(text + "\n")
    unfinished.replace(file)


def commit() -> str:
    """The commit that was measured, marked if the tree differs from it by more than results."""
    return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain", "*.py") else "")


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=RESULTS, check=False)
    return done.stdout.strip()
