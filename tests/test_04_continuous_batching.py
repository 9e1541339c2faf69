"""Tests rung 04's scheduler: every request ends once, no slot is shared or lost, no request starves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence as Rows
from typing import Any

import pytest
from hypothesis import given, strategies as st

import ladder.engine.runner
from ladder.cli import EngineConfig
from ladder.engine.messages import Abort, EngineRequest, Update
from ladder.engine.runner import ForwardPass, Slots
from ladder.errors import UserError
from ladder.lab.client import Client
from ladder.llm.loading import Model
from ladder.llm.sampling import SamplingSettings, sample
from tests.faults import fault
from tests.support import (
    PROMPTS,
    QUESTION,
    STORY,
    Oracle,
    RungServer,
    import_rung,
    is_idle,
    own_rung,
    serving,
    watched,
)

SCRIPT = "04_continuous_batching.py"
rung = import_rung(SCRIPT)


def request(number: int, prompt: int, tokens: int) -> EngineRequest:
    return EngineRequest(number, list(range(1, prompt + 1)), tokens, SamplingSettings(), frozenset())


requests = st.tuples(st.integers(1, 60), st.integers(1, 12))
actions = st.one_of(
    st.tuples(st.just("arrive"), requests),
    st.tuples(st.just("abort"), st.integers(0, 30)),
    st.tuples(st.just("fail"), st.integers(0, 3)),
    st.tuples(st.just("step"), st.none()),
)


class Simulation:
    """A scheduler without a model: it tracks the slot of each request and the tokens that it got."""

    def __init__(self, max_batch: int, kv_tokens: int, prefill_chunk: int) -> None:
        self.scheduler = rung.Scheduler(Slots(kv_tokens, context=256), max_batch, prefill_chunk)
        self.admitted: list[int] = []
        self.ended: dict[int, int] = {}
        self.alive: dict[int, Any] = {}

    def arrive(self, prompt: int, tokens: int) -> None:
        state = rung.RequestState(request(len(self.alive) + len(self.ended), prompt, tokens))
        self.alive[state.request.id] = state
        self.scheduler.waiting.append(state)

    def end(self, state: Any) -> None:
        self.scheduler.remove(state)
        del self.alive[state.request.id]
        self.ended[state.request.id] = self.ended.get(state.request.id, 0) + 1

    def step(self, fail: int | None = None) -> None:
        step = self.scheduler.schedule()
        self.check()
        if step is None:
            assert not self.alive
            return
        running = [state.request.id for state in self.scheduler.running]
        self.admitted += [number for number in running if number not in self.admitted]
        chunks = [row.new_tokens for row in step.rows]
        if step.kind == "prefill":
            assert len(chunks) * max(map(len, chunks)) <= max(self.scheduler.prefill_chunk, 1)
        ended = []
        for place, row in enumerate(step.rows):
            state = self.alive[row.request.id]
            assert row.slot == state.slot
            assert row.wasted == (step.kind == "decode" and state.to_prefill > 0)
            if step.kind == "prefill":
                start = state.prefilled
                assert row.new_tokens == row.request.prompt_ids[start : start + len(row.new_tokens)]
                state.prefilled += len(row.new_tokens)
            finished = not state.to_prefill and state.append(0).finish_reason
            if place == fail or finished:
                ended.append(state)
        for state in ended:
            self.end(state)
        self.check()

    def check(self) -> None:
        scheduler = self.scheduler
        assert [state.slot for state in scheduler.running] == list(range(len(scheduler.running)))
        held = {state.request.id for state in [*scheduler.running, *scheduler.waiting]}
        assert held == set(self.alive)
        assert len(scheduler.running) + len(scheduler.waiting) == len(self.alive)
        assert len(scheduler.running) <= scheduler.max_batch
        assert len(scheduler.running) <= scheduler.slots.count
        assert all(state.request.size <= scheduler.slots.size for state in scheduler.running)
        assert scheduler.slots.count * scheduler.slots.size <= scheduler.slots.tokens
        assert self.admitted == sorted(self.admitted)  # first come, first served


@given(st.lists(actions, max_size=120), st.integers(1, 5), st.integers(256, 1024), st.integers(1, 64))
def test_after_any_sequence_of_events_every_request_has_ended_once(
    events: list[tuple[str, Any]], max_batch: int, kv_tokens: int, prefill_chunk: int
) -> None:
    simulation = Simulation(max_batch, kv_tokens, prefill_chunk)
    for action, detail in events:
        if action == "arrive":
            simulation.arrive(*detail)
        elif action == "abort" and detail in simulation.alive:
            simulation.end(simulation.alive[detail])
        elif action in ("step", "fail"):
            simulation.step(detail)
        simulation.check()
    # 60 prompt tokens in chunks of one, and 12 decode steps; both kinds of steps alternate.
    for _ in range(2 * 72 * (len(simulation.alive) + 1)):
        simulation.step()
    assert simulation.alive == {}
    assert set(simulation.ended.values()) <= {1}


def core_over(model: Model, **settings: Any) -> Any:
    return rung.EngineCore(model, EngineConfig(**settings))


def run(core: Any, *commands: EngineRequest | Abort) -> list[Update]:
    for command in commands:
        core.handle(command)
    updates = []
    while core.states:
        updates.append(core.step())
    return updates


def tokens_of(updates: list[Update]) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    for update in updates:
        for token in update.tokens:
            tokens.setdefault(token.id, []).append(token.token_id)
    return tokens


def real_request(model: Model, number: int, prompt: str, tokens: int) -> EngineRequest:
    return EngineRequest(number, model.tokenizer.encode(prompt), tokens, SamplingSettings(), model.stop_ids)


@pytest.mark.parametrize("chunk", [1, 7, 64, 256])
@pytest.mark.parametrize("memory", [1, 512])
def test_joins_aborts_chunks_and_new_slot_sizes_do_not_change_tokens(
    bundled: Model, oracle: Oracle, chunk: int, memory: int
) -> None:
    """Random arrivals and aborts, few slots, little memory: all other requests match transformers."""
    chance = random.Random(chunk * memory)
    core = core_over(bundled, max_batch=4, kv_memory=memory, prefill_chunk=chunk)
    waiting = [
        real_request(bundled, number, PROMPTS[number % len(PROMPTS)], chance.choice([1, 5, 24, 60]))
        for number in range(16)
    ]
    asked = {one.id: one for one in waiting if one.size <= core.context}
    waiting = list(asked.values())
    tokens: dict[int, list[int]] = {}
    aborted: set[int] = set()
    while waiting or core.states:
        if waiting and chance.random() < 0.3:
            core.handle(waiting.pop(0))
        if core.states and chance.random() < 0.05:
            number = chance.choice(sorted(core.states))
            aborted.add(number)
            core.handle(Abort(number))
        if update := core.step():
            for token in update.tokens:
                tokens.setdefault(token.id, []).append(token.token_id)
    unaborted = [one for one in asked.values() if one.id not in aborted]
    assert len(unaborted) > 4
    for one in unaborted:
        assert tokens[one.id] == oracle.generate(one.prompt_ids, one.max_tokens)
    assert core.runner.cache.occupied() == []


@pytest.mark.parametrize("kind", ["prefill", "decode"])
@fault("A pass fails because of one request in the batch", "only that request gets an error", "04")
def test_only_the_failing_request_gets_an_error(bundled: Model, oracle: Oracle, kind: str) -> None:
    poisoned: list[int] = []

    def before(this: str, slots: Rows[int]) -> None:
        if this == kind and any(slot in poisoned for slot in slots):
            raise RuntimeError("the model broke")

    core = core_over(watched(bundled, before), max_batch=8)
    asked = [real_request(bundled, number, PROMPTS[number], 12) for number in range(4)]
    for one in asked:
        core.handle(one)
    if kind == "prefill":
        poisoned.append(1)
    updates: list[Update] = []
    while core.states:
        if kind == "decode" and len(updates) == 6:
            poisoned.append(1)
        updates.append(core.step())
        if any(update.failures for update in updates):
            poisoned.clear()
    failures = [failed for update in updates for failed in update.failures]
    assert [(failed.id, failed.kind, failed.message) for failed in failures] == [
        (1, "RuntimeError", "the model broke")
    ]
    tokens = tokens_of(updates)
    for one in asked:
        if one.id != 1:
            assert tokens[one.id] == oracle.generate(one.prompt_ids, one.max_tokens)


def test_a_long_prompt_does_not_stall_other_requests(bundled: Model) -> None:
    core = core_over(bundled, prefill_chunk=16)
    core.handle(real_request(bundled, 0, STORY, 60))
    while not core.step().tokens:
        pass
    core.handle(request(1, 200, 4))
    kinds: list[list[int]] = []
    while [1] not in kinds:
        kinds.append([token.id for token in core.step().tokens])
    assert kinds == [*[[0], []] * 12, [0], [1]]  # 13 chunks of 16, a decode step between them


@pytest.mark.parametrize("abort_below", [True, False], ids=["below a decoding slot", "above a decoding slot"])
def test_the_prefill_time_is_that_of_its_chunks_in_any_slot(
    bundled: Model, abort_below: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a decoding slot, a prompt's row is a wasted row of the decode passes; they do not count."""
    monkeypatch.setattr(rung, "milliseconds_since", lambda _: 1.0)
    core = core_over(bundled, prefill_chunk=16)
    for number in (0, 1):
        core.handle(request(number, 10, 60))
    while not core.step().tokens:
        pass
    core.handle(request(2, 160, 4))
    core.step()
    if abort_below:
        core.handle(Abort(0))  # then the last request, still in prefill, moves into its slot
        assert core.states[2].slot < core.states[1].slot
    tokens: list[Any] = []
    while not tokens:
        tokens = [token for token in core.step().tokens if token.id == 2]
    assert tokens[0].milliseconds == 10


