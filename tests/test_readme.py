"""Tests that every command in the README works as written.

Servers start on a free port and get the requests of the README. A model of the hub is replaced by the
bundled model under that name. Demos are run in test_demos.py, the benchmark and its figures in test_run.py.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tomllib
import venv
from pathlib import Path

import pytest
import torch

from ladder import ROOT
from ladder.errors import UserError
from ladder.lab.launch import RungProcess
from ladder.llm.loading import BUNDLED
from tests.documents import BLOCK, README, Command, commands_in, is_python
from tests.support import SCRIPTS, Server

TEXT = README.read_text()
COMMANDS = commands_in(TEXT)

DEMOS = [command for command in COMMANDS if is_python(command) and "--demo" in command]
SERVERS = [
    command for command in COMMANDS if is_python(command) and command[1] in SCRIPTS and command not in DEMOS
]
TOOLS = [command for command in COMMANDS if is_python(command) and command not in (*DEMOS, *SERVERS)]
"""Benchmarks and other tools: test_documents.py checks that they exist and accept their flags."""
MAKE = [command for command in COMMANDS if command[0] == "make"]
CURL = [command for command in COMMANDS if command[0] == "curl"]
PIP = [command for command in COMMANDS if command[0] == ".venv/bin/pip"]


def test_every_command_of_the_readme_is_tested() -> None:
    assert sorted(DEMOS + SERVERS + TOOLS + MAKE + CURL + PIP) == sorted(COMMANDS)
    assert {block["language"] for block in BLOCK.finditer(TEXT)} <= {"bash", "text"}
    assert all((DEMOS, SERVERS, MAKE, CURL))
    assert sum(len(commands) for _, commands in conversations()) == len(CURL)


def conversations() -> list[tuple[Command, list[Command]]]:
    """Each server, and the requests that the README sends to it."""
    found: list[tuple[Command, list[Command]]] = []
    for command in COMMANDS:
        if command in SERVERS:
            found.append((command, []))
        elif command in CURL:
            found[-1][1].append(command)
    return found


def value_of(command: Command, flag: str) -> str | None:
    return command[command.index(flag) + 1] if flag in command else None


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, but a hub cache. Every hub model in the README is a copy of the bundled model."""
    for command in SERVERS:
        name = value_of(command, "--model")
        if name and "/" in name:
            folder = tmp_path / f"models--{name.replace('/', '--')}"
            if not folder.exists():
                shutil.copytree(BUNDLED, folder / "snapshots" / "0")
                (folder / "refs").mkdir()
                (folder / "refs" / "main").write_text("0")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(
    ("command", "requests"), conversations(), ids=[" ".join(command[1:]) for command, _ in conversations()]
)
def test_a_server_starts_responds_to_its_requests_and_exits(
    command: Command, requests: list[Command], request: pytest.FixtureRequest
) -> None:
    if "/" in (value_of(command, "--model") or ""):  # a hub id; the hub's library reads its settings once
        request.getfixturevalue("hub")
        request.getfixturevalue("fresh_interpreters")
    port = value_of(command, "--port") or "5000"
    process = RungProcess(command[1], (*command[2:], "--port", "0"))
    try:
        if value_of(command, "--device") == "cuda" and not torch.cuda.is_available():
            with pytest.raises(UserError, match="no CUDA device here"):
                process.wait_ready()
            return
        server = Server(process.wait_ready())
        health = server.health()
        assert health["status"] == "ok"
        if model := value_of(command, "--model"):
            assert health["model"] == model
        for words in requests:
            send(server, [word.replace(f"localhost:{port}", server.netloc) for word in words])
        assert process.stop(signal.SIGINT) == 0
        assert process.errors() == ""
    finally:
        process.close()


def send(server: Server, request: list[str]) -> None:
    assert server.netloc in " ".join(request)
    command = [*request, "--silent", "--show-error", "--fail"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert '"stream": true' not in " ".join(request) or done.stdout.endswith("data: [DONE]\n\n")


def test_the_activated_python_is_that_of_the_commands(tmp_path: Path) -> None:
    (activate,) = re.findall(r"`(source [^`]+)`", TEXT)
    venv.create(tmp_path / ".venv")
    command = ["bash", "-c", f'{activate} && python -c "import sys; print(sys.executable)"']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    (named,) = {command[0] for command in COMMANDS if is_python(command)}
    assert done.stdout.strip() == str(tmp_path / named)


def test_pip_installs_the_pinned_versions() -> None:
    pinned = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {word for command in PIP for word in command if "==" in word} <= set(pinned)
