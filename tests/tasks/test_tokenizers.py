"""Tokens: pieces and their tokens are exact, names are two tokens, training is deterministic."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from lab.errors import BadInput
from lab.tasks.tokenizers import (
    Bpe,
    BpeTokens,
    Bytes,
    ByteTokens,
    Tokenizer,
    Tokens,
    Words,
    WordTokens,
    pieces,
    train_bpe,
)

STORY = (
    "One day, Mira went to the park. \"I don't like rain,\" said Mira's friend Sola. “It's 12 o'clock!”\n"
    "Mirasol and Miranda saw Solan, Timo and Tira in the sand. Timothy sat with Nora, and Norman sat with Lina.\n"
)
LEXICON = [
    "the",
    "cat",
    "don't",
    "A",
    "I'm",
    "Bob",
    ",",
    ".",
    '"',
    "'",
    "'s",
    "’ll",
    "-",
    "(",
    ")",
    "\n",
    "1",
    "2",
    "“",
]
TRICKY = st.text(st.sampled_from("abstlS'’ \"\n.-1é日Ж\u0301É")) | st.text()


def flat(tokens: list[list[int]]) -> list[int]:
    return [token for each in tokens for token in each]


@cache
def bpe() -> BpeTokens:
    return BpeTokens(train_bpe([STORY] * 3, 400), lexicon=["milo"])


@pytest.fixture(scope="module")
def trained() -> BpeTokens:
    return bpe()


def test_configs_are_told_apart_by_name() -> None:
    adapter: TypeAdapter[Tokens] = TypeAdapter(Tokens)
    assert adapter.validate_python({"name": "bytes"}) == Bytes()
    assert adapter.validate_python({"name": "bpe", "vocabulary": 512}) == Bpe(vocabulary=512)
    assert adapter.validate_python({"name": "words"}) == Words(vocabulary=8192)
    with pytest.raises(ValidationError):
        adapter.validate_python({"name": "bytes", "vocabulary": 512})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("the cat", "the| cat"),
        ("Then Mira sat.", "Then| |Mira| sat|."),
        ('"Mira!" "go"', '"|Mira|!|"| |"|go|"'),
        ("Don't I'm don't it's", "Don't| |I'm| don't| it|'s"),
        ("Mira's Mira’ll Mira'sx", "Mira|'s| |Mira|’ll| |Mira'sx"),
        ("'go now' dogs' o'clock", "'|go| now|'| dogs|'| o'clock"),
        ("MiraSolaTika", "Mira|Sola|Tika"),
        ("OK 12a", "O|K| |1|2|a"),
        ("a  b\n\n c", "a| | b|\n|\n| c"),
        ("Élan Zoë naïve", "Élan| |Zoë| naïve"),
        ("Маша и 日本…", "Маша| и| |日|本|…"),
    ],
)
def test_pieces(text: str, parts: str) -> None:
    assert pieces(text) == parts.split("|")


@settings(deadline=None)
@given(TRICKY)
def test_pieces_are_the_text_and_stand_alone(text: str) -> None:
    cut = pieces(text)
    assert "".join(cut) == text
    assert all(pieces(piece) == [piece] for piece in cut)


@settings(deadline=None)
@given(TRICKY, st.from_regex("[A-Z][a-z]{1,6}", fullmatch=True), st.sampled_from(["", " ", '"', "\n", "(", "“", "X"]))
def test_a_name_is_a_piece_wherever_it_stands(text: str, name: str, before: str) -> None:
    for after in ("", " ", ".", "'s", "’s", ",", "!", "\n", "Mira"):
        cut = pieces(text + before + name + after)
        starts = [sum(map(len, cut[:k])) for k, piece in enumerate(cut) if piece == name]
        assert len(text + before) in starts


@settings(deadline=None)
@given(TRICKY)
@example(" a")
def test_the_library_cuts_as_we_do(text: str) -> None:
    library = tokenizers.Tokenizer.from_str(train_bpe([], 300)).pre_tokenizer.pre_tokenize_str(text)
    assert [text[low:high] for _, (low, high) in library] == [piece for piece in pieces(text) if piece]


@settings(deadline=None)
@given(TRICKY)
def test_bytes_and_bpe_are_exact(text: str) -> None:
    for tokenizer in (ByteTokens(), bpe()):
        tokens = flat(tokenizer.encode(pieces(text)))
        assert tokenizer.decode(tokens) == text
        assert tokenizer.decode([*tokens, tokenizer.end]) == text
        assert max(tokens, default=0) < tokenizer.end == len(tokenizer.vocabulary) - 1


def test_bpe_encodes_piece_by_piece_as_the_library_encodes_text(trained: BpeTokens) -> None:
    whole = tokenizers.Tokenizer.from_str(train_bpe([STORY] * 3, 400)).encode(STORY).ids
    assert flat(trained.encode(pieces(STORY))) == whole
    assert len(whole) < len(STORY) / 2
    assert trained.encode(pieces("<end>")) == trained.encode(["<", "end", ">"])


def tokenizers_of_all_kinds() -> Iterator[Tokenizer]:
    yield WordTokens(LEXICON, 12)
    yield WordTokens(LEXICON, 12, unknown=True)
    yield ByteTokens()
    yield bpe()


def test_what_a_vocabulary_is() -> None:
    for tokenizer in tokenizers_of_all_kinds():
        assert len(set(tokenizer.vocabulary)) == len(tokenizer.vocabulary)
        assert all(text and text.isprintable() for text in tokenizer.vocabulary)
        assert tokenizer.vocabulary[tokenizer.end] == "<end>"


def test_invalid_utf8_is_replaced(trained: BpeTokens) -> None:
    assert ByteTokens().decode([0xC3, ord("a")]) == "\ufffda"
    assert trained.decode([trained.vocabulary.index("Ã"), trained.vocabulary.index("a")]) == "\ufffda"


# --- words ---


@settings(deadline=None)
@given(st.lists(st.sampled_from(LEXICON)))
def test_words_come_back(words: list[str]) -> None:
    tokenizer = WordTokens(LEXICON, 0)
    tokens = flat(tokenizer.encode(words))
    assert flat(tokenizer.encode(pieces(tokenizer.decode(tokens)))) == tokens


def test_words_are_set_as_in_print() -> None:
    text = 'A cat (the "cat") sat-sat. "I\'m 12," the cat\'s cat said.\n"Cat!\n"Cat" sat: “the cat”; sat'
    cut = pieces(text)
    tokenizer = WordTokens(sorted({piece.strip(" ") for piece in cut} - {""}), 4)
    assert tokenizer.decode(flat(tokenizer.encode(cut))) == text


def test_syllables_are_read_as_names() -> None:
    tokenizer = WordTokens(["said", "'s", ",", "hat", '"'], 6)
    a, b, c, d = range(6, 10)
    said, clitic, comma, hat, quote = range(1, 6)
    A, C = ("".join(tokenizer.vocabulary[each] for each in pair).capitalize() for pair in ((a, b), (c, d)))
    assert tokenizer.decode([a, b, said, c, d, clitic, hat]) == f"{A} said {C}'s hat"
    assert tokenizer.decode([quote, a, b, comma, a, b, c, d, quote, said, a]) == (
        f'"{A}, {A}{C}" said {A[: len(tokenizer.vocabulary[a])]}'
    )


def test_unknown_words() -> None:
    with pytest.raises(BadInput, match="'dog' is not a word"):
        WordTokens(["cat"], 0).encode(["cat", " dog"])
    tokenizer = WordTokens(["cat"], 0, unknown=True)
    tokens = tokenizer.encode(["cat", " ", " dog"])
    assert [[tokenizer.vocabulary[token] for token in each] for each in tokens] == [["cat"], [], ["<unk>"]]


def test_syllables_are_no_words_and_enough() -> None:
    plain = WordTokens([], 2000)
    taken = plain.vocabulary[1:11]
    tokenizer = WordTokens([taken[0].capitalize(), *taken[1:]], 2000)
    syllables = tokenizer.vocabulary[11:]
    assert len(syllables) == len(set(syllables) - set(taken)) == 2000
    assert all(syllable.isascii() and syllable.islower() for syllable in syllables)
    assert list(syllables) != sorted(syllables)
    with pytest.raises(BadInput, match="9999 syllables"):
        WordTokens([], 9999)


# --- names ---


@settings(deadline=None)
@given(st.integers(0, 40))
def test_word_names(syllables: int) -> None:
    tokenizer = WordTokens(LEXICON, syllables)
    first, second = tokenizer.name_tokens(shared=True)
    assert first.tolist() == second.tolist()
    assert len(first) == syllables
    first, second = tokenizer.name_tokens(shared=False)
    assert len(first) == len(second) == syllables // 2
    assert not set(first.tolist()) & set(second.tolist())
    assert tokenizer.allowed(first, second).all()


@pytest.mark.parametrize("shared", [True, False])
def test_byte_names(shared: bool) -> None:
    tokenizer = ByteTokens(lexicon=["qx"])
    first, second = tokenizer.name_tokens(shared)
    assert (len(first), len(second)) == ((52, 52) if shared else (26, 26))
    allowed = tokenizer.allowed(first, second)
    names = {bytes([a, b]).decode() for (i, a) in enumerate(first) for (j, b) in enumerate(second) if allowed[i, j]}
    assert "Xq" in names
    assert not names & {"Qx", "qX", "Is", "is", "iS", "Me", "OK"}
    assert len(names) > 0.9 * len(first) * len(second)


def test_bpe_names_are_two_tokens(trained: BpeTokens) -> None:
    first, second = trained.name_tokens(shared=False)
    allowed = trained.allowed(first, second)
    texts = [trained.vocabulary[each] for each in first], [trained.vocabulary[each] for each in second]
    assert {"Mi", "N"} < set(texts[0])
    assert {"lo", "a"} < set(texts[1])
    assert len(set(texts[0] + texts[1])) == len(first) + len(second)
    for i, a in enumerate(first.tolist()):
        for j, b in enumerate(second.tolist()):
            name = texts[0][i] + texts[1][j]
            assert name.isalpha()
            assert name == name.capitalize()
            two = trained.encode(pieces(f"The \"{name}'s")) == [
                *trained.encode(["The", " ", '"']),
                [a, b],
                *trained.encode(["'s"]),
            ]
            assert allowed[i, j] == (two and name != "Milo")
    assert 0.3 < allowed.mean() < 1
    assert trained.allowed(first[2:5], second[::-1]).tolist() == allowed[2:5, ::-1].tolist()
    with pytest.raises(BadInput, match="not allowed with BPE"):
        trained.name_tokens(shared=True)


# --- training ---

_PRINT = "import sys; from lab.tasks.tokenizers import train_bpe; sys.stdout.write(train_bpe([sys.argv[1]] * 3, 400))"


def test_training_is_deterministic() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", _PRINT, STORY],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONUTF8": "1", "TOKENIZERS_PARALLELISM": parallel},
            capture_output=True,
            check=True,
        ).stdout.decode()
        for seed, parallel in (("1", "true"), ("2", "false"))
    ]
    assert outputs[0] == outputs[1] == train_bpe([STORY] * 3, 400)
    assert BpeTokens(outputs[0]).vocabulary == bpe().vocabulary


def test_damaged_json() -> None:
    with pytest.raises(ValueError, match="not a tokenizer"):
        BpeTokens("{}")


def test_forgetting_changes_nothing(trained: BpeTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained.encode(pieces(STORY))
    monkeypatch.setattr("lab.tasks.tokenizers._REMEMBERED", 3)
    np.testing.assert_equal([trained.encode(pieces(STORY)) for _ in range(3)], [expected] * 3)
