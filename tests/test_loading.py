"""Tests model loading: errors take one line, and the bundled model is valid."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, strategies as st
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


@pytest.mark.parametrize("text", ["", "{", '{"model_type": "llama",}', "\xff"])
def test_a_config_that_is_not_json_is_an_error(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text, encoding="latin-1")
    assert "config.json is not JSON" in load_error(str(checkpoint))


@pytest.mark.parametrize("text", ["[]", "null", "3", "{}", '{"model_type": 3}'])
def test_a_config_with_the_wrong_structure_is_an_error(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text)
    assert str(checkpoint) in load_error(str(checkpoint))


def test_an_unknown_model_type_is_an_error(checkpoint: Path) -> None:
    edit_json(checkpoint / "config.json", model_type="telepathy")
    assert "telepathy" in load_error(str(checkpoint))


@pytest.mark.parametrize("damage", ["missing", "empty", "not json"])
def test_an_unreadable_tokenizer_is_an_error(checkpoint: Path, damage: str) -> None:
    for file in checkpoint.glob("tokenizer*"):
        file.unlink()
    if damage != "missing":
        (checkpoint / "tokenizer.json").write_text("" if damage == "empty" else "{nonsense")
    assert "tokenizer" in load_error(str(checkpoint))


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
    edit_json(checkpoint / "tokenizer_config.json", extra_special_tokens=["<|extra|>"])
    known = load_model(str(checkpoint)).tokenizer.backend.get_vocab(with_added_tokens=True)
    assert "<|extra|>" in known


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
