"""Training a classifier of digits, an epoch at a time: whoever watches can leave between two of them."""

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
    """How far a training has come. `accuracy` is that on the held-out digits."""

    epoch: int
    loss: float
    accuracy: float


class Fit:
    """A training under way. With `jitter` each epoch sees every image a little moved, turned and scaled."""

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
        """Drawn from a generator of our own: the same seed gives the same model whatever else is drawn."""
        layers: list[tuple[Tensor, Tensor]] = []
        for inputs, outputs in pairwise(widths):
            weight = torch.randn(inputs, outputs, generator=self.random) * math.sqrt(2 / inputs)
            layers.append((nn.Parameter(weight), nn.Parameter(torch.zeros(outputs))))
        return layers

    def run(self) -> Iterator[Epoch]:
        for number in range(1, self.epochs + 1):
            loss = self._see_all()
            yield Epoch(number, loss, accuracy(self.predictor(), self.held_out))

    def _see_all(self) -> float:
        """Every image once; the mean loss on the way."""
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
        """The model as it is now. It takes pixels as they are: the first layer divides by the brightest."""
        layers = [
            (weight.detach().numpy().copy(), bias.detach().numpy().copy()) for weight, bias in self.layers
        ]
        layers[0] = (layers[0][0] / BRIGHTEST, layers[0][1])
        return Predictor("classification", layers)


def jittered(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image moved by up to a pixel, turned by up to 15 degrees, larger or smaller by up to an eighth."""

    def drawn(bound: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=random) - 1) * bound

    angle, scale = drawn(math.pi / 12), 1 + drawn(1 / 8)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    pixel = 2 / SIDE
    rows = [torch.stack([cosine, -sine, drawn(pixel)], 1), torch.stack([sine, cosine, drawn(pixel)], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [len(images), 1, SIDE, SIDE], align_corners=False)
    moved = F.grid_sample(images.view(-1, 1, SIDE, SIDE), grid, align_corners=False)
    return moved.view(len(images), SIDE * SIDE)
