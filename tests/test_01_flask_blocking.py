"""Tests rung 01: a request blocks its worker, and a disconnect does not stop the generation.

The order of the responses is fixed: the model waits in the middle of a generation until the test has
checked the server's state.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from pathlib import Path
from typing import Any

from ladder.llm.loading import Model
from tests.support import (
    QUESTION,
    STORY,
    Gate,
    Passes,
    Server,
    ServerPool,
    eventually,
    import_rung,
    raw_request,
    serving_flask,
    watched,
)

SCRIPT = "01_flask_blocking.py"
rung = import_rung(SCRIPT)


class Finished(queue.SimpleQueue[str]):
    """Requests in their own threads: the names of those that completed, and the last /health."""

    health: dict[str, Any]

    def start(self, name: str, server: Server) -> threading.Thread:
        def answer() -> None:
            if name == "health":
                self.health = server.health()
            else:
                server.generate(QUESTION, temperature=0, max_tokens=8)
            self.put(name)

        thread = threading.Thread(target=answer)
        thread.start()
        return thread


def test_with_one_worker_health_waits_for_the_whole_generation(bundled: Model) -> None:
    gate, finished = Gate(), Finished()
    with serving_flask(rung.create_app(rung.Engine(watched(bundled, gate))), workers=1) as server:
        threads = [finished.start("generation", server)]
        assert gate.reached.wait(timeout=60)
        threads.append(finished.start("health", server))

        async def waiting_requests() -> int:
            return len(server.waiting)

        asyncio.run(eventually(waiting_requests, lambda number: number == 1))
        assert finished.empty()
        gate.opened.set()
        for thread in threads:
            thread.join()
    # The order of the two threads is random. But /health was answered after the whole generation.
    assert (finished.health["running"], finished.health["steps"]) == (0, gate.passes)


def test_with_four_workers_health_does_not_wait(bundled: Model) -> None:
    gate, finished = Gate(), Finished()
    with serving_flask(rung.create_app(rung.Engine(watched(bundled, gate))), workers=4) as server:
        generation = finished.start("generation", server)
        assert gate.reached.wait(timeout=60)
        health = server.health()  # answered while the model stands still
        assert (health["running"], health["steps"]) == (1, 2)
        assert finished.empty()
        gate.opened.set()
        generation.join()
    assert finished.get() == "generation"


def test_with_four_workers_as_many_requests_block_health_again(bundled: Model) -> None:
    gate, finished = Gate(), Finished()
    with serving_flask(rung.create_app(rung.Engine(watched(bundled, gate))), workers=4) as server:
        threads = [finished.start("generation", server)]
        assert gate.reached.wait(timeout=60)
        threads += [finished.start(name, server) for name in ("generation",) * 4]

        async def waiting_requests() -> int:
            return len(server.waiting)

        asyncio.run(eventually(waiting_requests, lambda number: number == 1))
        threads.append(finished.start("health", server))
        asyncio.run(eventually(waiting_requests, lambda number: number == 2))
        assert finished.empty()
        gate.opened.set()
        for thread in threads:
            thread.join()
    assert sorted(finished.get() for _ in threads) == ["generation"] * 5 + ["health"]


def test_after_a_disconnect_all_steps_still_run(pool: ServerPool, endless: Path) -> None:
    """The flaw that rung 02 fixes: the model keeps computing, though the client has disconnected."""
    server = pool(SCRIPT, "--model", str(endless))
    before = server.idle()["steps"]
    with server.raw() as connection:
        connection.sendall(raw_request(STORY, max_tokens=200))
    after = asyncio.run(server.health_when(lambda health: health["steps"] >= before + 200))
    assert after["steps"] == server.idle()["steps"] == before + 200


def test_the_error_for_a_stream_names_the_rung_that_streams(pool: ServerPool) -> None:
    answer = pool(SCRIPT).generate(QUESTION, stream=True)
    assert answer.status == 422
    (finding,) = answer.json()["detail"]
    assert finding["loc"] == ["body", "stream"]
    assert "02_async_streaming.py" in finding["msg"]


def test_an_engine_error_is_a_500_and_the_next_request_works(bundled: Model) -> None:
    engine = rung.Engine(watched(bundled, Passes(fail_at=3)))
    with serving_flask(rung.create_app(engine), workers=1) as server:
        broken = server.generate(QUESTION, temperature=0, max_tokens=8)
        assert broken.status == 500
        assert broken.json() == {"error": {"type": "RuntimeError", "message": "the model broke"}}
        assert server.health()["running"] == 0
        assert server.generate(QUESTION, temperature=0, max_tokens=8).status == 200


def test_workers_use_the_model_one_after_the_other(bundled: Model) -> None:
    """Four workers still generate one response after the other: no prefill starts inside a generation."""
    passes = Passes()
    engine = rung.Engine(watched(bundled, passes))
    with serving_flask(rung.create_app(engine), workers=4) as server:
        finished = Finished()
        threads = [finished.start("generation", server) for _ in range(3)]
        for thread in threads:
            thread.join()
    kinds = passes.kinds
    length = len(kinds) // 3
    assert kinds == (["prefill"] + ["decode"] * (length - 1)) * 3
