"""Rung 10: any model, in several versions, changed while it serves.

Rung 05 serves the one model that it was started with: a better one means a restart, with every request in
flight lost, and nobody can say whether it is better. Here models are entries in a registry:

- A request names a version, or `latest`, or takes the default. The name is resolved once, at the start, and
  the request keeps what it got: loading, unloading and swapping change only what later requests get.
- These models answer in a single pass, not in hundreds of steps. A thousand rows are one pass, rows that
  arrive together share one (as in rung 03), and equal rows are computed once and kept in a cache.
- An A/B experiment gives each user a version by a hash of the name: the same one after a restart, in every
  process. Labels that are sent back say which version is right more often.

    PUT /models/digits/default             v1 ──────▶│ v2 ────────────────────────▶
    request 1      resolved: v1 ├── answered by v1 ──┼──▶│
    request 2                                        │ resolved: v2 ├── by v2 ──▶│
                                             swap ───┘

    python 10_model_versions.py --demo
    python 10_model_versions.py
    curl localhost:5000/models

What is still wrong: a client speaks first, every time, and pays for a request each time. It cannot be told
that something has happened, nor show a drawing while it is being drawn.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import asyncio
import hashlib
import os
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import psutil
from fastapi import Depends, FastAPI, Query, Request

from ladder import import_rung
from ladder.cli import DemoOptions, PredictionConfig
from ladder.errors import ServerStopping, Unavailable
from ladder.lab import prediction_scenes as scenes
from ladder.lab.show import Contender, Show
from ladder.predict import wire
from ladder.predict.coalescing import Coalescer, Places
from ladder.predict.experiment import Books, add_books
from ladder.predict.predictor import Outcome, Predictor, Rows
from ladder.predict.registry import Registry, add_registry
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
    """Nothing but the flags that the predicting rungs share."""


RUNG = describe(__file__, __doc__)


class Lease(NamedTuple):
    """A version that stays the same until its request is answered, whatever the registry does."""

    model: str
    version_requested: str
    model_version: str
    predictor: Predictor

    def names(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self._fields[:-1]}


def cache_key(lease: Lease, rows: Rows) -> object:
    """Not under "latest", which is another version tomorrow."""
    return lease.model, lease.model_version, rows.tobytes()


class Cache:
    """The latest predictions. Who asks for one that is being computed waits for it: it is computed once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: OrderedDict[object, asyncio.Future[Outcome]] = OrderedDict()
        self.hits = self.misses = 0

    async def get(self, key: object, compute: Callable[[], Coroutine[Any, Any, Outcome]]) -> Outcome:
        if (entry := self.entries.get(key)) is not None:
            self.hits += 1
            self.entries.move_to_end(key)
        else:
            self.misses += 1
            entry = self.entries[key] = asyncio.create_task(compute())
            entry.add_done_callback(lambda done: self.forget_failure(key, done))
            if len(self.entries) > self.size:
                self.entries.popitem(last=False)
        return await asyncio.shield(entry)  # who leaves takes it from nobody else

    def forget_failure(self, key: object, entry: asyncio.Future[Outcome]) -> None:
        if (entry.cancelled() or entry.exception()) and self.entries.get(key) is entry:
            del self.entries[key]

    def info(self) -> wire.CacheInfo:
        rate = self.hits / max(1, self.hits + self.misses)
        return wire.CacheInfo(size=len(self.entries), hits=self.hits, misses=self.misses, hit_rate=rate)


