"""Clients that watch a log or an upload: how many there may be, and keep-alive comments for each."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi.sse import format_sse_event

from ladder.errors import Unavailable
from ladder.web.http import EventStream

MAX_WATCHERS = 64
KEEP_ALIVE_SECONDS = 15.0
"""Proxies close a connection that is silent for too long, usually after a minute."""

ALIVE = format_sse_event(comment="alive")


class TooManyWatchers(Unavailable):
    def __init__(self) -> None:
        super().__init__("too many clients are watching; try again later")


class Watchers:
    def __init__(self) -> None:
        self.number = 0
        self.stopping = False

    def stream(
        self, polls: AsyncGenerator[bytes], on_close: Callable[[], None] = lambda: None
    ) -> EventStream:
        """Send what each poll returns: events, or nothing if nothing is new.

        `on_close` is called in any case, even if this client is one too many.
        """
        if self.number >= MAX_WATCHERS:
            on_close()
            raise TooManyWatchers

        def stop_watching() -> None:
            self.number -= 1
            on_close()

        self.number += 1
        return EventStream(self._events(polls), stop_watching)

    async def _events(self, polls: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        last_sent = time.monotonic()
        async with aclosing(polls):
            async for events in polls:
                if self.stopping:
                    return
                if events or time.monotonic() - last_sent >= KEEP_ALIVE_SECONDS:
                    yield events or ALIVE
                    last_sent = time.monotonic()

    def stop(self) -> None:
        self.stopping = True
