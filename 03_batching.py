"""Rung 03: requests that arrive together share each forward pass.

Rung 02 runs the model for one request at a time: two clients get half the speed each. But a forward pass
spends most of its time on reading the weights, and weights that have been read serve other rows as well:
sixteen take about twice the time of one on the CPU that we measured. So requests are collected and generated
together:

- A bounded queue. What does not fit is refused at once with 503, instead of being kept until its client has
  lost patience.
- A batch is closed when it is full, or when its first request has waited long enough. Its prompts are
  padded to one rectangle and read in one forward pass; then each pass gives every row its next token.
- One thread runs the model. After each pass it wakes the event loop once, with the tokens of all rows.

    request 1   wait│ prefill │ 1 │ 2 │ 3 │ done, but its row is computed on │
    request 2    ...│ prefill │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │ 7 │ 8 │ 9 │ 10 │ 11  │
    request 3       ▲      arrived too late: waits for the whole batch ──────▶│ prefill │ 1 │ ...
                    └─ batch closed

    python 03_batching.py --demo
    python 03_batching.py
    curl localhost:5000/steps

What is still wrong: a batch, once closed, stays closed. Who comes a moment later waits for the longest
answer in it; a short answer holds its row to the end, and the model works on for nobody; and whatever
breaks a pass breaks it for the whole batch. Nor has the memory for keys and values a bound: each row gets as
much as the longest request of its batch may need, and nobody asks whether there is so much.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line  # before all else: it says why

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from fastapi import FastAPI
from torch import Tensor

from ladder import import_rung
from ladder.cli import DemoOptions, ServerConfig, option, parse, whole_number
from ladder.engine import trace
from ladder.engine.messages import Failed, Job, Token, Update
from ladder.errors import QueueFull, ServerStopping
from ladder.lab import plots, scenes
from ladder.lab import show as demos
from ladder.llm.loading import Model
from ladder.llm.sampling import sample, sampling_batch
from ladder.log import log_failure
from ladder.stats import milliseconds_since
from ladder.web.frontend import Frontend
from ladder.web.pages import describe
from ladder.web.schema import GenerateRequest, Health, TokenEvent
from ladder.web.sequence import Sequence
from ladder.web.server import prepare, serve_asgi

rung_02 = import_rung("02_async_streaming")


@dataclass(frozen=True)
class Config(ServerConfig):
    max_batch: int = option(16, "requests that share a forward pass", whole_number(1))
    max_wait_ms: int = option(10, "how long the first request of a batch waits for others", whole_number(0))
    max_queue: int = option(64, "requests that may wait; more are refused with 503", whole_number(1))


@dataclass(eq=False)
class Row:
    """A job in a batch."""

    job: Job
    arrived: float
    token_ids: list[int] = field(default_factory=list)
    wanted: bool = True  # somebody still waits for its tokens


class Engine:
    """Collects requests into batches; its one thread runs a batch to its end, then the next."""

    def __init__(self, model: Model, config: Config) -> None:
        self.model = model
        self.config = config
        self.frontend = Frontend(model, model.context)
        self.trace = trace.Trace()
        self.tokens = 0
        self.changed = threading.Condition()  # guards the queue and the batch
        self.waiting: deque[Row] = deque()
        self.batch: list[Row] = []
        self.gone: set[int] = set()
        self.stopping = False
        threading.Thread(target=self.run, name="model", daemon=True).start()

    def submit(self, request: GenerateRequest) -> Sequence:
        with self.changed:
            if len(self.waiting) >= self.config.max_queue:
                raise QueueFull
            sequence = self.frontend.open(request)
            self.waiting.append(Row(sequence.job, arrived=time.perf_counter()))
            self.changed.notify()
        return sequence

    def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]:
        return self.frontend.events(sequence)

    def abort(self, sequence: Sequence) -> None:
        if self.frontend.close(sequence):
            with self.changed:
                self.waiting = deque(row for row in self.waiting if row.job is not sequence.job)
                self.gone.add(sequence.job.id)

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
                failures = [Failed(row.job.id, type(error).__name__, str(error)) for row in batch]
                self.frontend.post(Update(failures=failures))
            with self.changed:
                self.batch = []

    def next_batch(self) -> list[Row]:
        """Wait for a first request, then for more, until the batch is full or the first has waited enough."""
        with self.changed:
            while not self.stopping and (patience := self.patience()) != 0:
                self.changed.wait(patience)
            if not self.stopping:
                size = min(len(self.waiting), self.config.max_batch)
                self.batch = [self.waiting.popleft() for _ in range(size)]
            self.gone.clear()
            return self.batch

    def patience(self) -> float | None:
        """Seconds until the batch that is forming closes; None while nobody waits."""
        if not self.waiting:
            return None
        if len(self.waiting) >= self.config.max_batch:
            return 0
        return max(0, self.waiting[0].arrived + self.config.max_wait_ms / 1000 - time.perf_counter())

    def generate(self, batch: list[Row]) -> None:
        """One padded prefill, then one pass a token, for as long as any row is wanted."""
        decoder = self.model.decoder
        slots = range(len(batch))
        started = time.perf_counter()
        cache = decoder.new_cache(len(batch), max(row.job.size for row in batch))
        logits = decoder.prefill(cache, slots, [row.job.prompt_ids for row in batch])
        self.take_tokens("prefill", batch, logits, started)
        while not self.stopping and any(row.wanted for row in batch):
            started = time.perf_counter()
            for slot, row in enumerate(batch):
                if not row.wanted:
                    # It is computed all the same. Stepping back makes it write the same place again.
                    cache.lengths[slot] -= 1
            logits = decoder.decode(cache, slots, [row.token_ids[-1] for row in batch])
            self.take_tokens("decode", batch, logits, started)

    def take_tokens(self, kind: trace.Kind, batch: list[Row], logits: Tensor, started: float) -> None:
        """Sample a token for every row, and hand over those that somebody waits for."""
        settings = sampling_batch(tuple(row.job.settings for row in batch), logits.device)
        token_ids = sample(logits, settings, [len(row.token_ids) for row in batch]).tolist()
        spent = milliseconds_since(started)
        self.trace.note(
            kind, spent, [trace.Row(slot, row.job.id, row.wanted) for slot, row in enumerate(batch)]
        )
        tokens = []
        for row, token_id in zip(batch, token_ids, strict=True):
            if row.wanted:
                row.token_ids.append(token_id)
                tokens.append(Token(row.job.id, token_id, spent))
        self.tokens += len(tokens)
        self.frontend.post(Update(tokens=tokens))
        for row in batch:
            ended = row.job.finish_reason(row.token_ids) is not None
            row.wanted = row.wanted and not ended and row.job.id not in self.gone

    def health(self) -> Health:
        with self.changed:
            running, waiting = sum(row.wanted for row in self.batch), len(self.waiting)
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
    """Rung 02's web side, unchanged, and one more page: what the last forward passes were for."""
    app: FastAPI = rung_02.create_app(engine, describe(__file__, __doc__))
    trace.add_steps_page(app, engine.trace)
    return app


