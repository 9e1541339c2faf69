"""Rung 12 and clients that attack, do not read, stall, or send too many or too large requests."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

import ladder.files.folder
from ladder.files.export import MAX_WAITING
from ladder.files.forms import MAX_PARTS
from ladder.files.uploads import Transfer
from ladder.files.watchers import ALIVE
from ladder.web.http import PORTION, Stream
from tests.faults import fault
from tests.support import Server, eventually, import_rung, serving
from tests.test_12_file_streaming import (
    BOUNDARY,
    CONTENT,
    END,
    FORM,
    FORM_HEAD,
    ID,
    MIB,
    SCRIPT,
    answer_on,
    begin_upload,
    form_part,
    make_folders,
    read_events,
    started,
    wait_for_size,
)

rung = import_rung(SCRIPT)
OTHER_ID = "fedcba9876543210"
FILE_FORM = form_part("evil.bin", b"evil", first=True) + END


@pytest.fixture
def own_folders(tmp_path: Path) -> Path:
    make_folders(tmp_path)
    return tmp_path


def engine_over(folders: Path, **settings: Any) -> Any:
    names = {name: str(folders / name) for name in ("videos", "models", "uploads")}
    return rung.Engine(rung.Config(**names, **settings))


@contextmanager
def serving_from(folders: Path, **settings: Any) -> Iterator[Server]:
    """A server in this process, so that a test can replace a part of it."""
    engine = engine_over(folders, **settings)
    with serving(rung.create_app(engine), engine) as server:
        yield server


# Pages of other sites


def test_only_our_own_pages_can_write(own_folders: Path) -> None:
    with started(own_folders) as server:
        ours = f"{server.address[0]}:{server.address[1]}"
        others = ("https://evil.example", "null", "", f"http://{ours}.evil.example", "http://[", "http://x:y")
        for origin in (*others, "http://127.0.0.1:1"):
            for answer in (
                server.request("POST", "/upload/stream", FILE_FORM, **FORM, origin=origin),
                server.request("PUT", "/upload/evil.bin", b"evil", origin=origin),
            ):
                assert (answer.status, answer.headers["connection"]) == (403, "close"), origin
                assert answer.json() == {"detail": "this origin may not write; allow it with --origins"}
        assert server.uploaded() == []
        assert server.request("PUT", "/upload/a.bin", b"a", origin=f"http://{ours}").status == 201
        assert server.request("POST", "/upload/stream", FILE_FORM, **FORM).status == 201  # as curl does


def test_requests_for_an_unknown_host_name_are_refused(own_folders: Path) -> None:
    with started(own_folders) as server:
        port = server.address[1]
        for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "[", "a:b:c"):
            for path in ("/", "/files", "/health", "/logs/stream", "/uploads/x", "/stream-video/clip.webm"):
                answer = server.request("GET", path, None, host=host)
                assert (answer.status, CONTENT in answer.body) == (421, False), (host, path)
            answer = server.request("PUT", "/upload/x", b"x", host=host, origin=f"http://{host}")
            assert (answer.status, answer.headers["connection"]) == (421, "close")
        for host in ("localhost", f"LOCALHOST:{port}", "127.0.0.1", "[::1]:80", "192.168.1.7:5000"):
            assert server.request("GET", "/files", None, host=host).status == 200
        assert server.uploaded() == []


def test_a_host_name_can_be_allowed(own_folders: Path) -> None:
    with started(own_folders, "--hosts", "files.example, Other.example") as server:

        def put(host: str, origin: str) -> int:
            return server.request("PUT", "/upload/x", b"x", host=host, origin=origin).status

        assert server.request("GET", "/files", None, host="other.example:80").status == 200
        assert put("files.example", "https://files.example") == 201
        assert put("files.example", "https://evil.example") == 403
        assert put("evil.example", "https://files.example") == 421


def test_the_log_does_not_contain_the_id_of_an_upload(own_folders: Path) -> None:
    with (
        started(own_folders) as server,
        closing(server.connect()) as watcher,
        closing(server.connect()) as log,
    ):
        log.request("GET", "/logs/stream?last=0")
        lines = read_events(log)
        server.request("HEAD", f"/upload/{ID}")
        assert "HEAD /upload/{id} 200" in next(lines).data
        server.request("DELETE", f"/upload/{ID}")
        assert "DELETE /upload/" in next(lines).data
        watcher.request("GET", f"/upload/{ID}/events")
        server.request("PUT", f"/upload/x.bin?id={ID}", b"x")
        assert "PUT /upload/x.bin 201" in next(lines).data
        watcher.getresponse().read()
        assert "GET /upload/{id}/events 200" in next(lines).data
        assert ID not in (server.uploads / ".log").read_text()


# Clients that read slowly or not at all


def make_large(folders: Path, size: int = 64 * MIB) -> None:
    with (folders / "videos" / "large.bin").open("wb") as file:
        file.truncate(size)


@fault("A client never reads the file that it asked for", "its connection and its file are closed", "12")
def test_the_connection_of_a_client_that_never_reads_is_ended(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "send_timeout", 0.05)
    monkeypatch.setattr("ladder.web.server.STALL_SECONDS", 0.1)
    make_large(own_folders)
    with serving_from(own_folders) as server, closing(server.raw()) as connection:
        connection.sendall(b"GET /stream-video/large.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1)
        until_let_go(connection)


def until_let_go(client: socket.socket) -> None:
    """Wait until the server, which is in this process too, has closed its end of the connection."""
    ends = (client.getpeername(), client.getsockname())

    async def open_here() -> list[tuple[Any, Any]]:
        return [(tuple(one.laddr), tuple(one.raddr)) for one in psutil.Process().net_connections("tcp")]

    assert ends in asyncio.run(open_here())
    asyncio.run(eventually(open_here, lambda found: ends not in found))


def test_the_size_of_a_portion_does_not_grow_with_the_size_of_a_chunk(own_folders: Path) -> None:
    content = os.urandom(3 * MIB + 5)
    (own_folders / "videos" / "large.bin").write_bytes(content)
    app = rung.create_app(engine_over(own_folders, chunk_kib=65536))
    chunks: list[bytes] = []

    async def send(message: Any) -> None:
        if body := message.get("body"):
            chunks.append(bytes(body))

    async def ask() -> None:
        path = "/stream-video/large.bin"
        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "headers": []}
        await app({**scope, "query_string": b""}, asyncio.Event().wait, send)

    asyncio.run(ask())
    assert b"".join(chunks) == content
    assert max(map(len, chunks)) == PORTION


def test_a_player_that_has_paused_for_too_long_resumes_with_a_range(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "send_timeout", 0.05)
    monkeypatch.setattr("ladder.web.server.STALL_SECONDS", 0.1)
    large = own_folders / "videos" / "large.bin"
    large.write_bytes(os.urandom(MIB) * 32)
    with serving_from(own_folders) as server:
        with closing(server.raw()) as player:
            player.sendall(b"GET /stream-video/large.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = player.recv(1)
            until_let_go(player)
            head, _, content = (head + until_the_end(player)).partition(b"\r\n\r\n")
        tag = next(line[6:] for line in head.decode().split("\r\n") if line.lower().startswith("etag: "))
        wanted = {"range": f"bytes={len(content)}-", "if-range": tag}
        rest = server.request("GET", "/stream-video/large.bin", None, **wanted)
        assert (rest.status, content + rest.body) == (206, large.read_bytes())


def until_the_end(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(MIB), b""))


# Errors of the disk and the system


@pytest.mark.parametrize(
    ("number", "status"), [(errno.EIO, 500), (errno.ESTALE, 500), (errno.ENOENT, 404), (errno.ENXIO, 404)]
)
def test_only_an_error_about_the_name_means_that_there_is_no_such_file(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    def fail(descriptor: int) -> None:
        os.close(descriptor)
        raise OSError(number, os.strerror(number))

    with serving_from(own_folders) as server:
        monkeypatch.setattr(ladder.files.folder, "FileIO", fail)
        assert server.request("GET", "/stream-video/clip.webm").status == status


def test_too_many_open_files_are_a_503(own_folders: Path) -> None:
    with started(own_folders) as server, closing(server.connect()) as connection:
        connection.request("GET", "/health")
        connection.getresponse().read()
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
        connection.request("GET", "/stream-video/clip.webm")
        response = connection.getresponse()
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        response.read()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        connection.request("GET", "/stream-video/clip.webm")
        assert connection.getresponse().read() == CONTENT
        # The thread that writes the access log may meet the limit too.
        lines = [line for line in server.process.errors().splitlines() if "of the access log" not in line]
        assert lines == ["a request was rejected: Too many open files"]


@fault("A disk that is full", "507, one line in the log, and nothing is left of the upload", "12")
def test_a_full_disk_is_a_507_and_one_line(own_folders: Path) -> None:
    with started(own_folders) as server:
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100_000, limits[1]))
        answer = server.request("PUT", "/upload/large.bin", CONTENT)
        assert (answer.status, answer.json()) == (507, {"detail": "the disk is full"})
        assert server.uploaded() == []
        assert server.process.errors().splitlines() == ["a file was not stored: File too large"]


@fault("An access log that cannot be written", "one line in the log; requests are served", "12")
def test_a_log_that_cannot_be_written_is_one_line(own_folders: Path) -> None:
    with started(own_folders, "--log", "/dev/full") as server:

        async def errors() -> str:
            for _ in range(3):
                assert server.get("/stream-video/clip.webm").status == 200
            return server.process.errors()

        line = "lines of the access log are lost: [Errno 28] No space left on device\n"
        assert asyncio.run(eventually(errors, bool)) == line
        assert asyncio.run(errors()) == line


# Uploads that are too large, stall or never end


def test_a_form_of_too_many_parts_is_refused(own_folders: Path) -> None:
    field = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'.encode()
    with started(own_folders) as server:
        for number, status in ((MAX_PARTS, 201), (MAX_PARTS + 1, 422)):
            body = field * number + END.removeprefix(b"\r\n")
            answer = server.request("POST", "/upload/stream", body, **FORM)
            assert answer.status == status
        assert f"at most {MAX_PARTS} parts" in answer.body.decode()


@pytest.mark.parametrize(
    "sent", [b"", form_part("one.bin", b"1", first=True) + b"\r\n--" + BOUNDARY.encode()]
)
def test_a_form_that_stalls_between_its_files_is_ended(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr("ladder.web.connection.BODY_SECONDS", 0.1)
    with serving_from(own_folders) as server, closing(server.raw()) as connection:
        connection.sendall(FORM_HEAD + sent)
        answer = answer_on(connection)
        assert (answer.status, answer.headers["connection"]) == (408, "close")


@fault("An upload stops arriving", "408; what has arrived is kept and can be resumed", "12")
def test_an_upload_that_stalls_is_ended_and_kept(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladder.web.connection.BODY_SECONDS", 0.1)
    with serving_from(own_folders) as server:
        with closing(raw_upload(server, f"/upload/x.bin?id={ID}", b"half", size=8)) as connection:
            assert answer_on(connection).status == 408
        answer = server.request("PUT", f"/upload/x.bin?id={ID}", b"rest", **{"upload-offset": "4"})
        assert (answer.status, answer.json()["size"]) == (201, 8)


def raw_upload(server: Server, path: str, sent: bytes, size: int) -> socket.socket:
    connection = server.raw()
    connection.sendall(
        f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode() + sent
    )
    return connection


def test_of_three_requests_for_one_upload_the_last_takes_over(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, opened = threading.Event(), threading.Event()
    write = rung.PartialUpload.write

    def write_when_told(partial: Any, chunk: bytes) -> None:
        if not reached.is_set():
            reached.set()
            assert opened.wait(60)
        write(partial, chunk)

    monkeypatch.setattr(rung.PartialUpload, "write", write_when_told)
    monkeypatch.setattr("ladder.web.connection.BODY_SECONDS", 3600)
    interrupted = count_interrupts(monkeypatch)
    path = f"/upload/x.bin?id={ID}"
    with serving_from(own_folders) as server, ExitStack() as stack:
        connections = []
        for number, size in ((1, 8), (2, 8), (3, 4)):
            connections.append(stack.enter_context(closing(raw_upload(server, path, b"half", size))))
            interrupted(number)
            assert reached.wait(60)
        first, second, third = connections
        assert answer_on(second).status == 408  # although the first still holds the file
        opened.set()
        assert (answer_on(first).status, answer_on(third).status) == (408, 201)
    assert (own_folders / "uploads" / "x.bin").read_bytes() == b"half"


def count_interrupts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that waits until so many requests have arrived: each interrupts those before it."""
    interrupt, calls = Transfer.interrupt, threading.Semaphore(0)

    def counted(transfer: Transfer) -> None:
        interrupt(transfer)
        calls.release()

    monkeypatch.setattr(Transfer, "interrupt", counted)
    come = 0

    def wait(number: int) -> None:
        nonlocal come
        while come < number:
            assert calls.acquire(timeout=60)
            come += 1

    return wait


