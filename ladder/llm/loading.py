"""Find a model by its name: bundled, a directory, the hub, or random weights of a real shape.

Importing transformers takes half of a server's start, so it is imported only when it is needed: files that
are complete, such as those of the bundled model, are read without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypedDict

import msgspec
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from torch import Tensor

from ladder import ROOT
from ladder.errors import UserError
from ladder.llm.checkpoint import (
    CheckpointError,
    architecture_of,
    build_decoder,
    check_model_type,
    checkpoint_shapes,
)
from ladder.llm.decoder import Architecture, Decoder
from ladder.llm.linear import int8_engine
from ladder.llm.text import Tokenizer

BUNDLED = ROOT / "ladder" / "data" / "weights"
INT8 = "int8"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, INT8: torch.float32}
"""The type of activations; with int8 only the matrix multiplications with weights use another."""

# Real shapes, for real timing without the weights; from the models' published configurations.
RANDOM_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tinyllama-1.1b": dict(
        model_type="llama", vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5,
        tie_word_embeddings=False, rope_theta=10000.0,
    ),
    "smollm2-135m": dict(
        model_type="llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_theta=100000.0,
    ),
    "smollm2-360m": dict(
        model_type="llama", vocab_size=49152, hidden_size=960, intermediate_size=2560, num_hidden_layers=32,
        num_attention_heads=15, num_key_value_heads=5, max_position_embeddings=8192, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_theta=100000.0,
    ),
    "qwen3-0.6b": dict(
        model_type="qwen3", vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
        rms_norm_eps=1e-6, tie_word_embeddings=True, rope_theta=1000000.0,
    ),
}  # fmt: skip


Build = Callable[[Architecture, Mapping[str, Tensor]], Decoder]
"""Builds a decoder from a checkpoint, in the requested precision and on the requested device."""


@dataclass(frozen=True)
class Model:
    """Everything that turns a prompt into text: the decoder, its tokenizer and its stop tokens."""

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    stop_ids: frozenset[int]

    @property
    def context(self) -> int:
        return self.decoder.architecture.context


def load_model(name: str, dtype: str = "auto", device: str = "auto") -> Model:
    """Load a model by name, or raise a `UserError` that says what to do."""
    target = pick_device(device)
    build = partial(build_decoder, dtype=pick_dtype(dtype, target), device=target, int8=dtype == INT8)
    try:
        if name.startswith("random:"):
            return random_model(name, build)
        directory = BUNDLED if name == "tiny" else find_directory(name)
        return load_directory(name, directory, build)
    except CheckpointError as error:
        raise UserError(f"model {name!r}: {error}") from error


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU, where outputs can be compared exactly, and bfloat16 on a GPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name == INT8 and device.type != "cpu":
        raise UserError("--dtype int8 runs on a CPU only; add --device cpu, or use bfloat16")
    if name == INT8 and int8_engine() is None:
        raise UserError("--dtype int8: this build of torch has no int8 engine; use bfloat16 or float32")
    return DTYPES[name]


def find_directory(name: str) -> Path:
    """A local directory, or a hub id, which is downloaded unless it is cached."""
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"model {name!r} not found: use tiny, a directory saved by save_pretrained, "
            f"a hub id such as HuggingFaceTB/SmolLM2-135M, or random:SHAPE with SHAPE "
            f"one of {', '.join(RANDOM_SHAPES)}"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "model*.safetensors", "tokenizer*"]))
    except Exception as error:  # the hub client raises a dozen kinds: no network, no such id, no access
        raise UserError(
            f"model {name!r} could not be loaded from the hub ({type(error).__name__}): check the id and the "
            f"network, pass the path of a downloaded directory, or use the bundled model with --model tiny"
        ) from error


def load_directory(name: str, directory: Path, build: Build) -> Model:
    """Load what `save_pretrained` wrote: config.json, tokenizer.json and safetensors files."""
    config = read_config(directory)
    architecture = architecture_of(config)
    tokenizer = Tokenizer(read_tokenizer(directory))
    check_token_ids(tokenizer, architecture.vocabulary)
    stops = stop_ids(directory, config, architecture.vocabulary)
    return Model(name, build(architecture, read_weights(directory)), tokenizer, stops)


def damaged(file: str, what: str | Exception) -> CheckpointError:
    """The error for a file that no tool has saved like this, in one line of limited length."""
    reason = what if isinstance(what, str) else f"cannot be used ({type(what).__name__}: {what})"
    return CheckpointError(f"{file} {' '.join(reason.split())[:300]}; save or download the model again")


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Transformers' own errors do not say which file is damaged."""
    if file.exists() and not file.is_file():  # reading a pipe would wait forever
        raise damaged(file.name, "is not a file")
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise damaged(file.name, f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise damaged(file.name, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise damaged(file.name, "is not a JSON object")
    return value


class Rope(TypedDict):
    rope_type: Literal["default"]
    rope_theta: float


class Llama(msgspec.Struct):
    """A complete configuration, as transformers saves a Llama today."""

    model_type: Literal["llama"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    hidden_act: str
    rms_norm_eps: float
    rope_parameters: Rope
    tie_word_embeddings: bool
    eos_token_id: int | list[int] | None
    quantization_config: None = None


class PlainTokenizer(msgspec.Struct, forbid_unknown_fields=True):
    """Settings that change nothing in tokenizer.json; transformers knows many others."""

    tokenizer_class: Literal["TokenizersBackend"]
    backend: str
    clean_up_tokenization_spaces: bool
    eos_token: str
    pad_token: str
    model_max_length: int


def read_config(directory: Path) -> Any:
    """Transformers fills in what the file leaves open."""
    file = directory / "config.json"
    if not file.exists():
        raise CheckpointError("no config.json in that directory; was it saved by save_pretrained?")
    settings = read_object(file)
    check_model_type(settings.get("model_type"))
    try:
        return msgspec.convert(settings, Llama)
    except msgspec.ValidationError:
        from transformers import AutoConfig
    quiet_transformers()
    try:
        return AutoConfig.from_pretrained(directory)
    except Exception as error:  # each check in transformers raises a kind of its own
        raise damaged(file.name, error) from error


def read_tokenizer(directory: Path) -> Backend:
    """The tokenizer, without the truncation and padding that may be saved with it: they are for training."""
    try:
        msgspec.json.decode((directory / "tokenizer_config.json").read_bytes(), type=PlainTokenizer)
        backend = Backend.from_file(str(directory / "tokenizer.json"))
    except Exception:  # tokenizers has only one kind of error
        backend = read_tokenizer_with_transformers(directory)
    backend.no_truncation()
    backend.no_padding()
    return backend


def read_tokenizer_with_transformers(directory: Path) -> Backend:
    from transformers import AutoTokenizer

    quiet_transformers()
    try:
        backend: Backend = AutoTokenizer.from_pretrained(directory).backend_tokenizer
    except Exception as error:  # of any kind: a KeyError if tokenizer.json is {}
        raise damaged_tokenizer(directory, error) from error
    return backend


def damaged_tokenizer(directory: Path, error: Exception) -> CheckpointError:
    """Find out which file is damaged. Only called when loading has failed, because it reads them again."""
    settings, file = directory / "tokenizer_config.json", directory / "tokenizer.json"
    if not file.exists():
        return CheckpointError("no tokenizer.json in that directory; save the tokenizer there too")
    try:
        read_object(file)
        Backend.from_file(str(file))
        if settings.exists():
            read_object(settings)
    except CheckpointError as found:
        return found
    except Exception as found:
        return damaged(file.name, found)
    return damaged(settings.name if settings.exists() else file.name, error)


def check_token_ids(tokenizer: Tokenizer, vocabulary: int) -> None:
    """Refuse a tokenizer that makes tokens which the model does not have: each would fail its request."""
    largest = tokenizer.largest_id
    if largest < 0:
        raise damaged("tokenizer.json", "has no tokens")
    if largest >= vocabulary:
        raise CheckpointError(
            f"the tokenizer (tokenizer.json) has a token with id {largest}, but the model's vocabulary "
            f"(vocab_size in config.json) ends at {vocabulary - 1}; use the tokenizer that was saved with "
            f"these weights"
        )


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint, mapped from its files and not yet read.

    A transformers model class is not used: importing one takes longer than all the rest of loading the
    bundled model, and each tensor is needed only until it is fused with others.
    """
    weights: dict[str, Tensor] = {}
    files = sorted(directory.glob("model*.safetensors"))
    check_index(directory, {file.name for file in files})
    for file in files:
        try:
            weights.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise damaged(file.name, f"is damaged: {error}") from error
    if not weights:
        raise CheckpointError("no model*.safetensors there; other weight formats are not read")
    return weights


def check_index(directory: Path, files: set[str]) -> None:
    """Name the missing file of a checkpoint in several files, not only a tensor that was in it."""
    index = directory / "model.safetensors.index.json"
    if "model.safetensors" in files or not index.exists():
        return
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict):
        raise damaged(index.name, "has no weight_map")
    if missing := sorted({str(file) for file in places.values()} - files):
        raise damaged(index.name, f"names {missing[0]}, which is not in that directory")


def stop_ids(directory: Path, config: Any, vocabulary: int) -> frozenset[int]:
    """The tokens that end a text; generation_config.json takes precedence, as in transformers."""
    value, file = config.eos_token_id, directory / "config.json"
    generation = directory / "generation_config.json"
    if generation.exists():
        settings = read_object(generation)
        if "eos_token_id" in settings:
            value, file = settings["eos_token_id"], generation
    if value is None:
        return frozenset()
    ids = value if isinstance(value, list) else [value]
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < vocabulary:  # to Python, true is an int
            raise CheckpointError(
                f"{file.name}: eos_token_id {token_id!r:.40} is no token; ids go from 0 to {vocabulary - 1}"
            )
    return frozenset(ids)


def quiet_transformers() -> None:
    """Transformers' warnings are about training; our own errors tell a server's user what to do."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def random_model(name: str, build: Build) -> Model:
    """A model of a published shape with random weights: real cost, made-up words, no end token."""
    from transformers import AutoConfig

    shape = name.removeprefix("random:")
    if shape not in RANDOM_SHAPES:
        raise UserError(f"model {name!r}: there is no such shape; there are {', '.join(RANDOM_SHAPES)}")
    settings = dict(RANDOM_SHAPES[shape])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    architecture = architecture_of(config)
    weights = RandomWeights(architecture, query_key_norm=config.model_type == "qwen3")
    decoder = build(architecture, weights)
    return Model(name, decoder, random_tokenizer(architecture.vocabulary), frozenset())


class RandomWeights(Mapping[str, Tensor]):
    """A checkpoint that creates each tensor on request, so that only the model itself is in memory.

    All tensors are cut from one pool of normal numbers: drawing a billion numbers would take ten seconds, and
    the speed of a matrix multiplication does not depend on the values.
    """

    POOL = 16_777_213  # a prime, so that no two rows of a matrix start at the same place

    def __init__(self, architecture: Architecture, query_key_norm: bool) -> None:
        self._shapes = checkpoint_shapes(architecture, query_key_norm)
        pool = torch.randn(self.POOL, generator=torch.Generator().manual_seed(0)) * 0.02
        self._pool = pool.repeat(2)

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        size = shape[0] * shape[1]
        offset = hash_of(name) % self.POOL
        pool = self._pool if size <= self.POOL else self._pool.repeat(size // (2 * self.POOL) + 2)
        return pool[offset : offset + size].view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def hash_of(text: str) -> int:
    """The same in every process, unlike Python's `hash` of a string."""
    return int.from_bytes(sha256(text.encode()).digest()[:8])


def random_tokenizer(vocabulary: int) -> Tokenizer:
    """The bundled tokenizer, its vocabulary filled up with made-up words.

    Prompts are encoded with the bundled vocabulary. The output of a random model decodes to words such as
    " balo kitu", so that its stream can be watched and measured like any other.
    """
    data = json.loads((BUNDLED / "tokenizer.json").read_bytes())
    known = data["model"]["vocab"]
    taken = set(known) | {token["content"] for token in data["added_tokens"]}
    words = (f"Ġ{made_up_word(number)}" for number in range(2 * vocabulary))
    fresh = (word for word in words if word not in taken)
    for token_id in range(len(taken), vocabulary):
        known[next(fresh)] = token_id
    return Tokenizer(Backend.from_str(json.dumps(data)))


CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
SYLLABLES = [consonant + vowel for consonant in CONSONANTS for vowel in VOWELS]


def made_up_word(number: int) -> str:
    """Count in syllables: 0 is "ba", 70 is "beba", and no two numbers share a word."""
    word = SYLLABLES[number % len(SYLLABLES)]
    while number := number // len(SYLLABLES):
        word = SYLLABLES[number % len(SYLLABLES)] + word
    return word
