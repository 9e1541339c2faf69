"""Tests the HTTP contract of every rung: the same requests get the same responses.

The tests send requests to real servers. They compare outputs with transformers' greedy `generate`, streams
with non-streaming responses, concurrent requests with single ones. A disconnect must stop its request.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from ladder.lab.client import Client, Measurement
from ladder.llm.loading import Model
from ladder.web.schema import MAX_BODY_BYTES, GenerateRequest
from tests.faults import fault
from tests.support import (
    PROMPTS,
    QUESTION,
    RUNGS,
    STORY,
    Answer,
    Oracle,
    RungServer,
    import_rung,
    is_idle,
    is_token,
    long_stream,
    make_request,
    raw_request,
    read_answer,
)

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
HOT: dict[str, Any] = {"temperature": 2.0, "max_tokens": 60}
"""Such a high temperature gives random bytes: incomplete characters and invalid UTF-8."""

ANSWER_FIELDS = {
    "text": str,
    "token_ids": list,
    "finish_reason": str,
    "prompt_tokens": int,
    "completion_tokens": int,
    "prefill_time_ms": float,
    "total_time_ms": float,
}


def without_times(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in answer.json().items() if not name.endswith("_ms")}


def greedy_tokens(oracle: Oracle, bundled: Model, prompt: str, max_tokens: int) -> list[int]:
    return oracle.generate(bundled.tokenizer.encode(prompt), max_tokens)


@pytest.fixture(scope="module")
def ending(oracle: Oracle, bundled: Model) -> tuple[str, list[int]]:
    """A prompt whose greedy output has an end token, and that output."""
    (end,) = bundled.stop_ids
    for prompt in PROMPTS:
        tokens = greedy_tokens(oracle, bundled, prompt, 400)
        if tokens[-1] == end and len(tokens) > 2:
            return prompt, tokens
    raise AssertionError("the bundled model ends none of these outputs")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_greedy_response_equals_transformers_output(
    server: RungServer, oracle: Oracle, bundled: Model, prompt: str
) -> None:
    expected = greedy_tokens(oracle, bundled, prompt, GREEDY["max_tokens"])
    response = server.generate(prompt, **GREEDY)
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert {name: type(value) for name, value in answer.items()} == ANSWER_FIELDS
    assert answer["token_ids"] == expected
    assert answer["text"] == bundled.tokenizer.decode(expected)
    assert answer["prompt_tokens"] == len(bundled.tokenizer.encode(prompt))
    assert answer["completion_tokens"] == len(expected)
    assert answer["finish_reason"] == ("stop" if expected[-1] in bundled.stop_ids else "length")
    assert 0 <= answer["prefill_time_ms"] <= answer["total_time_ms"]


def test_generation_stops_at_the_end_token_which_has_no_text(
    server: RungServer, bundled: Model, ending: tuple[str, list[int]]
) -> None:
    prompt, expected = ending
    answer = server.generate(prompt, temperature=0, max_tokens=400).json()
    assert answer["finish_reason"] == "stop"
    assert answer["token_ids"] == expected
    assert answer["text"] == bundled.tokenizer.decode(expected[:-1])


def test_an_end_token_at_max_tokens_is_a_stop(server: RungServer, ending: tuple[str, list[int]]) -> None:
    prompt, expected = ending
    exactly, short = (
        server.generate(prompt, temperature=0, max_tokens=len(expected) - less).json() for less in (0, 1)
    )
    assert (exactly["finish_reason"], short["finish_reason"]) == ("stop", "length")
    assert short["token_ids"] == expected[:-1]
    assert short["text"] == exactly["text"]


@pytest.mark.parametrize("seed", range(6))
def test_the_response_text_is_the_decoded_tokens(server: RungServer, bundled: Model, seed: int) -> None:
    answer = server.generate(STORY, **HOT, seed=seed).json()
    assert answer["text"] == bundled.tokenizer.decode(answer["token_ids"])


@pytest.fixture(scope="module")
def cut_short(bundled: Model) -> tuple[int, int]:
    """A seed and a length at which its output ends in the middle of a character."""
    engine = import_rung(RUNGS[0]).Engine(bundled)
    for seed in range(50):
        tokens = engine.generate(GenerateRequest(prompt=STORY, **HOT, seed=seed)).token_ids
        for length in range(1, len(tokens)):
            shown, more = (bundled.tokenizer.decode(tokens[:end]) for end in (length, length + 1))
            if shown.endswith("\ufffd") and not more.startswith(shown):
                return seed, length
    raise AssertionError("no output has a character of several tokens")


def test_an_incomplete_character_at_the_end_is_not_lost(
    server: RungServer, bundled: Model, cut_short: tuple[int, int]
) -> None:
    seed, length = cut_short
    settings: dict[str, Any] = {**HOT, "seed": seed, "max_tokens": length}
    answer = server.generate(STORY, **settings).json()
    assert answer["text"].endswith("\ufffd")
    assert answer["text"] == bundled.tokenizer.decode(answer["token_ids"])
    if server.streams:
        tokens = server.generate(STORY, **settings, stream=True).tokens()
        assert tokens[-1]["token"].endswith("\ufffd")
        assert "".join(token["token"] for token in tokens) == answer["text"]


def test_a_single_token_can_be_requested(server: RungServer) -> None:
    answer = server.generate(QUESTION, max_tokens=1, temperature=0).json()
    assert answer["completion_tokens"] == 1
    assert answer["finish_reason"] == "length"


def test_a_request_may_fill_the_context_but_not_exceed_it(server: RungServer, bundled: Model) -> None:
    prompt_tokens = len(bundled.tokenizer.encode(QUESTION))
    fits = bundled.context - prompt_tokens
    assert server.generate(QUESTION, temperature=0, max_tokens=fits).status == 200
    assert server.generate(QUESTION, temperature=0, max_tokens=fits + 1).status == 422


def test_defaults_are_those_of_the_contract(server: RungServer) -> None:
    spelled_out = server.generate(QUESTION, seed=5, max_tokens=128, temperature=0.7, top_p=1.0, stream=False)
    assert without_times(server.generate(QUESTION, seed=5)) == without_times(spelled_out)
    assert without_times(server.generate(QUESTION, seed=None, temperature=0)) == without_times(
        server.generate(QUESTION, temperature=0)
    )


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64, 2**64 + 1, -(2**70), 10**100])
def test_any_integer_is_a_valid_seed(server: RungServer, seed: int) -> None:
    first, second = (server.generate(STORY, temperature=2, max_tokens=12, seed=seed) for _ in range(2))
    assert first.status == 200
    assert without_times(first) == without_times(second)


def test_different_seeds_and_no_seed_give_different_outputs(server: RungServer) -> None:
    texts = [server.generate(STORY, **HOT, seed=seed).json()["text"] for seed in (1, 2, None, None)]
    assert len(set(texts)) == 4


def test_a_tiny_top_p_is_greedy(server: RungServer) -> None:
    tiny = server.generate(STORY, temperature=2, top_p=1e-300, max_tokens=16)
    assert tiny.status == 200
    assert without_times(tiny) == without_times(server.generate(STORY, temperature=0, max_tokens=16))


@pytest.mark.parametrize("settings", [GREEDY, HOT], ids=["greedy", "high temperature"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stream_equals_the_non_streaming_response(
    streaming_server: RungServer, prompt: str, settings: dict[str, Any]
) -> None:
    settings = {**settings, "max_tokens": 24, "seed": 11}
    whole = streaming_server.generate(prompt, **settings).json()
    tokens = streaming_server.generate(prompt, **settings, stream=True).tokens()
    assert "".join(token["token"] for token in tokens) == whole["text"]
    assert [token["token_id"] for token in tokens] == whole["token_ids"]
    assert tokens[-1]["finish_reason"] == whole["finish_reason"]


@pytest.mark.parametrize("max_tokens", [1, 2, 24])
def test_stream_events_have_the_documented_fields(endless_server: RungServer, max_tokens: int) -> None:
    events = endless_server.generate(STORY, temperature=0, max_tokens=max_tokens, stream=True).events()
    assert [is_token(event) for event in events] == [True] * max_tokens + [False]
    assert events[-1].data == "[DONE]"
    assert {event.name for event in events} == {"message"}
    tokens = [json.loads(event.data) for event in events[:-1]]
    times = ["prefill_time_ms"] + ["step_ms"] * (max_tokens - 1)
    for place, (token, time) in enumerate(zip(tokens, times, strict=True), start=1):
        ends = {"finish_reason"} if place == max_tokens else set()
        assert token.keys() == {"token", "token_id", time} | ends
        assert token[time] >= 0


def test_the_end_token_of_a_stream_has_no_text(
    streaming_server: RungServer, bundled: Model, ending: tuple[str, list[int]]
) -> None:
    prompt, expected = ending
    tokens = streaming_server.generate(prompt, temperature=0, max_tokens=400, stream=True).tokens()
    assert [token["token_id"] for token in tokens] == expected
    assert tokens[-1]["finish_reason"] == "stop"
    assert tokens[-1]["token"] == ""
    assert "".join(token["token"] for token in tokens) == bundled.tokenizer.decode(expected)


def test_stream_headers_disable_caching_and_proxy_buffering(streaming_server: RungServer) -> None:
    answer = streaming_server.generate(QUESTION, **GREEDY, stream=True)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers


def test_tokens_arrive_before_the_generation_ends(endless_server: RungServer) -> None:
    """The client gets the first event while the request is still running."""

    async def watch() -> dict[str, Any]:
        async with Client(endless_server.url) as client, long_stream(client):
            return await client.health()

    assert asyncio.run(watch())["running"] == 1
    endless_server.idle()


def test_a_connection_is_reused_for_several_requests(server: RungServer) -> None:
    """Also after streams: each marks its end, so the client can reuse the connection."""
    connection = server.connect()
    try:
        for stream in (False, server.streams, False, server.streams):
            connection.request(*make_request(QUESTION, **GREEDY, stream=stream))
            socket = connection.sock
            answer = read_answer(connection)
            assert answer.status == 200
            assert connection.sock is socket is not None
            assert (b"[DONE]" in answer.body) == stream
    finally:
        connection.close()


SECRET = "a prompt that no response repeats"

WRONG_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": 3}),
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": [SECRET]}),
    ("prompt", {"prompt": (SECRET + " ") * 4000}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": -1}),
    ("max_tokens", {"max_tokens": 1.5}),
    ("max_tokens", {"max_tokens": "3"}),
    ("max_tokens", {"max_tokens": True}),
    ("max_tokens", {"max_tokens": None}),
    ("max_tokens", {"max_tokens": 1024}),
    ("max_tokens", {"max_tokens": 10**30}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": 2.1}),
    ("temperature", {"temperature": "1"}),
    ("temperature", {"temperature": float("nan")}),
    ("temperature", {"temperature": float("inf")}),
    ("temperature", {"temperature": None}),
    ("top_p", {"top_p": 0}),
    ("top_p", {"top_p": 1.1}),
    ("top_p", {"top_p": float("nan")}),
    ("seed", {"seed": "x"}),
    ("seed", {"seed": 1.5}),
    ("seed", {"seed": True}),
    ("stream", {"stream": "yes"}),
    ("stream", {"stream": 1}),
    ("stream", {"stream": None}),
    ("temprature", {"temprature": 1}),
    ("body", {"body": 1}),
    ("query", {"query": 1}),
]


def details(answer: Answer) -> list[dict[str, Any]]:
    """The errors of a 422 response: one format on every rung, and no copy of what the client sent."""
    assert answer.status == 422, answer
    assert answer.headers["content-type"] == "application/json"
    assert SECRET.encode() not in answer.body
    assert len(answer.body) < 1000
    body = answer.json()
    assert body.keys() == {"detail"}
    assert body["detail"]
    for finding in body["detail"]:
        assert finding.keys() == {"type", "loc", "msg"}
        assert finding["loc"][0] == "body"
        assert finding["msg"]
    found: list[dict[str, Any]] = body["detail"]
    return found


def field_error(answer: Answer, field: str) -> None:
    assert [finding["loc"][:2] for finding in details(answer)] == [["body", field]]


@pytest.mark.parametrize(
    ("field", "changes"), WRONG_FIELDS, ids=[str(changes)[:40] for _, changes in WRONG_FIELDS]
)
def test_a_wrong_field_is_named(server: RungServer, field: str, changes: dict[str, Any]) -> None:
    before = server.idle()["steps"]
    field_error(server.generate(**{"prompt": SECRET, "max_tokens": 4, **changes}), field)
    assert server.idle()["steps"] == before


def test_a_missing_prompt_is_named(server: RungServer) -> None:
    field_error(server.post(b"{}"), "prompt")


def test_all_wrong_fields_are_named_together(server: RungServer) -> None:
    answer = server.generate("", max_tokens=0, top_p=2, colour="red")
    assert {finding["loc"][1] for finding in details(answer)} == {"prompt", "max_tokens", "top_p", "colour"}


@pytest.mark.parametrize(("field", "text"), [("temperature", b"1e999"), ("top_p", b"1e-999")])
def test_a_number_out_of_float_range_is_a_wrong_field(server: RungServer, field: str, text: bytes) -> None:
    field_error(server.post(b'{"prompt": "a", "%s": %s}' % (field.encode(), text)), field)


WRONG_BODIES = {
    "empty": b"",
    "list": json.dumps([SECRET]).encode(),
    "string": json.dumps(SECRET).encode(),
    "null": b"null",
    "number": b"3",
    "not json": SECRET.encode(),
    "cut short": b'{"prompt": "' + SECRET.encode(),
    "two objects": b'{"prompt": "a"} {"prompt": "b"}',
    "not utf-8": b'{"prompt": "\xff\xfe"}',
    "half a surrogate pair": b'{"prompt": "\\ud83d"}',
    "surrogates in the wrong order": b'{"prompt": "\\udc00\\ud83d"}',
    "too many digits": b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
    "nested too deep": b'{"prompt": ' + b"[" * 100_000,
    "a control character": b'{"prompt": "a\nb"}',
}


@pytest.mark.parametrize("body", WRONG_BODIES.values(), ids=WRONG_BODIES)
def test_a_wrong_body_is_a_422(server: RungServer, body: bytes) -> None:
    details(server.post(body))


def post_as(server: RungServer, media_type: str | None, body: bytes) -> Answer:
    headers = {} if media_type is None else {"content-type": media_type}
    connection = server.connect()
    try:
        connection.request("POST", "/generate", body, headers)
        return read_answer(connection)
    finally:
        connection.close()


@pytest.mark.parametrize(
    "media_type",
    ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", "text/json", "json", "", None],
)
def test_media_types_other_than_json_are_a_415(server: RungServer, media_type: str | None) -> None:
    """The first is curl's default. The response names the header to send."""
    before = server.idle()["steps"]
    for body in (b'{"prompt": "a", "max_tokens": 1}', b"{}", SECRET.encode()):
        answer = post_as(server, media_type, body)
        assert answer.status == 415
        assert answer.headers["content-type"] == "application/json"
        assert answer.json().keys() == {"detail"}
        assert "content-type: application/json" in answer.json()["detail"]
        assert SECRET.encode() not in answer.body
    assert server.idle()["steps"] == before
    details(post_as(server, media_type, b""))


