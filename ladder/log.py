"""The log of a server, on stderr. Errors of the server have a traceback."""

from __future__ import annotations

import logging
import time

from ladder.errors import RequestFailed, Unavailable

logger = logging.getLogger("ladder")


def log_failure(error: Exception) -> None:
    """Log an unexpected failure, with its traceback."""
    if not isinstance(error, Unavailable | RequestFailed):
        logger.error("a request failed", exc_info=error)


class Occasional:
    """Logs at most one warning in so many seconds, because each of many clients may cause it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = 0.0

    def warning(self, message: str, *arguments: object) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            logger.warning(message, *arguments)
