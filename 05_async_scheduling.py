"""Rung 05: the engine in a process of its own, watched and replaced by the web server.

In rung 04 engine and web server share a process: when the engine crashes or hangs, /health and every open
stream end with it. So the engine moves out:

    web process      tokenize ─▶ HTTP, JSON, detokenize: step 1   step 2   step 3
                        │ EngineRequest, Abort             ▲ Update  ▲        ▲
    ════════════════════│══════════ ZeroMQ, msgpack ═══════│═════════│════════│═══
                        ▼                                  │         │        │
    engine process   schedule │ forward pass 1 │ forward pass 2 │ forward pass 3 │

- Rung 04's `EngineCore`, unchanged, runs in the engine's process. Typed messages go both ways.
- If the engine crashes or its heartbeat stops, open streams get an error event. /ready returns 503, /health
  keeps answering, and a new engine starts, after a pause that doubles with each failed start.
- Each process has a GIL, Python's global lock, of its own. On two cores this brings no throughput.
- With `--loop overlapped` a thread runs the next step while the results of the last one are sent. On two
  cores that is too little work to pay for the thread, so by default the two take turns.

    python 05_async_scheduling.py --demo
    python 05_async_scheduling.py
    curl -i localhost:5000/ready

What is still wrong: KV cache memory is reserved for the longest possible text of each request, and equal
prompts are computed again for each request.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import asyncio
import os
import sys
import time
from asyncio import FIRST_COMPLETED
from collections.abc import AsyncGenerator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from msgspec.structs import asdict
from rich.console import Console

from ladder import import_rung
from ladder.cli import DemoOptions, EngineConfig, option
from ladder.engine.channel import ChildProcess, ParentProcess
from ladder.engine.messages import Abort, Command, Heartbeat, Ready, Report, Start, Status, Unusable, Update
from ladder.errors import QueueFull, ServerStopping, Unavailable, UserError
from ladder.lab.demos import Contender, Show, compare_processes
from ladder.log import logger
from ladder.web.pages import describe
from ladder.web.protocols import BatchingRung, ContinuousRung, Core, DeliveringFrontend, StreamingRung
from ladder.web.schema import EngineHealth, GenerateRequest, TokenEvent
from ladder.web.sequence import RemoteVocabulary, Sequence
from ladder.web.server import Lifecycle, load, serve, take_port

rung_02 = import_rung("02_async_streaming", StreamingRung)
rung_03 = import_rung("03_batching", BatchingRung)
rung_04 = import_rung("04_continuous_batching", ContinuousRung)

HEARTBEAT_TIMEOUT = 1.5  # seconds without a message after which an engine counts as hanging
CHECK_SECONDS = 0.25
SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds before another engine is started
AS_ENGINE = "--as-engine"  # starts the engine's process from this same file; not for users


@dataclass(frozen=True)
class Config(EngineConfig):
    loop: str = option("plain", "how the engine's steps follow", choices=("overlapped", "plain"))


class EngineDown(Unavailable):
    def __init__(self) -> None:
        super().__init__("the engine has died and is being started again; send the request again in a while")


def run_engine(directory: Path) -> None:
    """The engine's process: load the model, say so, then run steps until the process ends."""
    web_side = ParentProcess(directory)
    with web_side.reporting_failure():
        start = web_side.start_command()
        web_side.doing = f"loading {start.config.model}"
        model = load(start.config)
        core = rung_04.EngineCore(model, start.config)
        tokenizer = model.tokenizer.backend.to_str()
        ready = Ready(os.getpid(), model.name, core.context, model.stop_ids, tokenizer, core.status())
        web_side.report(ready)
        web_side.doing = "serving"
        (overlapped_loop if start.overlapped else plain_loop)(core, web_side)


def plain_loop(core: Core, web_side: ParentProcess) -> None:
    while True:
        for command in web_side.commands(wait=not core.states):
            core.handle(command)
        if update := core.step():
            web_side.report(update)


def overlapped_loop(core: Core, web_side: ParentProcess) -> None:
    """While the model's thread runs a step, this thread sends the results of the step before."""
    model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
    update: Update | None = None

    def advance(commands: list[Command]) -> Update | None:
        for command in commands:
            core.handle(command)
        return core.step()

    while True:
        commands = list(web_side.commands(wait=not core.states and not update))
        step = model_thread.submit(advance, commands)
        if update:
            web_side.report(update)
        update = step.result()


