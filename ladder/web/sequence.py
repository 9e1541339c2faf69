"""One request on the web side, from prompt to text: its tokens, its settings, and the events of its client.

There is one `Sequence` per request, and the web side keeps nothing else about it, so that two requests can
never mix.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from tokenizers import Tokenizer as Backend
from torch import Tensor

from ladder import FinishReason
from ladder.engine.messages import EngineRequest, Ready, Token
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


@dataclass(frozen=True)
class RemoteVocabulary:
    """The `Vocabulary` of a model that is loaded in another process."""

    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    context: int

    @classmethod
    def of(cls, ready: Ready) -> RemoteVocabulary:
        return cls(Tokenizer(Backend.from_str(ready.tokenizer)), ready.stop_ids, ready.context)


numbers = count(1)
"""Requests are numbered in the order in which they arrive."""


class Sequence:
    """Takes the tokens of an engine and returns the events that the client sees."""

    def __init__(self, model: Vocabulary, request: GenerateRequest, context: int | None = None) -> None:
        """Tokenize the prompt and check that it fits the model, or a smaller `context`."""
        seed = secrets.randbits(64) if request.seed is None else request.seed % 2**64
        self.request = EngineRequest(
            id=next(numbers),
            prompt_ids=encode_prompt(model, request, context or model.context),
            max_tokens=request.max_tokens,
            settings=SamplingSettings(request.temperature, request.top_p, seed),
            stop_ids=model.stop_ids,
        )
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._detokenizer = model.tokenizer.detokenizer()

    def append(self, token: Token) -> TokenEvent:
        """Take the token that the engine has sampled; return what the client is to see of it."""
        first = not self.token_ids
        self.token_ids.append(token.token_id)
        self.finish_reason = token.finish_reason
        text = "" if token.finish_reason == "stop" else self._detokenizer.push(token.token_id)
        if token.finish_reason:
            text += self._detokenizer.flush()
        return TokenEvent(
            token=text,
            token_id=token.token_id,
            prefill_time_ms=token.milliseconds if first else None,
            step_ms=None if first else token.milliseconds,
            finish_reason=token.finish_reason,
        )


def encode_prompt(model: Vocabulary, request: GenerateRequest, context: int) -> list[int]:
    room = context - request.max_tokens
    if room < 1:
        raise RequestError(
            "max_tokens", f"max_tokens must leave room for a prompt in this server's context of {context}"
        )
    # A text this long cannot fit, whatever its tokens are: do not spend time on tokenizing it.
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


def sample_one(sequence: Sequence, logits: Tensor, started: float) -> Token:
    """The next token of a request that has the forward pass to itself; `logits` is [1, vocabulary]."""
    request, position = sequence.request, len(sequence.token_ids)
    token_id = int(sample(logits, SamplingBatch([request.settings]), [position]))
    return request.token(token_id, position, milliseconds_since(started))


def to_response(sequence: Sequence, events: list[TokenEvent], started: float) -> GenerateResponse:
    """The response of a request without streaming: its events, put together."""
    first, last = events[0], events[-1]
    assert first.prefill_time_ms is not None
    assert last.finish_reason is not None
    return GenerateResponse(
        text="".join(event.token for event in events),
        token_ids=sequence.token_ids,
        finish_reason=last.finish_reason,
        prompt_tokens=len(sequence.request.prompt_ids),
        completion_tokens=len(sequence.token_ids),
        prefill_time_ms=first.prefill_time_ms,
        total_time_ms=milliseconds_since(started),
    )
