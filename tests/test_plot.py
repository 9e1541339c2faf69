"""The committed results become figures, by a command, and folders are drawn together."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.plot import FIGURE_MAKERS, Results, knee_of
from benchmarks.results_file import RESULTS, save
from ladder import ROOT
from tests.support import one_line, run_python

SCRIPT = str(ROOT / "benchmarks" / "plot.py")
TEXTS = {name: (ROOT / name).read_text() for name in ("benchmarks/README.md",)}


def test_every_figure_is_drawn_from_the_committed_results(tmp_path: Path) -> None:
    done = run_python(SCRIPT, "--figures", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}{suffix}" for name in FIGURE_MAKERS for suffix in (".svg", ".png")
    }
    assert all(file.stat().st_size < 500_000 for file in tmp_path.iterdir())


def test_every_figure_is_committed_and_shown() -> None:
    for name in FIGURE_MAKERS:
        assert (ROOT / "benchmarks" / "figures" / f"{name}.svg").exists()
        assert f"figures/{name}." in TEXTS["benchmarks/README.md"]


def test_without_results_it_says_what_to_do(tmp_path: Path) -> None:
    done = run_python(SCRIPT, str(tmp_path), "--figures", str(tmp_path))
    assert done.returncode == 1
    assert "run benchmarks/run.py first" in one_line(done.stderr)


def test_folders_are_put_together(tmp_path: Path) -> None:
    mine = json.loads((RESULTS / "burst.json").read_text())
    runs = [{**run, "contender": "vllm"} for run in mine["runs"][:1]]
    save(tmp_path / "burst.json", {**mine, "runs": runs, "summary": {"vllm": {}}})
    merged = Results([RESULTS, tmp_path])("burst")
    assert merged
    assert merged["runs"] == mine["runs"] + runs
    assert merged["summary"].keys() == {*mine["summary"], "vllm"}


def test_the_knee_is_the_last_rate_before_people_are_let_down() -> None:
    def summary(**percent: float) -> dict[str, dict[str, dict[str, float]]]:
        return {rate[1:]: {"good_percent": {"median": value}} for rate, value in percent.items()}

    assert knee_of(summary(_2=100.0, _8=95.0, _12=40.0)) == "8"
    assert knee_of(summary(_2=100.0, _8=50.0, _12=95.0)) == "2"
    assert knee_of(summary(_2=10.0)) is None
