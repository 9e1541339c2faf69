"""Tests the command line: how a rung starts, how it reports errors, and how it exits."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import signal
import socket
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import pytest

from ladder.cli import DemoOptions, parse
from ladder.errors import UserError
from ladder.lab.client import Client
from ladder.lab.show import Contender, Show
from ladder.llm.loading import BUNDLED
from ladder.web.server import listen
from tests.faults import fault
from tests.support import (
    SCRIPTS,
    STORY,
    STREAMING_RUNGS,
    RungServer,
    edit_json,
    import_rung,
    one_line,
    own_rung,
    run_python,
    run_rung,
)


def read_flags(rung: str, *flags: str) -> tuple[Any, DemoOptions | None]:
    module = import_rung(rung)
    return parse(module.Config, module.__doc__, list(flags))


def test_without_flags_the_defaults_of_config_apply(rung: str) -> None:
    config, demo = read_flags(rung)
    assert config == import_rung(rung).Config()
    assert demo is None
    assert (config.host, config.port, config.model) == ("127.0.0.1", 5000, "tiny")
    assert (config.dtype, config.device, config.threads) == ("auto", "auto", None)


def test_every_flag_sets_its_field(rung: str) -> None:
    config, _ = read_flags(
        rung,
        *("--host", "::1", "--port", "0", "--model", "a/b", "--dtype", "bfloat16"),
        *("--device", "cpu", "--threads", "3"),
    )
    assert (config.host, config.port, config.model) == ("::1", 0, "a/b")
    assert (config.dtype, config.device, config.threads) == ("bfloat16", "cpu", 3)


BATCHING = "04_continuous_batching.py"


class Captured(Exception):
    """Stops a demo just before it starts its servers."""


def demos_command_lines(script: str, *flags: str) -> dict[str, list[str]]:
    """The flags of each server that a rung's demo would start; keys: the script and its own flags."""
    config, options = read_flags(script, "--demo", "--json", *flags)
    captured: dict[str, list[str]] = {}

    def starting(show: Show, *contenders: Contender) -> NoReturn:
        for one in contenders:
            captured[" ".join([one.script, *one.further])] = one.flags(show.options)
        raise Captured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Show, "starting", starting)
        with pytest.raises(Captured):
            import_rung(script).demo(config, options)
    return captured


MODEL = ["--model", "a/b", "--dtype", "float32", "--device", "cpu", "--threads", "2"]


def test_flags_after_demo_reach_every_server(rung: str) -> None:
    given = ["--host", "::1", "--port", "1", *MODEL]
    servers = demos_command_lines(rung, *given)
    assert len(servers) >= 2
    assert all(flags[: len(MODEL)] == MODEL for flags in servers.values())


@pytest.mark.parametrize(
    ("script", "given", "reaches"),
    [
        ("03_batching.py", "--max-batch", ["03"]),
        ("03_batching.py", "--max-wait-ms", ["03"]),
        ("04_continuous_batching.py", "--max-batch", ["03", "04", "04"]),
        ("04_continuous_batching.py", "--kv-memory", ["04", "04"]),
        ("05_async_scheduling.py", "--prefill-chunk", ["04", "05"]),
    ],
)
def test_a_flag_after_demo_reaches_the_servers_that_have_it(
    script: str, given: str, reaches: list[str]
) -> None:
    servers = demos_command_lines(script, given, "4")
    assert [name[:2] for name, flags in servers.items() if [given, "4"] == flags[:2]] == reaches
    assert all(given not in flags for name, flags in servers.items() if name[:2] not in reaches)


def test_flags_that_were_not_given_keep_each_servers_own_default() -> None:
    assert all(flags == [*further_of(name)] for name, flags in demos_command_lines(BATCHING).items())


def test_flags_that_a_demo_compares_take_precedence() -> None:
    """The parser uses the last value."""
    servers = demos_command_lines(BATCHING, "--prefill-chunk", "64")
    *_, whole = servers.values()
    assert whole == ["--prefill-chunk", "64", "--prefill-chunk", "100000"]


