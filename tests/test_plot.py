"""Tests that a command draws figures from the committed results and merges folders of results."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.claims import claims_in, texts
from benchmarks.definitions import SCENARIO
from benchmarks.plot import FIGURE_MAKERS, FIGURES, Results, apart, knee_of, origin_of, told
from benchmarks.results_file import RESULTS, save
from ladder import ROOT
from ladder.lab.looks import NAMES
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
    assert all(origin_in(file) == origin_now(file.stem) for file in tmp_path.iterdir())


def test_every_figure_is_committed_and_in_the_readme() -> None:
    for name in FIGURE_MAKERS:
        assert (ROOT / "benchmarks" / "figures" / f"{name}.svg").exists()
        assert f"figures/{name}." in TEXTS["benchmarks/README.md"]


def origin_in(file: Path) -> str:
    """The source of a figure, from its metadata."""
    if file.suffix == ".png":
        with Image.open(file) as image:
            return str(image.info.get("Description"))
    found = re.search("<dc:description>(.*?)</dc:description>", file.read_text(), re.DOTALL)
    return found[1].strip() if found else ""


def drawn(name: str, results: Results) -> Figure:
    """A figure, closed so that pyplot does not keep it."""
    figure = FIGURE_MAKERS[name](results)
    assert figure
    pyplot.close(figure)
    return figure


@cache
def origin_now(name: str, folder: Path = RESULTS) -> str:
    """The source that the figure would have if it were drawn now."""
    results = Results([folder])
    drawn(name, results)
    return origin_of(results.read)


@pytest.mark.parametrize("name", FIGURE_MAKERS)
def test_every_committed_figure_is_drawn_from_the_committed_results(name: str) -> None:
    for suffix in (".svg", ".png"):
        assert origin_in(FIGURES / f"{name}{suffix}") == origin_now(name), (
            "drawn from other results: run python benchmarks/plot.py"
        )


def test_a_changed_result_changes_its_figures(tmp_path: Path) -> None:
    shutil.copytree(RESULTS, tmp_path, dirs_exist_ok=True)
    eight = json.loads((RESULTS / "eight.json").read_text())
    save(tmp_path / "eight.json", {**eight, "commit": "another"})
    other = {name for name in FIGURE_MAKERS if origin_now(name, tmp_path) != origin_now(name)}
    assert other == {"who-waited"}


def test_every_committed_result_is_used() -> None:
    in_figures = {used for name in FIGURE_MAKERS for used in re.findall(r"([\w-]+)\.json", origin_now(name))}
    sources = [claim.source for file in texts() for claim in claims_in(file.read_text())]
    in_texts = {path.split("/")[0] for source in sources for path in source.split(" over ")} | {SCENARIO}
    assert {file.stem for file in RESULTS.glob("*.json")} - in_figures - in_texts == set(), (
        "used in no figure and in no text: use it or remove it"
    )


def test_peers_measured_on_another_machine_are_not_drawn(tmp_path: Path) -> None:
    shutil.copy(RESULTS / "concurrency.json", tmp_path)
    machine = json.loads((RESULTS / "concurrency.json").read_text())["machine"]
    engine = json.loads((RESULTS / "engine.json").read_text())
    for cores, panels in ((machine["cores"], 2), (machine["cores"] + 1, 1)):
        save(tmp_path / "engine.json", {**engine, "machine": {**machine, "cores": cores}})
        figure = drawn("throughput", Results([tmp_path]))
        assert len(figure.axes) == panels


def test_the_title_compares_at_a_level_measured_for_both_rungs(tmp_path: Path) -> None:
    concurrency = json.loads((RESULTS / "concurrency.json").read_text())
    concurrency["summary"]["02"].pop("32", None)
    save(tmp_path / "concurrency.json", concurrency)
    figure = drawn("throughput", Results([tmp_path]))
    assert figure.get_suptitle().startswith("16 clients together")


def test_latency_is_drawn_at_the_percentile_of_the_knee() -> None:
    arrivals = Results([RESULTS])
    figure = drawn("latency-and-rate", arrivals)
    summary = (arrivals("arrivals") or {})["summary"]["04"]
    for panel, key, divisor in zip(figure.axes, ("p90_ttft_ms", "p90_tpot_ms"), (1000, 1), strict=True):
        assert "90th percentile" in panel.get_ylabel()
        (line,) = [line for line in panel.get_lines() if line.get_label() == NAMES["04"]]
        shown = [summary[label][key]["median"] / divisor for label in sorted(summary, key=float)]
        assert np.asarray(line.get_ydata()).tolist() == pytest.approx(shown)


def test_a_rung_without_streaming_has_no_tpot_line() -> None:
    figure = drawn("latency-and-rate", Results([RESULTS]))
    names = [{line.get_label() for line in panel.get_lines()} for panel in figure.axes]
    assert [NAMES["01"] in each for each in names] == [True, False]
    assert all("_tpot_ms" not in key for key in summary_keys("arrivals", "01"))


def summary_keys(name: str, contender: str) -> set[str]:
    summary = json.loads((RESULTS / f"{name}.json").read_text())["summary"][contender]
    return {key for figures in summary.values() for key in figures}


def test_without_results_the_error_names_the_command_to_run(tmp_path: Path) -> None:
    done = run_python(SCRIPT, str(tmp_path), "--figures", str(tmp_path))
    assert done.returncode == 1
    assert "run benchmarks/run.py first" in one_line(done.stderr)


def test_results_from_several_folders_are_merged(tmp_path: Path) -> None:
    mine = json.loads((RESULTS / "burst.json").read_text())
    runs = [{**run, "contender": "vllm"} for run in mine["runs"][:1]]
    save(tmp_path / "burst.json", {**mine, "runs": runs, "summary": {"vllm": {}}})
    merged = Results([RESULTS, tmp_path])("burst")
    assert merged
    assert merged["runs"] == mine["runs"] + runs
    assert merged["summary"].keys() == {*mine["summary"], "vllm"}


def test_the_knee_is_the_last_rate_before_the_slo_is_missed() -> None:
    def summary(**percent: float) -> dict[str, dict[str, dict[str, float]]]:
        return {rate[1:]: {"good_percent": {"median": value}} for rate, value in percent.items()}

    assert knee_of(summary(_2=100.0, _8=95.0, _12=40.0)) == "8"
    assert knee_of(summary(_2=100.0, _8=50.0, _12=95.0)) == "2"
    assert knee_of(summary(_2=10.0)) is None


def test_rungs_with_the_same_knee_are_named_together() -> None:
    knees = {"01": None, "02": None, "03": "0.5", "04": "6", "05": "6"}
    assert told(knees, 0.5) == "6 on 04 and 05, 0.5 on 03, under 0.5 on 01 and 02"


def test_line_labels_do_not_overlap() -> None:
    heights = [0.5, 0.1, 0.51, 0.49, 0.9]
    places = apart(heights, 0.06)
    assert [places[1], places[4]] == [0.1, 0.9]
    assert sorted(range(5), key=places.__getitem__) == sorted(range(5), key=heights.__getitem__)
    ordered = sorted(places)
    assert all(high - low > 0.059 for low, high in pairwise(ordered))