def test_shorter_requests_do_not_overtake_the_oldest(bundled: Model) -> None:
    """The oldest waiting request needs more memory than is free; the small ones behind it also wait."""
    core = core_over(bundled, max_batch=4, kv_memory=1)  # one MiB: 256 tokens
    size = core.scheduler.slots.tokens
    first, large, *small = (
        request(0, 10, 5),
        request(1, size - 40, 20),
        request(2, 10, 5),
        request(3, 10, 5),
    )
    updates = run(core, first, large, *small)
    ends = [token.id for update in updates for token in update.tokens]
    assert max(place for place, one in enumerate(ends) if one == 0) < ends.index(1)
    assert max(place for place, one in enumerate(ends) if one == 1) < ends.index(2)


def test_too_little_kv_memory_is_an_error_at_start(bundled: Model) -> None:
    huge = bundled.decoder.tokens_in
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled.decoder, "tokens_in", lambda memory: huge(memory) // 10**6)
        with pytest.raises(UserError, match="--kv-memory 1"):
            core_over(bundled, kv_memory=1)


def test_a_request_longer_than_max_context_is_a_422() -> None:
    with own_rung(SCRIPT, "--max-context", "40") as server:
        assert server.generate(QUESTION, max_tokens=39).status == 422
        assert server.generate(QUESTION, max_tokens=20).status == 200


