"""The schema of requests, responses and messages of rungs 10 and 11."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from fastapi import HTTPException, Query
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from ladder.errors import RequestError, Unavailable
from ladder.log import log_failure
from ladder.predict.predictor import Outcome, Predictor, Rows, Task

MAX_ROWS = 1000
MAX_FEATURES = 1024
MAX_NUMBER = 1e6
"""Far above any pixel or blood value. Larger numbers could overflow inside the layers."""

Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]  # excludes NaN and 1e999, too
Features = Annotated[list[Number], Field(min_length=1, max_length=MAX_FEATURES), FailFast()]
UserId = Annotated[str, Query(min_length=1, max_length=200)]
VersionName = Annotated[str, Query(max_length=40, description="v1, v2, ..., latest or default")]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class PredictionInput(Strict):
    """One row."""

    features: Features


class BatchInput(Strict):
    """Several rows, each as long as the model expects."""

    instances: Annotated[list[Features], Field(min_length=1, max_length=MAX_ROWS), FailFast()]
    _rows: Rows | None = None

    @classmethod
    def of(cls, rows: Rows) -> Self:
        """A batch of rows that have been checked already."""
        batch = cls.model_construct()
        batch._rows = rows
        return batch

    def to_rows(self, predictor: Predictor) -> Rows:
        return to_rows(predictor, self.instances if self._rows is None else self._rows, "instances")


QuestionId = Annotated[
    int | Annotated[str, Field(max_length=100)] | None, Field(description="Returned with the answer.")
]


class Question(PredictionInput):
    """A message to a WebSocket."""

    id: QuestionId = None
    model: Annotated[str, Field(max_length=40)] = "digits"
    version: Annotated[str, Field(max_length=40)] = "default"
    probabilities: Annotated[
        bool, Field(description="Whether to return the probability of every class, too.")
    ] = False


class Identified(BaseModel):
    """The part of a wrong message that its error needs: the id."""

    model_config = ConfigDict(strict=True)

    id: QuestionId = None


class Choice(Strict):
    """The version that answers requests that name none, from now on."""

    version: Annotated[str, Field(max_length=40)]


class Feedback(Strict):
    """The label of a prediction of the experiment: what it should have been."""

    prediction_id: Annotated[str, Field(max_length=40)]
    label: Number


class Prediction(BaseModel):
    prediction: float
    confidence: float | None = None
    model: str
    version_requested: str
    model_version: str


class Reply(Prediction):
    """The answer to a message."""

    id: int | str | None = None
    probabilities: Annotated[list[float] | None, Field(description="One per class, if requested.")] = None


class ExperimentPrediction(Prediction):
    user_id: str
    prediction_id: Annotated[
        str | None,
        Field(
            description="Send it to /feedback with the label. Null while the user's version is unloaded: "
            "the default answers, and the prediction counts for neither version."
        ),
    ]


class RowEvent(BaseModel):
    """One row of a stream."""

    index: int
    prediction: float


class Batch(BaseModel):
    predictions: list[float]
    confidences: list[float | None]
    count: int
    model: str
    version_requested: str
    model_version: str


class VersionInfo(BaseModel):
    """One version, and whether it is in memory."""

    state: Annotated[
        Literal["loaded", "idle", "unloaded"],
        Field(description="idle: dropped because no request used it; the next request reads it again."),
    ]
    about: str
    held_out: Annotated[float, Field(description="Accuracy or R² on rows that were not used in training.")]
    bytes: Annotated[int, Field(description="Memory of its weights now.")]
    in_flight: Annotated[int, Field(description="Requests that it is answering.")]


class ModelInfo(BaseModel):
    task: Task
    features: int
    default: str
    latest: str
    versions: dict[str, VersionInfo]


class CacheInfo(BaseModel):
    size: int
    hits: int
    misses: int
    hit_rate: float


class PredictionHealth(BaseModel):
    """GET /health: alive, and how busy."""

    status: str = "ok"
    rung: str
    model: Annotated[str, Field(description="The versions in memory.")]
    running: Annotated[int, Field(description="Requests that are being answered.")]
    waiting: Annotated[int, Field(description="Rows that wait for the model.")]
    calls: Annotated[int, Field(description="Passes through a model since the start; a batch counts once.")]
    rows: Annotated[int, Field(description="Rows predicted since the start.")]
    cache: CacheInfo
    rss_bytes: Annotated[int, Field(description="Memory of the whole process.")]
    pid: int


def to_rows(predictor: Predictor, instances: Sequence[Sequence[float]] | Rows, field: str) -> Rows:
    """The rows as an array; `RequestError` if one is not as long as the model expects."""
    for number, row in enumerate(instances):
        if len(row) != predictor.features:
            where = f"row {number} has" if field == "instances" else "there are"
            raise RequestError(
                field, f"the model takes {predictor.features} numbers per row; {where} {len(row)}"
            )
    return np.array(instances, dtype=np.float32)


def to_batch(outcomes: Sequence[Outcome], names: Mapping[str, str]) -> Batch:
    return Batch(
        predictions=[outcome.prediction for outcome in outcomes],
        confidences=[outcome.confidence for outcome in outcomes],
        count=len(outcomes),
        **names,
    )


def to_reply(question: Question, outcome: Outcome, names: Mapping[str, Any]) -> str:
    """The answer as a message. Fields that were not requested are left out: messages should be short."""
    reply = Reply(id=question.id, **outcome._asdict(), **names)
    unwanted = set() if question.probabilities else {"probabilities"}
    return reply.model_dump_json(exclude=unwanted if question.id is not None else unwanted | {"id"})


def error_reply(error: Exception, question: str | None = None) -> str:
    """The error of a message, as a message with the same id."""
    match error:
        case ValidationError():
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part)[:40] for part in first["loc"])
            kind, message = "invalid", f"{place}: {first['msg']}" if place else first["msg"]
        case RequestError():
            kind, message = "invalid", str(error)
        case HTTPException():
            kind, message = "not_found", str(error.detail)
        case Unavailable():
            kind, message = "unavailable", str(error)
        case _:
            log_failure(error)
            kind, message = "internal", "the server's log says why"
    try:
        known = Identified.model_validate_json(question or "")
    except ValidationError:
        known = Identified()
    return json.dumps(known.model_dump(exclude_none=True) | {"error": {"type": kind, "message": message}})
