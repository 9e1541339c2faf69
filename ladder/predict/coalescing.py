"""Rows that wait at the same time share a pass: rung 03's idea, for models that answer in a single pass.

There is no timer. While the model computes, arriving rows collect; then all of them are taken at once. An
idle model starts with the first row, and under load the passes get larger.

One pass runs at a time. Requests that want a pass of their own wait for a turn like the others. So every row
that waits is counted, and a request that would exceed the limit is rejected immediately.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np

from ladder.errors import QueueFull
from ladder.predict.predictor import Outcome, Predictor, Rows

RunPass = Callable[[Predictor, Rows], Awaitable[list[Outcome]]]


class Reservation:
    """A request's part of the queue: so many rows may wait."""

    def __init__(self, coalescer: Coalescer, rows: int) -> None:
        self._coalescer = coalescer
        self._rows = rows
        coalescer.waiting += rows

    def release(self, rows: int) -> None:
        self._rows -= rows
        self._coalescer.waiting -= rows

    def release_all(self) -> None:
        self.release(self._rows)


class Pending(NamedTuple):
    """A request that waits for a shared pass."""

    rows: Rows
    answer: asyncio.Future[Sequence[Outcome]]
    reservation: Reservation


class Coalescer:
    """A queue for each predictor that has rows waiting. It lives in the event loop."""

    def __init__(self, run: RunPass, max_rows: int, max_waiting: int) -> None:
        self._run = run
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._queues: dict[int, deque[Pending]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self.waiting = 0

    def reserve(self, rows: int) -> Reservation:
        """Let so many rows wait, or raise `QueueFull`."""
        if self.waiting + rows > self._max_waiting:
            raise QueueFull
        return Reservation(self, rows)

    async def alone(self, predictor: Predictor, rows: Rows) -> list[Outcome]:
        """The outcomes of these rows, computed in a pass of their own."""
        reservation = self.reserve(len(rows))
        try:
            return await self.in_turn(predictor, rows, reservation)
        finally:
            reservation.release_all()

    async def in_turn(self, predictor: Predictor, rows: Rows, reservation: Reservation) -> list[Outcome]:
        """The same for rows that have a reservation already."""
        async with self._turn:
            reservation.release(len(rows))
            return await self._run(predictor, rows)

    async def predict(self, predictor: Predictor, rows: Rows) -> Sequence[Outcome]:
        """The outcomes of these rows, computed together with all that waits for the same predictor."""
        answer: asyncio.Future[Sequence[Outcome]] = asyncio.get_running_loop().create_future()
        pending = Pending(rows, answer, self.reserve(len(rows)))
        if (queue := self._queues.get(id(predictor))) is not None:
            queue.append(pending)
        else:
            self._queues[id(predictor)] = deque([pending])
            task = asyncio.create_task(self._drain(predictor))
            self._tasks.add(task)  # asyncio keeps no reference to a task
            task.add_done_callback(self._tasks.discard)
        return await answer

    async def _drain(self, predictor: Predictor) -> None:
        queue = self._queues[id(predictor)]
        while queue:
            async with self._turn:
                if batch := self._take_batch(queue):
                    await self._answer(predictor, batch)
        del self._queues[id(predictor)]

    async def _answer(self, predictor: Predictor, batch: Sequence[Pending]) -> None:
        try:
            outcomes = await self._run(predictor, np.concatenate([pending.rows for pending in batch]))
        except Exception as error:
            for pending in batch:
                if not pending.answer.done():
                    pending.answer.set_exception(error)
            return
        start = 0
        for pending in batch:
            if not pending.answer.done():
                pending.answer.set_result(outcomes[start : start + len(pending.rows)])
            start += len(pending.rows)

    def _take_batch(self, queue: deque[Pending]) -> list[Pending]:
        """The next requests that fit into one pass, without those whose clients have disconnected."""
        batch: list[Pending] = []
        rows = 0
        while queue and (not batch or rows + len(queue[0].rows) <= self._max_rows):
            pending = queue.popleft()
            pending.reservation.release_all()
            if not pending.answer.done():
                batch.append(pending)
                rows += len(pending.rows)
        return batch
