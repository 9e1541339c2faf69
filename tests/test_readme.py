"""Every command in the README works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ladder import ROOT
from ladder.launch import running_rungs

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
CURL = [command for command in COMMANDS if command.startswith("curl")]
MAKE = [command for command in COMMANDS if command.startswith("make")]
PYTHON = [command for command in COMMANDS if command.startswith(".venv/bin/python")]


def run(command: list[str], cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_rungs(("02_async_streaming.py", [])) as (url,):
        yield url.removeprefix("http://")


def test_nothing_in_the_readme_is_left_untried() -> None:
    assert sorted(CURL + MAKE + PYTHON) == sorted(COMMANDS)
    assert CURL
    assert MAKE
    assert PYTHON


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_target_and_explains_it(command: str) -> None:
    target = shlex.split(command)[1]
    assert re.search(rf"^{target} +\S", run(["make", "help"]), re.MULTILINE)


@pytest.mark.parametrize("command", PYTHON)
def test_python_commands_have_flags_that_exist(command: str) -> None:
    _, script, *flags = shlex.split(command)
    known = run([sys.executable, script, "--help"])
    for flag in flags:
        assert not flag.startswith("--") or flag in known


@pytest.mark.parametrize("command", CURL)
def test_curl_commands_are_answered(command: str, server: str) -> None:
    answer = run([*shlex.split(command.replace("localhost:5000", server)), "--silent", "--fail"])
    assert "[DONE]" in answer or "total_time_ms" in answer or '"status":"ok"' in answer


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
