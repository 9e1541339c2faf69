"""Measures the matrix multiplications of a model in each dtype, and how they change with the number of rows.

    python -m benchmarks.products

A decode step has one row per request, a prefill one row per prompt token. The benchmark runs the matrix
multiplications of all thirty layers of smollm2-135m one after the other. So each weight has to come from
memory, as in the model. The dtypes take turns; each figure is the fastest of its rounds.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.results_file import RESULTS, rounds_parser, write_result
from ladder.llm.linear import Linear, make_linear

LAYERS = 30
SHAPES = ((576, 960), (576, 576), (576, 3072), (1536, 576))  # inputs and outputs of a layer's products
ROWS = (1, 4, 16, 32, 64, 256)
OPERATIONS = 2 * LAYERS * sum(inputs * outputs for inputs, outputs in SHAPES)


def plain(weight: Tensor, _: Tensor | None) -> Linear:
    """`F.linear` with the weights as they are, not packed."""
    return lambda x: F.linear(x, weight)


Layer = list[Linear]
KINDS: dict[str, tuple[torch.dtype, Callable[[Tensor, None], Linear]]] = {
    "float32": (torch.float32, make_linear),
    "bfloat16, F.linear": (torch.bfloat16, plain),
    "bfloat16": (torch.bfloat16, make_linear),
    "int8": (torch.float32, lambda weight, bias: make_linear(weight, bias, int8=True)),
}


def make_layers(dtype: torch.dtype, make: Callable[[Tensor, None], Linear]) -> list[Layer]:
    def product(inputs: int, outputs: int) -> Linear:
        return make(torch.randn(outputs, inputs).to(dtype), None)

    return [[product(*shape) for shape in SHAPES] for _ in range(LAYERS)]


def seconds(layers: list[Layer], dtype: torch.dtype, rows: int) -> float:
    inputs = {size: torch.randn(rows, size).to(dtype) for size, _ in SHAPES}
    started = time.perf_counter()
    for layer in layers:
        for product, (size, _) in zip(layer, SHAPES, strict=True):
            product(inputs[size])
    return time.perf_counter() - started


@torch.inference_mode()
def measure(rounds: int, console: Console) -> dict[str, dict[int, float]]:
    kinds = {name: (make_layers(dtype, make), dtype) for name, (dtype, make) in KINDS.items()}
    fastest = {name: dict.fromkeys(ROWS, float("inf")) for name in kinds}
    with console.status("") as status:
        for number in range(rounds):
            for rows in ROWS:
                status.update(f"round {number + 1} of {rounds}: {rows} rows")
                for name, (layers, dtype) in kinds.items():
                    fastest[name][rows] = min(fastest[name][rows], seconds(layers, dtype, rows))
    return fastest


def main() -> None:
    options = rounds_parser(__doc__, 20, RESULTS / "products.json").parse_args()
    console = Console()
    with errors_in_one_line("benchmarks.products"):
        fastest = measure(options.rounds, console)
    table = Table("ms (and 10⁹ operations/s)", *(f"{rows} rows" for rows in ROWS))
    for name, by_rows in fastest.items():
        table.add_row(
            name,
            *(f"{1000 * time:.1f} ({rows * OPERATIONS / time / 1e9:.0f})" for rows, time in by_rows.items()),
        )
    console.print(table)
    result = {
        "threads": torch.get_num_threads(),
        "milliseconds": {
            name: {rows: 1000 * time for rows, time in by.items()} for name, by in fastest.items()
        },
    }
    write_result(options.output, f"python -m benchmarks.products --rounds {options.rounds}", result)


if __name__ == "__main__":
    main()
