"""Tests the benchmark: it measures rungs and other servers, and it resumes after an interruption."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from benchmarks.metrics import LatencyTarget, Played, Record, records, summary_of
from benchmarks.plot import FIGURE_MAKERS
from benchmarks.results_file import save
from benchmarks.run import read_options
from benchmarks.scenarios import (
    Server,
    concurrency,
    keep_busy,
    lengths,
    levels,
    no_faster_together,
    past_the_knee,
    poisson,
    scenarios,
    send_at,
    turns,
)
from ladder import ROOT
from ladder.lab.client import Client, Measurement
from ladder.llm.loading import Model
from ladder.web.server import Lifecycle
from tests.support import RUNGS, ServerPool, one_line, run_python, serving

CONTINUOUS = "04_continuous_batching.py"
SCRIPT = str(ROOT / "benchmarks" / "run.py")

STUB_TEXTS = [" one two", " three", "", " four"]
"""The texts of the stub's chunks: the first has two tokens, the third has one token and no text."""

STUB_TOKENS = 5


def stub() -> FastAPI:
    """A server with OpenAI's API, as vLLM has it; it records its requests."""
    app = FastAPI()
    app.state.asked = []

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "stub-model"}]}

    @app.get("/health")
    async def health() -> None:
        return None

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request) -> StreamingResponse | dict[str, Any]:
        body = await request.json()
        app.state.asked.append(body)
        usage = {"prompt_tokens": 3, "completion_tokens": STUB_TOKENS}
        if not body["stream"]:
            return {"choices": [{"text": "".join(STUB_TEXTS), "finish_reason": "length"}], "usage": usage}

        async def events() -> AsyncIterator[str]:
            for text in STUB_TEXTS:
                yield event({"choices": [{"text": text, "finish_reason": None}]})
            yield event({"choices": [{"text": "", "finish_reason": "length"}]})
            yield event({"choices": [], "usage": usage})
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


@pytest.fixture(scope="module")
def stub_app() -> FastAPI:
    return stub()


@pytest.fixture(scope="module")
def stub_url(stub_app: FastAPI) -> Iterator[str]:
    with serving(stub_app, Lifecycle()) as server:
        yield f"{server.url}/v1/completions"


async def ask(url: str, **settings: Any) -> Measurement:
    async with Client(url) as client:
        return await client.generate("Count.", **settings)


