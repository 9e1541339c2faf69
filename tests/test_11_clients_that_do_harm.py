"""Rung 11 and clients that break the rules of WebSockets: each is refused, and the log stays empty."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from asyncio.transports import BaseTransport
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from weakref import WeakSet

import pytest

from ladder.lab.realtime_scenes import handshake, silent_client
from ladder.web.websockets import WebSocketProtocol
from tests.faults import fault
from tests.predicting import engine_serving
from tests.support import RungServer, Server, ServerPool, eventually, import_rung
from tests.test_11_realtime import (
    PING,
    SCRIPT,
    TEXT,
    Connection,
    abrupt,
    ask,
    connected,
    connections,
    frame,
    question,
)

rung = import_rung(SCRIPT)
CONTINUATION, CLOSE, UNKNOWN = 0, 8, 3


@pytest.fixture
def server(pool: ServerPool) -> RungServer:
    return pool(SCRIPT)


@contextmanager
def nothing_logged(server: RungServer) -> Iterator[None]:
    before = server.process.errors()
    yield
    server.health()  # by then the server has handled all that came before
    assert server.process.errors() == before


def opening(server: Server, *lines: str, path: str = "/ws/predict") -> bytes:
    """A handshake with further lines in its head."""
    return (
        handshake(server.netloc, path).removesuffix(b"\r\n")
        + "".join(f"{one}\r\n" for one in lines).encode()
        + b"\r\n"
    )


def rest_of(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


@pytest.mark.parametrize("resets", [False, True])
@fault("A WebSocket of another origin, also one that is reset at once", "403, and nothing in the log", "11")
def test_a_refused_handshake_is_not_logged(server: RungServer, resets: bool) -> None:
    with nothing_logged(server), server.raw() as connection:
        connection.sendall(opening(server, "Origin: http://evil.example"))
        if resets:
            abrupt(connection)
        else:
            assert rest_of(connection).startswith(b"HTTP/1.1 403 ")


def unfinished(content: bytes, kind: int) -> bytes:
    """A frame that another one is to continue."""
    whole = frame(content, kind)
    return bytes([whole[0] & 0x7F]) + whole[1:]


BROKEN = {
    "text that is not UTF-8": (frame(b"\xff", TEXT), 1007),
    "text that is not UTF-8, in two frames": (unfinished(b"\xc3", TEXT) + frame(b"\xc3", CONTINUATION), 1007),
    "a frame that is not masked": (b"\x81\x01x", 1002),
    "a frame of an extension": (bytes([0xC1]) + frame(b"x", TEXT)[1:], 1002),
    "a frame of an unknown kind": (frame(b"x", UNKNOWN), 1002),
    "a ping in fragments": (unfinished(b"x", PING), 1002),
    "a ping that is too long": (frame(bytes(126), PING), 1002),
    "a continuation of nothing": (frame(b"x", CONTINUATION), 1002),
    "a message in a message": (unfinished(b"x", TEXT) + frame(b"x", TEXT), 1002),
    "a message that is too large": (b"\x81\xff" + struct.pack("!Q", 2**40) + bytes(4), 1009),
    "a close with an unknown code": (frame(b"\x00\x01", CLOSE), 1002),
    "a close with half a code": (frame(b"\x03", CLOSE), 1002),
    "a close whose reason is not UTF-8": (frame(b"\x03\xe8\xff", CLOSE), 1007),
}


@pytest.mark.parametrize("asked", [0, 200])
@pytest.mark.parametrize(("broken", "code"), BROKEN.values(), ids=BROKEN)
@fault(
    "Frames that break the protocol, or text that is not UTF-8, also while answers are on their way",
    "closed with the code for it, and nothing in the log",
    "11",
)
def test_a_client_that_breaks_the_protocol_is_not_logged(
    server: RungServer, broken: bytes, code: int, asked: int
) -> None:
    with nothing_logged(server), server.raw() as connection:
        connection.sendall(opening(server))
        connection.recv(12)  # the beginning of the response: frames before it would be lost
        connection.sendall(frame(question().encode(), TEXT) * asked + broken)
        closing = rest_of(connection).rpartition(b"\x88")[2]
        assert struct.unpack("!H", closing[1:3]) == (code,)


@pytest.mark.parametrize("early", [frame(b"x", UNKNOWN), frame(b"\xff", TEXT)])
@fault("Broken frames before the handshake is answered", "disconnected, and nothing in the log", "11")
def test_a_client_that_does_not_wait_for_its_handshake_is_not_logged(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    early: bytes,
) -> None:
    arrived, opened = threading.Event(), threading.Event()
    serve = rung.Manager.serve

    async def late(self: Any, *arguments: Any, **settings: Any) -> None:
        arrived.set()
        await asyncio.to_thread(opened.wait, 60)
        await serve(self, *arguments, **settings)

    monkeypatch.setattr(rung.Manager, "serve", late)
    with engine_serving(rung) as (_, server):
        with server.raw() as connection:
            connection.sendall(opening(server))
            assert arrived.wait(timeout=60)
            connection.sendall(early)
            assert rest_of(connection) == b""
        opened.set()
    assert (caplog.records, capfd.readouterr().err) == ([], "")


UNREADABLE = {
    "a long header": (["X: " + "x" * 9000], "", b"HTTP/1.1 431 "),
    "many headers": (["X: x"] * 200, "", b"HTTP/1.1 431 "),
    "a long path": ([], "?" + "x" * 9000, b"HTTP/1.1 414 "),
    "a body": (["Content-Length: 3"], "", b""),
    "a body in chunks": (["Transfer-Encoding: chunked"], "", b""),
}


@pytest.mark.parametrize(("lines", "query", "answer"), UNREADABLE.values(), ids=UNREADABLE)
@fault(
    "A WebSocket handshake with a long head or a body",
    "431, 414 or no response, and the connection is closed",
    "11",
)
def test_a_handshake_that_is_not_accepted_does_not_stay_open(
    server: RungServer, lines: list[str], query: str, answer: bytes
) -> None:
    with nothing_logged(server), server.raw() as connection:
        connection.sendall(opening(server, *lines, path=f"/ws/predict{query}"))
        received = rest_of(connection)
        assert received.startswith(answer)
        assert bool(received) == bool(answer)


@asynccontextmanager
async def behind(server: Server) -> AsyncIterator[tuple[Connection, socket.socket, WebSocketProtocol]]:
    """A client that sends, and one that reads nothing: some of its messages wait in the server's buffer."""
    async with connected(server, "/ws/predictions") as speaker:
        with silent_client(server.url, "/ws/predictions") as silent:
            await eventually(lambda: connections(server), lambda now: now["predictions"] == 2)
            client = silent.getsockname()
            (protocol,) = [one for one in PROTOCOLS if one.transport.get_extra_info("peername") == client]
            while not protocol.transport.get_write_buffer_size():
                await ask(speaker, question())
            yield speaker, silent, protocol


