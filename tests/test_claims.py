"""Tests that numbers in texts equal the committed results, and that metric definitions are correct."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import claims, definitions, demos
from benchmarks.definitions import Request
from benchmarks.results_file import RESULTS, save
from ladder import ROOT

every_text = pytest.mark.parametrize("file", claims.texts(), ids=lambda file: str(file.relative_to(ROOT)))


@every_text
def test_numbers_in_texts_equal_the_measured_results(file: Path) -> None:
    mistakes = claims.wrong(file.read_text())
    assert mistakes == [], (
        "new results? python -m benchmarks.claims; only a trial? git checkout benchmarks/results"
    )


@every_text
def test_every_measured_number_has_a_source(file: Path) -> None:
    assert claims.without_source(file.read_text()) == []


RESULTS_USED = sorted(
    {
        path.split("/")[0]
        for file in claims.texts()
        for claim in claims.claims_in(file.read_text())
        for path in claim.source.split(" over ")
        if "/" in path and not path.startswith("definitions/")
    }
)


def test_the_texts_use_several_results() -> None:
    assert {"README.md", "NOTES.md"} < {file.name for file in claims.texts()}
    assert {"demos", "engine", "one_client", "choices", "training", "predictors"} < set(RESULTS_USED)


@pytest.mark.parametrize("name", RESULTS_USED)
def test_numbers_whose_result_is_missing_are_reported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder, ignore=shutil.ignore_patterns(f"{name}.json"))
    if name in claims.ELSEWHERE:
        monkeypatch.setitem(claims.ELSEWHERE, name, tmp_path / "missing.json")
    mistakes = [mistake for file in claims.texts() for mistake in claims.wrong(file.read_text(), folder)]
    assert any(f"no result at {name}/" in mistake for mistake in mistakes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "speed.json", {"fast": {"ms": 12.345}, "slow": [{"ms": 2469.0}]})
    return tmp_path


def test_a_number_is_checked_with_its_own_decimals(folder: Path) -> None:
    text = "It took 12.3 ms<!-- speed/fast/ms --> and 2,469<!-- speed/slow/0/ms --> ms."
    assert claims.wrong(text, folder) == []
    assert claims.wrong(text.replace("12.3", "12.4"), folder) == ["12.4 should be 12.3 (speed/fast/ms)"]
    assert claims.wrong(text.replace("12.3", "12"), folder) == []


def test_a_number_can_be_a_ratio_or_in_another_unit(folder: Path) -> None:
    text = "200 times<!-- speed/slow/0/ms over speed/fast/ms -->, 2.5 s<!-- speed/slow/0/ms over 1000 -->"
    text += ", 81 a second<!-- 1000 over speed/fast/ms -->"
    assert claims.wrong(text, folder) == []


def test_a_path_without_a_result_is_reported(folder: Path) -> None:
    for source in ("speed/fast/s", "speed/slow/7/ms", "speed/fast", "other/fast/ms"):
        (mistake,) = claims.wrong(f"1 ms<!-- {source} -->", folder)
        assert mistake.startswith("1: ")


def test_a_comparison_must_be_true(folder: Path) -> None:
    less, more, nothing = "speed/fast/ms", "speed/slow/0/ms", "speed/fast/s"
    assert claims.wrong(f"The fast one is faster<!-- {less} less than {more} -->.", folder) == []
    for false in (f"{more} less than {less}", f"{less} less than {less}", f"{nothing} less than {more}"):
        assert len(claims.wrong(f"It takes 12.3 ms<!-- {less} -->, less<!-- {false} -->.", folder)) == 1
    assert claims.claims_in(f"rung 04<!-- {less} less than {more} -->") == []


def test_numbers_are_filled_in(folder: Path) -> None:
    text = "It took 9.9 ms<!-- speed/fast/ms -->, asked every 50 ms<!-- chosen -->."
    assert claims.filled_in(text, folder) == text.replace("9.9", "12.3")


def test_a_measured_number_without_a_source_is_reported() -> None:
    assert claims.without_source("It took 152 ms.") == ["152 ms"]
    assert claims.without_source("1,234 tokens/s and 7 times") == ["1,234 tokens/s", "7 times"]
    assert claims.without_source("| rung 04 | 12 | 3.4 |\n| 04 | 5 passes |") == ["12", "3.4", "5 passes"]
    cell = {"cell_type": "markdown", "source": ["It took\n", "5 ms."]}
    code = {"cell_type": "code", "source": ["# 9 ms"], "outputs": ["7 ms"]}
    assert claims.without_source(json.dumps({"cells": [cell, code]})) == ["5 ms"]
    assert not claims.without_source(
        "50 ms<!-- chosen -->, `5 ms`, 8 clients, rung 04, 3 settings\n```\n9 ms\n```"
    )


def test_each_definition_computes_what_it_describes() -> None:
    trace = [Request((1.0, 1.5, 4.0), 4.5), Request((1.0, 2.0), 2.0)]
    assert definitions.tpot_of_vllm(trace) == [1.5, 1.0]
    assert definitions.tpot_of_this_repository(trace) == [1.75, 1.0]
    assert definitions.tpot_of_guidellm(trace) == [4 / 3, 1.0]
    assert definitions.itl_of_llmperf(trace) == [4 / 3, 1.0]
    assert definitions.itl_of_vllm(trace) == [0.5, 2.5, 1.0]


def test_the_page_of_rung_11_shows_what_its_demo_measured() -> None:
    shown = json.loads(demos.MEASURED.read_text())["figures"]
    assert shown == json.loads(demos.DEMOS.read_text())["rungs"]["11"]["summary"]


def test_medians_of_a_demo_ignore_missing_values() -> None:
    runs = [{"02": {"ms": value, "never": None}} for value in (3.0, None, 1.0, 2.0)]
    assert demos.medians(runs) == {"02": {"ms": 2.0, "never": None}}


def test_the_trace_is_a_committed_run() -> None:
    trace = definitions.read_trace()
    assert len(trace) == 4
    assert all(one.first < one.last <= one.ended + 1e-3 for one in trace)
    assert definitions.compute().keys() == definitions.DEFINITIONS.keys()
