"""How a program ends that is interrupted, or that cannot do what it was asked for.

A rung imports this before all else, because its other imports take seconds. Ctrl-C meanwhile would end in
thirty lines about where in torch it came; nothing has begun yet, so the system may end the process at once.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ladder import ROOT
from ladder.errors import UserError


def leave_ctrl_c_to_the_system() -> None:
    """Until `errors_in_one_line`, and only if a rung is run: a program that imports one has its own ways."""
    program = getattr(sys.modules["__main__"], "__file__", None)
    is_rung = program is not None and Path(program).resolve().parent == ROOT.resolve()
    if is_rung and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def errors_in_one_line(program: str) -> Iterator[None]:
    """Turn a `UserError` into one line on stderr and exit status 1; Ctrl-C and SIGTERM end quietly.

    Both unwind the program, so that servers which it has started are ended too.
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
