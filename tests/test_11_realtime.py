"""Tests of rung 11: which client gets which message, in which order, and how bad clients are isolated."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ladder.lab.client import Client, read_events
from ladder.lab.realtime_scenes import handshake, silent_client
from ladder.predict.monitor import Meter
from ladder.web import websockets
from ladder.web.sse import Event
from ladder.web.websockets import MAX_MESSAGE_BYTES, WebSocketProtocol
from tests.faults import fault
from tests.predicting import HELD_OUT, IMAGES, ROW, Hold, engine_serving, expected, watch
from tests.support import RungServer, Server, ServerPool, eventually, import_rung, own_rung, serving

SCRIPT = "11_realtime.py"
rung = import_rung(SCRIPT)


@pytest.fixture
def server(pool: ServerPool) -> RungServer:
    return pool(SCRIPT)


def question(row: list[float] = ROW, **more: Any) -> str:
    return json.dumps({"features": row, **more})


Connection = aiohttp.ClientWebSocketResponse


@asynccontextmanager
async def connected(server: Server, path: str, **headers: str) -> AsyncIterator[Connection]:
    async with Client(server.url) as client, client.session.ws_connect(path, headers=headers) as connection:
        yield connection


async def ask(connection: Connection, text: str) -> Any:
    await connection.send_str(text)
    return json.loads(await connection.receive_str())


# One client, one answer


@pytest.mark.parametrize(("version", "answered"), [("v1", "v1"), ("latest", "v2"), ("default", "v1")])
def test_a_message_is_answered_by_the_version_it_names(
    server: RungServer, version: str, answered: str
) -> None:
    async def converse() -> None:
        async with connected(server, "/ws/predict") as connection:
            for row, outcome in zip(IMAGES[:5], expected(answered, IMAGES[:5]), strict=True):
                answer = await ask(connection, question(row, version=version, id="mine", probabilities=True))
                assert answer.pop("confidence") == pytest.approx(outcome.confidence, abs=1e-5)
                assert answer.pop("probabilities") == pytest.approx(outcome.probabilities, abs=1e-5)
                assert answer == {
                    "id": "mine",
                    "prediction": outcome.prediction,
                    "model": "digits",
                    "version_requested": version,
                    "model_version": answered,
                }

    asyncio.run(converse())


MALFORMED = {
    "no JSON": "{",
    "nothing": "",
    "a list": "[1, 2]",
    "a number": "7",
    "null": "null",
    "a surrogate": '"\\ud800"',
    "no row": "{}",
    "an unknown field": question(more=1),
    "an unknown version": question(version="v77"),
    "an unknown model": question(model="letters"),
    "a version that is no text": question(version=1),
    "too short a row": question(ROW[1:]),
    "NaN": '{"features": [NaN]}',
    "infinite": '{"features": [1e999]}',
    "deep": "[" * 30_000,
}


@pytest.mark.parametrize("path", ["/ws/predict", "/ws/predictions"])
def test_a_malformed_message_gets_an_error_and_the_socket_stays_open(server: RungServer, path: str) -> None:
    async def converse() -> None:
        async with connected(server, path) as connection:
            for name, text in MALFORMED.items():
                error = (await ask(connection, text))["error"]
                assert error["type"] in ("invalid", "not_found"), name
                assert len(error["message"]) < 300
            await connection.send_bytes(b"\x00\xff")
            assert json.loads(await connection.receive_str())["error"]["type"] == "invalid"
            assert (await ask(connection, question()))["model_version"] == "v1"

    asyncio.run(converse())


@pytest.mark.parametrize("path", ["/ws/predict", "/ws/predictions"])
def test_an_error_has_the_id_of_its_message(server: RungServer, path: str) -> None:
    async def converse() -> None:
        async with connected(server, path) as connection:
            for wrong in (question(version="v77", id="mine"), question(ROW[1:], id="mine"), '{"id": "mine"}'):
                answer = await ask(connection, wrong)
                assert (answer.keys(), answer["id"]) == ({"id", "error"}, "mine")
            for wrong in ('{"id": [1]}', '{"id": 1.5}', '["id"]', json.dumps({"id": "x" * 101})):
                assert (await ask(connection, wrong)).keys() == {"error"}

    asyncio.run(converse())


def test_a_message_that_is_too_large_closes_only_its_own_connection(server: RungServer) -> None:
    async def converse() -> None:
        async with connected(server, "/ws/predict") as good, connected(server, "/ws/predict") as bad:
            await bad.send_str("x" * (MAX_MESSAGE_BYTES + 1))
            closed = await bad.receive()
            assert closed.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            assert bad.close_code == 1009
            assert (await ask(good, question()))["model_version"] == "v1"

    asyncio.run(converse())


def test_a_ping_is_answered(server: RungServer) -> None:
    async def converse() -> None:
        async with Client(server.url) as client:
            connecting = client.session.ws_connect("/ws/predict", autoping=False)
            async with connecting as connection:
                await connection.ping(b"are you there")
                pong = await connection.receive()
                assert (pong.type, pong.data) == (aiohttp.WSMsgType.PONG, b"are you there")

    asyncio.run(converse())


def frame(content: bytes, kind: int) -> bytes:
    """A frame of a client: masked with zeros, which do not change it."""
    length = bytes([0x80 | len(content)]) if len(content) < 126 else b"\xfe" + struct.pack("!H", len(content))
    return bytes([0x80 | kind]) + length + bytes(4) + content


TEXT, PING = 1, 9


def flood(kind: int, content: bytes) -> None:
    """Send without reading, until the server disconnects."""
    engine = rung.Engine(rung.Config())
    with (
        serving(rung.create_app(engine), engine, websockets.settings(0.5)) as server,
        silent_client(server.url, "/ws/predict") as connection,
        suppress(ConnectionError),
    ):
        connection.settimeout(30)
        connection.recv(12)  # the beginning of the response: frames before it would be lost
        connection.sendall(frame(content, kind) * (12_000_000 // (6 + len(content))))


@fault("A client sends and never reads", "memory stays bounded", "11")
def test_a_client_that_only_sends_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server reads no further than it can answer: messages and answers do not accumulate."""
    untaken: list[int] = []
    take = WebSocketProtocol.send_receive_event_to_app

    def watched(self: WebSocketProtocol) -> None:
        take(self)
        untaken.append(self.queue.qsize())

    monkeypatch.setattr(WebSocketProtocol, "send_receive_event_to_app", watched)
    flood(TEXT, b"")
    assert 100 < max(untaken) < 1500


