"""What the rungs of the engine track ask of each other, as types.

A rung's file name is no Python identifier, so it is imported by name at run time (`import_rung`), where a
type checker sees nothing. Each protocol here describes what one rung lends to later ones; a test compares
the protocols with the rungs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sized
from typing import Protocol

from fastapi import FastAPI
from pydantic import BaseModel

from ladder.cli import EngineConfig, ServerConfig
from ladder.engine.messages import Command, Status, Update
from ladder.engine.trace import Trace
from ladder.errors import Unavailable
from ladder.llm.loading import Model
from ladder.web.pages import Rung
from ladder.web.schema import GenerateRequest, Health, TokenEvent
from ladder.web.sequence import Sequence, Vocabulary


class StreamingEngine(Protocol):
    """What the web side of rung 02 asks of an engine, so that every later rung can serve its own with it."""

    def submit(self, request: GenerateRequest) -> Sequence:
        """Tokenize, check and accept a request, before a response begins.

        Raises `RequestError` if it does not fit the model, `Unavailable` if it cannot be served now.
        """
        ...

    def events(self, sequence: Sequence) -> AsyncIterator[TokenEvent]:
        """The tokens of a request as they come."""
        ...

    def abort(self, sequence: Sequence) -> None:
        """Stop a request, usually because its client disconnected. Does nothing if it has ended."""
        ...

    def health(self) -> Health: ...


class StreamingRung(Protocol):
    """What rung 02 lends: its web side."""

    def create_app(self, engine: StreamingEngine, rung: Rung = ...) -> FastAPI: ...

    def stream(self, events: AsyncIterator[BaseModel]) -> AsyncGenerator[bytes]: ...


class DeliveringFrontend(Protocol):
    """Rung 03's `Frontend`: requests become engine requests, tokens become text for their clients."""

    @property
    def unfinished(self) -> Sized: ...

    def open(self, request: GenerateRequest) -> Sequence: ...

    def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]: ...

    def close(self, sequence: Sequence) -> bool: ...

    def post(self, update: Update) -> None: ...

    def deliver(self, update: Update) -> None: ...

    def refuse(self, reason: Callable[[], Unavailable]) -> None: ...

    def reopen(self) -> None: ...


class BatchingRung(Protocol):
    """What rung 03 lends: the delivery of tokens, and its page about the last forward passes."""

    Config: type[ServerConfig]

    def Frontend(self, vocabulary: Vocabulary, context: int) -> DeliveringFrontend: ...  # noqa: N802, a class

    def add_steps_page(self, app: FastAPI, trace: Trace) -> None: ...


class Core(Protocol):
    """Rung 04's `EngineCore`: the engine without a web side."""

    context: int

    @property
    def states(self) -> Sized: ...

    def handle(self, command: Command) -> None: ...

    def step(self) -> Update | None: ...

    def status(self) -> Status: ...


class ContinuousRung(Protocol):
    """What rung 04 lends: its engine core."""

    Config: type[EngineConfig]

    def EngineCore(self, model: Model, config: EngineConfig) -> Core: ...  # noqa: N802, a class
