"""Fixtures of the whole suite: one server of each kind, the bundled model, transformers as the oracle.

Several files are run at a time, each in a process that keeps its servers.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Processes that each want every core hinder each other tenfold. Servers inherit this.
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

from ladder.llm.loading import BUNDLED, Model, load_model
from tests import template
from tests.support import RUNGS, SCRIPTS, STREAMING_RUNGS, Oracle, RungServer, ServerPool, make_endless

pytest_plugins = ["tests.browsing"]

# A test that fails once fails every time, and never because the machine was busy.
settings.register_profile("ladder", deadline=None, derandomize=True)
settings.load_profile("ladder")


def pytest_configure(config: pytest.Config) -> None:
    """A template for each process that runs tests; xdist's own process runs none.

    And Ctrl-C is heard: a shell that starts the suite in the background has it ignored, and so would all
    that the suite starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        template.start()


LONGEST = ("test_notebooks.py", "test_run.py", "test_demos.py", "test_benchmarks.py", "test_contract.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files are begun first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


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
