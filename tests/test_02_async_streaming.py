"""Tests rung 02: tokens stream, /health responds during a generation, a disconnect stops the request.

Injected faults: clients that disconnect at a given event or never read, a model that fails in the middle,
a server that is shut down.
"""

from __future__ import annotations

import asyncio
import errno
import json
import signal
from collections.abc import AsyncGenerator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ladder.errors import ServerStopping
from ladder.lab.client import Client, Measurement
from ladder.llm.loading import Model, load_model
from ladder.web.http import EventStream
from ladder.web.schema import GenerateRequest
from tests.faults import fault
from tests.support import (
    QUESTION,
    STORY,
    Passes,
    Server,
    eventually,
    import_rung,
    long_stream,
    own_rung,
    serving,
    watched,
)

SCRIPT = "02_async_streaming.py"
rung = import_rung(SCRIPT)

Message = MutableMapping[str, Any]


@pytest.fixture(scope="module")
def endless_model(endless: Path) -> Model:
    return load_model(str(endless), dtype="float32", device="cpu")


def engine_over(model: Model, passes: Passes) -> Any:
    return rung.Engine(watched(model, passes))


class AsgiClient:
    """A client at the ASGI boundary: it sends one request, then disconnects or stops reading as set."""

    def __init__(self, stream: bool, max_tokens: int = 500) -> None:
        body = {"prompt": STORY, "max_tokens": max_tokens, "stream": stream, "seed": 1}
        self.body = json.dumps(body).encode()
        self.sent_body = False
        self.disconnected = asyncio.Event()
        self.disconnect_at = 0
        self.stop_reading_at = 0
        self.chunks: list[bytes] = []

    async def receive(self) -> Message:
        if not self.sent_body:
            self.sent_body = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            return
        self.chunks.append(message["body"])
        if len(self.chunks) == self.disconnect_at:
            self.disconnected.set()
        if len(self.chunks) == self.stop_reading_at:
            await asyncio.Event().wait()

    async def request(self, app: Any) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn sends it
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/generate",
            "raw_path": b"/generate",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        async with asyncio.timeout(60):  # an app that never ends fails the test instead of blocking it
            await app(scope, self.receive, self.send)


async def settle(engine: Any) -> None:
    """Wait until no request is in flight."""

    async def running() -> int:
        return int(engine.health().running)

    await eventually(running, lambda number: number == 0)


@pytest.mark.parametrize("events", [1, 2, 9])
def test_after_a_disconnect_a_stream_runs_at_most_two_more_steps(endless_model: Model, events: int) -> None:
    passes = Passes()
    engine = engine_over(endless_model, passes)

    async def disconnect_early() -> None:
        client = AsgiClient(stream=True)
        client.disconnect_at = events
        await client.request(rung.create_app(engine))
        await settle(engine)

    asyncio.run(disconnect_early())
    assert events <= len(passes.kinds) <= events + 2


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_after_a_disconnect_a_non_streaming_request_runs_at_most_two_more_steps(
    endless_model: Model, steps: int
) -> None:
    async def disconnect_early() -> int:
        client = AsgiClient(stream=False)
        loop = asyncio.get_running_loop()
        passes = Passes()

        def before(kind: str, slots: Sequence[int]) -> None:
            passes(kind, slots)
            if len(passes.kinds) == steps:
                loop.call_soon_threadsafe(client.disconnected.set)

        engine = rung.Engine(watched(endless_model, before))
        await client.request(rung.create_app(engine))
        await settle(engine)
        return len(passes.kinds)

    assert steps <= asyncio.run(disconnect_early()) <= steps + 2


def test_a_disconnect_before_the_first_step_costs_at_most_one_step(endless_model: Model) -> None:
    passes = Passes()
    engine = engine_over(endless_model, passes)

    async def disconnect_early() -> None:
        client = AsgiClient(stream=False)
        client.disconnected.set()
        await client.request(rung.create_app(engine))
        await settle(engine)

    asyncio.run(disconnect_early())
    assert len(passes.kinds) <= 1


