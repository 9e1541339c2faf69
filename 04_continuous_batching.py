"""Rung 04: requests join and leave the batch at every step.

Rung 03 runs a static batch to its end: late requests wait, and finished ones leave wasted rows. But nothing
ties the rows of a pass together. Each has its own slot of the KV cache, so each step may have other rows:

    slot    step 1    2    3    4    5    6    7    8
      0     │ AAA │  a │  a │    │  a │  a │  a │  a │       AAA  a chunk of a prompt: prefill
      1     │ BB  │  b │  b │    │  b │  c │  c │  c │       a    one token: decode
      2     │     │    │    │ CC │  c │    │    │    │
                                 └─ C arrives late and joins; B ends, and C moves into its slot

- Two queues: `waiting`, in order of arrival, and `running`, where a request's place is its slot. The slots in
  use stay adjacent, so that a step reads one block of memory.
- Admission is first come, first served: a request needs a free slot, and KV cache room for its longest
  possible text (prompt + max_tokens). So no request starves, and none is preempted (paused to free memory).
- A step is one forward pass: one token for each request, or chunks of prompts, in turns. Long prompts are
  prefilled in chunks, so that other requests do not stall.
- If a pass fails, its rows run again one by one; only the failing request gets an error.

    python 04_continuous_batching.py --demo
    python 04_continuous_batching.py
    curl localhost:5000/steps

What is still wrong: the engine shares a process with the web server. When one crashes, so does the other.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from fastapi import FastAPI
from msgspec.structs import asdict

from ladder import import_rung
from ladder.cli import DemoOptions, EngineConfig as Config
from ladder.engine.messages import Abort, Command, EngineRequest, Failed, Inbox, Status, Token, Update
from ladder.engine.runner import ForwardPass, RowInput, Runner, Slots
from ladder.errors import QueueFull, ServerStopping
from ladder.lab.demos import Contender, Show, compare_arrivals
from ladder.llm.loading import Model
from ladder.log import log_failure
from ladder.stats import milliseconds_since
from ladder.web.pages import describe
from ladder.web.protocols import BatchingRung, StreamingRung
from ladder.web.schema import GenerateRequest, SlotHealth, TokenEvent
from ladder.web.sequence import Sequence
from ladder.web.server import Lifecycle, prepare, serve

rung_02 = import_rung("02_async_streaming", StreamingRung)
rung_03 = import_rung("03_batching", BatchingRung)


@dataclass(eq=False)
class RequestState:
    """A request that waits or runs."""

    request: EngineRequest
    slot: int = -1  # none while it waits
    prefilled: int = 0  # tokens of the prompt that are in the cache
    token_ids: list[int] = field(default_factory=list)
    milliseconds: float = 0.0  # spent on its next token so far

    @property
    def to_prefill(self) -> int:
        return len(self.request.prompt_ids) - self.prefilled

    def row(self, new_tokens: list[int], wasted: bool = False) -> RowInput:
        return RowInput(self.request, self.slot, new_tokens, len(self.token_ids), wasted)

    def append(self, token_id: int) -> Token:
        token = self.request.token(token_id, len(self.token_ids), round(self.milliseconds, 3))
        self.token_ids.append(token_id)
        self.milliseconds = 0
        return token


@dataclass
class Scheduler:
    """Two queues and three verbs: `admit`, `schedule`, `remove`. It knows nothing of tensors."""

    slots: Slots
    max_batch: int
    prefill_chunk: int
    waiting: deque[RequestState] = field(default_factory=deque)
    running: list[RequestState] = field(default_factory=list)  # the index is the slot
    prefilled_last: bool = False

    def admit(self) -> None:
        """Admit the oldest waiting requests, as long as each fits into memory with all that run."""
        while self.waiting and len(self.running) < self.max_batch:
            state = self.waiting[0]
            if not self.slots.make_room([one.request.size for one in (*self.running, state)]):
                return
            state.slot = len(self.running)
            self.running.append(self.waiting.popleft())

    def schedule(self) -> ForwardPass | None:
        self.admit()
        prefilling = sorted((one for one in self.running if one.to_prefill), key=lambda one: one.request.id)
        decoding = [one.slot for one in self.running if not one.to_prefill]
        self.prefilled_last = bool(prefilling) and not (decoding and self.prefilled_last)
        if self.prefilled_last:
            return self.schedule_prefill(prefilling)
        if not decoding:
            return None
        states = self.running[: decoding[-1] + 1]  # adjacent slots: those that prefill are wasted rows
        rows = [one.row(one.token_ids[-1:] or [0], wasted=one.to_prefill > 0) for one in states]
        return ForwardPass("decode", rows)

    def schedule_prefill(self, prefilling: list[RequestState]) -> ForwardPass:
        """From the oldest on, as many chunks as make a padded batch of at most `prefill_chunk` tokens."""
        states, width = list[RequestState](), 0
        for state in prefilling:
            wider = max(width, min(state.to_prefill, self.prefill_chunk))
            if states and wider * (len(states) + 1) > self.prefill_chunk:
                break
            states.append(state)
            width = wider
        rows = [one.row(one.request.prompt_ids[one.prefilled : one.prefilled + width]) for one in states]
        return ForwardPass("prefill", rows)

    def remove(self, state: RequestState) -> int | None:
        """Take a request out of its queue. The last running one moves into its slot; returns the old slot."""
        if state.slot < 0:
            self.waiting.remove(state)
            return None
        last = self.running.pop()
        source, last.slot = last.slot, state.slot
        if last is not state:
            self.running[state.slot] = last
        return source


class EngineCore:
    """The engine without a web side: requests in, tokens out."""

    def __init__(self, model: Model, config: Config) -> None:
        slots = Slots.within(config, model.decoder, model.context)
        self.context = slots.context
        self.scheduler = Scheduler(slots, config.max_batch, config.prefill_chunk)
        self.runner = Runner(model.decoder, slots.tokens)
        self.states: dict[int, RequestState] = {}
        self.aborted: list[int] = []
        self.tokens = 0

    def handle(self, command: Command) -> None:
        """Take a command, between two steps."""
        if isinstance(command, EngineRequest):
            state = self.states[command.id] = RequestState(command)
            self.scheduler.waiting.append(state)
        else:
            if command.id in self.states:
                self.finish_request(self.states[command.id])
            self.aborted.append(command.id)

    def step(self) -> Update | None:
        """Run one step: schedule, forward pass, update. None if there was nothing to do."""
        step = self.scheduler.schedule()
        self.runner.resize(self.scheduler.slots)
        if step is None:
            return self.report([], []) if self.aborted else None
        started = time.perf_counter()
        return self.update(step, self.execute(step), milliseconds_since(started))

    def execute(self, step: ForwardPass) -> list[int | Exception]:
        """A token for each row. If the pass fails, its rows run one by one, and only the guilty ones fail."""
        try:
            return [*self.runner.forward(step)]
        except Exception as error:
            if len(step.rows) > 1:
                alone = (ForwardPass(step.kind, [row]) for row in step.rows)
                return [result for one in alone for result in self.execute(one)]
            log_failure(error)
            return [error]

    def update(self, step: ForwardPass, results: list[int | Exception], milliseconds: float) -> Update:
        """Store what the step has computed, and free finished requests."""
        tokens, failures = [], []
        for row, result in zip(step.rows, results, strict=True):
            state = self.states[row.request.id]
            if isinstance(result, Exception):
                failures.append(Failed.of(row.request.id, result))
                self.finish_request(state)
            elif not row.wasted:
                state.milliseconds += milliseconds
                if step.kind == "prefill":
                    state.prefilled += len(row.new_tokens)
                if not state.to_prefill:
                    tokens.append(token := state.append(result))
                    if token.finish_reason:
                        self.finish_request(state)
        return self.report(tokens, failures)

    def finish_request(self, state: RequestState) -> None:
        del self.states[state.request.id]
        if (last := self.scheduler.remove(state)) is not None:
            self.runner.free_slot(state.slot, last)

    def report(self, tokens: list[Token], failures: list[Failed]) -> Update:
        self.tokens += len(tokens)
        aborted, self.aborted = self.aborted, []
        return Update(tokens, failures, aborted, self.status())

    def fail_all(self, error: Exception) -> Update:
        """Fail every request in flight and in the queue, and start again with nothing."""
        failures = [Failed.of(request_id, error) for request_id in self.states]
        for held in (self.states, self.scheduler.waiting, self.scheduler.running):
            held.clear()
        self.runner.free_all()
        return self.report([], failures)

    def status(self) -> Status:
        scheduler, steps = self.scheduler, self.runner.trace.count
        waiting, running = len(scheduler.waiting), list(scheduler.running)
        prefilling = sum(state.to_prefill > 0 for state in running)
        slots = min(scheduler.max_batch, scheduler.slots.count)
        return Status(len(running), waiting, steps, self.tokens, prefilling, slots, scheduler.slots.size)


class Engine(Lifecycle):
    """The core in a thread of its own, which takes commands between two steps."""

    def __init__(self, model: Model, config: Config) -> None:
        self.model = model
        self.core = EngineCore(model, config)
        self.frontend = rung_03.Frontend(model, self.core.context)
        self.max_in_flight = config.max_batch + config.max_queue
        self.inbox = Inbox()
        threading.Thread(target=self.run, name="model", daemon=True).start()

    def submit(self, request: GenerateRequest) -> Sequence:
        if len(self.frontend.unfinished) >= self.max_in_flight:
            raise QueueFull
        sequence = self.frontend.open(request)
        self.inbox.put(sequence.request)
        return sequence

    def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]:
        return self.frontend.events(sequence)

    def abort(self, sequence: Sequence) -> None:
        if self.frontend.close(sequence):
            self.inbox.put(Abort(sequence.request.id))

    def run(self) -> None:
        """The engine's thread: takes commands between two steps; with nothing to do it waits for one."""
        while self.inbox.hand_over(self.core.handle, wait=lambda: not self.core.states):
            try:
                update = self.core.step()
            except (
                Exception
            ) as error:  # in the scheduler, not in a forward pass: no request may wait for ever
                log_failure(error)
                update = self.core.fail_all(error)
            if update:
                self.frontend.post(update)

    def stop(self) -> None:
        self.frontend.refuse(ServerStopping)
        self.inbox.close()

    def health(self) -> SlotHealth:
        in_inbox, figures = len(self.inbox), asdict(self.core.status())
        figures["waiting"] += in_inbox
        return SlotHealth(rung="04", model=self.model.name, pid=os.getpid(), **figures)


def create_app(engine: Engine) -> FastAPI:
    """Rung 02's web side, unchanged, and rung 03's page about the last forward passes."""
    app = rung_02.create_app(engine, describe(__file__, __doc__))
    rung_03.add_steps_page(app, engine.core.runner.trace)
    return app


def demo(config: Config, options: DemoOptions) -> None:
    """The same arrivals at rung 03 and at this one; then a long prompt beside a stream."""
    static = Contender("03_batching.py", rung_03.Config)
    compare_arrivals(Show(__doc__, config, options), static, Contender("04_continuous_batching.py", Config))


def start(config: Config) -> None:
    model, listener = prepare(config)
    engine = Engine(model, config)
    serve(create_app(engine), listener, engine)


def main() -> None:
    run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
