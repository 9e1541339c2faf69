"""What the tests of rungs 10 and 11 share: rows, models whose passes can be held, servers that are ready."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ladder.predict.predictor import (
    PREDICTORS,
    Outcome,
    Predictor,
    Rows,
    load_digits,
    load_predictor,
    read_index,
)
from ladder.web import websockets
from ladder.web.server import NO_WEBSOCKETS
from tests.support import Server, eventually, serving

TRAIN, HELD_OUT = load_digits()
IMAGES: list[list[float]] = HELD_OUT.images.tolist()
ROW = IMAGES[0]


def bundled(version: str, name: str = "digits") -> Predictor:
    model = read_index(PREDICTORS)[name]
    return load_predictor(PREDICTORS, model, model.versions[version])


def expected(version: str, rows: list[list[float]], name: str = "digits") -> list[Outcome]:
    return bundled(version, name).predict(np.array(rows, np.float32))


class WatchedPredictor(Predictor):
    """The same model; `before` is called with the rows of each pass before it runs."""

    def __init__(self, predictor: Predictor, before: Callable[[Rows], None]) -> None:
        self.__dict__.update(predictor.__dict__, before=before)

    def predict(self, rows: Rows) -> list[Outcome]:
        self.__dict__["before"](rows)
        return super().predict(rows)


class Hold:
    """Holds each pass until the test opens it, and records its number of rows."""

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, rows: Rows) -> None:
        self.passes.append(len(rows))
        self.reached.set()
        assert self.opened.wait(timeout=60)


@contextmanager
def engine_serving(rung: ModuleType, **flags: Any) -> Iterator[tuple[Any, Server]]:
    """The rung's engine in this process, behind a real server that is ready."""
    engine = rung.Engine(rung.Config(**flags))
    pings = getattr(engine.config, "ping_seconds", None)
    settings = websockets.settings(pings) if pings else NO_WEBSOCKETS
    with serving(rung.create_app(engine), engine, settings) as server:
        with ThreadPoolExecutor(1) as apart:  # in a test of a page, this thread already has an event loop
            apart.submit(asyncio.run, until_ready(server)).result()
        yield engine, server


async def until_ready(server: Server) -> None:
    await eventually(
        lambda: asyncio.to_thread(server.request, "GET", "/ready"), lambda answer: answer.status == 200
    )


def watch(engine: Any, version: str, before: Callable[[Rows], None]) -> None:
    """Replace the model of a version by a watched one."""
    entry = engine.registry.models["digits"].versions[version]
    entry.predictor = WatchedPredictor(entry.predictor, before)


def copy_of_predictors(folder: Path) -> Path:
    return Path(shutil.copytree(PREDICTORS, folder / "predictors"))
