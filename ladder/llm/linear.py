"""Matrix multiplications with the model's weights, the largest single part of a forward pass on a CPU.

A forward pass reads every weight once: 4 bytes each in float32, 2 in bfloat16, 1 in int8. Fewer bytes make a
step faster, but not in proportion: the rest of the step stays the same (measured in benchmarks/NOTES.md).
The layout of the weights is chosen here, once, when they are loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]

INT8_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")
"""Torch's backends for int8, in order of preference; which of them exist depends on the processor."""


def int8_engine() -> str | None:
    available = torch.backends.quantized.supported_engines
    return next((engine for engine in INT8_ENGINES if engine in available), None)


def make_linear(weight: Tensor, bias: Tensor | None, int8: bool = False) -> Linear:
    """The fastest implementation of `x @ weight.T + bias` on this machine."""
    if int8:
        return int8_linear(weight, bias)
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and onednn_has_bfloat16():
        return onednn_linear(weight, bias)
    return lambda x: F.linear(x, weight, bias)


def int8_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights in int8 with one scale per output; inputs are quantized to int8 in each call.

    Torch calls this dynamic quantization. It has announced that it will remove the quantized *tensors* that
    its packing takes. Then only this function has to change.
    """
    engine = int8_engine()
    assert engine is not None
    torch.backends.quantized.engine = engine
    scales = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_channel(
            weight, scales.double(), torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8
        )
    packed = torch.ops.quantized.linear_prepack(quantized, bias)
    product = torch.ops.quantized.linear_dynamic
    # One bit less for the inputs: sums would overflow on processors without int8 dot products.
    return lambda x: product(x, packed, True)


def onednn_has_bfloat16() -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())


WIDE = 64
"""From this number of rows on, bfloat16 is multiplied in float32; benchmarks/NOTES.md compares both."""


def onednn_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights reordered once, for a batch of medium size; `F.linear` would reorder them in every call.

    For many rows, as in prefill, the weights are converted to float32. This is faster on processors that
    multiply bfloat16 no faster than float32. The result is the same, because both add up in float32.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    product = torch.ops.mkldnn._linear_pointwise
    wide_bias = None if bias is None else bias.float()

    def linear(x: Tensor) -> Tensor:
        if x.numel() < WIDE * x.shape[-1]:
            narrow: Tensor = product(x, packed, bias, "none", [], "")
            return narrow
        return F.linear(x.float(), weight.float(), wide_bias).to(x.dtype)

    return linear