class Engine(Lifecycle):
    """The web side of an engine in another process: starts it, watches it, and replaces it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ready: Ready | None = None  # what the engine that is ready has said of itself
        self.process: ChildProcess | None = None
        self.frontend: DeliveringFrontend | None = None  # None until the first engine is ready
        self.first_ready: Future[None] = Future()
        self.supervision: asyncio.Task[None] | None = None
        self.progress = Console(stderr=True).status("starting the engine's process")
        self.heard = 0.0  # when the engine's last message came; 0 before its first
        self.status = self.previous_totals = Status()  # of this engine; sums over the engines before it
        self.unconfirmed: set[int] = set()  # aborted requests that the engine may still be working on
        self.restarts = 0

    async def start(self) -> None:
        """Return when the first engine is ready; `UserError` if it cannot start."""
        with self.progress:
            self.supervision = asyncio.create_task(self.supervise())
            await asyncio.wrap_future(self.first_ready)

    async def supervise(self) -> None:
        """Start one engine after the other. Each failed start doubles the pause before the next."""
        pause = SHORTEST_PAUSE
        while True:
            reason = await self.run_process()
            if not self.first_ready.done():
                self.first_ready.set_exception(UserError(reason))
                return
            pause = SHORTEST_PAUSE if self.ready else min(2 * pause, LONGEST_PAUSE)
            logger.warning("%s; another engine is started in %g s", reason, pause)
            self.on_engine_death()
            await asyncio.sleep(pause)
            self.restarts += 1

    async def run_process(self) -> str:
        """Start an engine; return why it ended: it reports a failure, exits, goes silent or sends garbage."""
        try:
            self.process = await ChildProcess.start(sys.executable, __file__, AS_ENGINE)
        except OSError as error:
            return f"the engine's process cannot be started: {error}"
        self.process.tell(Start(self.config, overlapped=self.config.loop == "overlapped"))
        self.heard = 0.0
        listening = asyncio.create_task(self.listen(self.process))
        exiting = asyncio.create_task(self.process.exited())
        try:
            while not (listening.done() or exiting.done()):
                asked = time.monotonic()
                await asyncio.wait({listening, exiting}, timeout=CHECK_SECONDS, return_when=FIRST_COMPLETED)
                now = time.monotonic()
                if self.heard and now - asked > HEARTBEAT_TIMEOUT / 2:
                    self.heard = now  # it was this process that slept: heartbeats are still to be read
                silent = self.heard and now - self.heard > HEARTBEAT_TIMEOUT
                if silent and not exiting.done():  # the exit status says more than the silence
                    return f"the engine's process has said nothing for {HEARTBEAT_TIMEOUT:g} s"
            if not listening.done():
                return f"the engine's process has ended with status {exiting.result()}"
            if garbage := listening.exception():
                return f"the engine's process has sent what cannot be used: {garbage!r}"
            return listening.result()
        finally:
            listening.cancel()
            exiting.cancel()
            self.process.end()

    async def listen(self, process: ChildProcess) -> str:
        """Take reports until one says that the engine has failed; return its reason."""
        while not isinstance(report := await process.next_report(), Unusable):
            self.take(report)
        return report.reason

    def take(self, report: Report) -> None:
        self.heard = time.monotonic()
        match report:
            case Update() if self.frontend:
                self.status = report.status
                self.unconfirmed.difference_update(report.aborted)
                self.frontend.deliver(report)
            case Heartbeat():
                self.progress.update(f"the engine's process: {report.doing}")
            case Ready():
                self.ready, self.status = report, report.status
                if self.frontend:
                    self.frontend.reopen()
                else:
                    self.frontend = rung_03.Frontend(RemoteVocabulary.of(report), report.context)
                    self.first_ready.set_result(None)

    def on_engine_death(self) -> None:
        """End every request in flight with an error, and accept none until another engine is ready."""
        self.ready = None
        self.serving()[0].refuse(EngineDown)
        self.unconfirmed.clear()
        before, self.status = self.status, Status()
        totals = self.previous_totals
        self.previous_totals = Status(steps=totals.steps + before.steps, tokens=totals.tokens + before.tokens)

    def serving(self) -> tuple[DeliveringFrontend, ChildProcess]:
        """What exists from the moment in which the first engine is ready."""
        if self.frontend is None or self.process is None:
            raise EngineDown
        return self.frontend, self.process

    def submit(self, request: GenerateRequest) -> Sequence:
        if self.in_flight() >= self.config.max_batch + self.config.max_queue:
            raise QueueFull
        frontend, process = self.serving()
        sequence = frontend.open(request)
        process.tell(sequence.request)
        return sequence

    def in_flight(self) -> int:
        return len(self.serving()[0].unfinished) + len(self.unconfirmed)

    def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]:
        return self.serving()[0].events(sequence)

    def abort(self, sequence: Sequence) -> None:
        frontend, process = self.serving()
        if frontend.close(sequence):
            self.unconfirmed.add(sequence.request.id)
            process.tell(Abort(sequence.request.id))

    def stop(self) -> None:
        if self.frontend:
            self.frontend.refuse(ServerStopping)
        self.end()

    def end(self) -> None:
        """Leave no process behind, and no socket."""
        if self.supervision:
            self.supervision.cancel()
        if self.process:
            self.process.end()

    def health(self) -> EngineHealth:
        figures, totals = asdict(self.status), self.previous_totals
        figures["waiting"] = max(0, self.in_flight() - self.status.running)
        figures["steps"] += totals.steps
        figures["tokens"] += totals.tokens
        figures |= {"engine_pid": self.ready.pid if self.ready else None, "restarts": self.restarts}
        return EngineHealth(rung="05", model=self.config.model, pid=os.getpid(), **figures)


def create_app(engine: Engine) -> FastAPI:
    """Rung 02's web side, unchanged, and /ready beside /health."""
    app = rung_02.create_app(engine, describe(__file__, __doc__))

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Whether a request would be served now."""
        if engine.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": str(EngineDown.retry_after)})

    return app


def demo(config: Config, options: DemoOptions) -> None:
    """Many clients with short requests at rung 04 and at this one; then the engine is killed."""
    show, one_process = Show(__doc__, config, options), Contender("04_continuous_batching.py", rung_04.Config)
    compare_processes(show, one_process, Contender("05_async_scheduling.py", Config))


def start(config: Config) -> None:
    listener, engine = take_port(config), Engine(config)
    serve(create_app(engine), listener, engine)


def main() -> None:
    if sys.argv[1:2] == [AS_ENGINE]:
        run_engine(Path(sys.argv[2]))
    else:
        run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
