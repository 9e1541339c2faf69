"""A forked program is to its parent and to itself what a new interpreter would be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import template

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all interpreters are new")


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_template_is_used() -> None:
    """Nothing that this process has loaded or run changed a variable that only a new interpreter reads."""
    assert template.template
    assert template.template.can_run([sys.executable, "-c", ""], os.environ)
    loaded = "import sys; print('torch' in sys.modules)"
    assert run("-c", loaded).stdout == "True\n"
    with template.fresh_interpreters():
        assert run("-c", loaded).stdout == "False\n"


@pytest.mark.parametrize(
    "arguments",
    [("-c", "", "--flag"), ("script.py", "--flag"), ("-m", "module", "--flag")],
    ids=lambda arguments: arguments[0],
)
def test_it_sees_its_arguments_and_where_it_is(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, sys; print(__name__, sys.argv, os.getcwd(), sys.path[0])\n"
    code += "import __main__; print(vars(__main__) is globals())"
    for name in ("script.py", "module.py"):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    words = [code if word == "" else word for word in arguments]
    forked = run(*words)
    with template.fresh_interpreters():
        fresh = run(*words)
    assert (forked.returncode, forked.stderr) == (0, "")
    assert forked.stdout == fresh.stdout


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit('why')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(4)", 4),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
        ("import os; os.kill(os.getpid(), 2)", -signal.SIGINT),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_its_parent_sees_how_it_ended(code: str, status: int) -> None:
    with template.fresh_interpreters():
        fresh = run("-c", code)
    forked = run("-c", code)
    assert forked.returncode == fresh.returncode == status
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_it_reads_and_writes_its_own_streams() -> None:
    code = "import sys; print(sys.stdin.read().upper()); print('ä', file=sys.stderr)"
    done = run("-c", code, stdin="grün")
    assert (done.stdout, done.stderr) == ("GRÜN\n", "ä\n")


def test_what_it_registered_is_called_and_its_threads_are_waited_for() -> None:
    code = (
        "import atexit, threading; atexit.register(print, 'end')\n"
        "threading.Timer(0.1, print, ['thread']).start()"
    )
    assert run("-c", code).stdout == "thread\nend\n"


def test_it_is_a_child_of_the_process_that_started_it() -> None:
    """And so is what it starts itself."""
    inner = "import os; print(os.getppid())"
    code = "import os, subprocess, sys; print(os.getpid(), os.getppid(), flush=True)\n"
    code += f"subprocess.run([sys.executable, '-c', {inner!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        shown, _ = process.communicate()
    assert shown.split() == [str(process.pid), str(os.getpid()), str(process.pid)]


def test_its_session_is_its_own_when_its_start_returns() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, start_new_session=True) as process:
        assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
        process.communicate(b"\n")


def test_it_has_its_own_environment_and_finds_modules_by_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('customized')")
    (tmp_path / "found.py").touch()
    code = "import os, found; print(os.environ['COLOUR'], 'HOME' in os.environ)"
    assert run("-c", code, COLOUR="red", PYTHONPATH=str(tmp_path)).stdout == "customized\nred True\n"


def test_a_library_that_reads_the_environment_once_reads_the_new_one() -> None:
    code = "from huggingface_hub import constants; print(constants.HF_HUB_OFFLINE)"
    assert [run("-c", code, HF_HUB_OFFLINE=value).stdout for value in "10"] == ["True\n", "False\n"]


def test_no_two_have_the_same_random_numbers() -> None:
    code = "import random, numpy; print(random.random(), numpy.random.random())"
    one, other = (run("-c", code).stdout.split() for _ in range(2))
    assert not set(one) & set(other)


@pytest.mark.parametrize("variable", ["PYTHONHASHSEED", "OMP_NUM_THREADS"])
def test_what_only_a_new_interpreter_can_do_is_left_to_one(variable: str) -> None:
    assert run("-c", "import sys; print('torch' in sys.modules)", **{variable: "7"}).stdout == "False\n"


def test_an_interrupt_that_is_ignored_here_is_ignored_there() -> None:
    code = "import os; os.kill(os.getpid(), 2); print('still here')"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = run("-c", code)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stdout) == (0, "still here\n")