def further_of(name: str) -> list[str]:
    return name.split()[1:]


def test_the_demos_flags(script: str, tmp_path: Path) -> None:
    for plot in (tmp_path / "a.png", tmp_path / "a.svg"):
        _, demo = read_flags(script, "--demo", "--json", "--plot", str(plot))
        assert demo == DemoOptions(json=True, plot=plot, given={})
    assert read_flags(script, "--demo")[1] == DemoOptions(json=False, plot=None, given={})


WRONG_FLAGS = {
    "port too large": (["--port", "65536"], "--port"),
    "port below zero": (["--port", "-1"], "--port"),
    "port no number": (["--port", "http"], "--port"),
    "no threads": (["--threads", "0"], "--threads"),
    "half a thread": (["--threads", "1.5"], "--threads"),
    "unknown dtype": (["--dtype", "float8"], "--dtype"),
    "unknown device": (["--device", "tpu"], "--device"),
    "unknown flag": (["--colour", "red"], "--colour"),
    "abbreviation": (["--mod", "tiny"], "--mod"),
    "no value": (["--model"], "--model"),
    "a stray word": (["tiny"], "tiny"),
    "json without demo": (["--json"], "--demo"),
    "plot without demo": (["--plot", "a.png"], "--demo"),
    "plot of another kind": (["--demo", "--plot", "a.gif"], ".svg"),
    "plot without a kind": (["--demo", "--plot", "png"], ".svg"),
    "plot in no directory": (["--demo", "--plot", "no/such/directory/a.png"], "does not exist"),
}