@pytest.mark.parametrize("media_type", ["Application/JSON; charset=utf-8", "application/ld+json"])
def test_several_json_media_types_are_accepted(server: RungServer, media_type: str) -> None:
    assert post_as(server, media_type, b'{"prompt": "a", "max_tokens": 1}').status == 200


@pytest.mark.parametrize("names", [["k" * 10_000], [f"k{n}" for n in range(5000)]], ids=["long", "many"])
def test_a_422_response_stays_short(server: RungServer, names: list[str]) -> None:
    answer = server.generate(QUESTION, **dict.fromkeys(names, 1))
    assert answer.status == 422
    assert len(answer.body) < 10_000


def test_a_lone_surrogate_is_a_wrong_prompt(streaming_server: RungServer) -> None:
    """Not on rung 01: its JSON parser rejects the whole body and names no field."""
    field_error(streaming_server.post(WRONG_BODIES["half a surrogate pair"]), "prompt")


def test_a_surrogate_pair_is_one_character(server: RungServer) -> None:
    escaped, plain = b'"\\ud83d\\ude80"', '"🚀"'.encode()
    first, second = (
        server.post(b'{"temperature": 0, "max_tokens": 4, "prompt": %s}' % prompt)
        for prompt in (escaped, plain)
    )
    assert first.status == 200
    assert without_times(first) == without_times(second)


