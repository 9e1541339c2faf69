"""Matrix products with weights that never change: where nearly all of a model's time goes.

Decoding reads every weight once for each forward pass, so on a CPU the bytes of a weight decide the speed:
4 in float32, 2 in bfloat16, 1 in int8. How weights are laid out is chosen here, once, when they are loaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]

INT8_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")
"""Torch's backends for int8 products, the best first; which of them a build has depends on the processor."""


def int8_engine() -> str | None:
    available = torch.backends.quantized.supported_engines
    return next((engine for engine in INT8_ENGINES if engine in available), None)


def make_linear(weight: Tensor, bias: Tensor | None, int8: bool = False) -> Linear:
    """The fastest product that this machine has for `x @ weight.T + bias`."""
    if int8:
        return int8_linear(weight, bias)
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and onednn_has_bfloat16():
        return onednn_linear(weight, bias)
    return lambda x: F.linear(x, weight, bias)


def int8_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Weights in int8 with a scale for each output; inputs are turned into int8 as they come.

    Torch calls this dynamic quantization. It has announced that the quantized *tensors* that its packing
    takes will go; when they do, this function is all that has to change.
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
    # One bit less for the inputs: processors without int8 dot products would overflow their sums.
    return lambda x: product(x, packed, True)


def onednn_has_bfloat16() -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available and torch.ops.mkldnn._is_mkldnn_bf16_supported())


WIDE = 64
"""From so many rows on a product is bound by arithmetic, no longer by reading weights."""


def onednn_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Reordered once, for a batch of medium size; `F.linear` would reorder the weights at every call.

    Processors that multiply bfloat16 at half the rate of float32, or no faster, gain from turning the weights
    into float32 for a wide product, such as a prompt's. It is the same product: both add up in float32.
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