@pytest.mark.parametrize(("flags", "named"), WRONG_FLAGS.values(), ids=WRONG_FLAGS)
def test_a_wrong_flag_prints_one_line(
    rung: str, flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_flags(rung, *flags)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert named in one_line(printed.err)
    assert "--help" in printed.err


def test_number_flags_of_a_rung_reject_other_text(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each number flag that a rung adds rejects a word, with one line on stderr."""
    own = [field.name for field in fields(import_rung(script).Config) if isinstance(field.default, int)]
    for name in own:
        flag = f"--{name.replace('_', '-')}"
        with pytest.raises(SystemExit):
            read_flags(script, flag, "many")
        assert flag in one_line(capsys.readouterr().err)


def test_help_lists_every_flag_and_its_default(script: str) -> None:
    done = run_rung(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    for field in fields(import_rung(script).Config):
        assert f"--{field.name.replace('_', '-')} " in shown
        assert field.metadata["help"] in shown
        if field.default is not None:
            default = "none" if field.default == "" else field.default
            assert f"{field.metadata['help']} (default: {default})" in shown
    assert all(flag in shown for flag in ("--demo", "--json", "--plot FILE"))


def failure(rung: str, *flags: str) -> str:
    """The error of a rung that cannot start: one line on stderr, and nothing on stdout."""
    done = run_rung(rung, *flags)
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    line = one_line(done.stderr)
    assert line.startswith(f"{rung}: error: ")
    return line


def test_an_unknown_model_is_an_error_in_one_line(rung: str) -> None:
    assert "'./nothing'" in failure(rung, "--port", "0", "--model", "./nothing")


@fault("A damaged model on the command line", "one line on stderr and exit status 1, no traceback", "01–05")
def test_a_damaged_model_is_an_error_in_one_line(rung: str, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(BUNDLED, tmp_path / "damaged"))
    (directory / "tokenizer.json").write_text("{}")
    assert "tokenizer.json cannot be used" in failure(rung, "--port", "0", "--model", str(directory))


def test_a_model_without_context_is_not_blamed_on_a_flag(rung: str, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(BUNDLED, tmp_path / "damaged"))
    edit_json(directory / "config.json", max_position_embeddings=0)
    line = failure(rung, "--port", "0", "--model", str(directory))
    assert "config.json: max_position_embeddings is 0" in line
    assert "--kv-memory" not in line


def test_a_busy_port_is_an_error_in_one_line(script: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        line = failure(script, "--port", port)
    reason = os.strerror(errno.EADDRINUSE)
    assert f"cannot listen on 127.0.0.1:{port}: {reason}; choose another --port or --host" in line


def test_an_address_of_another_machine_is_a_user_error() -> None:
    with pytest.raises(UserError, match="--host") as caught:
        listen("203.0.113.7", 0)
    assert "203.0.113.7" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_accepted_sockets_have_nagles_algorithm_off() -> None:
    """So each token is sent immediately."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


LOOK_AROUND = """
import importlib, os, threading
for module in {modules!r}:
    importlib.import_module(module)
    sockets = [file for file in os.listdir("/proc/self/fd") if "socket" in read(file)]
    assert threading.enumerate() == [threading.main_thread()], (module, threading.enumerate())
    assert not sockets, (module, sockets)
"""
READ_LINK = """
def read(file):
    try:
        return __import__("os").readlink("/proc/self/fd/" + file)
    except OSError:
        return ""
"""


@pytest.mark.usefixtures("fresh_interpreters")
def test_importing_the_rungs_starts_and_prints_nothing() -> None:
    """All in one process, one after the other: most of the time goes into imports that they share."""
    modules = [script.removesuffix(".py") for script in SCRIPTS]
    done = run_python("-c", READ_LINK + LOOK_AROUND.format(modules=modules))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.usefixtures("fresh_interpreters")
def test_ctrl_c_while_a_rung_is_imported_ends_it_quietly(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives during the first slow import."""
    for module in ("fastapi", "flask"):
        (tmp_path / f"{module}.py").write_text(INTERRUPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = run_rung(script)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_importing_a_rung_keeps_the_programs_ctrl_c_handler(script: str) -> None:
    check = "import signal; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    done = run_python("-c", f"import importlib; importlib.import_module({script[:-3]!r}); {check}")
    assert (done.returncode, done.stderr) == (0, "")


def test_port_0_takes_a_free_port_and_the_ready_line_names_it(server: RungServer) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.url)
    assert server.address[1] > 0
    assert server.health()["status"] == "ok"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_stops_an_idle_server_that_prints_nothing_after_its_ready_line(
    script: str, number: signal.Signals
) -> None:
    with own_rung(script) as server:
        server.health()
        process = server.process._process
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stdout.read() == ""
        assert server.process.stop() == 0
        assert server.process.errors() == ""


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]], ids=["SIGTERM", "SIGINT twice"]
)
def test_a_signal_stops_a_busy_server(rung: str, numbers: list[signal.Signals], endless: Path) -> None:
    """In flight: a non-streaming request and, if supported, a stream. A second Ctrl-C causes no crash."""
    # With one busy worker, rung 01 cannot respond to /health.
    workers = [] if rung in STREAMING_RUNGS else ["--workers", "4"]
    with own_rung(rung, "--model", str(endless), *workers) as server:
        assert asyncio.run(stop_while_busy(server, numbers)) == 0
        assert "Traceback" not in server.process.errors()


async def stop_while_busy(server: RungServer, numbers: list[signal.Signals]) -> int:
    async with Client(server.url) as client:
        requests = [
            asyncio.create_task(client.generate(STORY, max_tokens=4000, stream=stream))
            for stream in {False, server.streams}
        ]

        def busy(health: dict[str, Any]) -> bool:
            """On rung 03 the second request may wait for the next batch."""
            return bool(health["running"] + health["waiting"] == len(requests) and health["steps"] > 4)

        await server.health_when(busy)
        *first, last = numbers
        for number in first:
            server.process._process.send_signal(number)
        status = await asyncio.to_thread(server.process.stop, last)
        await asyncio.gather(*requests, return_exceptions=True)
    return status