def test_a_prompt_may_contain_control_characters_and_markup(server: RungServer, bundled: Model) -> None:
    prompt = "\0\x1b[31m \u202e \ufeff <|endoftext|> </script>"
    answer = server.generate(prompt, **GREEDY)
    assert answer.status == 200
    assert answer.json()["prompt_tokens"] == len(bundled.tokenizer.encode(prompt))


def too_large() -> Iterator[bytes]:
    yield b'{"prompt": "'
    for _ in range(MAX_BODY_BYTES // 2**16 + 1):
        yield b"a" * 2**16
    yield b'"}'


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
@fault("A body larger than 4 MiB", "413", "01–05")
def test_a_body_that_is_too_large_is_a_413(server: RungServer, chunked: bool) -> None:
    answer = server.request("POST", "/generate", too_large() if chunked else b"".join(too_large()))
    assert answer.status == 413
    assert server.health()["status"] == "ok"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/nothing", 404),
        ("GET", "/generate", 405),
        ("PUT", "/generate", 405),
        ("DELETE", "/health", 405),
        ("POST", "/health", 405),
    ],
)
def test_a_wrong_path_or_method_is_a_json_error(
    server: RungServer, method: str, path: str, status: int
) -> None:
    answer = server.request(method, path)
    assert answer.status == status
    assert answer.json().keys() == {"detail"}
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize("path", ["/", "/health", "/generate"])
def test_unusual_methods_cause_no_server_error(server: RungServer, method: str, path: str) -> None:
    assert server.request(method, path).status < 500
    assert server.health()["status"] == "ok"


