"""A parser for server-sent events, by the rules of the HTML standard.

Bytes arrive in pieces that may end within an event, a line or a character. The parser takes pieces of any
size and yields each event when the blank line after it has arrived.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    data: str
    name: str = "message"
    id: str = ""


class EventParser:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._line = ""
        self._after_return = False  # the last piece ended in \r: a \n now belongs to it
        self._data: list[str] = []
        self._name = ""
        self._id = ""

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Take a piece; yield the events that it completes."""
        text = self._decoder.decode(piece)
        if self._after_return and text:
            text = text.removeprefix("\n")
            self._after_return = False
        self._after_return = self._after_return or text.endswith("\r")
        *lines, self._line = (self._line + text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            if line:
                self._read_field(line)
            elif event := self._finish_event():
                yield event

    def _read_field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        elif name == "id" and "\0" not in value:
            self._id = value
        # All other fields are ignored. A comment is a field without a name.

    def _finish_event(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._name = [], ""
        return Event("\n".join(data), name or "message", self._id) if data else None