PROTOCOLS: WeakSet[WebSocketProtocol] = WeakSet()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collects the server's side of all connections, and leaves closed ones open until their client reads."""
    connection_made = WebSocketProtocol.connection_made

    def collect(self: WebSocketProtocol, transport: BaseTransport) -> None:
        PROTOCOLS.add(self)
        connection_made(self, transport)

    monkeypatch.setattr(WebSocketProtocol, "connection_made", collect)
    monkeypatch.setattr("ladder.web.websockets.CLOSE_SECONDS", 60)


@pytest.mark.usefixtures("watched")
@fault("A client that reads nothing and answers no ping", "disconnected, and nothing in the log", "11")
def test_a_message_for_a_client_that_answers_no_ping_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with engine_serving(rung, ping_seconds=1000) as (_, server):

        async def converse() -> None:
            async with behind(server) as (speaker, _, protocol):
                protocol.loop.call_soon_threadsafe(protocol.keepalive_timeout)
                await ask(speaker, question())
                await eventually(lambda: connections(server), lambda now: now["predictions"] == 1)

        asyncio.run(converse())
    assert caplog.records == []


@pytest.mark.usefixtures("watched")
@fault(
    "A client that sends a close and reads nothing, while the server stops", "no traceback in the log", "11"
)
def test_a_server_stops_although_a_client_does_not_read_its_close() -> None:
    with engine_serving(rung, ping_seconds=1000) as (_, server):

        async def converse() -> None:
            async with behind(server) as (_, silent, protocol):
                silent.sendall(frame(b"", CLOSE))
                await eventually(lambda: connections(server), lambda now: now["predictions"] == 1)

                async def stop() -> None:
                    protocol.shutdown()

                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(stop(), protocol.loop))

        asyncio.run(converse())
