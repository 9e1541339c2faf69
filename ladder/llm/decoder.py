"""A Llama-family decoder in plain torch: Llama, Mistral, Qwen2 and Qwen3.

The model keeps nothing between calls. Keys and values live in a `KVCache` whose slots the caller
owns, one slot for each request under way:

    cache:   slot 0  [The] [fox] [ran] [to]   .     .          length 4
             slot 1  [2]   [+]    .     .     .     .          length 2

    prefill(cache, [1], [[ids of a prompt]])    fills a slot, from wherever it stands
    decode(cache, [0, 1], [id, id])             adds one token to each of these slots

Both are the same forward pass over a rectangle of new tokens, one row a slot. It writes their keys
and values into the slots, lets every token attend to its own slot up to itself, and returns the
logits that follow each row's last token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ladder.llm.linear import Linear, make_linear, onednn_has_bfloat16

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
# These two change their frequencies as a text grows, so that keys cached earlier would be wrong.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class UnsupportedModelError(ValueError):
    """The configuration asks for something that this decoder does not compute."""


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

    @classmethod
    def from_config(cls, config: Any) -> Architecture:
        """Read a transformers configuration, or say by name what in it is not supported."""
        if config.model_type not in ARCHITECTURES:
            raise UnsupportedModelError(
                f"architecture {config.model_type!r} is not supported; "
                f"supported are {', '.join(ARCHITECTURES)}"
            )
        if getattr(config, "quantization_config", None):
            raise UnsupportedModelError("quantized checkpoints are not supported; use the original")
        if config.hidden_act != "silu":
            raise UnsupportedModelError(f"activation {config.hidden_act!r} is not supported; only silu is")
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        frequencies, scale = rope_parameters(config, head_dim)
        return cls(
            vocabulary=config.vocab_size,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            context=usable_context(config),
            norm_epsilon=config.rms_norm_eps,
            tied_head=config.tie_word_embeddings,
            rope_frequencies=frequencies,
            rope_scale=scale,
        )


def usable_context(config: Any) -> int:
    """The longest text for which attending to everything is what the model was trained to do."""
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None) or ["sliding_attention" if window else ""]
    if window and "sliding_attention" in layer_types:
        return int(min(config.max_position_embeddings, window))
    return int(config.max_position_embeddings)


def rope_parameters(config: Any, head_dim: int) -> tuple[Tensor, float]:
    """Rotation frequencies and the scale of the rotation, as transformers computes them."""
    kind = config.rope_parameters["rope_type"]
    if kind in LENGTH_DEPENDENT_ROPE:
        raise UnsupportedModelError(f"rope type {kind!r} is not supported: it changes with the length")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # few models need it

    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies, float(scale)


class KVCache:
    """Keys and values of every token under way: `slots` rows of up to `context` tokens.

    One tensor of shape [layers, 2, slots, kv_heads, context, head_dim], where index 0 of the
    second axis holds the keys and index 1 the values. Reading slots that lie next to each other is a
    view; other sets are copied at every layer of every step, so a caller with many requests keeps
    them in slots 0 to n - 1 and calls `move` when one of them leaves.
    """

    def __init__(
        self, architecture: Architecture, slots: int, context: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (architecture.layers, 2, slots, architecture.kv_heads, context, architecture.head_dim)
        self._memory = zeros(math.prod(shape), dtype, device)
        self.data = self._memory.view(shape)
        self.context = context
        self.lengths = [0] * slots

    def reshape(self, slots: int, context: int) -> None:
        """Cut the same memory into more and shorter slots, or into fewer and longer ones.

        What the slots hold stays, so the ones in use must be among the first `slots` and fit `context`.
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
        """Hand the slot to a new request; what it held is overwritten as the new text grows."""
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

    They are written, not only promised by the system, so that the first clients do not wait for memory; and
    on a CPU by numpy, with one core: a thread that lets torch do it keeps OpenMP helpers of its own for
    ever, which is what `ladder.web.server.load` avoids.
    """
    if device.type == "cpu":
        memory = np.empty(size * dtype.itemsize, dtype=np.uint8)
        memory.fill(0)
        return torch.from_numpy(memory).view(dtype)
    return torch.zeros(size, dtype=dtype, device=device)


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
class Step:
    """What every layer of one forward pass shares."""

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
        return KVCache(self.architecture, slots, context, self.cache_dtype, self.device)

    def tokens_in(self, memory: int) -> int:
        """How many tokens' keys and values fit so many bytes."""
        shape = self.architecture
        return memory // (2 * shape.layers * shape.kv_heads * shape.head_dim * self.cache_dtype.itemsize)

    def prefill(self, cache: KVCache, slots: Sequence[int], chunks: Sequence[Sequence[int]]) -> Tensor:
        """Append to each slot its chunk of a prompt; return the logits after each, [batch, vocabulary].

        A slot continues where it stands, so a long prompt can come in several chunks. Shorter
        chunks are padded on the right; the padding is computed, but never written to a slot.
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
        step = self._plan(cache, slots, counts)
        x = F.embedding(tokens, self.embedding)  # [batch, tokens, hidden]
        for index, layer in enumerate(self.layers):
            x = x + self._attend(step, index, layer, self._normalize(x, layer.attention_norm))
            x = x + self._feed_forward(layer, self._normalize(x, layer.mlp_norm))
        if tokens.shape[1] > 1:
            rows = torch.arange(len(slots), device=self.device)
            x = x[rows, torch.tensor(counts, device=self.device) - 1]  # [batch, hidden]
        logits = self.head(self._normalize(x.view(len(slots), -1), self.norm))
        for slot, count in zip(slots, counts, strict=True):
            cache.lengths[slot] += count
        return logits

    def _plan(self, cache: KVCache, slots: Sequence[int], counts: Sequence[int]) -> Step:
        """Work out once a step what all layers need: positions, write targets, rotation, mask."""
        width = max(counts)
        starts = [cache.lengths[slot] for slot in slots]
        length = max(start + count for start, count in zip(starts, counts, strict=True))
        if length > cache.context:
            raise ValueError(f"{length} tokens do not fit a slot of {cache.context}")
        start = torch.tensor(starts, device=self.device)
        offsets = torch.arange(width, device=self.device)
        # [batch, tokens]; padding may lie beyond the longest row, where there is nothing to look up.
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
        return Step(
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

    def _attend(self, step: Step, index: int, layer: Layer, x: Tensor) -> Tensor:
        shape = self.architecture
        batch, width, _ = x.shape
        rotated = shape.heads + shape.kv_heads
        projected = layer.query_key_value(x).view(batch, width, rotated + shape.kv_heads, shape.head_dim)
        query_key = projected[:, :, :rotated]
        if layer.query_key_norm is not None:
            query_key = (
                F.rms_norm(query_key, (shape.head_dim,), eps=shape.norm_epsilon) * layer.query_key_norm
            )
        # Rotary embedding: the pair (a, b) half a head apart turns by its position's angle. `sine` has
        # its first half negated, so that rolling the halves past each other is all that is left.
        swapped = query_key.roll(shape.head_dim // 2, -1)
        query_key = torch.addcmul(query_key * step.cosine, swapped, step.sine)

        key_value = torch.cat((query_key[:, :, shape.heads :], projected[:, :, rotated:]), dim=2)
        key_value = key_value.to(self.cache_dtype)
        new = key_value if step.kept is None else key_value.flatten(0, 1)[step.kept]
        rows = step.cache.data[index].view(-1, shape.head_dim)
        rows.index_copy_(0, step.targets, new.view(-1, shape.head_dim))
        keys, values = step.cache.data[index, :, step.selection, :, : step.length]
        # Query heads that share a key head stand in the place of extra query tokens: grouped-query
        # attention without a repeated copy of keys and values. [batch, kv_heads, group × tokens, head_dim]
        query = query_key[:, :, : shape.heads].transpose(1, 2)
        query = query.reshape(batch, shape.kv_heads, self._group * width, shape.head_dim)
        mixed = F.scaled_dot_product_attention(query.to(self.cache_dtype), keys, values, attn_mask=step.mask)
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


def checkpoint_shapes(architecture: Architecture, query_key_norm: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint without biases, as transformers would save it."""
    hidden, intermediate = architecture.hidden, architecture.intermediate
    query, key = architecture.heads * architecture.head_dim, architecture.kv_heads * architecture.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    if query_key_norm:
        layer |= {f"self_attn.{part}_norm": (architecture.head_dim,) for part in "qk"}
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{index}.{name}.weight": shape
        for index in range(architecture.layers)
        for name, shape in layer.items()
    }
    shapes["model.embed_tokens.weight"] = (architecture.vocabulary, hidden)
    shapes["model.norm.weight"] = (hidden,)
    if not architecture.tied_head:
        shapes["lm_head.weight"] = (architecture.vocabulary, hidden)
    return shapes


