"""Holds the rooms of ladder/ to their arrows: which room may import from which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ladder import ROOT

ROOMS = {
    "llm": set[str](),
    "engine": {"llm"},
    "web": {"engine", "llm"},
    "predict": {"web"},
    "files": {"web"},
    "lab": {"llm", "engine", "web", "predict", "files"},
}
"""Each room, and the rooms that it may import from; all may import the modules that stand in no room."""


def imported(tree: ast.AST) -> set[str]:
    """The modules of ladder that a file imports, in full: `ladder.web.http`, or `ladder` itself."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "ladder"}


def rooms_entered(tree: ast.AST) -> set[str]:
    return {parts[1] for name in imported(tree) if (parts := name.split("."))[1:] and parts[1] in ROOMS}


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / "ladder" / room).rglob("*.py"))


def test_every_folder_with_code_is_a_room() -> None:
    folders = {path.parent.name for path in (ROOT / "ladder").glob("*/*.py")}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_those_below_it(room: str) -> None:
    wrong = {
        str(file.relative_to(ROOT)): beyond
        for file in files_of(room)
        if (beyond := rooms_entered(ast.parse(file.read_text())) - ROOMS[room] - {room})
    }
    assert wrong == {}


def test_what_stands_in_no_room_imports_from_none() -> None:
    wrong = {
        file.name: rooms
        for file in sorted((ROOT / "ladder").glob("*.py"))
        if (rooms := rooms_entered(ast.parse(file.read_text())))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "code",
    ["from ladder.lab.client import Client", "from ladder.lab import client", "import ladder.lab.client"],
)
def test_an_arrow_the_wrong_way_would_be_seen(code: str) -> None:
    assert rooms_entered(ast.parse(f"def later():\n    {code}")) == {"lab"}
    assert rooms_entered(ast.parse("from ladder import ROOT\nfrom ladder.errors import UserError")) == set()
