"""Clients that watch a log or an upload: how many there may be, and keep-alive comments for each."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from fastapi.sse import format_sse_event

from ladder.errors import Unavailable
from ladder.web.http import EventStream

MAX_WATCHERS = 64
"""Of each kind: clients that follow the log take no place from clients that watch uploads."""

SAFE_SECONDS = 60.0
"""How long a client may watch in any case. After that, its stream ends if a new client needs its place."""

KEEP_ALIVE_SECONDS = 15.0
"""Proxies close a connection that is silent for too long, usually after a minute."""

ALIVE = format_sse_event(comment="alive")


class TooManyWatchers(Unavailable):
    def __init__(self) -> None:
        super().__init__("too many clients are watching; try again later")


class Watchers:
    """The clients that watch one kind of thing.

    A client may watch for as long as it likes, even if nothing happens. So that idle clients cannot keep all
    places forever, the one that has watched longest makes room for a new one. A browser then connects again
    by itself.
    """

    def __init__(self) -> None:
        self._started: dict[AsyncGenerator[bytes], float] = {}  # the oldest is first
        self._stopping = False

    def stream(
        self, polls: AsyncGenerator[bytes], on_close: Callable[[], None] = lambda: None
    ) -> EventStream:
        """Send what each poll returns: events, or nothing if nothing is new.

        `on_close` is called in any case, even if this client is one too many.
        """
        if len(self._started) >= MAX_WATCHERS and not self._end_oldest():
            on_close()
            raise TooManyWatchers

        def stop_watching() -> None:
            self._started.pop(polls, None)
            on_close()

        self._started[polls] = time.monotonic()
        return EventStream(self._events(polls), stop_watching)

    def _end_oldest(self) -> bool:
        oldest = next(iter(self._started))
        if time.monotonic() - self._started[oldest] < SAFE_SECONDS:
            return False
        del self._started[oldest]  # its stream ends after its next poll
        return True

    async def _events(self, polls: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        last_sent = time.monotonic()
        async with aclosing(polls):
            async for events in polls:
                if self._stopping or polls not in self._started:
                    return
                if events or time.monotonic() - last_sent >= KEEP_ALIVE_SECONDS:
                    yield events or ALIVE
                    last_sent = time.monotonic()

    def stop(self) -> None:
        self._stopping = True
