"""The books of an A/B experiment: who was answered by which version, how fast, and how often rightly.

What the cache had says nothing about how fast a version is: it counts as a request, but not in the latency.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from ladder.predict.wire import Feedback
from ladder.stats import percentile

REMEMBERED = 10_000
"""Predictions that still wait for their label, and latencies of each version; the oldest go first."""


class ArmReport(BaseModel):
    """What is known of one version; None where nothing is known yet."""

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
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

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


class Books:
    def __init__(self, control: str, challenger: str) -> None:
        self.control, self.challenger = control, challenger
        self.arms = {version: Arm() for version in (control, challenger)}
        self._unlabelled: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def enter(self, version: str, prediction: float, seconds: float | None) -> str:
        """Note a prediction, and what it took if it was computed.

        Its number, which nobody can guess, is for the feedback.
        """
        arm = self.arms[version]
        arm.requests += 1
        if seconds is not None:
            arm.computed += 1
            arm.seconds.append(seconds)
        number = secrets.token_hex(8)
        self._unlabelled[number] = (version, prediction)
        if len(self._unlabelled) > REMEMBERED:
            self._unlabelled.popitem(last=False)
        return number

    def label(self, number: str, label: float) -> bool:
        """Note what a prediction should have been; False if none waits under this number."""
        if number not in self._unlabelled:
            return False
        version, prediction = self._unlabelled.pop(number)
        self.arms[version].labelled += 1
        self.arms[version].correct += prediction == label
        return True

    def report(self, model: str, split_percent: int) -> ExperimentReport:
        return ExperimentReport(
            model=model,
            control=self.control,
            challenger=self.challenger,
            split_percent=split_percent,
            arms={version: arm.report() for version, arm in self.arms.items()},
        )


def add_books(app: FastAPI, books: Books, model: str, split_percent: int) -> None:
    """The way back for the labels, and the report."""

    @app.post("/feedback", status_code=204)
    async def feedback(body: Feedback) -> None:
        """What a prediction of the experiment should have been."""
        if not books.label(body.prediction_id, body.label):
            raise HTTPException(404, "no prediction of that id waits for its label")

    @app.get("/ab-test")
    async def experiment() -> ExperimentReport:
        """How the two versions of the experiment have done so far."""
        return books.report(model, split_percent)
