"""What several notebooks need and none teaches: loading a model, tables, figures, checking an exercise."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Mapping, Sequence
from types import EllipsisType
from typing import Any

import torch
from IPython.display import Markdown
from matplotlib import pyplot
from matplotlib.rcsetup import cycler

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # tqdm warns without ipywidgets, but nothing here draws a progress bar
    from ladder.lab.client import clock
    from ladder.lab.looks import COLOURS, STYLE
    from ladder.llm.loading import Model, load_model
    from ladder.web.protocols import StreamingEngine
    from ladder.web.schema import GenerateRequest, TokenEvent

warnings.filterwarnings("ignore", message='install "ipywidgets"')  # the same for rich

ONE_THREAD = ["--threads", "1"]
"""For servers that share a small machine. The bundled model is too small to gain from a second core."""

pyplot.rcParams.update(STYLE)
pyplot.rcParams.update({"axes.prop_cycle": cycler(color=list(COLOURS.values()))})
pyplot.rcParams.update({"figure.constrained_layout.use": True, "figure.dpi": 80})


def load() -> Model:
    """The bundled model, on one core."""
    torch.set_num_threads(1)
    return load_model("tiny", dtype="float32", device="cpu")


def ask(prompt: str, max_tokens: int = 128, **settings: Any) -> GenerateRequest:
    """A request as a client sends it: greedy, unless `settings` say otherwise."""
    return GenerateRequest(prompt=prompt, max_tokens=max_tokens, **{"temperature": 0, **settings})


async def generate(engine: StreamingEngine, request: GenerateRequest) -> list[TokenEvent]:
    """All events of one request, from an engine object in this process."""
    sequence = engine.submit(request)
    try:
        return [event async for event in engine.events(sequence)]
    finally:
        engine.abort(sequence)


async def generate_all(
    engine: StreamingEngine, requests: Sequence[GenerateRequest]
) -> list[list[TokenEvent]]:
    """The same for several requests that arrive at once."""
    return await asyncio.gather(*(generate(engine, request) for request in requests))


def text_of(events: Sequence[TokenEvent]) -> str:
    return "".join(event.token for event in events)


def table(columns: Mapping[str, Mapping[str, object]]) -> Markdown:
    """A table of columns; each maps the names of its rows to values."""
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    head = f"| | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}"
    lines = (
        f"| {row} | {' | '.join(shown(column.get(row, '')) for column in columns.values())} |" for row in rows
    )
    return Markdown("\n".join([head, *lines]))  # type: ignore[no-untyped-call]


def shown(value: object) -> str:
    if isinstance(value, float):
        return (
            f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2g}"
        )
    return str(value)


def check(answer: object | EllipsisType, solution: object, proof: object) -> None:
    """Compare the reader's answer with what a run has shown; `...` means that there is no answer yet."""
    assert solution == proof, f"the solution is {solution!r}, but the run shows {proof!r}"
    if answer is ...:
        print("No answer yet. The run agrees with the solution in the folded cell above.")
    elif answer == proof:
        print(f"Correct: the run shows {proof!r} too.")
    else:
        raise AssertionError(f"your answer is {answer!r}, but the run shows {proof!r}")


async def lateness(work: Awaitable[object], interval: float = 0.005) -> list[tuple[float, float]]:
    """Wake a task regularly while `work` runs; how late it is each time, as (seconds, milliseconds late)."""
    working = asyncio.ensure_future(work)
    started = clock()
    samples = []
    while not working.done():
        due = clock() + interval
        await asyncio.sleep(interval)
        samples.append((due - started, 1000 * (clock() - due)))
    await working
    return samples
