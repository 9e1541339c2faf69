"""Tests that the output of the demos fits a terminal of 80 columns."""

from __future__ import annotations

import json
from collections.abc import Mapping

import psutil
import pytest

from ladder import ROOT
from ladder.cli import DemoOptions, ListenConfig
from ladder.lab import file_scenes
from ladder.lab.client import Measurement
from ladder.lab.scenes import Figures
from ladder.lab.show import Show, formatted

COLUMNS = 80


def start_show(busy_percent: float, monkeypatch: pytest.MonkeyPatch) -> Show:
    """A demo that starts while other programs use so much CPU time."""
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: busy_percent)
    return Show("What is shown", ListenConfig(), DemoOptions(json=False, plot=None))


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    return start_show(0, monkeypatch)


def demo_figures(rung: str) -> Mapping[str, Figures]:
    """The figures of the rung's demo in the committed results."""
    results = json.loads((ROOT / "benchmarks" / "results" / "demos.json").read_text())
    figures: Mapping[str, Figures] = results["rungs"][rung]["summary"]
    return figures


def conclusion(
    show: Show, rows: Mapping[str, str], figures: Mapping[str, Figures], capsys: pytest.CaptureFixture[str]
) -> list[str]:
    capsys.readouterr()
    show.conclude(rows, figures, 1, lambda file: None)
    return capsys.readouterr().out.splitlines()


def test_a_wide_table_shows_every_heading_and_figure_in_full(
    show: Show, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = demo_figures("12")
    lines = conclusion(show, file_scenes.ROWS, figures, capsys)
    assert max(map(len, lines[:-2])) <= COLUMNS
    for title in file_scenes.ROWS.values():
        assert sum(title in line for line in lines) == 1
    for name, column in figures.items():
        cells = " ".join(line.partition(name)[2] for line in lines if line.lstrip().startswith(name))
        for key, value in column.items():
            assert formatted(key, value) in cells


LANES = {
    "one": ("05: a story, until the engine is killed",),
    "two": ("02", "03"),
    "three": ("01", "02, stream: false", "02, stream: true"),
    "four": ("03: long request", "03: late request", "04: long request", "04: late request"),
}


@pytest.mark.parametrize("names", LANES.values(), ids=LANES)
def test_lanes_show_titles_times_and_the_newest_words_in_full(
    show: Show, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with show.lanes(*names) as lanes:
        for number, lane in enumerate(lanes):
            lane.begin()
            seen = Measurement(sent=0, token_times=[0.123], ended=12.3)
            lane.on_token(seen, "Once upon a time there was a fox. " * 40 + f"The end {number}.")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= COLUMNS
    assert shown.count("123 ms to 12.3 s") == len(names)
    for number, name in enumerate(names):
        assert f" {name} " in shown
        assert f"The end {number}." in " ".join(shown.replace("│", " ").split())
    assert shown.endswith("╯\n"), "later output starts on a new line"


def test_a_lane_shows_the_whole_error(show: Show, capsys: pytest.CaptureFixture[str]) -> None:
    message = "the engine has died and is being started again; send the request again in a while"
    with show.lanes("05") as (lane,):
        lane.begin()
        seen = Measurement(sent=0, token_times=[0.1], ended=0.5, error={"message": message})
        lane.on_token(seen, "Once upon a time")
    shown = capsys.readouterr().out
    assert message in " ".join(shown.replace("│", " ").split())
    assert "failed after 500 ms" in shown


@pytest.mark.parametrize(("busy", "warned"), [(5, False), (60, True)])
def test_figures_from_a_busy_machine_have_a_warning(
    busy: float, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show = start_show(busy, monkeypatch)
    lines = conclusion(show, {"steps": "forward passes"}, {"01": {"steps": 3}}, capsys)
    assert any("not comparable" in line for line in lines) == warned


def test_without_cpu_usage_there_is_no_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(interval: float) -> float:
        raise PermissionError

    monkeypatch.setattr(psutil, "cpu_percent", refuse)
    show = Show("What is shown", ListenConfig(), DemoOptions(json=False, plot=None))
    lines = conclusion(show, {"steps": "forward passes"}, {"01": {"steps": 3}}, capsys)
    assert not any("not comparable" in line for line in lines)


def test_a_note_explains_a_figure(show: Show, capsys: pytest.CaptureFixture[str]) -> None:
    show.conclude({"steps": "forward passes"}, {"01": {"steps": 3}}, 1, lambda file: None, "Three is many.")
    table, _, rest = capsys.readouterr().out.partition("Three is many.")
    assert "forward passes" in table
    assert "measured just now" in rest


def test_thousands_have_separators() -> None:
    shown = [formatted("kib", value) for value in (0, 999, 1176, 5068, 300_032)]
    assert shown == ["0", "999", "1,176", "5,068", "300,032"]
