"""Rung 12: files sent and received over HTTP, whole and in parts, by friendly and by hostile clients."""

from __future__ import annotations

import asyncio
import csv
import email
import gzip
import hashlib
import http.client
import io
import itertools
import os
import random
import re
import socket
import threading
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
from hypothesis import given, strategies as st
from werkzeug.http import parse_options_header

from ladder.cli import DemoOptions, parse
from ladder.errors import UserError
from ladder.files.follow import BLOCK, Follower
from ladder.files.forms import BrokenForm, files_in_form
from ladder.files.names import InvalidName, check_name
from ladder.files.ranges import Unsatisfiable, parse_ranges
from ladder.files.responses import attachment
from ladder.lab import file_scenes, naive_files
from ladder.lab.launch import RungProcess
from ladder.web.sse import Event, EventParser
from tests.faults import fault
from tests.support import Answer, Server, eventually, import_rung, one_line, run_rung

SCRIPT = "12_file_streaming.py"
MIB = 2**20
SECRET = b"SECRET"
CONTENT = random.Random(8).randbytes(300_001)
ID = "0123456789abcdef"

UNICODE_NAMES = [
    "plain.bin", "модель v2.bin", "モデル.bin", "naïve café.bin", "نموذج.bin", "🦊 fox.bin", "100%.bin",
    "a;b.bin",
    'quo"ted.bin', "it's.bin", "comma, space.bin", "e\u0301.bin", "plus+and&.bin", "ends with tilde~",
]  # fmt: skip


