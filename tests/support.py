"""Helpers for several test files: rungs, servers, requests over HTTP, a decoder that reports its passes.

Nothing here sleeps for a fixed time. Only `eventually` polls, with a bounded number of tries.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
from fastapi import FastAPI
from flask import Flask
from torch import Tensor
from waitress.server import create_server

from ladder import ROOT
from ladder.lab.client import DONE, Client, Measurement
from ladder.lab.launch import RungProcess
from ladder.llm.cache import KVCache
from ladder.llm.decoder import Decoder
from ladder.llm.loading import BUNDLED, Model
from ladder.web.server import NO_WEBSOCKETS, Lifecycle, Listener, ReadyServer, WebSocketSettings, listen
from ladder.web.sse import Event, EventParser

ENGINE_TRACK = ("01", "09")
"""First and last rung of the track that serves a language model."""

STORY = "Tell me a story about a fox."
QUESTION = "What is 2 + 2?"
EMOJI = "Wie geht es dir, 👩🏽‍🚀 🇩🇪? 你好 שלום"

PROMPTS = [
    STORY,
    QUESTION,
    "Count from 1 to 12.",
    "What is continuous batching?",
    EMOJI,
    "Tell me a story in emoji.",
    "Hello",
    "Tell me a story about a bear and a small bird that wanted to learn how to fly. " * 3,
    "1",
]
"""Prompts of different lengths, kinds and scripts."""

T = TypeVar("T")


SCRIPTS = sorted(path.name for path in ROOT.glob("[0-9][0-9]_*.py"))
"""Every rung, in order."""

RUNGS = [script for script in SCRIPTS if ENGINE_TRACK[0] <= script[:2] <= ENGINE_TRACK[1]]
"""The rungs that serve a language model."""
STREAMING_RUNGS = [script for script in RUNGS if script[:2] >= "02"]


def import_rung(script: str) -> ModuleType:
    return importlib.import_module(script.removesuffix(".py"))


def run_rung(script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a rung's script until it exits."""
    return run_python(str(ROOT / script), *flags)


def run_python(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


async def eventually(
    probe: Callable[[], Awaitable[T]], holds: Callable[[T], bool], tries: int = 600, pause: float = 0.03
) -> T:
    """Poll until the result satisfies `holds`, and return it; fail after `tries`."""
    for _ in range(tries):
        answer = await probe()
        if holds(answer):
            return answer
        await asyncio.sleep(pause)
    raise AssertionError(f"after {tries} tries still {answer}")


@dataclass(frozen=True)
class Answer:
    """A whole HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Event]:
        return list(EventParser().feed(self.body))

    def tokens(self) -> list[dict[str, Any]]:
        """The token events of a stream, without the terminal event."""
        return [json.loads(event.data) for event in self.events() if is_token(event)]

    def error(self) -> Any:
        """The error event of a stream that failed."""
        (event,) = [event for event in self.events() if event.name == "error"]
        return json.loads(event.data)["error"]


def is_token(event: Event) -> bool:
    return event.name == "message" and event.data != DONE


def read_answer(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def make_request(prompt: str, **settings: Any) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, path, body and headers of POST /generate."""
    body = json.dumps({"prompt": prompt, **settings}).encode()
    return "POST", "/generate", body, {"content-type": "application/json"}


def raw_request(prompt: str, **settings: Any) -> bytes:
    method, path, body, headers = make_request(prompt, **settings)
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def long_stream(client: Client) -> AsyncIterator[asyncio.Task[Measurement]]:
    """A stream that has sent its first token; the client disconnects at the end of the block."""
    begun = asyncio.Event()
    request = client.generate(STORY, max_tokens=3000, stream=True, on_token=lambda *_: begun.set())
    task = asyncio.create_task(request)
    await begun.wait()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass(frozen=True)
class Server:
    """A running server, and the requests that a test sends to it."""

    url: str

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    @property
    def netloc(self) -> str:
        return urlsplit(self.url).netloc

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=60)

    def raw(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=60)

    def request(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
    ) -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path, body, {"content-type": "application/json", **headers})
            return read_answer(connection)
        finally:
            connection.close()

    def post(self, body: bytes) -> Answer:
        return self.request("POST", "/generate", body)

    def generate(self, prompt: str, **settings: Any) -> Answer:
        return self.post(make_request(prompt, **settings)[2])

    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = self.request("GET", "/health").json()
        return health

    async def health_when(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        return await eventually(lambda: asyncio.to_thread(self.health), holds)

    def idle(self) -> dict[str, Any]:
        """Wait until no request is in flight, and return that /health."""
        return asyncio.run(self.health_when(is_idle))


def is_idle(health: dict[str, Any]) -> bool:
    return bool(health["running"] + health["waiting"] == 0)


@dataclass(frozen=True)
class RungServer(Server):
    """A rung in a process of its own."""

    script: str
    process: RungProcess

    @property
    def number(self) -> str:
        return self.script[:2]

    @property
    def streams(self) -> bool:
        return self.script in STREAMING_RUNGS

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))


class ServerPool:
    """Starts each kind of server once, at its first use."""

    def __init__(self) -> None:
        self._servers: dict[tuple[str, ...], RungServer] = {}

    def __call__(self, script: str, *flags: str) -> RungServer:
        key = (script, *flags)
        if key not in self._servers:
            self._servers[key] = start_rung(script, *flags)
        return self._servers[key]

    def close(self) -> None:
        for server in self._servers.values():
            server.process.close()