def test_health_has_the_documented_fields(server: RungServer) -> None:
    health = server.idle()
    assert health["status"] == "ok"
    assert health["rung"] == server.number
    assert health["model"] == "tiny"
    assert health["pid"] == server.process.pid
    assert (health["running"], health["waiting"]) == (0, 0)
    assert health.keys() >= {"status", "rung", "model", "running", "waiting", "steps", "tokens", "pid"}


def test_health_counts_the_tokens_and_the_forward_passes(server: RungServer) -> None:
    before = server.idle()
    answers = [server.generate(prompt, **GREEDY).json() for prompt in PROMPTS[:3]]
    if server.streams:
        answers.append({"completion_tokens": len(server.generate(STORY, **GREEDY, stream=True).tokens())})
    after = server.idle()
    tokens = sum(answer["completion_tokens"] for answer in answers)
    assert after["tokens"] - before["tokens"] == tokens
    # Sequential requests, and prompts shorter than any chunk: one forward pass per token.
    assert after["steps"] - before["steps"] == tokens


async def at_once(server: RungServer, requests: list[dict[str, Any]]) -> list[Measurement]:
    async with Client(server.url) as client:
        return await asyncio.gather(*(client.generate(**request) for request in requests))


def mixed(server: RungServer, **settings: Any) -> list[dict[str, Any]]:
    """Sixteen requests of different lengths; every second one streams, if the rung supports it."""
    return [
        {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "max_tokens": 1 + 5 * number,
            "stream": server.streams and number % 2 == 1,
            **settings,
        }
        for number in range(16)
    ]