@fault("A client sends pings and never reads", "memory stays bounded", "11")
def test_a_client_that_pings_and_never_reads_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    unsent: list[int] = []
    answer_ping = WebSocketProtocol.handle_ping

    def watched(self: WebSocketProtocol) -> None:
        answer_ping(self)
        unsent.append(self.transport.get_write_buffer_size())

    monkeypatch.setattr(WebSocketProtocol, "handle_ping", watched)
    flood(PING, bytes(125))
    assert 60_000 < max(unsent) < 100_000


def test_a_client_that_answers_no_ping_is_disconnected() -> None:
    with own_rung(SCRIPT, "--ping-seconds", "0.2") as server:

        async def converse() -> None:
            async with Client(server.url) as client:
                connecting = client.session.ws_connect("/ws/predictions", autoping=False)
                async with connecting as connection:
                    assert (await connection.receive()).type == aiohttp.WSMsgType.PING
                    assert (await connection.receive()).type == aiohttp.WSMsgType.CLOSE
                    assert connection.close_code == 1011

        asyncio.run(converse())
        with silent_client(server.url, "/ws/predictions") as connection:
            connection.settimeout(30)
            assert connection.recv(12) == b"HTTP/1.1 101"
            while connection.recv(4096):
                pass  # until the server has closed the connection