def test_the_client_streams_from_an_openai_server(stub_app: FastAPI, stub_url: str) -> None:
    seen = asyncio.run(ask(stub_url, max_tokens=5, temperature=0, stream=True))
    assert stub_app.state.asked[-1] == {
        "model": "stub-model",
        "prompt": "Count.",
        "max_tokens": 5,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    assert seen.text == "".join(STUB_TEXTS)
    assert (seen.done, seen.finish_reason) == (True, "length")
    assert len(seen.token_times) == 5, "a time for each chunk with a choice, even an empty one"
    assert seen.tokens == STUB_TOKENS, "the server's own count"
    assert seen.tpot == (seen.e2el - seen.ttft) / (STUB_TOKENS - 1)


def test_the_client_accepts_a_non_streaming_openai_response(stub_url: str) -> None:
    seen = asyncio.run(ask(stub_url, max_tokens=5, stream=False))
    assert (seen.text, seen.tokens, seen.done) == ("".join(STUB_TEXTS), STUB_TOKENS, True)
    assert seen.ttft == seen.e2el


def run_module(*flags: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "benchmarks.run", *flags)


def result(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def test_any_openai_compatible_server_can_be_measured(stub_url: str, tmp_path: Path) -> None:
    flags = ["--quick", "--url", stub_url, "--name", "stub", "--output", str(tmp_path)]
    done = run_module(*flags, "--only", "one_client", "concurrency", "slow_reader", "loops")
    assert (done.returncode, done.stderr) == (0, "")
    (alone,) = result(tmp_path, "one_client")["runs"]
    assert (alone["contender"], alone["completed"], alone["output_lens"]) == ("stub", 1, [STUB_TOKENS])
    assert alone["health"]
    levels = result(tmp_path, "concurrency")["summary"]["stub"]
    assert [levels[label]["completed"]["median"] for label in ("1", "4", "16")] == [2, 8, 32]
    assert set(result(tmp_path, "loops")["summary"]["stub"]) == {
        "loops closed",
        "loops as often",
        "loops half as much again",
    }
    assert not (tmp_path / "unfinished.json").exists()


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the README's command, but with the fastest model."""
    folder = tmp_path_factory.mktemp("results")
    flags = ["--quick", "--model", "tiny", "--dtype", "float32", "--threads", "1"]
    done = run_python(SCRIPT, *flags, "--output", str(folder), timeout=400)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_a_quick_run_measures_everything_but_the_large_model(quick_run: Path) -> None:
    assert {file.stem for file in quick_run.iterdir()} == set(scenarios(quick=True))
    for name, scenario in scenarios(quick=True).items():
        assert set(result(quick_run, name)["summary"]) == set(scenario.contenders)


def test_a_quick_run_gives_every_figure(quick_run: Path, tmp_path: Path) -> None:
    done = run_python(str(ROOT / "benchmarks" / "plot.py"), str(quick_run), "--figures", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}{suffix}" for name in FIGURE_MAKERS for suffix in (".svg", ".png")
    }


def test_every_rung_is_measured_by_the_script(quick_run: Path) -> None:
    measured = result(quick_run, "mixed")
    assert measured["command"] == (
        "python benchmarks/run.py --quick --model tiny --dtype float32 --threads 1"
    )
    assert (measured["model"], measured["dtype"], measured["threads"]) == ("tiny", "float32", 1)
    assert measured["machine"]["cores"] >= 1
    assert measured["commit"]
    assert list(measured["summary"]) == [script[:2] for script in RUNGS]
    for run in measured["runs"]:
        assert run["failed"] == 0
        assert (
            run["completed"] == len(run["ttfts"]) == {"short alone": 8, "short": 8, "long": 2}[run["group"]]
        )
        assert run["total_output_tokens"] == sum(run["output_lens"])
        streamed = run["contender"] != "01"
        assert ("median_tpot_ms" in run) == streamed
        assert [len(gaps) for gaps in run["itls"]] == [
            tokens - 1 if streamed else 0 for tokens in run["output_lens"]
        ]


def test_an_interrupted_run_resumes_where_it_stopped(pool: ServerPool, tmp_path: Path) -> None:
    flags = ["--quick", "--url", pool(CONTINUOUS).url, "--name", "mine", "--output", str(tmp_path)]
    flags += ["--only", "one_client", "concurrency", "arrivals"]
    first = subprocess.Popen(
        [sys.executable, SCRIPT, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    # A scenario's file is written when it ends. The last scenario takes seconds: its requests arrive slowly.
    while not (tmp_path / "concurrency.json").exists():
        assert first.poll() is None
    first.send_signal(signal.SIGINT)
    shown, errors = first.communicate()
    assert (first.returncode, errors) == (130, "")
    assert "the same command goes on from there" in shown
    kept = json.loads((tmp_path / "unfinished.json").read_text())["turns"]
    assert len(kept) >= 4

    another = run_python(SCRIPT, *flags[:-1])
    assert another.returncode == 1
    assert "go on with that one, or delete the file" in one_line(another.stderr)

    second = run_python(SCRIPT, *flags)
    assert (second.returncode, second.stderr) == (0, "")
    assert f"going on after {len(kept)} of 7 turns" in second.stdout
    assert result(tmp_path, "arrivals")["rounds"] == 1
    measured_before = [record for turn in kept if turn["key"][0] == "arrivals" for record in turn["records"]]
    assert result(tmp_path, "arrivals")["runs"][: len(measured_before)] == measured_before
    assert not (tmp_path / "unfinished.json").exists()


def test_connection_errors_print_one_line(stub_url: str, tmp_path: Path) -> None:
    no_server = run_module("--url", "http://127.0.0.1:9/v1/completions", "--output", str(tmp_path))
    assert no_server.returncode == 1
    assert "does not answer" in one_line(no_server.stderr)
    wrong_path = run_module("--url", stub_url.removesuffix("/v1/completions"), "--output", str(tmp_path))
    assert wrong_path.returncode == 1
    assert "answered 404" in one_line(wrong_path.stderr)


@pytest.mark.parametrize(
    "flags",
    [
        ["--goodput", "speed:3"],
        ["--goodput", "ttft:soon"],
        ["--name", "x"],
        ["--url", "localhost"],
        ["--only", "x"],
    ],
)
def test_wrong_flags_print_one_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options(flags)
    assert ended.value.code == 2
    assert flags[0].removeprefix("--") in one_line(capsys.readouterr().err)


def seen(sent: float, times: list[float], ended: float, **more: Any) -> Measurement:
    return Measurement(sent=sent, token_times=times, ended=ended, done=True, prompt=" a b", **more)


def test_metrics_have_the_names_of_vllm() -> None:
    good = seen(10.0, [10.1, 10.12, 10.14], 10.14)
    slow = seen(10.5, [11.5, 11.6, 12.0], 12.0)
    lost = Measurement(sent=10.6, ended=10.7, error={"message": "no"})
    (record,) = records(Played({"": [slow, good, lost]}, [(10.0, 0.002), (10.05, 0.004)]), LatencyTarget())
    assert (record["completed"], record["failed"], record["duration"]) == (2, 1, 2.0)
    assert (record["total_input_tokens"], record["total_output_tokens"]) == (4, 6)
    assert (record["request_throughput"], record["request_goodput"], record["output_throughput"]) == (
        1.0,
        0.5,
        3.0,
    )
    assert record["good_percent"] == pytest.approx(100 / 3, abs=1e-4)
    assert (record["mean_ttft_ms"], record["p99_ttft_ms"]) == (550.0, 1000.0)
    assert record["median_tpot_ms"] == 20.0, "a measured value, the lower of two"
    assert record["median_itl_ms"] == 20.0
    assert record["p99_e2el_ms"] == 1500.0
    (ten,) = records(
        Played({"": [seen(0.0, [float(wait)], float(wait)) for wait in range(1, 11)]}), LatencyTarget()
    )
    assert (ten["p90_ttft_ms"], ten["p99_ttft_ms"]) == (9000.0, 10_000.0), "p99 of ten values is the maximum"
    assert (record["start_times"], record["ttfts"], record["output_lens"]) == ([0.0, 0.5], [0.1, 1.0], [3, 3])
    assert record["itls"] == [[0.02, 0.02], [0.1, 0.4]]
    assert (record["p99_health_ms"], record["health"]) == (4.0, [[0.0, 0.002], [0.05, 0.004]])


def test_a_non_streaming_response_has_no_itl_and_no_tpot() -> None:
    whole = seen(0.0, [2.0, 2.0, 2.0], 2.0, total_ms=1500.0)
    (record,) = records(Played({"": [whole]}), LatencyTarget())
    assert (record["itls"], record["server_totals"], record["median_ttft_ms"]) == ([[]], [1.5], 2000.0)
    assert not [key for key in record if key.endswith(("_itl_ms", "_tpot_ms"))], (
        "a TPOT of 0 ms would be misleading"
    )


def test_only_the_ttft_target_applies_to_a_non_streaming_response() -> None:
    assert LatencyTarget(ttft=2500).met(seen(0.0, [2.0, 2.0], 2.0, total_ms=1500.0))
    assert not LatencyTarget(ttft=1500).met(seen(0.0, [2.0, 2.0], 2.0, total_ms=1500.0))
    # Its end is recorded just after its tokens. This difference does not count as time per token.
    assert LatencyTarget(tpot=0.001).met(seen(0.0, [0.4, 0.4], 0.5, total_ms=300.0))


def test_a_summary_has_median_min_and_max_of_the_rounds() -> None:
    runs = [
        {"contender": "04", "label": "8", "round": number, "figure": 10.0 * number} for number in (1, 2, 3)
    ]
    assert summary_of(runs) == {"04": {"8": {"figure": {"median": 20.0, "min": 10.0, "max": 30.0}}}}


def test_prompts_have_the_requested_number_of_tokens(bundled: Model) -> None:
    prompts = [request["prompt"] for request in Server("http://x").requests(20, 64, 1)]
    assert {len(bundled.tokenizer.encode(prompt)) for prompt in prompts} == {64}
    assert len(set(prompts)) == 20
    assert prompts == [request["prompt"] for request in Server("http://y").requests(20, 64, 1)]


def test_arrivals_are_random_and_reproducible() -> None:
    times = poisson(4, 2000)
    assert times == sorted(times) == poisson(4, 2000)
    assert times[-1] == pytest.approx(500, rel=0.01)
    assert poisson(0.5, 8)[-1] <= 16
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert sum(gap < 1 / 4 for gap in gaps) / len(gaps) == pytest.approx(1 - math.exp(-1), rel=0.05)


def test_a_closed_loop_has_at_most_one_request_per_client_in_flight(pool: ServerPool) -> None:
    server = pool(CONTINUOUS)
    requests = Server(server.url).requests(6, 8, 4)
    seen = asyncio.run(keep_busy(server.url, 2, requests))
    assert sorted(one.prompt for one in seen) == sorted(request["prompt"] for request in requests)
    for one in seen:
        assert sum(other.sent < one.sent < other.ended for other in seen) < 2


@pytest.mark.parametrize("quick", [True, False])
def test_in_a_closed_loop_every_client_sends_several_requests_of_different_lengths(quick: bool) -> None:
    for setting in levels(quick):
        asked = lengths(setting["num_prompts"], setting["output_tokens"], setting["range_ratio"])
        assert len(asked) >= 2 * setting["max_concurrency"]
        assert len(set(asked)) > 1


def test_a_closed_loop_requests_its_output_lengths(stub_app: FastAPI, stub_url: str) -> None:
    setting = levels(quick=True)[-1]
    asyncio.run(concurrency(Server(stub_url), setting))
    asked = [body["max_tokens"] for body in stub_app.state.asked[-setting["num_prompts"] :]]
    assert sorted(asked) == sorted(lengths(setting["num_prompts"], 12, 0.5))


def test_lengths_are_mixed_and_reproducible() -> None:
    asked = lengths(24, 40, 0.6)
    assert asked == lengths(24, 40, 0.6)
    assert (min(asked), max(asked)) == (16, 64)
    assert asked != sorted(asked)
    assert {sum(lengths(count, 40, 0.6)) / count for count in (4, 6, 12, 96)} == {40}


def test_high_concurrency_is_skipped_if_it_does_not_raise_throughput() -> None:
    def runs(*speeds: float) -> list[Record]:
        return [
            {"max_concurrency": 2**power, "output_throughput": speed} for power, speed in enumerate(speeds)
        ]

    thirty_two = {"max_concurrency": 32}
    assert no_faster_together(thirty_two, runs(60, 55, 64, 66, 65))
    assert not no_faster_together(thirty_two, runs(60, 110, 190, 280, 390))
    assert not no_faster_together({"max_concurrency": 16}, runs(60, 55, 64, 66, 65)), "texts use this level"


def test_an_open_loop_measures_from_the_scheduled_send_time(pool: ServerPool) -> None:
    server = pool(CONTINUOUS)
    first, second = asyncio.run(send_at(server.url, [0.0, 0.125], Server(server.url).requests(2, 8, 4)))
    assert second.sent - first.sent == pytest.approx(0.125)


def test_rates_past_the_knee_are_skipped() -> None:
    runs = [{"request_rate": rate, "good_percent": percent} for rate, percent in ((2, 60), (4, 40), (8, 10))]
    assert past_the_knee({"request_rate": 16}, runs)
    assert not past_the_knee({"request_rate": 8}, runs), "one rate past the knee is measured"
    assert not past_the_knee({"request_rate": 4}, runs)


@pytest.mark.parametrize("quick", [True, False])
def test_every_contender_runs_every_setting_in_every_round(quick: bool) -> None:
    plan = scenarios(quick)
    keys = [turn.key for turn in turns(plan)]
    assert len(keys) == len(set(keys))
    assert len(keys) == sum(len(one.contenders) * len(one.settings) * one.rounds for one in plan.values())


def test_lists_of_numbers_are_saved_in_one_line(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None], "b": [[1], []], "text": "[ 1, 2 ]", "objects": [{"x": 1}]}
    save(tmp_path / "file.json", content)
    text = (tmp_path / "file.json").read_text()
    assert json.loads(text) == content
    assert "[1,2.5,null]" in text
