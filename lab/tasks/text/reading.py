"""Two rules for stories: the words that are names of its characters, and the places where it can be split.

    text          One day Tom saw a ball . Then Anna met Tom .      (Anna occurs once, so she keeps her name)
    characters                1                              1

A name is a capitalised word (at least two letters, not joined to another) that occurs twice or more in the
story, at least once in mid-sentence (after a word or a comma), whose small-letter form makes up at most 1 % of its
occurrences in all stories, and that is not in a short list of titles, days, months, feasts and the like (`NOT_NAMES`).
The eight most frequent names of a story are its characters; of equally frequent ones, those that come first.

Text is given as numbers of `pieces`, so that both rules are array arithmetic. Piece 0 ends a story.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.tasks.letters import is_letter, is_lost
from lab.tasks.tokenizers import CAPITALISED, CLITIC

CHARACTERS = 8
"""The largest number of characters of a story."""
SMALL_LETTERS = 0.01
"""The largest share of a name's occurrences that may be in small letters."""
_NOT_NAMES = """
    Mr Mrs Ms Miss Mister Dr Sir Madam Lady Lord King Queen Prince Princess Saint St Captain Uncle Aunt
    Mom Mommy Mum Mummy Mama Dad Daddy Papa Grandma Grandpa Granny Mother Father
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
    January February March April May June July August September October November December
    God Christmas Easter Halloween Thanksgiving Santa English French German Spanish Chinese America American
    Ok Okay Oh Ah Hi Hey Hello Bye Yes No
"""
NOT_NAMES = frozenset(_NOT_NAMES.split())
"""Words that are never names."""

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Kinds:
    """Properties of K pieces, [K] each. Piece 0 is a story's end and has none of them."""

    name: Bools
    """May be a name, by the piece itself and its occurrences in all files."""
    begins: Bools
    """Begins with a letter, or with a replacement for a lost one."""
    ends: Bools
    """Ends with a letter."""
    inside: Bools
    """A word or a comma, after which a sentence continues."""
    small: Bools
    """A word that begins with a small letter."""
    space: Bools
    """A space of any width."""
    white: Bools
    """A space or other white space."""
    stop: Bools
    """Ends a sentence."""
    closer: Bools
    """Closes a quotation or bracket, which belongs to the sentence before."""


def kinds(texts: list[str], counts: I64) -> Kinds:
    """Return the properties of pieces, given their `texts` [K] and their `counts` [K] in all files."""
    ids = {text: piece for piece, text in enumerate(texts)}

    def is_name(text: str) -> bool:
        if not CAPITALISED.fullmatch(text) or text in NOT_NAMES:
            return False
        small = sum(int(counts[ids[form]]) for form in (text.lower(), " " + text.lower()) if form in ids)
        return small <= SMALL_LETTERS * (small + int(counts[ids[text]]))

    def where(holds: Callable[[str], bool]) -> Bools:
        return np.fromiter(map(holds, texts), np.bool_, len(texts))

    return Kinds(
        name=where(is_name),
        begins=where(lambda text: is_letter(text[:1]) or (is_lost(text[:1]) and not CLITIC.match(text))),
        ends=where(lambda text: is_letter(text[-1:])),
        inside=where(lambda text: is_letter(text[-1:]) or text == ","),
        small=where(lambda text: text.lstrip(" ")[:1].islower()),
        space=where(lambda text: len(text) == 1 and unicodedata.category(text) == "Zs"),
        white=where(str.isspace),
        stop=where(lambda text: text in (".", "!", "?", "…")),
        closer=where(lambda text: text in ('"', "'", "”", "’", ")", "]", "»")),
    )


def _before(values: NDArray[Any], by: int = 1) -> NDArray[Any]:
    """Return the value `by` places before each one; zeros at the beginning."""
    return np.concatenate([np.zeros(by, values.dtype), values[:-by]])


def _after(values: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([values[1:], np.zeros(1, values.dtype)])


def characters(text: NDArray[np.uint32], kind: Kinds) -> U8:
    """Return the characters that pieces name.

    Args:
        text: [P] numbers of pieces; after each story comes a 0.
        kind: the properties of the pieces.

    Returns:
        [P] 1 + c where a piece is the name of its story's character c, else 0.
    """
    may_be = kind.name[text] & ~_before(kind.ends[text]) & ~_after(kind.begins[text])
    word_or_comma = kind.inside[text]
    inside = _before(word_or_comma) | (_before(kind.space[text]) & _before(word_or_comma, 2))
    story = np.cumsum(_before(text == 0))

    places = np.flatnonzero(may_be)
    name = story[places] * len(kind.name) + text[places]
    _, first, which, times = np.unique(name, return_index=True, return_inverse=True, return_counts=True)
    kept = np.flatnonzero((times >= 2) & (np.bincount(which, inside[places], len(times)) > 0))
    first = first[kept]  # in `places`, which are in order
    order = np.lexsort((first, -times[kept], story[places[first]]))
    number = np.zeros(len(times), np.int64)
    number[kept[order]] = 1 + rank(story[places[first[order]]])
    who = np.zeros(len(text), np.uint8)
    who[places] = np.where(number > CHARACTERS, 0, number)[which]
    return who


def parts(text: NDArray[np.uint32], kind: Kinds, at: I64, limit: int) -> tuple[I64, I64, I64]:
    """Return the parts of stories, split at the last end of a sentence that fits, else between pieces, else anywhere.

    White space at a split is dropped.

    Args:
        text: [P] numbers of pieces; after each story comes a 0.
        kind: of the pieces.
        at: [P + 1] where each piece's tokens begin.
        limit: the most tokens of a part.

    Returns:
        For each part, in order, where it begins, where it ends, and the number of its story.
    """
    visible = ~kind.white[text]
    latest = np.maximum.accumulate(np.where(visible, np.arange(len(text)), 0))
    ended = kind.stop[text]
    for _ in range(2):  # a quotation in brackets
        ended = ended | (kind.closer[text] & _before(ended))
    between = _after(visible)
    sentences = between & ended[latest] & ~_after(ended) & ~_after(kind.small[text])
    cuts = [
        (np.concatenate([at[:1], at[latest[here] + 1]]), np.concatenate([at[:1], at[here + 1]]))
        for here in map(np.flatnonzero, (between, sentences))
    ]

    last = np.flatnonzero(text == 0)
    end = at[last]
    begin = np.concatenate([at[:1], at[last[:-1] + 1]])
    story = np.arange(len(last))
    found: list[tuple[I64, I64, I64]] = []
    while len(story):
        reach = begin + limit
        stop, follows = reach.copy(), reach.copy()
        for stops, nexts in cuts:  # the later, the better
            k = np.searchsorted(stops, reach, side="right") - 1
            fits = stops[k] > begin
            stop[fits], follows[fits] = stops[k[fits]], nexts[k[fits]]
        stop = np.where(end <= reach, end, stop)
        found.append((begin, stop, story))
        more = end > reach
        begin, end, story = follows[more], end[more], story[more]
    begins, ends, stories = map(np.concatenate, zip(*found, strict=True))
    order = np.argsort(begins, kind="stable")
    return begins[order], ends[order], stories[order]


def rank(groups: I64) -> I64:
    """Return the position [N] of each element within its group, from 0 on; groups are in ascending order."""
    return np.arange(len(groups)) - np.searchsorted(groups, groups)


def ragged(starts: I64, lengths: I64) -> I64:
    """Return start, start + 1, … for each start [N], as many numbers as its length, concatenated."""
    return np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