@pytest.mark.parametrize("path", ["/ws/predict", "/ws/predictions", "/ws/monitor"])
def test_pages_of_other_origins_may_not_connect(server: RungServer, path: str) -> None:
    host = f"{server.address[0]}:{server.address[1]}"

    async def status(origin: str, host: str = host) -> int:
        try:
            async with connected(server, path, Origin=origin, Host=host):
                return 101
        except aiohttp.WSServerHandshakeError as error:
            return error.status

    async def converse() -> None:
        for origin in (
            "https://evil.example",
            "null",
            f"http://{host}.evil.example",
            "http://127.0.0.1:1",
            "http://[",
            "http://[::1",
            "",
        ):
            assert await status(origin) == 403
        # In a rebinding attack, a foreign name points here: Origin and Host are equal, but not trusted.
        evil = f"evil.example:{server.address[1]}"
        assert await status(f"http://{evil}", evil) == 421
        assert await status(f"http://{host}") == 101

    asyncio.run(converse())


def test_an_origin_can_be_allowed() -> None:
    with own_rung(SCRIPT, "--origins", "https://a.example, https://b.example") as server:

        async def converse() -> None:
            for origin in ("https://a.example", "https://b.example"):
                async with connected(server, "/ws/predict", Origin=origin) as connection:
                    assert (await ask(connection, question()))["model_version"] == "v1"

        asyncio.run(converse())


def test_more_connections_than_allowed_are_rejected() -> None:
    with own_rung(SCRIPT, "--max-connections", "2") as server:

        async def converse() -> None:
            async with connected(server, "/ws/predict") as first, connected(server, "/ws/predict"):
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    async with connected(server, "/ws/predict"):
                        pass
                assert refused.value.status == 503
                assert (await ask(first, question()))["model_version"] == "v1"
            await eventually(lambda: connections(server), lambda now: now["predict"] == 0)
            async with connected(server, "/ws/predict") as again:
                assert (await ask(again, question()))["model_version"] == "v1"

        asyncio.run(converse())


async def figures(server: Server) -> Any:
    async with connected(server, "/ws/monitor") as connection:
        return json.loads(await connection.receive_str())


async def connections(server: Server) -> Any:
    return (await figures(server))["connections"]


# Broadcasts

BROADCASTS = 1500
"""Of about 350 bytes each: more than fits into the buffers and the queue of a client that does not read."""


PACE = 20


