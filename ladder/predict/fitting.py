"""Training of a classifier of digits, one epoch at a time, so that it can be stopped between two epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.predict.predictor import Digits, Predictor, accuracy

BATCH = 64
SIDE = 8
BRIGHTEST = 16


@dataclass(frozen=True)
class Epoch:
    """The result of one epoch. `accuracy` is measured on the held-out digits."""

    epoch: int
    loss: float
    accuracy: float


class Fit:
    """A training. With `jitter`, each epoch shifts, rotates and scales every image a little."""

    def __init__(
        self,
        train: Digits,
        held_out: Digits,
        hidden: Sequence[int],
        epochs: int,
        jitter: bool,
        seed: int,
        rate: float = 2e-3,
    ) -> None:
        self.images = torch.from_numpy(train.images) / BRIGHTEST
        self.labels = torch.from_numpy(train.labels)
        self.held_out = held_out
        self.jitter = jitter
        self.random = torch.Generator().manual_seed(seed)
        self.layers = self._layers([SIDE * SIDE, *hidden, 10])
        parameters = [tensor for layer in self.layers for tensor in layer]
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-3)
        self.epochs = epochs
        steps = epochs * math.ceil(len(self.images) / BATCH)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def _layers(self, widths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Random weights from a generator of its own, so that the same seed always gives the same model."""
        layers: list[tuple[Tensor, Tensor]] = []
        for inputs, outputs in pairwise(widths):
            weight = torch.randn(inputs, outputs, generator=self.random) * math.sqrt(2 / inputs)
            layers.append((nn.Parameter(weight), nn.Parameter(torch.zeros(outputs))))
        return layers

    def run(self) -> Iterator[Epoch]:
        for number in range(1, self.epochs + 1):
            loss = self._run_epoch()
            yield Epoch(number, loss, accuracy(self.predictor(), self.held_out))

    def _run_epoch(self) -> float:
        """Train on every image once; return the mean loss."""
        images = jittered(self.images, self.random) if self.jitter else self.images
        losses = []
        for rows in torch.split(torch.randperm(len(images), generator=self.random), BATCH):
            loss = F.cross_entropy(self._scores(images[rows]), self.labels[rows])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item())
        return sum(losses) / len(losses)

    def _scores(self, values: Tensor) -> Tensor:
        *hidden, (weight, bias) = self.layers
        for hidden_weight, hidden_bias in hidden:
            values = F.relu(values @ hidden_weight + hidden_bias)
        return values @ weight + bias

    def predictor(self) -> Predictor:
        """The model as it is now. It takes raw pixels: its first layer divides them by `BRIGHTEST`."""
        layers = [
            (weight.detach().numpy().copy(), bias.detach().numpy().copy()) for weight, bias in self.layers
        ]
        layers[0] = (layers[0][0] / BRIGHTEST, layers[0][1])
        return Predictor("classification", layers)


def jittered(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image shifted by up to a pixel, rotated by up to 15 degrees, and scaled by up to an eighth."""

    def drawn(bound: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=random) - 1) * bound

    angle, scale = drawn(math.pi / 12), 1 + drawn(1 / 8)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    pixel = 2 / SIDE
    rows = [torch.stack([cosine, -sine, drawn(pixel)], 1), torch.stack([sine, cosine, drawn(pixel)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(images), 1, SIDE, SIDE], align_corners=False)
    moved = F.grid_sample(images.view(-1, 1, SIDE, SIDE), grid, align_corners=False)
    return moved.view(len(images), SIDE * SIDE)