def test_concurrent_greedy_requests_equal_transformers(
    server: RungServer, oracle: Oracle, bundled: Model
) -> None:
    before = server.idle()
    requests = mixed(server, temperature=0)
    answers = asyncio.run(at_once(server, requests))
    after = server.idle()
    for request, answer in zip(requests, answers, strict=True):
        assert answer.done
        assert answer.token_ids == greedy_tokens(oracle, bundled, request["prompt"], request["max_tokens"])
        assert answer.text == bundled.tokenizer.decode(answer.token_ids)
    tokens = sum(len(answer.token_ids) for answer in answers)
    assert after["tokens"] - before["tokens"] == tokens
    assert 0 < after["steps"] - before["steps"] <= tokens


def test_seeded_requests_do_not_depend_on_concurrent_requests(server: RungServer) -> None:
    requests = [
        {**request, "seed": number, "temperature": 0.5 + number / 16, "top_p": 1 - number / 32}
        for number, request in enumerate(mixed(server))
    ]
    together = asyncio.run(at_once(server, requests))
    alone = [server.generate(**{**request, "stream": False}).json() for request in requests]
    assert [answer.token_ids for answer in together] == [answer["token_ids"] for answer in alone]
    assert [answer.text for answer in together] == [answer["text"] for answer in alone]


LONG = 3000


