"""A training run that somebody watches: its epochs as server-sent events, its model as a further version."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch
from fastapi.sse import format_sse_event

from ladder.errors import ServerStopping, Unavailable
from ladder.log import log_failure
from ladder.predict.fitting import Epoch, Fit
from ladder.predict.predictor import load_digits
from ladder.predict.registry import Registry
from ladder.web.http import EventStream
from ladder.web.schema import ErrorBody


class Trainer:
    """One training at a time, in a thread of its own."""

    def __init__(self, registry: Registry, name: str, max_trained: int) -> None:
        self._registry = registry
        self._name = name
        self._max_trained = max_trained
        self._train, self._held_out = load_digits()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")
        self._trained: list[str] = []
        self._stopping = False
        self.running = False
        self.epochs = 0

    def stream(self, epochs: int) -> EventStream:
        if self.running:
            raise Unavailable("a training is under way; try again when it is over")
        self.running = True
        return EventStream(self._events(epochs), on_close=self._over)

    def _over(self) -> None:
        self.running = False

    def stop(self) -> None:
        self._stopping = True

    async def _events(self, epochs: int) -> AsyncGenerator[bytes]:
        """Closed when the client leaves: the epoch under way is the last."""
        loop = asyncio.get_running_loop()
        try:
            fit = await loop.run_in_executor(self._worker, self._begin, epochs)
            run, epoch = fit.run(), None
            while following := await loop.run_in_executor(self._worker, next, run, None):
                if self._stopping:
                    raise ServerStopping
                epoch = following
                self.epochs += 1
                data = asdict(epoch) | {"epochs": epochs}
                yield format_sse_event(event="epoch", data_str=json.dumps(data))
            assert epoch
            version = self._publish(fit, epoch)
            data = {"model": self._name, "version": version, "accuracy": epoch.accuracy}
            yield format_sse_event(event="trained", data_str=json.dumps(data))
            yield format_sse_event(data_str="[DONE]")
        except Exception as error:
            log_failure(error)
            yield format_sse_event(event="error", data_str=ErrorBody.of(error).model_dump_json())

    def _begin(self, epochs: int) -> Fit:
        torch.set_num_threads(1)  # the model is small, and others want to compute meanwhile
        seed = secrets.randbits(32)
        # In a hurry: whoever watches does not want to wait for a minute.
        return Fit(
            self._train, self._held_out, hidden=[256], epochs=epochs, jitter=True, seed=seed, rate=1e-2
        )

    def _publish(self, fit: Fit, epoch: Epoch) -> str:
        """Offer the new model, and let the oldest of its kind go, unless it is the default."""
        about = f"one hidden layer of 256, trained while serving, {epoch.epoch} epochs"
        version = self._registry.add(self._name, fit.predictor(), about, epoch.accuracy)
        model = self._registry.model(self._name)
        self._trained = [number for number in (*self._trained, version) if number in model.versions]
        old = [number for number in self._trained if number != model.default]
        for number in old[: -self._max_trained]:
            self._registry.unload(self._name, number)
        return version
