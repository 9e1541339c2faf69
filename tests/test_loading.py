"""Tests model loading: errors take one line, and the bundled model is valid."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ladder.errors import UserError
from ladder.lab.launch import RungProcess
from ladder.llm.checkpoint import architecture_of, checkpoint_shapes
from ladder.llm.decoder import Architecture
from ladder.llm.loading import (
    BUNDLED,
    RANDOM_SHAPES,
    Model,
    RandomWeights,
    load_model,
    made_up_word,
    random_tokenizer,
    read_config,
    read_tokenizer,
)
from tests.faults import fault
from tests.support import QUESTION, RUNGS, edit_json, one_line, run_python, untrained

PUBLISHED_PARAMETERS = {
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "qwen3-0.6b": 596_049_920,
}


def load_error(name: str, **settings: str) -> str:
    with pytest.raises(UserError) as caught:
        load_model(name, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def ascii_start(text: object) -> str:
    return ascii(text)[:40]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the bundled model, which a test may damage."""
    return Path(shutil.copytree(BUNDLED, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "nothing", "a/b/c"])
def test_an_unknown_model_name_lists_the_valid_kinds(name: str) -> None:
    message = load_error(name)
    assert repr(name) in message
    assert all(word in message for word in ("tiny", "save_pretrained", "hub id", *RANDOM_SHAPES))


def test_a_directory_without_config_json_is_an_error(tmp_path: Path) -> None:
    assert "no config.json" in load_error(str(tmp_path))


NESTED = "[" * 100_000
"""More levels than Python's stack has room for."""


@pytest.mark.parametrize("text", ["", "{", '{"model_type": "llama",}', "\xff", NESTED], ids=ascii_start)
def test_a_config_that_is_not_json_is_an_error(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text, encoding="latin-1")
    assert "config.json is not JSON" in load_error(str(checkpoint))


