"""Requests that no server should have to answer: each is refused, and /health answers beside it."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from hypothesis import HealthCheck, given, settings, strategies as st

from ladder.lab.realtime_scenes import handshake
from ladder.web import connection
from ladder.web.connection import MAX_HEAD_BYTES, MAX_HEADERS, MAX_URL_BYTES
from ladder.web.server import Lifecycle
from tests.faults import fault
from tests.support import (
    SCRIPTS,
    STORY,
    RungServer,
    Server,
    make_request,
    own_rung,
    raw_request,
    serving,
)

ON_UVICORN = [script for script in SCRIPTS if script[:2] >= "02"]
START = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"


def flags(script: str, folder: Path) -> tuple[str, ...]:
    return ("--uploads", str(folder)) if script.startswith("12") else ()


@pytest.fixture(params=SCRIPTS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RungServer]:
    with own_rung(request.param, *flags(request.param, tmp_path)) as server:
        yield server


def response_to(server: Server, sent: bytes, more: bytes = b"") -> bytes:
    """What the server sends until it closes the connection. `more` is sent without end, until then."""
    with server.raw() as client:
        client.sendall(sent)
        while more:
            try:
                client.sendall(more)
            except OSError:  # the server has closed, and has not read all of it
                break
        return rest_of(client)


def rest_of(client: socket.socket) -> bytes:
    received = b""
    try:
        while some := client.recv(65536):
            received += some
    except ConnectionResetError:
        pass
    return received


def status_of(response: bytes) -> int:
    return int(response.split(maxsplit=2)[1])


@fault("The head of a request never ends", "431 after 32 KiB or 100 lines, and the connection ends", "01–12")
@fault("The address of a request never ends", "414 (rung 01: 431), and the connection ends", "01–12")
@fault("A page of another site sends a request, or takes the name of the server", "403, 421", "01–12")
def test_every_rung_refuses_what_is_not_meant_for_it(server: RungServer) -> None:
    too_long = (b"x" * MAX_HEAD_BYTES, b"X: b\r\n" * (MAX_HEAD_BYTES // 6 + 1))
    assert [status_of(response_to(server, START + more)) for more in (b"x: " + too_long[0], too_long[1])] == [
        431
    ] * 2
    expected = 431 if server.number == "01" else 414
    assert status_of(response_to(server, b"GET /" + too_long[0])) == expected

    own, foreign = server.netloc, "evil.example"
    for path in ("/health", "/", "/openapi.json"):
        assert server.request("GET", path, host=foreign).status == 421
    assert server.request("GET", "/health", host=own, origin=f"http://{foreign}").status == 200
    for origin in (
        f"http://{foreign}",
        "null",
        "http://[",
        f"http://{own}.{foreign}",
        f"http://{foreign}@{own}",
    ):
        assert server.request("POST", "/x", b"{}", origin=origin).status == 403
    assert server.request("POST", "/x", b"{}", host=foreign, origin=f"http://{foreign}").status == 421
    assert server.request("POST", "/x", b"{}", origin=f"http://{own}").status in (404, 405)
    assert server.request("POST", "/x", b"{}").status in (404, 405)


@fault("A page of another site takes the server's name and unloads a version", "421", "10–11")
def test_a_page_cannot_unload_a_version_by_another_name() -> None:
    with own_rung("10_model_versions.py") as server:
        host = f"evil.example:{server.address[1]}"
        answer = server.request("DELETE", "/models/digits/versions/v2", host=host, origin=f"http://{host}")
        assert answer.status == 421
        assert server.request("POST", "/predict?version=v2", b'{"features": [0]}').status == 422


def test_names_and_origins_can_be_added() -> None:
    names = ("--hosts", "a.example, B.example", "--origins", "https://c.example, https://d.example:1/")
    with own_rung("02_async_streaming.py", *names) as server:
        _, _, body, _ = make_request("Hi", max_tokens=1)
        for host in ("a.example", "A.example:80", "b.example", "localhost", "127.0.0.1", "[::1]:3"):
            assert server.request("POST", "/generate", body, host=host).status == 200
        for origin in ("https://c.example", "https://d.example:1"):
            assert server.request("POST", "/generate", body, origin=origin).status == 200
        assert server.request("POST", "/generate", body, origin="http://c.example").status == 403


# One connection, in all its states, in front of a small app


@pytest.fixture(scope="module")
def app() -> FastAPI:
    app = FastAPI()
    app.state.received = []

    @app.post("/")
    async def size(request: Request) -> int:
        body = await request.body()
        app.state.received.append(body)
        return len(body)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    return app


@pytest.fixture(scope="module")
def small(app: FastAPI) -> Iterator[Server]:
    with serving(app, Lifecycle()) as server:
        yield server


@pytest.mark.parametrize("lines", [MAX_HEADERS - 1, MAX_HEADERS])
def test_a_head_may_have_a_hundred_lines(small: Server, lines: int) -> None:
    """One of them is `host`."""
    head = START + b"x: y\r\n" * lines + b"connection: close\r\n\r\n"
    assert status_of(response_to(small, head)) == 431
    head = START + b"x: y\r\n" * (lines - 2) + b"connection: close\r\n\r\n"
    assert status_of(response_to(small, head)) == 200


@pytest.mark.parametrize("more", [0, 1])
def test_an_address_may_have_16_kib(small: Server, more: int) -> None:
    path = b"/health?" + b"x" * (MAX_URL_BYTES - 8 + more)
    response = response_to(
        small, b"GET " + path + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    assert status_of(response) == (414 if more else 200)


ENDLESS = {
    "a header": (START + b"x: ", b"a" * 65536),
    "lines": (START, b"X: b\r\n" * 10_000),
    "an address": (b"GET /", b"a" * 65536),
    "empty lines": (b"", b"\r\n" * 30_000),
    "a header after the body": (
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: ",
        b"a" * 65536,
    ),
    "lines after the body": (
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        b"X: b\r\n" * 10_000,
    ),
}


@pytest.mark.parametrize(("head", "more"), ENDLESS.values(), ids=ENDLESS)
@fault("A client sends headers or trailers without end", "refused, whatever it goes on to send", "02–12")
def test_what_never_ends_is_refused(small: Server, head: bytes, more: bytes) -> None:
    assert status_of(response_to(small, head, more)) in (431, 414, 400)
    assert small.request("GET", "/health").status == 200


@fault("A WebSocket handshake whose head never ends", "431, and the connection ends", "11")
def test_the_head_of_a_handshake_is_limited() -> None:
    with own_rung("11_realtime.py") as server:
        head = handshake(server.netloc, "/ws/predict").removesuffix(b"\r\n")
        assert status_of(response_to(server, head + b"x: ", b"a" * 65536)) == 431
        assert status_of(response_to(server, head + b"host: x\r\n" * MAX_HEADERS)) == 431
        foreign = head.replace(server.netloc.encode(), b"evil.example")
        assert status_of(response_to(server, foreign + b"\r\n")) == 421


bodies = st.lists(st.binary(max_size=3) | st.integers(0, 200_000).map(bytes), max_size=4)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies=bodies, cuts=st.lists(st.integers(1, 70_000), max_size=6))
def test_requests_arrive_whole_however_they_are_cut(
    small: Server, bodies: list[bytes], cuts: list[int]
) -> None:
    """Several on one connection, sent without waiting for the responses."""
    sent = b"".join(
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        for body in bodies
    )
    with small.raw() as client:
        for cut in cuts:
            client.sendall(sent[:cut])
            sent = sent[cut:]
        client.sendall(sent + START + b"connection: close\r\n\r\n")
        *posted, last = rest_of(client).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [int(one.split(b"\r\n\r\n")[1]) for one in posted] == [len(body) for body in bodies]
    assert last.endswith(b'"ok"')


@fault("The head of a request arrives too slowly", "408 after 10 s", "02–12")
def test_a_slow_head_is_refused(small: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    assert status_of(response_to(small, START)) == 408
    with server_answers_once(small) as client:
        client.sendall(b"G")
        assert status_of(rest_of(client)) == 408


@fault("A connection sends nothing", "closed after 10 s; after a response, after 5 s", "02–12")
def test_a_silent_connection_is_closed(small: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    assert response_to(small, b"") == b""
    with server_answers_once(small) as client:
        assert rest_of(client) == b""


def server_answers_once(server: Server) -> closing[socket.socket]:
    """A connection that has been used."""
    client = server.raw()
    client.sendall(START + b"\r\n")
    assert client.recv(65536).endswith(b'"ok"')
    return closing(client)


@fault("A body stops arriving", "408 after 30 s, and the app is told", "02–12")
def test_a_body_must_make_progress(app: FastAPI, small: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.2)
    before = len(app.state.received)
    head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n12345"
    assert status_of(response_to(small, head)) == 408
    assert len(app.state.received) == before


# The limit of open files

FILES = 256


@pytest.fixture
def few_files() -> Iterator[RungServer]:
    with own_rung("02_async_streaming.py") as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        yield server


@fault(
    "More connections than the process may open files send nothing",
    "the oldest are closed, and new requests are answered",
    "02–12",
)
def test_silent_connections_keep_no_client_out(few_files: RungServer) -> None:
    with ExitStack() as stack:
        for _ in range(2 * FILES):
            stack.enter_context(few_files.raw())
        for _ in range(3):
            assert few_files.health()["status"] == "ok"
            assert few_files.generate("Hi", max_tokens=1).status == 200
    (line,) = few_files.process.errors().splitlines()
    assert line.startswith(f"the limit of {FILES} open files is near")


@fault(
    "More streams than the process may open files",
    "503 with Retry-After for those that are too many; /health answers",
    "02–12",
)
def test_too_many_streams_leave_health_answering(few_files: RungServer) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(few_files.raw()) for _ in range(FILES)]
        for client in clients:
            client.sendall(raw_request(STORY, max_tokens=1000, stream=True))
        for _ in range(3):
            assert few_files.health()["status"] == "ok"
        answer = few_files.generate("Hi", max_tokens=1)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "too many connections" in answer.json()["detail"]
    assert asyncio.run(few_files.health_when(lambda health: health["running"] == 0))
    assert few_files.generate("Hi", max_tokens=1).status == 200
    assert len(few_files.process.errors().splitlines()) == 1
