"""A training run that a client follows: an event for each epoch, and at the end a further version."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch

from ladder.errors import ServerStopping, Unavailable
from ladder.predict.fitting import Epoch, Fit
from ladder.predict.predictor import load_digits
from ladder.predict.protocols import VersionRegistry
from ladder.web.schema import NamedEvent


class EpochEvent(NamedEvent):
    NAME = "epoch"

    epoch: int
    loss: float
    accuracy: float
    epochs: int


class TrainedEvent(NamedEvent):
    NAME = "trained"

    model: str
    version: str
    accuracy: float


class Trainer:
    """One training at a time, in a worker thread of its own."""

    def __init__(self, registry: VersionRegistry, name: str, max_trained: int) -> None:
        self._registry = registry
        self._name = name
        self._max_trained = max_trained
        self._train, self._held_out = load_digits()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")
        self._trained: list[str] = []
        self._stopping = False
        self.running = False
        self.epochs = 0

    def start(self, epochs: int) -> AsyncGenerator[EpochEvent | TrainedEvent]:
        """Start a training; `finish` allows the next one. Raises `Unavailable` while one is running."""
        if self.running:
            raise Unavailable("another training is running; try again when it has ended")
        self.running = True
        return self._events(epochs)

    def finish(self) -> None:
        self.running = False

    def stop(self) -> None:
        self._stopping = True

    async def _events(self, epochs: int) -> AsyncGenerator[EpochEvent | TrainedEvent]:
        """Each `next` is one epoch. If the client disconnects, the epoch in progress is the last."""
        loop = asyncio.get_running_loop()
        fit = await loop.run_in_executor(self._worker, self._begin, epochs)
        run, epoch = fit.run(), None
        while following := await loop.run_in_executor(self._worker, next, run, None):
            if self._stopping:
                raise ServerStopping
            epoch = following
            self.epochs += 1
            yield EpochEvent(**asdict(epoch), epochs=epochs)
        assert epoch, "at least one epoch"
        yield TrainedEvent(model=self._name, version=self._publish(fit, epoch), accuracy=epoch.accuracy)

    def _begin(self, epochs: int) -> Fit:
        torch.set_num_threads(1)  # the model is small, and requests need the other cores
        seed = secrets.randbits(32)
        # A high learning rate: the client should not have to wait for a minute.
        return Fit(
            self._train, self._held_out, hidden=[256], epochs=epochs, jitter=True, seed=seed, rate=1e-2
        )

    def _publish(self, fit: Fit, epoch: Epoch) -> str:
        """Offer the new model. Unload the oldest trained versions beyond the limit, except the default."""
        about = f"one hidden layer of 256, trained while serving, {epoch.epoch} epochs"
        version = self._registry.add(self._name, fit.predictor(), about, epoch.accuracy)
        model = self._registry.model(self._name)
        self._trained = [number for number in (*self._trained, version) if number in model.versions]
        old = [number for number in self._trained if number != model.default]
        for number in old[: -self._max_trained]:
            self._registry.unload(self._name, number)
        return version
