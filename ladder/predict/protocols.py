"""What rung 10 lends to rung 11 and to the routes that it does not teach, as types.

A rung's file name is no Python identifier, so it is imported by name at run time (`import_rung`), where a
type checker sees nothing. A test compares these protocols with the rung.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from fastapi import FastAPI

from ladder.cli import PredictionConfig
from ladder.predict.coalescing import Coalescer, Reservation
from ladder.predict.experiment import Experiment
from ladder.predict.predictor import Outcome, Predictor, Rows
from ladder.predict.versions import Lease, ModelVersions
from ladder.predict.wire import PredictionHealth, RowEvent
from ladder.web.pages import Rung


class VersionRegistry(Protocol):
    """Rung 10's `Registry`: models by name, in versions that change while the server runs."""

    models: dict[str, ModelVersions]
    watchers: list[Callable[[str, str], None]]

    @property
    def loaded(self) -> bool: ...

    def model(self, name: str) -> ModelVersions: ...

    def offers(self, name: str, number: str) -> bool: ...

    def lease(self, name: str, requested: str) -> AbstractAsyncContextManager[Lease]: ...

    async def load(self, name: str, number: str) -> None: ...

    async def swap(self, name: str, requested: str) -> None: ...

    def unload(self, name: str, requested: str) -> None: ...

    def add(self, name: str, predictor: Predictor, about: str, held_out: float) -> str: ...

    def alive(self, idle_seconds: float) -> AbstractAsyncContextManager[None]: ...

    async def until_loaded(self) -> None: ...

    def in_memory(self) -> list[str]: ...


class PredictionEngine(Protocol):
    """Rung 10's `Engine`: answers requests with the versions of a registry."""

    @property
    def config(self) -> PredictionConfig: ...

    @property
    def registry(self) -> VersionRegistry: ...

    @property
    def coalescer(self) -> Coalescer: ...

    @property
    def experiment(self) -> Experiment: ...

    async def predict(self, lease: Lease, features: Sequence[float]) -> Outcome: ...

    def is_cached(self, lease: Lease, features: Sequence[float]) -> bool: ...

    def events(self, lease: Lease, rows: Rows, waiting: Reservation) -> AsyncGenerator[RowEvent]: ...

    def stop(self) -> None: ...

    def health(self, rung: str) -> PredictionHealth: ...


class VersionsRung(Protocol):
    """What rung 10 lends: its engine, and its web side."""

    MAIN: str

    def Engine(self, config: PredictionConfig) -> PredictionEngine: ...  # noqa: N802, a class

    def create_app(self, engine: PredictionEngine, rung: Rung = ..., page: str = ...) -> FastAPI: ...
