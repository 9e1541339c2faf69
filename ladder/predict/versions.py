"""Versions of models, and where their weights are: in memory, or only on disk until a request needs them.

Rung 10's registry builds on `VersionStore`: what a name stands for, and how that changes, is defined there.

Only the event loop uses these objects, so they need no lock: between two `await`s nothing else runs. A worker
thread reads the files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fastapi import HTTPException

from ladder.errors import UserError
from ladder.predict.predictor import PREDICTORS, ModelEntry, Predictor, load_predictor, read_index
from ladder.predict.wire import ModelInfo, VersionInfo


class Lease(NamedTuple):
    """What a request holds until it is answered: the version that its name stood for when it began."""

    model: str
    version_requested: str
    model_version: str
    predictor: Predictor

    def names(self) -> dict[str, str]:
        """The fields of a response that say which version answered."""
        return {name: getattr(self, name) for name in self._fields[:-1]}


@dataclass(eq=False)
class Version:
    """One version of a model: in memory, or only on disk while no request needs it."""

    about: str
    held_out: float
    read: Callable[[], Predictor] | None = None
    """None if the version is in no file. Then it must stay in memory."""
    predictor: Predictor | None = None
    offered: bool = True
    in_flight: int = 0
    last_used: float = 0.0
    _loading: asyncio.Task[Predictor] | None = None

    async def in_memory(self) -> Predictor:
        """Read the file if necessary: off the event loop, and once for all requests that wait for it."""
        if self.predictor is not None:
            return self.predictor
        self._loading = self._loading or asyncio.create_task(self._load())
        return await asyncio.shield(self._loading)  # a cancelled request does not cancel it for the others

    async def _load(self) -> Predictor:
        assert self.read, "a version without a file is never dropped"
        try:
            predictor = await asyncio.to_thread(self.read)
            if self.offered:  # it may have been unloaded while the file was read
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


class ModelVersions:
    """A model's versions, and the default: the version that answers requests that name none."""

    def __init__(self, folder: Path, entry: ModelEntry) -> None:
        self.entry = entry
        self.default = entry.default
        self.versions = {
            number: Version(version.about, version.held_out, partial(load_predictor, folder, entry, version))
            for number, version in entry.versions.items()
        }
        self._last = max(int(number[1:]) for number in self.versions)

    def next_number(self) -> str:
        """A number that no version has had before: caches and clients keep results under these numbers."""
        self._last += 1
        return f"v{self._last}"

    @property
    def offered(self) -> list[str]:
        """Oldest first. Never empty, because the default cannot be unloaded."""
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


class VersionStore:
    """The models of a folder: reads all versions at the start, and drops the weights of idle ones."""

    def __init__(self, folder_or_bundled: str) -> None:
        folder = PREDICTORS if folder_or_bundled == "bundled" else Path(folder_or_bundled)
        self.models = {name: ModelVersions(folder, entry) for name, entry in read_index(folder).items()}
        self.loaded = False
        self._loading: asyncio.Task[None] | None = None
        self.watchers: list[Callable[[str, str], None]] = []
        """Called with "loaded", "unloaded", "idle" or "default", and the version that it happened to."""

    def changed(self, what: str, version: str) -> None:
        for watcher in self.watchers:
            watcher(what, version)

    def model(self, name: str) -> ModelVersions:
        if (model := self.models.get(name)) is None:
            raise HTTPException(404, f"there is no such model; there are {', '.join(self.models)}")
        return model

    def offers(self, name: str, number: str) -> bool:
        return number in self.model(name).offered

    def add(self, name: str, predictor: Predictor, about: str, held_out: float) -> str:
        """Offer a new version that is in no file. It is `latest` from now on."""
        model = self.model(name)
        number = model.next_number()
        model.versions[number] = Version(about, held_out, predictor=predictor)
        self.changed("loaded", f"{name} {number}")
        return number

    def must_have(self, name: str, **numbers: str) -> None:
        """Raise a `UserError` that names the flag if a version that the flag asks for does not exist."""
        if name not in self.models:
            raise UserError(f"--models: there is no {name}, which the experiment needs")
        known = self.models[name].versions
        for flag, number in numbers.items():
            if number not in known:
                raise UserError(f"--{flag} {number}: {name} has no such version; it has {', '.join(known)}")

    @asynccontextmanager
    async def alive(self, idle_seconds: float) -> AsyncGenerator[None]:
        """Load all versions in the background; then drop idle ones, until the block ends."""
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
        """Raises the `UserError` of a file that does not hold what the index says."""
        assert self._loading, "`alive` starts the loading"
        await self._loading

    async def _drop_idle_versions(self, idle_seconds: float) -> None:
        while True:
            await asyncio.sleep(idle_seconds / 4)
            self.drop_idle(idle_seconds)

    def drop_idle(self, seconds: float) -> None:
        """Drop the weights of versions without a request for so many seconds. The next request reads them."""
        for name, model in self.models.items():
            for number, version in model.versions.items():
                kept = version.in_flight or version.read is None or number == model.default
                unused = time.monotonic() - version.last_used >= seconds
                if version.predictor and unused and not kept:
                    version.predictor = None
                    self.changed("idle", f"{name} {number}")

    def in_memory(self) -> list[str]:
        return [
            f"{name} {number}"
            for name, model in self.models.items()
            for number, version in model.versions.items()
            if version.predictor
        ]

    def in_flight(self) -> int:
        return sum(version.in_flight for model in self.models.values() for version in model.versions.values())
