"""Faults that tests try on real servers, and the table of them in docs/faults.md.

    python -m tests.faults

runs these tests, and writes the table if all pass.
"""

from __future__ import annotations

import ast
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ladder import ROOT

TABLE = ROOT / "docs" / "faults.md"
HEAD = "| fault | what happens | rungs |\n|---|---|---|\n"


def fault(tried: str, happens: str, rungs: str) -> pytest.MarkDecorator:
    """Marks a test as a row of the table: what it tries, what happens, and on which rungs ("02–12")."""
    return pytest.mark.fault(tried=tried, happens=happens, rungs=rungs)


@dataclass(frozen=True)
class Fault:
    tried: str
    happens: str
    rungs: str
    file: str
    line: int

    def row(self) -> str:
        return f"| [{self.tried}](../tests/{self.file}) | {self.happens} | {self.rungs} |\n"


def all_faults() -> list[Fault]:
    found = [one for file in sorted((ROOT / "tests").glob("test_*.py")) for one in faults_in(file)]
    return sorted(found, key=lambda one: (one.rungs, one.file, one.line))


def faults_in(file: Path) -> Iterator[Fault]:
    """Read from the source, so that the table can be checked without running or importing any test."""
    for node in ast.walk(ast.parse(file.read_text())):
        for mark in getattr(node, "decorator_list", []):
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "fault":
                tried, happens, rungs = (ast.literal_eval(argument) for argument in mark.args)
                yield Fault(tried, happens, rungs, file.name, mark.lineno)


def written() -> str:
    """The document with its table as the tests say it."""
    introduction = TABLE.read_text().partition(HEAD)[0]
    return introduction + HEAD + "".join(one.row() for one in all_faults())


def main() -> None:
    ArgumentParser(description="Try all faults, and write docs/faults.md if the tests pass.").parse_args()
    files = sorted({f"tests/{one.file}" for one in all_faults()})
    if pytest.main(["-q", "-m", "fault", *files]):
        sys.exit("docs/faults.md is not written: a test has failed")
    TABLE.write_text(written())


if __name__ == "__main__":
    main()
