"""Train the bundled predictors: two classifiers of digits and a regressor, on scikit-learn's own data.

    python -m training.predictors [--output DIR]

The digits are the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI
Machine Learning Repository, CC BY 4.0); the diabetes data are those of Efron, Hastie, Johnstone and
Tibshirani, "Least Angle Regression" (2004). Both come with scikit-learn, so nothing is downloaded. A fifth of
each is held out. The digits are saved beside the models. Demos and tests use them, and rung 11, which trains
another version while it serves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from sklearn.datasets import load_diabetes, load_digits as scikit_digits
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import train_test_split

from ladder import ROOT
from ladder.predict.fitting import Fit
from ladder.predict.predictor import (
    PREDICTORS,
    Digits,
    Entry,
    ModelEntry,
    Predictor,
    parse_digits,
    tensors_of,
    write_index,
)

PAGE = ROOT / "ladder" / "pages" / "models"
SEED = 1
HELD_OUT = 0.2


def write(folder: Path, name: str, predictor: Predictor, about: str, held_out: float) -> Entry:
    """Save a version and return its entry of the index, with the digest of the file."""
    content = save(tensors_of(predictor.layers))
    file = folder / f"{name}.safetensors"
    file.write_bytes(content)
    print(f"{file.name}: {about}; {held_out:.3f} on held-out rows, {predictor.products:,} products a row")
    digest = hashlib.sha256(content).hexdigest()
    return Entry(file=file.name, sha256=digest, about=about, held_out=round(held_out, 4))


def write_digits(folder: Path) -> bytes:
    """Save the digits and return the content of the file."""
    bunch = scikit_digits()
    parts = train_test_split(
        bunch.data.astype(np.uint8),
        bunch.target.astype(np.uint8),
        test_size=HELD_OUT,
        random_state=SEED,
        stratify=bunch.target,
    )
    names = ("train.images", "held_out.images", "train.labels", "held_out.labels")
    content = save(dict(zip(names, parts, strict=True)))
    (folder / "digits.safetensors").write_bytes(content)
    return content


def write_samples(file: Path, digits: Digits) -> None:
    """Write one digit of each kind for the page, as an alternative to drawing."""
    firsts = [digits.images[digits.labels == kind][0].astype(int).tolist() for kind in range(10)]
    lines = ",\n".join(f"  {json.dumps(image, separators=(',', ':'))}" for image in firsts)
    file.write_text(
        "/** The first held-out digit of each kind; made by training/predictors.py. */\n\n"
        f"export const SAMPLES = [\n{lines},\n];\n"
    )


def train_digits(folder: Path, train: Digits, held_out: Digits) -> ModelEntry:
    about = {
        "v1": "softmax regression",
        "v2": "two hidden layers of 512, trained on moved and turned images",
    }
    fits = {
        "v1": Fit(train, held_out, hidden=[], epochs=60, jitter=False, seed=SEED),
        "v2": Fit(train, held_out, hidden=[512, 512], epochs=80, jitter=True, seed=SEED),
    }
    versions = {}
    for version, fit in fits.items():
        *_, last = fit.run()
        versions[version] = write(folder, f"digits-{version}", fit.predictor(), about[version], last.accuracy)
    return ModelEntry(task="classification", features=64, default="v1", versions=versions)


def train_diabetes(folder: Path) -> ModelEntry:
    """Ridge regression on the raw columns; the single layer includes their means and standard deviations."""
    bunch = load_diabetes(scaled=False)
    x_train, x_held_out, y_train, y_held_out = train_test_split(
        bunch.data, bunch.target, test_size=HELD_OUT, random_state=SEED
    )
    mean, spread = x_train.mean(axis=0), x_train.std(axis=0)
    ridge = RidgeCV(alphas=np.logspace(-1, 3, 30)).fit((x_train - mean) / spread, y_train)
    slope: NDArray[np.float64] = ridge.coef_ / spread
    offset = ridge.intercept_ - mean @ slope
    layer = (slope[:, None].astype(np.float32), np.array([offset], np.float32))
    predictor = Predictor("regression", [layer])
    score = ridge.score((x_held_out - mean) / spread, y_held_out)
    entry = write(folder, "diabetes-v1", predictor, "ridge regression; progress after a year", score)
    return ModelEntry(task="regression", features=bunch.data.shape[1], default="v1", versions={"v1": entry})


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the bundled predictors.")
    parser.add_argument("--output", type=Path, default=PREDICTORS, help="a folder")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # more threads are slower here, and change the order of additions
    digits = write_digits(folder)
    train, held_out = parse_digits(digits)
    write_samples(PAGE / "samples.js", held_out)
    models = {"digits": train_digits(folder, train, held_out), "diabetes": train_diabetes(folder)}
    write_index(folder, models, digits)


if __name__ == "__main__":
    main()
