"""What the HTTP side of rung 02 asks of an engine, so that every later rung can put its own behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from ladder.web.schema import GenerateRequest, Health, TokenEvent

if TYPE_CHECKING:  # it brings torch, and rung 12 does without
    from ladder.web.sequence import Sequence


class StreamingEngine(Protocol):
    def submit(self, request: GenerateRequest) -> Sequence:
        """Tokenize, check and take a request, before anything is answered.

        Raises `RequestError` if it does not fit the model, `Unavailable` if it cannot be served now.
        """
        ...

    def events(self, sequence: Sequence) -> AsyncIterator[TokenEvent]:
        """The tokens of a request as they come."""
        ...

    def abort(self, sequence: Sequence) -> None:
        """Nobody waits for this request any more: end its work. Does nothing if it has ended."""
        ...

    def health(self) -> Health: ...

    def stop(self) -> None:
        """End every request under way with `ServerStopping`, and take no more."""
        ...