def open_files(server: RungServer) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def resident_bytes(server: RungServer) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def abrupt(connection: socket.socket) -> None:
    """Close with a reset, like a killed process."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@fault(
    "Of 40 clients, five never read and five die", "the others get every message; the five are evicted", "11"
)
def test_forty_clients_of_which_five_never_read_and_five_die() -> None:
    """All others get every broadcast in order, and at the end no connection is left."""
    with own_rung(SCRIPT) as server:
        in_step = asyncio.Semaphore(0)

        async def listen(connection: Connection) -> list[int]:
            """Report progress from time to time, because one thread reads for thirty clients."""
            heard = []
            for number in range(BROADCASTS):
                heard.append(json.loads(await connection.receive_str())["id"])
                if number % PACE == 0:
                    in_step.release()
            return heard

        async def converse() -> None:
            before = open_files(server)
            silent = [silent_client(server.url, "/ws/predictions") for _ in range(5)]
            dying = [silent_client(server.url, "/ws/predictions") for _ in range(5)]
            async with AsyncExitStack() as stack:
                speaker = await stack.enter_async_context(connected(server, "/ws/predictions"))
                listeners = [
                    await stack.enter_async_context(connected(server, "/ws/predictions")) for _ in range(29)
                ]
                await eventually(lambda: connections(server), lambda now: now["predictions"] == 40)
                hearing = [asyncio.create_task(listen(one)) for one in (speaker, *listeners)]
                for number in range(BROADCASTS):
                    await speaker.send_str(question(id=number, probabilities=True))
                    if number % PACE == 0:
                        for _ in hearing:
                            await in_step.acquire()
                    if number == 100:
                        for connection in dying:
                            abrupt(connection)
                for heard in await asyncio.gather(*hearing):
                    assert heard == list(range(BROADCASTS))
                now = await figures(server)
                assert (now["connections"]["predictions"], now["evicted"]) == (30, 5)
            await eventually(lambda: connections(server), lambda now: now["predictions"] == 0)
            for connection in silent:
                connection.close()
            await eventually(lambda: asyncio.to_thread(open_files, server), lambda now: now <= before)

        asyncio.run(converse())
        assert server.process.errors() == ""


def test_an_evicted_connection_is_closed_although_its_client_never_reads() -> None:
    """The server closes its socket while the client keeps its own open."""
    with own_rung(SCRIPT) as server:

        async def converse() -> None:
            async with connected(server, "/ws/predictions") as speaker:
                await ask(speaker, question())
                before = open_files(server)
                with silent_client(server.url, "/ws/predictions"):
                    await eventually(lambda: connections(server), lambda now: now["predictions"] == 2)
                    for number in range(BROADCASTS):
                        await ask(speaker, question(id=number, probabilities=True))
                    await eventually(lambda: connections(server), lambda now: now["predictions"] == 1)
                    await eventually(lambda: asyncio.to_thread(open_files, server), lambda now: now <= before)

        asyncio.run(converse())


@asynccontextmanager
async def in_one_write(server: Server, path: str, messages: Iterable[str]) -> AsyncIterator[None]:
    """A client that sends all its messages at once, and reads as fast as it can."""
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(handshake("localhost", path))
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"".join(frame(message.encode(), TEXT) for message in messages))
    reading = asyncio.create_task(reader.read())
    try:
        yield
    finally:
        reading.cancel()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def ids(connection: Connection, count: int) -> list[int]:
    return [json.loads(await connection.receive_str())["id"] for _ in range(count)]


@pytest.mark.parametrize("cached", [True, False])
def test_a_burst_reaches_all_clients_in_order(cached: bool) -> None:
    """Frames that arrive together are read without a pause, and answered without one if they are cached."""
    with engine_serving(rung) as (engine, server):

        async def converse() -> None:
            async with AsyncExitStack() as stack:
                listeners = [
                    await stack.enter_async_context(connected(server, "/ws/predictions")) for _ in range(5)
                ]
                if cached:
                    await asyncio.to_thread(server.request, "POST", "/predict", question().encode())
                burst = [question(ROW if cached else IMAGES[number], id=number) for number in range(300)]
                await stack.enter_async_context(in_one_write(server, "/ws/predictions", burst))
                for heard in await asyncio.gather(*(ids(one, len(burst)) for one in listeners)):
                    assert heard == list(range(len(burst)))

        asyncio.run(converse())
        assert engine.managers["predictions"].evicted == 0


def test_in_a_flood_only_the_client_that_never_reads_is_evicted_and_told_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ladder.web.websockets.CLOSE_SECONDS", 60)
    with engine_serving(rung) as (engine, server):
        manager = engine.managers["predictions"]

        async def evicted() -> int:
            return int(manager.evicted)

        async def converse() -> None:
            async with AsyncExitStack() as stack:
                listeners = [
                    await stack.enter_async_context(connected(server, "/ws/predictions")) for _ in range(3)
                ]
                silent = stack.enter_context(silent_client(server.url, "/ws/predictions"))
                messages = [question(id=number, probabilities=True) for number in range(BROADCASTS)]
                await stack.enter_async_context(in_one_write(server, "/ws/predictions", messages))
                hearing = asyncio.gather(*(ids(one, BROADCASTS) for one in listeners))
                await eventually(evicted, lambda now: now == 1)
                await asyncio.to_thread(read_until, silent, struct.pack("!H", 1013) + b"you read too slowly")
                for heard in await hearing:
                    assert heard == list(range(BROADCASTS))

        asyncio.run(converse())
        assert manager.evicted == 1


def read_until(connection: socket.socket, wanted: bytes) -> None:
    received = b""
    while wanted not in received:
        piece = connection.recv(65536)
        assert piece, "closed before that"
        received = received[-len(wanted) :] + piece


def test_an_error_goes_only_to_the_client_that_caused_it() -> None:
    with own_rung(SCRIPT) as server:

        async def converse() -> None:
            async with (
                connected(server, "/ws/predictions") as one,
                connected(server, "/ws/predictions") as other,
            ):
                assert "error" in await ask(one, "{")
                assert (await ask(one, question(id=1)))["id"] == 1
                assert json.loads(await other.receive_str())["id"] == 1

        asyncio.run(converse())


# The monitor


def test_the_monitor_measures() -> None:
    with own_rung(SCRIPT) as server:

        async def converse() -> None:
            async with connected(server, "/ws/monitor") as monitor, connected(server, "/ws/predict") as asker:
                first = json.loads(await monitor.receive_str())
                for row in IMAGES[:50]:
                    await ask(asker, question(row))
                await asyncio.to_thread(server.request, "DELETE", "/models/digits/versions/v2")

                async def next_figures() -> Any:
                    return json.loads(await monitor.receive_str())

                now = await eventually(next_figures, lambda now: now["requests_per_second"] >= 5)
                assert now["connections"] == {"predict": 1, "predictions": 0, "monitor": 1}
                assert now["active_models"] == ["digits v1", "diabetes v1"]
                assert 0 < now["latency_p50_ms"] <= now["latency_p95_ms"] <= now["latency_p99_ms"]
                assert now["cpu_percent"] >= 0
                assert now["time"] > first["time"]
                assert now["rss_bytes"] == pytest.approx(resident_bytes(server), rel=0.05)

        asyncio.run(converse())


def test_the_rate_counts_more_requests_than_the_latencies_do() -> None:
    meter = Meter()
    for _ in range(30_000):
        meter.record(0.001)
    assert meter.sample([], {}, 0).requests_per_second == pytest.approx(30_000, rel=0.2)


def test_health_checks_do_not_count_as_load() -> None:
    with own_rung(SCRIPT) as server:
        for _ in range(20):
            server.health()
        now = asyncio.run(figures(server))
        assert (now["requests_per_second"], now["latency_p50_ms"]) == (0, None)


# Events


async def collect(client: Client, count: int, last_seen: str = "", do: Any = None) -> list[Event]:
    """So many events after the last one seen; `do` runs once the stream has started."""
    headers = {"Last-Event-ID": last_seen} if last_seen else {}
    seen = []
    async with client.session.get("/stream/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        if do:
            await do()
        async for event in read_events(response):
            seen.append(event)
            if len(seen) == count:
                break
        response.close()
    return seen


async def load(client: Client, times: int) -> None:
    """Cause so many events; their versions show the order."""
    for number in range(times):
        version = "v1" if number % 2 else "v2"
        async with client.session.put(f"/models/digits/versions/{version}") as response:
            assert response.status == 200


def test_a_client_gets_each_event_once_however_often_it_disconnects() -> None:
    with engine_serving(rung) as (engine, server):

        async def converse() -> None:
            async with Client(server.url) as client:
                seen = await collect(client, 3, do=lambda: load(client, 10))
                while len(seen) < 40:
                    await load(client, 5)
                    seen += await collect(client, min(5, 40 - len(seen)), seen[-1].id)
                numbers = [int(event.id.rpartition("-")[2]) for event in seen]
                assert numbers == list(range(numbers[0], numbers[0] + 40))
                assert [event.data for event in seen[:4]] == [
                    json.dumps({"version": f"digits {version}"}) for version in ("v2", "v1", "v2", "v1")
                ]
                assert {event.name for event in seen} == {"loaded"}
                assert engine.log.last >= 40

        asyncio.run(converse())


def test_a_client_that_is_disconnected_before_the_first_event_can_resume() -> None:
    with engine_serving(rung) as (_, server):
        with server.raw() as connection:
            connection.sendall(b"GET /stream/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            received = b""
            while b"id: " not in received or not received.endswith(b"\r\n"):
                received += connection.recv(4096)
        assert b"retry: 1000\n" in received
        last = received.partition(b"id: ")[2].split(b"\n")[0].decode()

        async def converse() -> None:
            async with Client(server.url) as client:
                await load(client, 4)
                seen = await collect(client, 4, last)
                assert [event.name for event in seen] == ["loaded"] * 4

        asyncio.run(converse())


def test_events_that_are_no_longer_kept_are_reported_as_a_gap() -> None:
    with engine_serving(rung, history=5) as (engine, server):

        async def converse() -> None:
            async with Client(server.url) as client:
                (first,) = await collect(client, 1, do=lambda: load(client, 1))
                await load(client, 12)
                gap, *rest = await collect(client, 6, first.id)
                assert (gap.name, json.loads(gap.data)) == ("gap", {"missed": 7})
                assert [event.id for event in rest] == [engine.log.id(number) for number in range(9, 14)]

        asyncio.run(converse())


def test_a_silent_event_stream_sends_comments() -> None:
    """Proxies close silent connections."""
    with engine_serving(rung, ping_seconds=0.1) as (_, server), server.raw() as connection:
        connection.sendall(b"GET /stream/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        read_until(connection, b": still here\n\n")
        read_until(connection, b": still here\n\n")


def test_a_client_that_is_being_sent_an_event_does_not_miss_the_end() -> None:
    async def follow() -> None:
        log = rung.EventLog(5)
        following = log.follow(None)
        await anext(following)
        log.append("loaded", {})
        await anext(following)
        log.append("unloaded", {})
        log.close()
        async with asyncio.timeout(60):
            assert [event.split(b"\n")[0] async for event in following] == [b"event: unloaded"]

    asyncio.run(follow())


@pytest.mark.parametrize("last_seen", ["0badc0de-3", "x", "-", "{run}-99", "{run}-", "{run}--1", "{run}-²"])
def test_a_number_from_before_a_restart_is_a_gap(last_seen: str) -> None:
    with engine_serving(rung) as (engine, server):

        async def converse() -> None:
            async with Client(server.url) as client:
                await load(client, 2)
                gap, *rest = await collect(client, 3, last_seen.format(run=engine.log.run_id))
                assert (gap.name, json.loads(gap.data)) == ("gap", {"missed": None})
                assert [event.id for event in rest] == [engine.log.id(1), engine.log.id(2)]

        asyncio.run(converse())


def test_the_events_say_what_happened() -> None:
    with engine_serving(rung) as (_, server):

        async def happen() -> None:
            async with Client(server.url) as client:
                await client.session.delete("/models/digits/versions/v2")
                await client.session.put("/models/digits/versions/v2")
                await client.session.put("/models/digits/default", json={"version": "v2"})

        async def converse() -> None:
            async with Client(server.url) as client:
                seen = await collect(client, 3, do=happen)
                assert [event.name for event in seen] == ["unloaded", "loaded", "default"]

        asyncio.run(converse())


# Training


def training(server: Server, epochs: int) -> list[Event]:
    answer = server.request("POST", f"/train/stream?epochs={epochs}", b"")
    assert answer.status == 200
    return answer.events()


def test_a_training_learns_and_its_version_is_served() -> None:
    with own_rung(SCRIPT) as server:
        *epochs, trained, done = training(server, 8)
        told = [json.loads(event.data) for event in epochs]
        assert {event.name for event in epochs} == {"epoch"}
        assert [one["epoch"] for one in told] == list(range(1, 9))
        assert {one["epochs"] for one in told} == {8}
        assert told[-1]["loss"] < told[0]["loss"] / 2
        assert told[-1]["accuracy"] > 0.9
        assert trained.name == "trained"
        assert json.loads(trained.data) == {
            "model": "digits",
            "version": "v3",
            "accuracy": told[-1]["accuracy"],
        }
        assert done.data == "[DONE]"
        body = json.dumps({"instances": IMAGES}).encode()
        batch = server.request("POST", "/predict/batch?version=latest", body).json()
        assert batch["model_version"] == "v3"
        right = sum(a == b for a, b in zip(batch["predictions"], HELD_OUT.labels.tolist(), strict=True))
        assert right / len(IMAGES) == pytest.approx(told[-1]["accuracy"])


def test_a_training_stops_when_its_client_disconnects() -> None:
    with engine_serving(rung) as (engine, server):
        with server.raw() as connection:
            connection.sendall(
                b"POST /train/stream?epochs=200 HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n"
            )
            received = b""
            while b"event: epoch" not in received:
                received += connection.recv(4096)
            refused = server.request("POST", "/train/stream?epochs=1", b"")
            assert refused.status == 503
            assert int(refused.headers["retry-after"]) >= 1

        async def running() -> bool:
            return bool(engine.trainer.running)

        asyncio.run(eventually(running, lambda now: not now))
        after = engine.trainer.epochs
        assert after < 200
        training(server, 1)  # waits for the thread, in which no further epoch has run
        assert engine.trainer.epochs <= after + 1
        assert list(engine.registry.models["digits"].versions) == ["v1", "v2", "v3"]


def test_the_oldest_trained_versions_are_unloaded_except_the_default() -> None:
    with engine_serving(rung, max_trained=2) as (engine, server):
        training(server, 1)
        server.request("PUT", "/models/digits/default", b'{"version": "v3"}')
        for _ in range(4):
            training(server, 1)
        assert list(engine.registry.models["digits"].versions) == ["v1", "v2", "v3", "v6", "v7"]


def test_no_two_versions_have_the_same_number() -> None:
    """An answer of an unloaded version must not be taken for an answer of a new one."""
    with engine_serving(rung, max_trained=2) as (engine, server):
        training(server, 1)
        told = [server.request("POST", "/predict?version=v3", question().encode()).status]
        told.append(server.request("DELETE", "/models/digits/versions/v3").status)
        trained = [json.loads(training(server, 1)[-2].data)["version"] for _ in range(3)]
        told.append(server.request("POST", "/predict?version=v3", question().encode()).status)
        assert told == [200, 200, 404]
        assert trained == ["v4", "v5", "v6"]
        assert list(engine.registry.models["digits"].versions) == ["v1", "v2", "v5", "v6"]


@pytest.mark.parametrize("epochs", ["0", "201", "-1", "x", "1.5"])
def test_a_training_is_bounded(server: RungServer, epochs: str) -> None:
    assert server.request("POST", f"/train/stream?epochs={epochs}", b"").status == 422


def test_pages_of_other_origins_may_not_train(server: RungServer) -> None:
    for origin in ("https://evil.example", "http://["):
        assert server.request("POST", "/train/stream?epochs=1", b"", Origin=origin).status == 403


# Rung 10's web side


def test_a_message_is_answered_by_the_version_it_started_with() -> None:
    hold = Hold()
    with engine_serving(rung) as (engine, server):
        watch(engine.predicting, "v1", hold)

        async def converse() -> None:
            async with connected(server, "/ws/predict") as connection:
                await connection.send_str(question(id=1))
                await asyncio.to_thread(hold.reached.wait, 60)
                await asyncio.to_thread(server.request, "PUT", "/models/digits/default", b'{"version": "v2"}')
                hold.opened.set()
                assert json.loads(await connection.receive_str())["model_version"] == "v1"
                assert (await ask(connection, question(id=2)))["model_version"] == "v2"

        asyncio.run(converse())


def test_it_answers_like_rung_10(server: RungServer) -> None:
    answer = server.request("POST", "/predict?version=v2", question().encode()).json()
    assert (answer["prediction"], answer["model_version"]) == (expected("v2", [ROW])[0].prediction, "v2")
    assert server.health()["rung"] == "11"
