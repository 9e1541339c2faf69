"""Rung 05: the engine in a process of its own, scheduling while the web server does all the rest.

In rung 04 the engine's thread shares one interpreter with the web server. Torch computes without holding its
lock, the GIL, but a step asks for it back a thousand times, once for each operation, while the event
loop needs it for every token of every stream. So the engine moves out:

    web process      tokenize ─▶ HTTP, JSON, detokenize: step 1   step 2   step 3      one GIL
                        │ Job, Abort                       ▲ Update  ▲        ▲
    ════════════════════│══════════ ZeroMQ, msgpack ═══════│═════════│════════│═══
                        ▼                                  │         │        │
    engine process   schedule │ forward pass 1 │ forward pass 2 │ forward pass 3 │     another GIL

- Rung 04's `EngineCore`, unchanged, runs in the engine's process. Typed messages go both ways.
- With `--loop overlapped` a thread runs the next step while what the last one brought is handed over. On two
  cores that work is too little to pay for the thread, so the default is to do the two in turn.
- On two cores the second process brings no throughput (benchmarks/README.md has the figures). What it brings:
  an engine can die alone, and is replaced.
- The engine is watched. When it dies or falls silent, open streams get an error event at once, /ready says
  503, /health goes on, and a new engine is started, after a pause that grows while none gets ready.

    python 05_async_scheduling.py --demo
    python 05_async_scheduling.py
    curl -i localhost:5000/ready

What is still wrong: one node and one model. And a second process is not free.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line  # before all else: it says why

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from msgspec.structs import asdict
from rich.console import Console

from ladder import import_rung
from ladder.cli import DemoOptions, EngineConfig, option, parse
from ladder.engine.channel import ChildProcess, ParentProcess
from ladder.engine.messages import Abort, Beat, Command, Ready, Report, Start, Status, Unusable, Update
from ladder.errors import QueueFull, ServerStopping, Unavailable, UserError
from ladder.lab import plots, scenes
from ladder.lab import show as demos
from ladder.log import logger
from ladder.web.frontend import Frontend, vocabulary_of
from ladder.web.pages import describe
from ladder.web.schema import EngineHealth, GenerateRequest, TokenEvent
from ladder.web.sequence import Sequence
from ladder.web.server import load, serve_asgi, take_port

rung_02 = import_rung("02_async_streaming")
rung_04 = import_rung("04_continuous_batching")

SILENCE_SECONDS = 1.5
"""An engine that has not been heard for so long is taken for dead."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds before another engine is started."""

AS_ENGINE = "--as-engine"
"""How the engine's process is started from this same file; not for people."""


@dataclass(frozen=True)
class Config(EngineConfig):
    loop: str = option("plain", "how the engine's steps follow", choices=("overlapped", "plain"))


class EngineDown(Unavailable):
    def __init__(self) -> None:
        super().__init__("the engine has died and is being started again; send the request again in a while")


def run_engine(directory: Path) -> None:
    """The engine's process: load the model, say so, then step for ever."""
    web_side = ParentProcess(directory)
    start = web_side.first_command()
    web_side.doing = f"loading {start.config.model}"
    try:
        model = load(start.config)
        core = rung_04.EngineCore(model, start.config)
    except UserError as error:
        web_side.report(Unusable(str(error)))
        return
    tokenizer = model.tokenizer.backend.to_str()
    web_side.report(Ready(os.getpid(), model.name, core.context, model.stop_ids, tokenizer, core.status()))
    web_side.doing = "serving"
    (overlapped_loop if start.overlapped else plain_loop)(core, web_side)


def plain_loop(core: Any, web_side: ParentProcess) -> None:
    while True:
        for command in web_side.commands(wait=not core.works):
            core.handle(command)
        if update := core.step():
            web_side.report(update)


def overlapped_loop(core: Any, web_side: ParentProcess) -> None:
    """While the model's thread runs a step, this one hands over what the step before has brought."""
    model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
    update: Update | None = None

    def advance(commands: list[Command]) -> Update | None:
        for command in commands:
            core.handle(command)
        update: Update | None = core.step()
        return update

    while True:
        commands = list(web_side.commands(wait=not core.works and not update))
        step = model_thread.submit(advance, commands)
        if update:
            web_side.report(update)
        update = step.result()


