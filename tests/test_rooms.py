"""Tests which room (folder) of ladder/ imports from which."""

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
"""Each room, and the rooms that it may import from. All may import the modules outside the rooms."""


def imported(tree: ast.AST) -> set[str]:
    """The full names of ladder's modules that a file imports: `ladder.web.http`, or `ladder` itself."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "ladder"}


def rooms_used(tree: ast.AST) -> set[str]:
    return {parts[1] for name in imported(tree) if (parts := name.split("."))[1:] and parts[1] in ROOMS}


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / "ladder" / room).rglob("*.py"))


def test_every_folder_with_code_is_a_room() -> None:
    folders = {path.parent.name for path in (ROOT / "ladder").glob("*/*.py")}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_its_allowed_rooms(room: str) -> None:
    wrong = {
        str(file.relative_to(ROOT)): beyond
        for file in files_of(room)
        if (beyond := rooms_used(ast.parse(file.read_text())) - ROOMS[room] - {room})
    }
    assert wrong == {}


def test_modules_outside_the_rooms_import_from_no_room() -> None:
    wrong = {
        file.name: rooms
        for file in sorted((ROOT / "ladder").glob("*.py"))
        if (rooms := rooms_used(ast.parse(file.read_text())))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "code",
    ["from ladder.lab.client import Client", "from ladder.lab import client", "import ladder.lab.client"],
)
def test_an_import_in_the_wrong_direction_is_detected(code: str) -> None:
    assert rooms_used(ast.parse(f"def later():\n    {code}")) == {"lab"}
    assert rooms_used(ast.parse("from ladder import ROOT\nfrom ladder.errors import UserError")) == set()
