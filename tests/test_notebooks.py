"""Every notebook runs from a clean kernel to its end, offline, and is committed with such a run's outputs."""

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
PLACES = ("/home/", "/Users/", "site-packages", "ipykernel_")


def code_cells(notebook: NotebookNode) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[list[str]]:
    """What sort of outputs a cell has; what they say differs from run to run where it is measured."""
    return [
        sorted(output["data"]) if "data" in output else [output.get("name", output.output_type)]
        for output in cell.outputs
    ]


# A group for each, wherever there is a process free: they share no server.
APART = [pytest.param(file, id=file.stem, marks=pytest.mark.xdist_group(file.stem)) for file in NOTEBOOKS]


@pytest.fixture(params=APART)
def file(request: pytest.FixtureRequest) -> Path:
    notebook: Path = request.param
    return notebook


def test_every_rung_has_a_notebook_of_its_name() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["00_tour", *(Path(script).stem for script in SCRIPTS)]


def test_it_runs_from_a_clean_kernel_and_shows_what_is_committed(file: Path) -> None:
    """A cell that fails is an exception here. A committed output of another kind is of other code."""
    fresh = executed(file, OFFLINE)
    before = read(file)
    assert [kinds(cell) for cell in code_cells(fresh)] == [kinds(cell) for cell in code_cells(before)]
    assert {key: fresh.metadata[key] for key in fresh.metadata} == before.metadata


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("huggingface.co", 443)])
def test_a_network_would_be_noticed(address: tuple[str, int]) -> None:
    """The first of these is an address that is nobody's."""
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


def test_its_cells_were_run_once_each_in_order(file: Path) -> None:
    cells = code_cells(read(file))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_its_outputs_are_there_and_name_no_place_on_a_machine(file: Path) -> None:
    cells = code_cells(read(file))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "it plots"
    assert not [output for output in outputs if output.output_type == "error"]
    for output in outputs:
        shown = str({**output, "data": {**output.get("data", {}), "image/png": ""}})
        assert not [place for place in PLACES if place in shown]


def test_every_exercise_has_a_solution_and_a_cell_that_proves_it(file: Path) -> None:
    cells = code_cells(read(file))
    tags = [(cell.metadata.get("tags") or [""])[0] for cell in cells]
    exercises = [place for place, tag in enumerate(tags) if tag == "exercise"]
    assert 2 <= len(exercises) <= 3
    for place in exercises:
        assert tags[place + 1] == "solution"
        assert cells[place + 1].metadata.jupyter.source_hidden
        assert "check(" in cells[place + 2].source
    assert all(later - earlier >= 3 for earlier, later in pairwise(exercises))
