"""A headless Chromium, for the tests of the pages and for the screenshots in the README."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

from ladder.errors import UserError

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""The shell comes first: it only draws pages. The tests of the models pages took 31 s of processor time with
it, and 53 s with the whole browser."""

MISSING = "no Chromium on this machine; on Debian: apt-get install chromium"

# Background services are off, so that the browser contacts only our servers.
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """The path of the installed browser. Playwright alone would download another."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        raise UserError(MISSING)
    # As root, the usual user of a container, Chromium starts only without its sandbox.
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*FLAGS, *sandbox])
        try:
            yield browser
        finally:
            browser.close()
