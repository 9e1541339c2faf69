"""Measurements for the demos of rungs 10 and 11, as a client makes them; and the demo of rung 10."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from ladder.cli import PredictionConfig
from ladder.errors import UserError
from ladder.lab import looks, plots
from ladder.lab.client import Client, clock
from ladder.lab.scenes import Figures
from ladder.lab.show import Show
from ladder.predict.predictor import Digits, Predictor, load_digits
from ladder.predict.versions import VersionStore
from ladder.stats import median

ROUNDS = 5
CLIENTS = 8
SWAPS = 20
FAILED = "failed"


@contextmanager
def rejections_in_one_line() -> Iterator[None]:
    """A flag such as --max-queue may allow less than the demo needs: then say which request was rejected."""
    try:
        yield
    except aiohttp.ClientResponseError as error:
        path = error.request_info.url.path
        raise UserError(f"with these flags the demo's server answers {path} with {error.status}") from error


class Predictions(Client):
    """A client of rungs 10 and 11."""

    async def post(self, path: str, body: Mapping[str, Any], **query: str) -> Any:
        async with self.session.post(path, json=body, params=query) as response:
            response.raise_for_status()
            return await response.json()

    async def predict(self, row: Sequence[float], version: str) -> Any:
        return await self.post("/predict", {"features": row}, version=version)

    async def batch(self, rows: Sequence[Sequence[float]], version: str, kind: str = "") -> Any:
        return await self.post(f"/predict/batch{kind}", {"instances": rows}, version=version)

    async def models(self) -> Any:
        async with self.session.get("/models") as response:
            return await response.json()

    async def swap(self, version: str) -> None:
        async with self.session.put("/models/digits/default", json={"version": version}) as response:
            response.raise_for_status()

    async def unload(self, version: str) -> None:
        async with self.session.delete(f"/models/digits/versions/{version}") as response:
            response.raise_for_status()

    async def load(self, version: str) -> None:
        async with self.session.put(f"/models/digits/versions/{version}") as response:
            response.raise_for_status()


def thousand(digits: Digits, pixel: int = 0) -> list[list[float]]:
    """1000 rows: the held-out digits, repeated. One pixel differs in each, so that none is in the cache."""
    repeated = np.tile(digits.images, (3, 1))[:1000]
    repeated[:, pixel] = np.arange(1000) / 1000
    rows: list[list[float]] = repeated.tolist()
    return rows


VERSION_ROWS = {
    "correct_percent": "held-out digits recognized correctly",
    "products": "multiplications per row",
    "kib": "memory of the weights, KiB",
    "rss_loaded_kib": "memory of the process while it is loaded, KiB",
    "rss_unloaded_kib": "memory of the process after unloading, KiB",
    "single_ms": "one row over HTTP, median",
    "cached_ms": "the same row from the cache, median",
    "batch_ms": "1000 rows over HTTP, one pass",
    "one_pass_ms": "1000 rows in the process, one pass",
    "task_a_row_ms": "1000 rows in the process, one task per row",
    "passes_for_64": "passes for 64 concurrent batches (shared while the model is busy)",
    "users": "users of this version, of 10,000",
    "arm_correct_percent": "correct predictions, by the labels of 200 users",
    "swap_requests": f"requests answered during {SWAPS} swaps of the default",
    "swap_failures": "requests that failed during the swaps, both versions",
}

UNLOADED = (
    "Unloading frees the weights. The process keeps memory of this size for later use "
    "instead of returning it to the system."
)


async def version_figures(client: Predictions, version: str, rows: list[list[float]]) -> Figures:
    """The accuracy and the costs of one version."""
    _, held_out = load_digits()
    info = (await client.models())["digits"]["versions"][version]
    read = (await client.batch(held_out.images.tolist(), version))["predictions"]
    singles = [await timed(client.predict(row, version)) for row in rows[:100]]
    again = [await timed(client.predict(row, version)) for row in rows[:100]]
    batches = [await timed(client.batch(rows, version)) for _ in range(ROUNDS)]
    before = (await client.health())["calls"]
    await asyncio.gather(*(client.batch(rows[:10], version, "/async") for _ in range(64)))
    return {
        "correct_percent": 100 * float(np.mean(np.array(read) == held_out.labels)),
        "kib": info["bytes"] / 1024,
        "single_ms": 1000 * median(singles),
        "cached_ms": 1000 * median(again),
        "batch_ms": 1000 * median(batches),
        "passes_for_64": (await client.health())["calls"] - before,
    }


async def unloading(client: Predictions, version: str) -> Figures:
    """The memory of the process with the version and without. Freed memory is not always returned."""
    loaded, unloaded = [], []
    for _ in range(ROUNDS):
        await client.load(version)
        loaded.append((await client.health())["rss_bytes"] / 1024)
        await client.unload(version)
        unloaded.append((await client.health())["rss_bytes"] / 1024)
    await client.load(version)
    return {"rss_loaded_kib": median(loaded), "rss_unloaded_kib": median(unloaded)}


async def timed(work: Any) -> float:
    started = clock()
    await work
    return clock() - started


async def in_process(predictor: Predictor, rows: list[list[float]]) -> Figures:
    """The same rows without HTTP: in one pass, and with a task per row."""
    array = np.array(rows, np.float32)

    async def task_a_row() -> None:
        await asyncio.gather(*(asyncio.to_thread(predictor.predict, row[None]) for row in array))

    together, apart = [], []
    for _ in range(ROUNDS):
        together.append(await timed(asyncio.to_thread(predictor.predict, array)))
        apart.append(await timed(task_a_row()))
    return {
        "products": predictor.products,
        "one_pass_ms": 1000 * median(together),
        "task_a_row_ms": 1000 * median(apart),
    }


async def swapping(client: Predictions, rows: list[list[float]], swaps: int = SWAPS) -> dict[str, Figures]:
    """Clients send requests for the default without a pause, while the default changes."""
    answers: asyncio.Queue[str] = asyncio.Queue()
    total: Counter[str] = Counter()

    async def ask(mine: Iterator[list[float]]) -> None:
        while True:
            try:
                answer = await client.predict(next(mine), "default")
                answers.put_nowait(answer["model_version"])
            except aiohttp.ClientError:
                answers.put_nowait(FAILED)

    async def until_answered(version: str, count: int) -> None:
        """Wait until this version has answered so many requests, or a request has failed."""
        while count:
            answer = await answers.get()
            total[answer] += 1
            count = 0 if answer == FAILED else count - (answer == version)

    async with asyncio.TaskGroup() as clients:
        asking = [clients.create_task(ask(cycle(rows[number::CLIENTS]))) for number in range(CLIENTS)]
        for number in range(swaps):
            kept, other = ("v1", "v2") if number % 2 else ("v2", "v1")
            await client.load(kept)
            await client.swap(kept)
            await client.unload(other)
            await until_answered(kept, 2 * CLIENTS)
        for task in asking:
            task.cancel()
    await client.load("v2")
    return {
        version: {"swap_requests": total[version], "swap_failures": total[FAILED]} for version in ("v1", "v2")
    }


async def experiment(client: Predictions, digits: Digits, users: int = 200) -> dict[str, Figures]:
    """Each user sends one digit, and then its label."""
    for user, (image, label) in enumerate(
        zip(digits.images[:users].tolist(), digits.labels.tolist(), strict=False)
    ):
        answer = await client.post("/predict/ab-test", {"features": image}, user_id=f"user-{user}")
        body = {"prediction_id": answer["prediction_id"], "label": float(label)}
        async with client.session.post("/feedback", json=body) as response:
            response.raise_for_status()
    async with client.session.get("/ab-test") as response:
        arms = (await response.json())["arms"]
    return {
        version: {"arm_correct_percent": 100 * arm["accuracy"]}
        for version, arm in arms.items()
        if arm["labelled"]
    }


async def show_versions(show: Show, url: str, config: PredictionConfig, users: Mapping[str, int]) -> None:
    """Measure both versions of the digits; `users` is how many users of the experiment get each."""
    _, held_out = load_digits()
    rows = thousand(held_out)
    digits = VersionStore(config.models).model("digits").versions
    figures: dict[str, Figures] = {}
    async with Predictions(url) as client:
        for version in ("v1", "v2"):
            with show.busy(f"{version}: one row, 1000 rows in one pass, 1000 rows with a task per row"):
                figures[version] = await version_figures(client, version, rows)
                figures[version] |= await in_process(await digits[version].in_memory(), rows)
                figures[version]["users"] = users[version]
        with show.busy("an A/B experiment with 200 users who send the label"):
            arms = await experiment(client, held_out)
        with show.busy("v2, the larger version, is unloaded and loaded again"):
            figures["v2"] |= await unloading(client, "v2")
        with show.busy(f"{CLIENTS} clients send requests while the default changes"):
            swaps = await swapping(client, rows)
    for version, column in figures.items():
        column |= arms.get(version, {}) | swaps[version]
    show.conclude(
        VERSION_ROWS, figures, ROUNDS, lambda file: plot_versions(file, show.title, figures), UNLOADED
    )


def plot_versions(file: Path, title: str, figures: Mapping[str, Figures]) -> None:
    ways = {
        "task_a_row_ms": "one task per row",
        "batch_ms": "one pass, over HTTP",
        "one_pass_ms": "one pass",
    }
    colours = {"v1": looks.GREY, "v2": looks.SKY}
    with plots.drawing(file, title, 2, figsize=(8, 6)) as (times, errors):
        for place, (version, column) in enumerate(figures.items()):
            spent = [column[way] for way in ways]
            heights = [number + 0.3 * place for number in range(len(ways))]
            # Dots, because a logarithmic axis has no zero: the length of a bar would mean nothing.
            times.plot(spent, heights, "o", label=version, color=colours[version])
            for milliseconds, height in zip(spent, heights, strict=True):
                times.annotate(
                    f"{milliseconds:.1f} ms",
                    (milliseconds, height),
                    (8, 0),
                    textcoords="offset points",
                    va="center",
                )
            bar = errors.barh(version, 100 - column["correct_percent"], height=0.6, color=colours[version])
            errors.bar_label(bar, fmt=" %.1f %%")
        times.set_yticks([number + 0.15 for number in range(len(ways))], list(ways.values()))
        times.set(xlabel="milliseconds for 1000 rows", xscale="log")
        times.margins(x=0.15, y=0.15)
        times.legend(loc="lower right")
        errors.set(xlabel="held-out digits recognized wrongly, percent")
        errors.margins(x=0.15)
        for panel in (times, errors):
            panel.invert_yaxis()  # in the order of the legend
            panel.grid(visible=False, axis="y")
