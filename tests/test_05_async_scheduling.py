"""Tests rung 05's two processes: their messages, and what happens when one of them dies or hangs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ladder import ROOT
from ladder.engine.channel import encode, read_command, read_report
from ladder.engine.messages import (
    Abort,
    EngineRequest,
    Failed,
    Heartbeat,
    Ready,
    Status,
    Token,
    Unusable,
    Update,
)
from ladder.lab.client import Client, Measurement
from ladder.lab.launch import RungProcess
from ladder.llm.sampling import SamplingSettings
from tests.faults import fault
from tests.support import (
    QUESTION,
    STORY,
    RungServer,
    eventually,
    import_rung,
    one_line,
    own_rung,
    run_python,
    run_rung,
)

SCRIPT = "05_async_scheduling.py"
rung = import_rung(SCRIPT)


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR for this test only. Its path is short, because the length of a socket's name is limited."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)


@pytest.fixture
def server(endless: Path) -> Iterator[RungServer]:
    with own_rung(SCRIPT, "--model", str(endless)) as server:
        yield server


def alive(pid: int) -> bool:
    """Whether the process runs. A zombie counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def wait_for_exit(pid: int) -> None:
    async def still() -> bool:
        return alive(pid)

    await eventually(still, lambda there: not there)


async def wait_until_ready(server: RungServer) -> None:
    async def ready() -> int:
        return (await asyncio.to_thread(server.request, "GET", "/ready")).status

    await eventually(ready, lambda status: status == 200)