@pytest.mark.parametrize("events", [1, 5])
@fault("A client stops reading its stream", "its request is aborted, and one line is logged", "02")
def test_a_stalled_client_is_aborted_and_its_state_freed(
    endless_model: Model, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    monkeypatch.setattr(EventStream, "send_timeout", 0.05)
    passes = Passes()
    engine = engine_over(endless_model, passes)

    async def stall() -> AsgiClient:
        client = AsgiClient(stream=True)
        client.stop_reading_at = events
        await client.request(rung.create_app(engine))
        await settle(engine)
        return client

    client = asyncio.run(stall())
    assert len(client.chunks) == events
    assert events <= len(passes.kinds) <= events + 1
    assert b"[DONE]" not in b"".join(client.chunks)


def test_a_timeout_of_the_producer_is_not_treated_as_a_stalled_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A disk's ETIMEDOUT is also a TimeoutError: it propagates like any other error."""
    ended: list[str] = []

    async def chunks() -> AsyncGenerator[bytes]:
        yield b"data: {}\n\n"
        raise OSError(errno.ETIMEDOUT, "the disk does not answer")

    async def send(_: Message) -> None:
        return None

    with pytest.raises(TimeoutError, match="the disk does not answer"):
        asyncio.run(EventStream(chunks(), on_close=lambda: ended.append("over")).stream_response(send))
    assert ended == ["over"]
    assert caplog.messages == []


@fault("A client stops reading while others stream", "the others get their tokens", "02")
def test_a_stalled_client_does_not_block_other_requests(endless_model: Model) -> None:
    engine = engine_over(endless_model, Passes())

    async def one_stalls() -> list[bytes]:
        app = rung.create_app(engine)
        stalled, reading = AsgiClient(stream=True), AsgiClient(stream=True, max_tokens=5)
        stalled.stop_reading_at = 1
        waiting = asyncio.create_task(stalled.request(app))
        await reading.request(app)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await settle(engine)
        return reading.chunks

    assert asyncio.run(one_stalls())[-2] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("step", [1, 2, 6])
def test_a_failing_stream_ends_with_one_error_event(endless_model: Model, step: int) -> None:
    engine = engine_over(endless_model, Passes(fail_at=step))
    with serving(rung.create_app(engine), engine) as server:
        answer = server.generate(STORY, temperature=0, max_tokens=6, stream=True)
        assert answer.status == 200
        assert [event.name for event in answer.events()] == ["message"] * (step - 1) + ["error"]
        assert answer.error() == {"type": "RuntimeError", "message": "the model broke"}
        assert b"[DONE]" not in answer.body
        still_serves(server)


@pytest.mark.parametrize("step", [1, 2, 6])
def test_a_failing_non_streaming_request_is_a_500_with_the_same_error(
    endless_model: Model, step: int
) -> None:
    engine = engine_over(endless_model, Passes(fail_at=step))
    with serving(rung.create_app(engine), engine) as server:
        answer = server.generate(STORY, temperature=0, max_tokens=6)
        assert answer.status == 500
        assert answer.json() == {"error": {"type": "RuntimeError", "message": "the model broke"}}
        still_serves(server)


def still_serves(server: Server) -> None:
    assert server.idle()["running"] == 0
    assert server.generate(QUESTION, max_tokens=2).status == 200


@fault(
    "The model fails for one of several streams",
    "that stream ends with an error event, the others go on",
    "02",
)
def test_only_the_failing_request_gets_an_error(endless_model: Model) -> None:
    engine = engine_over(endless_model, Passes(fail_at=40))
    greedy: dict[str, Any] = {"prompt": STORY, "temperature": 0, "max_tokens": 30}

    async def four(url: str) -> list[Measurement]:
        async with Client(url) as client:
            return await asyncio.gather(
                *(client.generate(**greedy, stream=number % 2 == 0) for number in range(4))
            )

    with serving(rung.create_app(engine), engine) as server:
        answers = asyncio.run(four(server.url))
        alone = server.generate(**greedy).json()
    broken = [answer for answer in answers if not answer.done]
    assert len(broken) == 1
    assert broken[0].error is not None
    assert all(answer.token_ids == alone["token_ids"] for answer in answers if answer.done)
    assert broken[0].token_ids == alone["token_ids"][: len(broken[0].token_ids)]


def test_two_requests_alternate_step_by_step(endless_model: Model) -> None:
    order: list[int] = []
    engine = rung.Engine(endless_model)
    tokens = engine.tokens

    def noted(sequence: Any) -> Any:
        for event in tokens(sequence):
            order.append(sequence.request.max_tokens)
            yield event

    engine.tokens = noted

    async def consume(max_tokens: int) -> None:
        request = GenerateRequest(prompt=STORY, max_tokens=max_tokens, seed=1)
        async for _ in engine.events(engine.submit(request)):
            pass

    async def both() -> None:
        await asyncio.gather(consume(10), consume(13))

    asyncio.run(both())
    assert order == [10, 13] * 10 + [13] * 3


def test_health_responds_between_the_steps_of_a_stream(endless_model: Model) -> None:
    """Not only after the stream: /health shows the running request in the middle of its steps."""
    engine = engine_over(endless_model, Passes())

    async def look(url: str) -> list[dict[str, Any]]:
        async with Client(url) as client, long_stream(client):
            return [await client.health() for _ in range(5)]

    with serving(rung.create_app(engine), engine) as server:
        seen = asyncio.run(look(server.url))
    assert all(health["running"] == 1 for health in seen)
    steps = [health["steps"] for health in seen]
    assert steps == sorted(steps)
    assert steps[-1] < 3000


def test_a_stopped_engine_rejects_new_requests(endless_model: Model) -> None:
    passes = Passes()
    engine = engine_over(endless_model, passes)
    engine.stop()
    with pytest.raises(ServerStopping):
        engine.submit(GenerateRequest(prompt=STORY))
    assert engine.health().running == 0
    assert passes.kinds == []


@fault(
    "The server stops while requests are in flight",
    "each gets an error, and the process ends with status 0",
    "02",
)
def test_at_shutdown_open_requests_get_an_error(endless: Path) -> None:
    async def stop_while_open() -> tuple[list[Measurement], int]:
        with own_rung(SCRIPT, "--model", str(endless)) as server:
            async with Client(server.url) as client:
                requests = [
                    asyncio.create_task(client.generate(STORY, max_tokens=3000, stream=stream))
                    for stream in (True, False)
                ]
                await server.health_when(lambda health: health["running"] == 2 and health["steps"] > 4)
                status = await asyncio.to_thread(server.process.stop, signal.SIGTERM)
                return await asyncio.gather(*requests), status

    (streamed, whole), status = asyncio.run(stop_while_open())
    assert status == 0
    assert streamed.status == 200
    assert 0 < len(streamed.token_ids) < 3000
    assert streamed.error is not None
    assert streamed.error["type"] == "ServerStopping"
    assert not streamed.done
    assert whole.status == 503
    assert whole.error is not None
    assert whole.error["type"] == "ServerStopping"
