"""Those who watch something that goes on: so many at a time, and each told that the connection lives."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi.sse import format_sse_event

from ladder.errors import Unavailable
from ladder.web.http import EventStream

MOST_WATCHERS = 64
KEEP_ALIVE_SECONDS = 15.0
"""A proxy gives up a connection on which nothing comes; the usual time is a minute."""

ALIVE = format_sse_event(comment="alive")


class TooManyWatchers(Unavailable):
    def __init__(self) -> None:
        super().__init__("too many are watching; try again in a while")


class Watchers:
    def __init__(self) -> None:
        self.number = 0
        self.stopping = False

    def stream(self, looks: AsyncGenerator[bytes], over: Callable[[], None] = lambda: None) -> EventStream:
        """Each look gives events, or nothing if there is nothing new; `over` is called in any case."""
        if self.number >= MOST_WATCHERS:
            over()
            raise TooManyWatchers

        def left() -> None:
            self.number -= 1
            over()

        self.number += 1
        return EventStream(self._news(looks), left)

    async def _news(self, looks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        told = time.monotonic()
        async with aclosing(looks):
            async for news in looks:
                if self.stopping:
                    return
                if news or time.monotonic() - told >= KEEP_ALIVE_SECONDS:
                    yield news or ALIVE
                    told = time.monotonic()

    def stop(self) -> None:
        self.stopping = True
