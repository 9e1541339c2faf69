"""Rung 02: tokens stream out as they come, and the server stays awake.

Rung 01 shows nothing before everything is done, answers nobody meanwhile, and works on for clients that
have left. Three changes mend that:

- The engine's loop *yields* each token instead of collecting them. Python's `yield` stops it in the
  middle, with all of its state, until somebody asks for the next token.
- The web side is asynchronous (ASGI): one thread, the event loop, looks after all connections. A model
  step would block it, so each runs in a worker thread while the loop goes on.
- Every token is sent at once as a *server-sent event*, a line that begins with "data: ". When the client
  goes away the loop is told, and the generator is closed: no further step is run.

    client       POST ─▶         ◀─ " The"        ◀─ " fox"        ◀─ ...        ◀─ [DONE]
    event loop      │   /health ok  │   /health ok  │   /health ok
    worker          └─── prefill ───┴─── decode ────┴─── decode ─── ...

    python 02_async_streaming.py --demo
    python 02_async_streaming.py
    curl -N -H 'content-type: application/json' \\
         -d '{"prompt": "Tell me a story about a fox.", "stream": true}' localhost:5000/generate

What is still wrong: every request is a batch of one. Two clients take turns, step by step, so that each
gets half the speed, though the model could compute both tokens in little more time than one. And nothing
limits how many come in.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line  # before all else: it says why

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.sse import format_sse_event
from pydantic import SerializeAsAny

from ladder.cli import DemoOptions, ServerConfig, parse
from ladder.errors import ServerStopping
from ladder.lab import plots, scenes
from ladder.lab import show as demos
from ladder.llm.loading import Model
from ladder.log import log_failure
from ladder.stats import milliseconds_since
from ladder.web.http import (
    CLIENT_CLOSED_REQUEST,
    STREAM_AND_ERRORS,
    EventStream,
    answer_errors_in_our_shape,
    failure,
)
from ladder.web.pages import Rung, add_page, describe
from ladder.web.protocol import StreamingEngine
from ladder.web.schema import MAX_BODY_BYTES, ErrorBody, GenerateRequest, GenerateResponse, Health, TokenEvent
from ladder.web.sequence import Sequence, sample_one, to_response
from ladder.web.server import prepare, serve_asgi


@dataclass(frozen=True)
class Config(ServerConfig):
    """Nothing but the flags that every rung has."""


RUNG = describe(__file__, __doc__)

END = None
"""What the worker returns in place of StopIteration, which cannot pass through a future."""


class Engine:
    """Each request is a generator of its own; one worker thread moves them on, a step at a time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        # Only this thread touches the model and the generators. Its queue is first in, first out: requests
        # take turns, and whatever closes a generator comes after the step that the generator is in.
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.active: dict[Sequence, Generator[TokenEvent]] = {}
        self.steps = 0
        self.stopping = False

    def submit(self, request: GenerateRequest) -> Sequence:
        if self.stopping:
            raise ServerStopping
        sequence = Sequence(self.model, request)
        self.active[sequence] = self.tokens(sequence)
        return sequence

    def tokens(self, sequence: Sequence) -> Generator[TokenEvent]:
        """Rung 01's loop, with `yield` where that one collected. Each `next` is one forward pass."""
        decoder = self.model.decoder
        started = time.perf_counter()
        cache = decoder.new_cache(slots=1, context=sequence.job.size)
        logits = decoder.prefill(cache, [0], [sequence.job.prompt_ids])
        self.steps += 1
        yield sequence.append(sample_one(sequence, logits), milliseconds_since(started))
        while not sequence.finish_reason:
            if self.stopping:
                raise ServerStopping
            started = time.perf_counter()
            logits = decoder.decode(cache, [0], sequence.token_ids[-1:])
            self.steps += 1
            yield sequence.append(sample_one(sequence, logits), milliseconds_since(started))

    async def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]:
        """The same tokens for the event loop, which is free while the worker computes the next one."""
        loop = asyncio.get_running_loop()
        tokens = self.active[sequence]
        while event := await loop.run_in_executor(self.worker, next, tokens, END):
            yield event

    def abort(self, sequence: Sequence) -> None:
        """Called when the client has left or has everything, wherever the event loop stands: do not wait."""
        self.worker.submit(self.finish, sequence)

    def finish(self, sequence: Sequence) -> None:
        """In the worker: drop the request's state, and with it the KV cache."""
        self.active.pop(sequence).close()

    def stop(self) -> None:
        self.stopping = True

    def health(self) -> Health:
        return Health(
            rung="02",
            model=self.model.name,
            running=len(self.active),
            waiting=0,
            steps=self.steps,
            tokens=self.steps,
            pid=os.getpid(),
        )


