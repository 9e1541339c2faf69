"""Splits the body of a browser's form (multipart/form-data) into files, while it arrives.

Werkzeug's decoder does the parsing. It holds no more than the last chunk in memory.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import NEED_DATA, Data, Epilogue, Event, File, MultipartDecoder

MAX_PART_HEAD = 16 * 1024
"""Bytes of the headers of one part."""

MAX_PARTS = 1000
"""Files and fields of one form. Each file adds an entry to the response."""


class BrokenForm(ValueError):
    """A body that is not a form, or not a complete one."""


async def files_in_form(
    content_type: str, body: AsyncIterator[bytes]
) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]]]:
    """Each file's name and content. The caller reads the content before it asks for the next file.

    Other fields are skipped.
    """
    kind, options = parse_options_header(content_type)
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise BrokenForm("send the files as multipart/form-data")
    events = parse(options["boundary"].encode(), body)
    async for event in events:
        if (
            isinstance(event, File) and event.filename
        ):  # a form in which no file was chosen sends an empty name
            yield event.filename, content_of_part(events)


async def content_of_part(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    async for event in events:
        assert isinstance(event, Data), event
        if event.data:
            yield event.data
        if not event.more_data:
            return


async def parse(boundary: bytes, body: AsyncIterator[bytes]) -> AsyncGenerator[Event]:
    decoder = MultipartDecoder(boundary, max_parts=MAX_PARTS)
    try:
        async for chunk in body:
            decoder.receive_data(chunk)
            while (event := decoder.next_event()) is not NEED_DATA:
                yield event
            if len(decoder.buffer) > MAX_PART_HEAD:
                raise BrokenForm("the headers of a form part are too long")
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), Epilogue):
            yield event
    except RequestEntityTooLarge as error:
        raise BrokenForm(f"a form may have at most {MAX_PARTS} parts") from error
    except ValueError as error:
        if isinstance(error, BrokenForm):
            raise
        raise BrokenForm("the form is malformed or incomplete") from error
