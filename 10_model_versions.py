"""Rung 10: any model, in several versions, changed while it serves.

Rung 05 serves the one model that it was started with. A better model means a restart, which ends every
request in flight, and nothing shows whether the new model is better. Here models are entries in a registry:

- A request names a version, or `latest`, or takes the default. The name is looked up once, when the request
  starts. The request holds a *lease*: the version that was found, until it is answered.
- Load, swap and unload change only what later requests find. A swap makes another version the default, once
  it is in memory, so no request waits for it. The weights of an unloaded version stay until its leases end.
- These models answer in a single pass, not in hundreds of steps: a thousand rows are one pass, in a worker
  thread. Rows that wait at the same time share a pass, as in rung 03.

    PUT /models/digits/default             v1 ──────▶│ v2 ────────────────────────▶
    request 1      finds v1     ├── answered by v1 ──┼──▶│
    request 2                                        │ finds v2     ├── by v2 ──▶│
                                                swap ┘

A cache of predictions and an A/B experiment, which gives each user one of two versions, are shared code.

    python 10_model_versions.py --demo
    python 10_model_versions.py
    curl localhost:5000/models

What is still wrong: the client always speaks first, and each time it sends a whole request. The server cannot
tell it that something has happened, and a drawing is not recognized before it is complete.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import psutil
from fastapi import Depends, FastAPI, HTTPException, Request

from ladder import import_rung
from ladder.cli import DemoOptions, PredictionConfig
from ladder.errors import ServerStopping, Unavailable
from ladder.lab import prediction_scenes as scenes
from ladder.lab.show import Contender, Show
from ladder.predict import wire
from ladder.predict.batches import batch_router
from ladder.predict.cache import Cache, cache_key
from ladder.predict.coalescing import Coalescer, Reservation
from ladder.predict.experiment import Experiment, arm_of
from ladder.predict.predictor import Outcome, Predictor, Rows
from ladder.predict.protocols import PredictionEngine
from ladder.predict.routes import add_experiment_routes, add_model_routes
from ladder.predict.versions import Lease, Version, VersionStore
from ladder.web.http import EventStream, add_error_handlers
from ladder.web.pages import Rung, add_page, describe
from ladder.web.protocols import StreamingRung
from ladder.web.schema import MAX_BODY_BYTES
from ladder.web.server import Lifecycle, serve, take_port

rung_02 = import_rung("02_async_streaming", StreamingRung)

MAIN = "digits"
"""The model of the paths that name none."""


@dataclass(frozen=True)
class Config(PredictionConfig):
    """Only the flags that rungs 10 and 11 share."""


RUNG = describe(__file__, __doc__)


class Registry(VersionStore):
    """Which version a request gets, and how that changes while requests are answered.

    Only the event loop uses it, so it needs no lock: between two `await`s nothing else runs.
    """

    def find(self, name: str, requested: str) -> tuple[str, Version]:
        """The version that `latest`, `default` or a version's own number stands for at this moment."""
        model = self.model(name)
        number = {"latest": model.latest, "default": model.default}.get(requested, requested)
        version = model.versions.get(number)
        if version is None:
            known = ", ".join([*model.offered, "latest", "default"])
            raise HTTPException(404, f"{name} has no such version; it has {known}")
        if not version.offered:
            again = f"PUT /models/{name}/versions/{number} loads it again"
            raise HTTPException(404, f"{name} {number} has been unloaded; {again}")
        return number, version

    @asynccontextmanager
    async def lease(self, name: str, requested: str) -> AsyncIterator[Lease]:
        """Find a version once, and hold its weights even if it is swapped or unloaded in the meantime."""
        if not self.loaded:
            raise Unavailable("the models are being loaded; send the request again in a while")
        number, version = self.find(name, requested)
        version.in_flight += 1
        try:
            yield Lease(name, requested, number, await version.in_memory())
        finally:
            version.in_flight -= 1
            version.last_used = time.monotonic()

    async def load(self, name: str, number: str) -> None:
        """Offer an unloaded version again, as soon as it is in memory."""
        version = self.model(name).versions.get(number)
        if version is None:
            raise HTTPException(404, f"{name} has no version of that number")
        version.predictor = await version.in_memory()
        version.offered = True
        self.changed("loaded", f"{name} {number}")

    async def swap(self, name: str, requested: str) -> None:
        """Make another version the default, as soon as it is in memory: no request has to wait for it."""
        number, version = self.find(name, requested)
        await version.in_memory()
        self.find(name, number)  # it may have been unloaded during the `await`
        self.model(name).default = number
        self.changed("default", f"{name} {number}")

    def unload(self, name: str, requested: str) -> None:
        """Stop offering a version. Its weights stay in memory only as long as a lease holds them."""
        number, version = self.find(name, requested)
        if number == self.model(name).default:
            raise HTTPException(409, f"{number} is the default of {name}; choose another one first")
        version.offered = False
        if version.read:
            version.predictor = None
        else:
            del self.model(name).versions[number]
        self.changed("unloaded", f"{name} {number}")


