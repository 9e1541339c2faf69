"""Small models that answer in a single pass: an index on disk, safetensors files, a forward pass in numpy.

A folder of predictors has an `index.json` and one safetensors file per version, which cannot contain code.
The index has the SHA-256 digest of every file. A file with another digest is rejected before it is parsed.
This includes the digits on which rung 11 trains, because changed digits would change its models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as read_tensors

from ladder import ROOT
from ladder.errors import UserError

Rows = NDArray[np.float32]
"""Inputs or outputs of a model, [rows, features] or [rows, outputs]."""

PREDICTORS = ROOT / "ladder" / "data" / "predictors"
VERSION = re.compile(r"v[1-9][0-9]{0,5}")


class Outcome(NamedTuple):
    """The result for one row. A regressor returns no confidence and no probabilities."""

    prediction: float
    confidence: float | None = None
    probabilities: list[float] | None = None


Task = Literal["classification", "regression"]


@dataclass(frozen=True)
class Predictor:
    """Dense layers with a ReLU between them, and in a classifier a softmax after the last."""

    task: Task
    layers: list[tuple[Rows, Rows]]

    @property
    def features(self) -> int:
        return len(self.layers[0][0])

    @property
    def bytes(self) -> int:
        return sum(weight.nbytes + bias.nbytes for weight, bias in self.layers)

    @property
    def products(self) -> int:
        """Multiplications for one row: a measure of its cost that does not depend on the machine."""
        return sum(weight.size for weight, _ in self.layers)

    def predict(self, rows: Rows) -> list[Outcome]:
        """All rows in one pass."""
        *hidden, (last_weight, last_bias) = self.layers
        values = rows
        for weight, bias in hidden:
            values = np.maximum(values @ weight + bias, 0)
        values = values @ last_weight + last_bias
        if self.task == "regression":
            return [Outcome(value) for value in values[:, 0].tolist()]
        odds = np.exp(values - values.max(axis=1, keepdims=True))
        shares = (odds / odds.sum(axis=1, keepdims=True)).tolist()
        return [
            Outcome(winner, share[winner], share)
            for winner, share in zip(values.argmax(axis=1).tolist(), shares, strict=True)
        ]


class Entry(BaseModel):
    """One version of a model in the index."""

    model_config = ConfigDict(extra="forbid")

    file: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*\.safetensors$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    about: str
    held_out: Annotated[float, Field(description="Accuracy or R² on rows that were not used in training.")]


class ModelEntry(BaseModel):
    """One model in the index, with its versions."""

    model_config = ConfigDict(extra="forbid")

    task: Task
    features: Annotated[int, Field(ge=1)]
    default: str
    versions: Annotated[
        dict[Annotated[str, Field(pattern=rf"^{VERSION.pattern}$")], Entry], Field(min_length=1)
    ]


class Index(BaseModel):
    model_config = ConfigDict(extra="forbid")

    models: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")], ModelEntry]
    digits_sha256: str | None = None


def read_index(folder: Path) -> Mapping[str, ModelEntry]:
    return read_whole_index(folder).models


def read_whole_index(folder: Path) -> Index:
    file = folder / "index.json"
    try:
        index = Index.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a folder with an index.json by --models") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{file}: {place}: {first['msg']}; python -m training.predictors makes a new one"
        ) from error
    for name, model in index.models.items():
        if model.default not in model.versions:
            raise UserError(f"{file}: the default of {name}, {model.default!r}, is not one of its versions")
    return index


def read_pinned(file: Path, sha256: str | None) -> bytes:
    """Read a file once, so that the bytes whose digest is checked are the bytes that are used."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: {error.strerror}; restore it, or run python -m training.predictors"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise UserError(
            f"{file} has been changed: its SHA-256 is {digest[:12]}…, index.json pins {str(sha256)[:12]}…; "
            "restore it, or run python -m training.predictors"
        )
    return content


def load_predictor(folder: Path, model: ModelEntry, entry: Entry) -> Predictor:
    file = folder / entry.file
    content = read_pinned(file, entry.sha256)
    try:
        return build(model, read_tensors(content))
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{file} does not hold the model that index.json describes: {error}") from error


def build(model: ModelEntry, tensors: Mapping[str, Rows]) -> Predictor:
    """Layers from tensors named 0.weight, 0.bias, 1.weight, ...; `ValueError` if they do not fit together."""
    layers = [(tensors[f"{place}.weight"], tensors[f"{place}.bias"]) for place in range(len(tensors) // 2)]
    width = model.features
    for weight, bias in layers:
        if weight.ndim != 2 or weight.shape != (width, bias.size) or bias.ndim != 1:
            raise ValueError(f"a layer of shape {weight.shape} after {width} values")
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError("a weight that is not a finite number")
        width = bias.size
    if not layers:
        raise ValueError("no layers")
    return Predictor(model.task, layers)


def tensors_of(layers: list[tuple[Rows, Rows]]) -> dict[str, Rows]:
    """The layers under the names that `build` expects."""
    return {
        f"{place}.{kind}": np.ascontiguousarray(tensor)
        for place, layer in enumerate(layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }


class Digits(NamedTuple):
    """Handwritten digits: images of 8×8 pixels from 0 to 16, and their labels."""

    images: Rows
    labels: NDArray[np.int64]


def load_digits(folder: Path = PREDICTORS) -> tuple[Digits, Digits]:
    """The digits for training, and the held-out ones for testing."""
    return parse_digits(read_pinned(folder / "digits.safetensors", read_whole_index(folder).digits_sha256))


def parse_digits(content: bytes) -> tuple[Digits, Digits]:
    tensors = read_tensors(content)
    train, held_out = (
        Digits(tensors[f"{part}.images"].astype(np.float32), tensors[f"{part}.labels"].astype(np.int64))
        for part in ("train", "held_out")
    )
    return train, held_out


def accuracy(predictor: Predictor, digits: Digits) -> float:
    predictions = [outcome.prediction for outcome in predictor.predict(digits.images)]
    return float(np.mean(np.array(predictions) == digits.labels))


def write_index(folder: Path, models: Mapping[str, ModelEntry], digits: bytes | None = None) -> None:
    """`digits` is the content of their file; the index gets its digest."""
    index = Index(models=dict(models), digits_sha256=hashlib.sha256(digits).hexdigest() if digits else None)
    text = json.dumps(index.model_dump(exclude_none=True), indent=2, ensure_ascii=False)
    (folder / "index.json").write_text(text + "\n")
