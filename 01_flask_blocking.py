"""Rung 01: a blocking server around a prefill + decode loop.

This is the server that most people write first. A request comes in, the model runs until the text is
complete, and the text goes out.

    client   POST ──▶ . . . . . . . . . . . . . . . . . . . . . . . . ──▶ the whole text
    worker            │ prefill │ decode │ decode │ decode │ decode │
    /health            GET ──▶ . . . . . . . . . . . . . . . . . . .  ──▶ ok

Generation has two phases. *Prefill* runs the whole prompt through the model in one forward pass, fills the KV
cache (the stored keys and values of all tokens) and yields the first token. *Decode* then runs one forward
pass for each further token, because each token depends on the one before it.

    python 01_flask_blocking.py --demo
    python 01_flask_blocking.py
    curl -H 'content-type: application/json' -d '{"prompt": "What is 2 + 2?"}' localhost:5000/generate

What is wrong here, on purpose:

- The client sees nothing until the text is complete: it gets the first word together with the last.
- Each request blocks a worker until its text is complete. With one worker, the default, no other request is
  answered, /health included. With more workers (--workers 4) that happens as soon as there are as many
  requests as workers. The cause is WSGI's model of one thread per request, not Flask: Flask could also
  stream, but every open stream would block a worker in the same way.
- The server does not notice that a client disconnects. It generates the text to the end and discards it.
"""

from __future__ import annotations

from ladder.script import run_rung  # before all other imports: its docstring says why

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import flask
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from ladder.cli import DemoOptions, ServerConfig, option, whole_number
from ladder.errors import RequestError
from ladder.lab.demos import Contender, Show, compare_workers
from ladder.llm.loading import Model
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
    """Generates one text per request, and returns it when it is complete."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.active: set[Sequence] = set()
        self.steps = 0
        # One thread runs the model, because a forward pass already uses every core: whatever the number of
        # workers, texts are generated one after the other.
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
        cache = decoder.new_cache(slots=1, context=sequence.request.size)
        logits = decoder.prefill(cache, [0], [sequence.request.prompt_ids])
        self.steps += 1
        events = [sequence.append(sample_one(sequence, logits, started))]
        while not sequence.finish_reason:
            started = time.perf_counter()
            logits = decoder.decode(cache, [0], sequence.token_ids[-1:])
            self.steps += 1
            events.append(sequence.append(sample_one(sequence, logits, started)))
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
    """One client generates; others ask for /health, send a short question, or disconnect early."""
    more = config.workers if config.workers > 1 else 4
    servers = [Contender("01_flask_blocking.py", Config, "--workers", str(n)) for n in (1, more)]
    compare_workers(Show(__doc__, config, options), {"1 worker": servers[0], f"{more} workers": servers[1]})


def start(config: Config) -> None:
    model, listener = prepare(config)
    serve_wsgi(create_app(Engine(model)), listener, config.workers)


def main() -> None:
    run_rung(__file__, __doc__, Config, start, demo)


if __name__ == "__main__":
    main()
