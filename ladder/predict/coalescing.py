"""Rows that wait at the same time share a pass: rung 03's idea, for models that answer in one.

Nothing waits by the clock. While the model is at work, whatever arrives collects; then all of it is taken
at once. An idle model begins with the first row, and under load the passes grow by themselves.

One pass is run at a time, and whoever wants one waits for a turn, those too who want a pass of their own.
So every row that waits is counted, and a request that would make them too many is refused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np

from ladder.errors import QueueFull
from ladder.predict.predictor import Outcome, Predictor, Rows

Run = Callable[[Predictor, Rows], Awaitable[list[Outcome]]]


class Places:
    """A request's share of the places for rows that wait."""

    def __init__(self, coalescer: Coalescer, rows: int) -> None:
        self._coalescer = coalescer
        self._rows = rows
        coalescer.waiting += rows

    def leave(self, rows: int) -> None:
        self._rows -= rows
        self._coalescer.waiting -= rows

    def leave_all(self) -> None:
        self.leave(self._rows)


class Waiting(NamedTuple):
    rows: Rows
    answer: asyncio.Future[Sequence[Outcome]]
    places: Places


class Coalescer:
    """A queue for each predictor that has rows waiting. Lives in the event loop."""

    def __init__(self, run: Run, most_rows: int, max_waiting: int) -> None:
        self._run = run
        self._most_rows = most_rows
        self._max_waiting = max_waiting
        self._queues: dict[int, deque[Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self.waiting = 0

    def reserve(self, rows: int) -> Places:
        """Places for so many rows, or `QueueFull`."""
        if self.waiting + rows > self._max_waiting:
            raise QueueFull
        return Places(self, rows)

    async def alone(self, predictor: Predictor, rows: Rows) -> list[Outcome]:
        """The outcomes of these rows, computed in a pass of their own."""
        places = self.reserve(len(rows))
        try:
            return await self.in_turn(predictor, rows, places)
        finally:
            places.leave_all()

    async def in_turn(self, predictor: Predictor, rows: Rows, places: Places) -> list[Outcome]:
        """The same for rows that have their places already."""
        async with self._turn:
            places.leave(len(rows))
            return await self._run(predictor, rows)

    async def predict(self, predictor: Predictor, rows: Rows) -> Sequence[Outcome]:
        """The outcomes of these rows, computed with whatever else waits for the same predictor."""
        answer: asyncio.Future[Sequence[Outcome]] = asyncio.get_running_loop().create_future()
        waiting = Waiting(rows, answer, self.reserve(len(rows)))
        if (queue := self._queues.get(id(predictor))) is not None:
            queue.append(waiting)
        else:
            self._queues[id(predictor)] = deque([waiting])
            task = asyncio.create_task(self._drain(predictor))
            self._tasks.add(task)  # asyncio itself would let go of it
            task.add_done_callback(self._tasks.discard)
        return await answer

    async def _drain(self, predictor: Predictor) -> None:
        queue = self._queues[id(predictor)]
        while queue:
            async with self._turn:
                if batch := self._take(queue):
                    await self._answer(predictor, batch)
        del self._queues[id(predictor)]

    async def _answer(self, predictor: Predictor, batch: Sequence[Waiting]) -> None:
        try:
            outcomes = await self._run(predictor, np.concatenate([one.rows for one in batch]))
        except Exception as error:
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        start = 0
        for one in batch:
            if not one.answer.done():
                one.answer.set_result(outcomes[start : start + len(one.rows)])
            start += len(one.rows)

    def _take(self, queue: deque[Waiting]) -> list[Waiting]:
        """The next requests that fit into one pass, without those whose clients have left."""
        batch: list[Waiting] = []
        rows = 0
        while queue and (not batch or rows + len(queue[0].rows) <= self._most_rows):
            one = queue.popleft()
            one.places.leave_all()
            if not one.answer.done():
                batch.append(one)
                rows += len(one.rows)
        return batch
