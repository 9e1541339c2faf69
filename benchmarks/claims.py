"""Compares the measured numbers in texts with the results, or fills them in.

    python -m benchmarks.claims           fill the numbers in from the results
    python -m benchmarks.claims --check   only list the numbers that differ from the results

A comment, invisible to readers, follows each measured number:

    The first token came after 152 ms<!-- burst/summary/04/burst/median_ttft_ms/median -->.

The comment is a path into `benchmarks/results/burst.json`. ` over ` divides one path or number by another:
`<!-- burst/… over 1000 -->` converts milliseconds to seconds. The number keeps the decimals of the text. A
setting, which is not measured, is marked too: `50 ms<!-- chosen -->`. A unit may stand between.

A sentence that compares two results can be checked as well:

    With chunks the others wait less<!-- long_prompt/…/04/… less than long_prompt/…/04, whole/… -->.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console

from benchmarks import definitions
from benchmarks.results_file import RESULTS, Result
from ladder import ROOT
from ladder.errors import UserError

CLAIM = re.compile(
    r"(?P<number>\d[\d,]*(?:\.\d+)?)(?P<unit>[^\d<\n]{0,24})<!-- (?P<source>(?:(?! less than )[^>])+?) -->"
)
CHOSEN = "chosen"
COMPARED = re.compile(r"<!-- (?P<less>[^>]+?) less than (?P<more>[^>]+?) -->")

NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNITS = (
    r"µs|ms|s|min|times|%|per cent|passes|bytes|MiB|MB|GB"
    r"|tokens/s|requests/s|tokens a second|a second"
)
MEASURED = re.compile(rf"(?<![\w.,-]){NUMBER} ?(?:{UNITS})(?![\w/])|(?<=\|) *(?!0\d){NUMBER} *(?=\|)")
"""A number with a unit of measurement, or alone in a cell of a table."""

ELSEWHERE = {
    "training": ROOT / "training" / "report.json",
    "predictors": ROOT / "ladder" / "data" / "predictors" / "index.json",
}
"""Results outside the folder of results."""


class NotMeasured(Exception):
    """A path that leads to no number in the results."""


@dataclass(frozen=True)
class Claim:
    text: str  # the number as the text has it
    source: str

    def right(self, folder: Path = RESULTS) -> str:
        """The number from the results, with the decimals that the text has."""
        decimals = len(self.text.partition(".")[2])
        return f"{value_of(self.source, folder):,.{decimals}f}"


@dataclass(frozen=True)
class Comparison:
    less: str
    more: str

    def holds(self, folder: Path = RESULTS) -> bool:
        try:
            return value_of(self.less, folder) < value_of(self.more, folder)
        except NotMeasured:
            return False

    def __str__(self) -> str:
        return f"{self.less} is not less than {self.more}"


def value_of(source: str, folder: Path = RESULTS) -> float:
    dividend, divisor = (term_of(part, folder) for part in [*source.split(" over "), "1"][:2])
    return dividend / divisor


def term_of(text: str, folder: Path) -> float:
    """A number, or the result at a path."""
    return float(text) if re.fullmatch(r"[\d.]+", text) else look_up(text, folder)


def look_up(path: str, folder: Path) -> float:
    name, *keys = path.split("/")
    try:
        found: object
        if name == "definitions":
            found = definitions.compute(folder)
        else:
            found = result_of(ELSEWHERE.get(name, folder / f"{name}.json"))
        for key in keys:
            found = found[int(key)] if isinstance(found, list) else children(found)[key]
    except (OSError, LookupError, ValueError, StopIteration):
        raise NotMeasured(f"no result at {path}") from None
    if not isinstance(found, int | float):
        raise NotMeasured(f"{path} is no number")
    return found


def children(found: object) -> Mapping[str, object]:
    """A JSON object's members; a number or a text has none."""
    return found if isinstance(found, dict) else {}


@cache
def result_of(file: Path) -> Result:
    result: Result = json.loads(file.read_text())
    return result


def claims_in(text: str) -> list[Claim]:
    return [
        Claim(match["number"], match["source"]) for match in CLAIM.finditer(text) if match["source"] != CHOSEN
    ]


def comparisons_in(text: str) -> list[Comparison]:
    return [Comparison(match["less"], match["more"]) for match in COMPARED.finditer(text)]


def wrong(text: str, folder: Path = RESULTS) -> list[str]:
    """The claims of a text that the results contradict, one line each."""
    found = []
    for claim in claims_in(text):
        try:
            right = claim.right(folder)
        except NotMeasured as reason:
            found.append(f"{claim.text}: {reason}")
            continue
        if claim.text != right:
            found.append(f"{claim.text} should be {right} ({claim.source})")
    return found + [str(claim) for claim in comparisons_in(text) if not claim.holds(folder)]


def without_source(text: str) -> list[str]:
    """Numbers with a unit of measurement but without a source; code is left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", prose_of(text), flags=re.DOTALL)
    return [number.strip() for number in MEASURED.findall(CLAIM.sub("", prose))]


def prose_of(text: str) -> str:
    """The Markdown cells of a notebook; any other text as it is."""
    if not text.startswith("{"):
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def filled_in(text: str, folder: Path = RESULTS) -> str:
    def fill(match: re.Match[str]) -> str:
        if match["source"] == CHOSEN:
            return match[0]
        return match[0].replace(match["number"], Claim(match["number"], match["source"]).right(folder), 1)

    return CLAIM.sub(fill, text)


def texts() -> list[Path]:
    """Every text that makes such claims, notebooks included: Markdown cells hide the same comments.

    docs/faults.md makes none: its numbers are limits, and tests write its table.
    """
    found = [*ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return sorted({*found, *ROOT.glob("notebooks/*.ipynb")} - {ROOT / "docs" / "faults.md"})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, only list what is wrong")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    with errors_in_one_line("benchmarks.claims"):
        mistakes = 0
        for file in texts():
            text = file.read_text()
            for mistake in wrong(text):
                mistakes += 1
                console.print(f"{os.path.relpath(file)}: {mistake}")
            if not options.check:
                try:
                    file.write_text(filled_in(text))
                except NotMeasured as reason:
                    raise UserError(f"{os.path.relpath(file)}: {reason}") from None
        if options.check and mistakes:
            raise UserError(
                f"{mistakes} numbers differ from the results; python -m benchmarks.claims corrects them"
            )


if __name__ == "__main__":
    main()
