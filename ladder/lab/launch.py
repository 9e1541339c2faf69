"""Start a rung in a process of its own, as users do, and end it."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ladder import ROOT
from ladder.errors import UserError

READY = "ready: "


class ServerProcess:
    """A Python program that serves and reports when it is ready. The constructor returns at once."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        command = [sys.executable, *arguments]
        # In a session of its own it does not get Ctrl-C from the terminal: this process ends it gracefully.
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self._errors, text=True, start_new_session=True
        )
        self.pid = self._process.pid

    def wait_ready(self) -> str:
        """Wait for the ready line; return the server's address."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(READY):
                return line.removeprefix(READY).strip()
        self._process.wait()
        lines = self.errors().strip().splitlines()
        raise UserError(
            lines[-1].partition("error: ")[2] or lines[-1]
            if lines
            else f"{shlex.join(self._arguments)} ended early"
        )

    def errors(self) -> str:
        """What the server has written to stderr so far."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def stop(self, number: int = signal.SIGTERM, timeout: float = 10) -> int:
        """Ask it to end, and kill it if it does not within `timeout` seconds; return its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()

    def close(self) -> None:
        self.stop()
        self._errors.close()


class RungProcess(ServerProcess):
    """A numbered script as a server, on a free port."""

    def __init__(self, script: str, flags: Sequence[str] = ()) -> None:
        super().__init__(str(ROOT / script), "--port", "0", *flags)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM to the end of the block.

    Between the start of a process and the moment when it is noted, they would leave it an orphan. Python
    handles signals only in its main thread, so in other threads nothing has to be done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda number, _: arrived.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
    for late in arrived:
        signal.raise_signal(late)


@contextmanager
def running_rungs(*commands: tuple[str, Sequence[str]]) -> Iterator[list[str]]:
    """Start several rungs at the same time; yield their addresses; end them in any case."""
    processes: list[RungProcess] = []
    try:
        for script, flags in commands:
            with undisturbed():
                processes.append(RungProcess(script, flags))
        yield [process.wait_ready() for process in processes]
    finally:
        for process in processes:
            process.close()
