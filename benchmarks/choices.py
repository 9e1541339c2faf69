"""Measures the design choices of the engine, each beside its alternatives; NOTES.md explains them.

    python -m benchmarks.choices [--rounds 15]

The alternatives of a choice take turns; a figure is the median of the rounds, in milliseconds. Steps are
those of `random:smollm2-135m`; each request has 64 tokens in the KV cache.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import gc
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.products import LAYERS, SHAPES, make_layers, plain, seconds as seconds_of_products
from benchmarks.results_file import RESULTS, rounds_parser, write_result
from ladder.llm import linear
from ladder.llm.decoder import Decoder
from ladder.llm.linear import Linear
from ladder.llm.loading import load_model
from ladder.stats import median

MODEL = "random:smollm2-135m"
BEHIND = 64
"""Tokens of each request that are already in the KV cache."""

Seconds = Callable[[], float]
Choice = Mapping[str, Seconds]
"""The alternatives by name. Calling one runs its work once and returns the seconds it took."""


def timed(work: Callable[[], object], times: int = 1) -> Seconds:
    def seconds() -> float:
        started = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - started) / times

    return seconds


@contextmanager
def having(place: object, name: str, value: object) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def step(decoder: Decoder, slots: Sequence[int]) -> Seconds:
    """A decode step for these slots. Their lengths are reset before each step."""
    cache = decoder.new_cache(max(slots) + 1, 2 * BEHIND)
    dtype = decoder.cache_dtype

    def decode() -> None:
        for slot in slots:
            cache.lengths[slot] = BEHIND
        with having(decoder, "cache_dtype", dtype):
            decoder.decode(cache, slots, [1] * len(slots))

    return timed(decode)


def step_with_cache(decoder: Decoder, dtype: torch.dtype, rows: int) -> Seconds:
    with having(decoder, "cache_dtype", dtype):
        return step(decoder, range(rows))


def prompts(decoder: Decoder, wide: int) -> Seconds:
    """Four prompts of 64 tokens in one pass; from `wide` rows on, bfloat16 is multiplied in float32."""
    cache = decoder.new_cache(4, BEHIND)

    def prefill() -> None:
        cache.lengths = [0] * 4
        with having(linear, "WIDE", wide):
            decoder.prefill(cache, range(4), [[1] * BEHIND] * 4)

    return timed(prefill)


def first_prompt(decoder: Decoder, written: bool) -> Seconds:
    """The first request of a server, with a KV cache that was written before, or only reserved by the OS."""

    def seconds() -> float:
        cache = decoder.new_cache(32, 1024)
        if not written:
            memory = np.zeros(cache.data.nbytes, dtype=np.uint8)
            cache.data = torch.from_numpy(memory).view(decoder.cache_dtype).view(cache.data.shape)
        return timed(lambda: decoder.prefill(cache, [0], [[1] * BEHIND]))()

    return seconds


def collection(frozen: bool) -> Seconds:
    """A full garbage collection in a process that has loaded a model."""

    def seconds() -> float:
        if frozen:
            gc.freeze()
        try:
            return timed(gc.collect)()
        finally:
            gc.unfreeze()

    return seconds


def products(make: Callable[[Tensor, None], Linear], dtype: torch.dtype, rows: int) -> Seconds:
    layers = make_layers(dtype, make)
    return lambda: seconds_of_products(layers, dtype, rows)


def int8_by(engine: str) -> Callable[[Tensor, None], Linear]:
    def make(weight: Tensor, bias: None) -> Linear:
        with having(linear, "INT8_ENGINES", (engine,)):
            return linear.make_linear(weight, bias, int8=True)

    return make


def int8_by_row(weight: Tensor, _: None) -> Linear:
    """Each input row is scaled to -1 … 1 by itself, so that its rounding does not depend on other rows."""
    scales = weight.abs().amax(dim=1).double() / 127
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings(), having(torch.backends.quantized, "engine", "x86"):
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantized, None)
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def linear(x: Tensor) -> Tensor:
        largest = x.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12)
        together: Tensor = product(x / largest, 1 / 63, 64, packed)
        return together.mul_(largest)

    return linear


def weight_only_int8(weight: Tensor, _: None) -> Linear:
    scales = weight.float().abs().amax(dim=1) / 127
    packed = (weight.float() / scales[:, None]).round().to(torch.int8)
    scales = scales.to(weight.dtype)
    return lambda x: torch._weight_int8pack_mm(x, packed, scales)


def packed_float32(weight: Tensor, _: None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, packed, None, "none", [], "")


def norm_by_hand(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def attention_by_hand(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    scores = query @ keys.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.softmax(-1) @ values


def choices() -> dict[str, Choice]:
    """Every choice; the alternative that the engine uses stands first."""
    dtypes = ("int8", "bfloat16", "float32")
    models = {dtype: load_model(MODEL, dtype=dtype, device="cpu").decoder for dtype in dtypes}
    eight, sixteen = models["int8"], models["bfloat16"]
    logits = torch.randn(16, 49152)
    half = logits.bfloat16()
    x, weight = torch.randn(16, 576), torch.randn(576)
    query, keys = torch.randn(16, 3, 3, 64), torch.randn(16, 3, 2 * BEHIND, 64)
    return {
        "weights, 16 rows": {name: step(decoder, range(16)) for name, decoder in models.items()},
        "bfloat16 prompts, 4 of 64": {
            "products in float32": prompts(sixteen, linear.WIDE),
            "products in bfloat16": prompts(sixteen, 10**9),
        },
        "greedy, float32": {
            "numpy": timed(lambda: logits.numpy().argmax(axis=-1)),
            "torch": timed(lambda: logits.argmax(dim=-1)),
        },
        "greedy, bfloat16": {
            "numpy": timed(lambda: half.float().numpy().argmax(axis=-1)),
            "torch": timed(lambda: half.argmax(dim=-1)),
        },
        **{
            f"keys and values under int8, {rows} rows": {
                "bfloat16": step_with_cache(eight, torch.bfloat16, rows),
                "float32": step_with_cache(eight, torch.float32, rows),
            }
            for rows in (16, 32)
        },
        "slots, 16 rows": {
            "the first": step(eight, range(16)),
            "every second": step(eight, range(0, 32, 2)),
        },
        "memory of the cache, first prompt": {
            "written": first_prompt(eight, written=True),
            "promised": first_prompt(eight, written=False),
        },
        "a full collection": {"frozen": collection(True), "not frozen": collection(False)},
        "int8 products, 16 rows": {
            "x86": products(int8_by("x86"), torch.float32, 16),
            "onednn": products(int8_by("onednn"), torch.float32, 16),
            "x86, a scale for each row": products(int8_by_row, torch.float32, 16),
            "weights only": products(weight_only_int8, torch.bfloat16, 16),
        },
        **{
            f"float32 products, {rows} rows": {
                "F.linear": products(plain, torch.float32, rows),
                "packed for oneDNN": products(packed_float32, torch.float32, rows),
            }
            for rows in (1, 4)
        },
        "norm, 16 rows": {
            "F.rms_norm": timed(lambda: F.rms_norm(x, (576,), weight, 1e-5), 100),
            "by hand": timed(lambda: norm_by_hand(x, weight), 100),
        },
        "attention, 16 rows": {
            "scaled_dot_product_attention": timed(
                lambda: F.scaled_dot_product_attention(query, keys, keys), 100
            ),
            "two products": timed(lambda: attention_by_hand(query, keys, keys), 100),
        },
    }


@torch.inference_mode()
def measure(rounds: int, console: Console) -> dict[str, dict[str, float]]:
    all_choices = choices()
    found = {name: {way: list[float]() for way in choice} for name, choice in all_choices.items()}
    for number in track(range(rounds + 1), "measuring", console=console, transient=True):
        for name, choice in all_choices.items():
            for way, seconds in choice.items():
                took = 1000 * seconds()
                if number > 0:  # the first round is the warm-up
                    found[name][way].append(took)
    return {name: {way: median(took) for way, took in ways.items()} for name, ways in found.items()}


def with_a_second_thread(rounds: int) -> dict[str, float]:
    """A step in the thread that has run all steps so far; then in a second one, beside the first's helpers.

    A process cannot stop the helper threads of OpenMP, so this measurement comes last, in this order.
    """
    decoder = load_model(MODEL, dtype="int8", device="cpu").decoder
    one_step = step(decoder, range(16))
    with torch.inference_mode():
        alone = median([one_step() for _ in range(rounds)])

    def in_another() -> float:
        with torch.inference_mode():
            return median([one_step() for _ in range(rounds)])

    with ThreadPoolExecutor(1) as other:
        return {"one thread": 1000 * alone, "a second thread": 1000 * other.submit(in_another).result()}


def main() -> None:
    options = rounds_parser(__doc__, 15, RESULTS / "choices.json").parse_args()
    console = Console()
    with errors_in_one_line("benchmarks.choices"):
        milliseconds = measure(options.rounds, console)
        milliseconds["threads that run torch, 16 rows"] = with_a_second_thread(options.rounds)
    table = Table("", "", "ms")
    for name, ways in milliseconds.items():
        for way, took in ways.items():
            table.add_row(name, way, f"{took:.3f}")
    console.print(table)
    result = {
        "model": MODEL,
        "threads": torch.get_num_threads(),
        "layers": LAYERS,
        "shapes": SHAPES,
        "milliseconds": milliseconds,
    }
    write_result(options.output, f"python -m benchmarks.choices --rounds {options.rounds}", result)
    console.print(f"figures: {os.path.relpath(options.output)}")


if __name__ == "__main__":
    main()