async def disconnect_during(server: RungServer, stream: bool) -> dict[str, Any]:
    """Send a long request, disconnect while it is in flight, and return its steps and tokens."""
    before = await server.health_when(is_idle)
    async with Client(server.url) as client:
        request = client.generate(STORY, max_tokens=LONG, stream=stream)
        task = asyncio.create_task(request)
        await server.health_when(lambda health: health["steps"] > before["steps"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        after = await server.health_when(is_idle)
        return {name: after[name] - before[name] for name in ("steps", "tokens")}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@fault(
    "A client disconnects, with or without streaming",
    "its request stops",
    "02–05",
)
def test_a_disconnect_stops_the_request(endless_server: RungServer, stream: bool) -> None:
    spent = asyncio.run(disconnect_during(endless_server, stream))
    assert 0 < spent["steps"] < LONG
    assert_nothing_runs(endless_server)


def assert_nothing_runs(server: RungServer) -> None:
    """A new request takes exactly its own steps: no other request runs."""
    before = server.idle()
    server.generate(QUESTION, max_tokens=20)
    after = server.idle()
    assert after["steps"] - before["steps"] == after["tokens"] - before["tokens"] == 20


async def disconnect(server: RungServer, chance: random.Random) -> None:
    """Disconnect at a random moment: before, during or after sending, or during the response."""
    request = raw_request(STORY, max_tokens=LONG, stream=chance.random() < 0.5)
    sent = request[: chance.choice([0, 20, len(request) - 1, *[len(request)] * 5])]
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(sent)
    await writer.drain()
    if sent == request and chance.random() < 0.6:
        for _ in range(chance.randrange(12)):
            # Without a stream there is nothing to read yet: wait for a random time instead.
            try:
                async with asyncio.timeout(0.02):
                    await reader.read(chance.randrange(1, 400))
            except TimeoutError:
                pass
    if chance.random() < 0.5:
        writer.transport.abort()
    writer.close()


async def disconnect_many(server: RungServer, number: int, at_a_time: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(number // at_a_time):
        await asyncio.gather(*(disconnect(server, chance) for _ in range(at_a_time)))


@fault("200 clients disconnect at random moments", "no request and no thread is left", "02–05")
def test_two_hundred_disconnects_leak_nothing(endless_server: RungServer) -> None:
    assert_nothing_runs(endless_server)  # threads that start at the first request run now
    before, threads = endless_server.idle(), endless_server.threads()
    logged = endless_server.process.errors()
    asyncio.run(disconnect_many(endless_server, 200, at_a_time=20, seed=7))
    after = endless_server.idle()
    assert 0 < after["tokens"] - before["tokens"] < 200 * 100
    assert_nothing_runs(endless_server)
    assert endless_server.threads() == threads
    assert "Traceback" not in endless_server.process.errors().removeprefix(logged)


def exchange(server: RungServer, data: bytes, half_close: bool = False) -> bytes:
    """Send bytes as they are, and read until the server closes the connection."""
    with server.raw() as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(1)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET /nothing HTTP/9.9\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: a\r\ncontent-length: minus one\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"GET /health HTTP/1.1\r\nbad header\r\n\r\n",
        b"\r\n" * 100 + b"\0" * 100 + b"\r\n\r\n",
    ],
)
@fault("Bytes that are no HTTP", "400, and the next client is served", "01–05")
def test_invalid_http_gets_an_error_and_crashes_nothing(server: RungServer, garbage: bytes) -> None:
    logged = server.process.errors()
    answer = exchange(server, garbage, half_close=True)
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert server.health()["status"] == "ok"
    assert "Traceback" not in server.process.errors().removeprefix(logged)


def test_pipelined_requests_get_their_responses_in_order(server: RungServer) -> None:
    """The client sends the second request before it gets the first response."""
    first = raw_request(QUESTION, **GREEDY)
    last = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    received = exchange(server, first + last)
    generated = received.find(b'"finish_reason"')
    health = received.find(b'"rung"')
    assert received.count(b"HTTP/1.1 200") == 2
    assert 0 < generated < health


@fault("A client reads a few bytes at a time", "its stream is complete", "02–05")
def test_a_stream_that_is_read_slowly_is_complete(streaming_server: RungServer) -> None:
    """The client reads a few bytes at a time, after the generation has ended. No buffer loses data."""
    request = raw_request(STORY, **GREEDY, stream=True).replace(b"host:", b"connection: close\r\nhost:")
    with streaming_server.raw() as connection:
        connection.sendall(request)
        streaming_server.idle()
        received = b""
        while piece := connection.recv(7):
            received += piece
    whole = streaming_server.generate(STORY, **GREEDY).json()
    assert received.count(b"data: {") == whole["completion_tokens"]
    assert b"data: [DONE]\n\n" in received