@pytest.mark.parametrize("text", ["[]", "null", "3", "{}", '{"model_type": 3}', '{"model_type": []}'])
def test_a_config_with_the_wrong_structure_is_an_error(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    assert str(checkpoint) in load_error(str(checkpoint))


def test_an_unknown_model_type_is_an_error(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", model_type="telepathy")
    assert "telepathy" in load_error(str(checkpoint))


def test_a_missing_tokenizer_is_an_error(checkpoint: Path) -> None:
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer.json" in load_error(str(checkpoint))


JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
NOT_OBJECTS = ("", "{nonsense", "\xff", "\0\0", "[]", "null", "3", '"x"', NESTED)


@fault("A damaged JSON file of a model", "the server does not start; one line names the file", "01–05")
@pytest.mark.parametrize("content", NOT_OBJECTS, ids=ascii_start)
@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_without_a_json_object_is_named(checkpoint: Path, name: str, content: str) -> None:
    (checkpoint / name).write_text(content, encoding="latin-1")
    message = load_error(str(checkpoint))
    assert f"{str(checkpoint)!r}: {name} is not" in message
    assert message.endswith("; save or download the model again")


@fault("A directory in place of a model's file", "the server does not start; one line names it", "01–05")
@pytest.mark.parametrize("name", [*JSON_FILES[:3], "model.safetensors"])
def test_a_directory_in_place_of_a_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    (checkpoint / name).mkdir()
    message = load_error(str(checkpoint))
    assert f": {name} is " in message
    assert message.endswith("; save or download the model again")


def test_a_file_that_cannot_be_read_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a patch, because a superuser can read every file."""
    read_bytes = Path.read_bytes

    def refuse(file: Path) -> bytes:
        if file.name == "generation_config.json":
            raise PermissionError(13, "Permission denied")
        return read_bytes(file)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "generation_config.json cannot be read: Permission denied" in load_error(str(checkpoint))


TEMPLATE = {"type": "TemplateProcessing", "pair": [], "single": [{"SpecialToken": {"id": "x", "type_id": 0}}]}
WRONG_TOKENIZERS: dict[str, dict[str, Any]] = {
    "no model": {"model": None},
    "a list as model": {"model": []},
    "no vocabulary": {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []},
    "a negative id": {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    "a huge id": {"model": {"type": "BPE", "vocab": {"a": 10**30}, "merges": []}},
    "merges of no tokens": {"model": {"type": "BPE", "vocab": {"a": 1}, "merges": ["x y"]}},
    "an added token without id": {"added_tokens": [{}]},
    "added tokens null": {"added_tokens": None},
    "an unknown decoder": {"decoder": {"type": "Nope"}},
    "another version": {"version": "9.9"},
    "a wrong pattern": {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}},
}


@fault("A tokenizer.json of `{}`", "the server does not start; one line names the file", "01–05")
def test_an_empty_tokenizer_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{}")
    assert f"{str(checkpoint)!r}: tokenizer.json cannot be used" in load_error(str(checkpoint))


@pytest.mark.parametrize("changes", WRONG_TOKENIZERS.values(), ids=WRONG_TOKENIZERS)
def test_a_wrong_tokenizer_is_named(checkpoint: Path, changes: dict[str, Any]) -> None:
    edit_json(checkpoint / "tokenizer.json", **changes)
    message = load_error(str(checkpoint))
    assert ": tokenizer.json " in message
    assert message.endswith("; save or download the model again")


@pytest.mark.parametrize("changes", [{"tokenizer_class": 3}, {"eos_token": {"a": 3}}], ids=["class", "token"])
def test_a_wrong_setting_of_the_tokenizer_is_named(checkpoint: Path, changes: dict[str, Any]) -> None:
    edit_json(checkpoint / "tokenizer_config.json", **changes)
    assert ": tokenizer_config.json cannot be used" in load_error(str(checkpoint))


TOO_MANY_IDS: dict[str, dict[str, Any]] = {
    "an added token": {"added_tokens": [{"id": 1024, "content": "<far>", "special": True}]},
    "a token of the vocabulary": {"model": {"type": "BPE", "vocab": {"a": 1024}, "merges": []}},
    "a token of the template": {
        "post_processor": TEMPLATE | {"special_tokens": {"x": {"id": "x", "ids": [1024], "tokens": ["x"]}}}
    },
}


@fault("A tokenizer with more tokens than the model", "the server does not start; one line says so", "01–05")
@pytest.mark.parametrize("changes", TOO_MANY_IDS.values(), ids=TOO_MANY_IDS)
def test_a_token_that_the_model_does_not_have_is_an_error(checkpoint: Path, changes: dict[str, Any]) -> None:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for token in changes.get("added_tokens", []):
        token |= plain
    edit_json(checkpoint / "tokenizer.json", **changes)
    message = load_error(str(checkpoint))
    assert "(tokenizer.json) has a token with id 1024" in message
    assert "ends at 1023; use the tokenizer that was saved with these weights" in message


def test_truncation_and_padding_of_a_tokenizer_are_not_applied(bundled: Model, checkpoint: Path) -> None:
    edit_json(
        checkpoint / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 5000, "pad_type_id": 0, "pad_token": "x",
        },
    )  # fmt: skip
    assert load_model(str(checkpoint)).tokenizer.encode(QUESTION) == bundled.tokenizer.encode(QUESTION)


WRONG_NUMBERS: dict[str, list[object]] = {
    "num_hidden_layers": [0, -1, 10**9, 10**30],
    "num_attention_heads": [0, -8, 7, 10**30],
    "num_key_value_heads": [0, -1, 3, 16],
    "hidden_size": [0, -256, 10**18],
    "intermediate_size": [0, -1],
    "head_dim": [0, -2, 31, 10**12],
    "vocab_size": [0, -1, 10**18],
    "max_position_embeddings": [0, -1, 1, 10**9, 10**30],
    "rms_norm_eps": [0, -1, float("nan"), float("inf"), "x"],
    "hidden_act": [3, None],
    "tie_word_embeddings": [None, "x"],
    "eos_token_id": ["x", 1.5, {}],
}


@fault("Sizes in config.json of no model", "the server does not start; one line names the setting", "01–05")
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_NUMBERS.items() for value in values]
)
def test_a_wrong_number_in_the_config_is_named(checkpoint: Path, name: str, value: object) -> None:
    edit_json(checkpoint / "config.json", **{name: value})
    message = load_error(str(checkpoint))
    assert "config.json" in message
    assert name in message


def test_a_wrong_window_is_named(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", model_type="mistral", sliding_window=-3)
    assert "config.json: sliding_window is -3" in load_error(str(checkpoint))


def test_heads_that_do_not_divide_the_hidden_size_are_named(checkpoint: Path) -> None:
    heads = {"num_attention_heads": 6, "num_key_value_heads": 6}
    edit_json(checkpoint / "config.json", model_type="qwen2", head_dim=None, **heads)
    assert "hidden_size 256 is not a multiple of num_attention_heads 6" in load_error(str(checkpoint))


WRONG_ROPES: list[tuple[dict[str, Any], str]] = [
    ({"rope_type": "default", "rope_theta": 0}, "rope_theta is 0"),
    ({"rope_type": "default", "rope_theta": -3}, "rope_theta is -3"),
    ({"rope_type": "default", "rope_theta": "a"}, "rope_theta is 'a'"),
    ({"rope_type": "default", "rope_theta": float("nan")}, "rope_theta is nan"),
    ({"rope_type": "default", "rope_theta": 10**400}, "rope_theta is 1000"),
    ({"rope_type": "nope", "rope_theta": 10}, "rope type 'nope' is not supported"),
    ({"rope_type": 3, "rope_theta": 10}, "rope type 3 is not supported"),
    ({"rope_type": "linear", "rope_theta": 10}, "factor"),
    ({"rope_type": "linear", "rope_theta": 10, "factor": 0}, "rope_parameters"),
    ({"rope_type": "yarn", "rope_theta": 10, "factor": "x"}, "rope_parameters"),
]


@pytest.mark.parametrize(("parameters", "named"), WRONG_ROPES, ids=ascii_start)
def test_wrong_rope_parameters_are_named(checkpoint: Path, parameters: dict[str, Any], named: str) -> None:
    edit_json(checkpoint / "config.json", rope_parameters=parameters)
    assert named in load_error(str(checkpoint))


WRONG_ENDS = [1024, -1, [0, 99999], 10**30, True, "x", ["x"], {}, 1.5, [[0]]]


@fault("An end token beyond the vocabulary", "the server does not start; one line names it", "01–05")
@pytest.mark.parametrize("value", WRONG_ENDS, ids=ascii_start)
def test_an_end_token_that_the_model_does_not_have_is_named(checkpoint: Path, value: object) -> None:
    edit_json(checkpoint / "generation_config.json", eos_token_id=value)
    assert "generation_config.json: eos_token_id" in load_error(str(checkpoint))
    (checkpoint / "generation_config.json").unlink()
    edit_json(checkpoint / "config.json", eos_token_id=value)
    message = load_error(str(checkpoint))
    assert "config.json" in message
    assert "eos_token_id" in message


def edit_weights(checkpoint: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    file = checkpoint / "model.safetensors"
    changed = {name: change(name, tensor.clone()) for name, tensor in load_file(file).items()}
    file.unlink()  # its tensors may be mapped
    save_file(changed, file)


@fault("Weights with NaN or infinity", "the server does not start; one line names the tensor", "01–05")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "damaged", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.2.mlp.down_proj.weight"]
)
def test_a_weight_that_is_no_number_is_named(checkpoint: Path, damaged: str, value: float) -> None:
    def change(name: str, tensor: Tensor) -> Tensor:
        if name == damaged:
            tensor.view(-1)[-1] = value
        return tensor

    edit_weights(checkpoint, change)
    assert f"tensor {damaged!r} contains NaN or infinity" in load_error(str(checkpoint))


def test_finite_weights_whose_sum_is_not_finite_are_loaded(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda _, tensor: torch.full_like(tensor, 3e38))
    load_model(str(checkpoint))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_type_are_an_error(checkpoint: Path, dtype: torch.dtype) -> None:
    edit_weights(checkpoint, lambda _, tensor: tensor.to(dtype))
    assert f"has the type {dtype}" in load_error(str(checkpoint))


def test_a_bias_with_the_wrong_shape_is_named(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    weights |= {f"model.layers.0.self_attn.{part}_proj.bias": torch.zeros(3) for part in "qkv"}
    file.unlink()
    save_file(weights, file)
    assert "tensor 'model.layers.0.self_attn.q_proj.bias' is (3,)" in load_error(str(checkpoint))


def split_weights(checkpoint: Path) -> tuple[str, str]:
    """Save the weights in two files and an index, as transformers does with large ones."""
    whole, names = checkpoint / "model.safetensors", ("model-1-of-2.safetensors", "model-2-of-2.safetensors")
    weights = list(load_file(whole).items())
    parts = {names[0]: dict(weights[::2]), names[1]: dict(weights[1::2])}
    for name, part in parts.items():
        save_file(part, checkpoint / name)
    places = {tensor: name for name, part in parts.items() for tensor in part}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    whole.unlink()
    return names


@fault("An index that names a missing weights file", "the server does not start; one line names it", "01–05")
def test_a_missing_file_of_several_is_named(checkpoint: Path) -> None:
    _, missing = split_weights(checkpoint)
    load_model(str(checkpoint))
    (checkpoint / missing).unlink()
    assert f"model.safetensors.index.json names {missing}, which is not" in load_error(str(checkpoint))


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"weight_map": []}'])
def test_a_wrong_index_is_named(checkpoint: Path, content: str) -> None:
    split_weights(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json " in load_error(str(checkpoint))


def test_a_directory_without_safetensors_is_an_error(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    assert "no model*.safetensors" in load_error(str(checkpoint))


@pytest.mark.parametrize("length", [0, 7, 100, 100_000])
def test_truncated_safetensors_are_an_error(checkpoint: Path, length: int) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    assert "model.safetensors is damaged" in load_error(str(checkpoint))


def test_safetensors_with_another_format_are_an_error(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"\x80\x04K\x01." * 100)
    assert "model.safetensors is damaged" in load_error(str(checkpoint))


def test_a_generation_config_that_is_not_json_is_an_error(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text("{")
    assert "generation_config.json" in load_error(str(checkpoint))


def test_an_unknown_random_shape_lists_the_known_shapes() -> None:
    message = load_error("random:gpt-5")
    assert "'random:gpt-5'" in message
    assert all(shape in message for shape in RANDOM_SHAPES)


def test_cuda_without_a_cuda_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda" in load_error("tiny", device="cuda")


def test_default_device_and_dtype_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    decoder = load_model("tiny").decoder
    assert (decoder.device.type, decoder.dtype) == ("cpu", torch.float32)


def test_a_hub_id_without_network_prints_one_line_with_alternatives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    process = RungProcess(RUNGS[0], ["--model", "nobody/nothing"])
    try:
        with pytest.raises(UserError, match="network"):
            process.wait_ready()
        assert process.stop() == 1
        message = one_line(process.errors())
    finally:
        process.close()
    assert all(word in message for word in ("'nobody/nothing'", "network", "directory", "--model tiny"))


@pytest.mark.parametrize(
    ("value", "expected"), [(None, []), (5, [5]), ([5, 7], [5, 7])], ids=["none", "one", "several"]
)
def test_generation_config_takes_precedence_for_end_tokens(
    checkpoint: Path, value: object, expected: list[int]
) -> None:
    edit_json(checkpoint / "config.json", eos_token_id=3)
    edit_json(checkpoint / "generation_config.json", eos_token_id=value)
    assert load_model(str(checkpoint)).stop_ids == set(expected)
    (checkpoint / "generation_config.json").unlink()
    assert load_model(str(checkpoint)).stop_ids == {3}


def random_architecture(shape: str) -> tuple[Architecture, bool, object]:
    settings = dict(RANDOM_SHAPES[shape])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return architecture_of(config), config.model_type == "qwen3", config


@pytest.mark.parametrize("shape", RANDOM_SHAPES)
def test_a_random_shape_has_the_same_tensors_as_transformers(shape: str) -> None:
    architecture, query_key_norm, config = random_architecture(shape)
    with torch.device("meta"):
        model = untrained(config)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    shapes = checkpoint_shapes(architecture, query_key_norm)
    assert shapes == expected
    assert sum(math.prod(size) for size in shapes.values()) == PUBLISHED_PARAMETERS[shape]


def test_every_random_shape_is_compared_with_its_published_size() -> None:
    assert PUBLISHED_PARAMETERS.keys() == RANDOM_SHAPES.keys()


def test_a_random_model_generates_without_an_end_token() -> None:
    model = load_model("random:smollm2-135m", dtype="bfloat16", device="cpu")
    assert model.stop_ids == frozenset()
    assert model.context == 8192
    ids = model.tokenizer.encode(QUESTION)
    logits = model.decoder.prefill(model.decoder.new_cache(1, 64), [0], [ids])
    assert logits.shape == (1, 49152)
    assert logits.isfinite().all()
    assert logits.std() > 0


def test_random_weights_are_deterministic_and_differ_between_tensors() -> None:
    architecture, _, _ = random_architecture("smollm2-135m")
    first, second = (RandomWeights(architecture, query_key_norm=False) for _ in range(2))
    query, key = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    assert torch.equal(first[query], second[query])
    assert not torch.equal(first[query], first[key])
    assert len(set(map(tuple, first[query].tolist()))) == 576


@pytest.mark.parametrize("vocabulary", sorted({shape["vocab_size"] for shape in RANDOM_SHAPES.values()}))
def test_a_random_tokenizer_has_a_different_word_for_every_id(vocabulary: int) -> None:
    tokenizer = random_tokenizer(vocabulary)
    assert tokenizer.backend.get_vocab_size() == vocabulary
    first_made_up = len(AutoTokenizer.from_pretrained(BUNDLED))
    words = tokenizer.backend.decode_batch([[token_id] for token_id in range(first_made_up, vocabulary)])
    assert len(set(words)) == vocabulary - first_made_up
    assert all(word.startswith(" ") and word.strip().isalpha() for word in words)
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push(vocabulary - 1) == words[-1]
    assert tokenizer.decode(tokenizer.encode(QUESTION)) == QUESTION


@given(first=st.integers(0, 10**6), second=st.integers(0, 10**6))
def test_made_up_words_are_unique(first: int, second: int) -> None:
    assert (made_up_word(first) == made_up_word(second)) == (first == second)


def test_the_bundled_model_is_small_and_has_no_file_that_can_run_code() -> None:
    files = sorted(BUNDLED.iterdir())
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in files) < 10_000_000
    for file in files:
        # A pickle starts with its protocol opcode; torch.save writes a zip archive.
        assert not file.read_bytes().startswith((b"\x80", b"PK"))


@pytest.mark.usefixtures("fresh_interpreters")
def test_the_bundled_model_is_read_without_transformers_and_as_by_transformers() -> None:
    code = "import sys; from ladder.llm.loading import load_model; load_model('tiny'); print(*sys.modules)"
    assert "transformers" not in run_python("-c", code).stdout.split()
    config = AutoConfig.from_pretrained(BUNDLED)
    for name, value in msgspec.to_builtins(read_config(BUNDLED)).items():
        assert value == getattr(config, name, None), name
    backend = AutoTokenizer.from_pretrained(BUNDLED).backend_tokenizer
    assert read_tokenizer(BUNDLED).to_str() == backend.to_str()


@pytest.mark.parametrize("missing", ["head_dim", "rms_norm_eps", "eos_token_id", "rope_parameters"])
def test_missing_settings_get_transformers_defaults(bundled: Model, checkpoint: Path, missing: str) -> None:
    settings = json.loads((checkpoint / "config.json").read_text())
    del settings[missing]
    (checkpoint / "config.json").write_text(json.dumps(settings))
    architecture, whole = load_model(str(checkpoint)).decoder.architecture, bundled.decoder.architecture
    assert replace(architecture, rope_frequencies=whole.rope_frequencies) == whole
    assert torch.equal(architecture.rope_frequencies, whole.rope_frequencies)


def test_a_size_that_is_not_a_number_is_an_error(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", hidden_size="large")
    assert "hidden_size" in load_error(str(checkpoint))


def test_a_tokenizer_with_extra_settings_is_loaded_with_transformers(checkpoint: Path) -> None:
    edit_json(checkpoint / "tokenizer_config.json", extra_special_tokens=["!"])
    added = load_model(str(checkpoint)).tokenizer.backend.get_added_tokens_decoder()
    assert "!" in [token.content for token in added.values()]


def test_transformers_loads_the_bundled_model() -> None:
    model = AutoModelForCausalLM.from_pretrained(BUNDLED)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    ids = tokenizer(QUESTION)["input_ids"]
    assert ids == load_model("tiny").tokenizer.encode(QUESTION)
    assert tokenizer.decode(ids) == QUESTION
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert {tokenizer.eos_token_id} == load_model("tiny").stop_ids
    assert len(tokenizer) == model.config.vocab_size


def test_int8_and_float32_give_the_same_short_outputs(bundled: Model) -> None:
    quantized = load_model("tiny", "int8", "cpu")
    for prompt in ("What is 2 + 2?", "What is 9 - 4?", "Count from 1 to 6."):
        ids = bundled.tokenizer.encode(prompt)
        answers = []
        for model in (bundled, quantized):
            cache = model.decoder.new_cache(slots=1, context=len(ids) + 12)
            logits = model.decoder.prefill(cache, [0], [ids])
            answer = [int(logits.argmax())]
            while answer[-1] not in model.stop_ids and len(answer) < 12:
                answer.append(int(model.decoder.decode(cache, [0], answer[-1:]).argmax()))
            answers.append(answer)
        assert answers[0] == answers[1]


def test_int8_needs_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladder.llm.loading.int8_engine", lambda: None)
    with pytest.raises(UserError, match="no int8 engine; use bfloat16 or float32"):
        load_model("tiny", "int8", "cpu")