def arm_of(user_id: str, config: Config) -> str:
    """Python's own `hash` of a string is another one in every process; SHA-256 is not."""
    digest = hashlib.sha256(f"{config.salt}:{user_id}".encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    return config.challenger if 100 * share < config.split else config.control


class Engine(Lifecycle):
    """Answers with the models of a registry. Only its worker thread runs them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.registry = Registry(config.models)
        self.registry.must_have(MAIN, control=config.control, challenger=config.challenger)
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.coalescer = Coalescer(self.run, wire.MOST_ROWS, config.max_queue)
        self.cache = Cache(config.max_cached)
        self.books = Books(config.control, config.challenger)
        self.calls = self.rows = 0
        self.stopping = False

    @asynccontextmanager
    async def using(self, name: str, requested: str) -> AsyncIterator[Lease]:
        """Look a version up once. It may be swapped or unloaded meanwhile: we hold on to it."""
        if not self.registry.loaded:
            raise Unavailable("the models are being loaded; send the request again in a while")
        number, version = self.registry.find(name, requested)
        version.in_flight += 1
        try:
            yield Lease(name, requested, number, await version.in_memory())
        finally:
            version.in_flight -= 1
            version.last_used = time.monotonic()

    async def run(self, predictor: Predictor, rows: Rows) -> list[Outcome]:
        """One pass, in the worker: the event loop goes on meanwhile."""
        self.calls += 1
        self.rows += len(rows)
        return await asyncio.get_running_loop().run_in_executor(self.worker, predictor.predict, rows)

    async def predict(self, lease: Lease, features: Sequence[float]) -> Outcome:
        """One row: from the cache, or together with whatever else waits for this version."""
        rows = wire.to_rows(lease.predictor, [features], "features")

        async def compute() -> Outcome:
            return (await self.coalescer.predict(lease.predictor, rows))[0]

        return await self.cache.get(cache_key(lease, rows), compute)

    def knows(self, lease: Lease, features: Sequence[float]) -> bool:
        """Whether `predict` would have nothing to compute."""
        return cache_key(lease, wire.to_rows(lease.predictor, [features], "features")) in self.cache.entries

    async def events(self, leased: Lease, rows: Rows, places: Places) -> AsyncGenerator[wire.RowEvent]:
        """One row after the other; when the client disconnects, no further row is computed."""
        for index in range(len(rows)):
            if self.stopping:
                raise ServerStopping
            (outcome,) = await self.coalescer.in_turn(leased.predictor, rows[index : index + 1], places)
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


async def lease(request: Request, version: Annotated[wire.Wish, Query()] = "default") -> AsyncIterator[Lease]:
    """What a handler that wants a model depends on. It is given back when the response is over."""
    engine: Engine = request.app.state.engine
    async with engine.using(request.path_params.get("name", MAIN), version) as lease:
        yield lease


Leased = Annotated[Lease, Depends(lease)]


def create_app(engine: Engine, rung: Rung = RUNG, page: str = "models") -> FastAPI:
    """The web side. Rung 11 adds to it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        """Load in the background: until that is done the server is alive, but not ready."""
        async with engine.registry.alive(engine.config.idle_seconds):
            yield

    app = FastAPI(title=rung.title, lifespan=lifespan, max_body_size=MAX_BODY_BYTES)
    app.state.engine = engine
    add_error_handlers(app)
    add_page(app, rung, page)
    add_registry(app, engine.registry)
    add_books(app, engine.books, MAIN, engine.config.split)

    @app.post("/predict")
    @app.post("/models/{name}/predict")
    async def predict(body: wire.PredictionInput, leased: Leased) -> wire.Prediction:
        """One row; `version` is v1, v2, ..., latest or default."""
        outcome = await engine.predict(leased, body.features)
        return wire.Prediction(prediction=outcome.prediction, confidence=outcome.confidence, **leased.names())

    @app.post("/predict/batch")
    async def predict_batch(body: wire.BatchInput, leased: Leased) -> wire.Batch:
        """Up to 1000 rows, in one pass of their own."""
        rows = wire.to_rows(leased.predictor, body.instances, "instances")
        return wire.to_batch(await engine.coalescer.alone(leased.predictor, rows), **leased.names())

    @app.post("/predict/batch/async")
    async def predict_batch_async(body: wire.BatchInput, leased: Leased) -> wire.Batch:
        """The same, in passes that are shared with others who come meanwhile: rung 03's idea."""
        rows = wire.to_rows(leased.predictor, body.instances, "instances")
        return wire.to_batch(await engine.coalescer.predict(leased.predictor, rows), **leased.names())

    @app.post("/predict/stream")
    async def predict_stream(body: wire.BatchInput, leased: Leased) -> EventStream:
        """Each row's index and prediction as soon as it is done. All are checked before the first is sent."""
        rows = wire.to_rows(leased.predictor, body.instances, "instances")
        places = engine.coalescer.reserve(len(rows))
        return EventStream(rung_02.stream(engine.events(leased, rows, places)), on_close=places.leave_all)

    @app.post("/predict/ab-test")
    async def predict_ab_test(body: wire.PredictionInput, user_id: wire.UserId) -> wire.ExperimentPrediction:
        """The version is the user's own, always the same one; while it is unloaded, the default stands in."""
        started, arm = time.perf_counter(), arm_of(user_id, engine.config)
        takes_part = engine.registry.offers(MAIN, arm)
        async with engine.using(MAIN, arm if takes_part else "default") as leased:
            computed = not engine.knows(leased, body.features)
            outcome = await engine.predict(leased, body.features)
        seconds = time.perf_counter() - started if computed else None
        number = engine.books.enter(arm, outcome.prediction, seconds) if takes_part else None
        return wire.ExperimentPrediction(
            prediction=outcome.prediction,
            confidence=outcome.confidence,
            user_id=user_id,
            prediction_id=number,
            **leased.names(),
        )

    @app.get("/health")
    async def health() -> wire.PredictionHealth:
        """Alive, and how busy."""
        return engine.health(rung.number)

    return app


def demo(config: Config, options: DemoOptions) -> None:
    """Both versions side by side: what they know and cost, and what a change between them does."""
    show = Show(__doc__, config, options)
    users = Counter(arm_of(f"user-{number}", config) for number in range(10_000))
    with show.starting(Contender("10_model_versions.py", Config)) as (url,):
        asyncio.run(scenes.show_versions(show, url, users))


def start(config: Config) -> None:
    engine, listener = Engine(config), take_port(config)
    serve(create_app(engine), listener, engine)


def main() -> None:
    run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