@pytest.mark.parametrize(
    ("number", "loop"),
    [(signal.SIGKILL, "plain"), (signal.SIGSTOP, "plain"), (signal.SIGKILL, "overlapped")],
    ids=["killed", "hanging", "killed, overlapped"],
)
@fault(
    "The engine's process is killed or stopped",
    "open streams get an error event, /ready says 503, and a new engine serves",
    "05",
)
def test_a_dead_or_hanging_engine_is_replaced(endless: Path, number: signal.Signals, loop: str) -> None:
    """Streams get an error event, /ready returns 503, /health responds, and later requests are served."""
    with own_rung(SCRIPT, "--model", str(endless), "--loop", loop) as server:
        before = server.health()

        async def lose_the_engine() -> list[Measurement]:
            async with Client(server.url) as client:

                def on_token(measurement: Measurement, _: str) -> None:
                    if len(measurement.token_ids) == 5:
                        os.kill(before["engine_pid"], number)

                async with asyncio.timeout(30):
                    broken = await asyncio.gather(
                        client.generate(STORY, max_tokens=3000, stream=True, on_token=on_token),
                        client.generate(STORY, max_tokens=3000, stream=True),
                        client.generate(STORY, max_tokens=3000, stream=False),
                    )
                unready = await asyncio.to_thread(server.request, "GET", "/ready")
                assert unready.status == 503
                assert unready.json() == {"status": "unavailable"}
                refused = await asyncio.to_thread(server.generate, QUESTION)
                assert refused.status == 503
                assert refused.headers["retry-after"]
                health = server.health()
                assert health["status"] == "ok"
                assert health["engine_pid"] is None
                assert (health["running"], health["waiting"]) == (0, 0)
                await wait_until_ready(server)
                return list(broken)

        first, second, whole = asyncio.run(lose_the_engine())
        assert len(first.token_ids) >= 5
        for broken in (first, second, whole):
            assert broken.error is not None
            assert broken.error["type"] == "EngineDown"
            assert not broken.done
        assert whole.status == 503
        assert len(server.generate(QUESTION, max_tokens=20, stream=True).tokens()) == 20
        after = server.idle()
        assert after["restarts"] == before["restarts"] + 1
        assert after["engine_pid"] not in (None, before["engine_pid"])
        assert after["steps"] > before["steps"]
        asyncio.run(wait_for_exit(before["engine_pid"]))
        assert len(server.process.errors().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@fault("The server is killed", "its engine ends too, and leaves no file", "05")
def test_any_exit_of_the_server_stops_its_engine_and_leaves_no_file(
    endless: Path, temporary: Path, number: signal.Signals
) -> None:
    with own_rung(SCRIPT, "--model", str(endless)) as server:
        engine = server.health()["engine_pid"]
        (own,) = temporary.glob("ladder-*")
        status = server.process.stop(number)
        assert status == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        asyncio.run(wait_for_exit(engine))

        async def exists() -> bool:
            return own.exists()

        asyncio.run(eventually(exists, lambda there: not there))


@pytest.mark.usefixtures("fresh_interpreters")  # a template may be told too late to start the engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_the_engine_loads_leaves_nothing(temporary: Path, number: signal.Signals) -> None:
    process = RungProcess(SCRIPT, ["--model", "random:smollm2-135m", "--threads", "1"])
    try:

        def own_directories() -> list[Path]:
            return list(temporary.glob("ladder-*"))

        async def started() -> list[Path]:
            return own_directories()

        (own,) = asyncio.run(eventually(started, bool))
        assert process.stop(number) == 0

        async def exists() -> bool:
            return own.exists()

        asyncio.run(eventually(exists, lambda there: not there))
    finally:
        process.close()


@pytest.mark.usefixtures("fresh_interpreters")
def test_only_the_owner_can_open_the_sockets(server: RungServer) -> None:
    (line,) = [
        line.split()[-1]
        for line in Path("/proc/net/unix").read_text().splitlines()
        if "/commands" in line and alive_in(line, server)
    ][:1]
    directory = Path(line).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert directory.stat().st_uid == os.getuid()


def alive_in(line: str, server: RungServer) -> bool:
    """Whether the socket of this line is one that the engine listens on."""
    directory = Path(line.split()[-1]).parent
    arguments = Path(f"/proc/{server.health()['engine_pid']}/cmdline").read_bytes().split(b"\0")
    return str(directory).encode() in arguments


def test_an_engine_that_cannot_start_prints_one_line(tmp_path: Path, temporary: Path) -> None:
    done = run_rung(SCRIPT, "--port", "0", "--model", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "no config.json" in line
    assert list(temporary.glob("ladder-*")) == []


BROKEN = """
import os, sys
sys.path.insert(0, {root!r})
rung = __import__("05_async_scheduling")

def fail(*_):
    {failure}

start = rung.ChildProcess.start
rung.ChildProcess.start = lambda python, script, *flags: start(python, __file__, *flags)
rung{broken} = fail
rung.main()
"""


def broken_rung(directory: Path, broken: str, failure: str) -> str:
    """A program that is this rung, except that one function, which the engine's process calls, fails."""
    script = directory / "05_broken.py"
    script.write_text(BROKEN.format(root=str(ROOT), broken=broken, failure=failure))
    return str(script)


FAILURES = {
    "exception": (
        "raise KeyError('added_tokens')",
        r"has failed: KeyError: 'added_tokens' \(05_broken.py:\d+\)",
    ),
    "two lines": ("raise ValueError('1\\n2')", r"has failed: ValueError: 1 2 \(05_broken.py:\d+\)"),
    "exit": ("os._exit(3)", "has ended with status 3"),
    "signal": ("os.kill(os.getpid(), 9)", "has ended with status -9"),
}


@fault("An engine process that fails in its start", "one line names the exception or the exit status", "05")
@pytest.mark.parametrize(("failure", "expected"), FAILURES.values(), ids=FAILURES)
def test_an_engine_that_fails_to_start_says_why(temporary: Path, failure: str, expected: str) -> None:
    done = run_python(broken_rung(temporary, ".load", failure), "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"{SCRIPT}: error: the engine's process {expected}", one_line(done.stderr))


@fault("An exception in the engine's loop", "the log names it in one line, and the engine is replaced", "05")
@pytest.mark.parametrize("loop", ["plain", "overlapped"])
def test_an_engine_that_fails_later_says_why(temporary: Path, loop: str) -> None:
    script = broken_rung(temporary, ".rung_04.EngineCore.step", "raise RuntimeError('no step')")
    process = RungProcess(script, ["--threads", "1", "--loop", loop])
    try:
        server = RungServer(process.wait_ready(), SCRIPT, process)
        failed = server.generate(QUESTION)
        assert (failed.status, failed.json()["error"]["type"]) == (503, "EngineDown")
        asyncio.run(wait_until_ready(server))
        assert server.health()["restarts"] == 1
        line = one_line(process.errors())
    finally:
        process.close()
    assert line.startswith("the engine's process has failed: RuntimeError: no step (05_broken.py:")
    assert line.endswith("); another engine is started in 0.25 s")


def test_sockets_that_cannot_be_made_print_one_line(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = temporary / ("d" * 100)  # the name of a socket is limited to about 107 bytes
    far.mkdir()
    monkeypatch.setenv("TMPDIR", str(far))
    done = run_rung(SCRIPT, "--port", "0")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "the engine's process cannot be started: " in line
    assert list(far.iterdir()) == []


def test_a_paused_web_server_does_not_replace_its_engine(server: RungServer) -> None:
    """After a laptop's sleep or a busy event loop, queued heartbeats are read before the timeout counts."""
    before = server.health()["engine_pid"]
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(2 * rung.HEARTBEAT_TIMEOUT)
    os.kill(server.process.pid, signal.SIGCONT)
    assert len(server.generate(QUESTION, max_tokens=20, stream=True).tokens()) == 20
    after = server.health()
    assert (after["engine_pid"], after["restarts"]) == (before, 0)


def test_aborts_reach_the_engine(server: RungServer) -> None:
    async def disconnect() -> None:
        async with Client(server.url) as client:
            await client.generate(STORY, max_tokens=3000, stream=True, leave_after=4)

    asyncio.run(disconnect())
    assert server.idle()["tokens"] < 3000


@pytest.mark.parametrize(
    "message",
    [
        EngineRequest(1, [1, 2], 3, SamplingSettings(0.5, 0.9, 2**64 - 1), frozenset([0])),
        Abort(7),
        Update([Token(1, 5, 2.5)], [Failed(2, "ValueError", "ü")], [3], Status(1, 2, 3)),
        Ready(1, "tiny", 1024, frozenset(), "{}", Status()),
        Unusable("no"),
        Heartbeat("loading"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_decoding_an_encoded_message_gives_the_same_message(message: Any) -> None:
    read: Any = read_command if isinstance(message, EngineRequest | Abort) else read_report
    assert read(encode(message)) == message


@pytest.mark.parametrize(
    "data", [b"", b"\x80", encode({"type": "EngineRequest", "id": "x"}), b"cos\nsystem\n(S'true'\ntR."]
)
def test_invalid_messages_are_rejected(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        read_command(data)
