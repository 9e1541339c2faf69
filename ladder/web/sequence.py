"""One request on its way from prompt to text: its tokens, its settings, and when it ends.

Every engine keeps one `Sequence` a request and nothing about requests anywhere else, so that two of
them can never mix.
"""

from __future__ import annotations

import secrets
from itertools import count
from typing import Protocol

from torch import Tensor

from ladder import FinishReason
from ladder.engine.messages import Job
from ladder.errors import RequestError
from ladder.llm.sampling import SamplingBatch, SamplingSettings, sample
from ladder.llm.text import Tokenizer
from ladder.stats import milliseconds_since
from ladder.web.schema import GenerateRequest, GenerateResponse, TokenEvent


class Vocabulary(Protocol):
    """The part of a model that turns text into tokens and back."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def stop_ids(self) -> frozenset[int]: ...

    @property
    def context(self) -> int: ...


numbers = count(1)
"""Requests are numbered in the order in which they come."""


class Sequence:
    """Fed with token ids by an engine; gives out the events that a client sees."""

    def __init__(self, model: Vocabulary, request: GenerateRequest, context: int | None = None) -> None:
        """Tokenize the prompt and check that it fits the model (or less of it), else raise `RequestError`."""
        seed = secrets.randbits(64) if request.seed is None else request.seed % 2**64
        self.job = Job(
            id=next(numbers),
            prompt_ids=encode_prompt(model, request, context or model.context),
            max_tokens=request.max_tokens,
            settings=SamplingSettings(request.temperature, request.top_p, seed),
            stop_ids=model.stop_ids,
        )
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._detokenizer = model.tokenizer.detokenizer()

    def append(self, token_id: int, milliseconds: float) -> TokenEvent:
        """Take the token that the engine has sampled, and say what the client is to see of it."""
        first = not self.token_ids
        self.token_ids.append(token_id)
        self.finish_reason = self.job.finish_reason(self.token_ids)
        text = "" if self.finish_reason == "stop" else self._detokenizer.push(token_id)
        if self.finish_reason:
            text += self._detokenizer.flush()
        return TokenEvent(
            token=text,
            token_id=token_id,
            prefill_time_ms=milliseconds if first else None,
            step_ms=None if first else milliseconds,
            finish_reason=self.finish_reason,
        )


def encode_prompt(model: Vocabulary, request: GenerateRequest, context: int) -> list[int]:
    room = context - request.max_tokens
    if room < 1:
        raise RequestError(
            "max_tokens", f"max_tokens must leave room for a prompt in this server's context of {context}"
        )
    # A text this long cannot fit whatever its tokens are: do not spend time on tokenizing it.
    too_long = len(request.prompt) > room * model.tokenizer.longest_token
    prompt_ids = [] if too_long else model.tokenizer.encode(request.prompt)
    if too_long or len(prompt_ids) > room:
        size = "far more" if too_long else str(len(prompt_ids))
        raise RequestError(
            "prompt",
            f"{size} prompt tokens + max_tokens {request.max_tokens} exceed this server's context "
            f"of {context}",
        )
    if not prompt_ids:
        raise RequestError("prompt", "the prompt has no tokens")
    return prompt_ids


def sample_one(sequence: Sequence, logits: Tensor) -> int:
    """The next token of a request that has the forward pass to itself; `logits` is [1, vocabulary]."""
    return int(sample(logits, SamplingBatch([sequence.job.settings]), [len(sequence.token_ids)]))


def to_response(sequence: Sequence, events: list[TokenEvent], started: float) -> GenerateResponse:
    """The answer of a request without streaming: its events, put together."""
    first, last = events[0], events[-1]
    assert first.prefill_time_ms is not None
    assert last.finish_reason is not None
    return GenerateResponse(
        text="".join(event.token for event in events),
        token_ids=sequence.token_ids,
        finish_reason=last.finish_reason,
        prompt_tokens=len(sequence.job.prompt_ids),
        completion_tokens=len(sequence.token_ids),
        prefill_time_ms=first.prefill_time_ms,
        total_time_ms=milliseconds_since(started),
    )
