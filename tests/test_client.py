"""Tests the measuring client: it computes its metrics from given times and events."""

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


def test_metrics_follow_from_the_times() -> None:
    seen = Measurement(
        sent=10.0, token_times=[10.5, 10.75, 11.75], token_ids=[1, 2, 3], text="abc", ended=12.0
    )
    assert seen.e2el == 2.0
    assert seen.ttft == 0.5
    assert seen.itl == [0.25, 1.0]
    assert seen.tpot == (2.0 - 0.5) / 2
    assert seen.tokens_per_second == 1.5


def test_a_single_token_has_no_itl() -> None:
    seen = Measurement(sent=0.0, token_times=[1.0], token_ids=[1], ended=1.0)
    assert seen.itl == []
    assert seen.tpot == 0


def test_percentiles_are_measured_values() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, percent) for percent in (0, 1, 20, 21, 50, 99, 100)] == [1, 1, 1, 2, 3, 5, 5]
    assert percentile(range(1, 101), 99) == 99
    assert median([1, 2, 3, 4]) == 2


@given(values=st.lists(st.floats(-1e9, 1e9), min_size=1), percent=st.floats(0, 100))
def test_a_percentile_is_the_smallest_value_with_enough_values_at_or_below_it(
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


def test_the_events_of_a_stream_form_its_output() -> None:
    seen, shown = Measurement(sent=0.0, status=200), list[str]()
    events = [token(4, " The"), token(5, " fox", finish_reason="stop"), Event("[DONE]")]
    for event in events:
        take_event(seen, event, lambda _, text: shown.append(text))
    assert (seen.text, seen.token_ids, seen.finish_reason) == (" The fox", [4, 5], "stop")
    assert shown == [" The", " fox"]
    assert seen.done
    assert seen.error is None
    assert 0 < seen.token_times[0] <= seen.token_times[1] <= seen.ended


def test_an_openai_chunk_with_a_choice_counts_as_a_token_even_without_text() -> None:
    """Part of a character or a special token also took a step; the usage at the end is no token."""
    seen, dialect = Measurement(sent=0.0, status=200), Completions("stub")
    choices = [{"text": ""}, {"text": None}, {"text": "é"}, {"finish_reason": "length"}]
    chunks: list[dict[str, Any]] = [{"choices": [choice]} for choice in choices]
    chunks += [{"choices": [], "usage": {"completion_tokens": 3}}, {"id": "x"}]
    for number, chunk in enumerate(chunks):
        take_event(seen, Event(json.dumps(chunk)), None, dialect)
        assert len(seen.token_times) == min(number + 1, len(choices))
    assert (seen.text, seen.tokens, seen.finish_reason) == ("é", 3, "length")


def test_after_an_error_event_a_stream_is_not_done() -> None:
    seen = Measurement(sent=0.0, status=200)
    take_event(seen, token(4, " The"), None)
    take_event(seen, Event('{"error": {"type": "Broken", "message": "it broke"}}', "error"), None)
    assert seen.error == {"type": "Broken", "message": "it broke"}
    assert not seen.done
    assert seen.token_ids == [4]


def test_a_non_streaming_response_has_a_ttft_equal_to_its_e2el() -> None:
    seen = Measurement(sent=0.0, status=200)
    answer = {"text": "ab", "token_ids": [1, 2], "completion_tokens": 2, "finish_reason": "length"}
    take_answer(seen, answer, None)
    assert seen.token_times == [seen.ended] * 2
    assert seen.ttft == seen.e2el
    assert seen.done


def test_a_rejected_request_has_an_error_and_no_tokens() -> None:
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
    """Probe a server that holds all responses until the third probe; count the probes and the samples."""
    probes, three_probes = 0, asyncio.Event()

    async def health(_: web.Request) -> web.Response:
        nonlocal probes
        probes += 1
        if probes == 3:
            three_probes.set()
        await three_probes.wait()
        return web.json_response({})

    async with health_server(health) as url, Client(url) as client:
        async with client.probing_health(interval=0.01) as samples:
            await three_probes.wait()
        assert samples == sorted(samples)
        assert all(seconds > 0 for _, seconds in samples)
        return probes, len(samples)


def test_health_probes_do_not_wait_for_responses_and_all_are_counted() -> None:
    probes, counted = asyncio.run(probe_a_blocked_server())
    assert counted == probes >= 3


async def wait_for_idle() -> list[int]:
    """Wait for a server on which two requests end, one after the other."""
    left, answers = [2, 1, 0], []

    async def health(_: web.Request) -> web.Response:
        answers.append(left.pop(0))
        return web.json_response({"running": answers[-1], "waiting": 0})

    async with health_server(health) as url, Client(url) as client:
        await client.idle()
    return answers


def test_idle_waits_until_no_request_is_in_flight() -> None:
    assert asyncio.run(wait_for_idle()) == [2, 1, 0]


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0, 3.0]])
def test_percentiles_of_equal_values_are_that_value(values: list[float]) -> None:
    assert {percentile(values, percent) for percent in (0, 50, 100)} == {3.0}
