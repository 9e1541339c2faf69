"""Rung 01: a blocking server around a prefill + decode loop.

This is the server that everyone writes first. One request comes in, the model runs until the text is
complete, the text goes out.

    client   POST ──▶ . . . . . . . . . . . . . . . . . . . . . . . . ──▶ the whole text
    worker            │ prefill │ decode │ decode │ decode │ decode │
    /health            ask ──▶ . . . . . . . . . . . . . . . . . . .  ──▶ ok

Generating happens in two phases. *Prefill* runs the whole prompt through the model in one forward
pass, fills the KV cache, and yields the first token. *Decode* then runs one forward pass for each further
token, because each depends on the one before it.

    python 01_flask_blocking.py --demo
    python 01_flask_blocking.py
    curl -H 'content-type: application/json' -d '{"prompt": "What is 2 + 2?"}' localhost:5000/generate

What is wrong here, on purpose:

- Nothing is seen until everything is done: the first word waits for the last one.
- A request holds its worker for its whole life. With one worker, the default, nobody else is answered,
  not even /health, and a load balancer takes the server for dead. More workers (--workers 4) put that
  off until as many requests have come. That is WSGI's one-thread-a-request model, not a limit of Flask:
  Flask could also stream, but every open stream would hold a worker in the same way.
- A client that leaves is not noticed. The work is done to its end and thrown away.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line  # before all else: it says why

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import flask
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from ladder.cli import DemoOptions, ServerConfig, option, parse, whole_number
from ladder.errors import RequestError
from ladder.lab import plots, scenes
from ladder.lab import show as demos
from ladder.lab.client import Client
from ladder.llm.loading import Model
from ladder.stats import milliseconds_since
from ladder.web.pages import add_flask_page, describe
from ladder.web.schema import (
    MAX_BODY_BYTES,
    NOT_SENT_AS_JSON,
    ErrorBody,
    GenerateRequest,
    GenerateResponse,
    Health,
    TokenEvent,
    public_details,
)
from ladder.web.sequence import Sequence, sample_one, to_response
from ladder.web.server import prepare, serve_wsgi


@dataclass(frozen=True)
class Config(ServerConfig):
    workers: int = option(1, "threads that answer requests, /health included", whole_number(1))


class Engine:
    """Turns one request into one text, and returns when all of it is there."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.active: set[Sequence] = set()
        self.steps = 0
        # One thread runs the model, because a forward pass already uses every core: whoever serves the
        # requests, their texts are made one after the other.
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    def generate(self, request: GenerateRequest) -> GenerateResponse:
        started = time.perf_counter()
        sequence = Sequence(self.model, request)
        self.active.add(sequence)
        try:
            events = self.worker.submit(self.prefill_and_decode, sequence).result()
        finally:
            self.active.discard(sequence)
        return to_response(sequence, events, started)

    def prefill_and_decode(self, sequence: Sequence) -> list[TokenEvent]:
        """The loop at the bottom of every LLM server."""
        decoder = self.model.decoder
        started = time.perf_counter()
        cache = decoder.new_cache(slots=1, context=sequence.job.size)
        logits = decoder.prefill(cache, [0], [sequence.job.prompt_ids])
        self.steps += 1
        events = [sequence.append(sample_one(sequence, logits), milliseconds_since(started))]
        while not sequence.finish_reason:
            started = time.perf_counter()
            logits = decoder.decode(cache, [0], sequence.token_ids[-1:])
            self.steps += 1
            events.append(sequence.append(sample_one(sequence, logits), milliseconds_since(started)))
        return events

    def health(self) -> Health:
        active = len(self.active)
        return Health(
            rung="01",
            model=self.model.name,
            running=min(active, 1),
            waiting=max(active - 1, 0),
            steps=self.steps,
            tokens=self.steps,
            pid=os.getpid(),
        )


def create_app(engine: Engine) -> flask.Flask:
    app = flask.Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    add_flask_page(app, describe(__file__, __doc__, streams=False))

    @app.post("/generate")
    def generate() -> dict[str, Any]:
        body = flask.request.get_data()
        if body and not flask.request.is_json:
            flask.abort(415, NOT_SENT_AS_JSON)
        request = GenerateRequest.model_validate_json(body)
        if request.stream:
            raise RequestError("stream", "rung 01 cannot stream; climb to 02_async_streaming.py")
        return engine.generate(request).model_dump()

    @app.get("/health")
    def health() -> dict[str, Any]:
        return engine.health().model_dump()

    @app.errorhandler(ValidationError)
    def wrong_field(error: ValidationError) -> tuple[dict[str, Any], int]:
        return {"detail": public_details(error.errors(), "body")}, 422

    @app.errorhandler(RequestError)
    def does_not_fit_the_model(error: RequestError) -> tuple[dict[str, Any], int]:
        return {"detail": error.details}, 422

    @app.errorhandler(HTTPException)
    def other(error: HTTPException) -> Response:
        response = error.get_response()
        response.data = flask.json.dumps({"detail": error.description})
        response.content_type = "application/json"
        return response

    @app.errorhandler(Exception)
    def engine_failed(error: Exception) -> tuple[dict[str, Any], int]:
        app.logger.exception("a request failed")
        return ErrorBody.of(error).model_dump(), 500

    return app


def demo(config: Config, options: DemoOptions) -> None:
    """One client generates; others ask for /health, or for an answer of their own, or lose patience."""
    show = demos.Show("Rung 01: a blocking server around a prefill + decode loop", config, options)
    rungs = [("01_flask_blocking.py", [*config.flags(), "--workers", workers]) for workers in ("1", "4")]
    with show.starting(*rungs) as urls:
        asyncio.run(suffer(show, dict(zip(("1 worker", "4 workers"), urls, strict=True))))


async def suffer(show: demos.Show, servers: dict[str, str]) -> None:
    crowds = {name: (url, [scenes.REQUEST]) for name, url in servers.items()}
    seen = await demos.watch(show, crowds)
    figures = {name: scenes.latency_figures(observations) for name, observations in seen.items()}
    for name, url in servers.items():
        with show.busy(f"{name}: a second client, and one who leaves"):
            figures[name] |= await second_client(url)
            figures[name] |= await scenes.leaving_figures(url, scenes.REQUEST, seen[name])
    rows = scenes.LATENCY_ROWS | SECOND_CLIENT_ROWS | scenes.LEAVING_ROWS
    show.conclude(rows, figures, *plots.of_latency(show.title, seen))


SECOND_CLIENT_ROWS = {
    "second_alone_ms": "short question, asked alone",
    "second_beside_ms": "short question behind a long one",
}


async def second_client(url: str) -> scenes.Figures:
    """A short question, asked of an idle server and then just after somebody else's long one."""
    question: scenes.Request = {"prompt": "What is 2 + 2?", "temperature": 0, "max_tokens": 10}
    async with Client(url) as client:
        alone = await client.generate(**question)
        async with asyncio.TaskGroup() as both:
            both.create_task(client.generate(**scenes.REQUEST))
            await asyncio.sleep(0.02)
            second = both.create_task(client.generate(**question))
    return {"second_alone_ms": 1000 * alone.e2el, "second_beside_ms": 1000 * second.result().e2el}


def main() -> None:
    config, options = parse(Config, __doc__)
    with errors_in_one_line("01_flask_blocking.py"):
        if options:
            demo(config, options)
        else:
            model, listener = prepare(config)
            serve_wsgi(create_app(Engine(model)), listener, config.workers)


if __name__ == "__main__":
    main()
