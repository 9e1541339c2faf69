"""How the suite runs: settings of each process, the template of its programs, the order of the files.

Several files run at a time, each in a process that keeps its servers.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# Processes that each want every core hinder each other tenfold. Servers inherit this.
os.environ["OMP_NUM_THREADS"] = "1"

# A test that fails once fails every time, and never because the machine was busy.
settings.register_profile("ladder", deadline=None, derandomize=True)
settings.load_profile("ladder")


def pytest_configure(config: pytest.Config) -> None:
    """The processes that run tests get the fixtures and a template. xdist's own process runs no test.

    And Ctrl-C is heard: a shell that starts the suite in the background has it ignored, and so would all
    that the suite starts.
    """
    config.addinivalue_line("markers", "fault: a row of docs/faults.md; see tests/faults.py")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        config.pluginmanager.import_plugin("tests.fixtures")
        config.pluginmanager.import_plugin("tests.browsing")


LONGEST = ("test_notebooks.py", "test_run.py", "test_demos.py", "test_benchmarks.py", "test_contract.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files are begun first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
