"""Rows that wait at the same time share a pass: rung 03's idea, for models that answer in one.

Nothing waits by the clock. While the model is at work, whatever arrives collects; then all of it is taken
at once. An idle model begins with the first row, and under load the passes grow by themselves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np

from ladder.engine import QueueFull
from ladder.predictor import Outcome, Predictor, Rows

Run = Callable[[Predictor, Rows], Awaitable[list[Outcome]]]


class Waiting(NamedTuple):
    rows: Rows
    answer: asyncio.Future[Sequence[Outcome]]


class Coalescer:
    """A queue for each predictor that has rows waiting. Lives in the event loop."""

    def __init__(self, run: Run, most_rows: int, max_waiting: int) -> None:
        self._run = run
        self._most_rows = most_rows
        self._max_waiting = max_waiting
        self._queues: dict[int, deque[Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.waiting = 0

    async def predict(self, predictor: Predictor, rows: Rows) -> Sequence[Outcome]:
        """The outcomes of these rows, computed with whatever else waits for the same predictor."""
        if self.waiting + len(rows) > self._max_waiting:
            raise QueueFull
        waiting = Waiting(rows, asyncio.get_running_loop().create_future())
        self.waiting += len(rows)
        if (queue := self._queues.get(id(predictor))) is not None:
            queue.append(waiting)
        else:
            self._queues[id(predictor)] = deque([waiting])
            task = asyncio.create_task(self._drain(predictor))
            self._tasks.add(task)  # asyncio itself would let go of it
            task.add_done_callback(self._tasks.discard)
        return await waiting.answer

    async def _drain(self, predictor: Predictor) -> None:
        queue = self._queues[id(predictor)]
        while queue:
            batch = self._take(queue)
            if not batch:
                continue
            try:
                outcomes = await self._run(predictor, np.concatenate([one.rows for one in batch]))
            except Exception as error:
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            start = 0
            for one in batch:
                if not one.answer.done():
                    one.answer.set_result(outcomes[start : start + len(one.rows)])
                start += len(one.rows)
        del self._queues[id(predictor)]

    def _take(self, queue: deque[Waiting]) -> list[Waiting]:
        """The next requests that fit into one pass, without those whose clients have left."""
        batch: list[Waiting] = []
        rows = 0
        while queue and (not batch or rows + len(queue[0].rows) <= self._most_rows):
            one = queue.popleft()
            self.waiting -= len(one.rows)
            if not one.answer.done():
                batch.append(one)
                rows += len(one.rows)
        return batch
