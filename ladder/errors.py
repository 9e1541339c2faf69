"""Errors that are told in one line: mistakes of a user, and requests that cannot be served."""

from __future__ import annotations


class UserError(Exception):
    """What went wrong, where, and what to do about it, in one line."""


class RequestError(ValueError):
    """A request that fits the schema but not this model. The response is that for a wrong field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.details = [{"type": "value_error", "loc": ("body", field), "msg": message}]


class Unavailable(Exception):
    """The request is valid but cannot be served now: 503, with `Retry-After`."""

    retry_after = 1
    """Seconds."""


class ServerStopping(Unavailable):
    """Ends the requests in flight when the server stops."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; send the request again in a while")


class QueueFull(Unavailable):
    """Rejected immediately: behind so many others the request would only time out later."""

    def __init__(self) -> None:
        super().__init__("the queue is full; send the request again in a while")


class RequestFailed(Exception):
    """The engine could not continue this request, and has logged why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
