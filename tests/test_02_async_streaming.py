"""Holds rung 02 to its three promises: tokens as they come, a server that stays awake, no work for nobody.

Faults are injected: clients that leave at a given event or never read, a model that breaks in the middle,
a server that is told to stop.
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
    """A client at the ASGI boundary: it sends one request, and decides when it is gone or stops reading."""

    def __init__(self, stream: bool, max_tokens: int = 500) -> None:
        body = {"prompt": STORY, "max_tokens": max_tokens, "stream": stream, "seed": 1}
        self.body = json.dumps(body).encode()
        self.sent_body = False
        self.gone = asyncio.Event()
        self.leave_at = 0
        self.stop_reading_at = 0
        self.pieces: list[bytes] = []

    async def receive(self) -> Message:
        if not self.sent_body:
            self.sent_body = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            return
        self.pieces.append(message["body"])
        if len(self.pieces) == self.leave_at:
            self.gone.set()
        if len(self.pieces) == self.stop_reading_at:
            await asyncio.Event().wait()

    async def request(self, app: Any) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says
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
        async with asyncio.timeout(60):  # an app that waits for ever fails the test, and does not hang it
            await app(scope, self.receive, self.send)


async def settle(engine: Any) -> None:
    """Wait until the engine has dropped every request."""

    async def running() -> int:
        return int(engine.health().running)

    await eventually(running, lambda number: number == 0)


@pytest.mark.parametrize("events", [1, 2, 9])
def test_a_stream_whose_client_left_runs_two_more_steps_at_most(endless_model: Model, events: int) -> None:
    passes = Passes()
    engine = engine_over(endless_model, passes)

    async def leave() -> None:
        client = AsgiClient(stream=True)
        client.leave_at = events
        await client.request(rung.create_app(engine))
        await settle(engine)

    asyncio.run(leave())
    assert events <= len(passes.kinds) <= events + 2


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_whole_answer_whose_client_left_runs_two_more_steps_at_most(
    endless_model: Model, steps: int
) -> None:
    async def leave() -> int:
        client = AsgiClient(stream=False)
        loop = asyncio.get_running_loop()
        passes = Passes()

        def before(kind: str, slots: Sequence[int]) -> None:
            passes(kind, slots)
            if len(passes.kinds) == steps:
                loop.call_soon_threadsafe(client.gone.set)

        engine = rung.Engine(watched(endless_model, before))
        await client.request(rung.create_app(engine))
        await settle(engine)
        return len(passes.kinds)

    assert steps <= asyncio.run(leave()) <= steps + 2


def test_a_client_that_left_before_its_turn_costs_no_more_than_a_step(endless_model: Model) -> None:
    passes = Passes()
    engine = engine_over(endless_model, passes)

    async def leave() -> None:
        client = AsgiClient(stream=False)
        client.gone.set()
        await client.request(rung.create_app(engine))
        await settle(engine)

    asyncio.run(leave())
    assert len(passes.kinds) <= 1


@pytest.mark.parametrize("events", [1, 5])
def test_a_client_that_never_reads_is_dropped_and_its_state_freed(
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
    assert len(client.pieces) == events
    assert events <= len(passes.kinds) <= events + 1
    assert b"[DONE]" not in b"".join(client.pieces)


def test_a_producer_that_times_out_is_not_taken_for_a_client_that_never_reads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A disk's ETIMEDOUT is a TimeoutError too: it goes on, as any other failure does."""
    ended: list[str] = []

    async def pieces() -> AsyncGenerator[bytes]:
        yield b"data: {}\n\n"
        raise OSError(errno.ETIMEDOUT, "the disk does not answer")

    async def send(_: Message) -> None:
        return None

    with pytest.raises(TimeoutError, match="the disk does not answer"):
        asyncio.run(EventStream(pieces(), on_close=lambda: ended.append("over")).stream_response(send))
    assert ended == ["over"]
    assert caplog.messages == []


def test_beside_a_client_that_never_reads_others_are_served(endless_model: Model) -> None:
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
        return reading.pieces

    assert asyncio.run(one_stalls())[-2] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("step", [1, 2, 6])
def test_a_stream_that_breaks_ends_in_one_error_event(endless_model: Model, step: int) -> None:
    engine = engine_over(endless_model, Passes(fail_at=step))
    with serving(rung.create_app(engine), engine) as server:
        answer = server.generate(STORY, temperature=0, max_tokens=6, stream=True)
        assert answer.status == 200
        assert [event.name for event in answer.events()] == ["message"] * (step - 1) + ["error"]
        assert answer.error() == {"type": "RuntimeError", "message": "the model broke"}
        assert b"[DONE]" not in answer.body
        goes_on(server)


@pytest.mark.parametrize("step", [1, 2, 6])
def test_a_whole_answer_that_breaks_is_a_500_that_says_the_same(endless_model: Model, step: int) -> None:
    engine = engine_over(endless_model, Passes(fail_at=step))
    with serving(rung.create_app(engine), engine) as server:
        answer = server.generate(STORY, temperature=0, max_tokens=6)
        assert answer.status == 500
        assert answer.json() == {"error": {"type": "RuntimeError", "message": "the model broke"}}
        goes_on(server)


def goes_on(server: Server) -> None:
    assert server.idle()["running"] == 0
    assert server.generate(QUESTION, max_tokens=2).status == 200


def test_the_neighbours_of_a_request_that_breaks_are_untouched(endless_model: Model) -> None:
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


def test_two_requests_take_turns_step_by_step(endless_model: Model) -> None:
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


def test_health_is_answered_between_the_steps_of_a_stream(endless_model: Model) -> None:
    """Not after it: /health sees the request run, at a step that is neither the first nor the last."""
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


def test_an_engine_that_stops_takes_no_more_requests(endless_model: Model) -> None:
    passes = Passes()
    engine = engine_over(endless_model, passes)
    engine.stop()
    with pytest.raises(ServerStopping):
        engine.submit(GenerateRequest(prompt=STORY))
    assert engine.health().running == 0
    assert passes.kinds == []


def test_a_server_that_stops_tells_the_requests_that_are_open(endless: Path) -> None:
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