class Engine:
    """The web side of an engine in another process: starts it, watches it, and starts it again."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.status = self.buried = Status()  # of this engine; of those before it, what they have done
        self.engine: Ready | None = None
        self.frontend: Frontend
        self.unconfirmed: set[int] = set()  # aborted jobs that the engine may still be working on
        self.restarts = 0

    async def start(self) -> None:
        """Return when the first engine is ready; `UserError` if it cannot be."""
        self.first_ready = asyncio.get_running_loop().create_future()
        with Console(stderr=True).status("starting the engine's process") as self.progress:
            self.supervision = asyncio.create_task(self.supervise())
            try:
                await self.first_ready
            except UserError:
                self.end()
                raise

    async def supervise(self) -> None:
        """One engine after the other. The pause doubles from one that never got ready to the next."""
        pause = SHORTEST_PAUSE
        while True:
            self.process = ChildProcess(sys.executable, __file__, AS_ENGINE)
            first = Start(self.config, overlapped=self.config.loop == "overlapped")
            reason = await self.process.follow(first, self.take, SILENCE_SECONDS)
            self.process.end()
            if not self.first_ready.done():
                self.first_ready.set_exception(UserError(f"the engine's process {reason}"))
                return
            pause = SHORTEST_PAUSE if self.engine else min(2 * pause, LONGEST_PAUSE)
            logger.warning("the engine's process %s; another is started in %g s", reason, pause)
            self.bury()
            await asyncio.sleep(pause)
            self.restarts += 1

    def take(self, report: Report) -> None:
        if isinstance(report, Update):
            self.status = report.status
            self.unconfirmed.difference_update(report.dropped)
            self.frontend.deliver(report)
        elif isinstance(report, Beat):
            self.progress.update(f"the engine's process: {report.doing}")
        elif isinstance(report, Unusable):
            if self.first_ready.done():
                logger.error("the engine cannot start again: %s", report.reason)
            else:
                self.first_ready.set_exception(UserError(report.reason))
        else:
            self.engine = report
            self.status = report.status
            if self.first_ready.done():
                self.frontend.reopen()
            else:
                self.frontend = Frontend(vocabulary_of(report), report.context)
                self.first_ready.set_result(None)

    def bury(self) -> None:
        """The engine is gone, and all that was under way in it."""
        self.engine = None
        self.frontend.refuse(EngineDown)
        self.unconfirmed.clear()
        self.buried = Status(
            steps=self.buried.steps + self.status.steps, tokens=self.buried.tokens + self.status.tokens
        )
        self.status = Status()

    def submit(self, request: GenerateRequest) -> Sequence:
        if self.under_way() >= self.config.max_batch + self.config.max_queue:
            raise QueueFull
        sequence = self.frontend.open(request)
        self.process.tell(sequence.job)
        return sequence

    def under_way(self) -> int:
        return len(self.frontend.unfinished) + len(self.unconfirmed)

    def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]:
        return self.frontend.events(sequence)

    def abort(self, sequence: Sequence) -> None:
        if self.frontend.close(sequence):
            self.unconfirmed.add(sequence.job.id)
            self.process.tell(Abort(sequence.job.id))

    def stop(self) -> None:
        self.frontend.refuse(ServerStopping)
        self.end()

    def end(self) -> None:
        """Leave no process behind, and no socket."""
        self.supervision.cancel()
        self.process.end()

    def health(self) -> EngineHealth:
        figures = asdict(self.status) | {
            "waiting": max(0, self.under_way() - self.status.running),
            "steps": self.buried.steps + self.status.steps,
            "tokens": self.buried.tokens + self.status.tokens,
        }
        return EngineHealth(
            rung="05",
            model=self.config.model,
            pid=os.getpid(),
            engine_pid=self.engine.pid if self.engine else None,
            restarts=self.restarts,
            **figures,
        )


def create_app(engine: Engine) -> FastAPI:
    """Rung 02's web side, unchanged, and a second question beside "are you alive?"."""
    app: FastAPI = rung_02.create_app(engine, describe(__file__, __doc__))

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Whether a request would be served now."""
        if engine.engine:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": str(EngineDown.retry_after)})

    return app


def demo(config: Config, options: DemoOptions) -> None:
    """Many clients who talk much, at rung 04 and at this one; then somebody kills the engine."""
    show = demos.Show("Rung 05: the engine in a process of its own", config, options)
    commands = [
        ("04_continuous_batching.py", config.flags()),
        ("05_async_scheduling.py", config.flags()),
    ]
    with show.starting(*commands) as urls:
        asyncio.run(compare(show, dict(zip(("04", "05"), urls, strict=True))))


async def compare(show: demos.Show, servers: dict[str, str]) -> None:
    await demos.warm_up_all(show, servers)
    seen: dict[str, list[scenes.Observation]] = {name: [] for name in servers}
    for number in (1, 2, 3):
        for name, url in servers.items():
            with show.busy(
                f"round {number}: many clients who ask for one short story after the other, {name}"
            ):
                seen[name].append(await scenes.talk(url, seconds=1))
    figures = {name: scenes.talk_figures(observations) for name, observations in seen.items()}
    for column in figures.values():
        column["throughput_ratio"] = column["tokens_per_second"] / figures["04"]["tokens_per_second"]
    with show.lanes("05: a story, until the engine is killed") as (lane,):
        lane.begin()
        figures["05"] |= await scenes.kill_engine(servers["05"], lane.on_token)
    rows = scenes.TALK_ROWS | {"throughput_ratio": "tokens/s, of rung 04's"} | scenes.KILL_ROWS
    show.conclude(rows, figures, *plots.of_latency(show.title, seen))


def main() -> None:
    if sys.argv[1:2] == [AS_ENGINE]:
        run_engine(Path(sys.argv[2]))
        return
    config, options = parse(Config, __doc__)
    with errors_in_one_line("05_async_scheduling.py"):
        if options:
            demo(config, options)
        else:
            listener = take_port(config)
            engine = Engine(config)
            serve_asgi(create_app(engine), listener, engine.stop, engine.start)


if __name__ == "__main__":
    main()
