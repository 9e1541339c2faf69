"""Rung 03: requests that arrive together share each forward pass.

Rung 02 runs the model for one request at a time: two clients each get half the speed. But on the CPU that we
measured, a forward pass for sixteen requests takes only about twice as long as one for a single request:
whatever the number of rows, it reads each weight once and pays once for starting each operation. So requests
are collected and generated together:

- A bounded queue. A request that finds it full is rejected immediately with 503, instead of waiting until
  its client gives up.
- Static batches: a batch starts when it is full, or when its first request has waited long enough. Prompts
  are padded to equal length and prefilled in one forward pass; then each pass decodes a token for every row.
- One thread runs the model. After each pass it wakes the event loop once, with the tokens of all rows.

    request 1   wait│ prefill │ 1 │ 2 │ 3 │ done, its row is still computed │
    request 2    ...│ prefill │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │ 7 │ 8 │ 9 │ 10 │ 11  │
    request 3       ▲      arrives too late: waits for the whole batch ──────▶│ prefill │ 1 │ ...
                    └─ batch starts

    python 03_batching.py --demo
    python 03_batching.py
    curl localhost:5000/steps

What is still wrong: the batch is static. A late request waits for the longest output of the batch before it.
A finished request leaves a wasted row, which the model computes until the batch ends. A failed pass fails the
whole batch. KV cache memory is not bounded either: each row gets as much as the longest request of its batch
may need, and nothing checks whether there is so much.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from fastapi import FastAPI
from torch import Tensor

from ladder import import_rung
from ladder.cli import DemoOptions, ServerConfig, option, whole_number
from ladder.engine.messages import EngineRequest, Failed, Update
from ladder.engine.trace import Kind, Row, Step, Trace
from ladder.errors import QueueFull, RequestFailed, ServerStopping, Unavailable
from ladder.lab.demos import Contender, Show, compare_batching
from ladder.llm.loading import Model
from ladder.llm.sampling import sample, sampling_batch
from ladder.log import log_failure
from ladder.stats import milliseconds_since
from ladder.web.pages import describe
from ladder.web.protocols import StreamingRung
from ladder.web.schema import GenerateRequest, Health, TokenEvent
from ladder.web.sequence import Sequence, Vocabulary
from ladder.web.server import Lifecycle, prepare, serve

rung_02 = import_rung("02_async_streaming", StreamingRung)


@dataclass(frozen=True)
class Config(ServerConfig):
    max_batch: int = option(16, "requests that share a forward pass", whole_number(1))
    max_wait_ms: int = option(10, "how long the first request of a batch waits for others", whole_number(0))
    max_queue: int = option(64, "requests that may wait; more are refused with 503", whole_number(1))


class Frontend:
    """The event loop's side: requests become engine requests, and tokens become text for their clients.

    The engine works in a thread. It reports once per step, for all rows, because waking the event loop takes
    longer than handling a token.
    """

    def __init__(self, vocabulary: Vocabulary, context: int) -> None:
        self.vocabulary = vocabulary
        self.context = context
        self.unfinished: dict[int, Sequence] = {}
        self.inboxes: dict[int, asyncio.Queue[TokenEvent | Exception]] = {}
        self.refusal: Callable[[], Unavailable] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def open(self, request: GenerateRequest) -> Sequence:
        """Accept a request. Its inbox holds at most `max_tokens` events, even if its client reads slowly."""
        if self.refusal:
            raise self.refusal()
        self.loop = asyncio.get_running_loop()
        sequence = Sequence(self.vocabulary, request, self.context)
        self.unfinished[sequence.request.id] = sequence
        self.inboxes[sequence.request.id] = asyncio.Queue()
        return sequence

    async def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]:
        inbox = self.inboxes[sequence.request.id]
        finished = False
        while not finished:
            event = await inbox.get()
            if isinstance(event, Exception):
                raise event
            yield event
            finished = event.finish_reason is not None

    def close(self, sequence: Sequence) -> bool:
        """The client needs no more events. True if the request is unfinished: the engine must stop it."""
        self.inboxes.pop(sequence.request.id, None)
        return self.unfinished.pop(sequence.request.id, None) is not None

    def post(self, update: Update) -> None:
        """`deliver`, called from the engine's thread: wakes the event loop once per step."""
        if self.loop and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.deliver, update)

    def deliver(self, update: Update) -> None:
        """Put each token into the inbox of its request, unless that has been closed since the step began."""
        for token in update.tokens:
            if sequence := self.unfinished.get(token.id):
                self.inboxes[token.id].put_nowait(sequence.append(token))
                if token.finish_reason:
                    del self.unfinished[token.id]
        for failed in update.failures:
            if self.unfinished.pop(failed.id, None):
                self.inboxes[failed.id].put_nowait(RequestFailed(failed.kind, failed.message))

    def refuse(self, reason: Callable[[], Unavailable]) -> None:
        """End every request in flight, and accept no more until `reopen`."""
        self.refusal = reason
        for request_id in self.unfinished:
            self.inboxes[request_id].put_nowait(reason())
        self.unfinished.clear()

    def reopen(self) -> None:
        self.refusal = None


@dataclass(eq=False)
class RequestState:
    """A request in the queue or in the batch."""

    request: EngineRequest
    arrived: float
    token_ids: list[int] = field(default_factory=list)
    active: bool = True  # its client still waits for tokens


