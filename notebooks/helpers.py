"""What several notebooks need and none of them teaches: loading, tables, figures, checking an answer."""

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
    warnings.simplefilter("ignore")  # tqdm misses ipywidgets, and nothing here draws a progress bar
    from ladder.lab.client import clock
    from ladder.lab.looks import COLOURS, STYLE
    from ladder.llm.loading import Model, load_model
    from ladder.web.protocols import StreamingEngine
    from ladder.web.schema import GenerateRequest, TokenEvent

warnings.filterwarnings("ignore", message='install "ipywidgets"')  # nor does rich

ONE_THREAD = ["--threads", "1"]
"""Servers that share a small machine; the bundled model is too small to gain from a second core."""

pyplot.rcParams.update(STYLE)
pyplot.rcParams.update({"axes.prop_cycle": cycler(color=list(COLOURS.values()))})
pyplot.rcParams.update({"figure.constrained_layout.use": True, "figure.dpi": 80})


def load() -> Model:
    """The bundled model, on one core."""
    torch.set_num_threads(1)
    return load_model("tiny", dtype="float32", device="cpu")


def ask(prompt: str, max_tokens: int = 128, **settings: Any) -> GenerateRequest:
    """A request as a client would send it, greedy unless told otherwise."""
    return GenerateRequest(prompt=prompt, max_tokens=max_tokens, **{"temperature": 0, **settings})


async def answer_of(engine: StreamingEngine, request: GenerateRequest) -> list[TokenEvent]:
    """All tokens of one request, from an engine in this process."""
    sequence = engine.submit(request)
    try:
        return [event async for event in engine.events(sequence)]
    finally:
        engine.abort(sequence)


async def answers_of(engine: StreamingEngine, requests: Sequence[GenerateRequest]) -> list[list[TokenEvent]]:
    """The same for several that come at once."""
    return await asyncio.gather(*(answer_of(engine, request) for request in requests))


def text_of(events: Sequence[TokenEvent]) -> str:
    return "".join(event.token for event in events)


def table(columns: Mapping[str, Mapping[str, object]]) -> Markdown:
    """Named columns of named rows, as a table."""
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
    """Say whether the reader's answer is what a run has shown; `...` stands for no answer yet."""
    assert solution == proof, f"the solution says {solution!r}, the run {proof!r}"
    if answer is ...:
        print("No answer yet. The run agrees with the solution in the folded cell above.")
    elif answer == proof:
        print(f"Right: the run shows {proof!r} too.")
    else:
        raise AssertionError(f"you say {answer!r}, the run shows {proof!r}")


async def lateness(work: Awaitable[object], interval: float = 0.005) -> list[tuple[float, float]]:
    """How late a task of this event loop is woken while the work is done, as (seconds, milliseconds late)."""
    working = asyncio.ensure_future(work)
    started = clock()
    beats = []
    while not working.done():
        due = clock() + interval
        await asyncio.sleep(interval)
        beats.append((due - started, 1000 * (clock() - due)))
    await working
    return beats
