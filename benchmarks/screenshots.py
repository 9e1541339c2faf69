"""Takes the README's screenshots of the page, with real servers, in a headless Chromium.

python -m benchmarks.screenshots
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import argparse
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from benchmarks.browser import chromium
from ladder import ROOT
from ladder.lab.launch import running_rungs

Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
WIDTH, HEIGHT = 1200, 700
SHARPNESS = 1.5
"""Pixels of the screenshot per pixel of the page."""


@dataclass(frozen=True)
class Picture:
    script: str
    clients: int
    while_streaming: bool = False
    """Taken while tokens arrive, not at the end."""

    @property
    def name(self) -> str:
        return f"page-{self.script[:2]}"


PICTURES = (
    Picture("01_flask_blocking.py", clients=4),
    Picture("02_async_streaming.py", clients=4),
    Picture("04_continuous_batching.py", clients=16, while_streaming=True),
)


def take(browser: Browser, picture: Picture, url: str, scheme: Scheme, folder: Path) -> Path:
    page = browser.new_page(
        viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme, device_scale_factor=SHARPNESS
    )
    page.goto(url)
    expect(page.locator("#start")).to_be_enabled()
    page.wait_for_timeout(4000)  # some /health probes before the run, as a comparison
    run(page, picture)
    file = folder / f"{picture.name}-{scheme}.png"
    save(page.screenshot(full_page=True), file)
    page.close()
    return file


def run(page: Page, picture: Picture) -> None:
    page.locator("#clients").fill(str(picture.clients))
    page.locator("#seed").fill("1")
    page.locator("#start").click()
    page.mouse.move(0, 0)
    if picture.while_streaming:
        expect(page.locator(".output").last).to_have_text(re.compile(r".{200}", re.DOTALL))
    else:
        expect(page.locator("#copy")).to_be_enabled(timeout=60_000)
        page.wait_for_timeout(1000)  # and some probes after it


def save(png: bytes, file: Path) -> None:
    """Save with a palette of 256 colours: the same look at a third of the size."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    few_colours = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few_colours.save(file, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Take the README's screenshots of the page.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images", help="a folder")
    folder: Path = parser.parse_args(arguments).output
    folder.mkdir(parents=True, exist_ok=True)
    with errors_in_one_line("benchmarks.screenshots"), chromium() as browser:
        for picture in PICTURES:
            with running_rungs((picture.script, [])) as (url,):
                for scheme in SCHEMES:
                    file = take(browser, picture, url, scheme, folder)
                    print(f"{file}: {file.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
