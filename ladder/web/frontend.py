"""The web side of an engine that speaks in jobs and tokens: requests become jobs, tokens become text.

It lives in the event loop. The engine works in a thread (rungs 03 and 04) or in another process (rung 05),
and reports once a step for all of its rows, because waking the event loop costs more than a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from tokenizers import Tokenizer as Backend

from ladder.engine.messages import Ready, Update
from ladder.errors import RequestFailed, Unavailable
from ladder.llm.text import Tokenizer
from ladder.web.schema import GenerateRequest, TokenEvent
from ladder.web.sequence import Sequence, Vocabulary


@dataclass(frozen=True)
class Words:
    """The `Vocabulary` of a model that is loaded elsewhere."""

    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    context: int


def vocabulary_of(ready: Ready) -> Words:
    return Words(Tokenizer(Backend.from_str(ready.tokenizer)), ready.stop_ids, ready.context)


Inbox = asyncio.Queue[TokenEvent | Exception]


class Frontend:
    """Keeps the requests that are under way, and gives each the tokens that are meant for it."""

    def __init__(self, vocabulary: Vocabulary, context: int) -> None:
        self.vocabulary = vocabulary
        self.context = context
        self.unfinished: dict[int, Sequence] = {}
        self._inboxes: dict[int, Inbox] = {}
        self._refusal: Callable[[], Unavailable] | None = None

    def open(self, request: GenerateRequest) -> Sequence:
        """Take a request; its `job` is for the engine."""
        if self._refusal:
            raise self._refusal()
        self._loop = asyncio.get_running_loop()
        sequence = Sequence(self.vocabulary, request, self.context)
        self.unfinished[sequence.job.id] = sequence
        # Holds no more than the request's max_tokens, so that a client who reads slowly can do no harm.
        self._inboxes[sequence.job.id] = Inbox()
        return sequence

    async def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]:
        inbox = self._inboxes[sequence.job.id]
        finished = False
        while not finished:
            event = await inbox.get()
            if isinstance(event, Exception):
                raise event
            yield event
            finished = event.finish_reason is not None

    def close(self, sequence: Sequence) -> bool:
        """Nobody waits for this request any more; says whether the engine is still to be told."""
        self._inboxes.pop(sequence.job.id, None)
        return self.unfinished.pop(sequence.job.id, None) is not None

    def post(self, update: Update) -> None:
        """`deliver`, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.deliver, update)

    def deliver(self, update: Update) -> None:
        """Tokens of requests that have been closed meanwhile are for nobody."""
        for token in update.tokens:
            if sequence := self.unfinished.get(token.id):
                event = sequence.append(token.token_id, token.milliseconds)
                self._inboxes[token.id].put_nowait(event)
                if event.finish_reason:
                    del self.unfinished[token.id]
        for failed in update.failures:
            if self.unfinished.pop(failed.id, None):
                self._inboxes[failed.id].put_nowait(RequestFailed(failed.kind, failed.message))

    def refuse(self, reason: Callable[[], Unavailable]) -> None:
        """End every request under way, and take no more until `reopen`."""
        self._refusal = reason
        for number in self.unfinished:
            self._inboxes[number].put_nowait(reason())
        self.unfinished.clear()

    def reopen(self) -> None:
        self._refusal = None
