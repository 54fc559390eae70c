"""The phrases of the simulator, compiled: every sentence is a row of pieces and slots.

    sentence    {S} gave the {t} to {B}.
    row         X X X X  S S S  gave  the  t  to  B B  .

A piece is a word with the space before it, or punctuation; a slot is one or more places whose pieces are filled in.
"""

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lab.tasks.stories.names import REFRAIN
from lab.tasks.stories.phrases import (
    DREAMS,
    EVENTS,
    FOODS,
    KINDS,
    LOOKS,
    MANNERS,
    MOODS,
    OPENINGS,
    PACES,
    PLACES,
    TASTES,
    TOYS,
    TRAITS,
    WEATHERS,
)
from lab.tasks.tokenizers import pieces

WORD_SLOTS = {
    "trait": "trait", "traitB": "trait", "kind": "kind", "kindB": "kind", "t": "thing", "adj": "look",
    "p": "place", "in": "in", "q": "place", "inq": "in", "Inq": "In",
    "mood": "mood", "weather": "weather", "how": "how", "pace": "pace", "dream": "dream",
    "he": "he", "his": "his", "him": "him", "heB": "he", "himB": "him", "himD": "him",
}  # fmt: skip
"""The slots of one word, and the list of words of each."""
SLOT_WIDTHS = {"X": 4, "S": 3, "N": 3, "A": 2, "B": 2, "D": 2, "magic": 2 * REFRAIN} | dict.fromkeys(WORD_SLOTS, 1)
"""The number of places of each slot."""
SLOTS = dict(zip(SLOT_WIDTHS, itertools.accumulate(SLOT_WIDTHS.values(), initial=0), strict=False))
"""The first place of each slot in a sentence's row of values."""
EVENT_NUMBERS = {name: number for number, name in enumerate(EVENTS)}


@dataclass(frozen=True)
class Phrasebook:
    """The phrases as numbers of pieces; piece 0 is empty."""

    pieces: tuple[str, ...]
    sentences: NDArray[np.int32]
    """[P, L]: a piece, or -1 - the place of a slot's value; 0 beyond the end."""
    first: NDArray[np.int64]
    """[events] the first sentence of each event; its others follow."""
    count: NDArray[np.int64]
    """[events] the number of sentences of each event."""
    weight: NDArray[np.uint32]
    """[events] the weight of each event among the possible ones."""
    has: dict[str, NDArray[np.bool_]]
    """[P] for S, N, A, B and D: True if a sentence has the slot."""
    hours: NDArray[np.int64]
    """[openings, 2] the first and the last hour at which each opening is possible."""
    becomes: NDArray[np.int64]
    """[openings] the hour after the opening; -1 for no change."""
    words: dict[str, NDArray[np.int32]]
    """The pieces of each list of words, in order; "X" is [openings, 4]."""


class _Numbering:
    """Numbers pieces in order of their first use."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {"": 0}

    def piece(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    def table(self, texts: list[str]) -> NDArray[np.int32]:
        return np.array([self.piece(text) for text in texts], np.int32)

    def sentence(self, event: str, sentence: str) -> list[int]:
        """Return the row of a sentence: pieces, and negative numbers for slots."""
        codes: list[int] = []
        text = sentence if event == "begin" or sentence.startswith(("{S}", "{N}")) else " " + sentence
        parts = re.split(r"\{(\w+)\}", text)
        for literal, slot in zip(parts[::2], [*parts[1::2], ""], strict=True):
            # The pieces of words begin with the space before them.
            spaced = slot in WORD_SLOTS and slot != "Inq"
            assert not spaced or literal.endswith(" "), sentence
            codes += map(self.piece, pieces(literal[:-1] if spaced else literal))

            # A slot's places; those of an opening stand before a subject.
            if slot == "S":
                codes += _places("X")
            if slot:
                codes += _places(slot)
        return codes


def _places(slot: str) -> range:
    """Return the codes of a slot's places."""
    return range(-1 - SLOTS[slot], -1 - SLOTS[slot] - SLOT_WIDTHS[slot], -1)


@lru_cache(maxsize=1)
def phrasebook() -> Phrasebook:
    """Compile the phrases."""
    # The sentences, in order of their events.
    numbering = _Numbering()
    sentences: list[str] = []
    rows: list[list[int]] = []
    for event, (_, phrases) in EVENTS.items():
        sentences += phrases
        rows += [numbering.sentence(event, phrase) for phrase in phrases]
    counts = np.array([len(phrases) for _, phrases in EVENTS.values()])

    # The openings, and the lists of words.
    openings: list[list[int]] = []
    for text in OPENINGS:
        openings.append([numbering.piece(piece) for piece in pieces(" " + text if text else "")])
    spaced = {
        "kind": KINDS, "trait": TRAITS, "thing": (*TOYS, *FOODS), "look": (*LOOKS, *TASTES), "mood": MOODS,
        "how": MANNERS, "pace": PACES, "dream": DREAMS, "weather": WEATHERS, "place": PLACES, "in": PLACES.values(),
    }  # fmt: skip
    words = {"X": _padded(openings, SLOT_WIDTHS["X"]), "space": numbering.table([" "])}
    for name, texts in spaced.items():
        words[name] = numbering.table([f" {text}" for text in texts])
    words |= {
        "In": numbering.table([preposition.capitalize() for preposition in PLACES.values()]),
        "he": numbering.table([" he", " she"]),
        "He": numbering.table(["He", "She"]),
        "his": numbering.table([" his", " her"]),
        "him": numbering.table([" him", " her"]),
    }
    return Phrasebook(
        pieces=tuple(numbering.numbers),
        sentences=_padded(rows, max(map(len, rows))),
        first=np.cumsum(counts) - counts,
        count=counts,
        weight=np.array([weight for weight, _ in EVENTS.values()], np.uint32),
        has={slot: np.char.find(sentences, f"{{{slot}}}") >= 0 for slot in "SNABD"},
        hours=np.array([hours[:2] for hours in OPENINGS.values()]),
        becomes=np.array([-1 if hour is None else hour for _, _, hour in OPENINGS.values()]),
        words=words,
    )


def _padded(rows: list[list[int]], width: int) -> NDArray[np.int32]:
    """Return rows [N, width], padded with 0."""
    return np.array([row + [0] * (width - len(row)) for row in rows], np.int32)


def lexicon() -> tuple[str, ...]:
    """Return every piece of the stories except names."""
    return phrasebook().pieces[1:]
