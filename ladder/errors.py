"""Mistakes that a user can mend, told in one line and without a traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What went wrong, where, and what to do about it, in one line."""


@contextmanager
def errors_in_one_line(program: str) -> Iterator[None]:
    """Turn a `UserError` into one line on stderr and exit status 1; Ctrl-C and SIGTERM end quietly.

    Both unwind the program, so that servers which it has started are ended too.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
