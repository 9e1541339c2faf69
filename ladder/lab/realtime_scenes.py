"""The demo of rung 11: the same messages over three transports, a broadcast, and a training run."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import psutil

from ladder.lab import plots
from ladder.lab.client import DONE, clock, read_events
from ladder.lab.prediction_scenes import Predictions, thousand
from ladder.lab.scenes import Figures
from ladder.lab.show import Show
from ladder.predict.predictor import load_digits
from ladder.stats import median

MESSAGES = 200
ROUNDS = 2
LISTENERS, SILENT = 40, 5
BROADCAST = {"version": "v1", "probabilities": True}
READERS = LISTENERS - SILENT
BROADCASTS = 1000

Instances = Sequence[list[float]]

Timing = tuple[float, int]
"""The seconds that an answer took, and the bytes of its content."""

Transport = Callable[[str, Instances], Awaitable[list[Timing]]]
"""Sends these rows to a server; returns a timing for each answer."""

TRANSPORT_ROWS = {
    "content_bytes": "content of an answer, bytes",
    "down_bytes": "bytes on the wire to the client, per answer",
    "up_bytes": "bytes on the wire to the server, per answer",
    "cpu_ms": "CPU time of the server, per answer",
    "latency_ms": "latency of an answer, median (SSE: time between answers)",
    "news_ms": f"until the last of {READERS} clients has a message (SSE: from the request that causes it)",
    "evicted": f"clients evicted, of {SILENT} that never read",
    "lost": "events lost or repeated in 20 disconnections",
    "epoch_ms": "an epoch of training, as its client sees it, median",
    "health_ms": "/health during training, median",
}


@dataclass
class Relay:
    """Connects a client and a server, and counts the bytes that pass."""

    url: str
    target: tuple[str, int]
    up: int = 0
    down: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self.target)
        self.tasks.append(asyncio.create_task(self.pump(reader, server_writer, "up")))
        self.tasks.append(asyncio.create_task(self.pump(server_reader, writer, "down")))

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        while piece := await reader.read(65536):
            setattr(self, way, getattr(self, way) + len(piece))
            writer.write(piece)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def relay(url: str) -> AsyncIterator[Relay]:
    parts = urlsplit(url)
    between = Relay("", (parts.hostname or "", parts.port or 0))
    server = await asyncio.start_server(between.connect, "127.0.0.1", 0)
    between.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield between
    finally:
        server.close()
        for task in between.tasks:
            task.cancel()
        await asyncio.gather(*between.tasks, return_exceptions=True)


async def by_plain_http(url: str, rows: Instances) -> list[Timing]:
    messages = []
    async with Predictions(url) as client:
        for row in rows:
            started = clock()
            async with client.session.post("/predict?version=v2", json={"features": row}) as response:
                content = await response.read()
            messages.append((clock() - started, len(content)))
    return messages


async def by_websocket(url: str, rows: Instances) -> list[Timing]:
    messages = []
    async with Predictions(url) as client, client.session.ws_connect("/ws/predict") as connection:
        for row in rows:
            started = clock()
            await connection.send_str(json.dumps({"features": row, "version": "v2"}))
            content = await connection.receive_str()
            messages.append((clock() - started, len(content)))
    return messages


async def by_events(url: str, rows: Instances) -> list[Timing]:
    """One request for all rows, and an event for each row."""
    messages, last = [], clock()
    async with (
        Predictions(url) as client,
        client.session.post("/predict/stream?version=v2", json={"instances": rows}) as response,
    ):
        async for event in read_events(response):
            if event.data != DONE:
                messages.append((clock() - last, len(event.data)))
                last = clock()
    return messages


TRANSPORTS: Mapping[str, Transport] = {
    "plain HTTP": by_plain_http,
    "WebSocket": by_websocket,
    "SSE": by_events,
}


async def transport_figures(url: str, transport: Transport, rows: Instances) -> Figures:
    """Bytes are counted in one run and times measured in others, because counting costs time."""
    async with Predictions(url) as client:
        process = psutil.Process((await client.health())["pid"])
    async with relay(url) as between:
        counted = await transport(between.url, rows[:MESSAGES])
    latencies, spent = [], []
    for number in range(1, ROUNDS + 1):
        before = sum(process.cpu_times()[:2])
        messages = await transport(url, rows[number * MESSAGES : (number + 1) * MESSAGES])
        spent.append((sum(process.cpu_times()[:2]) - before) / MESSAGES)
        latencies += [seconds for seconds, _ in messages]
    return {
        "content_bytes": median([size for _, size in counted]),
        "down_bytes": between.down / len(counted),
        "up_bytes": between.up / len(counted),
        "cpu_ms": 1000 * median(spent),
        "latency_ms": 1000 * median(latencies),
    }


def silent_client(url: str, path: str) -> socket.socket:
    """A WebSocket that is opened and never read from."""
    parts = urlsplit(url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((parts.hostname, parts.port))
    client.sendall(handshake(parts.netloc, path))
    return client


def handshake(host: str, path: str) -> bytes:
    """The request that opens a WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def by_all(heard: asyncio.Semaphore) -> None:
    """Wait until every reader has received the message."""
    for _ in range(READERS):
        await heard.acquire()


