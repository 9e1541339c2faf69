"""Computes the metrics from what the clients measured, under the names that `vllm bench serve` uses.

A record holds the metrics of one run and its raw samples: `start_times`, `ttfts`, `itls` and `latencies`
(E2EL) in seconds, one entry per completed request. Percentiles are measured values (nearest rank); vLLM uses
numpy, which interpolates.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from ladder.lab.client import Measurement
from ladder.lab.scenes import Figures, Probe
from ladder.stats import median, percentile

Record = dict[str, Any]
"""The metrics and samples of one run, as JSON reads and writes them."""


@dataclass(frozen=True)
class LatencyTarget:
    """The latency target (SLO) in milliseconds. Goodput counts only the requests that meet both bounds.

    For a response without streaming, only TTFT counts: it has no time per token.
    """

    ttft: float = 500
    tpot: float = 50

    def met(self, one: Measurement) -> bool:
        return 1000 * one.ttft <= self.ttft and (came_at_once(one) or 1000 * one.tpot <= self.tpot)


@dataclass(frozen=True)
class Played:
    """One run of a scenario: requests in groups, the /health probes, other figures."""

    groups: Mapping[str, Sequence[Measurement]]
    health: Sequence[Probe] = ()
    figures: Mapping[str, float] | None = None


def records(played: Played, target: LatencyTarget) -> list[Record]:
    """One record per group; the first also has the /health probes and the other figures."""
    found = []
    for number, (group, measurements) in enumerate(played.groups.items()):
        record: Record = {"group": group} if group else {}
        record |= summarise(measurements, target)
        if number == 0:
            record |= played.figures or {}
            record |= of_health(played.health, min(one.sent for one in measurements))
        found.append(record)
    return found


def summarise(measurements: Sequence[Measurement], target: LatencyTarget) -> Record:
    """The metrics of requests that ran together, then the samples."""
    completed = sorted((one for one in measurements if one.done and one.tokens), key=lambda one: one.sent)
    started = min(one.sent for one in measurements)
    duration = max(one.ended for one in measurements) - started
    output_tokens = sum(one.tokens for one in completed)
    good = sum(target.met(one) for one in completed)
    record: Record = {
        "duration": rounded(duration),
        "completed": len(completed),
        "failed": len(measurements) - len(completed),
        "total_input_tokens": sum(input_tokens(one) for one in completed),
        "total_output_tokens": output_tokens,
        "request_throughput": rounded(len(completed) / duration),
        "request_goodput": rounded(good / duration),
        "output_throughput": rounded(output_tokens / duration),
        "good_percent": rounded(100 * good / len(measurements)),
    }
    if completed:
        record |= spread("ttft", [one.ttft for one in completed])
        record |= spread("tpot", [one.tpot for one in completed if one.tokens > 1 and not came_at_once(one)])
        record |= spread("itl", [gap for one in completed for gap in gaps(one)])
        record |= spread("e2el", [one.e2el for one in completed])
    return record | {
        "start_times": [rounded(one.sent - started) for one in completed],
        "output_lens": [one.tokens for one in completed],
        "ttfts": [rounded(one.ttft) for one in completed],
        "itls": [[rounded(gap) for gap in gaps(one)] for one in completed],
        "latencies": [rounded(one.e2el) for one in completed],
        "server_prefills": [server_seconds(one.prefill_ms) for one in completed],
        "server_totals": [server_seconds(one.total_ms) for one in completed],
        "errors": [str(one.error) for one in measurements if one.error],
    }


def spread(name: str, seconds: Sequence[float]) -> Figures:
    if not seconds:
        return {}
    values = [1000 * value for value in seconds]
    figures = {
        "mean": fmean(values),
        "median": median(values),
        "std": pstdev(values),
        "p90": percentile(values, 90),
        "p99": percentile(values, 99),
    }
    return {f"{kind}_{name}_ms": rounded(value) for kind, value in figures.items()}


def of_health(health: Sequence[Probe], started: float) -> Record:
    """How long /health took, and every probe as (when it was sent, seconds until the response)."""
    if not health:
        return {}
    waits = [1000 * seconds for _, seconds in health]
    return {
        "median_health_ms": rounded(median(waits)),
        "p99_health_ms": rounded(percentile(waits, 99)),
        "worst_health_ms": rounded(max(waits)),
        "health": [[rounded(asked - started), rounded(seconds)] for asked, seconds in health],
    }


def came_at_once(one: Measurement) -> bool:
    """Whether the response was not streamed. It then has no time per token; 0 ms would beat every other."""
    return one.total_ms is not None


def gaps(one: Measurement) -> list[float]:
    """The inter-token latencies. A response without streaming has none, rather than many of length zero."""
    return [] if came_at_once(one) else one.itl


def input_tokens(one: Measurement) -> int:
    """The prompts of the benchmark consist of words that are one token each."""
    return len(one.prompt.split())


def server_seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else rounded(milliseconds / 1000)


def rounded(value: float) -> float:
    """To a hundredth of a millisecond, finer than anything that is measured here."""
    return round(value, 5)


Summary = dict[str, dict[str, dict[str, Figures]]]


def summary_of(runs: Sequence[Record]) -> Summary:
    """By contender, setting and metric: median, minimum and maximum of the rounds.

    The median of two rounds is their mean.
    """
    rounds: dict[tuple[str, str], list[Record]] = {}
    for run in runs:
        label = " ".join(part for part in (run["label"], run.get("group", "")) if part)
        rounds.setdefault((run["contender"], label), []).append(run)
    summary: Summary = {}
    for (contender, label), same in rounds.items():
        summary.setdefault(contender, {})[label] = {
            key: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for key in same[0]
            if key != "round" and isinstance(same[0][key], int | float)
            for values in [[run[key] for run in same if key in run]]
        }
    return summary
