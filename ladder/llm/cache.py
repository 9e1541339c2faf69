"""The KV cache: keys and values of every token of the requests in flight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class KVCache:
    """A number of slots, each with room for the keys and values of up to `context` tokens.

    One tensor of shape [layers, 2, slots, kv_heads, context, head_dim]: index 0 of the second axis holds the
    keys, index 1 the values. Reading adjacent slots is a view; other sets are copied in every layer of every
    step. So a caller with many requests keeps them in slots 0 to n - 1 and calls `move` when one ends.
    """

    def __init__(
        self, shape: tuple[int, int, int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._memory = zeros(math.prod(shape), dtype, device)
        self.data = self._memory.view(shape)
        self.context = shape[4]
        self.lengths = [0] * shape[2]

    def reshape(self, slots: int, context: int) -> None:
        """Cut the same memory into more and shorter slots, or into fewer and longer ones.

        Their content stays, so the slots in use must be among the first `slots` and fit `context`.
        """
        held = [self.data[:, :, slot, :, : self.lengths[slot]].clone() for slot in self.occupied()]
        layers, two, _, kv_heads, _, head_dim = self.data.shape
        shape = (layers, two, slots, kv_heads, context, head_dim)
        self.data = self._memory[: math.prod(shape)].view(shape)
        self.context = context
        occupied = self.occupied()
        self.lengths = [*self.lengths[:slots], *[0] * (slots - len(self.lengths))]
        for slot, content in zip(occupied, held, strict=True):
            self.data[:, :, slot, :, : self.lengths[slot]] = content

    def occupied(self) -> list[int]:
        return [slot for slot, length in enumerate(self.lengths) if length > 0]

    def reset(self, slot: int) -> None:
        """Empty the slot for another request, which overwrites what it held."""
        self.lengths[slot] = 0

    def move(self, source: int, target: int) -> None:
        """Copy one request's keys and values to another slot, and empty the old one."""
        if source == target:
            return
        length = self.lengths[source]
        self.data[:, :, target, :, :length] = self.data[:, :, source, :, :length]
        self.lengths[target], self.lengths[source] = length, 0

    @staticmethod
    def selection(slots: Sequence[int]) -> slice | list[int]:
        """The cheapest index for these slots: a slice, which is a view, if they lie in a row."""
        first, last = slots[0], slots[-1]
        adjacent = list(slots) == list(range(first, last + 1))
        return slice(first, last + 1) if adjacent else list(slots)


def zeros(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a cache. Zeros, because masked positions are multiplied by 0, and 0 × NaN is NaN.

    They are written at once, so that the system provides the memory now and not during the first requests.
    On a CPU numpy writes them with one core: a thread that lets torch do it keeps OpenMP helpers of its own,
    which `ladder.web.server.load` avoids.
    """
    if device.type == "cpu":
        memory = np.empty(size * dtype.itemsize, dtype=np.uint8)
        memory.fill(0)
        return torch.from_numpy(memory).view(dtype)
    return torch.zeros(size, dtype=dtype, device=device)
