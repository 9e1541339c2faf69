"""Models by name, each in several versions, which come and go while requests are answered.

Only the event loop touches a registry, so that nothing in it needs a lock: whatever happens between two
`await`s happens at once. Files are read in a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from ladder.errors import UserError
from ladder.log import logger
from ladder.predict.predictor import PREDICTORS, ModelEntry, Predictor, load_predictor, read_index
from ladder.predict.wire import Choice, ModelInfo, VersionInfo


@dataclass(eq=False)
class Version:
    """One version of a model: in memory or, as long as nobody needs it, only on disk."""

    about: str
    held_out: float
    read: Callable[[], Predictor] | None = None
    """None if it is nowhere but in memory, and so must stay there."""
    predictor: Predictor | None = None
    offered: bool = True
    in_flight: int = 0
    last_used: float = 0.0
    _loading: asyncio.Task[Predictor] | None = None

    async def in_memory(self) -> Predictor:
        """Read it if need be, off the event loop, and once for all who wait."""
        if self.predictor is not None:
            return self.predictor
        self._loading = self._loading or asyncio.create_task(self._load())
        return await asyncio.shield(self._loading)

    async def _load(self) -> Predictor:
        assert self.read, "what cannot be read again is never dropped"
        try:
            predictor = await asyncio.to_thread(self.read)
            if self.offered:  # and has not been unloaded meanwhile
                self.predictor = predictor
            self.last_used = time.monotonic()
            return predictor
        finally:
            self._loading = None

    def info(self) -> VersionInfo:
        return VersionInfo(
            state="loaded" if self.predictor else "idle" if self.offered else "unloaded",
            about=self.about,
            held_out=self.held_out,
            bytes=self.predictor.bytes if self.predictor else 0,
            in_flight=self.in_flight,
        )


class Model:
    """A name, its versions, and which of them answers where none is asked for."""

    def __init__(self, folder: Path, entry: ModelEntry) -> None:
        self.entry = entry
        self.default = entry.default
        self.versions = {
            number: Version(version.about, version.held_out, partial(load_predictor, folder, entry, version))
            for number, version in entry.versions.items()
        }
        self._last = max(int(number[1:]) for number in self.versions)

    def next_number(self) -> str:
        """Never one that another version had: caches and clients keep what was answered under it."""
        self._last += 1
        return f"v{self._last}"

    @property
    def offered(self) -> list[str]:
        """Oldest first; never empty, for the default cannot be unloaded."""
        numbers = (number for number, version in self.versions.items() if version.offered)
        return sorted(numbers, key=lambda number: int(number[1:]))

    @property
    def latest(self) -> str:
        return self.offered[-1]

    def info(self) -> ModelInfo:
        return ModelInfo(
            task=self.entry.task,
            features=self.entry.features,
            default=self.default,
            latest=self.latest,
            versions={number: version.info() for number, version in self.versions.items()},
        )


class Registry:
    def __init__(self, folder_or_bundled: str) -> None:
        folder = PREDICTORS if folder_or_bundled == "bundled" else Path(folder_or_bundled)
        self.models = {name: Model(folder, entry) for name, entry in read_index(folder).items()}
        self.loaded = False
        self._loading: asyncio.Task[None] | None = None
        self.watchers: list[Callable[[str, str], None]] = []
        """Called with "loaded", "unloaded", "idle" or "default", and the version that it happened to."""

    def changed(self, what: str, version: str) -> None:
        for watcher in self.watchers:
            watcher(what, version)

    def model(self, name: str) -> Model:
        if (model := self.models.get(name)) is None:
            raise HTTPException(404, f"there is no such model; there are {', '.join(self.models)}")
        return model

    def offers(self, name: str, number: str) -> bool:
        return number in self.model(name).offered

    def find(self, name: str, requested: str) -> tuple[str, Version]:
        """What `latest`, `default` or a version's own number stands for at this moment."""
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
    async def alive(self, idle_seconds: float) -> AsyncGenerator[None]:
        """Load everything in the background; then drop what is idle, until the block ends."""
        self._loading = asyncio.create_task(self._load_all())
        dropping = asyncio.create_task(self._drop_idle_versions(idle_seconds))
        try:
            yield
        finally:
            self._loading.cancel()
            dropping.cancel()

    async def _load_all(self) -> None:
        for model in self.models.values():
            for version in model.versions.values():
                await version.in_memory()
        self.loaded = True

    async def until_loaded(self) -> None:
        """Raises the `UserError` of a file that is not what it should be."""
        assert self._loading, "begun by `alive`"
        await self._loading

    async def load(self, name: str, number: str) -> None:
        """Offer a version again that has been unloaded."""
        version = self.model(name).versions.get(number)
        if version is None:
            raise HTTPException(404, f"{name} has no version of that number")
        version.predictor = await version.in_memory()
        version.offered = True
        self.changed("loaded", f"{name} {number}")

    async def swap(self, name: str, requested: str) -> None:
        """Another default. It is in memory before it is chosen, so that no request has to wait for it."""
        number, version = self.find(name, requested)
        await version.in_memory()
        self.find(name, number)  # it may have been unloaded meanwhile
        self.model(name).default = number
        self.changed("default", f"{name} {number}")

    def unload(self, name: str, requested: str) -> None:
        """Forget a version. Requests that began with it keep it to the end: it is only not found again."""
        number, version = self.find(name, requested)
        if number == self.model(name).default:
            raise HTTPException(409, f"{number} is the default of {name}; choose another one first")
        version.offered = False
        if version.read:
            version.predictor = None
        else:
            del self.model(name).versions[number]
        self.changed("unloaded", f"{name} {number}")

    def drop_idle(self, seconds: float) -> None:
        """Forget what nobody has asked for in so many seconds; the next who does waits for it."""
        for name, model in self.models.items():
            for number, version in model.versions.items():
                kept = version.in_flight or version.read is None or number == model.default
                unused = time.monotonic() - version.last_used >= seconds
                if version.predictor and unused and not kept:
                    version.predictor = None
                    self.changed("idle", f"{name} {number}")

    async def _drop_idle_versions(self, idle_seconds: float) -> None:
        while True:
            await asyncio.sleep(idle_seconds / 4)
            self.drop_idle(idle_seconds)

    def add(self, name: str, predictor: Predictor, about: str, held_out: float) -> str:
        """A further version, from memory: `latest` from now on."""
        model = self.model(name)
        number = model.next_number()
        model.versions[number] = Version(about, held_out, predictor=predictor)
        self.changed("loaded", f"{name} {number}")
        return number

    def must_have(self, name: str, **numbers: str) -> None:
        """Versions by the flags that ask for them."""
        if name not in self.models:
            raise UserError(f"--models: there is no {name}, which the experiment needs")
        known = self.models[name].versions
        for flag, number in numbers.items():
            if number not in known:
                raise UserError(f"--{flag} {number}: {name} has no such version; it has {', '.join(known)}")

    def in_memory(self) -> list[str]:
        return [
            f"{name} {number}"
            for name, model in self.models.items()
            for number, version in model.versions.items()
            if version.predictor
        ]

    def in_flight(self) -> int:
        return sum(version.in_flight for model in self.models.values() for version in model.versions.values())


