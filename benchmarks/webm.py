"""Writes encoded frames into a WebM file, a container that browsers play.

The file begins with its length and a table of its key frames, so that a player can seek after reading the
first bytes. A browser's own recording (MediaRecorder) lacks both.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    milliseconds: int
    key: bool
    data: bytes


def element(number: int, *content: bytes) -> bytes:
    """An EBML element: its number, its length in eight bytes, its content."""
    data = b"".join(content)
    return number.to_bytes((number.bit_length() + 7) // 8) + (len(data) | 1 << 56).to_bytes(8) + data


def whole(number: int, value: int) -> bytes:
    return element(number, value.to_bytes(8))


def text(number: int, value: str) -> bytes:
    return element(number, value.encode())


def cluster(frames: Sequence[Frame]) -> bytes:
    """A key frame and the frames that depend on it."""
    start = frames[0].milliseconds
    blocks = [
        element(0xA3, struct.pack(">BhB", 0x81, frame.milliseconds - start, 0x80 * frame.key), frame.data)
        for frame in frames
    ]
    return element(0x1F43B675, whole(0xE7, start), *blocks)


def cues(times: Sequence[int], positions: Sequence[int]) -> bytes:
    """The position of each key frame in the file."""
    points = [
        element(0xBB, whole(0xB3, time), element(0xB7, whole(0xF7, 1), whole(0xF1, position)))
        for time, position in zip(times, positions, strict=True)
    ]
    return element(0x1C53BB6B, *points)


def webm(frames: Sequence[Frame], width: int, height: int, milliseconds: int) -> bytes:
    """A VP9 video without sound."""
    starts = [place for place, frame in enumerate(frames) if frame.key]
    groups = [frames[start:end] for start, end in zip(starts, [*starts[1:], len(frames)], strict=True)]
    clusters = [cluster(group) for group in groups]
    times = [group[0].milliseconds for group in groups]
    video = element(0xE0, whole(0xB0, width), whole(0xBA, height))
    track = (whole(0xD7, 1), whole(0x73C5, 1), whole(0x83, 1), whole(0x9C, 0), text(0x86, "V_VP9"), video)
    about = (
        element(
            0x1549A966,
            whole(0x2AD7B1, 1_000_000),
            element(0x4489, struct.pack(">d", milliseconds)),
            text(0x4D80, "serving-ladder"),
            text(0x5741, "serving-ladder"),
        ),
        element(0x1654AE6B, element(0xAE, *track)),
    )
    # The table stands before the frames that it points to. Its length does not depend on its content.
    position = sum(map(len, about)) + len(cues(times, [0] * len(times)))
    positions = []
    for one in clusters:
        positions.append(position)
        position += len(one)
    head = element(
        0x1A45DFA3,
        *(whole(number, value) for number, value in ((0x4286, 1), (0x42F7, 1), (0x42F2, 4), (0x42F3, 8))),
        text(0x4282, "webm"),
        *(whole(number, 2) for number in (0x4287, 0x4285)),
    )
    return head + element(0x18538067, *about, cues(times, positions), *clusters)
