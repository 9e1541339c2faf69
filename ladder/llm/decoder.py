"""A Llama-family decoder in plain torch: Llama, Mistral, Qwen2 and Qwen3.

The model keeps nothing between calls. Keys and values live in a `KVCache` that belongs to the caller, and in
which each request in flight has a slot:

    cache:   slot 0  [The] [fox] [ran] [to]   .     .          length 4
             slot 1  [2]   [+]    .     .     .     .          length 2

    prefill(cache, [1], [[ids of a prompt]])    continues a slot with the tokens of a prompt
    decode(cache, [0, 1], [id, id])             adds one token to each of these slots

Both are the same forward pass over a padded batch of new tokens, with one row per slot. It writes their keys
and values into the slots, lets every token attend to its own slot up to itself, and returns the logits that
follow each row's last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ladder.llm.cache import KVCache
from ladder.llm.linear import Linear


@dataclass(frozen=True)
class Architecture:
    """The sizes and choices that make one model of the family differ from another."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_epsilon: float
    tied_head: bool  # the output matrix is the embedding
    rope_frequencies: Tensor
    rope_scale: float


@dataclass(frozen=True)
class Layer:
    """One transformer block. Projections that read the same input are one matrix."""

    attention_norm: Tensor
    query_key_value: Linear
    query_key_norm: Tensor | None  # [heads + kv_heads, head_dim]; Qwen3 only
    attention_output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True)
class PassPlan:
    """What all layers of one forward pass share."""

    cache: KVCache
    selection: slice | list[int]  # the slots that take part
    length: int  # how far into the slots the longest row reads
    kept: Tensor | None  # which of the new tokens are real, batch × tokens; None where none is padding
    targets: Tensor  # where the new keys and values go, as rows of the flattened cache
    cosine: Tensor  # [batch, tokens, 1, head_dim]
    sine: Tensor
    mask: Tensor | None  # added to attention scores; None where every row may read all of `length`