def add_registry(app: FastAPI, registry: Registry) -> None:
    """What there is, whether it is in memory, and the three ways to change it."""

    @app.exception_handler(UserError)
    async def cannot_be_loaded(_: Request, error: UserError) -> JSONResponse:
        logger.error("%s", error)  # it names files, which are no business of a client
        return JSONResponse({"detail": "the version cannot be loaded; the server's log says why"}, 500)

    @app.get("/ready")
    async def ready(response: Response) -> dict[str, str]:
        """Whether a prediction would be answered now: a load balancer should ask this, not /health."""
        response.status_code = 200 if registry.loaded else 503
        return {"status": "ready" if registry.loaded else "loading"}

    @app.get("/models")
    async def models() -> dict[str, ModelInfo]:
        """Every model with its versions, and which of them are in memory."""
        return {name: model.info() for name, model in registry.models.items()}

    @app.put("/models/{name}/default")
    async def swap(name: str, body: Choice) -> ModelInfo:
        """From now on another version answers where none is asked for."""
        await registry.swap(name, body.version)
        return registry.model(name).info()

    @app.put("/models/{name}/versions/{version}")
    async def load(name: str, version: str) -> ModelInfo:
        """Offer a version again that has been unloaded."""
        await registry.load(name, version)
        return registry.model(name).info()

    @app.delete("/models/{name}/versions/{version}")
    async def unload(name: str, version: str) -> ModelInfo:
        """Requests that began with it are answered with it; later ones get 404."""
        registry.unload(name, version)
        return registry.model(name).info()
