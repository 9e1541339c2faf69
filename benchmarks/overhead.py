"""Measures the cost of the server: a bare model loop against the same work through HTTP, alternately.

    python -m benchmarks.overhead [--rung 02_async_streaming.py] [--model random:smollm2-135m] [--rounds 15]

Two figures, each a ratio of medians on an idle server:

    TTFT        time to first token through HTTP / prefill and sampling in a loop without a server
    tokens/s    streamed through HTTP / the bare decode loop
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.results_file import RESULTS, rounds_parser, write_result
from ladder.lab.client import Client
from ladder.lab.launch import running_rungs
from ladder.llm.loading import Model, load_model
from ladder.llm.sampling import SamplingBatch, SamplingSettings, sample
from ladder.stats import median

PROMPT_TOKENS = OUTPUT_TOKENS = 64


@dataclass(frozen=True)
class Run:
    first_token: float  # seconds
    tokens_per_second: float  # after the first token


def prompt_of(model: Model, tokens: int) -> str:
    """A prompt of exactly `tokens` tokens."""
    prompt = " a" * tokens
    assert len(model.tokenizer.encode(prompt)) == tokens
    return prompt


def run_bare(model: Model, prompt_ids: list[int]) -> Run:
    """Prefill, decode and sample, without a server."""
    greedy = SamplingBatch([SamplingSettings()])
    started = time.perf_counter()
    cache = model.decoder.new_cache(slots=1, context=PROMPT_TOKENS + OUTPUT_TOKENS)
    token = int(sample(model.decoder.prefill(cache, [0], [prompt_ids]), greedy, [0]))
    first = time.perf_counter()
    for count in range(1, OUTPUT_TOKENS):
        token = int(sample(model.decoder.decode(cache, [0], [token]), greedy, [count]))
    return Run(first - started, (OUTPUT_TOKENS - 1) / (time.perf_counter() - first))


async def run_http(url: str, prompt: str) -> Run:
    """One request on a new connection. Connecting counts, because the server closes idle connections."""
    async with Client(url) as client:
        answer = await client.generate(prompt, max_tokens=OUTPUT_TOKENS, temperature=0, stream=True)
    assert len(answer.token_times) == OUTPUT_TOKENS
    return Run(answer.ttft, (OUTPUT_TOKENS - 1) / (answer.token_times[-1] - answer.token_times[0]))


async def alternate(model: Model, url: str, rounds: int, console: Console) -> tuple[list[Run], list[Run]]:
    """The two take turns, so that a drift of the machine's speed affects both."""
    prompt = prompt_of(model, PROMPT_TOKENS)
    prompt_ids = model.tokenizer.encode(prompt)
    bare, http = [], []
    for number in track(range(rounds + 1), description="measuring", console=console, transient=True):
        pair = run_bare(model, prompt_ids), await run_http(url, prompt)
        if number > 0:  # the first pair is the warm-up
            bare.append(pair[0])
            http.append(pair[1])
    return bare, http


def report(console: Console, bare: Sequence[Run], http: Sequence[Run]) -> dict[str, float]:
    first = [median([run.first_token for run in runs]) * 1000 for runs in (bare, http)]
    speed = [median([run.tokens_per_second for run in runs]) for runs in (bare, http)]
    table = Table("", "bare loop", "through HTTP", "ratio")
    table.add_row(
        "time to first token", *(f"{value:.1f} ms" for value in first), f"{first[1] / first[0]:.3f}"
    )
    table.add_row("tokens/s after it", *(f"{value:.1f}" for value in speed), f"{speed[1] / speed[0]:.3f}")
    console.print(table)
    return {"first_token_ratio": first[1] / first[0], "tokens_per_second_ratio": speed[1] / speed[0]}


def main() -> None:
    parser = rounds_parser(__doc__, 15, RESULTS / "overhead.json")
    parser.add_argument("--rung", default="02_async_streaming.py", help="default: %(default)s")
    parser.add_argument("--model", default="random:smollm2-135m", help="default: %(default)s")
    options = parser.parse_args()
    console = Console()
    with errors_in_one_line("benchmarks.overhead"):
        model = load_model(options.model)
        with running_rungs((options.rung, ["--model", options.model])) as (url,):
            bare, http = asyncio.run(alternate(model, url, options.rounds, console))
    flags = f"--rung {options.rung} --model {options.model} --rounds {options.rounds}"
    result = {
        "threads": torch.get_num_threads(),
        "dtype": str(model.decoder.dtype).removeprefix("torch."),
        **report(console, bare, http),
        "samples": {"bare": [vars(run) for run in bare], "http": [vars(run) for run in http]},
    }
    write_result(options.output, f"python -m benchmarks.overhead {flags}", result)
    console.print(f"raw samples: {os.path.relpath(options.output)}")


if __name__ == "__main__":
    main()