def start_rung(script: str, *flags: str) -> RungServer:
    """One thread for torch: many servers share the machine, and the model is small."""
    threads = ("--threads", "1") if script in RUNGS else ()
    process = RungProcess(script, (*threads, *flags))
    try:
        return RungServer(process.wait_ready(), script, process)
    except BaseException:
        process.close()
        raise


@contextmanager
def own_rung(script: str, *flags: str) -> Iterator[RungServer]:
    """A server for one test, because that test stops it or changes its state."""
    server = start_rung(script, *flags)
    try:
        yield server
    finally:
        server.process.close()


@contextmanager
def serving(
    app: FastAPI, engine: Lifecycle, websockets: WebSocketSettings = NO_WEBSOCKETS
) -> Iterator[Server]:
    """An ASGI app behind a real uvicorn in this process, for engines that a test has modified."""
    listener = listen("127.0.0.1", 0)
    host, port = listener.getsockname()
    server = ReadyServer(app, Listener(listener), engine, websockets)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        # The socket already listens, so a request waits until uvicorn accepts it.
        yield Server(f"http://{host}:{port}")
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


Before = Callable[[str, Sequence[int]], None]
"""Called with "prefill" or "decode" and the slots, before that forward pass."""


class WatchedDecoder(Decoder):
    """The same model; calls `before` ahead of every forward pass."""

    def __init__(self, decoder: Decoder, before: Before) -> None:
        self.__dict__.update(decoder.__dict__)
        self._before = before

    def prefill(self, cache: KVCache, slots: Sequence[int], chunks: Sequence[Sequence[int]]) -> Tensor:
        self._before("prefill", slots)
        return super().prefill(cache, slots, chunks)

    def decode(self, cache: KVCache, slots: Sequence[int], tokens: Sequence[int] | Tensor) -> Tensor:
        self._before("decode", slots)
        return super().decode(cache, slots, tokens)


def watched(model: Model, before: Before) -> Model:
    return Model(model.name, WatchedDecoder(model.decoder, before), model.tokenizer, model.stop_ids)


@dataclass
class Passes:
    """A `Before` that counts the passes and makes one of them fail."""

    fail_at: int = 0
    kinds: list[str] = field(default_factory=list)

    def __call__(self, kind: str, _slots: Sequence[int]) -> None:
        self.kinds.append(kind)
        if len(self.kinds) == self.fail_at:
            raise RuntimeError("the model broke")


@dataclass
class Gate:
    """Stops the model before its third forward pass, until the test opens it."""

    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)
    passes: int = 0

    def __call__(self, _kind: str, _slots: Sequence[int]) -> None:
        self.passes += 1
        if self.passes == 3:
            self.reached.set()
            assert self.opened.wait(timeout=60)


@dataclass(frozen=True)
class Waitress(Server):
    """The rung's app behind the server that runs it, and the requests that wait for a worker."""

    waiting: Sequence[object]


@contextmanager
def serving_flask(app: Flask, workers: int) -> Iterator[Waitress]:
    listener = listen("127.0.0.1", 0)
    host, port = listener.getsockname()
    server: Any = create_server(app, sockets=[listener], threads=workers)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield Waitress(f"http://{host}:{port}", server.task_dispatcher.queue)
    finally:
        with suppress(OSError):  # closing may close the trigger before its pull ends
            server.trigger.pull_trigger(server.close)
        thread.join()
        listener.close()


class Oracle:
    """Transformers' own greedy `generate` over a checkpoint, in float32.

    The tests of all rungs ask for the same prompts, so each output is generated once.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        self._outputs: dict[tuple[object, ...], list[int]] = {}

    def generate(self, prompt_ids: list[int], max_tokens: int, **settings: Any) -> list[int]:
        key = (*prompt_ids, max_tokens, *sorted(settings.items()))
        if key not in self._outputs:
            self._outputs[key] = self._generate(prompt_ids, max_tokens, **settings)
        return self._outputs[key].copy()

    @torch.inference_mode()
    def _generate(self, prompt_ids: list[int], max_tokens: int, **settings: Any) -> list[int]:
        output = self.model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
            **settings,
        )
        tokens: list[int] = output[0, len(prompt_ids) :].tolist()
        return tokens

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> Tensor:
        """After every token, [tokens, vocabulary]."""
        logits: Tensor = self.model(torch.tensor([ids])).logits[0]
        return logits


def untrained(config: Any) -> Any:
    """Transformers' model of a configuration, with its random weights in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]


def copy_tokenizer(directory: Path) -> None:
    """Give a checkpoint made in a test the bundled tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, directory)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def make_endless(directory: Path) -> Path:
    """The bundled model with a longer context and no end token: it stops at max_tokens or an abort."""
    shutil.copytree(BUNDLED, directory)
    edit_json(directory / "config.json", eos_token_id=None, max_position_embeddings=4096)
    (directory / "generation_config.json").unlink()
    return directory


def one_line(text: str) -> str:
    """The text of stderr, which must be one line and no traceback."""
    assert re.fullmatch(r"[^\n]+\n", text), text
    assert "Traceback" not in text
    return text.strip()


def tracked_files() -> list[Path]:
    """Files that git tracks or would track; without git, as in an archive, every file that is not hidden."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]
    return [
        file
        for file in ROOT.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
    ]
