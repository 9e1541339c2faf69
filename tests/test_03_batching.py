"""Tests rung 03: how batches form, what a static batch costs, and the response of a full queue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ladder.lab.client import Client
from ladder.llm.loading import Model
from ladder.web.schema import GenerateRequest
from ladder.web.sequence import Sequence
from tests.faults import fault
from tests.support import QUESTION, STORY, Passes, RungServer, import_rung, own_rung, serving, watched

SCRIPT = "03_batching.py"
rung = import_rung(SCRIPT)
NO_TIMEOUT = ("--max-wait-ms", "60000")
"""A batch starts only when it is full, so the results do not depend on time."""


def story(tokens: int) -> dict[str, Any]:
    return {"prompt": STORY, "max_tokens": tokens, "temperature": 0, "stream": True}


def steps_of(server: RungServer, *lengths: int) -> tuple[int, list[list[int]]]:
    """The steps that concurrent requests of these lengths take, and the tokens of each request."""

    async def all_at_once() -> list[list[int]]:
        async with Client(server.url) as client:
            answers = await asyncio.gather(*(client.generate(**story(tokens)) for tokens in lengths))
            return [answer.token_ids for answer in answers]

    before = server.idle()["steps"]
    tokens = asyncio.run(all_at_once())
    return server.idle()["steps"] - before, tokens


def test_a_full_batch_runs_the_steps_of_its_longest_request() -> None:
    with own_rung(SCRIPT, "--max-batch", "4", *NO_TIMEOUT) as server:
        steps, tokens = steps_of(server, 3, 20, 7, 11)
        assert steps == 20
        assert [len(ids) for ids in tokens] == [3, 20, 7, 11]
        rows = [row for step in server.request("GET", "/steps").json() for row in step["rows"]]
        used = [used for _, _, used in rows]
        assert len(used) == 4 * 20
        assert sum(used) == 3 + 20 + 7 + 11


def test_more_requests_than_max_batch_form_two_batches() -> None:
    with own_rung(SCRIPT, "--max-batch", "2", *NO_TIMEOUT) as server:
        steps, _ = steps_of(server, 6, 6, 9, 9)
        assert steps in (6 + 9, 9 + 9)  # depends on the order of arrival


def test_a_batch_of_one_starts_after_the_batch_timeout() -> None:
    with own_rung(SCRIPT, "--max-batch", "4", "--max-wait-ms", "0") as server:
        assert steps_of(server, 5)[0] == 5


def test_a_disconnect_of_the_longest_request_ends_the_batch_early() -> None:
    async def disconnect_early(url: str) -> int:
        async with Client(url) as client:
            short = asyncio.create_task(client.generate(**story(30)))
            await client.generate(**story(900), leave_after=3)
            await short
            return len(short.result().token_ids)

    with own_rung(SCRIPT, "--max-batch", "2", *NO_TIMEOUT) as server:
        assert asyncio.run(disconnect_early(server.url)) == 30
        assert server.idle()["steps"] <= 32


@pytest.mark.parametrize("script", ["03_batching.py", "04_continuous_batching.py", "05_async_scheduling.py"])
@fault("More requests than the queue holds", "503 with Retry-After at once; open streams go on", "03–05")
def test_a_full_queue_rejects_immediately_and_open_streams_continue(script: str, endless: Any) -> None:
    flags = ("--max-batch", "1", "--max-queue", "1", "--model", str(endless))
    with own_rung(script, *flags) as server:

        async def fill_the_queue() -> None:
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
                # It is refused before anything looks at its prompt, which by itself would be a 422.
                assert (await asyncio.to_thread(server.generate, STORY * 10_000)).status == 503
                assert server.health()["status"] == "ok"
                answered.set()  # the running stream must get another token before it is cancelled
                await asyncio.gather(running, return_exceptions=True)
                assert (await waiting).done

        asyncio.run(fill_the_queue())


def test_a_failing_pass_fails_its_batch_and_the_next_batch_is_served(bundled: Model) -> None:
    engine = rung.Engine(watched(bundled, Passes(fail_at=3)), rung.Config(max_wait_ms=0))
    with serving(rung.create_app(engine), engine) as server:
        answer = server.generate(STORY, temperature=0, max_tokens=6, stream=True)
        assert len(answer.tokens()) == 2
        assert answer.error() == {"type": "RuntimeError", "message": "the model broke"}
        assert server.generate(STORY, temperature=0, max_tokens=6).status == 200


def test_a_disconnect_frees_the_place_in_the_queue(bundled: Model) -> None:
    """At the engine's interface, before the batch starts."""
    engine = rung.Engine(bundled, rung.Config(max_wait_ms=60_000, max_queue=1))

    async def submit_and_abort() -> None:
        for _ in range(5):
            sequence: Sequence = engine.submit(GenerateRequest(prompt=QUESTION))
            engine.abort(sequence)
        assert engine.health().waiting == 0

    asyncio.run(submit_and_abort())
    engine.stop()
