"""Tests that every notebook runs from a clean kernel to its end, offline, and has committed outputs."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from nbformat import NotebookNode

from ladder import ROOT
from notebooks.execute import NOTEBOOKS, executed, read
from tests.support import SCRIPTS

OFFLINE = ROOT / "tests" / "offline"
MACHINE_PATHS = ("/home/", "/Users/", "site-packages", "ipykernel_")


def code_cells(notebook: NotebookNode) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[list[str]]:
    """The kinds of a cell's outputs. Contents differ between runs, because they include measurements."""
    return [
        sorted(output["data"]) if "data" in output else [output.get("name", output.output_type)]
        for output in cell.outputs
    ]


# An xdist group per notebook, so that they run in parallel: they share no server.
GROUPS = [pytest.param(file, id=file.stem, marks=pytest.mark.xdist_group(file.stem)) for file in NOTEBOOKS]


@pytest.fixture(params=GROUPS)
def file(request: pytest.FixtureRequest) -> Path:
    notebook: Path = request.param
    return notebook


def test_every_rung_has_a_notebook_with_its_name() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["00_tour", *(Path(script).stem for script in SCRIPTS)]


def test_a_fresh_run_has_the_same_kinds_of_outputs_as_the_committed_notebook(file: Path) -> None:
    """A failing cell raises here. A committed output of another kind comes from older code."""
    fresh = executed(file, OFFLINE)
    before = read(file)
    assert [kinds(cell) for cell in code_cells(fresh)] == [kinds(cell) for cell in code_cells(before)]
    assert {key: fresh.metadata[key] for key in fresh.metadata} == before.metadata


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("huggingface.co", 443)])
def test_a_network_connection_is_refused(address: tuple[str, int]) -> None:
    """The first address is reserved for documentation."""
    code = f"import socket; socket.create_connection({address!r}, timeout=5)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(OFFLINE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"no network here, and so not {address[0]}" in done.stderr


def test_cells_were_executed_once_in_order(file: Path) -> None:
    cells = code_cells(read(file))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_outputs_contain_a_plot_no_error_and_no_machine_path(file: Path) -> None:
    cells = code_cells(read(file))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "it plots"
    assert not [output for output in outputs if output.output_type == "error"]
    for output in outputs:
        shown = str({**output, "data": {**output.get("data", {}), "image/png": ""}})
        assert not [place for place in MACHINE_PATHS if place in shown]


def test_every_exercise_has_a_solution_and_a_cell_that_checks_it(file: Path) -> None:
    cells = code_cells(read(file))
    tags = [(cell.metadata.get("tags") or [""])[0] for cell in cells]
    exercises = [place for place, tag in enumerate(tags) if tag == "exercise"]
    assert 2 <= len(exercises) <= 3
    for place in exercises:
        assert tags[place + 1] == "solution"
        assert cells[place + 1].metadata.jupyter.source_hidden
        assert "check(" in cells[place + 2].source
    assert all(later - earlier >= 3 for earlier, later in pairwise(exercises))
