"""Mistakes that a user can mend, told in one line and without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """What went wrong, where, and what to do about it, in one line."""
