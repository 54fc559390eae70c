"""Text of the real world: words are words whatever stands in them, and what is renamed is renamed whole."""

import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.tasks.letters import APOSTROPHES, canonical_text
from lab.tasks.stories.induction import StoryTask
from lab.tasks.stories.names import Names
from lab.tasks.text.task import TextSource
from lab.tasks.tokenizers import Bpe, Bytes, Words, pieces
from tests.tasks.test_text import cache, config, names_found, told

assert cache  # the fixture, used by itself

INVISIBLE = {
    "soft hyphen": "\xad", "zero-width space": "\u200b", "non-joiner": "\u200c", "joiner": "\u200d",
    "word joiner": "\u2060", "byte-order mark": "\ufeff", "left to right": "\u200e", "right to left": "\u200f",
    "embedding": "\u202a", "pop": "\u202c", "isolate": "\u2066", "pop isolate": "\u2069", "grapheme joiner": "\u034f",
    "vowel separator": "\u180e", "variation selector": "\ufe0f", "another": "\U000e0100", "function": "\u2061",
    "tag": "\U000e0061", "filler": "\u3164", "annotation": "\ufff9", "unit separator": "\x1f", "backspace": "\b",
    "null": "\0", "delete": "\x7f", "several": "\u200b\xad\ufeff",
}  # fmt: skip
SPOKEN = (
    "Story {number}. One day {0} sat with Tom. “Hi, {1}!” said Tom; {2}’s hat fell, and Tom saw {3}. {4} ran, then Tom."
)


@pytest.mark.parametrize("name", INVISIBLE)
def test_invisible_characters_are_no_part_of_a_word(name: str) -> None:
    odd = INVISIBLE[name]
    assert canonical_text(f"Li{odd}ly, {odd}Lily{odd} and Li{odd}{odd}ly") == "Lily, Lily and Lily"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Zoe\u0308 naïve", "Zoë naïve"),
        ("e\u200d\u0301", "é"),
        ("Ｌｉｌｙ", "Lily"),
        ("Soﬁa, oﬃce", "Sofia, office"),
        ("Lily\x92s \x93hat\x94 \x96 no\x85", "Lily’s “hat” – no"),
        ("a\r\nb\rc\n", "a\nb\nc"),
        ("\ufeff \u200b“a”\xa0\u2060\n", "“a”"),
        ("👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3", "👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3"),  # they are one picture
        ("می\u200cخواهم", "می\u200cخواهم"),  # they are one word
        ("plain text — “as” it ’s, 1 2\n\n", "plain text — “as” it ’s, 1 2"),
    ],
)
def test_one_form(written: str, read: str) -> None:
    assert canonical_text(written) == read


@given(st.text(st.characters(codec="utf-8")))
def test_a_text_in_its_form_stays(text: str) -> None:
    once = canonical_text(text)
    assert canonical_text(once) == once
    assert unicodedata.is_normalized("NFC", once)


@given(st.text(st.sampled_from("".join(map(chr, range(0x20, 0x7F))) + "àéîöüßÿÀÉÎÖÜÞ’“”–—…€\n")))
def test_plain_text_is_read_as_it_stands(text: str) -> None:
    assert canonical_text(text) == text.strip()


LATIN_1 = re.compile(
    "(?: ?[a-zß-öø-ÿ]+|[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ]*)(?:(?!['’](?:s|d|ll|re|ve)(?![a-zß-öø-ÿ]))['’][a-zß-öø-ÿ]+)*"
    "|['’](?:s|d|ll|re|ve)(?![a-zß-öø-ÿ])|[\\s\\S]"
)
"""How plain text was cut before other alphabets were: what was trained on it keeps its tokens."""


