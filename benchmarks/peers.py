"""The engines beside the rungs: rung 04's without HTTP, transformers' batching, and a hand-made server.

Each runs in a process of its own, as the rungs do:

    python -m benchmarks.peers bare MODEL DTYPE              bursts on stdin, seconds on stdout
    python -m benchmarks.peers transformers MODEL DTYPE      the same, over transformers' batching
    python -m benchmarks.peers handmade MODEL DTYPE          an HTTP server; prints `ready: URL`
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    GenerationMixin,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)

from ladder import import_rung
from ladder.cli import EngineConfig
from ladder.engine.messages import EngineRequest
from ladder.llm.checkpoint import architecture_of
from ladder.llm.loading import DTYPES, RANDOM_SHAPES, RandomWeights, load_model, random_tokenizer
from ladder.llm.sampling import SamplingSettings
from ladder.web.schema import GenerateRequest
from ladder.web.server import announce, listen

Burst = Callable[[list[list[int]], int], None]
"""Runs prompts in parallel until each has the given number of output tokens."""


def bare(model_name: str, dtype: str) -> Burst:
    """Rung 04's engine alone: no HTTP, no text, no other thread."""
    config = EngineConfig(model=model_name, dtype=dtype, device="cpu")
    core = import_rung("04_continuous_batching").EngineCore(load_model(model_name, dtype, "cpu"), config)

    def burst(prompts: list[list[int]], tokens: int) -> None:
        for number, prompt_ids in enumerate(prompts):
            core.handle(EngineRequest(number, prompt_ids, tokens, SamplingSettings(), frozenset()))
        while core.states:
            core.step()

    return burst


def transformers_batching(model_name: str, dtype: str) -> Burst:
    """Transformers' continuous batching. Starting and stopping its manager is not timed."""
    model, _ = transformers_model(model_name, dtype)
    # By default it takes most of the machine's memory. This has room for 64 requests and for all prompts of a
    # burst in one pass. Prefix sharing is off: rungs 02 to 05 have none.
    memory = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=2048, allow_block_sharing=False)
    settings = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]

    def burst(prompts: list[list[int]], tokens: int) -> None:
        with model.continuous_batching_context_manager(
            generation_config=settings, continuous_batching_config=memory, block=True, timeout=5
        ) as manager:
            clock.start()
            manager.add_requests(inputs=prompts, max_new_tokens=tokens)
            unfinished = len(prompts)
            while unfinished:
                result = manager.get_result(timeout=1)
                unfinished -= result is not None and result.is_finished()
            clock.stop()

    return burst


class Clock:
    """Times a burst, or the part of it that the burst itself marks."""

    def start(self) -> None:
        self.started = time.perf_counter()
        self.stopped = 0.0

    def stop(self) -> None:
        self.stopped = self.stopped or time.perf_counter()


clock = Clock()


def serve_bursts(burst: Burst) -> None:
    """Read `{"prompts": ..., "tokens": ...}` from each line of stdin; print the seconds of the burst."""
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        clock.start()
        burst(request["prompts"], request["tokens"])
        clock.stop()
        print(clock.stopped - clock.started, flush=True)


def handmade(model_name: str, dtype: str) -> FastAPI:
    """The usual first server: FastAPI, one thread per request that calls `generate`, and a streamer."""
    model, tokenizer = transformers_model(model_name, dtype)
    app = FastAPI()

    @app.post("/generate")
    def generate(request: GenerateRequest) -> StreamingResponse:
        inputs = tokenizer(request.prompt, return_tensors="pt")
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
        settings = {"max_new_tokens": request.max_tokens, "do_sample": False, "pad_token_id": 0}
        threading.Thread(target=model.generate, kwargs={**inputs, **settings, "streamer": streamer}).start()

        def events() -> Iterator[str]:
            for text in streamer:
                yield f"data: {json.dumps({'token': text, 'token_id': 0})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def transformers_model(model_name: str, dtype: str) -> tuple[GenerationMixin, PreTrainedTokenizerBase]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) if model_name.startswith("random:") else Path(model_name)
        if model_name.startswith("random:"):
            save_checkpoint(model_name.removeprefix("random:"), path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], attn_implementation="sdpa")
        return model, AutoTokenizer.from_pretrained(path)


def save_checkpoint(shape: str, directory: Path) -> None:
    """Save the weights of `--model random:SHAPE` as a directory that transformers loads."""
    settings = dict(RANDOM_SHAPES[shape])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    config.eos_token_id = config.bos_token_id = None
    config.architectures = [f"{config.model_type.capitalize()}ForCausalLM"]
    config.save_pretrained(directory)
    weights = RandomWeights(architecture_of(config), query_key_norm=config.model_type == "qwen3")
    save_file({name: weights[name].clone() for name in weights}, directory / "model.safetensors")
    backend = random_tokenizer(config.vocab_size).backend
    saved: Any = PreTrainedTokenizerFast
    saved(tokenizer_object=backend).save_pretrained(directory)


def main() -> None:
    kind, model_name, dtype = sys.argv[1:4]
    if kind == "handmade":
        listener = listen("127.0.0.1", 0)
        app = handmade(model_name, dtype)
        announce(listener)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
    else:
        serve_bursts({"bare": bare, "transformers": transformers_batching}[kind](model_name, dtype))


if __name__ == "__main__":
    main()
