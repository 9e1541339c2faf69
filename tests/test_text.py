"""Tests tokenizing: the streamed parts of an output add up to exactly the decoded text.

The tests use any text and any sequence of tokens, for the bundled byte-level tokenizer and for small
SentencePiece-like ones whose decoders fall back to bytes, as Llama 2's does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import AddedToken, Tokenizer as Backend, decoders, models

from ladder.llm.loading import BUNDLED
from ladder.llm.text import Tokenizer, byte_level_alphabet, byte_level_bytes

HARD_TEXTS = [
    "👩🏽‍🚀👨‍👩‍👧‍👦🏳️‍🌈",
    "🇩🇪🇯🇵🇧🇷",
    "你好，世界。こんにちは 안녕하세요",
    "e\u0301a\u0308o\u0302n\u0303",
    "שלום עולם مرحبا بالعالم",
    "\u200f\u202eabc\u202c\u200e",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010ffff",
    "tab\tnewline\r\nnul\0end",
    "   leading and trailing   ",
    "\ufeffbom \ufffd replacement",
    "12345 67,890.12",
]
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.sampled_from([*HARD_TEXTS, " ", "The fox "]), max_size=4).map("".join),
)
SPECIAL = "<|endoftext|>"

BUNDLED_TOKENIZER = Tokenizer(Backend.from_file(str(BUNDLED / "tokenizer.json")))


def byte_fallback_tokenizer() -> Tokenizer:
    """Llama 2's decoder over a small vocabulary: control tokens, all bytes, and some words."""
    words = [
        "▁",
        "▁▁",
        "▁The",
        "▁fox",
        "The",
        "fox",
        "s",
        ".",
        "▁.",
        "é",
        "你",
        "▁你",
        "\ufffd",
        "▁a▁b",
        "▁<",
        ">",
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend)


def metaspace_tokenizer() -> Tokenizer:
    words = ["<unk>", "</s>", "▁", "▁The", "▁fox", "The", "fox", "s", ".", "▁.", "你", "▁▁", "a▁b"]
    backend = Backend(models.WordLevel({token: number for number, token in enumerate(words)}, "<unk>"))
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend)


def plain_added_tokens_tokenizer() -> Tokenizer:
    """The bundled vocabulary with added tokens that are text: some look like bytes, some do not."""
    backend = Backend.from_str(json.dumps(json.loads((BUNDLED / "tokenizer.json").read_bytes())))
    backend.add_tokens(["<think>", "a b", "日本", "Ġé"])
    backend.add_special_tokens(["<|im_end|>"])
    return Tokenizer(backend)


def wrapped_byte_level_tokenizer() -> Tokenizer:
    """The bundled vocabulary with its decoder in a sequence, as some checkpoints write it."""
    backend = Backend.from_str(json.dumps(json.loads((BUNDLED / "tokenizer.json").read_bytes())))
    backend.decoder = decoders.Sequence([decoders.ByteLevel()])
    return Tokenizer(backend)


FALLBACK = byte_fallback_tokenizer()
METASPACE = metaspace_tokenizer()
ADDED = plain_added_tokens_tokenizer()
WRAPPED = wrapped_byte_level_tokenizer()


