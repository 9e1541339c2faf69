"""Tests that every demo starts its servers, measures, shows its results, and stops its servers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ladder import ROOT
from tests.documents import README, Command, commands_in

IN_README = [command for command in commands_in(README.read_text()) if "--demo" in command]
PICTURES = (".svg", ".png")
RUNGS = sorted(file.name for file in ROOT.glob("[0-9][0-9]_*.py"))


def run_demo(rung: str, *flags: str) -> str:
    """The output of a demo, which must succeed and print nothing on stderr."""
    command = [sys.executable, rung, "--demo", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each demo's JSON, and the plot of the same run."""
    folder = tmp_path_factory.mktemp("plots")
    results = {}
    for rung in RUNGS:
        plot = folder / f"{rung}.svg"
        results[rung] = {**json.loads(run_demo(rung, "--json", "--plot", str(plot))), "plot": plot}
    return results


@pytest.mark.parametrize("rung", RUNGS)
def test_json_has_the_figures_the_machine_and_the_command(figures: dict[str, Any], rung: str) -> None:
    result = figures[rung]
    assert result["machine"]["cores"] >= 1
    assert result["command"].startswith(f"python {rung} --demo --json")
    for column in result["figures"].values():
        assert all(value >= 0 for value in column.values())
        if "complete_ms" in column:
            assert column["first_token_ms"] <= column["complete_ms"]


@pytest.mark.parametrize("rung", RUNGS)
def test_the_plot_shows_every_column(figures: dict[str, Any], rung: str) -> None:
    drawing: Path = figures[rung]["plot"]
    text = drawing.read_text()
    for column in figures[rung]["figures"]:
        assert f"<!-- {column} -->" in text


@pytest.mark.parametrize("command", IN_README, ids=" ".join)
def test_the_terminal_shows_a_table_of_every_column(
    figures: dict[str, Any], command: Command, tmp_path: Path
) -> None:
    """With the commands of the README, but plots go to a temporary folder."""
    rung = command[1]
    flags = [str(tmp_path / word) if word.endswith(PICTURES) else word for word in command[2:]]
    flags.remove("--demo")
    shown = run_demo(rung, *flags)
    for column in figures[rung]["figures"]:
        assert column in shown
    assert f"python {rung} --demo" in shown
    assert {file.name for file in tmp_path.iterdir()} == {word for word in command if word.endswith(PICTURES)}


def test_rung_01_runs_all_passes_after_a_disconnect(figures: dict[str, Any]) -> None:
    for column in figures["01_flask_blocking.py"]["figures"].values():
        assert column["first_token_ms"] == column["complete_ms"]
        assert column["passes_after_leaving"] == column["passes"]


def test_rung_02_streams_the_first_token_early_and_stops_after_a_disconnect(figures: dict[str, Any]) -> None:
    columns = figures["02_async_streaming.py"]["figures"]
    assert columns["02, stream: true"]["first_token_ms"] < columns["02, stream: true"]["complete_ms"]
    assert columns["02, stream: false"]["first_token_ms"] == columns["02, stream: false"]["complete_ms"]
    for name, column in columns.items():
        assert (column["passes_after_leaving"] == column["passes"]) == (name == "01")


def test_rung_03_has_more_throughput_and_makes_a_late_request_wait(figures: dict[str, Any]) -> None:
    columns = figures["03_batching.py"]["figures"]
    assert columns["03"]["tokens_per_second_8"] > columns["02"]["tokens_per_second_8"]
    assert columns["03"]["late_ms"] > columns["02"]["late_ms"]
    assert 50 < columns["03"]["wasted_percent"] < 90


def test_rung_04_lets_a_late_short_request_finish_first(figures: dict[str, Any]) -> None:
    columns = figures["04_continuous_batching.py"]["figures"]
    assert columns["03"]["late_done_ms"] > columns["03"]["long_done_ms"]
    assert columns["04"]["late_done_ms"] < columns["04"]["long_done_ms"]
    assert columns["04"]["wasted_percent"] < columns["03"]["wasted_percent"]
    assert columns["04"]["steps"] < columns["03"]["steps"]


def test_rung_05_replaces_a_dead_engine(figures: dict[str, Any]) -> None:
    column = figures["05_async_scheduling.py"]["figures"]["05"]
    assert column["alive_meanwhile"] == column["answered_again"] == 1
    assert column["error_after_ms"] < column["ready_after_ms"]


def test_rung_10_is_faster_with_one_pass_per_batch_and_swaps_lose_no_request(
    figures: dict[str, Any],
) -> None:
    columns = figures["10_model_versions.py"]["figures"]
    assert sum(column["users"] for column in columns.values()) == 10_000
    for column in columns.values():
        assert column["task_a_row_ms"] > column["one_pass_ms"]
        assert 1 <= column["passes_for_64"] <= 64
        assert column["swap_failures"] == 0
        assert column["swap_requests"] > 0
    assert columns["v2"]["correct_percent"] > columns["v1"]["correct_percent"]


def test_rung_11_evicts_stalled_clients_and_loses_no_event(figures: dict[str, Any]) -> None:
    columns = figures["11_realtime.py"]["figures"]
    assert columns["WebSocket"]["evicted"] == 5
    assert columns["SSE"]["lost"] == 0
    assert columns["plain HTTP"]["down_bytes"] > columns["WebSocket"]["down_bytes"]


def test_rung_12_stays_responsive_with_a_slow_disk_and_keeps_no_file_in_memory(
    figures: dict[str, Any],
) -> None:
    columns = figures["12_file_streaming.py"]["figures"]
    assert columns["blocking, 8 KiB"]["slow_health_ms"] > columns["12, 8 KiB"]["slow_health_ms"]
    ours = [column for name, column in columns.items() if name.startswith("12")]
    assert columns["read all"]["memory_mib"] > max(column["memory_mib"] for column in ours)
    stored = columns["12, 256 KiB"]
    assert columns["read all"]["upload_memory_mib"] > stored["upload_memory_mib"]


@pytest.mark.usefixtures("fresh_interpreters")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_a_demo_stops_its_servers(number: signal.Signals, status: int) -> None:
    command = [sys.executable, "02_async_streaming.py", "--demo"]
    demo = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children")
    while len(servers := children.read_text().split()) < 2:
        assert demo.poll() is None
    demo.send_signal(number)
    _, errors = demo.communicate()
    assert (demo.returncode, errors) == (status, "")
    assert not [pid for pid in servers if Path(f"/proc/{pid}").exists()]