def demo(config: Config, options: DemoOptions) -> None:
    """More and more clients at rung 02 and at this one; then who pays for it."""
    show = demos.Show("Rung 03: requests that arrive together share each forward pass", config, options)
    rungs = [(script, config.flags()) for script in ("02_async_streaming.py", "03_batching.py")]
    with show.starting(*rungs) as urls:
        asyncio.run(compare(show, dict(zip(("02", "03"), urls, strict=True))))


async def compare(show: demos.Show, servers: dict[str, str]) -> None:
    crowd = [scenes.STREAM] * 4
    seen = await demos.watch(show, {name: (url, crowd) for name, url in servers.items()})
    figures = {name: scenes.latency_figures(observations) for name, observations in seen.items()}
    rows = {"first_token_ms": "first token, 4 clients", "complete_ms": "complete text, 4 clients"}
    for clients in (1, 4, 8, 16):
        rows[f"tokens_per_second_{clients}"] = f"tokens/s, clients at once: {clients}"
        with show.busy(f"clients at once: {clients}"):
            speeds = await scenes.throughput(servers, [scenes.SHORT] * clients)
        for name, speed in speeds.items():
            figures[name][f"tokens_per_second_{clients}"] = speed
    for name, url in servers.items():
        with show.busy(f"{name}: a short question, just after a long story has begun"):
            figures[name] |= await scenes.late_figures(url)
    with show.busy("03: seven short answers in a batch with a long one"):
        figures["03"]["wasted_percent"] = await scenes.waste(servers["03"])
    rows |= scenes.LATE_ROWS | {"wasted_percent": "row-steps computed for nobody, mixed lengths"}
    show.conclude(rows, figures, *plots.of_latency(show.title, seen))


def main() -> None:
    config, options = parse(Config, __doc__)
    with errors_in_one_line("03_batching.py"):
        if options:
            demo(config, options)
        else:
            model, listener = prepare(config)
            engine = Engine(model, config)
            serve_asgi(create_app(engine), listener, engine.stop)


if __name__ == "__main__":
    main()
