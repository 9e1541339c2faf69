"""Tests that every benchmark runs, prints its ratios, and writes samples with their origin."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from benchmarks import engine, llama_cpp
from ladder import ROOT
from ladder.errors import UserError
from ladder.lab.client import Client, Completions, Measurement
from ladder.lab.launch import ServerProcess, running_rungs
from ladder.lab.scenes import Observation


def test_overhead(tmp_path: Path) -> None:
    output = tmp_path / "overhead.json"
    command = [sys.executable, "-m", "benchmarks.overhead", "--model", "tiny", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(output.read_text())
    assert len(result["samples"]["bare"]) == len(result["samples"]["http"]) == 2
    assert f"{result['first_token_ratio']:.3f}" in done.stdout
    assert f"{result['tokens_per_second_ratio']:.3f}" in done.stdout
    assert (
        result["command"]
        == "python -m benchmarks.overhead --rung 02_async_streaming.py --model tiny --rounds 2"
    )
    assert result["machine"]["cores"] >= 1


def test_engine(tmp_path: Path, endless: Path) -> None:
    output = tmp_path / "engine.json"
    flags = ["--model", str(endless), "--dtype", "float32", "--rounds", "1", "--concurrency", "1", "2"]
    chosen = ["--only", "02", "04", "bare", "transformers", "handmade"]
    short = "from benchmarks import engine; engine.OUTPUT_TOKENS = 8; engine.main()"
    command = [sys.executable, "-c", short, *flags, *chosen, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(output.read_text())
    measured = {(burst["contender"], burst["concurrency"]) for burst in result["samples"]}
    assert measured == {(name, clients) for name in chosen[1:] for clients in (1, 2)}
    assert result["summary"]["ratios"].keys() == {"04 / 02", "04 / transformers"}
    assert all(burst["tokens_per_second"] > 0 for burst in result["samples"])
    assert "04 / transformers" in done.stdout


def test_all_contenders_get_the_same_prompts_and_each_client_its_own(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = engine.asked_by(4, str(endless))
    assert len({one.request["prompt"] for one in asked}) == 4
    assert len({tuple(one.prompt_ids) for one in asked}) == 4
    assert asked[:2] == engine.asked_by(2, str(endless))

    sent: list[tuple[str, Any, Any]] = []

    async def observe(url: str, load: Any, interval: float | None) -> Observation:
        sent.append((url, load, interval))
        seen = Measurement(sent=0.0, token_times=[1.0] * engine.OUTPUT_TOKENS, ended=1.0, done=True)
        return Observation([seen] * len(load), [])

    monkeypatch.setattr(engine, "observe", observe)
    for name in ("04", "handmade"):
        asyncio.run(engine.OverHttp(name, name).burst(asked))
    prompts = [one.request for one in asked]
    assert sent == [("04", prompts, None), ("handmade", prompts, None)], "/health is not probed"

    repeat = "for line in __import__('sys').stdin: print(len(set(map(tuple, eval(line)['prompts']))))"
    with subprocess.Popen(
        [sys.executable, "-uc", repeat], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as peer:
        burst = asyncio.run(engine.OverPipe("bare", peer).burst(asked))
        peer.kill()
    assert burst.tokens_per_second == engine.OUTPUT_TOKENS, "four different prompts"


def test_llama_cpp_runs_the_same_weights_as_the_rungs() -> None:
    pytest.importorskip("xllamacpp")
    prompt = {"prompt": " a a a a", "max_tokens": 8, "temperature": 0}
    server = ServerProcess("-m", "benchmarks.llama_cpp", "random:smollm2-135m", "float32")
    with (
        closing(server),
        running_rungs(
            ("02_async_streaming.py", ["--model", "random:smollm2-135m", "--dtype", "float32"])
        ) as (rung,),
    ):
        texts = [asyncio.run(text_of(url, prompt)) for url in (rung, server.wait_ready() + Completions.path)]
    assert texts[0] == texts[1] != ""


async def text_of(url: str, prompt: dict[str, Any]) -> str:
    async with Client(url) as client:
        return (await client.generate(**prompt)).text


FAKE_LLAMA_SERVER = """#!{python}
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
if "--version" in sys.argv:
    sys.exit(print("version: 7 (abc)", file=sys.stderr))
class Handler(BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if Handler.asked > 2 else 503)
        self.end_headers()
        self.wfile.write(" ".join(sys.argv[1:]).encode())
if {fails}:
    sys.exit(3)
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
"""Answers 503 while it loads the model, as llama.cpp's does."""


@pytest.fixture
def fake_llama_server(tmp_path: Path) -> Callable[[bool], Path]:
    def write(fails: bool) -> Path:
        file = tmp_path / "llama-server"
        file.write_text(FAKE_LLAMA_SERVER.format(python=sys.executable, fails=fails))
        file.chmod(0o755)
        return file

    return write


def test_a_built_llama_server_is_started_without_its_prompt_cache(
    fake_llama_server: Callable[[bool], Path],
) -> None:
    server = fake_llama_server(False)
    assert llama_cpp.build_of(server) == "built on this machine, version: 7 (abc)"
    with llama_cpp.running_build(server, Path("model.gguf")) as url, urlopen(f"{url}/flags") as answer:
        flags = answer.read().decode()
    assert flags.startswith("--model model.gguf --host 127.0.0.1 --port ")
    assert "--parallel 32 --ctx-size 65536" in flags
    assert flags.endswith("--no-cache-prompt --cache-ram 0")
    with pytest.raises(OSError, match="refused"):
        urlopen(f"{url}/health")


def test_a_llama_server_that_ends_is_named(fake_llama_server: Callable[[bool], Path]) -> None:
    server = fake_llama_server(True)
    with (
        pytest.raises(UserError, match=r"has ended with status 3: .*llama-server --model x\.gguf"),
        llama_cpp.running_build(server, Path("x.gguf")),
    ):
        pass
    with pytest.raises(UserError, match="give the path of a llama-server"):
        llama_cpp.build_of(server.parent)


def test_an_unsupported_model_for_llama_cpp_prints_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks.llama_cpp", "random:qwen3-0.6b", "int8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "only a random model of Llama's architecture" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_products(tmp_path: Path) -> None:
    output = tmp_path / "products.json"
    shallow = "from benchmarks import products; products.LAYERS = 2; products.main()"
    command = [sys.executable, "-c", shallow, "--rounds", "1", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for by_rows in json.loads(output.read_text())["milliseconds"].values():
        assert min(by_rows.values()) > 0