def sequences(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any tokens, sometimes with an id beyond the vocabulary, as a padded output matrix can give."""
    return st.lists(st.integers(0, tokenizer.backend.get_vocab_size() + 1), max_size=30)


def id_of(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.backend.token_to_id(token)
    assert token_id is not None
    return token_id


def fallback_ids(tokens: str) -> list[int]:
    return [id_of(FALLBACK, token) for token in tokens.split()]


def byte_run(text: bytes) -> list[int]:
    return [id_of(FALLBACK, f"<0x{byte:02X}>") for byte in text]


def bundled_bytes(data: bytes) -> list[int]:
    characters = {byte: character for character, byte in byte_level_alphabet().items()}
    return [id_of(BUNDLED_TOKENIZER, characters[byte]) for byte in data]


byte_runs = st.one_of(
    st.binary(min_size=1, max_size=5).map(byte_run),
    st.sampled_from(["é", "你", "👩🏽‍🚀"]).map(lambda text: byte_run(text.encode())),
)
words = st.integers(0, FALLBACK.backend.get_vocab_size() - 1).map(lambda token_id: [token_id])
special = st.sampled_from([[1], [2]])
with_byte_runs = st.lists(st.one_of(byte_runs, words, special), max_size=10).map(
    lambda parts: [token_id for part in parts for token_id in part]
)


def parts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds, then the text that was held back until the end."""
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


def assert_exact_at_every_length(tokenizer: Tokenizer, ids: Sequence[int]) -> None:
    """For every prefix, the streamed parts equal the decoded text, so no later token changes them."""
    for length in range(len(ids) + 1):
        assert "".join(parts(tokenizer, ids[:length])) == tokenizer.decode(list(ids[:length]))


@given(text=texts)
def test_bundled_encode_and_decode_are_inverse(text: str) -> None:
    assert BUNDLED_TOKENIZER.decode(BUNDLED_TOKENIZER.encode(text)) == text.replace(SPECIAL, "")


@given(text=texts)
def test_bundled_texts_are_streamed_exactly(text: str) -> None:
    assert_exact_at_every_length(BUNDLED_TOKENIZER, BUNDLED_TOKENIZER.encode(text))


@given(ids=sequences(BUNDLED_TOKENIZER))
def test_bundled_tokens_in_any_order_are_streamed_exactly(ids: list[int]) -> None:
    assert_exact_at_every_length(BUNDLED_TOKENIZER, ids)


@given(data=st.binary(max_size=20), places=st.lists(st.integers(0, 20), max_size=2))
def test_bundled_invalid_utf8_is_streamed_exactly(data: bytes, places: list[int]) -> None:
    """Byte tokens only; the end token may occur between the bytes of one character."""
    ids = bundled_bytes(data)
    for place in places:
        ids.insert(place, id_of(BUNDLED_TOKENIZER, SPECIAL))
    assert BUNDLED_TOKENIZER.decode(ids) == data.decode(errors="replace")
    assert_exact_at_every_length(BUNDLED_TOKENIZER, ids)


@given(text=texts)
def test_a_character_is_streamed_as_soon_as_its_last_byte_is_known(text: str) -> None:
    detokenizer, shown, data = BUNDLED_TOKENIZER.detokenizer(), "", b""
    for token_id in BUNDLED_TOKENIZER.encode(text):
        shown += detokenizer.push(token_id)
        data += byte_level_bytes(BUNDLED_TOKENIZER.backend.id_to_token(token_id) or "")
        whole = data.decode(errors="ignore")  # in a prefix, only an incomplete last character is ignored
        assert shown == whole
    assert not detokenizer.flush()


def test_an_emoji_is_split_over_several_tokens() -> None:
    ids = BUNDLED_TOKENIZER.encode("👩🏽‍🚀")
    assert len(ids) > 5
    assert [piece for piece in parts(BUNDLED_TOKENIZER, ids) if piece] == ["👩", "🏽", "\u200d", "🚀"]


@given(ids=sequences(ADDED))
def test_added_tokens_are_streamed_exactly(ids: list[int]) -> None:
    assert_exact_at_every_length(ADDED, ids)


@given(text=st.lists(st.sampled_from(["<think>", "a b", "日本", "Ġé", "<|im_end|>", " x"]), max_size=8))
def test_texts_with_added_tokens_are_streamed_exactly(text: list[str]) -> None:
    assert_exact_at_every_length(ADDED, ADDED.encode("".join(text)))


@settings(max_examples=300)
@given(ids=with_byte_runs)
def test_byte_fallback_is_streamed_exactly(ids: list[int]) -> None:
    assert_exact_at_every_length(FALLBACK, ids)


@given(ids=sequences(FALLBACK))
def test_byte_fallback_tokens_in_any_order_are_streamed_exactly(ids: list[int]) -> None:
    assert_exact_at_every_length(FALLBACK, ids)


@pytest.mark.parametrize(
    "tokens",
    [
        "▁",
        "▁ ▁",
        "▁ fox",
        "▁ ▁fox",
        "▁The ▁fox s .",
        "<s> ▁The ▁fox </s>",
        "<s> ▁ </s> ▁ fox",
        "▁The </s> <s> ▁fox",
        "<0xE4> <0xBD> <0xA0> ▁fox",
        "▁The <0xE4> <0xBD> ▁fox",
        "▁The <0xE4> <0xBD> <0xA0>",
        "<0xE4> </s> <0xBD> <0xA0> s",
        "<0x20> fox",
        "▁ <0x20> fox",
    ],
)
def test_byte_fallback_cases(tokens: str) -> None:
    assert_exact_at_every_length(FALLBACK, fallback_ids(tokens))


def test_byte_fallback_streams_each_word_immediately() -> None:
    assert parts(FALLBACK, fallback_ids("▁The ▁fox s .")) == ["The", " fox", "s", ".", ""]


@given(ids=sequences(METASPACE))
def test_metaspace_is_streamed_exactly(ids: list[int]) -> None:
    assert_exact_at_every_length(METASPACE, ids)


@given(text=texts)
def test_texts_are_streamed_exactly_with_a_byte_level_decoder_in_a_sequence(text: str) -> None:
    assert_exact_at_every_length(WRAPPED, WRAPPED.encode(text))


@given(ids=st.one_of(sequences(WRAPPED), st.binary(max_size=20).map(bundled_bytes)))
def test_any_tokens_are_streamed_exactly_with_a_byte_level_decoder_in_a_sequence(ids: list[int]) -> None:
    assert_exact_at_every_length(WRAPPED, ids)


def test_a_decoder_in_a_sequence_also_streams_a_character_with_its_last_byte() -> None:
    ids = BUNDLED_TOKENIZER.encode("a 😀 é 日本 b 👩🏽‍🚀")
    assert parts(WRAPPED, ids) == parts(BUNDLED_TOKENIZER, ids)


@given(text=texts)
def test_longest_token_limits_the_characters_per_token(text: str) -> None:
    """So a server can reject a text by its length, without tokenizing it."""
    ids = BUNDLED_TOKENIZER.encode(text)
    assert len(text.replace(SPECIAL, "")) <= len(ids) * BUNDLED_TOKENIZER.longest_token


def test_every_byte_has_its_own_character() -> None:
    assert sorted(byte_level_alphabet().values()) == list(range(256))
