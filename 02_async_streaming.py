"""Rung 02: tokens stream out as they come, and the server stays responsive.

Rung 01 sends nothing before the text is complete, answers no other request until then, and keeps generating
for clients that have disconnected. Three changes fix this:

- The engine's loop *yields* each token instead of collecting them. Python's `yield` pauses the loop with all
  of its state, until the next token is asked for.
- The web side is asynchronous (ASGI): one thread, the event loop, serves all connections. A forward pass
  would block it, so each runs in a worker thread while the event loop goes on.
- Each token is sent at once as a *server-sent event*, a line that begins with "data: ". When a client
  disconnects, the event loop is told and closes the generator: no further forward pass runs.

    client       POST ─▶         ◀─ " The"        ◀─ " fox"        ◀─ ...        ◀─ [DONE]
    event loop      │   /health ok  │   /health ok  │   /health ok
    worker          └─── prefill ───┴─── decode ────┴─── decode ─── ...

    python 02_async_streaming.py --demo
    python 02_async_streaming.py
    curl -N -H 'content-type: application/json' \\
         -d '{"prompt": "Tell me a story about a fox.", "stream": true}' localhost:5000/generate

What is still wrong: each forward pass serves one request. Two clients take turns, step by step, so each gets
half the speed, though the model could compute both tokens in little more time than one. And the number of
requests in flight is not limited.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response
from fastapi.sse import format_sse_event
from pydantic import BaseModel, SerializeAsAny

from ladder.cli import DemoOptions, ServerConfig
from ladder.errors import ServerStopping
from ladder.lab.demos import Contender, Show, compare_streaming
from ladder.llm.loading import Model
from ladder.log import log_failure
from ladder.web.http import CLIENT_CLOSED_REQUEST, STREAM_AND_ERRORS, EventStream, add_error_handlers, failure
from ladder.web.pages import Rung, add_page, describe
from ladder.web.protocols import StreamingEngine
from ladder.web.schema import (
    MAX_BODY_BYTES,
    ErrorBody,
    GenerateRequest,
    GenerateResponse,
    Health,
    TokenEvent,
    event_name,
)
from ladder.web.sequence import Sequence, sample_one, to_response
from ladder.web.server import Lifecycle, prepare, serve


@dataclass(frozen=True)
class Config(ServerConfig):
    """Only the flags that every rung of the engine track has."""


RUNG = describe(__file__, __doc__)

END = None
"""What the worker returns instead of StopIteration, which cannot pass through a future."""


class Engine(Lifecycle):
    """Each request is a generator of its own; one worker thread runs them, a step at a time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        # Only this thread touches the model and the generators. Its queue is first in, first out: requests
        # take turns, and a generator is closed only after the step that it is in.
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
        """Rung 01's loop, with `yield` where it collected the tokens. Each `next` is one forward pass."""
        decoder = self.model.decoder
        started = time.perf_counter()
        cache = decoder.new_cache(slots=1, context=sequence.request.size)
        logits = decoder.prefill(cache, [0], [sequence.request.prompt_ids])
        self.steps += 1
        yield sequence.append(sample_one(sequence, logits, started))
        while not sequence.finish_reason:
            if self.stopping:
                raise ServerStopping
            started = time.perf_counter()
            logits = decoder.decode(cache, [0], sequence.token_ids[-1:])
            self.steps += 1
            yield sequence.append(sample_one(sequence, logits, started))

    async def events(self, sequence: Sequence) -> AsyncGenerator[TokenEvent]:
        """The same tokens for the event loop, which is free while the worker computes the next token."""
        loop = asyncio.get_running_loop()
        tokens = self.active[sequence]
        while event := await loop.run_in_executor(self.worker, next, tokens, END):
            yield event

    def abort(self, sequence: Sequence) -> None:
        """Called when the client has disconnected or has everything. Returns at once: it may run anywhere."""
        self.worker.submit(self.finish, sequence)

    def finish(self, sequence: Sequence) -> None:
        """In the worker: free the request's state, and with it the KV cache."""
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


async def stream(events: AsyncIterator[BaseModel]) -> AsyncGenerator[bytes]:
    """Server-sent events, with exactly one last event: [DONE], or an error."""
    try:
        async for event in events:
            data = event.model_dump_json(exclude_none=True)
            yield format_sse_event(event=event_name(event), data_str=data)
        yield format_sse_event(data_str="[DONE]")
    except Exception as error:
        # The status 200 has been sent already: only an event can still tell the client.
        log_failure(error)
        yield format_sse_event(event="error", data_str=ErrorBody.of(error).model_dump_json())


async def collect(engine: StreamingEngine, sequence: Sequence, request: Request) -> list[TokenEvent] | None:
    """All events of a request; or None, as soon as its client disconnects, and the request is aborted."""

    async def all_events() -> list[TokenEvent]:
        return [event async for event in engine.events(sequence)]

    async def client_disconnects() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, disconnect = asyncio.create_task(all_events()), asyncio.create_task(client_disconnects())
    try:
        await asyncio.wait({work, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        disconnect.cancel()
        engine.abort(sequence)


def create_app(engine: StreamingEngine, rung: Rung = RUNG) -> FastAPI:
    """The web side. Later rungs serve their engines with this same function."""
    app = FastAPI(title=rung.title, max_body_size=MAX_BODY_BYTES)
    add_error_handlers(app)
    add_page(app, rung)

    @app.post("/generate", response_model=GenerateResponse, responses=STREAM_AND_ERRORS)
    async def generate(body: GenerateRequest, request: Request) -> Response | GenerateResponse:
        """Continue a prompt: the whole text at once, or with `stream` each token as it comes."""
        started = time.perf_counter()
        sequence = engine.submit(body)
        if body.stream:
            return EventStream(stream(engine.events(sequence)), on_close=lambda: engine.abort(sequence))
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
    """The same prompt to rung 01 and to this one, and what the client of each sees."""
    blocking = Contender("01_flask_blocking.py", ServerConfig)
    compare_streaming(Show(__doc__, config, options), blocking, Contender("02_async_streaming.py", Config))


def start(config: Config) -> None:
    model, listener = prepare(config)
    engine = Engine(model)
    serve(create_app(engine), listener, engine)


def main() -> None:
    run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