BATCHING = ["04_continuous_batching.py", "05_async_scheduling.py"]


@pytest.fixture(params=BATCHING)
def batching_server(pool: Any, endless: Any, request: pytest.FixtureRequest) -> RungServer:
    server: RungServer = pool(request.param, "--model", str(endless))
    return server


def test_sixteen_concurrent_requests_share_their_steps(batching_server: RungServer) -> None:
    async def sixteen_clients() -> None:
        async with Client(batching_server.url) as client:
            await asyncio.gather(*(client.generate(STORY, max_tokens=64) for _ in range(16)))

    before = batching_server.idle()["steps"]
    asyncio.run(sixteen_clients())
    assert 64 <= batching_server.idle()["steps"] - before <= 64 + 16 + 8


def test_health_shows_the_slots(batching_server: RungServer) -> None:
    async def look() -> dict[str, Any]:
        async with Client(batching_server.url) as client:
            tasks = [
                asyncio.create_task(client.generate(STORY, max_tokens=3000, stream=True)) for _ in range(3)
            ]
            health = await batching_server.health_when(lambda health: health["running"] == 3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return health

    health = asyncio.run(look())
    assert health["slot_size"] >= 3000
    assert health["slots"] >= 3
    assert health["prefilling"] <= 3
    batching_server.idle()


@fault("500 requests are cancelled", "no slot and no memory is left occupied", "04–05")
def test_five_hundred_cancelled_requests_leak_nothing(batching_server: RungServer) -> None:
    async def connect_and_disconnect(number: int) -> None:
        async with Client(batching_server.url) as client:
            for turn in range(20):
                await client.generate(
                    STORY, max_tokens=3000, stream=True, temperature=0, leave_after=1 + (number + turn) % 4
                )

    async def twenty_five_clients() -> None:
        await asyncio.gather(*(connect_and_disconnect(number) for number in range(25)))
        await batching_server.health_when(is_idle)

    threads = batching_server.threads()
    asyncio.run(twenty_five_clients())
    before = batching_server.idle()
    assert batching_server.threads() <= threads + 1
    assert len(batching_server.generate(QUESTION, max_tokens=20, stream=True).tokens()) == 20
    after = batching_server.idle()
    assert after["steps"] - before["steps"] == after["tokens"] - before["tokens"] == 20


@pytest.mark.parametrize("context", [100, 513, 777, 1001])
def test_the_kv_cache_can_be_divided_into_slots_of_any_length(
    bundled: Model, oracle: Oracle, context: int
) -> None:
    """Even if the longest request is not a multiple of the smallest slot."""
    core = core_over(bundled, max_batch=4, max_context=context)
    prompt = bundled.tokenizer.encode(STORY)
    sizes = [20, context, 60, context // 2, context, 20]
    asked = [
        EngineRequest(number, prompt, size - len(prompt), SamplingSettings(), bundled.stop_ids)
        for number, size in enumerate(sizes)
    ]
    tokens = tokens_of(run(core, *asked))
    for one in asked:
        assert tokens[one.id] == oracle.generate(prompt, one.max_tokens)


def test_a_pass_that_fails_after_writing_to_the_cache_is_repeated(
    bundled: Model, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writes to the KV cache do not change any output."""
    passes = iter(range(10**6))

    def breaking(*arguments: Any) -> Any:
        if next(passes) in (0, 5):
            raise RuntimeError("sampling broke")
        return sample(*arguments)

    monkeypatch.setattr(ladder.engine.runner, "sample", breaking)
    core = core_over(bundled, max_batch=4)
    asked = [real_request(bundled, number, PROMPTS[number], 12) for number in range(4)]
    updates = run(core, *asked)
    assert [update.failures for update in updates if update.failures] == []
    tokens = tokens_of(updates)
    for one in asked:
        assert tokens[one.id] == oracle.generate(one.prompt_ids, one.max_tokens)


@fault("The scheduler itself fails", "all requests get an error, and the next is served", "04")
def test_a_scheduler_error_fails_all_requests_but_not_the_server(bundled: Model) -> None:
    """Requests in flight get the error; the next request is served."""
    engine = rung.Engine(bundled, EngineConfig())
    schedule = engine.core.scheduler.schedule
    steps = iter(range(10**6))

    def broken() -> ForwardPass | None:
        if next(steps) == 5:
            raise RuntimeError("the scheduler broke")
        following: ForwardPass | None = schedule()
        return following

    engine.core.scheduler.schedule = broken
    with serving(rung.create_app(engine), engine) as server:
        failed = server.generate(STORY, max_tokens=60)
        assert (failed.status, failed.json()["error"]["type"]) == (500, "RuntimeError")
        assert len(server.generate(STORY, max_tokens=20, stream=True).tokens()) == 20
        health = server.idle()
        assert (health["running"], health["waiting"]) == (0, 0)
