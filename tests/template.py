"""Python processes that start in milliseconds: they are forked from one that has imported everything.

A rung needs two to four seconds of processor time for its imports, and the suite starts hundreds of rungs,
demos, benchmarks and notebooks. So a *template* process imports the libraries once. A process that wants to
run `python script.py …`, `python -m module …` or `python -c code …` asks its template, which forks:

    this process ─ template ─ middle ─ program ─ template of the program's own children
         └───────── becomes the program's parent when the middle process ends

The program is a true child of the process that asked: its pid, signals, exit status and /proc files are its
own. So `subprocess.Popen` works as always, for the tests and for the code under test.

`subprocess` uses the template only for commands and environments that it understands; for all others, in
`fresh_interpreters()`, and on systems other than Linux, it starts a new interpreter.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import importlib
import inspect
import json
import os
import random
import runpy
import signal
import site
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

LIBRARIES = (
    "tqdm.auto",  # before IPython, or it looks for widgets
    "torch",
    "torch.nn.functional",
    "torch.distributions",
    "numpy",
    "numpy.random",
    "safetensors.numpy",
    "safetensors.torch",
    "tokenizers",
    "huggingface_hub",
    "huggingface_hub.hf_api",
    "huggingface_hub.errors",
    "fastapi",
    "uvicorn",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvloop",
    "flask",
    "waitress",
    "werkzeug.formparser",
    "aiohttp",
    "zmq.asyncio",
    "msgspec",
    "psutil",
    "rich.console",
    "rich.live",
    "rich.panel",
    "rich.progress",
    "rich.table",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "asyncio",
    "concurrent.futures",
    "csv",
    "sqlite3",
)
"""Imported by the template. None of them starts a thread, and none is the project's own code."""

READ_AT_IMPORT = ("CUDA", "LD_", "MKL_", "MPL", "OMP_", "OPENBLAS", "PYTHON")
"""Variables of the environment that the interpreter or the libraries read only when they start."""

FORGOTTEN = {"HF_": "huggingface_hub"}
"""Libraries that a program imports again if it has other values of such variables."""

PR_SET_CHILD_SUBREAPER = 36
LENGTH = struct.Struct("!I")
PID = struct.Struct("!i")


class Template:
    """The template of this process, as this process sees it."""

    def __init__(self, connection: socket.socket, process: object = None) -> None:
        self._connection = connection
        self._process = process  # kept, because Popen warns when it is deleted while its process runs
        self._environment = read_at_import(os.environ)
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def can_run(self, command: list[Any], environment: Mapping[str, str]) -> bool:
        return (
            self._owner == os.getpid()
            and all(isinstance(word, str) for word in command)
            and command[0] == sys.executable
            and understands(command[1:])
            and read_at_import(environment) == self._environment
        )

    def run(self, request: dict[str, Any], streams: list[int]) -> int:
        """Start a program with these stdin, stdout and stderr; return its pid."""
        message = json.dumps(request).encode()
        # A signal handler that raises here would leave the answer for the next request.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with self._lock:
                adopt_orphans(True)
                socket.send_fds(self._connection, [LENGTH.pack(len(message))], streams)
                self._connection.sendall(message)
                pid: int = PID.unpack(receive(self._connection, PID.size))[0]
                adopt_orphans(False)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


template: Template | None = None
"""Of this process; none where new interpreters are started."""


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """The search path is not among them: a program can be given another one."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and name != "PYTHONPATH"
    }


def understands(arguments: list[str]) -> bool:
    match arguments:
        case ["-c" | "-m", _, *_]:
            return True
        case [script, *_]:
            return not script.startswith("-") and Path(script).suffix == ".py"
        case _:
            return False


def adopt_orphans(yes: bool) -> None:
    """Whether this process becomes the parent of a descendant that has lost its own."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0):
        raise OSError("the system lets no process adopt orphans")


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


# The side that asks


