"""What the demos put on the screen can be read on the narrowest of the usual terminals: 80 columns."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from ladder import ROOT, file_scenes
from ladder.cli import DemoOptions, ListenConfig
from ladder.demos import Show, formatted
from ladder.scenes import Figures

COLUMNS = 80


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    return Show("What is shown", ListenConfig(), DemoOptions(json=False, plot=None))


def demo_figures(rung: str) -> Mapping[str, Figures]:
    """What the rung's demo has measured, when it was measured for the README."""
    results = json.loads((ROOT / "benchmarks" / "results" / "demos.json").read_text())
    figures: Mapping[str, Figures] = results["rungs"][rung]["summary"]
    return figures


def conclusion(
    show: Show, rows: Mapping[str, str], figures: Mapping[str, Figures], capsys: pytest.CaptureFixture[str]
) -> list[str]:
    capsys.readouterr()
    show.conclude(rows, figures, 1, lambda file: None)
    return capsys.readouterr().out.splitlines()


def test_many_contenders_have_a_line_each_with_every_heading_and_figure_whole(
    show: Show, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = demo_figures("08")
    lines = conclusion(show, file_scenes.ROWS, figures, capsys)
    assert max(map(len, lines[:-2])) <= COLUMNS
    for title in file_scenes.ROWS.values():
        assert sum(title in line for line in lines) == 1
    for name, column in figures.items():
        cells = " ".join(line.partition(name)[2] for line in lines if line.lstrip().startswith(name))
        for key, value in column.items():
            assert formatted(key, value) in cells
