"""Hold-out: find the questions that a split must not contain by their hashes, and draw them again."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

LARGE = 10_000
"""The least size of a space of questions from which evaluation questions are kept out of training."""


class KeySet:
    """A set of hashes with a fast test for hashes that are not in it."""

    def __init__(self, keys: NDArray[np.uint64]) -> None:
        self.keys = np.sort(keys)
        bits = min(max(16 * len(keys), 2).bit_length(), 28)
        self._shift = np.uint64(64 - bits)
        self._maybe = np.zeros(1 << bits, np.bool_)  # by the leading bits of a hash
        self._maybe[keys >> self._shift] = True

    def positions(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the positions of those `keys` [N] that are in the set."""
        maybe = np.flatnonzero(self._maybe[keys >> self._shift])
        candidates = keys[maybe]
        found = self.keys.searchsorted(candidates, "right") > self.keys.searchsorted(candidates, "left")
        return maybe[found]


@dataclass(frozen=True)
class Questions:
    """N questions. Subclasses add arrays, whose first axis is also N."""

    keys: NDArray[np.uint64]
    """[N] a hash of each question."""


QuestionsT = TypeVar("QuestionsT", bound=Questions)


def redrawn(
    questions: QuestionsT,
    unwanted: Callable[[QuestionsT], NDArray[np.int64]],
    draw: Callable[[int, NDArray[np.int64]], QuestionsT],
) -> QuestionsT:
    """Return the questions after replacing the unwanted ones in place.

    Args:
        questions: N questions.
        unwanted: returns the rows of questions that have to be replaced.
        draw: returns new questions for some rows; its first argument is the number of the attempt, from 1 on.
    """
    rows, attempt = unwanted(questions), 0
    while len(rows):
        attempt += 1
        again = draw(attempt, rows)
        for field in fields(questions):
            getattr(questions, field.name)[rows] = getattr(again, field.name)
        rows = rows[unwanted(again)]
    return questions