def test_a_refused_request_is_not_read_any_further(own_folders: Path) -> None:
    with started(own_folders, "--max-unfinished-mib", "1") as server:
        for path, status in (
            ("/upload/x.bin?id=short", 422),
            ("/upload/%2fx", 422),
            ("/nowhere", 404),
            ("/health", 405),
        ):
            with closing(begin_upload(server, path, b"x", size=100 * MIB)) as connection:
                answer = answer_on(connection)
                assert (answer.status, answer.headers["connection"]) == (status, "close")
        with closing(begin_upload(server, "/upload/x.bin", bytes(MIB + 1), size=2 * MIB)) as connection:
            answer = answer_on(connection)
            assert (answer.status, answer.headers["connection"]) == (507, "close")
            assert "unfinished uploads" in answer.json()["detail"]
        assert server.uploaded() == []


def test_the_space_of_all_unfinished_uploads_is_limited(own_folders: Path) -> None:
    content = bytes(600_000)
    (own_folders / "uploads" / f".{ID}.part").write_bytes(content)  # from an earlier run
    with started(own_folders, "--max-unfinished-mib", "1") as server:
        assert server.request("PUT", f"/upload/b.bin?id={OTHER_ID}", content).status == 507
        assert server.uploaded() == [f".{ID}.part"]
        path = f"/upload/a.bin?id={ID}"
        assert server.request("PUT", path, b"end", **{"upload-offset": "600000"}).json()["size"] == 600_003
        for number in range(3):  # complete, discarded and restarted uploads count no longer
            assert server.request("PUT", f"/upload/b.bin?id={OTHER_ID}{number}", content).status == 201
            with closing(begin_upload(server, "/upload/c.bin", content, size=MIB)):
                server.until(receiving=1)
            server.until(receiving=0)
            with closing(begin_upload(server, path, content, size=MIB)):
                wait_for_size(server, 600_000)
            server.until(receiving=0)
            assert server.request("PUT", path, content).status == 201
        assert server.request("PUT", "/upload/c.bin", bytes(MIB)).status == 201


