"""Routes of rung 10 that it does not teach: which models there are, and the A/B experiment."""

from __future__ import annotations

import time

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from ladder.errors import UserError
from ladder.log import logger
from ladder.predict import wire
from ladder.predict.experiment import ExperimentReport, arm_of
from ladder.predict.protocols import PredictionEngine, VersionRegistry


def add_model_routes(app: FastAPI, registry: VersionRegistry) -> None:
    """Whether all versions are loaded, which there are, and the response when a file cannot be read."""

    @app.exception_handler(UserError)
    async def cannot_be_loaded(_: Request, error: UserError) -> JSONResponse:
        logger.error("%s", error)  # not for the client: it names files of the server
        return JSONResponse({"detail": "the version cannot be loaded; the server's log says why"}, 500)

    @app.get("/ready")
    async def ready(response: Response) -> dict[str, str]:
        """Whether a prediction would be answered now: a load balancer should ask this, not /health."""
        response.status_code = 200 if registry.loaded else 503
        return {"status": "ready" if registry.loaded else "loading"}

    @app.get("/models")
    async def models() -> dict[str, wire.ModelInfo]:
        """Every model with its versions, and which of them are in memory."""
        return {name: model.info() for name, model in registry.models.items()}


def add_experiment_routes(app: FastAPI, engine: PredictionEngine) -> None:
    """Predictions by the version of each user, the labels that come back, and the report."""
    model = engine.experiment.model

    @app.post("/predict/ab-test")
    async def predict_ab_test(body: wire.PredictionInput, user_id: wire.UserId) -> wire.ExperimentPrediction:
        """Each user always gets the same version. While it is unloaded, the default answers instead."""
        started, arm = time.perf_counter(), arm_of(user_id, engine.config)
        takes_part = engine.registry.offers(model, arm)
        async with engine.registry.lease(model, arm if takes_part else "default") as lease:
            computed = not engine.is_cached(lease, body.features)
            outcome = await engine.predict(lease, body.features)
        seconds = time.perf_counter() - started if computed else None
        number = engine.experiment.record(arm, outcome.prediction, seconds) if takes_part else None
        return wire.ExperimentPrediction(
            prediction=outcome.prediction,
            confidence=outcome.confidence,
            user_id=user_id,
            prediction_id=number,
            **lease.names(),
        )

    @app.post("/feedback", status_code=204)
    async def feedback(body: wire.Feedback) -> None:
        """The label of a prediction of the experiment: what it should have been."""
        if not engine.experiment.label(body.prediction_id, body.label):
            raise HTTPException(404, "no prediction of that id waits for its label")

    @app.get("/ab-test")
    async def experiment() -> ExperimentReport:
        """How the two versions of the experiment have done so far."""
        return engine.experiment.report()