async def broadcast_figures(url: str, rows: Instances) -> Figures:
    """One client sends, many listen, and some of them never read: when has the last reader each message?"""
    heard = asyncio.Semaphore(0)

    async def listen(connection: aiohttp.ClientWebSocketResponse) -> None:
        for _ in range(BROADCASTS):
            await connection.receive_str()
            heard.release()

    with ExitStack() as stack:
        for _ in range(SILENT):
            stack.enter_context(silent_client(url, "/ws/predictions"))
        async with Predictions(url) as client:
            connections = [await client.session.ws_connect("/ws/predictions") for _ in range(READERS)]
            listening = [asyncio.create_task(listen(connection)) for connection in connections]
            waits = []
            for number in range(BROADCASTS):
                started = clock()
                await connections[0].send_str(json.dumps(BROADCAST | {"features": rows[number % 10]}))
                await by_all(heard)
                waits.append(clock() - started)
            await asyncio.gather(*listening)
            async with client.session.ws_connect("/ws/monitor") as monitor:
                evicted = json.loads(await monitor.receive_str())["evicted"]
            for connection in connections:
                await connection.close()
    return {"news_ms": 1000 * median(waits), "evicted": evicted}


async def followers(url: str, news: int = 100) -> Figures:
    """The same number of readers on the event stream; each event says that a version was loaded."""
    heard = asyncio.Semaphore(0)

    async def follow(client: Predictions) -> None:
        async with client.session.get("/stream/events") as response:
            heard.release()
            async for _ in read_events(response):
                heard.release()

    async with Predictions(url) as client:
        following = [asyncio.create_task(follow(client)) for _ in range(READERS)]
        await by_all(heard)
        waits = []
        for _ in range(news):
            started = clock()
            await client.load("v2")
            await by_all(heard)
            waits.append(clock() - started)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
    return {"news_ms": 1000 * median(waits)}


async def interruptions(url: str, cuts: int = 20) -> Figures:
    """A follower that disconnects again and again, while events happen."""
    seen: list[int] = []
    last = ""
    async with Predictions(url) as client:
        for _ in range(cuts):
            headers = {"Last-Event-ID": last} if last else {}
            async with client.session.get("/stream/events", headers=headers) as response:
                async with asyncio.TaskGroup() as group:
                    group.create_task(client.load("v2"))
                    group.create_task(client.load("v1"))
                    async for event in read_events(response):
                        last = event.id
                        seen.append(int(last.rpartition("-")[2]))
                        break
                response.close()
    expected = range(seen[0], seen[0] + len(seen))
    return {"lost": sum(number != due for number, due in zip(seen, expected, strict=True))}


async def training(url: str, epochs: int = 12) -> Figures:
    """A client follows a training run, and another one measures `/health` beside it."""
    times = [clock()]
    async with (
        Predictions(url) as client,
        client.probing_health() as health,
        client.session.post(f"/train/stream?epochs={epochs}") as response,
    ):
        times += [clock() async for event in read_events(response) if event.name == "epoch"]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return {"epoch_ms": 1000 * median(gaps), "health_ms": 1000 * median([wait for _, wait in health])}


async def show_transports(show: Show, url: str) -> None:
    """Measure three transports, a broadcast, resumed event streams and a training run."""
    _, held_out = load_digits()
    figures: dict[str, Figures] = {}
    for pixel, (name, transport) in enumerate(TRANSPORTS.items()):
        rows = thousand(held_out, pixel)
        with show.busy(f"{name}: {(1 + ROUNDS) * MESSAGES} predictions in sequence"):
            figures[name] = await transport_figures(url, transport, rows)
    with show.busy(f"{LISTENERS} clients listen; {SILENT} of them never read"):
        figures["WebSocket"] |= await broadcast_figures(url, rows)
    with show.busy(f"{READERS} clients follow the event stream; then one that disconnects 20 times"):
        figures["SSE"] |= await followers(url) | await interruptions(url)
    with show.busy("a client follows a training run"):
        figures["SSE"] |= await training(url)
    show.conclude(TRANSPORT_ROWS, figures, ROUNDS, lambda file: plot_transports(file, show.title, figures))


def plot_transports(file: Path, title: str, figures: Mapping[str, Figures]) -> None:
    with plots.drawing(file, title, 3, figsize=(8, 7)) as (sizes, times, news):
        for name, column in figures.items():
            down = sizes.barh(name, column["down_bytes"], color="C0", height=0.6)
            sizes.barh(name, column["up_bytes"], left=column["down_bytes"], color="C1", height=0.6)
            sizes.bar_label(down, fmt="%.0f", label_type="center")
            times.bar_label(times.barh(name, column["latency_ms"], color="C0", height=0.6), fmt=" %.2f ms")
            if "news_ms" in column:
                news.bar_label(news.barh(name, column["news_ms"], color="C2", height=0.6), fmt=" %.2f ms")
        sizes.set(xlabel="bytes per answer: to the client (blue) and to the server (orange)")
        times.set(xlabel="latency of an answer (SSE: time between answers), milliseconds")
        news.set(xlabel=f"until the last of {READERS} clients has a message, milliseconds")
        for panel in (times, news):
            panel.margins(x=0.15)
