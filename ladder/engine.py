"""What the HTTP side of rung 02 asks of an engine, so that every later rung can put its own behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from ladder.schema import GenerateRequest, Health, TokenEvent
from ladder.sequence import Sequence


class ServerStopping(Exception):
    """Ends the requests that are under way when the server is told to stop."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; send the request again in a while")


class StreamingEngine(Protocol):
    def prepare(self, request: GenerateRequest) -> Sequence:
        """Tokenize and check, before anything is answered; raises `RequestError`."""
        ...

    def generate(self, sequence: Sequence) -> AsyncGenerator[TokenEvent, None]:
        """The tokens as they come. Closing the generator ends the request's work."""
        ...

    def health(self) -> Health: ...

    def stop(self) -> None:
        """End every request under way with `ServerStopping`, and take no more."""
        ...
