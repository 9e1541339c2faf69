"""A cache of predictions: equal rows that the same version answers are computed once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from ladder.predict.predictor import Outcome, Rows
from ladder.predict.versions import Lease
from ladder.predict.wire import CacheInfo


def cache_key(lease: Lease, rows: Rows) -> object:
    """The version that was found, never "latest": that word may stand for another version tomorrow."""
    return lease.model, lease.model_version, rows.tobytes()


class Cache:
    """The last predictions that were asked for. Drops the one that was asked for longest ago.

    An entry is the task that computes the prediction, from the moment when it starts. So a request for a
    prediction that is being computed waits for that task instead of starting another.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: OrderedDict[object, asyncio.Future[Outcome]] = OrderedDict()
        self.hits = self.misses = 0

    def __contains__(self, key: object) -> bool:
        return key in self.entries

    async def get(self, key: object, compute: Callable[[], Awaitable[Outcome]]) -> Outcome:
        if (entry := self.entries.get(key)) is not None:
            self.hits += 1
            self.entries.move_to_end(key)
        else:
            self.misses += 1
            entry = self.entries[key] = asyncio.ensure_future(compute())
            entry.add_done_callback(lambda done: self.forget_failure(key, done))
            if len(self.entries) > self.size:
                self.entries.popitem(last=False)
        return await asyncio.shield(entry)  # a cancelled request does not cancel the work for the others

    def forget_failure(self, key: object, entry: asyncio.Future[Outcome]) -> None:
        if (entry.cancelled() or entry.exception()) and self.entries.get(key) is entry:
            del self.entries[key]

    def info(self) -> CacheInfo:
        rate = self.hits / max(1, self.hits + self.misses)
        return CacheInfo(size=len(self.entries), hits=self.hits, misses=self.misses, hit_rate=rate)
