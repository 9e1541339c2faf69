"""How a rung runs as a program: reads its flags, then serves or shows its demo, and ends quietly.

A rung imports this module first, because its other imports take seconds. Ctrl-C during those imports would
print thirty lines of traceback; nothing has begun yet, so the system may end the process at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ladder import ROOT
from ladder.cli import DemoOptions, ListenConfig, parse
from ladder.errors import UserError

C = TypeVar("C", bound=ListenConfig)


def run_rung(
    file: str,
    doc: str | None,
    config_class: type[C],
    start: Callable[[C], None],
    demo: Callable[[C, DemoOptions], None],
) -> None:
    """Read the command line; then start the server, or with `--demo` show what the rung is about."""
    config, options = parse(config_class, doc)
    with errors_in_one_line(Path(file).name):
        if options:
            demo(config, options)
        else:
            start(config)


def leave_ctrl_c_to_the_system() -> None:
    """Until `errors_in_one_line`, and only if a rung is run: a program that imports one handles its own."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    is_rung = program is not None and Path(program).resolve().parent == ROOT.resolve()
    if is_rung and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def errors_in_one_line(program: str) -> Iterator[None]:
    """Turn a `UserError` into one line on stderr and exit status 1; Ctrl-C and SIGTERM end quietly.

    Both unwind the program, so that servers which it has started end too.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # and not to be ignored, as after nohup
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


leave_ctrl_c_to_the_system()
