"""Tests the decoder: its logits and greedy tokens equal those of transformers for any batches and chunks.

Covered: every supported architecture and rope type, ragged batches in non-adjacent slots, chunked
prefill, reused and moved slots, and errors that name what is not supported.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from transformers import (
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from ladder.errors import UserError
from ladder.llm.cache import KVCache
from ladder.llm.decoder import Decoder
from ladder.llm.linear import WIDE, make_linear
from ladder.llm.loading import BUNDLED, Model, load_model
from tests.support import QUESTION, STORY, Oracle, copy_tokenizer, edit_json, untrained

SIZES: dict[str, Any] = dict(
    vocab_size=1024,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    eos_token_id=None,
    bos_token_id=None,
)
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN_ROPE = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)
LINEAR_ROPE = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)

CONFIGURATIONS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama3-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3_ROPE),
    "llama-yarn": LlamaConfig(**SIZES, rope_parameters=YARN_ROPE),
    "llama-linear": LlamaConfig(**SIZES, rope_parameters=LINEAR_ROPE),
    "llama-one-kv-head": LlamaConfig(**SIZES | {"num_key_value_heads": 1}, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral-window": MistralConfig(**SIZES, sliding_window=48),
    "qwen2": Qwen2Config(**SIZES),
    "qwen2-window": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=48, max_window_layers=1),
    "qwen3": Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True),
    "qwen3-bias": Qwen3Config(**SIZES, head_dim=16, attention_bias=True),
}
PROMPTS = [[5, 6, 7, 8, 9], [1, 2], [3] * 11]
STEPS = 20


def make_checkpoint(directory: Path, config: PretrainedConfig) -> Path:
    """A small random model whose weights are large enough that its greedy outputs differ."""
    torch.manual_seed(0)
    model = untrained(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    copy_tokenizer(directory)
    return directory


class Pair:
    """One checkpoint, loaded by the ladder and by transformers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ours = load_model(str(directory), dtype="float32", device="cpu")
        self.oracle = Oracle(directory)
        self._expected: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def expected(self, prompt: Sequence[int], steps: int = STEPS) -> list[int]:
        """Transformers' output for this prompt alone, end tokens ignored."""
        key = (tuple(prompt), steps)
        if key not in self._expected:
            self._expected[key] = self.oracle.generate(list(prompt), steps, eos_token_id=None)
        return self._expected[key]


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    directory = tmp_path_factory.mktemp("checkpoint")
    return Pair(make_checkpoint(directory, CONFIGURATIONS[request.param]))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One checkpoint for tests that do not depend on the architecture."""
    return Pair(make_checkpoint(tmp_path_factory.mktemp("llama"), CONFIGURATIONS["llama3-biases"]))


def best(logits: Tensor) -> list[int]:
    ids: list[int] = logits.argmax(-1).tolist()
    return ids


def decode_steps(
    decoder: Decoder, cache: KVCache, slots: Sequence[int], outputs: list[list[int]], steps: int
) -> None:
    """Run greedy decode steps for all outputs in one batch."""
    for _ in range(steps):
        logits = decoder.decode(cache, slots, [output[-1] for output in outputs])
        for output, token in zip(outputs, best(logits), strict=True):
            output.append(token)


def generate(decoder: Decoder, slots: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    cache = decoder.new_cache(slots=6, context=40)
    outputs = [[token] for token in best(decoder.prefill(cache, slots, prompts))]
    decode_steps(decoder, cache, slots, outputs, STEPS - 1)
    return outputs


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_logits_equal_transformers_for_prefill_and_every_decode_step(pair: Pair) -> None:
    ids = [*PROMPTS[0], *pair.expected(PROMPTS[0])]
    theirs = pair.oracle.logits(ids)
    decoder, cut = pair.ours.decoder, len(PROMPTS[0])
    cache = decoder.new_cache(slots=1)
    close(decoder.prefill(cache, [0], [ids[:cut]])[0], theirs[cut - 1])
    for position in range(cut, len(ids)):
        close(decoder.decode(cache, [0], [ids[position]])[0], theirs[position])
    assert cache.lengths == [len(ids)]


@pytest.mark.parametrize("slots", [[0, 1, 2], [1, 2, 4], [5, 0, 3]])
def test_ragged_batches_in_any_slots_give_each_row_its_greedy_output(pair: Pair, slots: list[int]) -> None:
    expected = [pair.expected(prompt) for prompt in PROMPTS]
    assert len(set(map(tuple, expected))) == len(PROMPTS), "the outputs must differ to identify rows"
    assert generate(pair.ours.decoder, slots, PROMPTS) == expected


def test_the_bundled_models_greedy_output_equals_transformers(bundled: Model, oracle: Oracle) -> None:
    prompts = [bundled.tokenizer.encode(text) for text in (STORY, QUESTION, "Count from 1 to 9.")]
    expected = [oracle.generate(prompt, STEPS, eos_token_id=None) for prompt in prompts]
    assert generate(bundled.decoder, [0, 2, 5], prompts) == expected


@settings(max_examples=40)
@given(cuts=st.lists(st.integers(1, 30), max_size=5), beside=st.lists(st.integers(1, 900), max_size=8))
def test_chunked_prefill_equals_prefill_in_one_pass(llama: Pair, cuts: list[int], beside: list[int]) -> None:
    """Also ragged chunks: in the same pass, another slot gets a longer or shorter chunk."""
    prompt = list(range(100, 131))
    decoder = llama.ours.decoder
    cache = decoder.new_cache(slots=4, context=120)
    bounds = [0, *sorted(set(cuts)), len(prompt)]
    others: list[int] = []
    for start, end in pairwise(bounds):
        chunk = prompt[start:end]
        if beside:
            logits = decoder.prefill(cache, [1, 3], [chunk, beside])[:1]
            others += beside
        else:
            logits = decoder.prefill(cache, [1], [chunk])
    assert cache.lengths == [0, len(prompt), 0, len(others)]
    outputs = [best(logits)]
    decode_steps(decoder, cache, [1], outputs, STEPS - 1)
    assert outputs == [llama.expected(prompt)]


def test_a_nearly_full_row_does_not_limit_the_chunks_of_other_rows(llama: Pair) -> None:
    """The limit is the new length of each row, not the longest row plus the longest chunk."""
    decoder = llama.ours.decoder
    cache = decoder.new_cache(slots=2, context=40)
    nearly_full, fresh = list(range(50, 85)), list(range(200, 220))
    decoder.prefill(cache, [0], [nearly_full[:-1]])
    first = best(decoder.prefill(cache, [0, 1], [nearly_full[-1:], fresh]))
    outputs = [[token] for token in first]
    decode_steps(decoder, cache, [0, 1], outputs, 4)
    assert outputs == [llama.expected(nearly_full, 5), llama.expected(fresh, 5)]


def test_a_reused_slot_keeps_no_old_state(llama: Pair) -> None:
    decoder = llama.ours.decoder
    cache = decoder.new_cache(slots=2, context=40)
    decoder.prefill(cache, [0, 1], [list(range(300, 330)), PROMPTS[0]])
    cache.reset(0)
    outputs = [best(decoder.prefill(cache, [0], [PROMPTS[1]]))]
    decode_steps(decoder, cache, [0], outputs, STEPS - 1)
    assert outputs == [llama.expected(PROMPTS[1])]


def test_a_request_moved_to_another_slot_continues(llama: Pair) -> None:
    """As when a request in the middle of a batch finishes and the last one moves to its slot."""
    decoder = llama.ours.decoder
    cache = decoder.new_cache(slots=3, context=40)
    outputs = [[token] for token in best(decoder.prefill(cache, [0, 1, 2], PROMPTS))]
    decode_steps(decoder, cache, [0, 1, 2], outputs, 4)
    lengths = list(cache.lengths)
    cache.reset(0)
    cache.move(2, 0)
    assert cache.lengths == [lengths[2], lengths[1], 0]
    remaining = [outputs[2], outputs[1]]
    decode_steps(decoder, cache, [0, 1], remaining, STEPS - 5)
    assert remaining == [llama.expected(PROMPTS[2]), llama.expected(PROMPTS[1])]


def test_a_move_to_the_same_slot_changes_nothing(llama: Pair) -> None:
    cache = llama.ours.decoder.new_cache(slots=1, context=40)
    llama.ours.decoder.prefill(cache, [0], PROMPTS[:1])
    cache.move(0, 0)
    assert cache.lengths == [len(PROMPTS[0])]


@pytest.mark.parametrize("chunk", [[7], [7, 8, 9]], ids=["decode", "chunk"])
def test_a_full_slot_raises_and_changes_nothing(llama: Pair, chunk: list[int]) -> None:
    decoder = llama.ours.decoder
    cache = decoder.new_cache(slots=3, context=30)
    decoder.prefill(cache, [0, 1, 2], [PROMPTS[0], list(range(30)), PROMPTS[2]])
    lengths, data = list(cache.lengths), cache.data.clone()
    with pytest.raises(ValueError, match="do not fit"):
        decoder.prefill(cache, [0, 1, 2], [chunk] * 3)
    assert cache.lengths == lengths
    assert torch.equal(cache.data, data)


def test_the_cache_holds_the_models_whole_context(llama: Pair) -> None:
    decoder = llama.ours.decoder
    cache = decoder.new_cache(slots=1)
    assert cache.context == llama.ours.context == 256
    ids = [number % 1000 for number in range(256)]
    close(decoder.prefill(cache, [0], [ids])[0], llama.oracle.logits(ids)[-1])


@pytest.mark.parametrize("name", ["mistral-window", "qwen2-window"])
def test_a_sliding_window_limits_the_context(tmp_path: Path, name: str) -> None:
    """Within the window, a token attends to all earlier tokens, as this decoder computes it."""
    pair = Pair(make_checkpoint(tmp_path, CONFIGURATIONS[name]))
    assert pair.ours.context == 48
    prompt = list(range(60, 88))
    assert generate_alone(pair.ours.decoder, prompt) == pair.expected(prompt)


def generate_alone(decoder: Decoder, prompt: list[int]) -> list[int]:
    cache = decoder.new_cache(slots=1)
    outputs = [best(decoder.prefill(cache, [0], [prompt]))]
    decode_steps(decoder, cache, [0], outputs, STEPS - 1)
    return outputs[0]


def test_a_disabled_window_does_not_limit_the_context(tmp_path: Path) -> None:
    config = Qwen2Config(**SIZES, use_sliding_window=False, sliding_window=48)
    assert load_model(str(make_checkpoint(tmp_path, config))).context == 256


def test_bfloat16_runs_and_stays_near_float32(llama: Pair) -> None:
    decoder = load_model(str(llama.directory), dtype="bfloat16", device="cpu").decoder
    assert decoder.dtype == torch.bfloat16
    cache = decoder.new_cache(slots=2)
    assert cache.data.dtype == torch.bfloat16
    logits = decoder.prefill(cache, [0, 1], PROMPTS[:2])
    exact = llama.oracle.logits(PROMPTS[0])[-1]
    assert torch.nn.functional.cosine_similarity(logits[0].float(), exact, dim=0) > 0.99
    assert decoder.decode(cache, [0, 1], best(logits)).isfinite().all()


@pytest.mark.parametrize("rows", [1, WIDE - 1, WIDE, 3 * WIDE])
@pytest.mark.parametrize("has_bias", [False, True])
def test_bfloat16_linear_is_correct_for_any_number_of_rows(rows: int, has_bias: bool) -> None:
    weight, x = torch.randn(96, 40).bfloat16(), torch.randn(rows, 1, 40).bfloat16()
    bias = torch.randn(96).bfloat16() if has_bias else None
    exact = torch.nn.functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    product = make_linear(weight, bias)(x)
    assert product.dtype == torch.bfloat16
    assert product.shape == exact.shape
    torch.testing.assert_close(product.float(), exact, rtol=2**-7, atol=2**-6)


def load_error(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(directory))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_error_for_an_unsupported_architecture_names_it(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=1024, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    message = load_error(make_checkpoint(tmp_path, config))
    assert "'gpt2'" in message
    assert all(name in message for name in ("llama", "mistral", "qwen2", "qwen3"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)), ["'dynamic'"]),
        (dict(quantization_config=dict(quant_method="gptq", bits=4)), ["quantized"]),
        (dict(hidden_act="gelu"), ["'gelu'", "silu"]),
        (dict(num_hidden_layers=4), ["model.layers.3."]),
        (dict(tie_word_embeddings=False), ["lm_head"]),
    ],
    ids=["rope", "quantized", "activation", "missing-layer", "missing-head"],
)
def test_the_error_for_an_unsupported_setting_names_it(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    directory = make_checkpoint(tmp_path, LlamaConfig(**SIZES, tie_word_embeddings=True))
    edit_json(directory / "config.json", **changes)
    message = load_error(directory)
    assert all(word in message for word in words), message


def test_the_error_for_a_wrong_tensor_shape_names_the_tensor(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, LlamaConfig(**SIZES))
    edit_json(directory / "config.json", num_attention_heads=8, head_dim=8)
    assert "q_proj" in load_error(directory)


def test_tiny_loads_the_bundled_weights(bundled: Model) -> None:
    again = load_model(str(BUNDLED), dtype="float32", device="cpu")
    assert torch.equal(again.decoder.embedding, bundled.decoder.embedding)
    assert again.stop_ids == bundled.stop_ids


@pytest.mark.parametrize(("slots", "context"), [(2, 40), (8, 12), (4, 24), (2, 48)])
def test_a_reshaped_cache_keeps_its_keys_and_values(bundled: Model, slots: int, context: int) -> None:
    decoder = bundled.decoder
    cache = decoder.new_cache(slots=4, context=24)
    decoder.prefill(cache, [0, 1], [[5, 6, 7], [8, 9, 10, 11, 12]])
    held = [cache.data[:, :, slot, :, : cache.lengths[slot]].clone() for slot in (0, 1)]
    expected = decoder.decode(cache, [0, 1], [3, 4])
    cache.lengths[0] -= 1
    cache.lengths[1] -= 1
    cache.reshape(slots, context)
    assert cache.data.shape[2:5:2] == (slots, context)
    assert cache.lengths == [3, 5, *[0] * (slots - 2)]
    for slot in (0, 1):
        assert torch.equal(cache.data[:, :, slot, :, : cache.lengths[slot]], held[slot])
    assert torch.equal(decoder.decode(cache, [0, 1], [3, 4]), expected)