class Engine(Lifecycle):
    """Collects requests into batches. Its one thread runs a batch to its end, then the next."""

    def __init__(self, model: Model, config: Config) -> None:
        self.model = model
        self.config = config
        self.frontend = Frontend(model, model.context)
        self.trace = Trace()
        self.tokens = 0
        self.changed = threading.Condition()  # guards the queue and the batch
        self.waiting: deque[RequestState] = deque()
        self.batch: list[RequestState] = []
        self.aborted: set[int] = set()
        self.stopping = False
        threading.Thread(target=self.run, name="model", daemon=True).start()

    def submit(self, request: GenerateRequest) -> Sequence:
        with self.changed:
            if len(self.waiting) >= self.config.max_queue:
                raise QueueFull
            sequence = self.frontend.open(request)
            self.waiting.append(RequestState(sequence.request, arrived=time.perf_counter()))
            self.changed.notify()
        return sequence

    def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]:
        return self.frontend.events(sequence)

    def abort(self, sequence: Sequence) -> None:
        if self.frontend.close(sequence):
            with self.changed:
                self.waiting = deque(one for one in self.waiting if one.request is not sequence.request)
                self.aborted.add(sequence.request.id)

    def stop(self) -> None:
        self.frontend.refuse(ServerStopping)
        with self.changed:
            self.stopping = True
            self.changed.notify()

    def run(self) -> None:
        """The engine's thread: only this one touches the model."""
        while batch := self.next_batch():
            try:
                self.generate(batch)
            except Exception as error:
                log_failure(error)
                self.frontend.post(Update(failures=[Failed.of(state.request.id, error) for state in batch]))
            with self.changed:
                self.batch = []

    def next_batch(self) -> list[RequestState]:
        """Wait until the batch is full, or until its first request has waited long enough."""
        with self.changed:
            while not self.stopping and (timeout := self.batch_timeout()) != 0:
                self.changed.wait(timeout)
            if not self.stopping:
                size = min(len(self.waiting), self.config.max_batch)
                self.batch = [self.waiting.popleft() for _ in range(size)]
            self.aborted.clear()
            return self.batch

    def batch_timeout(self) -> float | None:
        """Seconds until the next batch starts; None while no request waits."""
        if not self.waiting:
            return None
        if len(self.waiting) >= self.config.max_batch:
            return 0
        return max(0, self.waiting[0].arrived + self.config.max_wait_ms / 1000 - time.perf_counter())

    def generate(self, batch: list[RequestState]) -> None:
        """One padded prefill, then one pass per token, for as long as any row is active."""
        decoder = self.model.decoder
        slots = range(len(batch))
        started = time.perf_counter()
        cache = decoder.new_cache(len(batch), max(state.request.size for state in batch))
        logits = decoder.prefill(cache, slots, [state.request.prompt_ids for state in batch])
        self.sample_tokens("prefill", batch, logits, started)
        while not self.stopping and any(state.active for state in batch):
            started = time.perf_counter()
            for slot, state in enumerate(batch):
                if not state.active:
                    # A wasted row is computed too. Stepping back makes it overwrite its last position.
                    cache.lengths[slot] -= 1
            logits = decoder.decode(cache, slots, [state.token_ids[-1] for state in batch])
            self.sample_tokens("decode", batch, logits, started)

    def sample_tokens(self, kind: Kind, batch: list[RequestState], logits: Tensor, started: float) -> None:
        """Sample a token for every row, and deliver those of active rows."""
        settings = sampling_batch(tuple(state.request.settings for state in batch), logits.device)
        token_ids = sample(logits, settings, [len(state.token_ids) for state in batch]).tolist()
        spent = milliseconds_since(started)
        rows = [Row(slot, state.request.id, state.active) for slot, state in enumerate(batch)]
        self.trace.note(kind, spent, rows)
        update = Update(tokens=[])
        for state, token_id in zip(batch, token_ids, strict=True):
            if state.active:
                token = state.request.token(token_id, len(state.token_ids), spent)
                state.token_ids.append(token_id)
                update.tokens.append(token)
                state.active = token.finish_reason is None
        self.tokens += len(update.tokens)
        self.frontend.post(update)
        for state in batch:
            state.active = state.active and state.request.id not in self.aborted

    def health(self) -> Health:
        with self.changed:
            running, waiting = sum(state.active for state in self.batch), len(self.waiting)
        return Health(
            rung="03",
            model=self.model.name,
            running=running,
            waiting=waiting,
            steps=self.trace.count,
            tokens=self.tokens,
            pid=os.getpid(),
        )


def create_app(engine: Engine) -> FastAPI:
    """Rung 02's web side, unchanged, and a page about the last forward passes."""
    app = rung_02.create_app(engine, describe(__file__, __doc__))
    add_steps_page(app, engine.trace)
    return app


def add_steps_page(app: FastAPI, trace: Trace) -> None:
    @app.get("/steps")
    async def steps() -> list[Step]:
        """The last forward passes: how long each took, and which requests had which slots in it."""
        return trace.steps()


def demo(config: Config, options: DemoOptions) -> None:
    """More and more clients at rung 02 and at this one; then what a static batch costs."""
    unbatched = Contender("02_async_streaming.py", ServerConfig)
    compare_batching(Show(__doc__, config, options), unbatched, Contender("03_batching.py", Config))


def start(config: Config) -> None:
    model, listener = prepare(config)
    engine = Engine(model, config)
    serve(create_app(engine), listener, engine)


def main() -> None:
    run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
