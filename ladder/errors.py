"""What can go wrong and be said in one line: mistakes of a user, requests that cannot be served."""

from __future__ import annotations


class UserError(Exception):
    """What went wrong, where, and what to do about it, in one line."""


class RequestError(ValueError):
    """A request that fits the schema but not this model: answered like any other wrong field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.details = [{"type": "value_error", "loc": ("body", field), "msg": message}]


class Unavailable(Exception):
    """The request cannot be served now, through no fault of its own: 503, and when to come back."""

    retry_after = 1
    """Seconds."""


class ServerStopping(Unavailable):
    """Ends the requests that are under way when the server is told to stop."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; send the request again in a while")


class QueueFull(Unavailable):
    """Refused at once: to wait behind so many others would only make the client time out later."""

    def __init__(self) -> None:
        super().__init__("the queue is full; send the request again in a while")


class RequestFailed(Exception):
    """The engine could not go on with this request, and has logged why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
