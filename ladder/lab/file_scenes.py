"""What rung 12's demo compares: the same files, sent and received by servers that read them differently."""

from __future__ import annotations

import asyncio
import http.client
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from ladder.cli import DemoOptions, ListenConfig
from ladder.errors import UserError
from ladder.lab import naive_files
from ladder.lab.client import Client, clock
from ladder.lab.launch import ServerProcess, undisturbed
from ladder.lab.plots import plot_bars
from ladder.lab.scenes import Figures
from ladder.lab.show import Contender, Show
from ladder.stats import median

MIB = 2**20
CLIENTS = 8
LARGE = 16 * MIB
SLOW_DISK_MS = 50
"""Added to each read on the simulated slow disk, unless another --slow-disk-ms is given."""
SLOW_READS = 4
SMALLEST_CHUNK = 8 * 1024

ROWS = {
    "first_byte_ms": "first byte",
    "mib_per_second": f"{CLIENTS} clients, MiB/s",
    "memory_mib": f"{CLIENTS} clients, extra MiB",
    "upload_mib_per_second": "upload, MiB/s",
    "upload_memory_mib": "upload, extra MiB",
    "slow_done_ms": f"simulated slow disk, {CLIENTS} clients",
    "slow_health_ms": "worst /health",
}


@dataclass(frozen=True)
class Way:
    """One way to send files: the server that does it, and the path at which it sends them."""

    name: str
    server: Contender
    folder_flags: tuple[str, ...]
    path: str

    def command(self, folder: str, options: DemoOptions) -> list[str]:
        """With the flags that were given beside --demo, except that the files are those of the demo."""
        program = [self.server.script] if self.server.script.endswith(".py") else ["-m", self.server.script]
        folders = [word for flag in self.folder_flags for word in (flag, folder)]
        return [*program, "--port", "0", *self.server.flags(options), *folders]


def naive(name: str, path: str, *flags: str) -> Way:
    return Way(name, Contender(naive_files.__name__, naive_files.Config, *flags), ("--folder",), path)


def rung(known: type[ListenConfig], chunk_kib: int, *flags: str) -> Way:
    name = f"12, {chunk_kib} KiB" if chunk_kib < 1024 else f"12, {chunk_kib // 1024} MiB"
    server = Contender("12_file_streaming.py", known, "--chunk-kib", str(chunk_kib), *flags)
    return Way(name, server, ("--videos", "--uploads"), "/stream-video/")


def ways_to_send(known: type[ListenConfig]) -> list[Way]:
    """On the disk as it is."""
    fast = ("--slow-disk-ms", "0")
    return [
        naive("read all", "/read-all/", *fast),
        naive("blocking, 8 KiB", "/blocking/", *fast),
        naive("FileResponse, 64 KiB", "/file-response/", *fast),
        naive("FileResponse, 1 MiB", "/larger-chunks/", *fast),
        *(rung(known, chunk_kib, *fast) for chunk_kib in (8, 64, 256, 1024)),
    ]


UPLOADS = ("read all", "12, 256 KiB")


def ways_on_slow_disk(known: type[ListenConfig], slow_disk_ms: int = SLOW_DISK_MS) -> list[Way]:
    """On a simulated slow disk: the servers wait so long before each read."""
    slow = ("--slow-disk-ms", str(slow_disk_ms))
    return [naive("blocking, 8 KiB", "/blocking/", *slow), rung(known, 8, *slow)]


@dataclass(frozen=True)
class Running:
    name: str
    url: str
    path: str
    process: psutil.Process


@contextmanager
def running(folder: str, *ways: Way, options: DemoOptions | None = None) -> Iterator[list[Running]]:
    """Start the servers side by side, which takes half the time. All are ready before one is measured."""
    with ExitStack() as servers:
        processes = []
        for way in ways:
            with undisturbed():
                process = ServerProcess(*way.command(folder, options or DemoOptions()))
            processes.append(servers.enter_context(closing(process)))
        yield [
            Running(way.name, process.wait_ready(), way.path, psutil.Process(process.pid))
            for way, process in zip(ways, processes, strict=True)
        ]


def fetch(url: str, path: str, whole: bool = True) -> float:
    """Seconds to the first byte. If the whole file is wanted, the rest is read as fast as Python can."""
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
    """Upload a file of so many bytes."""
    address = urlsplit(url)
    chunk = bytes(MIB)
    with closing(http.client.HTTPConnection(str(address.hostname), address.port)) as connection:
        headers = {"Content-Length": str(size)}
        try:
            connection.request("PUT", "/upload/sent.bin", (chunk for _ in range(size // MIB)), headers)
            response = connection.getresponse()
        except ConnectionError as error:  # a refusal closes the connection while the upload is being sent
            raise UserError(f"an upload of {size // MIB} MiB was refused: connection closed") from error
        if response.status >= 300:
            raise UserError(f"an upload of {size // MIB} MiB was refused: status {response.status}")


@contextmanager
def watching_memory(process: psutil.Process) -> Iterator[list[int]]:
    """The most extra memory that the process takes during the block, in bytes."""
    before = process.memory_info().rss
    ended = threading.Event()
    most = [0]

    def watch() -> None:
        while not ended.wait(0.005):
            most[0] = max(most[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


def together(url: str, path: str) -> float:
    """Seconds until each of the clients, which all ask at the same time, has the whole file."""
    started = clock()
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(lambda _: fetch(url, path), range(CLIENTS)))
    return clock() - started


def on_fast_disk(server: Running) -> Figures:
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


def compare_files(show: Show, known: type[ListenConfig], slow_disk_ms: int) -> None:
    """Measure each way to send files; `known` is rung 12's configuration, 0 the default `slow_disk_ms`.

    The demo sets the folders and the chunk sizes itself, because it compares them. Only its last part runs on
    the simulated slow disk.
    """
    slow_disk_ms = slow_disk_ms or SLOW_DISK_MS
    fast, slow = ways_to_send(known), ways_on_slow_disk(known, slow_disk_ms)
    figures: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("large.bin", LARGE), ("small.bin", SLOW_READS * SMALLEST_CHUNK)):
            with (Path(folder) / name).open("wb") as file:
                file.truncate(size)  # a file of zeros that takes no room on the disk
        with ExitStack() as stack:
            with show.busy("starting the servers"):
                servers = stack.enter_context(running(folder, *fast, *slow, options=show.options))
            for server in servers[: len(fast)]:
                with show.busy(f"{server.name}: {CLIENTS} clients read {LARGE // MIB} MiB each"):
                    figures[server.name] = on_fast_disk(server)
            for server in servers[len(fast) :]:
                with show.busy(f"{server.name}: the same with {slow_disk_ms} ms added to each read"):
                    figures[server.name] |= asyncio.run(on_slow_disk(server))
    panels = {
        "mib_per_second": f"MiB/s, {CLIENTS} clients together",
        "memory_mib": f"extra MiB, {CLIENTS} clients",
    }
    remark = f"The slow disk is simulated: each read waits {slow_disk_ms} ms (--slow-disk-ms)."
    show.conclude(ROWS, figures, 1, lambda file: plot_bars(file, show.title, figures, panels), remark)
