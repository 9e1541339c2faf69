"""Medians, percentiles and durations: one definition each, for servers, demos and benchmarks."""

from __future__ import annotations

import time
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest measured value that at least `percent` of the values do not exceed."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def milliseconds_since(started: float) -> float:
    """From a `perf_counter` reading until now."""
    return round((time.perf_counter() - started) * 1000, 3)
