"""The channel between a process and the one that started it, over sockets that no other user can open.

The sockets are files in a directory that belongs to this user alone. Messages are msgpack and are read only
as the agreed types: a pickle would run whatever code its sender likes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from ladder.engine.messages import Command, Heartbeat, Report, Start, Unusable
from ladder.errors import UserError

HEARTBEAT_SECONDS = 0.25

encode = msgspec.msgpack.Encoder().encode
read_start: Callable[[bytes], Start] = msgspec.msgpack.Decoder(Start).decode
read_command: Callable[[bytes], Command] = msgspec.msgpack.Decoder(Command).decode
read_report: Callable[[bytes], Report] = msgspec.msgpack.Decoder(Report).decode


def endpoint(directory: Path, name: str) -> str:
    return f"ipc://{directory / name}"


class ChildProcess:
    """The side of the process that started the other one. It lives in the event loop."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reports: zmq.asyncio.Socket,
        commands: zmq.Socket[bytes],
        resources: ExitStack,
    ) -> None:
        self._process = process
        self._reports = reports
        self._commands = commands
        self._resources = resources  # what `end` gives back

    @classmethod
    async def start(cls, *command: str) -> ChildProcess:
        """Run a command, with the directory of the sockets as its last argument. May raise `OSError`."""
        with ExitStack() as resources:
            directory = Path(tempfile.mkdtemp(prefix="ladder-"))  # only this user may look into it
            resources.callback(shutil.rmtree, directory, ignore_errors=True)
            context = zmq.asyncio.Context()
            resources.callback(context.term)
            try:
                reports = context.socket(zmq.PULL)
                resources.callback(reports.close)
                commands = zmq.Context(context).socket(zmq.PUSH)
                resources.callback(commands.close)
                for socket in (reports, commands):
                    socket.set_hwm(0)  # the number of requests is bounded elsewhere
                    socket.setsockopt(zmq.LINGER, 0)
                reports.bind(endpoint(directory, "reports"))
                commands.connect(endpoint(directory, "commands"))
            except zmq.ZMQError as error:
                raise OSError(error.errno, str(error)) from error
            # The pipe to its stdin closes when this process ends, however it ends. In a session of its own
            # the child does not get Ctrl-C from the terminal, which is for this process.
            process = await asyncio.create_subprocess_exec(
                *command, str(directory), stdin=asyncio.subprocess.PIPE, start_new_session=True
            )
            resources.callback(kill, process)
            return cls(process, reports, commands, resources.pop_all())

    async def exited(self) -> int:
        return await self._process.wait()

    def tell(self, command: Start | Command) -> None:
        self._commands.send(encode(command))

    async def next_report(self) -> Report:
        return read_report(await self._reports.recv())

    def end(self) -> None:
        """Leave no process and no file. The child has nothing to save, and may be unable to listen."""
        self._resources.close()


def kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


class ParentProcess:
    """The side of the process that was started: commands from its parent, reports to it.

    One thread sends heartbeats from the start, and another ends this process when the parent ends.
    """

    def __init__(self, directory: Path) -> None:
        self.doing = "starting"
        self._directory = directory
        self._context = zmq.Context()
        self._reports = self._connect()
        self._commands = self._context.socket(zmq.PULL)
        self._commands.set_hwm(0)
        self._commands.bind(endpoint(directory, "commands"))
        for work in (self._send_heartbeats, self._end_with_parent):
            threading.Thread(target=work, daemon=True).start()

    def _connect(self) -> zmq.Socket[bytes]:
        """Each thread needs a socket of its own."""
        socket = self._context.socket(zmq.PUSH)
        socket.set_hwm(0)
        socket.connect(endpoint(self._directory, "reports"))
        return socket

    def _send_heartbeats(self) -> None:
        socket = self._connect()
        while True:
            socket.send(encode(Heartbeat(self.doing)))
            time.sleep(HEARTBEAT_SECONDS)

    def _end_with_parent(self) -> None:
        sys.stdin.read()
        shutil.rmtree(self._directory, ignore_errors=True)
        os._exit(0)

    def start_command(self) -> Start:
        return read_start(self._commands.recv())

    def commands(self, wait: bool) -> Iterator[Command]:
        """All that have arrived; with `wait`, at least one."""
        with suppress(zmq.Again):
            if wait:
                yield read_command(self._commands.recv())
            while True:
                yield read_command(self._commands.recv(zmq.NOBLOCK))

    def report(self, report: Report) -> None:
        self._reports.send(encode(report))

    @contextmanager
    def reporting_failure(self) -> Iterator[None]:
        """Report an exception in one line; then wait until the parent ends this process.

        A process that just returned would say nothing: Python's exit waits for the sockets of the threads.
        """
        try:
            yield
        except UserError as error:
            reason = str(error)
        except Exception as error:
            reason = f"the engine's process has failed: {in_one_line(error)}"
        else:
            return
        self.report(Unusable(reason))
        threading.Event().wait()


def in_one_line(error: Exception) -> str:
    """Kind, message and place of an unexpected exception."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {message} ({Path(place.filename).name}:{place.lineno})"
