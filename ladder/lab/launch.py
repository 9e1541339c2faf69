"""Starting a rung as its users do, in a process of its own, and ending it."""

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
    """A Python program that serves and says when it is ready. Starting returns at once."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        command = [sys.executable, *arguments]
        # A session of its own keeps Ctrl-C in the terminal for us, who then end it in good order.
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self._errors, text=True, start_new_session=True
        )
        self.pid = self._process.pid

    def wait_ready(self) -> str:
        """The server's address, once it has said that it is ready."""
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

    def stop(self, number: int = signal.SIGTERM, patience: float = 10) -> int:
        """Ask it to end, insist if it does not; return its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(patience)
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
    """Put Ctrl-C and SIGTERM off to the end of the block.

    Between the moment when a process starts and the one when we have noted it, they would leave it an
    orphan. Python lets only its main thread handle signals, so only there anything can happen.
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
    """Start several rungs side by side; yield their addresses; end them whatever happens."""
    processes: list[RungProcess] = []
    try:
        for script, flags in commands:
            with undisturbed():
                processes.append(RungProcess(script, flags))
        yield [process.wait_ready() for process in processes]
    finally:
        for process in processes:
            process.close()
