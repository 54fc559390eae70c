"""Classes of letters, apostrophes and invisible characters, and one canonical form of text.

Names are words with a capital, so the alphabets that count are those with capitals: Latin, Greek, Cyrillic, Armenian.
Their letters are those of Unicode 3.2, which Python keeps beside its newest table, so that every version of Python cuts
text in the same way.

A character class below is the inside of a regular expression's brackets.
"""

import re
import unicodedata
from collections.abc import Iterable


def _ranges(characters: Iterable[str]) -> str:
    """Return the character class of characters that are given in ascending order."""
    found: list[list[str]] = []
    for each in characters:
        if found and ord(found[-1][1]) == ord(each) - 1:
            found[-1][1] = each
        else:
            found.append([each, each])
    return "".join(f"{first}-{last}" for first, last in found)


_BEYOND_LATIN_1 = [chr(code) for code in (*range(0x100, 0x2150), *range(0xFB00, 0xFFF0))]
_CATEGORY = {each: unicodedata.ucd_3_2_0.category(each) for each in _BEYOND_LATIN_1}

UPPER = "A-ZÀ-ÖØ-Þ" + _ranges(each for each in _BEYOND_LATIN_1 if _CATEGORY[each] in ("Lu", "Lt"))
"""Capital letters."""
LOWER = "a-zß-öø-ÿ" + _ranges(each for each in _BEYOND_LATIN_1 if _CATEGORY[each] == "Ll")
"""Small letters."""
CASELESS = _ranges(each for each in _BEYOND_LATIN_1 if each < "\u2000" and _CATEGORY[each] not in ("Lu", "Lt", "Ll"))
"""Other characters from U+0100 to U+1FFF: the alphabets without capitals."""
MARKS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\ufe20-\ufe2f"
"""Accents that stand on the letter before them; in `canonical_text`, where no letter is composed of both."""
APOSTROPHES = "'’‘ʼʻ＇´`\ufffd"
"""Apostrophes in all their forms, U+FFFD among them: in text that was broken it mostly was one."""
INNER = f"{APOSTROPHES}·‧\ue000-\uf8ff"
"""Characters that are part of a word where letters stand on both sides; U+E000 on are letters of some font alone."""

_INVISIBLE = (
    "\0-\x08\x0e-\x1f\x7f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff"
)
"""Characters that show nothing and are no white space: Unicode's Default_Ignorable_Code_Point, and controls."""
_PRESENTED = "\ufb00-\ufb06\uff21-\uff3a\uff41-\uff5a"
"""Latin ligatures and full-width letters."""
_MISREAD = {code: bytes([code]).decode("cp1252", "replace") for code in range(0x80, 0xA0) if code != 0x85}
"""Windows-1252's quotation marks and dashes that were read as Latin-1. (U+0085 may be meant: it ends a line.)"""
_BLANK = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\xad\u200b\u200e\u200f\u2060\ufeff"
"""Characters that mean nothing at the ends of a text."""

_LETTER = f"{UPPER}{LOWER}{MARKS}"
_ODD = re.compile(f"[{_INVISIBLE}{_PRESENTED}{_ranges(map(chr, _MISREAD))}]")
_PRESENTATION = re.compile(f"[{_PRESENTED}]+")
_AT_A_LETTER = re.compile(f"(?<=[{_LETTER}])[{_INVISIBLE}]+|[{_INVISIBLE}]+(?=[{_LETTER}])")


def canonical_text(text: str) -> str:
    """Return a text in its canonical form, in which the same words have the same characters.

    Letters are composed (NFC), ligatures and full-width ones are the letters that they stand for, and invisible
    characters at a letter are left out: soft hyphens, joiners, zero-width spaces, marks of direction, byte-order marks,
    controls. Elsewhere these may mean something, as between emoji or in Persian, and stay. Lines end in "\\n". White
    space at the ends of the text is left out.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if _ODD.search(text):
        text = _PRESENTATION.sub(lambda letters: unicodedata.normalize("NFKC", letters[0]), text.translate(_MISREAD))
        text = _AT_A_LETTER.sub("", text)
    return unicodedata.normalize("NFC", text).strip(_BLANK)


def is_letter(character: str) -> bool:
    """Return True if a character is a letter or belongs to one; apostrophes do not, though Unicode has them so."""
    if not character or character in APOSTROPHES:
        return False
    category = unicodedata.category(character)
    return category[0] in "LM" or category == "Cf"


def is_lost(character: str) -> bool:
    """Return True if a character stands for one that was lost: U+FFFD, or a letter that some font alone has."""
    return character != "" and (character == "\ufffd" or unicodedata.category(character) == "Co")
