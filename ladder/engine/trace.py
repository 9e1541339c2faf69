"""A record of the last few thousand forward passes: how long each took, and which requests it served."""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from pydantic import BaseModel

Kind = Literal["prefill", "decode"]


class Row(NamedTuple):
    """One row of a forward pass."""

    slot: int
    request: int  # numbered in order of arrival
    used: bool  # False: a wasted row


class Step(BaseModel):
    number: int
    kind: Kind
    milliseconds: float
    rows: list[Row]


class Trace:
    """Counts the steps and keeps the last ones. The engine's thread writes, another thread reads."""

    def __init__(self) -> None:
        self.count = 0
        self._notes: deque[tuple[int, Kind, float, list[Row]]] = deque(maxlen=4096)

    def note(self, kind: Kind, milliseconds: float, rows: list[Row]) -> None:
        self.count += 1
        self._notes.append((self.count, kind, milliseconds, rows))

    def steps(self) -> list[Step]:
        """Made into objects only here, because most are never asked for."""
        return [
            Step(number=number, kind=kind, milliseconds=milliseconds, rows=rows)
            for number, kind, milliseconds, rows in self._notes.copy()
        ]
