"""The log of a server, on stderr. Errors of the server have a traceback."""

from __future__ import annotations

import logging

from ladder.errors import RequestFailed, Unavailable

logger = logging.getLogger("ladder")


def log_failure(error: Exception) -> None:
    """Log an unexpected failure, with its traceback."""
    if not isinstance(error, Unavailable | RequestFailed):
        logger.error("a request failed", exc_info=error)
