"""What rung 12's demo lets happen: the same files, sent and taken by servers that go about it differently."""

from __future__ import annotations

import asyncio
import http.client
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from ladder.lab.client import Client, clock
from ladder.lab.launch import ServerProcess, undisturbed
from ladder.lab.plots import plot_bars
from ladder.lab.scenes import Figures
from ladder.lab.show import Show
from ladder.stats import median

MIB = 2**20
CLIENTS = 8
LARGE = 16 * MIB
SLOW_DISK_MS = 50
SLOW_READS = 4
SMALLEST_PIECE = 8 * 1024

ROWS = {
    "first_byte_ms": "first byte",
    "mib_per_second": f"{CLIENTS} clients, MiB/s",
    "memory_mib": f"{CLIENTS} clients, more MiB",
    "upload_mib_per_second": "upload, MiB/s",
    "upload_memory_mib": "upload, more MiB",
    "slow_done_ms": f"slow disk, {CLIENTS} clients done",
    "slow_health_ms": "worst /health meanwhile",
}


@dataclass(frozen=True)
class Contender:
    """A server: how it is started with a folder of files, and where it has them."""

    name: str
    command: Callable[[str], tuple[str, ...]]
    path: str


def naive(name: str, path: str, *flags: str) -> Contender:
    command = ("-m", "ladder.lab.naive_files", "--port", "0", *flags)
    return Contender(name, lambda folder: (*command, "--folder", folder), path)


def rung(piece_kib: int, *flags: str) -> Contender:
    name = f"12, {piece_kib} KiB" if piece_kib < 1024 else f"12, {piece_kib // 1024} MiB"
    command = ("12_file_streaming.py", "--port", "0", "--chunk-kib", str(piece_kib), *flags)
    return Contender(
        name, lambda folder: (*command, "--videos", folder, "--uploads", folder), "/stream-video/"
    )


CONTENDERS = (
    naive("read all", "/read-all/"),
    naive("blocking, 8 KiB", "/blocking/"),
    naive("FileResponse, 64 KiB", "/file-response/"),
    naive("FileResponse, 1 MiB", "/larger-pieces/"),
    *(rung(piece_kib) for piece_kib in (8, 64, 256, 1024)),
)
UPLOADS = ("read all", "12, 256 KiB")
SLOW = ("--slow-disk-ms", str(SLOW_DISK_MS))
ON_SLOW_DISK = (naive("blocking, 8 KiB", "/blocking/", *SLOW), rung(8, *SLOW))


@dataclass(frozen=True)
class Running:
    name: str
    url: str
    path: str
    process: psutil.Process


@contextmanager
def running(folder: str, *contenders: Contender) -> Iterator[list[Running]]:
    """They start side by side, which takes half the time, and are all ready before one is measured."""
    with ExitStack() as servers:
        processes = []
        for contender in contenders:
            with undisturbed():
                process = ServerProcess(*contender.command(folder))
            processes.append(servers.enter_context(closing(process)))
        yield [
            Running(contender.name, process.wait_ready(), contender.path, psutil.Process(process.pid))
            for contender, process in zip(contenders, processes, strict=True)
        ]


def fetch(url: str, path: str, whole: bool = True) -> float:
    """Seconds to the first byte; the others are read as fast as Python can, if they are wanted."""
    buffer = bytearray(MIB)
    address = urlsplit(url)
    started = clock()
    with closing(http.client.HTTPConnection(str(address.hostname), address.port)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        response.readinto(memoryview(buffer)[:1])
        first = clock() - started
        while whole and response.readinto(buffer):
            pass
    return first


def send(url: str, size: int) -> None:
    address = urlsplit(url)
    piece = bytes(MIB)
    with closing(http.client.HTTPConnection(str(address.hostname), address.port)) as connection:
        connection.request("PUT", "/upload/sent.bin", (piece for _ in range(size // MIB)),
                           {"Content-Length": str(size)})  # fmt: skip
        if connection.getresponse().status >= 300:
            raise RuntimeError("the upload was refused")


@contextmanager
def watching_memory(process: psutil.Process) -> Iterator[list[int]]:
    """The most that the process has had more than at the beginning, in bytes, once the block has ended."""
    before = process.memory_info().rss
    over = threading.Event()
    most = [0]

    def watch() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def together(url: str, path: str) -> float:
    """Seconds until all of the clients that come at once have the whole file."""
    started = clock()
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(lambda _: fetch(url, path), range(CLIENTS)))
    return clock() - started


def sending(server: Running) -> Figures:
    url, path = server.url, f"{server.path}large.bin"
    fetch(url, path)
    figures = {"first_byte_ms": 1000 * median([fetch(url, path, whole=False) for _ in range(5)])}
    with watching_memory(server.process) as memory:
        seconds = together(url, path)
    figures |= {"mib_per_second": CLIENTS * LARGE / MIB / seconds, "memory_mib": memory[0] / MIB}
    if server.name in UPLOADS:
        started = clock()
        with watching_memory(server.process) as memory:
            send(url, 4 * LARGE)
        figures["upload_mib_per_second"] = 4 * LARGE / MIB / (clock() - started)
        figures["upload_memory_mib"] = memory[0] / MIB
    return figures


async def on_slow_disk(server: Running) -> Figures:
    async with Client(server.url) as client, client.probing_health() as waits:
        seconds = await asyncio.to_thread(together, server.url, f"{server.path}small.bin")
    worst = max(wait for _, wait in waits)
    return {"slow_done_ms": 1000 * seconds, "slow_health_ms": 1000 * worst}


def compare(show: Show) -> None:
    figures: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("large.bin", LARGE), ("small.bin", SLOW_READS * SMALLEST_PIECE)):
            with (Path(folder) / name).open("wb") as file:
                file.truncate(size)  # a file of zeros that takes no room on the disk
        with ExitStack() as stack:
            with show.busy("starting the servers"):
                servers = stack.enter_context(running(folder, *CONTENDERS, *ON_SLOW_DISK))
            for server in servers[: len(CONTENDERS)]:
                with show.busy(f"{server.name}: {CLIENTS} clients read {LARGE // MIB} MiB each"):
                    figures[server.name] = sending(server)
            for server in servers[len(CONTENDERS) :]:
                with show.busy(
                    f"{server.name}: the same from a disk that takes {SLOW_DISK_MS} ms for a read"
                ):
                    figures[server.name] |= asyncio.run(on_slow_disk(server))
    panels = {"mib_per_second": "MiB/s, 8 clients together", "memory_mib": "MiB more memory, 8 clients"}
    show.conclude(ROWS, figures, 1, lambda file: plot_bars(file, show.title, figures, panels))
