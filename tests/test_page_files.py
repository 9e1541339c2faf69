"""Tests the page of rung 12 in a real browser: play, seek, upload and resume."""

from __future__ import annotations

import asyncio
import io
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from ladder import ROOT
from tests.browsing import Open, Ready, assert_accessible
from tests.support import Server, own_rung

CLIP = ROOT / "ladder" / "data" / "clips" / "batching.webm"


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def server(uploads: Path) -> Iterator[Server]:
    with own_rung("12_file_streaming.py", "--uploads", str(uploads)) as server:
        yield server


@pytest.fixture
def ready() -> Ready:
    return lambda page: expect(page.locator("#choice")).not_to_have_value("")


@pytest.fixture
def page(open_page: Open, server: Server) -> Page:
    return open_page(server)


def test_the_clip_is_small_and_plays_and_seeks(page: Page) -> None:
    assert CLIP.stat().st_size <= 300 * 1024
    video = page.locator("#video")
    video.evaluate("video => video.readyState || new Promise((done) => (video.onloadedmetadata = done))")
    duration = video.evaluate("video => video.duration")
    assert duration == 16
    for moment in (13.0, 2.0, 15.5):
        shown = video.evaluate(
            """(video, moment) => new Promise((done) => {
                video.onseeked = () => done([video.currentTime, video.seekable.end(0), video.videoWidth]);
                video.currentTime = moment;
            })""",
            moment,
        )
        assert shown == [moment, duration, 960]
    video.evaluate(
        """(video) => new Promise((done) => {
            video.ontimeupdate = () => video.currentTime > 0.2 && video.currentTime < 5 && done(true);
            video.currentTime = 0;
            video.play();
        })"""
    )


def test_the_bundled_clip_has_a_poster_image(page: Page, server: Server, uploads: Path) -> None:
    video = page.locator("#video")
    expect(video).to_have_attribute("poster", "/page/files/batching.png")
    answer = server.request("GET", "/page/files/batching.png")
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.body)) as picture:
        assert picture.size == (960, 540)
    page.locator("#chooser").set_input_files(
        {"name": "own.webm", "mimeType": "video/webm", "buffer": CLIP.read_bytes()}
    )
    page.locator("#choice").select_option(value="/uploads/own.webm")
    expect(video).to_have_attribute("poster", "")
    (uploads / "own.webm").unlink()


def test_the_parts_together_equal_the_whole_file(page: Page) -> None:
    page.get_by_role("button", name="Fetch in 8 parts").click()
    expect(page.locator("#parts-status")).to_contain_text("Same SHA-256 as the whole file")
    expect(page.locator("#lines .part").first).to_contain_text("206 bytes")


def test_parts_of_a_deselected_file_are_not_shown(page: Page, uploads: Path) -> None:
    page.locator("#chooser").set_input_files(
        {"name": "other.webm", "mimeType": "video/webm", "buffer": CLIP.read_bytes()}
    )
    other = page.locator("#choice option", has_text="other.webm")
    expect(other).to_have_count(1)
    held: list[Route] = []
    page.route("**/stream-video/*", lambda route: held.append(route))
    fetch_it = page.get_by_role("button", name="Fetch in 8 parts")
    with page.expect_request("**/stream-video/*"):
        fetch_it.click()
    expect(fetch_it).to_be_disabled()
    page.locator("#choice").select_option(label=other.inner_text())
    expect(fetch_it).to_be_enabled()
    for route in held:
        route.continue_()
    fetch_it.click()
    expect(page.locator("#parts-status")).to_contain_text("Same SHA-256 as the whole file")
    (uploads / "other.webm").unlink()


def test_too_many_rows_remove_the_export_link(page: Page) -> None:
    rows, link = page.get_by_label("Rows"), page.locator("#export-link")
    rows.fill("10000001")
    expect(link).not_to_have_attribute("href", re.compile(""))
    rows.fill("12")
    expect(link).to_have_attribute("href", "/export.csv?rows=12")


