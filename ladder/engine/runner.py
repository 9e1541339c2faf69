"""Runs one step of an engine whose requests have slots. Which step comes next is the scheduler's business."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ladder.engine.messages import Job
from ladder.engine.trace import Row, Trace
from ladder.llm.decoder import Decoder
from ladder.llm.sampling import sample, sampling_batch
from ladder.log import log_failure
from ladder.stats import milliseconds_since


@dataclass(eq=False)
class Work:
    """A job on its way through the engine."""

    job: Job
    slot: int = -1  # none while it waits
    read: int = 0  # tokens of the prompt that are in the cache
    token_ids: list[int] = field(default_factory=list)
    milliseconds: float = 0.0  # spent on its next token so far

    @property
    def unread(self) -> int:
        return len(self.job.prompt_ids) - self.read


@dataclass(frozen=True)
class Step:
    """One forward pass: a piece of each one's prompt, or without `pieces` the next token of each.

    For the sake of adjacent slots, the next-token kind may have rows whose prompt is not read yet. They are
    computed for nobody.
    """

    works: Sequence[Work]
    pieces: Sequence[list[int]] = ()


Outcome = int | Exception | None
"""A token; or why there is none and never will be; or None, because the prompt is not all read yet."""


class Runner:
    """The model and its KV cache. Only one thread may be in here, and not while slots are moved."""

    def __init__(self, decoder: Decoder, tokens: int) -> None:
        """With memory for so many tokens' keys and values, which `resize` cuts into slots."""
        self.decoder = decoder
        self.cache = decoder.new_cache(slots=1, context=tokens)
        self.trace = Trace()

    def resize(self, slots: int, slot_size: int) -> None:
        if slot_size != self.cache.context:
            self.cache.reshape(slots, slot_size)

    def vacate(self, slot: int, last: int) -> None:
        """Empty a slot, and move what the last one holds into it."""
        self.cache.reset(slot)
        self.cache.move(last, slot)

    def clear(self) -> None:
        for slot in self.cache.occupied():
            self.cache.reset(slot)

    def execute(self, step: Step) -> tuple[list[Outcome], float]:
        """What the forward pass brings for each of the step's works, and how many milliseconds it took."""
        started = time.perf_counter()
        return self._outcomes(step), milliseconds_since(started)

    def _outcomes(self, step: Step) -> list[Outcome]:
        lengths = list(self.cache.lengths)
        try:
            return self._tokens(step)
        except Exception as error:
            self.cache.lengths = lengths  # what the pass has written is written again
            if len(step.works) == 1:
                log_failure(error)
                return [error]
            # One of them is to blame, and only alone does it show which.
            pieces = step.pieces or [[]] * len(step.works)
            alone = [
                Step([work], [piece] if piece else []) for work, piece in zip(step.works, pieces, strict=True)
            ]
            return [outcome for one in alone for outcome in self._outcomes(one)]

    def _tokens(self, step: Step) -> list[Outcome]:
        started = time.perf_counter()
        works, slots = step.works, [work.slot for work in step.works]
        if step.pieces:
            logits = self.decoder.prefill(self.cache, slots, step.pieces)
            unfinished = [work.unread > len(piece) for work, piece in zip(works, step.pieces, strict=True)]
        else:
            last = [work.token_ids[-1] if work.token_ids else 0 for work in works]
            logits = self.decoder.decode(self.cache, slots, last)
            unfinished = [work.unread > 0 for work in works]
            for work in works:
                # Stepping back makes the next piece of the prompt write over what this has written.
                self.cache.lengths[work.slot] -= work.unread > 0
        settings = sampling_batch(tuple(work.job.settings for work in works), logits.device)
        tokens = sample(logits, settings, [len(work.token_ids) for work in works]).tolist()
        rows = [Row(work.slot, work.job.id, bool(step.pieces) or not work.unread) for work in works]
        self.trace.note("prefill" if step.pieces else "decode", milliseconds_since(started), rows)
        return [None if more else token for token, more in zip(tokens, unfinished, strict=True)]
