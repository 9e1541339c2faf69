"""Computes what different tools call TPOT and ITL from the same trace.

    python -m benchmarks.definitions

The trace is a committed run of `benchmarks/run.py`: the times at which each request was sent and each of its
tokens arrived. The first line of each function names the tools whose source counts this way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean, median

from rich.console import Console
from rich.table import Table

from benchmarks.results_file import RESULTS
from ladder.stats import percentile

SCENARIO, CONTENDER, LABEL = "long_prompt", "04, prompts whole", "1024"
"""Four streams that stall once, while a long prompt is prefilled in one pass."""


@dataclass(frozen=True)
class Request:
    """The times of one request, in seconds since it was sent."""

    tokens: tuple[float, ...]  # when each token arrived
    ended: float  # when the stream was closed

    @property
    def first(self) -> float:
        return self.tokens[0]

    @property
    def last(self) -> float:
        return self.tokens[-1]

    @property
    def count(self) -> int:
        return len(self.tokens)


Trace = Sequence[Request]


def tpot_of_vllm(trace: Trace) -> list[float]:
    """vLLM's TPOT, AIPerf's ITL: from the first token to the last, over the gaps; one value per request."""
    return [(one.last - one.first) / (one.count - 1) for one in trace]


def tpot_of_this_repository(trace: Trace) -> list[float]:
    """This repository's TPOT, and SGLang's: the same, but up to the end of the stream, where E2EL ends."""
    return [(one.ended - one.first) / (one.count - 1) for one in trace]


def tpot_of_guidellm(trace: Trace) -> list[float]:
    """GuideLLM's TPOT: from sending to the last token, over all tokens. It includes TTFT."""
    return [one.last / one.count for one in trace]


def itl_of_llmperf(trace: Trace) -> list[float]:
    """LLMPerf's ITL: TTFT and all gaps together, over all tokens; one value per request."""
    return [(one.first + sum(gaps(one))) / one.count for one in trace]


def itl_of_vllm(trace: Trace) -> list[float]:
    """vLLM's ITL, and SGLang's if a chunk is one token: every single gap of every request."""
    return [gap for one in trace for gap in gaps(one)]


def gaps(one: Request) -> list[float]:
    return [later - earlier for earlier, later in pairwise(one.tokens)]


DEFINITIONS: dict[str, Callable[[Trace], list[float]]] = {
    "TPOT, vLLM": tpot_of_vllm,
    "TPOT, this repository": tpot_of_this_repository,
    "TPOT, GuideLLM": tpot_of_guidellm,
    "ITL, LLMPerf": itl_of_llmperf,
    "ITL, vLLM": itl_of_vllm,
}


def read_trace(folder: Path = RESULTS) -> Trace:
    result = json.loads((folder / f"{SCENARIO}.json").read_text())
    run = next(
        run
        for run in result["runs"]
        if (run["contender"], run["label"], run["group"], run["round"]) == (CONTENDER, LABEL, "streams", 1)
    )
    return [
        Request(tuple(accumulate(itl, initial=first)), ended)
        for first, itl, ended in zip(run["ttfts"], run["itls"], run["latencies"], strict=True)
    ]


def compute(folder: Path = RESULTS) -> dict[str, dict[str, float]]:
    """Mean, median and 99th percentile in milliseconds under each definition."""
    trace = read_trace(folder)
    figures: dict[str, dict[str, float]] = {}
    for name, values_of in DEFINITIONS.items():
        values = [1000 * value for value in values_of(trace)]
        figures[name] = {"mean": fmean(values), "median": median(values), "p99": percentile(values, 99)}
    return figures


def main() -> None:
    table = Table("ms", "mean", "median", "99 %", "values", title=f"{SCENARIO}, {CONTENDER}, round 1")
    trace = read_trace()
    for name, figures in compute().items():
        count = len(DEFINITIONS[name](trace))
        table.add_row(name, *(f"{value:.1f}" for value in figures.values()), str(count))
    Console().print(table)


if __name__ == "__main__":
    main()