class Engine(Lifecycle):
    """Answers requests with the versions of the registry. One worker thread runs all passes."""

    def __init__(self, config: PredictionConfig) -> None:
        self.config = config
        self.registry = Registry(config.models)
        self.registry.must_have(MAIN, control=config.control, challenger=config.challenger)
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.coalescer = Coalescer(self.run, wire.MAX_ROWS, config.max_queue)
        self.cache = Cache(config.max_cached)
        self.experiment = Experiment(MAIN, config)
        self.calls = self.rows = 0
        self.stopping = False

    async def run(self, predictor: Predictor, rows: Rows) -> list[Outcome]:
        """One pass, in the worker thread: the event loop goes on."""
        self.calls += 1
        self.rows += len(rows)
        return await asyncio.get_running_loop().run_in_executor(self.worker, predictor.predict, rows)

    async def predict(self, lease: Lease, features: Sequence[float]) -> Outcome:
        """One row: from the cache, or in a pass with all other rows that wait for this version."""
        rows = wire.to_rows(lease.predictor, [features], "features")

        async def compute() -> Outcome:
            return (await self.coalescer.predict(lease.predictor, rows))[0]

        return await self.cache.get(cache_key(lease, rows), compute)

    def is_cached(self, lease: Lease, features: Sequence[float]) -> bool:
        return cache_key(lease, wire.to_rows(lease.predictor, [features], "features")) in self.cache

    async def events(self, lease: Lease, rows: Rows, waiting: Reservation) -> AsyncGenerator[wire.RowEvent]:
        """One row after the other. When the client disconnects, no further row is computed."""
        for index in range(len(rows)):
            if self.stopping:
                raise ServerStopping
            (outcome,) = await self.coalescer.in_turn(lease.predictor, rows[index : index + 1], waiting)
            yield wire.RowEvent(index=index, prediction=outcome.prediction)

    async def until_ready(self) -> None:
        await self.registry.until_loaded()

    def stop(self) -> None:
        self.stopping = True

    def health(self, rung: str) -> wire.PredictionHealth:
        return wire.PredictionHealth(
            rung=rung,
            model=", ".join(self.registry.in_memory()),
            running=self.registry.in_flight(),
            waiting=self.coalescer.waiting,
            calls=self.calls,
            rows=self.rows,
            cache=self.cache.info(),
            rss_bytes=psutil.Process().memory_info().rss,
            pid=os.getpid(),
        )


async def lease(request: Request, version: wire.VersionName = "default") -> AsyncIterator[Lease]:
    """A lease for a request handler, which ends when the response has been sent."""
    engine: PredictionEngine = request.app.state.engine
    async with engine.registry.lease(request.path_params.get("name", MAIN), version) as lease:
        yield lease


Leased = Annotated[Lease, Depends(lease)]


def create_app(engine: PredictionEngine, rung: Rung = RUNG, page: str = "models") -> FastAPI:
    """The web side. Rung 11 adds its own paths to it."""
    registry, coalescer = engine.registry, engine.coalescer

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        """Load in the background: until that is done, the server is alive but not ready."""
        async with registry.alive(engine.config.idle_seconds):
            yield

    app = FastAPI(title=rung.title, lifespan=lifespan, max_body_size=MAX_BODY_BYTES)
    app.state.engine = engine
    add_error_handlers(app)
    add_page(app, rung, page)
    add_model_routes(app, registry)
    add_experiment_routes(app, engine)
    batches = batch_router(app)  # their bodies are parsed without holding the event loop

    @app.put("/models/{name}/default")
    async def swap(name: str, body: wire.Choice) -> wire.ModelInfo:
        """From now on this version answers requests that name none."""
        await registry.swap(name, body.version)
        return registry.model(name).info()

    @app.put("/models/{name}/versions/{version}")
    async def load(name: str, version: str) -> wire.ModelInfo:
        """Offer a version again that has been unloaded."""
        await registry.load(name, version)
        return registry.model(name).info()

    @app.delete("/models/{name}/versions/{version}")
    async def unload(name: str, version: str) -> wire.ModelInfo:
        """Requests that started with this version are answered by it; later ones get 404."""
        registry.unload(name, version)
        return registry.model(name).info()

    @app.post("/predict")
    @app.post("/models/{name}/predict")
    async def predict(body: wire.PredictionInput, lease: Leased) -> wire.Prediction:
        """One row; `version` is v1, v2, ..., latest or default."""
        outcome = await engine.predict(lease, body.features)
        return wire.Prediction(prediction=outcome.prediction, confidence=outcome.confidence, **lease.names())

    @batches.post("/predict/batch")
    async def predict_batch(body: wire.BatchInput, lease: Leased) -> wire.Batch:
        """Up to 1000 rows, in a pass of their own."""
        rows = body.to_rows(lease.predictor)
        return wire.to_batch(await coalescer.alone(lease.predictor, rows), lease.names())

    @batches.post("/predict/batch/async")
    async def predict_batch_async(body: wire.BatchInput, lease: Leased) -> wire.Batch:
        """The same, in passes that are shared with other requests that wait: rung 03's idea."""
        rows = body.to_rows(lease.predictor)
        return wire.to_batch(await coalescer.predict(lease.predictor, rows), lease.names())

    @batches.post("/predict/stream")
    async def predict_stream(body: wire.BatchInput, lease: Leased) -> EventStream:
        """The index and prediction of each row, as soon as it is done. All rows are checked first."""
        rows = body.to_rows(lease.predictor)
        waiting = coalescer.reserve(len(rows))
        return EventStream(rung_02.stream(engine.events(lease, rows, waiting)), on_close=waiting.release_all)

    @app.get("/health")
    async def health() -> wire.PredictionHealth:
        """Alive, and how busy."""
        return engine.health(rung.number)

    app.include_router(batches)
    return app


def demo(config: Config, options: DemoOptions) -> None:
    """Both versions side by side: accuracy, costs, and requests that are answered during swaps."""
    show = Show(__doc__, config, options)
    users = Counter(arm_of(f"user-{number}", config) for number in range(10_000))
    with show.starting(Contender("10_model_versions.py", Config)) as (url,), scenes.rejections_in_one_line():
        asyncio.run(scenes.show_versions(show, url, config, users))


def start(config: Config) -> None:
    engine, listener = Engine(config), take_port(config)
    serve(create_app(engine), listener, engine)


def main() -> None:
    run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