def test_an_uploaded_file_is_stored_and_listed(page: Page, uploads: Path) -> None:
    content = random.Random(3).randbytes(3_000_000)
    page.locator("#chooser").set_input_files(
        {"name": "größe.bin", "mimeType": "application/octet-stream", "buffer": content}
    )
    row = page.locator("#uploads li").first
    expect(row).to_contain_text("same SHA-256 here and on the server")
    expect(row.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    assert (uploads / "größe.bin").read_bytes() == content
    expect(page.locator("#uploaded")).to_contain_text("größe.bin")


def test_a_file_can_be_uploaded_as_a_form(page: Page, uploads: Path) -> None:
    page.locator("#as-form").check()
    page.locator("#chooser").set_input_files(
        {"name": "form.txt", "mimeType": "text/plain", "buffer": b"from a form"}
    )
    expect(page.locator("#uploads li").first).to_contain_text("stored; SHA-256")
    assert (uploads / "form.txt").read_bytes() == b"from a form"


def test_a_rejected_upload_shows_the_reason(page: Page) -> None:
    page.locator("#chooser").set_input_files({"name": ".hidden", "mimeType": "text/plain", "buffer": b"x"})
    expect(page.locator("#uploads li").first).to_contain_text("must not be empty or begin with a dot")


def test_an_upload_resumes_after_a_pause_and_a_broken_connection(page: Page, uploads: Path) -> None:
    content = random.Random(4).randbytes(20_000_000)
    (uploads.parent / "large.bin").write_bytes(content)
    # So slow that the upload is still in flight when the test pauses it.
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")

    def speed(bytes_per_second: int) -> None:
        limits = {"offline": False, "latency": 0, "downloadThroughput": -1}
        network.send("Network.emulateNetworkConditions", {**limits, "uploadThroughput": bytes_per_second})

    speed(2_000_000)
    page.locator("#chooser").set_input_files(uploads.parent / "large.bin")
    row = page.locator("#uploads li").first
    bar = row.get_by_role("progressbar")
    expect(bar).not_to_have_attribute("aria-valuenow", re.compile(r"^[0-5]$"))
    row.get_by_role("button", name="Break the connection").click()
    expect(row).to_contain_text("the connection broke")
    row.get_by_role("button", name="Pause").click()
    expect(row.locator(".state")).to_have_text("paused")
    speed(-1)
    row.get_by_role("button", name="Resume").click()
    expect(row).to_contain_text(
        re.compile(r"after \d broken connections?; same SHA-256 here and on the server")
    )
    expect(bar).to_have_attribute("aria-valuenow", "100")
    assert (uploads / "large.bin").read_bytes() == content
    assert [file.name for file in uploads.glob(".*.part")] == []


@contextmanager
def resetting_proxy(url: str, after: int, repaired: threading.Event) -> Iterator[str]:
    """The address of a proxy that resets each connection after so many bytes, until `repaired` is set."""
    begun, ended = threading.Event(), asyncio.Event()
    address, loop = "", None

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(url)
        answers, requests = await asyncio.open_connection(parts.hostname, parts.port)

        async def upwards() -> None:
            sent = 0
            while data := await reader.read(65536):
                sent += len(data)
                if sent > after and not repaired.is_set():
                    for one in (writer, requests):
                        raw = one.get_extra_info("socket")
                        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                requests.write(data)
                await requests.drain()

        async def downwards() -> None:
            while data := await answers.read(65536):
                writer.write(data)
                await writer.drain()

        both = [asyncio.create_task(upwards()), asyncio.create_task(downwards())]
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (writer, requests):
                one.transport.abort()
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def serve() -> None:
        nonlocal address, loop
        loop = asyncio.get_running_loop()
        async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
            address = "http://{}:{}".format(*server.sockets[0].getsockname())
            begun.set()
            await ended.wait()
            connections = asyncio.all_tasks() - {asyncio.current_task()}
            for one in connections:
                one.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    begun.wait()
    try:
        yield address
    finally:
        assert loop
        loop.call_soon_threadsafe(ended.set)
        thread.join()


def test_an_upload_resumes_after_a_connection_reset(page: Page, server: Server, uploads: Path) -> None:
    content = random.Random(5).randbytes(20_000_000)
    (uploads.parent / "reset.bin").write_bytes(content)
    # Repaired only after the page shows the error: Chromium itself retries a request on a reused connection.
    repaired = threading.Event()
    with resetting_proxy(server.url, after=1_000_000, repaired=repaired) as through:
        page.goto(through)
        page.locator("#chooser").set_input_files(uploads.parent / "reset.bin")
        row = page.locator("#uploads li").first
        expect(row).to_contain_text("the connection broke")
        repaired.set()
        expect(row).to_contain_text(re.compile("after \\d+ broken connections?; same SHA-256"))
        page.goto("about:blank")
    assert (uploads / "reset.bin").read_bytes() == content
    assert [file.name for file in uploads.glob(".*.part")] == []


def test_the_page_is_accessible(open_page: Open, server: Server) -> None:
    """With one stored and one rejected file."""
    page = open_page(server, reduced_motion="reduce")
    page.locator("#chooser").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"a"})
    expect(page.locator("#uploads li").first).to_contain_text("stored")
    page.locator("#chooser").set_input_files({"name": ".a", "mimeType": "text/plain", "buffer": b"a"})
    expect(page.locator("#uploads li").first).to_contain_text("must not be empty or begin with a dot")
    assert_accessible(page)


def test_the_page_works_with_the_keyboard_alone(page: Page) -> None:
    expect(page.locator("#models a").first).to_be_visible()
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id || document.activeElement.tagName")
        if focused == "in-parts":
            page.keyboard.press("Enter")
        if focused == "as-form":
            page.keyboard.press("Space")
        reached.append(focused)
        if focused == "lines":
            break
    wanted = ["choice", "in-parts", "chooser", "as-form", "rows", "export-link", "lines"]
    assert [one for one in reached if one in wanted] == wanted
    assert "A" in reached  # the links to files
    expect(page.locator("#as-form")).to_be_checked()
    expect(page.locator("#parts-status")).to_contain_text("Same SHA-256 as the whole file")