@given(st.text(st.sampled_from("".join(map(chr, range(0x100))).translate(dict.fromkeys(map(ord, "·´`"))) + "’“”–…€\n")))
def test_plain_text_is_cut_as_it_was(text: str) -> None:
    assert pieces(text) == LATIN_1.findall(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Łukasz i Żaneta", "Łukasz| i| |Żaneta"),
        ("Ἀθηνᾶ καὶ Ἑρμῆς", "Ἀθηνᾶ| καὶ| |Ἑρμῆς"),
        ("Иван и Мария-Анна", "Иван| и| |Мария|-|Анна"),
        ("Đặng thị Ánh", "Đặng| thị| |Ánh"),
        ("Անի և Արամ", "Անի| և| |Արամ"),
        ("Li\u0327ly x\u030c", "Li\u0327ly| x\u030c"),
        ("don’t donʼt don‘t don＇t don´t don`t", "don’t| donʼt| don‘t| don＇t| don´t| don`t"),
        ("Mira’s Miraʼs Mira＇s", "Mira|’s| |Mira|ʼs| |Mira|＇s"),
        ("col·lega hy‧phen", "col·lega| hy‧phen"),
        ("שלום רב and مرحبا بك", "שלום| רב| and| مرحبا| بك"),
    ],
)
def test_pieces_of_other_alphabets(text: str, parts: str) -> None:
    assert pieces(text) == parts.split("|")


def belongs_to_a_word(character: str) -> bool:
    """As Unicode's annex 29 has it of what stands between letters: other letters, marks and formats do not part."""
    category = unicodedata.category(character)
    return category[0] in "LM" or category in ("Cf", "Co") or character in f"{APOSTROPHES}·‧"


def test_no_character_leaves_half_of_a_name() -> None:
    """All characters of the basic plane, and some beyond it, between the halves of a name."""
    every = [chr(code) for code in (*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, sys.maxunicode, 97))]
    between = [each for each in every if belongs_to_a_word(each)]
    stories = [canonical_text(f"So Li{each}ly sat, and Li{each}ly ran, Li{each}ly.") for each in between]
    names = names_found(stories)
    assert [each for each, found in zip(between, names, strict=True) if "Li" in found] == []
    assert sum(found != [] for found in names) > 1000  # accents, and letters of all alphabets with capitals


def test_a_name_is_renamed_whole_at_every_mention(tmp_path: Path) -> None:
    """Each mention of each story is written in another way; all are the same name."""
    ways = ["Lily", *(f"Li{odd}ly" for odd in INVISIBLE.values() if odd != "\0"), "Ｌｉｌｙ", "Lil\u00ady\u200b"]
    stories = [
        SPOKEN.format(*(ways[(number + 7 * k) % len(ways)] for k in range(5)), number=number) for number in range(120)
    ]
    path = tmp_path / "odd.txt"
    path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    whole = {SPOKEN.format(*["⟨1⟩⟨2⟩"] * 5, number=number).replace("Tom", "⟨3⟩⟨4⟩") for number in range(120)}
    found = told(TextSource(config(path)), "train")
    assert len(found) > 60
    assert set(found) <= whole


@pytest.mark.parametrize("kind", [Words(), Bytes(), Bpe()], ids=lambda kind: kind.name)
def test_the_record_s_names_are_those_in_the_text(tmp_path: Path, kind: Words | Bytes | Bpe) -> None:
    names = ["Łu\u00adkasz", "Ива\u200bн", "Li\u0327ly", "Zoe\u0308", "Ἀθηνᾶ"]
    stories = [
        SPOKEN.format(*[names[number % 5]] * 5, number=number).replace("Tom", names[(number + 1) % 5])
        for number in range(120)
    ]
    path = tmp_path / "odd.txt"
    path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    task = StoryTask(TextSource(config(path, tokens={"name": kind.name})), Names(), kind)
    examples = task.examples("test", np.arange(20), 0)
    for row in range(20):
        record = task.record(examples, row)
        assert len(record["names"]) == 2
        assert len(record["mentions"]) == 9
        rest = record["text"]
        for name in record["names"]:
            assert rest.count(name) >= 4
            rest = rest.replace(name, "")
        assert not any(part in rest for part in ("kasz", "Ива", "ly", "Zo", "θηνᾶ"))
