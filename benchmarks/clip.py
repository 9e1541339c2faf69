"""Makes the clip that rung 12 plays: the same eight requests on rung 03 and on rung 04, step by step.

    python -m benchmarks.clip

The clip shows measured data: both servers run, and `GET /steps` tells which request had which row of which
forward pass. A headless Chromium draws and encodes the frames. It also draws the poster, the picture that the
page shows before the clip is played.
"""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import TypedDict

from benchmarks.browser import chromium
from benchmarks.screenshots import save
from benchmarks.webm import Frame, webm
from ladder import ROOT
from ladder.engine.trace import Kind, Step
from ladder.lab.launch import running_rungs
from ladder.lab.scenes import STREAM, arrivals, warm_up

CLIP = ROOT / "ladder" / "data" / "clips" / "batching.webm"
POSTER = ROOT / "ladder" / "pages" / "files" / "batching.png"
PAGE = Path(__file__).with_name("clip.html")
WIDTH, HEIGHT = 960, 540
FRAMES_PER_SECOND = 12
SECONDS = 16
POSTER_AT = 0.85
"""The moment of the poster, as a share of the longer run: rung 04 has finished, rung 03 has not."""
RUNGS = {"03_batching.py": "Rung 03: batching", "04_continuous_batching.py": "Rung 04: continuous batching"}


class DrawnStep(TypedDict):
    """A forward pass as clip.html draws it; each row is (slot, request, whether the row is used)."""

    kind: Kind
    rows: list[tuple[int, int, bool]]


def numbered(steps: list[Step]) -> list[DrawnStep]:
    """The steps, with requests numbered from 0 in the order of their arrival."""
    order = sorted({row.request for step in steps for row in step.rows})
    return [
        {"kind": step.kind, "rows": [(row.slot, order.index(row.request), row.used) for row in step.rows]}
        for step in steps
    ]


async def measure(urls: list[str]) -> list[list[DrawnStep]]:
    scenes = []
    for url in urls:
        await warm_up(url, STREAM)
        scenes.append(numbered((await arrivals(url, {})).steps))
    return scenes


def main() -> None:
    with running_rungs(*((script, []) for script in RUNGS)) as urls:
        scenes = asyncio.run(measure(urls))
    panels = [{"title": title, "steps": steps} for title, steps in zip(RUNGS.values(), scenes, strict=True)]
    settings = {
        "width": WIDTH,
        "height": HEIGHT,
        "rate": FRAMES_PER_SECOND,
        "seconds": SECONDS,
        "poster": POSTER_AT,
        "panels": panels,
    }
    with chromium() as browser:
        page = browser.new_page()
        page.goto(PAGE.as_uri())
        encoded = page.evaluate("settings => encode(settings)", settings)
        poster = page.evaluate("settings => poster(settings)", settings)
    frames = [Frame(one["milliseconds"], one["key"], base64.b64decode(one["data"])) for one in encoded]
    CLIP.parent.mkdir(exist_ok=True)
    CLIP.write_bytes(webm(frames, WIDTH, HEIGHT, 1000 * SECONDS))
    save(base64.b64decode(poster), POSTER)
    print(f"{CLIP.relative_to(ROOT)}: {CLIP.stat().st_size:,} bytes, {len(frames)} frames")


if __name__ == "__main__":
    main()
