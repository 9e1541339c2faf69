"""Tests the parser of server-sent events against the HTML standard, for any split of the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from fastapi.sse import format_sse_event
from hypothesis import given, strategies as st

from ladder.web.sse import Event, EventParser

FRAGMENTS = [
    "data",
    "event",
    "id",
    "retry",
    ":",
    " ",
    "\n",
    "\r",
    "\r\n",
    "a",
    "ü",
    "👩🏽‍🚀",
    "\0",
    "﻿",
    "\u2028",
]
streams = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join).map(str.encode)


def parse(*pieces: bytes) -> list[Event]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[start:end] for start, end in pairwise(bounds)]


def by_the_standard(stream: bytes) -> list[Event]:
    """The standard's algorithm, applied to the whole text."""
    text = stream.decode("utf-8", errors="replace").removeprefix("﻿")
    complete = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    events, last_id, name = [], "", ""
    data: list[str] = []
    for line in complete:
        if not line:
            if data:
                events.append(Event("\n".join(data), name or "message", last_id))
            data, name = [], ""
            continue
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            data.append(value)
        elif key == "event":
            name = value
        elif key == "id" and "\0" not in value:
            last_id = value
    return events


@given(stream=streams, places=st.lists(st.integers(0, 200), max_size=10))
def test_any_split_of_the_bytes_gives_the_standards_events(stream: bytes, places: list[int]) -> None:
    assert parse(*cut(stream, places)) == by_the_standard(stream)


@given(stream=streams)
def test_byte_by_byte_gives_the_standards_events(stream: bytes) -> None:
    assert parse(*(bytes([byte]) for byte in stream)) == by_the_standard(stream)


@given(garbage=st.binary(max_size=60), places=st.lists(st.integers(0, 60), max_size=6))
def test_invalid_utf8_gives_the_same_events_for_any_split(garbage: bytes, places: list[int]) -> None:
    stream = b"data: " + garbage + b"\n\n"
    assert parse(*cut(stream, places)) == parse(stream)


# Texts without characters that the format cannot carry; names without line breaks.
names = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1, max_size=8)
texts = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(data=texts, name=names, event_id=names, places=st.lists(st.integers(0, 200), max_size=6))
def test_fastapis_events_are_parsed_back(data: str, name: str, event_id: str, places: list[int]) -> None:
    stream = format_sse_event(data_str=data, event=name, id=event_id)
    assert parse(*cut(stream, places)) == [Event(data, name, event_id)]


CASES = [
    (b"data: a\n\ndata: b\n\n", [Event("a"), Event("b")]),
    (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", [Event("a"), Event("b"), Event("c")]),
    (b": a comment\ndata: a\n:\n\n", [Event("a")]),
    (b"data: one\ndata: two\n\n", [Event("one\ntwo")]),
    (b"data:a\n\n", [Event("a")]),
    (b"data:  a \n\n", [Event(" a ")]),
    (b"data\n\n", [Event("")]),
    (b"data:\n\n", [Event("")]),
    (b"data:\ndata\n\n", [Event("\n")]),
    (b"event: error\n\ndata: a\n\n", [Event("a")]),
    (b"event: error\ndata: a\n\ndata: b\n\n", [Event("a", "error"), Event("b")]),
    (
        b"id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n",
        [Event("a", id="1"), Event("b", id="1"), Event("c")],
    ),
    (b"id: 1\nid: 2\0\ndata: a\n\n", [Event("a", id="1")]),
    (b"\xef\xbb\xbfdata: a\n\n", [Event("a")]),
    (b"data: \xef\xbb\xbfa\n\n", [Event("\ufeffa")]),
    (b"retry: 10\ndata : a\nDATA: a\n\n", []),
    (b"data: unfinished\n", []),
    ("data: 👩🏽‍🚀\n\n".encode(), [Event("👩🏽‍🚀")]),
    ("data: a\u2028b\x85c\x0bd\n\n".encode(), [Event("a\u2028b\x85c\x0bd")]),
]
"""Streams, and their events by the standard."""


@pytest.mark.parametrize(("stream", "events"), CASES)
def test_the_standards_cases(stream: bytes, events: list[Event]) -> None:
    assert parse(stream) == events


def test_an_event_is_returned_as_soon_as_its_blank_line_arrives() -> None:
    parser = EventParser()
    assert not list(parser.feed(b"data: a\n"))
    assert list(parser.feed(b"\n")) == [Event("a")]
    assert not list(parser.feed(b"data: b\r"))
    assert list(parser.feed(b"\r")) == [Event("b")]
    assert not list(parser.feed(b"\n"))