async def stream(engine: StreamingEngine, sequence: Sequence) -> AsyncGenerator[bytes]:
    """A request as server-sent events, with exactly one last event: [DONE], or an error."""
    try:
        async for event in engine.events(sequence):
            yield format_sse_event(data_str=event.model_dump_json(exclude_none=True))
        yield format_sse_event(data_str="[DONE]")
    except Exception as error:
        # The status went out long ago, as 200: only an event can still tell the client.
        log_failure(error)
        yield format_sse_event(event="error", data_str=ErrorBody.of(error).model_dump_json())


async def collect(engine: StreamingEngine, sequence: Sequence, request: Request) -> list[TokenEvent] | None:
    """All events of a request; or None, and no more work done, as soon as its client has left."""

    async def everything() -> list[TokenEvent]:
        return [event async for event in engine.events(sequence)]

    async def client_leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.create_task(everything()), asyncio.create_task(client_leaves())
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        leaving.cancel()
        engine.abort(sequence)


def create_app(engine: StreamingEngine, rung: Rung = RUNG) -> FastAPI:
    """The web side. Later rungs put their engines behind this same function."""
    app = FastAPI(title=rung.title, max_body_size=MAX_BODY_BYTES)
    answer_errors_in_our_shape(app)
    add_page(app, rung)

    @app.post("/generate", response_model=GenerateResponse, responses=STREAM_AND_ERRORS)
    async def generate(body: GenerateRequest, request: Request) -> Response | GenerateResponse:
        """Continue a prompt: the whole text at once, or with `stream` each token as it comes."""
        started = time.perf_counter()
        sequence = engine.submit(body)
        if body.stream:
            return EventStream(stream(engine, sequence), over=lambda: engine.abort(sequence))
        try:
            events = await collect(engine, sequence, request)
        except Exception as error:
            log_failure(error)
            return failure(error)
        if events is None:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return to_response(sequence, events, started)

    @app.get("/health")
    async def health() -> SerializeAsAny[Health]:
        """Alive, and how busy. Answered by the event loop, whatever the model is doing."""
        return engine.health()

    return app


def demo(config: Config, options: DemoOptions) -> None:
    """The same prompt to rung 01 and to this one, and what a client of each sees."""
    show = demos.Show("Rung 02: tokens stream out as they come, and the server stays awake", config, options)
    rungs = [(script, config.flags()) for script in ("01_flask_blocking.py", "02_async_streaming.py")]
    with show.starting(*rungs) as (blocking, streaming):
        asyncio.run(compare(show, blocking, streaming))


async def compare(show: demos.Show, blocking: str, streaming: str) -> None:
    crowds = {
        "01": (blocking, [scenes.REQUEST]),
        "02, stream: false": (streaming, [scenes.REQUEST]),
        "02, stream: true": (streaming, [scenes.STREAM]),
    }
    seen = await demos.watch(show, crowds)
    figures = {name: scenes.latency_figures(observations) for name, observations in seen.items()}
    with show.busy("now the client leaves after a quarter of the time"):
        for name, (url, (request,)) in crowds.items():
            figures[name] |= await scenes.leaving_figures(url, request, seen[name])
    show.conclude(scenes.LATENCY_ROWS | scenes.LEAVING_ROWS, figures, *plots.of_latency(show.title, seen))


def main() -> None:
    config, options = parse(Config, __doc__)
    with errors_in_one_line("02_async_streaming.py"):
        if options:
            demo(config, options)
        else:
            model, listener = prepare(config)
            engine = Engine(model)
            serve_asgi(create_app(engine), listener, engine.stop)


if __name__ == "__main__":
    main()