def test_uploads_that_no_client_resumes_are_removed_while_the_server_runs(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ladder.files.uploads.SWEEP_SECONDS", 0.02)
    uploads = own_folders / "uploads"
    left, active = uploads / f".{OTHER_ID}.part", uploads / f".{ID}.part"

    async def there() -> bool:
        return left.exists()

    with serving_from(own_folders) as server:
        with closing(raw_upload(server, f"/upload/x.bin?id={ID}", b"half", size=8)) as connection:
            asyncio.run(eventually(lambda: asyncio.to_thread(active.exists), bool))
            left.write_bytes(b"old")
            os.utime(active, (0, 0))
            os.utime(left, (0, 0))
            asyncio.run(eventually(there, lambda there: not there))
            connection.sendall(b"rest")
            assert answer_on(connection).status == 201
        answer = server.request("PUT", f"/upload/y.bin?id={OTHER_ID}", b"x", **{"upload-offset": "3"})
        assert (answer.status, answer.headers["upload-offset"]) == (409, "0")
    assert (uploads / "x.bin").read_bytes() == b"halfrest"


# Exports


@fault("64 exports at once", "8 are made, the others get 503; files are sent without a delay", "12")
def test_exports_take_no_thread_from_files(own_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = threading.Event()

    def table(_rows: int, _size: int) -> Iterator[bytes]:
        assert opened.wait(60)
        yield b"table"

    monkeypatch.setattr("ladder.files.export.csv_chunks", table)
    with serving_from(own_folders, workers=1) as server, ExitStack() as stack:
        clients = [begin_export(server, stack) for _ in range(64)]
        statuses = [answer.status for answer in clients]
        assert statuses == [200] * MAX_WAITING + [503] * (64 - MAX_WAITING)
        assert clients[-1].headers["retry-after"] == "1"
        assert server.request("GET", "/stream-video/clip.webm").body == CONTENT
        clients[0].close()  # its client disconnects before anything is made for it
        opened.set()
        assert [answer.read() for answer in clients[1:MAX_WAITING]] == [b"table"] * (MAX_WAITING - 1)
        opened.clear()
        asyncio.run(server_is_idle(server))
        statuses = [begin_export(server, stack).status for _ in range(MAX_WAITING + 1)]
        assert statuses == [200] * MAX_WAITING + [503]  # all places are free again
        opened.set()


def begin_export(server: Server, stack: ExitStack) -> HTTPResponse:
    client = stack.enter_context(closing(server.connect()))
    client.request("GET", "/export.csv")
    return client.getresponse()


async def server_is_idle(server: Server) -> None:
    await server.health_when(lambda health: health["sending"] == 0)


@fault("Clients that read an export slowly", "they keep no other client from its export", "12")
def test_an_export_that_waits_for_its_client_takes_no_place(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(_rows: int, _size: int) -> Iterator[bytes]:
        while True:
            yield bytes(MIB)

    monkeypatch.setattr("ladder.files.export.csv_chunks", endless)
    with serving_from(own_folders) as server, ExitStack() as stack:

        async def admitted() -> int:
            return begin_export(server, stack).status  # and nothing more is read

        for _ in range(2 * MAX_WAITING):
            asyncio.run(eventually(admitted, lambda status: status == 200))


# Clients that watch


LOG, PROGRESS = "/logs/stream?last=0", f"/upload/{ID}/events"


def watch(server: Server, path: str, stack: ExitStack) -> HTTPConnection:
    watcher = stack.enter_context(closing(server.connect()))
    watcher.request("GET", path)
    return watcher


@fault("64 idle followers of the log", "further followers get 503; progress of uploads is still sent", "12")
@pytest.mark.parametrize(("full", "free"), [(LOG, PROGRESS), (PROGRESS, LOG)])
def test_the_number_of_watchers_of_each_kind_is_limited(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch, full: str, free: str
) -> None:
    monkeypatch.setattr("ladder.files.watchers.MAX_WATCHERS", 2)
    with serving_from(own_folders) as server, ExitStack() as stack:
        watchers = [watch(server, full, stack) for _ in range(2)]
        assert [one.getresponse().status for one in watchers] == [200, 200]
        answer = server.request("GET", full)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert watch(server, free, stack).getresponse().status == 200
        watchers[0].close()

        async def admitted() -> int:
            with ExitStack() as asking:
                return watch(server, full, asking).getresponse().status

        asyncio.run(eventually(admitted, lambda status: status == 200))


@fault("Followers that never disconnect", "the oldest one makes room for a new client after a minute", "12")
@pytest.mark.parametrize("path", [LOG, PROGRESS])
def test_the_client_that_has_watched_longest_makes_room(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("ladder.files.watchers.MAX_WATCHERS", 2)
    monkeypatch.setattr("ladder.files.watchers.SAFE_SECONDS", 0)
    monkeypatch.setattr("ladder.files.watchers.KEEP_ALIVE_SECONDS", 0)
    with serving_from(own_folders) as server, ExitStack() as stack:
        oldest, newer, newest = [watch(server, path, stack).getresponse() for _ in range(3)]
        assert [one.status for one in (oldest, newer, newest)] == [200, 200, 200]
        assert oldest.read().endswith(b"\n\n")  # to the end, which is a complete event
        assert newer.read(len(ALIVE))
        assert newest.read(len(ALIVE))


@pytest.mark.parametrize("path", ["/logs/stream?last=0", f"/upload/{ID}/events"])
def test_watchers_get_keep_alive_comments(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("ladder.files.watchers.KEEP_ALIVE_SECONDS", 0)
    with serving_from(own_folders) as server, closing(server.connect()) as watcher:
        watcher.request("GET", path)
        assert watcher.getresponse().read(10) == b": alive\n\n:"


@fault("The disk of the files hangs", "the log still streams", "12")
def test_the_log_streams_while_the_disk_of_the_files_hangs(own_folders: Path) -> None:
    with (
        started(own_folders, "--slow-disk-ms", "3600000", "--workers", "1") as server,
        closing(server.connect()) as watcher,
        closing(server.connect()) as reader,
    ):
        reader.request("GET", "/stream-video/clip.webm")
        server.until(sending=1)
        watcher.request("GET", "/logs/stream?last=0")
        events = read_events(watcher)
        server.request("GET", f"/{quote('nothing here')}")
        assert "/nothing%20here 404" in next(events).data


def test_an_upload_is_done_once_it_is_renamed_even_if_its_client_asks_for_the_offset(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, opened = threading.Event(), threading.Event()
    publish = rung.PartialUpload.publish

    def publish_when_told(partial: Any, name: str) -> Any:
        reached.set()
        assert opened.wait(60)
        return publish(partial, name)

    monkeypatch.setattr(rung.PartialUpload, "publish", publish_when_told)
    interrupted = count_interrupts(monkeypatch)
    with (
        serving_from(own_folders) as server,
        ThreadPoolExecutor(1) as asking,
        closing(raw_upload(server, f"/upload/x.bin?id={ID}", b"all", size=3)) as connection,
    ):
        assert reached.wait(60)
        answer = asking.submit(server.request, "HEAD", f"/upload/{ID}")
        interrupted(2)
        opened.set()
        assert answer.result().headers["upload-complete"] == "?1"
        assert answer_on(connection).status == 201


@fault("Two uploads of one name at once", "one of the two says that it replaced a file", "12")
def test_of_two_uploads_that_end_at_once_one_replaces_the_other(
    own_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, fsync = threading.Barrier(2), os.fsync

    def fsync_together(descriptor: int) -> None:
        both.wait(60)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_together)
    with serving_from(own_folders) as server, ThreadPoolExecutor(2) as clients:
        contents = (b"one", b"two")
        answers = list(clients.map(lambda content: server.request("PUT", "/upload/x.bin", content), contents))
        assert [answer.status for answer in answers] == [201, 201]
        replaced = [answer.json()["replaced"] for answer in answers]
        assert sorted(replaced) == [False, True]
    # The file that is left is the one that replaced the other.
    assert (own_folders / "uploads" / "x.bin").read_bytes() == contents[replaced.index(True)]
