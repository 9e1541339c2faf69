"""A process that talks with the one that started it, over sockets that nobody else can open.

The sockets are files in a directory that belongs to this user alone. Messages are msgpack, read only as the
types that were agreed: a pickle would run whatever code its sender likes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from ladder.engine.messages import Beat, Command, Report, Start

BEAT_SECONDS = 0.25

encode = msgspec.msgpack.Encoder().encode
read_command: Callable[[bytes], Command] = msgspec.msgpack.Decoder(Command).decode
read_report: Callable[[bytes], Report] = msgspec.msgpack.Decoder(Report).decode


def endpoint(directory: Path, name: str) -> str:
    return f"ipc://{directory / name}"


class ChildProcess:
    """The side of the process that starts the other one; it lives in the event loop."""

    def __init__(self, *command: str) -> None:
        self._command = command
        self._given_back = ExitStack()  # what is held, to be given back at the end
        self._heard = 0.0

    async def follow(self, first: Start, take: Callable[[Report], None], silence: float) -> str:
        """Run the command and pass on every report until it is dead or silent or babbles; return which."""
        try:
            process = await self._start()
        except (OSError, zmq.ZMQError) as error:
            return f"cannot be started: {error}"
        self.tell(first)
        listening = asyncio.create_task(self._listen(take))
        dying = asyncio.create_task(process.wait())
        try:
            while not (listening.done() or dying.done()):
                asked = time.monotonic()
                await asyncio.wait(
                    {listening, dying}, timeout=silence / 6, return_when=asyncio.FIRST_COMPLETED
                )
                now = time.monotonic()
                if self._heard and now - asked > silence / 2:
                    self._heard = (
                        now  # it was we who slept: what the process said meanwhile is still to be read
                    )
                if self._heard and now - self._heard > silence:
                    return f"has said nothing for {silence:g} s"
            if listening.done():
                return f"has sent what cannot be used: {listening.exception()!r}"
            return f"has ended with status {dying.result()}"
        finally:
            listening.cancel()
            dying.cancel()

    async def _start(self) -> asyncio.subprocess.Process:
        """Run the command, with the directory of the sockets as its last argument."""
        directory = Path(tempfile.mkdtemp(prefix="ladder-"))  # nobody else may look into it
        self._given_back.callback(shutil.rmtree, directory, ignore_errors=True)
        context = zmq.asyncio.Context()
        self._given_back.callback(context.term)
        self._reports = context.socket(zmq.PULL)
        self._commands = zmq.Context(context).socket(zmq.PUSH)
        for socket in (self._reports, self._commands):
            self._given_back.callback(socket.close)
            socket.set_hwm(0)  # how many requests there can be is bounded elsewhere
            socket.setsockopt(zmq.LINGER, 0)
        self._reports.bind(endpoint(directory, "reports"))
        self._commands.connect(endpoint(directory, "commands"))
        # The pipe to its stdin closes when this process ends, however it ends. A session of its own keeps
        # Ctrl-C in the terminal for us.
        process = await asyncio.create_subprocess_exec(
            *self._command, str(directory), stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        self._given_back.callback(kill, process)
        return process

    def tell(self, command: Command) -> None:
        self._commands.send(encode(command))

    async def _listen(self, take: Callable[[Report], None]) -> None:
        while True:
            report = read_report(await self._reports.recv())
            self._heard = time.monotonic()
            take(report)

    def end(self) -> None:
        """Leave neither a process nor a file. It has nothing to save, and may not be able to listen."""
        self._given_back.close()


def kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


class ParentProcess:
    """The side of the process that was started: commands from its parent, reports to it.

    From the first moment on a thread reports that this process is alive, and another ends it when the
    parent is gone.
    """

    def __init__(self, directory: Path) -> None:
        self.doing = "starting"
        self._directory = directory
        self._context = zmq.Context()
        self._reports = self._connect()
        self._commands = self._context.socket(zmq.PULL)
        self._commands.set_hwm(0)
        self._commands.bind(endpoint(directory, "commands"))
        for work in (self._beat, self._end_with_parent):
            threading.Thread(target=work, daemon=True).start()

    def _connect(self) -> zmq.Socket[bytes]:
        """Each thread needs a socket of its own."""
        socket = self._context.socket(zmq.PUSH)
        socket.set_hwm(0)
        socket.connect(endpoint(self._directory, "reports"))
        return socket

    def _beat(self) -> None:
        socket = self._connect()
        while True:
            socket.send(encode(Beat(self.doing)))
            time.sleep(BEAT_SECONDS)

    def _end_with_parent(self) -> None:
        sys.stdin.read()
        shutil.rmtree(self._directory, ignore_errors=True)
        os._exit(0)

    def first_command(self) -> Start:
        command = read_command(self._commands.recv())
        assert isinstance(command, Start)
        return command

    def commands(self, wait: bool) -> Iterator[Command]:
        """All that have come; with `wait`, at least one."""
        with suppress(zmq.Again):
            if wait:
                yield read_command(self._commands.recv())
            while True:
                yield read_command(self._commands.recv(zmq.NOBLOCK))

    def report(self, report: Report) -> None:
        self._reports.send(encode(report))
