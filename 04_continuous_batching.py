"""Rung 04: requests join and leave the batch at every step.

Rung 03 closes a batch and runs it to its end: late requests wait, finished ones are computed on. But
nothing ties the rows of a pass together. Each has its own slot of the KV cache, so a step may take others:

    slot    step 1    2    3    4    5    6    7    8
      0     │ AAA │  a │  a │    │  a │  a │  a │  a │       AAA  a piece of a prompt: prefill
      1     │ BB  │  b │  b │    │  b │  c │  c │  c │       a    one token: decode
      2     │     │    │    │ CC │  c │    │    │    │
                                 └─ C came late and joins; B ends, and C moves up into its slot

- Two queues: `waiting`, in order of arrival, and `running`, where a request's place is its slot. The slots
  in use stay the first ones, so that a step reads one block of memory.
- Whoever is first is admitted when a slot and its memory are free. Nobody overtakes, so nobody starves.
- A step is one forward pass: a token for everyone, or pieces of prompts, in turns. Long prompts are read in
  pieces, so that nobody's tokens stop. Rows of a pass that breaks are run alone, and only the guilty fail.

    python 04_continuous_batching.py --demo
    python 04_continuous_batching.py
    curl localhost:5000/steps

What is still wrong: engine and web server share one process, hence one GIL, and wait for each other.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line  # before all else: it says why

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator

from fastapi import FastAPI
from msgspec.structs import asdict

from ladder import import_rung
from ladder.cli import DemoOptions, parse
from ladder.cli import EngineConfig as Config
from ladder.engine import trace
from ladder.engine.messages import Abort, Failed, Job, Status, Token, Update
from ladder.engine.runner import Outcome, Runner, Step, Work
from ladder.errors import QueueFull, ServerStopping, UserError
from ladder.lab import plots, scenes
from ladder.lab import show as demos
from ladder.llm.loading import Model
from ladder.log import log_failure
from ladder.web.frontend import Frontend
from ladder.web.pages import describe
from ladder.web.schema import GenerateRequest, SlotHealth, TokenEvent
from ladder.web.sequence import Sequence
from ladder.web.server import prepare, serve_asgi

rung_02 = import_rung("02_async_streaming")


class Scheduler:
    """Two queues and three verbs: `admit`, `schedule`, `remove`. It knows nothing of tensors."""

    SMALLEST_SLOT = 128

    def __init__(self, max_batch: int, context: int, kv_tokens: int, prefill_chunk: int) -> None:
        self.max_batch = max_batch
        self.context = context  # no request is longer
        self.kv_tokens = kv_tokens  # what the memory for keys and values has room for
        self.prefill_chunk = prefill_chunk
        self.waiting: deque[Work] = deque()
        self.running: list[Work] = []  # the index is the slot
        self.slot_size = min(self.SMALLEST_SLOT, context)
        self.read_last = False

    def admit(self) -> None:
        """While there is room: slots are as long as the longest request needs, and as many as then fit."""
        while self.waiting and len(self.running) < self.max_batch:
            work = self.waiting[0]
            needed = max(self.size_for(one) for one in [*self.running, work])
            if needed * (len(self.running) + 1) > self.kv_tokens:
                return
            if needed > self.slot_size or len(self.running) == self.slots:
                self.slot_size = needed
            work.slot = len(self.running)
            self.running.append(work)
            self.waiting.popleft()

    def size_for(self, work: Work) -> int:
        return min(max(self.SMALLEST_SLOT, 1 << (work.job.size - 1).bit_length()), self.context)

    @property
    def slots(self) -> int:
        return self.kv_tokens // self.slot_size

    def schedule(self) -> Step | None:
        self.admit()
        reading = sorted((work for work in self.running if work.unread), key=lambda work: work.job.id)
        writing = [work.slot for work in self.running if not work.unread]
        self.read_last = bool(reading) and not (writing and self.read_last)
        if self.read_last:
            return self.read_prompts(reading)
        return Step(self.running[: writing[-1] + 1]) if writing else None

    def read_prompts(self, reading: list[Work]) -> Step:
        """From the oldest on, as many as make a rectangle of at most `prefill_chunk` tokens."""
        works, width = list[Work](), 0
        for work in reading:
            wider = max(width, min(work.unread, self.prefill_chunk))
            if works and wider * (len(works) + 1) > self.prefill_chunk:
                break
            works.append(work)
            width = wider
        return Step(works, [work.job.prompt_ids[work.read : work.read + width] for work in works])

    def remove(self, work: Work) -> int | None:
        """Take out a request. The last one moves into its slot; returned is the slot that it had."""
        if work.slot < 0:
            self.waiting.remove(work)
            return None
        last = self.running.pop()
        source, last.slot = last.slot, work.slot
        if last is not work:
            self.running[work.slot] = last
        return source


class EngineCore:
    """The engine without a web side: jobs in, tokens out."""

    def __init__(self, model: Model, config: Config) -> None:
        context = min(model.context, config.max_context or model.context)
        kv_tokens = min(model.decoder.tokens_in(config.kv_memory * 2**20), config.max_batch * context)
        self.context = min(context, kv_tokens)
        if self.context < 2:
            raise UserError(f"--kv-memory {config.kv_memory}: in so many MiB not two tokens have room")
        self.scheduler = Scheduler(config.max_batch, self.context, kv_tokens, config.prefill_chunk)
        self.runner = Runner(model.decoder, kv_tokens)
        self.works: dict[int, Work] = {}
        self.dropped: list[int] = []
        self.tokens = 0

    def handle(self, command: Job | Abort) -> None:
        """Between two steps, never in one."""
        if isinstance(command, Job):
            work = self.works[command.id] = Work(command)
            self.scheduler.waiting.append(work)
        else:
            if command.id in self.works:
                self.drop(self.works[command.id])
            self.dropped.append(command.id)

    def step(self) -> Update | None:
        """What an engine does, over and over. None if there was nothing to do."""
        step = self.scheduler.schedule()
        self.runner.resize(self.scheduler.slots, self.scheduler.slot_size)
        if step:
            return self.update(step, *self.runner.execute(step))
        return self.update(Step([]), [], 0) if self.dropped else None

    def update(self, step: Step, outcomes: list[Outcome], milliseconds: float) -> Update:
        """Note what the step has brought, let go of those that are done, and report."""
        tokens, failures = [], []
        for work, piece in zip(step.works, step.pieces, strict=False):
            work.read += len(piece)
        for work, outcome in zip(step.works, outcomes, strict=True):
            if step.pieces or not work.unread:  # else it took part for nobody
                work.milliseconds += milliseconds
            if isinstance(outcome, Exception):
                failures.append(Failed(work.job.id, type(outcome).__name__, str(outcome)))
                self.drop(work)
            elif outcome is not None:
                work.token_ids.append(outcome)
                tokens.append(Token(work.job.id, outcome, round(work.milliseconds, 3)))
                work.milliseconds = 0
                if work.job.finish_reason(work.token_ids):
                    self.drop(work)
        self.tokens += len(tokens)
        dropped, self.dropped = self.dropped, []
        return Update(tokens, failures, dropped, self.status())

    def drop(self, work: Work) -> None:
        del self.works[work.job.id]
        if (last := self.scheduler.remove(work)) is not None:
            self.runner.vacate(work.slot, last)

    def give_up(self, error: Exception) -> Update:
        """Fail all that is under way or waits, and begin again with nothing."""
        failures = [Failed(number, type(error).__name__, str(error)) for number in self.works]
        for held in (self.works, self.scheduler.waiting, self.scheduler.running):
            held.clear()
        self.runner.clear()
        return Update(failures=failures, status=self.status())

    def status(self) -> Status:
        scheduler, steps = self.scheduler, self.runner.trace.count
        waiting, running = len(scheduler.waiting), list(scheduler.running)
        prefilling = sum(work.unread > 0 for work in running)
        slots = min(scheduler.max_batch, scheduler.slots)
        return Status(len(running), waiting, steps, self.tokens, prefilling, slots, scheduler.slot_size)


class Engine:
    """The core in a thread of its own, between two steps open to whoever comes or goes."""

    def __init__(self, model: Model, config: Config) -> None:
        self.model = model
        self.core = EngineCore(model, config)
        self.frontend = Frontend(model, self.core.context)
        self.most = config.max_batch + config.max_queue
        self.inbox: deque[Job | Abort] = deque()
        self.changed = threading.Condition()
        self.stopping = False
        threading.Thread(target=self.run, name="model", daemon=True).start()

    def submit(self, request: GenerateRequest) -> Sequence:
        if len(self.frontend.unfinished) >= self.most:
            raise QueueFull
        sequence = self.frontend.open(request)
        self.tell(sequence.job)
        return sequence

    def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]:
        return self.frontend.events(sequence)

    def abort(self, sequence: Sequence) -> None:
        if self.frontend.close(sequence):
            self.tell(Abort(sequence.job.id))

    def tell(self, command: Job | Abort) -> None:
        with self.changed:
            self.inbox.append(command)
            self.changed.notify()

    def run(self) -> None:
        while not self.stopping:
            with self.changed:
                self.changed.wait_for(lambda: self.inbox or self.core.works or self.stopping)
            while self.inbox:
                self.core.handle(self.inbox[0])
                self.inbox.popleft()  # only now: /health must find every request somewhere
            try:
                update = self.core.step()
            except Exception as error:  # of the scheduling, not of a pass: nobody may be left waiting
                log_failure(error)
                update = self.core.give_up(error)
            if update:
                self.frontend.post(update)

    def stop(self) -> None:
        self.frontend.refuse(ServerStopping)
        self.stopping = True
        with self.changed:
            self.changed.notify()

    def health(self) -> SlotHealth:
        not_yet_taken, figures = len(self.inbox), asdict(self.core.status())
        figures["waiting"] += not_yet_taken
        return SlotHealth(rung="04", model=self.model.name, pid=os.getpid(), **figures)


def create_app(engine: Engine) -> FastAPI:
    """Rung 02's web side, unchanged, and rung 03's page of the last steps."""
    app: FastAPI = rung_02.create_app(engine, describe(__file__, __doc__))
    trace.add_steps_page(app, engine.core.runner.trace)
    return app


def demo(config: Config, options: DemoOptions) -> None:
    """The same arrivals at rung 03 and at this one; then a long prompt among streams."""
    show = demos.Show("Rung 04: requests join and leave the batch at every step", config, options)
    flags, this = config.flags(), "04_continuous_batching.py"
    commands = (("03_batching.py", flags), (this, flags), (this, [*flags, "--prefill-chunk", "100000"]))
    with show.starting(*commands) as urls:
        asyncio.run(compare(show, dict(zip(("03", "04", "04, prompts whole"), urls, strict=True))))


async def compare(show: demos.Show, servers: dict[str, str]) -> None:
    await demos.warm_up_all(show, servers)
    seen = await demos.watch_arrivals(show, {name: servers[name] for name in ("03", "04")})
    show.timelines(steps := {name: scene.steps for name, scene in seen.items()})
    figures = {name: scenes.scene_figures(scene) for name, scene in seen.items()}
    gaps = {}
    for name in ("04", "04, prompts whole"):
        with show.busy(f"{name}: a long prompt beside a stream"):
            gaps[name] = await scenes.gaps_beside_a_long_prompt(servers[name])
        figures.setdefault(name, {})["worst_gap_ms"] = 1000 * max(gap for _, gap in gaps[name])
    rows = scenes.SCENE_ROWS | {"worst_gap_ms": "worst gap between tokens, long prompt beside"}
    show.conclude(rows, figures, 1, lambda file: plots.plot_slots(file, show.title, steps, gaps))


def main() -> None:
    config, options = parse(Config, __doc__)
    with errors_in_one_line("04_continuous_batching.py"):
        if options:
            demo(config, options)
        else:
            model, listener = prepare(config)
            engine = Engine(model, config)
            serve_asgi(create_app(engine), listener, engine.stop)


if __name__ == "__main__":
    main()
