"""Fixtures of the whole suite: one server of each kind, the bundled model, transformers as the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ladder.llm.loading import BUNDLED, Model, load_model
from tests import template
from tests.support import RUNGS, SCRIPTS, STREAMING_RUNGS, Oracle, RungServer, ServerPool, make_endless


def pytest_configure() -> None:
    template.start()


@pytest.fixture
def fresh_interpreters() -> Iterator[None]:
    """What the test starts is no fork of a process that has imported everything."""
    with template.fresh_interpreters():
        yield


@pytest.fixture(scope="session")
def pool() -> Iterator[ServerPool]:
    servers = ServerPool()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def bundled() -> Model:
    return load_model("tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return Oracle(BUNDLED)


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_endless(tmp_path_factory.mktemp("models") / "endless")


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> str:
    """Every numbered script, whatever it serves."""
    script: str = request.param
    return script


@pytest.fixture(params=RUNGS)
def rung(request: pytest.FixtureRequest) -> str:
    """The script of each rung that serves a language model."""
    script: str = request.param
    return script


@pytest.fixture
def server(pool: ServerPool, rung: str) -> RungServer:
    """Each rung with the bundled model."""
    return pool(rung)


@pytest.fixture(params=STREAMING_RUNGS)
def streaming_server(pool: ServerPool, request: pytest.FixtureRequest) -> RungServer:
    """Each rung that streams, with the bundled model."""
    return pool(request.param)


@pytest.fixture(params=STREAMING_RUNGS)
def endless_server(pool: ServerPool, endless: Path, request: pytest.FixtureRequest) -> RungServer:
    """Each rung that streams, with a model that never ends by itself."""
    return pool(request.param, "--model", str(endless))
