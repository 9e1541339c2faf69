"""Runs the forward passes of an engine whose requests have slots of one KV cache.

Which pass comes next is the scheduler's decision, in rung 04.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from ladder.cli import EngineConfig
from ladder.engine.messages import EngineRequest
from ladder.engine.trace import Kind, Row, Trace
from ladder.errors import UserError
from ladder.llm.decoder import Decoder
from ladder.llm.sampling import sample, sampling_batch
from ladder.stats import milliseconds_since


class RowInput(NamedTuple):
    """One request's part of a forward pass."""

    request: EngineRequest
    slot: int
    new_tokens: list[int]  # a chunk of its prompt, or its last token
    generated: int  # tokens of its output so far
    wasted: bool = False  # computed only because its slot lies between those of other rows


class ForwardPass(NamedTuple):
    """What the next step is to compute."""

    kind: Kind
    rows: list[RowInput]


class Slots:
    """How the memory of a KV cache is cut into slots: each as long as the longest request needs."""

    SMALLEST = 128

    def __init__(self, tokens: int, context: int) -> None:
        self.tokens = tokens  # the memory, in tokens
        self.context = context  # the longest request, in tokens
        self.size = min(self.SMALLEST, context)

    @classmethod
    def within(cls, config: EngineConfig, decoder: Decoder, context: int) -> Slots:
        """The memory that `--kv-memory` allows, and never more than full batches need."""
        context = min(context, config.max_context or context)
        tokens = min(decoder.tokens_in(config.kv_memory * 2**20), config.max_batch * context)
        if tokens < 2:
            raise UserError(f"--kv-memory {config.kv_memory}: so many MiB do not hold two tokens")
        return cls(tokens, min(context, tokens))

    @property
    def count(self) -> int:
        return self.tokens // self.size

    def make_room(self, sizes: Sequence[int]) -> bool:
        """Cut slots for requests of these sizes, or return False if they do not fit together."""
        needed = max(self._rounded(size) for size in sizes)
        if needed * len(sizes) > self.tokens:
            return False
        if needed > self.size or len(sizes) > self.count:
            self.size = needed
        return True

    def _rounded(self, size: int) -> int:
        return min(max(self.SMALLEST, 1 << (size - 1).bit_length()), self.context)


class Runner:
    """The model and its KV cache. Only one thread may call it, and slots move only between two passes."""

    def __init__(self, decoder: Decoder, tokens: int) -> None:
        """Allocate KV cache memory for so many tokens, which `resize` cuts into slots."""
        self.decoder = decoder
        self.cache = decoder.new_cache(slots=1, context=tokens)
        self.trace = Trace()

    def resize(self, slots: Slots) -> None:
        if slots.size != self.cache.context:
            self.cache.reshape(slots.count, slots.size)

    def free_slot(self, slot: int, last: int) -> None:
        """Empty a slot, and move the content of the last one into it."""
        self.cache.reset(slot)
        self.cache.move(last, slot)

    def free_all(self) -> None:
        for slot in self.cache.occupied():
            self.cache.reset(slot)

    def forward(self, step: ForwardPass) -> list[int]:
        """Run the pass and sample a token for each row. If it fails, the cache is as before."""
        started = time.perf_counter()
        lengths = list(self.cache.lengths)
        try:
            token_ids = self._sampled(step.kind, step.rows)
        except Exception:
            self.cache.lengths = lengths  # the next pass overwrites what this one has written
            raise
        traced = [Row(row.slot, row.request.id, not row.wasted) for row in step.rows]
        self.trace.note(step.kind, milliseconds_since(started), traced)
        return token_ids

    def _sampled(self, kind: Kind, rows: Sequence[RowInput]) -> list[int]:
        slots = [row.slot for row in rows]
        if kind == "prefill":
            logits = self.decoder.prefill(self.cache, slots, [row.new_tokens for row in rows])
        else:
            logits = self.decoder.decode(self.cache, slots, [row.new_tokens[0] for row in rows])
            for row in rows:
                # Stepping back makes the next chunk of the prompt overwrite what a wasted row has written.
                self.cache.lengths[row.slot] -= row.wasted
        settings = sampling_batch(tuple(row.request.settings for row in rows), logits.device)
        token_ids: list[int] = sample(logits, settings, [row.generated for row in rows]).tolist()
        return token_ids
