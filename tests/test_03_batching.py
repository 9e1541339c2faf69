"""Holds rung 03 to its batches: who shares one, what a full queue answers, what a closed batch costs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ladder.lab.client import Client
from ladder.llm.loading import Model
from ladder.web.schema import GenerateRequest
from ladder.web.sequence import Sequence
from tests.support import QUESTION, STORY, Passes, RungServer, import_rung, own_rung, serving, watched

SCRIPT = "03_batching.py"
rung = import_rung(SCRIPT)
PATIENT = ("--max-wait-ms", "60000")
"""A batch is closed only when it is full: what the tests see does not depend on time."""


def story(tokens: int) -> dict[str, Any]:
    return {"prompt": STORY, "max_tokens": tokens, "temperature": 0, "stream": True}


def steps_of(server: RungServer, *lengths: int) -> tuple[int, list[list[int]]]:
    """Steps that requests of these lengths take together, and the tokens of each."""

    async def all_at_once() -> list[list[int]]:
        async with Client(server.url) as client:
            answers = await asyncio.gather(*(client.generate(**story(tokens)) for tokens in lengths))
            return [answer.token_ids for answer in answers]

    before = server.idle()["steps"]
    tokens = asyncio.run(all_at_once())
    return server.idle()["steps"] - before, tokens


def test_a_full_batch_takes_the_steps_of_its_longest() -> None:
    with own_rung(SCRIPT, "--max-batch", "4", *PATIENT) as server:
        steps, tokens = steps_of(server, 3, 20, 7, 11)
        assert steps == 20
        assert [len(ids) for ids in tokens] == [3, 20, 7, 11]
        rows = [row for step in server.request("GET", "/steps").json() for row in step["rows"]]
        used = [used for _, _, used in rows]
        assert len(used) == 4 * 20
        assert sum(used) == 3 + 20 + 7 + 11


def test_more_than_a_batch_are_two_batches() -> None:
    with own_rung(SCRIPT, "--max-batch", "2", *PATIENT) as server:
        steps, _ = steps_of(server, 6, 6, 9, 9)
        assert steps in (6 + 9, 9 + 9)  # as they happened to arrive


def test_a_batch_of_one_closes_when_its_time_is_up() -> None:
    with own_rung(SCRIPT, "--max-batch", "4", "--max-wait-ms", "0") as server:
        assert steps_of(server, 5)[0] == 5


def test_a_cancelled_row_is_sent_nothing_and_ends_the_batch_if_it_was_the_longest() -> None:
    async def leave_early(url: str) -> int:
        async with Client(url) as client:
            short = asyncio.create_task(client.generate(**story(30)))
            await client.generate(**story(900), leave_after=3)
            await short
            return len(short.result().token_ids)

    with own_rung(SCRIPT, "--max-batch", "2", *PATIENT) as server:
        assert asyncio.run(leave_early(server.url)) == 30
        assert server.idle()["steps"] <= 32


@pytest.mark.parametrize("script", ["03_batching.py", "04_continuous_batching.py", "05_async_scheduling.py"])
def test_a_full_queue_refuses_at_once_while_streams_go_on(script: str, endless: Any) -> None:
    flags = ("--max-batch", "1", "--max-queue", "1", "--model", str(endless))
    with own_rung(script, *flags) as server:

        async def crowd() -> None:
            async with Client(server.url) as client:
                begun, answered = asyncio.Event(), asyncio.Event()

                def on_token(measurement: Any, _: str) -> None:
                    begun.set()
                    if answered.is_set():
                        running.cancel()

                running = asyncio.create_task(
                    client.generate(STORY, max_tokens=3000, stream=True, on_token=on_token)
                )
                await begun.wait()
                waiting = asyncio.create_task(client.generate(QUESTION, max_tokens=2))
                await server.health_when(lambda health: health["waiting"] == 1)
                for stream in (True, False):
                    refused = await asyncio.to_thread(server.generate, QUESTION, stream=stream)
                    assert refused.status == 503
                    assert int(refused.headers["retry-after"]) >= 1
                    assert refused.json()["error"]["type"] == "QueueFull"
                assert server.health()["status"] == "ok"
                answered.set()  # another token of the running stream must come before it is cancelled
                await asyncio.gather(running, return_exceptions=True)
                assert (await waiting).done

        asyncio.run(crowd())


def test_what_breaks_a_pass_fails_its_batch_and_the_next_one_is_served(bundled: Model) -> None:
    engine = rung.Engine(watched(bundled, Passes(fail_at=3)), rung.Config(max_wait_ms=0))
    with serving(rung.create_app(engine), engine) as server:
        answer = server.generate(STORY, temperature=0, max_tokens=6, stream=True)
        assert len(answer.tokens()) == 2
        assert answer.error() == {"type": "RuntimeError", "message": "the model broke"}
        assert server.generate(STORY, temperature=0, max_tokens=6).status == 200


def test_a_place_in_the_queue_is_free_again_when_its_client_leaves(bundled: Model) -> None:
    """At the engine's boundary, before its batch is closed."""
    engine = rung.Engine(bundled, rung.Config(max_wait_ms=60_000, max_queue=1))

    async def come_and_go() -> None:
        for _ in range(5):
            sequence: Sequence = engine.submit(GenerateRequest(prompt=QUESTION))
            engine.abort(sequence)
        assert engine.health().waiting == 0

    asyncio.run(come_and_go())
    engine.stop()