class Decoder:
    """The model: token ids in, logits out, keys and values into the caller's cache."""

    def __init__(
        self,
        architecture: Architecture,
        embedding: Tensor,
        layers: list[Layer],
        norm: Tensor,
        head: Linear,
        cache_dtype: torch.dtype,
    ) -> None:
        self.architecture = architecture
        self.embedding = embedding
        self.layers = layers
        self.norm = norm
        self.head = head
        self.dtype = embedding.dtype
        self.cache_dtype = cache_dtype
        self.device = embedding.device
        self.cosine, self.sine = rotation_tables(architecture, self.dtype, self.device)

    def new_cache(self, slots: int, context: int | None = None) -> KVCache:
        """Room for `slots` requests of up to `context` tokens each."""
        context = context or self.architecture.context
        shape = self.architecture
        sizes = (shape.layers, 2, slots, shape.kv_heads, context, shape.head_dim)
        return KVCache(sizes, self.cache_dtype, self.device)

    def tokens_in(self, memory: int) -> int:
        """How many tokens' keys and values fit into so many bytes."""
        shape = self.architecture
        return memory // (2 * shape.layers * shape.kv_heads * shape.head_dim * self.cache_dtype.itemsize)

    def prefill(self, cache: KVCache, slots: Sequence[int], chunks: Sequence[Sequence[int]]) -> Tensor:
        """Append to each slot its chunk of a prompt; return the logits after each, [batch, vocabulary].

        A slot continues where it stands, so a long prompt can be prefilled in several chunks. Shorter chunks
        are padded on the right; the padding is computed, but never written to a slot.
        """
        counts = [len(chunk) for chunk in chunks]
        width = max(counts)
        padded = [[*chunk, *[0] * (width - len(chunk))] for chunk in chunks]
        return self._forward(cache, slots, torch.tensor(padded, device=self.device), counts)

    def decode(self, cache: KVCache, slots: Sequence[int], tokens: Sequence[int] | Tensor) -> Tensor:
        """Append one token to each slot; return the logits after each, [batch, vocabulary]."""
        column = torch.as_tensor(tokens, device=self.device).unsqueeze(1)
        return self._forward(cache, slots, column, [1] * len(slots))

    @torch.inference_mode()
    def _forward(self, cache: KVCache, slots: Sequence[int], tokens: Tensor, counts: Sequence[int]) -> Tensor:
        plan = self._plan(cache, slots, counts)
        x = F.embedding(tokens, self.embedding)  # [batch, tokens, hidden]
        for index, layer in enumerate(self.layers):
            x = x + self._attend(plan, index, layer, self._normalize(x, layer.attention_norm))
            x = x + self._feed_forward(layer, self._normalize(x, layer.mlp_norm))
        if tokens.shape[1] > 1:
            rows = torch.arange(len(slots), device=self.device)
            x = x[rows, torch.tensor(counts, device=self.device) - 1]  # [batch, hidden]
        logits = self.head(self._normalize(x.view(len(slots), -1), self.norm))
        for slot, count in zip(slots, counts, strict=True):
            cache.lengths[slot] += count
        return logits

    def _plan(self, cache: KVCache, slots: Sequence[int], counts: Sequence[int]) -> PassPlan:
        """Compute once per step what all layers need: positions, write targets, rotation, mask."""
        width = max(counts)
        starts = [cache.lengths[slot] for slot in slots]
        length = max(start + count for start, count in zip(starts, counts, strict=True))
        if length > cache.context:
            raise ValueError(f"{length} tokens do not fit a slot of {cache.context}")
        start = torch.tensor(starts, device=self.device)
        offsets = torch.arange(width, device=self.device)
        # [batch, tokens]; padding may lie beyond the longest row, where the tables have no entry.
        positions = (start[:, None] + offsets).clamp_(max=length - 1)
        targets = self._write_targets(cache, slots, positions)
        kept = None
        if min(counts) < width:
            real = offsets < torch.tensor(counts, device=self.device)[:, None]
            kept = real.flatten().nonzero().squeeze(1)
            targets = targets[kept]
        mask = None
        if width > 1 or min(starts) != max(starts):
            unseen = torch.arange(length, device=self.device) > positions[..., None]
            mask = torch.zeros(unseen.shape, dtype=self.cache_dtype, device=self.device)
            mask.masked_fill_(unseen, float("-inf"))
            # [batch, 1, group × tokens, length]: each query head of a group sees the same.
            mask = mask.repeat(1, self._group, 1).unsqueeze(1)
        return PassPlan(
            cache=cache,
            selection=cache.selection(slots),
            length=length,
            kept=kept,
            targets=targets.flatten(),
            cosine=self.cosine[positions].unsqueeze(2),
            sine=self.sine[positions].unsqueeze(2),
            mask=mask,
        )

    @property
    def _group(self) -> int:
        return self.architecture.heads // self.architecture.kv_heads

    def _write_targets(self, cache: KVCache, slots: Sequence[int], positions: Tensor) -> Tensor:
        """For each new token its key rows, then its value rows, as indices into one layer's rows."""
        kv_heads = self.architecture.kv_heads
        slot = torch.tensor(slots, device=self.device)
        heads = torch.arange(kv_heads, device=self.device)
        keys = (slot[:, None] * kv_heads + heads) * cache.context  # [batch, kv_heads]
        keys = keys[:, None, :] + positions[..., None]  # [batch, tokens, kv_heads]
        values = keys + len(cache.lengths) * kv_heads * cache.context
        return torch.cat((keys, values), dim=-1).flatten(0, 1)

    def _attend(self, plan: PassPlan, index: int, layer: Layer, x: Tensor) -> Tensor:
        shape = self.architecture
        batch, width, _ = x.shape
        rotated = shape.heads + shape.kv_heads
        projected = layer.query_key_value(x).view(batch, width, rotated + shape.kv_heads, shape.head_dim)
        query_key = projected[:, :, :rotated]
        if layer.query_key_norm is not None:
            query_key = (
                F.rms_norm(query_key, (shape.head_dim,), eps=shape.norm_epsilon) * layer.query_key_norm
            )
        # Rotary embedding: the pair (a, b), half a head apart, is rotated by its position's angle. `sine` has
        # its first half negated, so that only the halves have to be swapped.
        swapped = query_key.roll(shape.head_dim // 2, -1)
        query_key = torch.addcmul(query_key * plan.cosine, swapped, plan.sine)

        key_value = torch.cat((query_key[:, :, shape.heads :], projected[:, :, rotated:]), dim=2)
        key_value = key_value.to(self.cache_dtype)
        new = key_value if plan.kept is None else key_value.flatten(0, 1)[plan.kept]
        rows = plan.cache.data[index].view(-1, shape.head_dim)
        rows.index_copy_(0, plan.targets, new.view(-1, shape.head_dim))
        keys, values = plan.cache.data[index, :, plan.selection, :, : plan.length]
        # Query heads that share a key head are laid out as extra query tokens: grouped-query attention
        # without repeated copies of keys and values. [batch, kv_heads, group × tokens, head_dim]
        query = query_key[:, :, : shape.heads].transpose(1, 2)
        query = query.reshape(batch, shape.kv_heads, self._group * width, shape.head_dim)
        mixed = F.scaled_dot_product_attention(query.to(self.cache_dtype), keys, values, attn_mask=plan.mask)
        mixed = mixed.to(x.dtype)
        mixed = mixed.view(batch, shape.heads, width, shape.head_dim).transpose(1, 2)
        return layer.attention_output(mixed.reshape(batch, width, shape.heads * shape.head_dim))

    @staticmethod
    def _feed_forward(layer: Layer, x: Tensor) -> Tensor:
        gate, up = layer.gate_up(x).chunk(2, dim=-1)
        return layer.down(F.silu(gate) * up)

    def _normalize(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm over the last axis, computed in float32."""
        return F.rms_norm(x, weight.shape, weight, self.architecture.norm_epsilon)


def rotation_tables(
    architecture: Architecture, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine for every position, [context, head_dim]; the sine's first half is negated."""
    positions = torch.arange(architecture.context, dtype=torch.float)
    angles = positions[:, None] * architecture.rope_frequencies
    cosine = angles.cos() * architecture.rope_scale
    sine = angles.sin() * architecture.rope_scale
    return (
        torch.cat((cosine, cosine), dim=-1).to(device, dtype),
        torch.cat((-sine, sine), dim=-1).to(device, dtype),
    )
