"""From a checkpoint to a decoder: what its configuration means, and where its tensors go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ladder.llm.decoder import Architecture, Decoder, Layer
from ladder.llm.linear import Linear, make_linear, onednn_has_bfloat16

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
# These two change their frequencies as a text grows, so keys that were cached earlier would be wrong.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")

LIMITS: Mapping[str, tuple[float, float]] = {
    "vocab_size": (1, 10_000_000),
    "hidden_size": (1, 1_000_000),
    "intermediate_size": (1, 1_000_000),
    "num_hidden_layers": (1, 1_000),
    "num_attention_heads": (1, 10_000),
    "num_key_value_heads": (1, 10_000),
    "max_position_embeddings": (2, 10_000_000),
    "rms_norm_eps": (1e-12, 1),
}
"""The smallest and the largest value of the numbers in config.json. No published model comes near them."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, or asks for something that this decoder does not compute."""


def check_model_type(kind: object) -> None:
    if kind is None:
        raise CheckpointError("config.json names no model_type; was it saved by save_pretrained?")
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"architecture {kind!r} is not supported; supported are {', '.join(ARCHITECTURES)}"
        )


def check_number(name: str, value: object, smallest: float, largest: float) -> None:
    """Refuse a number of config.json that no model can have."""
    if not isinstance(value, int | float) or not smallest <= value <= largest:  # NaN is not in any range
        shown = f"{value!r:.40}"
        raise CheckpointError(f"config.json: {name} is {shown}; it must be from {smallest:,} to {largest:,}")


def check_config(config: Any) -> None:
    """Refuse by its name what does not make a model, before anything is computed from it."""
    for name, limits in LIMITS.items():
        check_number(name, getattr(config, name), *limits)
    head_dim = getattr(config, "head_dim", None)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if head_dim is not None:
        check_number("head_dim", head_dim, 2, 10_000)
    elif config.hidden_size % heads:
        raise CheckpointError(
            f"config.json: hidden_size {config.hidden_size} is not a multiple of num_attention_heads {heads}"
        )
    if (head_dim or config.hidden_size // heads) % 2:
        raise CheckpointError("config.json: head_dim is odd; rotary embedding needs pairs")
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )


def architecture_of(config: Any) -> Architecture:
    """Read a transformers configuration, or name what in it is wrong or not supported."""
    check_config(config)
    if getattr(config, "quantization_config", None):
        raise CheckpointError("quantized checkpoints are not supported; use the original")
    if config.hidden_act != "silu":
        raise CheckpointError(f"activation {config.hidden_act!r} is not supported; only silu is")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies, scale = rope_parameters(config, head_dim)
    return Architecture(
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
        check_number("sliding_window", window, 2, 10_000_000)
        return int(min(config.max_position_embeddings, window))
    return int(config.max_position_embeddings)


def rope_parameters(config: Any, head_dim: int) -> tuple[Tensor, float]:
    """Rotation frequencies and the scale of the rotation, as transformers computes them."""
    kind = config.rope_parameters["rope_type"]
    check_number("rope_theta", config.rope_parameters["rope_theta"], 1, 10**12)
    if kind in LENGTH_DEPENDENT_ROPE:
        raise CheckpointError(f"rope type {kind!r} is not supported: it changes with the length")
    if kind == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # few models need it

    if kind not in ROPE_INIT_FUNCTIONS:
        raise CheckpointError(f"rope type {kind!r} is not supported")
    try:
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        if frequencies.isfinite().all() and math.isfinite(scale):
            return frequencies, float(scale)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        pass  # a setting of this rope type is missing or has a wrong value
    raise CheckpointError(f"config.json: rope_parameters are incomplete or wrong: {config.rope_parameters}")


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


def is_finite(tensor: Tensor) -> bool:
    """One pass over the memory, ten times as fast as asking every number.

    A sum is NaN or infinite if one of its terms is; and if it overflows, which the slow way finds out.
    """
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def build_decoder(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
    int8: bool = False,
) -> Decoder:
    """Put a checkpoint's tensors, by their transformers names, where the decoder reads them."""

    shapes = checkpoint_shapes(architecture, query_key_norm=True)
    shapes |= {f"{name.removesuffix('.weight')}.bias": shape[:1] for name, shape in shapes.items()}

    def tensor(name: str) -> Tensor:
        if name not in weights:
            raise CheckpointError(f"the checkpoint has no tensor {name!r}")
        stored = weights[name]
        if tuple(stored.shape) != shapes[name]:
            raise CheckpointError(
                f"tensor {name!r} is {tuple(stored.shape)}, but by config.json {shapes[name]}"
            )
        if not stored.is_floating_point():
            raise CheckpointError(f"tensor {name!r} has the type {stored.dtype}; weights are floating point")
        values = stored.to(device, dtype)
        if not is_finite(values):
            raise CheckpointError(f"tensor {name!r} contains NaN or infinity; download the model again")
        return values

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
        # Users of int8 want speed, and half the bytes per key and value give as much again with a long text.
        cache_dtype=torch.bfloat16 if int8 and onednn_has_bfloat16() else dtype,
    )
