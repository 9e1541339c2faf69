"""The log of a server: what is news goes to stderr, with a traceback if it is an error of ours."""

from __future__ import annotations

import logging

from ladder.errors import RequestFailed, Unavailable

logger = logging.getLogger("ladder")


def log_failure(error: Exception) -> None:
    """A failure that is news goes to the server's log, with the traceback."""
    if not isinstance(error, Unavailable | RequestFailed):
        logger.error("a request failed", exc_info=error)
