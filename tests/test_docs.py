"""Tests docs/how-vllm-does-it.md: names of this repository exist, and other projects' files have a source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from ladder import ROOT

TEXT = (ROOT / "docs" / "how-vllm-does-it.md").read_text()
COMPARISONS, SOURCES = TEXT.split("\n## What was read\n")
FILE = re.compile(r"[\w/.-]+\.(py|js|md|json|rs)")


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def is_theirs(file: str) -> bool:
    return file.startswith(("vllm/", "rust/", "sglang/"))  # rust/ is a folder of vLLM's repository


def files(text: str) -> set[str]:
    return {word for word in in_backticks(text) if FILE.fullmatch(word)}


def named_here(text: str) -> Iterator[tuple[str, str]]:
    """(file, name) of every name in a 'here' column; the default file is the rung in the heading."""
    for section in text.split("\n## ")[1:]:
        heading, *lines = section.splitlines()
        rung = next(iter(files(heading)), "")
        rows = [line.split("|")[1] for line in lines if line.startswith("| ")]
        if not rows or rows[0].strip() != "here":
            continue
        for cell in rows[1:]:
            file = next(iter(files(cell)), rung)
            for name in in_backticks(cell):
                if name != file:
                    yield file, name


def named_in_prose(text: str) -> Iterator[tuple[str, str]]:
    """The same for "`name` in `file`" and "`name` and `name` in `file`"."""
    for *names, file in re.findall(r"(?:`([\w.]+)` and )?`([\w.]+)` in\s+`([\w/]+\.py)`", text):
        if not is_theirs(file):
            yield from ((file, name) for name in names if name)


def defined(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from defined(node.body, f"{node.name}.")
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from (prefix + part.id for part in ast.walk(target) if isinstance(part, ast.Name))


NAMES = sorted({*named_here(COMPARISONS), *named_in_prose(COMPARISONS)})


def test_every_language_model_rung_is_compared() -> None:
    rungs = {file for file, _ in NAMES if file[0].isdigit()}
    assert rungs == {path.name for path in ROOT.glob("0[1-5]_*.py")}


def test_files_of_this_repository_exist() -> None:
    ours = {file for file in files(TEXT) if not is_theirs(file)}
    assert ours
    assert {file for file in ours if not (ROOT / file).is_file()} == set()


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_a_name_of_this_repository_is_defined_in_the_named_file(file: str, name: str) -> None:
    assert name in set(defined(ast.parse((ROOT / file).read_text()).body))


def test_every_file_of_another_project_is_listed_as_a_source() -> None:
    theirs = {file for file in files(COMPARISONS) if is_theirs(file)}
    listed = {
        file
        for line in SOURCES.splitlines()
        if re.search(r"\| (release [0-9.]+|[0-9a-f]{12}( and [0-9a-f]{12})*) \|$", line)
        for file in files(line)
    }
    assert theirs
    assert theirs - listed == set()
