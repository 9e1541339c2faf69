"""From text to tokens, and from tokens back to text one token at a time.

Servers that decode each token on its own lose characters. One character may be split over several tokens, and
a token alone may decode differently from the same token between others. A `Detokenizer` holds back what is
not yet a whole character. So its pieces, joined, equal the text of all tokens decoded at once.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Set as AbstractSet
from typing import Protocol

from tokenizers import Tokenizer as Backend, decoders


class Detokenizer(Protocol):
    """The text of one growing sequence of tokens."""

    def push(self, token_id: int) -> str:
        """Add a token; return the text that can no longer change, which may be empty."""
        ...

    def flush(self) -> str:
        """Return what was held back, because the sequence has ended."""
        ...


class ByteLevelDetokenizer:
    """For byte-level BPE (Llama 3, Qwen, the bundled model): every token is a run of bytes.

    Python's incremental UTF-8 decoder keeps an incomplete character until its last byte arrives, and replaces
    bytes that are not UTF-8.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class WindowDetokenizer:
    """For every other decoder (SentencePiece in Llama 2, TinyLlama, Mistral).

    It decodes the last tokens with and without the new one and returns the difference: the first word of a
    text is written differently from the same word later, so a token needs the one before it. A run of byte
    tokens such as <0xE4> is decoded as a whole, or not at all if one byte is wrong. So none of it is returned
    before a token of another kind ends the run. A text that ends in U+FFFD is held back too: its last bytes
    may follow.
    """

    def __init__(self, backend: Backend, special_ids: AbstractSet[int]) -> None:
        self._backend = backend
        self._special_ids = special_ids
        self._context: list[int] = []
        self._held: list[int] = []

    def push(self, token_id: int) -> str:
        token = self._backend.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return ""  # never shown, and does not end a run of byte tokens
        self._held.append(token_id)
        if BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._text()
        return "" if text.endswith("\ufffd") else self._give_out(text)

    def flush(self) -> str:
        return self._give_out(self._text())

    def _text(self) -> str:
        text: str = self._backend.decode(self._context + self._held)
        return text

    def _give_out(self, text: str) -> str:
        piece = text[len(self._backend.decode(self._context)) :]
        # Tokens without text do not make the next word "not the first".
        self._context = self._held if piece else self._context + self._held
        self._held = []
        return piece


class Tokenizer:
    """The part of a tokenizer that a server needs, on top of the `tokenizers` library.

    It keeps no state about any text, so any thread may use it.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        # No token has more characters than this, so a text's length gives the fewest tokens that it can have.
        vocabulary = backend.get_vocab()
        self.longest_token = max(map(len, vocabulary), default=0)
        # A template may add ids that are not in the vocabulary. It adds them to every text.
        self.largest_id = max([*vocabulary.values(), *backend.encode("a").ids], default=-1)
        added = backend.get_added_tokens_decoder()
        self._special_ids = {token_id for token_id, token in added.items() if token.special}
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.backend.encode(text).ids
        return ids

    def decode(self, token_ids: list[int]) -> str:
        text: str = self.backend.decode(token_ids)
        return text

    def detokenizer(self) -> Detokenizer:
        if isinstance(self.backend.decoder, decoders.ByteLevel):
            return ByteLevelDetokenizer(self.token_bytes)
        return WindowDetokenizer(self.backend, self._special_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token of a byte-level vocabulary; special tokens have none."""
        if token_id not in self._bytes:
            token = "" if token_id in self._special_ids else self.backend.id_to_token(token_id) or ""
            self._bytes[token_id] = byte_level_bytes(token)
        return self._bytes[token_id]


def byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable character; this maps the characters to bytes.

    Bytes that are printable in Latin-1 are written as themselves, the other 68 as the characters from U+0100
    on, in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + rank): byte for rank, byte in enumerate(others)}


ALPHABET = byte_level_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes of one vocabulary entry; for an added token in plain text, its UTF-8."""
    if all(character in ALPHABET for character in token):
        return bytes(ALPHABET[character] for character in token)
    return token.encode()
