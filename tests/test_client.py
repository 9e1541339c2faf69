"""Holds the measuring client to account: its figures follow from times and events that are given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, strategies as st

from ladder.lab.client import Client, Completions, Measurement, take_answer, take_event
from ladder.stats import median, percentile
from ladder.web.sse import Event


def test_figures_follow_from_the_times() -> None:
    seen = Measurement(
        sent=10.0, token_times=[10.5, 10.75, 11.75], token_ids=[1, 2, 3], text="abc", ended=12.0
    )
    assert seen.e2el == 2.0
    assert seen.ttft == 0.5
    assert seen.itl == [0.25, 1.0]
    assert seen.tpot == (2.0 - 0.5) / 2
    assert seen.tokens_per_second == 1.5


def test_a_single_token_has_no_gaps() -> None:
    seen = Measurement(sent=0.0, token_times=[1.0], token_ids=[1], ended=1.0)
    assert seen.itl == []
    assert seen.tpot == 0


def test_percentiles_are_values_that_were_measured() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, percent) for percent in (0, 1, 20, 21, 50, 99, 100)] == [1, 1, 1, 2, 3, 5, 5]
    assert percentile(range(1, 101), 99) == 99
    assert median([1, 2, 3, 4]) == 2


@given(values=st.lists(st.floats(-1e9, 1e9), min_size=1), percent=st.floats(0, 100))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[float], percent: float
) -> None:
    result = percentile(values, percent)

    def enough(bound: float) -> bool:
        return 100 * sum(value <= bound for value in values) >= percent * len(values) * (1 - 1e-12)

    assert enough(result)
    assert not any(enough(value) for value in values if value < result and percent > 0)


def token(number: int, text: str, **more: str) -> Event:
    fields = "".join(f', "{name}": "{value}"' for name, value in more.items())
    return Event(f'{{"token": "{text}", "token_id": {number}, "step_ms": 1{fields}}}')


def test_a_stream_is_put_together_from_its_events() -> None:
    seen, shown = Measurement(sent=0.0, status=200), list[str]()
    events = [token(4, " The"), token(5, " fox", finish_reason="stop"), Event("[DONE]")]
    for event in events:
        take_event(seen, event, lambda _, text: shown.append(text))
    assert (seen.text, seen.token_ids, seen.finish_reason) == (" The fox", [4, 5], "stop")
    assert shown == [" The", " fox"]
    assert seen.done
    assert seen.error is None
    assert 0 < seen.token_times[0] <= seen.token_times[1] <= seen.ended


def test_in_openais_dialect_a_chunk_counts_if_it_has_a_choice_even_without_a_text() -> None:
    """Half a character, or a special token, took its time too; the usage at the end is no token."""
    seen, dialect = Measurement(sent=0.0, status=200), Completions("stub")
    choices = [{"text": ""}, {"text": None}, {"text": "é"}, {"finish_reason": "length"}]
    chunks: list[dict[str, Any]] = [{"choices": [choice]} for choice in choices]
    chunks += [{"choices": [], "usage": {"completion_tokens": 3}}, {"id": "x"}]
    for number, chunk in enumerate(chunks):
        take_event(seen, Event(json.dumps(chunk)), None, dialect)
        assert len(seen.token_times) == min(number + 1, len(choices))
    assert (seen.text, seen.tokens, seen.finish_reason) == ("é", 3, "length")


def test_an_error_event_is_no_proper_end() -> None:
    seen = Measurement(sent=0.0, status=200)
    take_event(seen, token(4, " The"), None)
    take_event(seen, Event('{"error": {"type": "Broken", "message": "it broke"}}', "error"), None)
    assert seen.error == {"type": "Broken", "message": "it broke"}
    assert not seen.done
    assert seen.token_ids == [4]


def test_a_whole_answer_is_visible_when_it_is_complete() -> None:
    seen = Measurement(sent=0.0, status=200)
    answer = {"text": "ab", "token_ids": [1, 2], "completion_tokens": 2, "finish_reason": "length"}
    take_answer(seen, answer, None)
    assert seen.token_times == [seen.ended] * 2
    assert seen.ttft == seen.e2el
    assert seen.done


def test_a_refusal_is_kept_and_has_no_tokens() -> None:
    seen = Measurement(sent=0.0, status=422)
    take_answer(seen, {"detail": []}, None)
    assert seen.error == {"detail": []}
    assert not seen.done
    assert not seen.token_ids


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def health_server(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/health", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def probe_a_blocked_server() -> tuple[int, int]:
    """A server that answers nobody until three have asked; how many of them got into the list."""
    asked, three_have = 0, asyncio.Event()

    async def health(_: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 3:
            three_have.set()
        await three_have.wait()
        return web.json_response({})

    async with health_server(health) as url, Client(url) as client:
        async with client.probing_health(interval=0.01) as samples:
            await three_have.wait()
        assert samples == sorted(samples)
        assert all(seconds > 0 for _, seconds in samples)
        return asked, len(samples)


def test_health_is_asked_whether_or_not_it_answers_and_every_asker_is_counted() -> None:
    asked, counted = asyncio.run(probe_a_blocked_server())
    assert counted == asked >= 3


async def wait_for_idle() -> list[int]:
    """A server on which one request after the other ends."""
    left, answers = [2, 1, 0], []

    async def health(_: web.Request) -> web.Response:
        answers.append(left.pop(0))
        return web.json_response({"running": answers[-1], "waiting": 0})

    async with health_server(health) as url, Client(url) as client:
        await client.idle()
    return answers


def test_idle_is_when_nothing_runs_any_more() -> None:
    assert asyncio.run(wait_for_idle()) == [2, 1, 0]


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, 3.0]])
def test_percentiles_of_equal_values_are_that_value(values: list[float]) -> None:
    assert {percentile(values, percent) for percent in (0, 50, 100)} == {3.0}