@dataclass(frozen=True)
class FileServer(Server):
    """A rung 12 with its own folders, inside a folder that it must not leave."""

    process: RungProcess
    around: Path

    @property
    def uploads(self) -> Path:
        return self.around / "uploads"

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, **headers)

    def uploaded(self) -> list[str]:
        """All files in the folder of uploads, hidden or not."""
        return sorted(file.name for file in self.uploads.iterdir() if file.name != ".log")

    def status(self, name: str) -> int:
        """A value from the status of the process, in bytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[0])

    def raw_get(self, target: str, method: str = "GET") -> Answer:
        """Send exactly this path: an HTTP client would normalize it."""
        with closing(self.raw()) as connection:
            lines = (f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", "", "")
            connection.sendall("\r\n".join(lines).encode())
            response = http.client.HTTPResponse(connection, method=method)
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())

    def until(self, **busy: int) -> dict[str, Any]:
        return asyncio.run(self.health_when(lambda health: {key: health[key] for key in busy} == busy))


def make_folders(around: Path) -> None:
    """Files that clients may read, and others that they must not."""
    for name in ("videos/sub", "models", "uploads", "outside"):
        (around / name).mkdir(parents=True)
    (around / "secret.txt").write_bytes(SECRET)
    (around / "outside" / "secret.txt").write_bytes(SECRET)
    videos = around / "videos"
    for name in ("clip.webm", "clip.mp4", "table.csv", "notes.txt", "pack.tar.gz", "page.html", "x.unknown"):
        (videos / name).write_bytes(CONTENT)
    (videos / "empty.bin").touch()
    (videos / "sub" / "inner.txt").write_bytes(SECRET)
    (videos / ".hidden").write_bytes(SECRET)
    (videos / "link.txt").symlink_to(around / "secret.txt")
    (videos / "folder-link").symlink_to(around / "outside")
    os.mkfifo(videos / "pipe")
    for name in UNICODE_NAMES:
        (around / "models" / name).write_bytes(name.encode())


def start(around: Path, *flags: str) -> FileServer:
    folders = [part for name in ("videos", "models", "uploads") for part in (f"--{name}", str(around / name))]
    process = RungProcess(SCRIPT, (*folders, *flags))
    try:
        return FileServer(process.wait_ready(), process, around)
    except BaseException:
        process.close()
        raise


@contextmanager
def started(around: Path, *flags: str) -> Iterator[FileServer]:
    server = start(around, *flags)
    try:
        yield server
    finally:
        server.process.close()


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_folders(folder)
    return folder


@pytest.fixture(scope="module")
def server(around: Path) -> Iterator[FileServer]:
    with started(around, "--chunk-kib", "64", "--max-upload-mib", "2") as server:
        yield server


@pytest.fixture
def own_folders(tmp_path: Path) -> Path:
    make_folders(tmp_path)
    return tmp_path


# Whole files


def test_a_whole_file_and_its_headers(server: FileServer) -> None:
    answer = server.get("/stream-video/clip.webm")
    assert (answer.status, answer.body) == (200, CONTENT)
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert server.get("/stream-video/empty.bin").body == b""


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("clip.webm", "video/webm"),
        ("clip.mp4", "video/mp4"),
        ("table.csv", "text/csv; charset=utf-8"),
        ("notes.txt", "text/plain; charset=utf-8"),
        ("pack.tar.gz", "application/gzip"),
        ("x.unknown", "application/octet-stream"),
    ],
)
def test_the_media_type(server: FileServer, name: str, media_type: str) -> None:
    assert server.request("HEAD", f"/stream-video/{name}").headers["content-type"] == media_type


def test_head_has_the_headers_of_get(server: FileServer) -> None:
    got, head = (server.request(method, "/stream-video/clip.webm") for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"")
    assert {**head.headers, "date": ""} == {**got.headers, "date": ""}
    # A range has no meaning for HEAD.
    assert server.request("HEAD", "/stream-video/clip.webm", None, range="bytes=0-9").status == 200


def test_a_file_that_the_client_has_is_not_sent_again(server: FileServer) -> None:
    first = server.get("/stream-video/clip.webm")
    tag, date = first.headers["etag"], first.headers["last-modified"]
    for condition in (
        {"if-none-match": tag},
        {"if-none-match": f'"other", W/{tag}'},
        {"if-none-match": "*"},
        {"if-modified-since": date},
        {"if-none-match": tag, "range": "bytes=0-9"},
    ):
        answer = server.get("/stream-video/clip.webm", **condition)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
    for condition in (
        {"if-none-match": '"other"'},
        {"if-none-match": '"other"', "if-modified-since": date},  # the tag decides
        {"if-modified-since": "Sat, 01 Jan 2000 00:00:00 GMT"},
        {"if-modified-since": "yesterday"},
    ):
        assert server.get("/stream-video/clip.webm", **condition).body == CONTENT


# Parts


def part(server: FileServer, wanted: str, **headers: str) -> Answer:
    return server.get("/stream-video/clip.webm", range=f"bytes={wanted}", **headers)


SIZE = len(CONTENT)


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("0-0", 0, 1),
        ("0-99", 0, 100),
        ("65530-65545", 65530, 65546),
        ("5000-", 5000, SIZE),
        ("-500", SIZE - 500, SIZE),
        (f"-{SIZE + 5}", 0, SIZE),
        (f"{SIZE - 1}-", SIZE - 1, SIZE),
        (f"300000-{10 * SIZE}", 300000, SIZE),
        ("5-9, 999999999-", 5, 10),  # a range past the end does not spoil the other
    ],
)
def test_a_part(server: FileServer, wanted: str, start: int, stop: int) -> None:
    answer = part(server, wanted)
    assert (answer.status, answer.body) == (206, CONTENT[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.headers["content-type"] == "video/webm"


@pytest.mark.parametrize("wanted", [f"{SIZE}-", f"{SIZE + 7}-{SIZE + 9}", "-0"])
def test_past_the_end(server: FileServer, wanted: str) -> None:
    answer = part(server, wanted)
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("header", ["bytes=9-5", "bytes=", "bytes=a-b", "bytes=--5", "lines=1-2", "0-5",
                                    "bytes=1-2-3", f"bytes=0-{'9' * 5000}", "bytes=²-", "bytes=0-9,5-",
                                    "bytes=" + ",".join(f"{n}-{n}" for n in range(0, 200, 2))])  # fmt: skip
def test_a_header_that_is_invalid_or_costs_too_much_is_ignored(server: FileServer, header: str) -> None:
    with closing(server.raw()) as connection:
        head = f"GET /stream-video/clip.webm HTTP/1.1\r\nHost: localhost\r\nRange: {header}\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode("latin-1"))
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, response.read()) == (200, CONTENT)


def test_several_parts(server: FileServer) -> None:
    answer = part(server, "100-199,0-9,-5")
    assert answer.status == 206
    assert int(answer.headers["content-length"]) == len(answer.body)
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.body)
    found = [
        (one["Content-Range"], one.get_content_type(), one.get_payload(decode=True))
        for one in message.walk()
        if not one.is_multipart()
    ]
    assert [(where, kind) for where, kind, _ in found] == [
        (f"bytes 100-199/{SIZE}", "video/webm"),
        (f"bytes 0-9/{SIZE}", "video/webm"),
        (f"bytes {SIZE - 5}-{SIZE - 1}/{SIZE}", "video/webm"),
    ]
    for expected in (CONTENT[100:200], CONTENT[:10], CONTENT[-5:]):
        assert b"\r\n\r\n" + expected + b"\r\n--" in answer.body


def test_parts_put_together_are_the_file(server: FileServer) -> None:
    borders = [0, *sorted(random.Random(1).sample(range(1, SIZE), 20)), SIZE]
    chunks = [part(server, f"{one}-{two - 1}").body for one, two in pairwise(borders)]
    assert hashlib.sha256(b"".join(chunks)).digest() == hashlib.sha256(CONTENT).digest()


def test_if_range_sends_parts_only_of_the_same_file(own_folders: Path) -> None:
    with started(own_folders) as server:
        first = part(server, "0-99")
        tag, date = first.headers["etag"], first.headers["last-modified"]
        for valid in (tag, date):
            assert part(server, "100-199", **{"if-range": valid}).status == 206
        for stale in ('"other"', f"W/{tag}", "Sat, 01 Jan 2000 00:00:00 GMT"):
            assert part(server, "100-199", **{"if-range": stale}).body == CONTENT
        changed = own_folders / "videos" / "new"
        changed.write_bytes(b"n" * SIZE)
        changed.replace(own_folders / "videos" / "clip.webm")
        answer = part(server, "100-199", **{"if-range": tag})
        assert (answer.status, answer.body) == (200, b"n" * SIZE)
        assert answer.headers["etag"] != tag


@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), min_size=1, max_size=4))
def test_ranges_are_those_of_the_header(pairs: list[tuple[int, int]]) -> None:
    size = 100
    header = "bytes=" + ",".join(f"{one}-{two}" for one, two in pairs)
    sets = [set(range(one, min(two + 1, size))) for one, two in pairs if one < size]
    if any(two < one for one, two in pairs):
        assert parse_ranges(header, size) is None
    elif not sets:
        with pytest.raises(Unsatisfiable):
            parse_ranges(header, size)
    elif sum(map(len, sets)) > len(set.union(*sets)):
        assert parse_ranges(header, size) is None
    else:
        assert [set(part) for part in parse_ranges(header, size) or []] == sets


# Hostile names

HOSTILE = [
    "../secret.txt", "..%2fsecret.txt", "%2e%2e/secret.txt", "%2e%2e%2fsecret.txt", "%2E%2E%2Fsecret.txt",
    "..%5csecret.txt", "%252e%252e%252fsecret.txt", "....//secret.txt", "..;/secret.txt", "./../secret.txt",
    "sub/../../secret.txt", "clip.webm/../../secret.txt", "clip.webm%2f..%2f..%2fsecret.txt",
    "/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "file:%2f%2f%2fetc%2fpasswd", "C:%5Csecret.txt",
    "%c0%ae%c0%ae%c0%afsecret.txt", "%ef%bc%8e%ef%bc%8e%ef%bc%8fsecret.txt", "%ff%fe", "~root",
    "link.txt", "folder-link", "folder-link/secret.txt", "folder-link%2fsecret.txt", ".hidden", "%2ehidden",
    "sub", "sub/", "sub/inner.txt", "sub%2finner.txt", "pipe", "", ".", "..", "%2e", "%2e%2e", "/",
    "clip.webm/",
    "clip.webm%00", "clip.webm%00.txt", "%00", "clip.webm%0a", "clip.webm%20", "clip.webm.",
    "clip.webm::$DATA",
    "CLIP.WEBM", "*", "clip.*", "a" * 250, "a" * 5000, "%e2%80%ae", ".log", ".part",
    "|id", "$(id)", "con", "nul",
]  # fmt: skip
"""Known tricks to leave a folder, and some to reach something in it that is not a plain file."""


@pytest.mark.parametrize("prefix", ["/stream-video/", "/download/model/", "/uploads/"])
def test_only_the_files_of_the_folder_can_be_read(server: FileServer, prefix: str) -> None:
    (server.uploads / ".secret").write_bytes(SECRET)
    for name in [*HOSTILE, ".secret"]:
        for method in ("GET", "HEAD"):
            answer = server.raw_get(prefix + name, method)
            assert answer.status == 404, name
            assert SECRET not in answer.body
            assert b"root:" not in answer.body
            assert "location" not in answer.headers
    (server.uploads / ".secret").unlink()


def test_no_upload_leaves_its_folder(own_folders: Path) -> None:
    def everything() -> dict[str, bytes]:
        files = (file for file in own_folders.rglob("*") if file.is_file() and file.name != ".log")
        return {str(file.relative_to(own_folders)): file.read_bytes() for file in files}

    with started(own_folders) as server:
        (server.uploads / "sub").mkdir()
        before = everything()
        for name in HOSTILE:
            with closing(server.raw()) as connection:
                head = f"PUT /upload/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"
                connection.sendall(head.encode() + b"evil")
                response = http.client.HTTPResponse(connection)
                response.begin()
                if response.status == 201:  # a harmless name after all, used as it is
                    (stored,) = {*everything()} - {*before}
                    assert Path(stored).parent == Path("uploads")
                    (own_folders / stored).unlink()
                else:
                    assert response.status == 422, name
                assert everything() == before, name


@fault("File names that some system cannot store, or that look like others", "422 with the reason", "12")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\nb", "control characters"),
        ("a\n", "control characters"),
        ("CON", "must not be CON"),
        ("nul.tar.gz", "must not be NUL"),
        ("Com1 .txt", "must not be COM1"),
        ("LPT¹", "must not be LPT¹"),
        ("a?b", "must not contain ?"),
        ("a*b", "must not contain *"),
        ("a: b", "must not contain :"),
        ('"', 'must not contain "'),
        ("trail.", "end with a dot or a space"),
        ("trail ", "end with a dot or a space"),
        ("gnp\u202e.exe", "U+202E because it is invisible"),
        ("a\u200bb", "U+200B"),
        ("\ufeffa", "U+FEFF"),
        ("a\u00adb", "U+00AD"),
        ("a\u2028b", "U+2028"),
        ("\u3164", "U+3164"),
        ("a\u200d.txt", "U+200D"),
        ("a\ufe0f.txt", "U+FE0F"),
        ("\U000e0041", "U+E0041"),
        ("\ufffd", "must be UTF-8"),
        ("ы" * 101, "longer than 200 bytes"),
    ],
)
def test_a_name_that_is_refused_is_refused_with_a_reason(server: FileServer, name: str, reason: str) -> None:
    before = server.uploaded()
    answers = [server.request("PUT", f"/upload/{quote(name)}", b"x")]
    if not {'"', "\n"} & {*name}:  # in a form these end the name
        body = form_part(name, b"x", first=True) + END
        answers.append(server.request("POST", "/upload/stream", body, **FORM))
    for answer in answers:
        assert answer.status == 422
        assert reason in answer.json()["detail"][0]["msg"]
    assert server.uploaded() == before


def test_a_name_that_is_not_utf_8_is_refused(server: FileServer) -> None:
    before = server.uploaded()
    for name in ("%ff", "a%ed%a0%80", "%c0%ae"):
        answer = server.request("PUT", f"/upload/{name}", b"x")
        assert (answer.status, answer.json()["detail"][0]["loc"]) == (422, ["path", "name"])
        assert "must be UTF-8" in answer.json()["detail"][0]["msg"]
    assert server.uploaded() == before


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in UNICODE_NAMES if '"' not in name),
        "console.txt", "COM", "COM10", "a.con", "CON-1", " leading space", "two  spaces",
        "~$draft.docx", "%ff", "%00",
        "نامه\u200cها.txt", "👩🏽\u200d🚀.png", "❤\ufe0f\u200d🔥.png", "1\ufe0f\u20e3.png",
        "9.41\u202fAM.png",
    ],
)  # fmt: skip
def test_a_name_that_every_system_can_have_is_accepted(server: FileServer, name: str) -> None:
    path = quote(name, safe="")
    assert server.request("PUT", f"/upload/{path}", name.encode()).json()["name"] == name
    assert server.get(f"/uploads/{path}").body == name.encode()
    (server.uploads / name).unlink()


TRICKY = st.sampled_from([*'<>:"|?*/\\. \n\u200d\ufe0f\u202e\ufffd1', "CON", "nul", "COM1", "❤", "a"])


@given(st.lists(TRICKY | st.characters(), max_size=6).map("".join))
def test_an_accepted_name_has_none_of_the_known_faults(name: str) -> None:
    try:
        assert check_name(name) == name
    except InvalidName:
        return
    assert not set(name) & {*'<>:"|?*/\\', *map(chr, range(32))}
    assert name == name.rstrip(". ") == name.encode().decode()
    assert not name.startswith(".")
    assert not re.match(r"(con|prn|aux|nul|(com|lpt)\d) *(\.|$)", name, re.IGNORECASE)
    assert not [one for one in name if unicodedata.category(one) == "Cf" and one not in "\u200c\u200d"]
    assert not re.search(r"[a-zA-Z.][\u200c\u200d\ufe00-\ufe0f]", name)


def test_a_link_in_the_folder_of_uploads_is_replaced_and_not_followed(own_folders: Path) -> None:
    with started(own_folders) as server:
        (server.uploads / "link.txt").symlink_to(own_folders / "secret.txt")
        assert server.request("PUT", "/upload/link.txt", b"new").status == 201
        assert (own_folders / "secret.txt").read_bytes() == SECRET
        assert not (server.uploads / "link.txt").is_symlink()


# Memory, and a slow disk


@pytest.mark.usefixtures("fresh_interpreters")
def test_memory_stays_flat_while_eight_clients_read_a_large_file(own_folders: Path) -> None:
    with (own_folders / "videos" / "large.bin").open("wb") as file:
        file.truncate(256 * MIB)
        for number in range(256):
            file.seek(number * MIB)
            file.write(stamp(number))
    with started(own_folders) as server, ThreadPoolExecutor(8) as clients:
        assert server.get("/stream-video/clip.webm").body == CONTENT
        before = server.status("VmRSS")
        all_started = threading.Barrier(8)
        list(clients.map(lambda first: read_and_check(server, range(first, first + 32), all_started),
                         range(0, 256, 32)))  # fmt: skip
        assert server.status("VmHWM") - before < 30 * MIB
        server.until(sending=0)


def stamp(number: int) -> bytes:
    """The beginning of each MiB of the file. The rest is zeros, which take no space on the disk."""
    return hashlib.sha256(str(number).encode()).digest()


def read_and_check(server: FileServer, numbers: range, all_started: threading.Barrier) -> None:
    """Check every byte of these MiB of the file, read in one request."""
    expected, got = bytearray(MIB), bytearray(MIB)
    with closing(server.connect()) as connection:
        wanted = f"bytes={numbers.start * MIB}-{numbers.stop * MIB - 1}"
        connection.request("GET", "/stream-video/large.bin", headers={"Range": wanted})
        response = connection.getresponse()
        assert response.status == 206
        all_started.wait(timeout=60)
        for number in numbers:
            size = 0
            while size < MIB and (more := response.readinto(memoryview(got)[size:])):
                size += more
            expected[:32] = stamp(number)
            assert (size, got == expected) == (MIB, True), number
        assert response.read() == b""


@pytest.mark.usefixtures("fresh_interpreters")
def test_memory_stays_flat_while_a_large_file_is_uploaded(own_folders: Path) -> None:
    chunk = random.Random(2).randbytes(MIB)
    expected = hashlib.sha256()
    with started(own_folders) as server:
        server.request("PUT", "/upload/warm.bin", chunk)
        before = server.status("VmRSS")

        def chunks() -> Iterator[bytes]:
            for _ in range(256):
                expected.update(chunk)
                yield chunk

        answer = server.request("PUT", "/upload/large.bin", chunks(), **{"content-length": str(256 * MIB)})
        assert answer.status == 201
        assert (answer.json()["size"], answer.json()["sha256"]) == (256 * MIB, expected.hexdigest())
        assert server.status("VmHWM") - before < 30 * MIB


@pytest.mark.usefixtures("fresh_interpreters")
def test_memory_stays_flat_while_a_form_with_a_large_file_is_uploaded(own_folders: Path) -> None:
    chunk = random.Random(3).randbytes(MIB)
    expected = hashlib.sha256(chunk * 256).hexdigest()
    with started(own_folders) as server:
        server.request("POST", "/upload/stream", form_part("warm.bin", chunk, first=True) + END, **FORM)
        before = server.status("VmRSS")
        head = form_part("large.bin", b"", first=True)
        size = len(head) + 256 * MIB + len(END)
        body = itertools.chain([head], itertools.repeat(chunk, 256), [END])
        answer = server.request("POST", "/upload/stream", body, **FORM, **{"content-length": str(size)})
        assert [(one["size"], one["sha256"]) for one in answer.json()] == [(256 * MIB, expected)]
        assert server.status("VmHWM") - before < 30 * MIB


@fault("The disk hangs for an hour", "/health answers, and the server stops in time", "12")
def test_a_disk_that_hangs_stops_neither_health_nor_the_shutdown(own_folders: Path) -> None:
    with started(own_folders, "--slow-disk-ms", "3600000", "--workers", "8") as server:
        clients = [server.connect() for _ in range(8)]
        for client in clients:
            client.request("GET", "/stream-video/clip.webm")
        assert server.until(sending=8)["status"] == "ok"
        assert server.get("/").status == 200
        assert server.process.stop(timeout=8) == 0
        for client in clients:
            client.close()


def test_reading_stops_when_the_client_disconnects(server: FileServer) -> None:
    with (server.around / "videos" / "endless.bin").open("wb") as file:
        file.truncate(1024 * MIB)
    with closing(server.raw()) as connection:
        connection.sendall(b"GET /stream-video/endless.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1)
        server.until(sending=1)
    server.until(sending=0)
    descriptors = [str(one.readlink()) for one in Path(f"/proc/{server.process.pid}/fd").iterdir()]
    assert not [one for one in descriptors if one.endswith("endless.bin")]


def test_a_file_that_is_replaced_while_it_is_sent_is_sent_as_it_was(own_folders: Path) -> None:
    large = own_folders / "videos" / "large.bin"
    content = CONTENT * 100
    large.write_bytes(content)
    with started(own_folders) as server, closing(server.connect()) as connection:
        connection.request("GET", "/stream-video/large.bin")
        response = connection.getresponse()
        (own_folders / "new").write_bytes(b"new")
        (own_folders / "new").replace(large)
        assert response.read() == content
        assert server.get("/stream-video/large.bin").body == b"new"


def test_a_file_that_is_truncated_while_it_is_sent_ends_in_an_error(own_folders: Path) -> None:
    large = own_folders / "videos" / "large.bin"
    large.write_bytes(CONTENT * 100)
    with started(own_folders) as server, closing(server.connect()) as connection:
        connection.request("GET", "/stream-video/large.bin")
        response = connection.getresponse()
        os.truncate(large, 10)
        with pytest.raises(http.client.IncompleteRead):
            response.read()
        assert server.health()["status"] == "ok"


# Downloads under any name


def test_a_file_may_have_a_name_that_an_upload_may_not_have(own_folders: Path) -> None:
    names = ["a: b.bin", "x" * 255]
    for name in names:
        (own_folders / "models" / name).write_bytes(name.encode())
    with started(own_folders) as server:
        listed = [file["name"] for file in server.get("/files").json()["models"]]
        for name in names:
            assert name in listed
            assert server.get(f"/download/model/{quote(name)}").body == name.encode()
            assert server.request("PUT", f"/upload/{quote(name)}", b"x").status == 422


@pytest.mark.parametrize("name", UNICODE_NAMES)
def test_a_download_has_its_name(server: FileServer, name: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in name.encode())
    answer = server.get(f"/download/model/{quoted}")
    assert (answer.status, answer.body) == (200, name.encode())
    header = answer.headers["content-disposition"]
    assert header.isascii()
    assert parse_options_header(header) == ("attachment", {"filename": name})


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_any_name_makes_a_header_of_one_line_that_contains_it(name: str) -> None:
    header = attachment(name)
    assert re.fullmatch(
        r"attachment; filename=\"[\w .()-]+\"; filename\*=UTF-8''[\w%!#$&+.^`|~-]+", header, re.ASCII
    )
    assert parse_options_header(header)[1]["filename"] == name


# Uploads


def begin_upload(server: FileServer, path: str, *chunks: bytes, size: int, **headers: str) -> socket.socket:
    """Begin an upload, and do not send its end."""
    connection = server.raw()
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines = [f"PUT {path} HTTP/1.1", "Host: localhost", f"Content-Length: {size}", *lines, "", ""]
    connection.sendall("\r\n".join(lines).encode() + b"".join(chunks))
    return connection


def answer_on(connection: socket.socket) -> Answer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(
        response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
    )


def offset_of(server: FileServer, id: str = ID) -> tuple[int, str]:
    headers = server.request("HEAD", f"/upload/{id}").headers
    return int(headers["upload-offset"]), headers["upload-complete"]


def test_an_upload_is_stored_and_hashed(server: FileServer) -> None:
    answer = server.request("PUT", "/upload/%E2%98%83.bin", CONTENT)
    assert answer.status == 201
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert answer.json() == {"name": "☃.bin", "size": SIZE, "sha256": digest, "replaced": False}
    assert server.request("PUT", "/upload/%E2%98%83.bin", b"").json()["replaced"]
    assert server.get("/uploads/%E2%98%83.bin").body == b""
    assert not [name for name in server.uploaded() if name.startswith(".")]


def test_an_upload_is_hidden_until_it_is_complete_and_leaves_nothing_if_it_is_interrupted(
    own_folders: Path,
) -> None:
    with started(own_folders) as server:
        with closing(begin_upload(server, "/upload/half.bin", CONTENT[:1000], size=SIZE)):
            server.until(receiving=1)
            assert server.get("/uploads/half.bin").status == 404
        server.until(receiving=0)
        assert server.uploaded() == []


def test_an_upload_with_an_id_resumes_where_it_was_interrupted(own_folders: Path) -> None:
    path = f"/upload/half.bin?id={ID}"
    with started(own_folders) as server:
        assert offset_of(server) == (0, "?0")
        with closing(begin_upload(server, path, CONTENT[:1000], size=SIZE)):
            wait_for_size(server, 1000)
        server.until(receiving=0)
        assert server.uploaded() == [f".{ID}.part"]
        wrong = server.request("PUT", path, CONTENT[5:], **{"upload-offset": "5"})
        assert (wrong.status, wrong.headers["upload-offset"]) == (409, "1000")
    with started(own_folders) as server:  # a restarted server knows it too
        assert offset_of(server) == (1000, "?0")
        answer = server.request("PUT", path, CONTENT[1000:], **{"upload-offset": "1000"})
        assert answer.json()["sha256"] == hashlib.sha256(CONTENT).hexdigest()
        assert server.uploaded() == ["half.bin"]
        assert offset_of(server) == (SIZE, "?1")


def wait_for_size(server: FileServer, size: int) -> None:
    part = server.uploads / f".{ID}.part"

    async def written() -> int:
        return part.stat().st_size if part.exists() else 0

    asyncio.run(eventually(written, lambda got: got == size))


def test_asking_for_the_offset_ends_the_old_connection(own_folders: Path) -> None:
    path = f"/upload/half.bin?id={ID}"
    with (
        started(own_folders) as server,
        closing(begin_upload(server, path, CONTENT[:1000], size=SIZE)) as old,
    ):
        wait_for_size(server, 1000)
        assert offset_of(server) == (1000, "?0")
        assert answer_on(old).status == 408
        answer = server.request("PUT", path, CONTENT[1000:], **{"upload-offset": "1000"})
        assert answer.json()["sha256"] == hashlib.sha256(CONTENT).hexdigest()


def test_a_new_request_for_the_same_upload_takes_it_over(own_folders: Path) -> None:
    path = f"/upload/half.bin?id={ID}"
    with (
        started(own_folders) as server,
        closing(begin_upload(server, path, CONTENT[:1000], size=SIZE)) as old,
    ):
        wait_for_size(server, 1000)
        assert server.request("PUT", path, CONTENT).json()["size"] == SIZE
        assert answer_on(old).status == 408


def test_an_interrupted_upload_is_removed_after_a_time(own_folders: Path) -> None:
    left = own_folders / "uploads" / f".{ID}.part"
    left.write_bytes(b"half")
    with started(own_folders):
        assert left.exists()
    os.utime(left, (0, 0))
    with started(own_folders):
        assert not left.exists()


def test_a_too_large_upload_is_refused_before_it_is_sent_and_leaves_nothing(own_folders: Path) -> None:
    with started(own_folders, "--max-upload-mib", "1") as server:
        for path, offset in (("/upload/x.bin", "0"), (f"/upload/x.bin?id={ID}", str(MIB))):
            with closing(begin_upload(server, path, size=MIB + 1, upload_offset=offset)) as connection:
                answer = answer_on(connection)  # not one byte of the body has been sent
                assert (answer.status, answer.headers["connection"]) == (413, "close")
        with closing(server.raw()) as connection:
            connection.sendall(b"PUT /upload/x.bin HTTP/1.1\r\nHost: localhost\r\n")
            connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
            connection.sendall(b"100001\r\n" + bytes(MIB + 1))  # and of this one not the end
            assert answer_on(connection).status == 413
        assert server.request("PUT", "/upload/x.bin", bytes(MIB)).status == 201
        assert server.uploaded() == ["x.bin"]


@pytest.mark.parametrize("id", ["short", "a" * 65, "../../etc/x", "0123456/89", "0123456789%0a"])
def test_an_id_is_no_path_either(server: FileServer, id: str) -> None:
    before = server.uploaded()
    assert server.request("PUT", f"/upload/x.bin?id={id}", b"x").status == 422
    assert server.request("HEAD", f"/upload/{id}").status in (404, 405, 422)
    assert server.uploaded() == before


def test_watchers_see_the_progress(own_folders: Path) -> None:
    with started(own_folders) as server, closing(server.connect()) as watcher:
        watcher.request("GET", f"/upload/{ID}/events")
        events = read_events(watcher)
        with closing(begin_upload(server, f"/upload/x.bin?id={ID}", CONTENT[:1000], size=SIZE)) as connection:
            half = next(event for event in events if '"received": 1000' in event.data)
            assert half.name == "receiving"
            assert f'"total": {SIZE}' in half.data
            connection.sendall(CONTENT[1000:])
            assert answer_on(connection).status == 201
        *_, last = events
        assert last.name == "done"
        assert hashlib.sha256(CONTENT).hexdigest() in last.data


def read_events(connection: http.client.HTTPConnection) -> Iterator[Event]:
    """The events of a stream. When this returns, the stream has begun."""
    response, parser = connection.getresponse(), EventParser()
    chunks = iter(response.read1, b"")
    return (event for chunk in chunks for event in parser.feed(chunk))


# Forms

BOUNDARY = "frontier"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
FORM_HEAD = (
    "POST /upload/stream HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n"
    f"Content-Type: {FORM['content-type']}\r\n\r\n"
).encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()


def form_part(name: str, content: bytes, first: bool = False) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return b"\r\n" * (not first) + head.encode() + content


def test_a_form_with_several_files(server: FileServer) -> None:
    field = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'.encode()
    body = field + form_part("größe.bin", CONTENT, first=True) + form_part("two.bin", b"") + END
    answer = server.request("POST", "/upload/stream", body, **FORM)
    assert answer.status == 201
    assert [(one["name"], one["size"]) for one in answer.json()] == [("größe.bin", SIZE), ("two.bin", 0)]
    assert (server.uploads / "größe.bin").read_bytes() == CONTENT


def test_the_files_of_a_form_are_stored_as_they_arrive(own_folders: Path) -> None:
    with started(own_folders) as server:
        with closing(server.raw()) as connection:
            connection.sendall(FORM_HEAD)
            connection.sendall(form_part("one.bin", CONTENT, first=True) + form_part("two.bin", CONTENT))

            async def first() -> Answer:
                return await asyncio.to_thread(server.get, "/uploads/one.bin")

            answer = asyncio.run(eventually(first, lambda answer: answer.status == 200))
            assert answer.body == CONTENT
            assert server.get("/uploads/two.bin").status == 404
        server.until(receiving=0)
        assert server.uploaded() == ["one.bin"]


@pytest.mark.parametrize("name", ["../../evil.bin", "/etc/evil", "..\\\\evil.bin", ".hidden", "a/b", ".."])
def test_a_form_cannot_name_a_path(server: FileServer, name: str) -> None:
    before = server.uploaded()
    answer = server.request("POST", "/upload/stream", form_part(name, b"evil", first=True) + END, **FORM)
    assert answer.status == 422
    assert server.uploaded() == before


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "application/json"}, b"{}"),
        ({"content-type": "multipart/form-data"}, b""),
        (FORM, b"no form at all"),
        (FORM, form_part("x.bin", b"no end", first=True)),
        (FORM, f"--{BOUNDARY}\r\nno: disposition\r\n\r\nx".encode() + END),
        (FORM, f"--{BOUNDARY}\r\nheader: ".encode() + b"a" * 100_000),
    ],
)
def test_a_body_that_is_not_a_form_is_refused(
    server: FileServer, headers: dict[str, str], body: bytes
) -> None:
    before = server.uploaded()
    assert server.request("POST", "/upload/stream", body, **headers).status == 422
    assert server.uploaded() == before


@given(st.data())
def test_a_form_may_arrive_in_any_chunks(data: st.DataObject) -> None:
    tricky = b"\r\n--front\r\n--frontie\r" + bytes(range(256)) + b"\r\n-"
    body = form_part("a", tricky, first=True) + form_part("b", b"") + END
    borders = data.draw(st.lists(st.integers(0, len(body)), max_size=8).map(sorted))
    chunks = [body[one:two] for one, two in zip([0, *borders], [*borders, len(body)], strict=True)]

    async def arriving() -> Any:
        for chunk in chunks:
            yield chunk

    async def read() -> list[tuple[str, bytes]]:
        parts = files_in_form(FORM["content-type"], arriving())
        return [(name, b"".join([chunk async for chunk in content])) async for name, content in parts]

    assert asyncio.run(read()) == [("a", tricky), ("b", b"")]


def test_a_form_that_ends_early_is_refused_wherever_it_ends() -> None:
    body = form_part("a", b"content", first=True) + END.removesuffix(b"--\r\n")

    async def read(size: int) -> None:
        async def arriving() -> Any:
            yield body[:size]

        async for _, content in files_in_form(FORM["content-type"], arriving()):
            async for _ in content:
                pass

    for size in range(len(body) + 1):
        with pytest.raises(BrokenForm):
            asyncio.run(read(size))


# Generated tables


def test_a_table_is_generated_while_it_is_sent(server: FileServer) -> None:
    answer = server.get("/export.csv?rows=20000")
    table = list(csv.reader(io.StringIO(answer.body.decode())))
    assert table[0] == ["row", "question", "answer"]
    assert [row[0] for row in table[1:]] == [str(number) for number in range(1, 20001)]
    assert "content-length" not in answer.headers
    packed = server.get("/export.csv?rows=20000", **{"accept-encoding": "br, gzip;q=0.5"})
    assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert gzip.decompress(packed.body) == answer.body
    assert len(packed.body) < len(answer.body) / 3
    for refused in ("gzip;q=0", "br", "identity"):
        plain = server.get("/export.csv?rows=1", **{"accept-encoding": refused})
        assert "content-encoding" not in plain.headers


def test_generating_a_table_stops_when_the_client_disconnects(server: FileServer) -> None:
    for encoding in ("identity", "gzip"):
        with closing(server.connect()) as connection:
            connection.request("GET", "/export.csv?rows=10000000", headers={"accept-encoding": encoding})
            assert connection.getresponse().read(1000)
            server.until(sending=1)
        server.until(sending=0)


@pytest.mark.parametrize("rows", ["-1", "10000001", "many", "1e3"])
def test_a_table_of_invalid_length_is_refused(server: FileServer, rows: str) -> None:
    answer = server.get(f"/export.csv?rows={rows}")
    assert answer.status == 422
    assert [finding["loc"] for finding in answer.json()["detail"]] == [["query", "rows"]]


def test_an_error_names_the_wrong_header_or_part_of_the_path(server: FileServer) -> None:
    header = server.request("PUT", "/upload/new.bin", b"", **{"upload-offset": "-1"})
    upload = server.get("/upload/.hidden/events")
    name = server.request("PUT", "/upload/.hidden", b"x")
    form = server.request("POST", "/upload/stream", form_part(".hidden", b"x", first=True) + END, **FORM)
    places = [["header", "upload-offset"], ["path", "id"], ["path", "name"], ["body"]]
    for answer, place in zip((header, upload, name, form), places, strict=True):
        assert answer.status == 422
        assert [finding["loc"] for finding in answer.json()["detail"]] == [place]


# Logs


def test_the_log_is_followed_and_contains_no_queries(server: FileServer) -> None:
    with closing(server.connect()) as connection:
        connection.request("GET", "/logs/stream?last=0")
        events = read_events(connection)
        part(server, "5-9")
        line = next(events).data
        assert re.search(r" GET /stream-video/clip\.webm 206 bytes 5-9/300001 5 B \d+ ms$", line)
        server.raw_get("/stream-video/a%0d%0ab?token=private")
        assert re.search(r" GET /stream-video/a%0d%0ab 404 25 B \d+ ms$", next(events).data)


def test_following_continues_when_the_log_of_the_server_is_rotated(own_folders: Path) -> None:
    with started(own_folders) as server, closing(server.connect()) as connection:
        connection.request("GET", "/logs/stream?last=0")
        events = read_events(connection)
        for number in range(80):
            server.raw_get(f"/{number}/{'x' * 15_000}")
        assert all(f"GET /{number}/x" in next(events).data for number in range(80))
        assert (own_folders / "uploads" / ".log.1").exists()


def lines_of(follower: Follower) -> list[str]:
    """Read until nothing is new, and once more: another file may have taken the name."""
    lines: list[str] = []
    for _ in range(3):
        while new := follower.read():
            lines += new
    return lines


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def write(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_following_begins_with_the_last_lines(log: Path) -> None:
    write(log, "one\ntwo\nthree\nfo")
    with closing(Follower(log, last=2)) as follower:
        assert lines_of(follower) == ["two", "three"]
        write(log, "ur\r\nfive\n\n")
        assert lines_of(follower) == ["four", "five", ""]
    with closing(Follower(log)) as follower:
        assert lines_of(follower) == []


def rename(log: Path) -> None:
    log.replace(log.with_name("log.1"))


def truncate(log: Path) -> None:
    os.truncate(log, 0)


@pytest.mark.parametrize("clear", [rename, truncate, Path.unlink])
def test_following_continues_in_a_new_file(log: Path, clear: Callable[[Path], None]) -> None:
    write(log, "a long line of the old file\n")
    with closing(Follower(log)) as follower:
        for number in range(3):
            write(log, f"line {number} of the old file\n")
            assert lines_of(follower) == [f"line {number} of the old file"]
        clear(log)
        assert lines_of(follower) == []
        write(log, "new\n")
        assert lines_of(follower) == ["new"]


def test_nothing_is_lost_that_was_written_just_before_the_rotation(log: Path) -> None:
    write(log, "")
    with closing(Follower(log)) as follower:
        assert lines_of(follower) == []
        write(log, "last but one\nlast, without an end")
        rename(log)
        write(log, "new\n")
        assert lines_of(follower) == ["last but one", "last, without an end", "new"]


def test_a_log_may_come_later_and_its_lines_may_be_of_any_length(log: Path) -> None:
    with closing(Follower(log)) as follower:
        assert follower.read() == []
        write(log, "x" * (3 * BLOCK) + "\nend\n")
        lines = lines_of(follower)
        assert "".join(lines) == "x" * (3 * BLOCK) + "end"
        assert all(len(line) <= 2 * BLOCK for line in lines)


# The demo


class NeverReady:
    """Notes the commands of servers instead of starting them."""

    commands: ClassVar[list[list[str]]] = []
    pid = 0

    def __init__(self, *command: str) -> None:
        self.commands.append([*command])

    def wait_ready(self) -> str:
        raise UserError("this one is never ready")

    def close(self) -> None:
        pass


def test_flags_beside_demo_reach_every_server_that_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rung = import_rung(SCRIPT)
    monkeypatch.setattr(file_scenes, "ServerProcess", NeverReady)
    monkeypatch.setattr(NeverReady, "commands", [])
    flags = ["--workers", "3", "--hosts", "files.example", "--slow-disk-ms", "7", "--chunk-kib", "9"]
    config, options = parse(rung.Config, rung.__doc__, ["--demo", "--json", "--port", "1", *flags])
    assert options
    with pytest.raises(UserError):
        rung.demo(config, options)

    naive = [command[2:] for command in NeverReady.commands if command[:2] == ["-m", naive_files.__name__]]
    ours = [command[1:] for command in NeverReady.commands if command[0] == SCRIPT]
    assert len(naive) + len(ours) == len(NeverReady.commands)
    naive_configs = [parse(naive_files.Config, "", command)[0] for command in naive]
    our_configs = [parse(rung.Config, "", command)[0] for command in ours]
    for started in our_configs:
        assert (started.port, started.workers, started.hosts) == (0, 3, "files.example")
        assert started.uploads == started.videos
    # What the demo compares, it sets itself. The given delay is that of the simulated slow disk.
    compared = [(8, 0), (64, 0), (256, 0), (1024, 0), (8, 7)]
    assert [(started.chunk_kib, started.slow_disk_ms) for started in our_configs] == compared
    assert [started.slow_disk_ms for started in naive_configs] == [0, 0, 0, 0, 7]


def test_every_flag_of_the_naive_server_too_is_passed_on_unless_the_demo_sets_it() -> None:
    way = file_scenes.naive("blocking", "/blocking/")
    given = DemoOptions(given={"slow_disk_ms": 7, "folder": "elsewhere", "workers": 3, "port": 1})
    config, _ = parse(naive_files.Config, "", way.command("here", given)[2:])
    assert config == naive_files.Config(port=0, folder="here", slow_disk_ms=7)


def test_a_demo_whose_upload_is_refused_says_so_in_one_line(server: FileServer) -> None:
    with pytest.raises(UserError, match=r"an upload of 3 MiB was refused: (status 413|connection closed)"):
        file_scenes.send(server.url, 3 * MIB)


# The rung itself


@pytest.mark.usefixtures("fresh_interpreters")
def test_a_rung_without_a_model_starts_without_torch() -> None:
    from tests.support import run_python

    loaded = run_python(
        "-c",
        f"import importlib, sys; importlib.import_module({SCRIPT[:-3]!r}); print('torch' in sys.modules)",
    )
    assert loaded.stdout == "False\n", loaded.stderr


@pytest.mark.parametrize("flag", ["--videos", "--models"])
def test_a_missing_folder_is_reported_in_one_line(tmp_path: Path, flag: str) -> None:
    done = run_rung(SCRIPT, "--port", "0", "--uploads", str(tmp_path), flag, str(tmp_path / "none"))
    assert done.returncode == 1
    assert "there is no folder" in one_line(done.stderr)


def test_sigterm_ends_it_with_streams_and_uploads_open(own_folders: Path) -> None:
    with started(own_folders) as server:
        watching = server.connect()
        watching.request("GET", "/logs/stream")
        assert watching.getresponse().status == 200
        half = begin_upload(server, "/upload/half.bin", b"half", size=SIZE)
        kept = begin_upload(server, f"/upload/kept.bin?id={ID}", b"half", size=SIZE)
        server.until(receiving=2)
        wait_for_size(server, 4)
        assert server.process.stop(timeout=5) == 0
        assert server.uploaded() == [f".{ID}.part"]
        for connection in (watching, half, kept):
            connection.close()