def start() -> None:
    """Start a template for this process, which imports while this process goes on."""
    if sys.platform != "linux" or not works_with_this_python():
        return
    ours, its = socket.socketpair()
    command = [sys.executable, __file__, str(its.fileno())]
    with its:
        process = subprocess.Popen(command, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    use(Template(ours, process))


EXECUTE_CHILD = getattr(subprocess.Popen, "_execute_child", None)

PARAMETERS = (
    "self args executable preexec_fn close_fds pass_fds cwd env startupinfo creationflags shell"
    " p2cread p2cwrite c2pread c2pwrite errread errwrite restore_signals"
    " gid gids uid umask start_new_session process_group"
)


def works_with_this_python() -> bool:
    """Popen has no public place for another way to start a process."""
    return EXECUTE_CHILD is not None and [*inspect.signature(EXECUTE_CHILD).parameters] == PARAMETERS.split()


def use(ours: Template) -> None:
    """Have this process ask this template from now on."""
    global template
    template = ours
    subprocess.Popen._execute_child = execute_child  # type: ignore[attr-defined]
    if "uvloop" in sys.modules:
        import uvloop

        uvloop.Loop.subprocess_exec = subprocess_exec  # type: ignore[assignment, method-assign]


def execute_child(popen: Any, *arguments: Any) -> None:
    """In the place of Popen's own method, which does what the template cannot."""
    asked = dict(zip(PARAMETERS.split()[1:], arguments, strict=True))
    command = list(asked["args"]) if isinstance(asked["args"], list | tuple) else []
    environment = dict(os.environ if asked["env"] is None else asked["env"])
    directory = Path(os.fsdecode(asked["cwd"] or ".")).resolve()
    plain = (
        asked["executable"] is asked["preexec_fn"] is asked["gid"] is asked["gids"] is asked["uid"] is None
        and asked["close_fds"]
        and asked["restore_signals"]
        and not asked["pass_fds"]
        and not asked["shell"]
        and asked["umask"] == -1
        and asked["process_group"] in (-1, None)
        and directory.is_dir()
    )
    if not (plain and command and template and template.can_run(command, environment)):
        assert EXECUTE_CHILD
        EXECUTE_CHILD(popen, *arguments)
        return
    request = {
        "command": command,
        "environment": environment,
        "directory": str(directory),
        "session": asked["start_new_session"],
        "interruptible": signal.getsignal(signal.SIGINT) is not signal.SIG_IGN,
    }
    given = (asked["p2cread"], asked["c2pwrite"], asked["errwrite"])
    streams = [ours if stream == -1 else stream for ours, stream in enumerate(given)]
    popen.pid = template.run(request, streams)
    popen._child_created = True
    popen._close_pipe_fds(*(asked[name] for name in PARAMETERS.split()[11:17]))


async def subprocess_exec(
    loop: asyncio.AbstractEventLoop,
    make_protocol: Callable[[], asyncio.SubprocessProtocol],
    *command: str,
    stdin: int | None = subprocess.PIPE,
    stdout: int | None = subprocess.PIPE,
    stderr: int | None = subprocess.PIPE,
    **settings: Any,
) -> tuple[asyncio.SubprocessTransport, asyncio.SubprocessProtocol]:
    """In the place of uvloop's own method, which does not use Popen; asyncio's does."""
    protocol, waiter = make_protocol(), loop.create_future()
    transport = vars(asyncio.unix_events)["_UnixSubprocessTransport"](
        loop, protocol, command, False, stdin, stdout, stderr, 0, waiter, **settings
    )
    pid = transport.get_pid()
    watched = os.pidfd_open(pid)

    def ended() -> None:
        loop.remove_reader(watched)
        os.close(watched)
        transport._process_exited(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    loop.add_reader(watched, ended)
    await waiter
    return transport, protocol


@contextmanager
def fresh_interpreters() -> Iterator[None]:
    """In this block this process starts new interpreters, for tests that are about how Python starts."""
    global template
    before, template = template, None
    try:
        yield
    finally:
        template = before


# The template's side


def prepare() -> None:
    """Import the libraries. A template with threads could not be forked."""
    for library in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(library)
    assert len([*Path("/proc/self/task").iterdir()]) == 1
    gc.collect()
    gc.freeze()


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for each request. Returns only in the forked programs; ends with the process that asks."""
    while True:
        try:
            head, streams, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
            if not head:
                os._exit(0)
            request: dict[str, Any] = json.loads(receive(connection, LENGTH.unpack(head)[0]))
        except (EOFError, OSError):
            os._exit(0)
        pid = fork_orphan(request["session"])
        if pid:
            for stream in streams:
                os.close(stream)
            with suppress(OSError):  # the requester has gone: the next read ends the loop
                connection.sendall(PID.pack(pid))
            continue
        connection.close()
        ours, its = socket.socketpair()
        if os.fork():
            its.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            use(Template(ours))
            return request
        ours.close()
        for stream in streams:
            os.close(stream)
        connection = its


def fork_orphan(session: bool) -> int:
    """Fork a process whose parent is the one that asks; return its pid, and 0 in it."""
    pids, its_pid = os.pipe()
    adopted, has_been_adopted = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork():
            os._exit(0)
        if session:
            os.setsid()  # before its pid is told: the session may be asked for at once
        os.write(its_pid, PID.pack(os.getpid()))
        for descriptor in (pids, its_pid, has_been_adopted):
            os.close(descriptor)
        os.read(adopted, 1)  # ends when the template has closed its end
        os.close(adopted)
        return 0
    os.waitpid(middle, 0)
    (pid,) = PID.unpack(os.read(pids, PID.size))
    for descriptor in (pids, its_pid, adopted, has_been_adopted):
        os.close(descriptor)
    return int(pid)


def become(request: dict[str, Any]) -> list[str]:
    """Make this process what a new interpreter would be; return the arguments after Python's name."""
    change_environment(request["environment"], os.environ.get("PYTHONPATH", ""))
    os.chdir(request["directory"])
    command: list[str] = request["command"]
    sys.orig_argv = command
    # Of the kind that fits what the descriptors lead to now.
    sys.stdin = os.fdopen(0, encoding=sys.stdin.encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=sys.stdout.encoding, closefd=False)
    encoding, errors = sys.stderr.encoding, "backslashreplace"
    sys.stderr = os.fdopen(2, "w", 1, encoding=encoding, errors=errors, closefd=False)
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    if request["interruptible"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if command[1:3] == ["-m", "ipykernel_launcher"]:
        # Before it has been imported it could be told so by a variable of the environment.
        sys.modules["matplotlib"].rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    tempfile.tempdir = None
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if hasattr(time, "tzset"):
        time.tzset()
    return command[1:]


def change_environment(environment: dict[str, str], paths_before: str) -> None:
    changed = {name for name, _ in os.environ.items() ^ environment.items()}
    for name in changed:
        if name in environment:
            os.environ[name] = environment[name]
        else:
            del os.environ[name]
    for prefix, library in FORGOTTEN.items():
        if any(name.startswith(prefix) for name in changed):
            for name in [name for name in sys.modules if name.split(".")[0] == library]:
                del sys.modules[name]
    paths = environment.get("PYTHONPATH", "")
    if paths != paths_before:
        old, new = (
            [str(Path.cwd() / path) for path in one.split(os.pathsep) if path]
            for one in (paths_before, paths)
        )
        sys.path[:] = [*new, *(path for path in sys.path if path not in old)]
        sys.modules.pop("sitecustomize", None)
        site.execsitecustomize()


def run(arguments: list[str]) -> None:
    """As the interpreter would: a script, `-m` and a module, or `-c` and code."""
    main = ModuleType("__main__")
    main.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"] = main
    kind, *more = arguments
    if kind == "-m":
        sys.argv[:] = ["-m", *more[1:]]
        sys.path.insert(0, str(Path.cwd()))
        runpy._run_module_as_main(more[0])  # type: ignore[attr-defined]
    elif kind == "-c":
        sys.argv[:] = ["-c", *more[1:]]
        sys.path.insert(0, "")
        exec(compile(more[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv[:] = arguments
        sys.path.insert(0, str(Path(kind).resolve().parent))
        main.__file__ = kind
        exec(compile(Path(kind).read_bytes(), kind, "exec"), main.__dict__)


def run_to_the_end(arguments: list[str]) -> NoReturn:
    """Run and exit as the interpreter would, but leave out what takes 0.3 s: freeing every object."""
    interrupted, status = False, 0
    try:
        run(arguments)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException as error:
        interrupted, status = isinstance(error, KeyboardInterrupt), 1
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # type: ignore[attr-defined]  # wait for the threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the programs
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    del sys.path[0]
    sys.modules["tests.template"] = sys.modules["__main__"]
    prepare()
    run_to_the_end(become(serve(connection)))


if __name__ == "__main__":
    main()
