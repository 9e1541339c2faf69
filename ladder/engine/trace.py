"""What each forward pass was for: the last few thousand, for whoever wants to see a batch at work."""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from fastapi import FastAPI
from pydantic import BaseModel

Kind = Literal["prefill", "decode"]


class Row(NamedTuple):
    """One row of a forward pass."""

    slot: int
    request: int  # numbered in the order in which they came
    used: bool  # False: computed for nobody


class Step(BaseModel):
    number: int
    kind: Kind
    milliseconds: float
    rows: list[Row]


class Trace:
    """Counts the steps and keeps the last. Notes are made by the engine's thread and read by another."""

    def __init__(self) -> None:
        self.count = 0
        self._notes: deque[tuple[int, Kind, float, list[Row]]] = deque(maxlen=4096)

    def note(self, kind: Kind, milliseconds: float, rows: list[Row]) -> None:
        self.count += 1
        self._notes.append((self.count, kind, milliseconds, rows))

    def steps(self) -> list[Step]:
        """Made into objects only here, where somebody asks for them."""
        return [
            Step(number=number, kind=kind, milliseconds=milliseconds, rows=rows)
            for number, kind, milliseconds, rows in self._notes.copy()
        ]


def add_steps_page(app: FastAPI, trace: Trace) -> None:
    @app.get("/steps")
    async def steps() -> list[Step]:
        """The last forward passes: how long each took, and which requests had which slots in it."""
        return trace.steps()
