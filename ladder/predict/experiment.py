"""An A/B experiment: gives each user one of two versions, and counts how fast and how accurate each is.

Predictions from the cache say nothing about a version's speed. They count as requests, but their latency is
not recorded.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from pydantic import BaseModel

from ladder.cli import PredictionConfig
from ladder.stats import percentile

MAX_KEPT = 10_000
"""Predictions that wait for their label, and latencies of each version; the oldest are dropped first."""


def arm_of(user_id: str, config: PredictionConfig) -> str:
    """The version of this user: the same after a restart and in every process.

    Python's own `hash` of a string differs between processes; SHA-256 does not.
    """
    digest = hashlib.sha256(f"{config.salt}:{user_id}".encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    return config.challenger if 100 * share < config.split else config.control


class ArmReport(BaseModel):
    """What is known about one version; None where nothing is known yet."""

    requests: int
    computed: int
    labelled: int
    correct: int
    accuracy: float | None
    latency_median_ms: float | None
    latency_p95_ms: float | None


class ExperimentReport(BaseModel):
    model: str
    control: str
    challenger: str
    split_percent: int
    arms: dict[str, ArmReport]


@dataclass
class Arm:
    requests: int = 0
    computed: int = 0
    labelled: int = 0
    correct: int = 0
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_KEPT))

    def report(self) -> ArmReport:
        return ArmReport(
            requests=self.requests,
            computed=self.computed,
            labelled=self.labelled,
            correct=self.correct,
            accuracy=self.correct / self.labelled if self.labelled else None,
            latency_median_ms=1000 * percentile(self.seconds, 50) if self.seconds else None,
            latency_p95_ms=1000 * percentile(self.seconds, 95) if self.seconds else None,
        )


class Experiment:
    """Counts the predictions of both versions, and the labels that clients send back for them."""

    def __init__(self, model: str, config: PredictionConfig) -> None:
        self.model = model
        self.config = config
        self.arms = {version: Arm() for version in (config.control, config.challenger)}
        self._unlabelled: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def record(self, version: str, prediction: float, seconds: float | None) -> str:
        """Count a prediction; `seconds` is what it took, or None if it came from the cache.

        Returns its id, which the client sends back with the label. The id cannot be guessed.
        """
        arm = self.arms[version]
        arm.requests += 1
        if seconds is not None:
            arm.computed += 1
            arm.seconds.append(seconds)
        prediction_id = secrets.token_hex(8)
        self._unlabelled[prediction_id] = (version, prediction)
        if len(self._unlabelled) > MAX_KEPT:
            self._unlabelled.popitem(last=False)
        return prediction_id

    def label(self, prediction_id: str, label: float) -> bool:
        """Count what a prediction should have been; False if no prediction of this id waits for a label."""
        if prediction_id not in self._unlabelled:
            return False
        version, prediction = self._unlabelled.pop(prediction_id)
        self.arms[version].labelled += 1
        self.arms[version].correct += prediction == label
        return True

    def report(self) -> ExperimentReport:
        return ExperimentReport(
            model=self.model,
            control=self.config.control,
            challenger=self.config.challenger,
            split_percent=self.config.split,
            arms={version: arm.report() for version, arm in self.arms.items()},
        )