def build_decoder(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    int8: bool = False,
) -> Decoder:
    """Put a checkpoint's tensors, by their transformers names, where the decoder reads them."""

    shapes = checkpoint_shapes(architecture, query_key_norm=True)

    def tensor(name: str) -> Tensor:
        if name not in weights:
            raise UnsupportedModelError(f"the checkpoint has no tensor {name!r}")
        shape = tuple(weights[name].shape)
        if shape != shapes.get(name, shape):
            raise UnsupportedModelError(f"tensor {name!r} is {shape}, but by config.json {shapes[name]}")
        return weights[name].to(device, dtype)

    def linear(*names: str) -> Linear:
        weight = torch.cat([tensor(f"{name}.weight") for name in names])
        has_bias = f"{names[0]}.bias" in weights
        bias = torch.cat([tensor(f"{name}.bias") for name in names]) if has_bias else None
        return make_linear(weight, bias, int8)

    def layer(index: int) -> Layer:
        prefix = f"model.layers.{index}"
        attention = f"{prefix}.self_attn"
        return Layer(
            attention_norm=tensor(f"{prefix}.input_layernorm.weight"),
            query_key_value=linear(*(f"{attention}.{part}_proj" for part in "qkv")),
            query_key_norm=query_key_norm(attention),
            attention_output=linear(f"{attention}.o_proj"),
            mlp_norm=tensor(f"{prefix}.post_attention_layernorm.weight"),
            gate_up=linear(f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj"),
            down=linear(f"{prefix}.mlp.down_proj"),
        )

    def query_key_norm(attention: str) -> Tensor | None:
        if f"{attention}.q_norm.weight" not in weights:
            return None
        query = tensor(f"{attention}.q_norm.weight").expand(architecture.heads, -1)
        key = tensor(f"{attention}.k_norm.weight").expand(architecture.kv_heads, -1)
        return torch.cat((query, key))

    embedding = tensor("model.embed_tokens.weight")
    return Decoder(
        architecture,
        embedding=embedding,
        layers=[layer(index) for index in range(architecture.layers)],
        norm=tensor("model.norm.weight"),
        head=make_linear(embedding, None, int8) if architecture.tied_head else linear("lm_head"),
        # Who wants int8 for speed gains as much again from half the bytes to read of a long text.
        cache_dtype=torch.bfloat16 if int8 and onednn_has_bfloat16() else dtype,
    )
