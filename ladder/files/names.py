"""Names of files that come from clients: which may be read, and which may be given to a file."""

from __future__ import annotations

import unicodedata

from starlette.convertors import Convertor, register_url_convertor

MAX_NAME_BYTES = 200
"""Less than the 255 that file systems allow, because partial files have longer names."""

REFUSED_BY_WINDOWS = '<>:"|?*'
DEVICES = {
    "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$",
    *(port + digit for port in ("COM", "LPT") for digit in "0123456789¹²³"),
}  # fmt: skip
"""On Windows these names open a device, with any ending: NUL.txt is the device NUL."""

INVISIBLE = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u2800", "\u3164", "\uffa0"}
"""Characters without a picture that Unicode counts as letters, marks or symbols."""


class InvalidName(ValueError):
    """A name that no file in the folder can have. The message is the reason."""


class AnyName(Convertor[str]):
    """The rest of a path, whatever it is. Starlette's own `path` does not match a line break."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any_name", AnyName())


def check_readable(name: str) -> str:
    """Check a name by which a client asks for a file."""
    if not name or name.startswith("."):
        raise InvalidName("a name must not be empty or begin with a dot")
    # A slash leads to another folder, and so does a backslash on Windows. Surrogates (Cs) stand for bytes
    # that are not UTF-8.
    if any(character in "/\\" or unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise InvalidName("a name must not contain slashes, backslashes or control characters")
    return name


def check_name(name: str) -> str:
    """Check a name that a client gives to a file.

    Every system can store it, and what a user sees is the name: two names that differ look different.
    """
    check_readable(name)
    if "\ufffd" in name:  # what servers and browsers put in place of bytes that are not UTF-8
        raise InvalidName("a name must be UTF-8, without the replacement character U+FFFD")
    if found := [character for character in name if character in REFUSED_BY_WINDOWS]:
        raise InvalidName(f"a name must not contain {found[0]} because Windows does not allow it")
    if name.endswith((".", " ")):
        raise InvalidName("a name must not end with a dot or a space because Windows removes them")
    device = name.partition(".")[0].rstrip().upper()
    if device in DEVICES:
        raise InvalidName(
            f"a name must not be {device}, with or without an ending: Windows has such a device"
        )
    for before, character in zip(" " + name, name, strict=False):
        if is_invisible(character, before):
            raise InvalidName(f"a name must not contain U+{ord(character):04X} because it is invisible")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidName(f"a name must not be longer than {MAX_NAME_BYTES} bytes")
    return name


def is_invisible(character: str, before: str) -> bool:
    """Whether a character has no picture of its own: it is hidden, or changes the direction of the text.

    Emoji and some scripts are written with joiners and variation selectors. These are accepted behind a
    character that they can change, and digits are among those: they are part of some emoji.
    """
    if (
        character in "\u200c\u200d"
        or "\ufe00" <= character <= "\ufe0f"
        or "\U000e0100" <= character <= "\U000e01ef"
    ):
        return before.isascii() and not before.isdigit()
    return character in INVISIBLE or unicodedata.category(character) in ("Cf", "Zl", "Zp")
