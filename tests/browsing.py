"""Fixtures of the tests in a real browser: Chromium, and pages that must log no error."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, expect

from benchmarks.browser import MISSING, chromium, find_chromium
from tests.support import Server

WIDE: ViewportSize = {"width": 1600, "height": 1000}
NARROW: ViewportSize = {"width": 360, "height": 780}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

Open = Callable[..., Page]
Ready = Callable[[Page], None]

FEWER_FRAMES = "window.requestAnimationFrame = draw => setTimeout(() => draw(performance.now()), 100)"
"""The pages draw sixty times per second. Ten times test the same, and leave the processor to other tests."""

# The browser logs rejected requests and lost servers. They are no error of the page.
NOTED = re.compile(r"net::ERR_|the server responded with a status of (404|409|422|503)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser per test file, closed after it, because its event loop conflicts with asyncio's."""
    if find_chromium() is None:
        (pytest.fail if os.environ.get("LADDER_NEEDS_CHROMIUM") else pytest.skip)(MISSING)
    with chromium() as browser:
        expect.set_options(timeout=20_000)
        yield browser


@pytest.fixture
def open_page(browser: Browser, ready: Ready) -> Iterator[Open]:
    """Opens pages and waits until they are `ready`, a fixture that each test file defines.

    At the end, no page may have logged an error.
    """
    complaints: list[str] = []
    contexts = []

    def take(message: ConsoleMessage) -> None:
        if message.type == "error" and not NOTED.search(message.text):
            complaints.append(message.text)

    def open_page(server: Server, size: Any = WIDE, **settings: Any) -> Page:
        context = browser.new_context(viewport=size, **settings)
        contexts.append(context)
        context.add_init_script(FEWER_FRAMES)
        page = context.new_page()
        page.on("console", take)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.url)
        ready(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def assert_accessible(page: Page) -> None:
    """On a wide and a narrow screen, light and dark: axe finds no violation, and nothing scrolls sideways."""
    for size, scheme in product((WIDE, NARROW), SCHEMES):
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 384) == (scheme == "dark")
        found = Axe().run(page).response["violations"]
        assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
