"""The request and response schema, the same for every rung, Flask included.

Every rung answers a wrong request with 422 and `{"detail": [{"type", "loc", "msg"}, ...]}`, and a body that
is not sent as JSON with 415. The response does not repeat the wrong input: a prompt may be long or private.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from ladder import FinishReason

MAX_BODY_BYTES = 4 * 2**20
"""Far more than the longest prompt of any model here. A larger body is refused unread, with 413."""

NOT_SENT_AS_JSON = "the body must be JSON and be sent as such, with content-type: application/json"
"""Any web page may send a form or plain text to a server on its visitor's machine. To send JSON, a browser
asks that server first. So it is not enough that the body looks like JSON."""


class GenerateRequest(BaseModel):
    """The body of POST /generate."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"prompt": "What is 2 + 2?", "temperature": 0, "stream": False}]},
    )

    prompt: Annotated[str, Field(min_length=1, description="The text to continue.")]
    max_tokens: Annotated[int, Field(ge=1, description="Stop after this many tokens.")] = 128
    temperature: Annotated[
        float, Field(ge=0, le=2, description="0 always takes the likeliest token; higher is more varied.")
    ] = 0.7
    top_p: Annotated[
        float, Field(gt=0, le=1, description="Sample among the likeliest tokens that reach this mass.")
    ] = 1.0
    seed: Annotated[
        int | None,
        Field(description="The same seed gives the same text; in float32 in any batch."),
    ] = None
    stream: Annotated[bool, Field(description="Send each token as a server-sent event.")] = False


class NamedEvent(BaseModel):
    """The data of a server-sent event that has a name. Clients take one without a name for a "message"."""

    NAME: ClassVar[str]


def event_name(event: BaseModel) -> str | None:
    return event.NAME if isinstance(event, NamedEvent) else None


class TokenEvent(BaseModel):
    """One token of a stream. The first carries `prefill_time_ms`, the others `step_ms`."""

    token: str
    token_id: int
    prefill_time_ms: float | None = None
    step_ms: float | None = None
    finish_reason: FinishReason | None = None


class GenerateResponse(BaseModel):
    """The whole answer at once."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    prefill_time_ms: float
    total_time_ms: float


class Health(BaseModel):
    """GET /health: alive, and how busy."""

    status: str = "ok"
    rung: str
    model: str
    running: int
    waiting: int
    steps: Annotated[int, Field(description="Forward passes since the start; a batch is one.")]
    tokens: Annotated[int, Field(description="Tokens sampled since the start.")]
    pid: int


class SlotHealth(Health):
    """GET /health of an engine with slots: rungs 04 and 05."""

    prefilling: Annotated[int, Field(description="Running requests whose prompt is still being read.")]
    slots: Annotated[int, Field(description="The most requests that could run at this slot size.")]
    slot_size: Annotated[int, Field(description="Tokens that each slot has room for; follows the longest.")]


class EngineHealth(SlotHealth):
    """GET /health of a server whose engine is another process: rung 05."""

    engine_pid: Annotated[int | None, Field(description="The engine's process; null while there is none.")]
    restarts: Annotated[int, Field(description="How often the engine has been started again.")]


class ErrorBody(BaseModel):
    """What a client gets when the engine failed: an event in a stream, or a response with status 500."""

    class Error(BaseModel):
        type: str
        message: str

    error: Error

    @classmethod
    def of(cls, error: Exception) -> ErrorBody:
        return cls(error=cls.Error(type=getattr(error, "kind", type(error).__name__), message=str(error)))


MAX_ERRORS = 20
MAX_NAME = 100


def public_details(errors: Sequence[Any], *within: str) -> list[dict[str, Any]]:
    """Pydantic's errors without the input that caused them.

    `loc` begins with the part of the request: "body", "query", "path" or "header". FastAPI adds it; a caller
    that validates only a body names it in `within`. Names of unknown fields are input too, so their number
    and length are limited.
    """
    details = []
    for error in errors[:MAX_ERRORS]:
        location = (*within, *error["loc"])
        shortened = [part[:MAX_NAME] if isinstance(part, str) else part for part in location]
        details.append({"type": error["type"], "loc": shortened, "msg": error["msg"]})
    return details
