"""What a browser's form sends (multipart/form-data), taken apart as it arrives.

Werkzeug's decoder does the parsing. It holds no more than the piece that came last.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import NEED_DATA, Data, Epilogue, Event, File, MultipartDecoder

LONGEST_HEAD = 16 * 1024
"""Bytes that the head of a part may have."""

MOST_PARTS = 1000
"""Files and fields of one form; each file makes an entry of the answer."""


class BrokenForm(ValueError):
    """A body that is no form, or not all of one."""


async def files_in_form(
    content_type: str, body: AsyncIterator[bytes]
) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]]]:
    """Each file's name and content, which is to be read before the next file is asked for.

    Other fields are skipped.
    """
    kind, options = parse_options_header(content_type)
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise BrokenForm("send multipart/form-data, as a form does")
    events = parse(options["boundary"].encode(), body)
    async for event in events:
        if isinstance(event, File) and event.filename:  # a form without a choice of file sends an empty name
            yield event.filename, content_of_part(events)


async def content_of_part(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    async for event in events:
        assert isinstance(event, Data), event
        if event.data:
            yield event.data
        if not event.more_data:
            return


async def parse(boundary: bytes, body: AsyncIterator[bytes]) -> AsyncGenerator[Event]:
    decoder = MultipartDecoder(boundary, max_parts=MOST_PARTS)
    try:
        async for piece in body:
            decoder.receive_data(piece)
            while (event := decoder.next_event()) is not NEED_DATA:
                yield event
            if len(decoder.buffer) > LONGEST_HEAD:
                raise BrokenForm("a part of the form has too long a head")
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), Epilogue):
            yield event
    except RequestEntityTooLarge as error:
        raise BrokenForm(f"a form may have at most {MOST_PARTS} parts") from error
    except ValueError as error:
        if isinstance(error, BrokenForm):
            raise
        raise BrokenForm("the form is broken or incomplete") from error
