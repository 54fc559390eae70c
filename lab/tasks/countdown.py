"""Countdown: reach a number with given ones by arithmetic (Gandhi et al. 2024, arXiv 2404.03683, without the search).

A row gives some numbers and a target, then equations that use every number and every result once, until only the target
is left. `pause` tokens (`_`) stand before the colon:

    question                answer (scored)
    6 3 25 4 > 91 _ _ :     25 * 4 = 100 , 6 + 3 = 9 , 100 - 9 = 91 .

Each equation is easy by itself, but the first one has to be chosen with the last one in view. Models that do not plan
ahead write true equations and miss the target (NextLat, arXiv 2511.05963; arXiv 2604.11912).

Every number (given, intermediate or target) is one token, an integer from 1 to `largest`. Rows are random games. Each
step joins two of the numbers at hand by an operation; numbers and operation are drawn uniformly. The result has to be
an integer in that range, and multiplication and division by 1 are excluded. The last result is the target; a game whose
target is below `LEAST_TARGET` is drawn again.

Every solution is right: an answer is valid if each equation is true and uses numbers at hand, and the last one gives
the target. The answer that the model generates is scored (`GeneratedAnswers`).

Hold-out: a question is its numbers, in any order, and its target. Hold-out applies where there are at least `LARGE`
sets of numbers, and at least four times as many as evaluation questions. Then a validation question that is also a test
question, and a training question that is either, is drawn again. Smaller spaces are shared by all splits, and scores
are split into questions seen and unseen in training.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lab.config import Config
from lab.tasks.base import Examples, Split, Task, check_indices
from lab.tasks.draws import below, draws32, mixed, stream
from lab.tasks.holdout import LARGE, KeySet, Questions, redrawn
from lab.tasks.scoring import Answers, Curve, Group, Metrics

LEAST_TARGET = 10
"""The smallest target, as in the paper."""

_OPERATORS = ("+", "-", "*", "/")
_NUMBER, _TARGET = (stream("countdown", "hash", part) for part in ("number", "target"))
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Countdown(Config):
    """Reaching a number with given ones by arithmetic."""

    name: Literal["countdown"] = "countdown"
    numbers: int = Field(default=4, ge=2, le=8)
    """Given numbers; an answer has one equation less."""
    largest: int = Field(default=100, ge=20, le=1000)
    """The largest number: given, intermediate or target."""
    pause: int = Field(default=0, ge=0, le=1000)
    """Pause tokens between the question and the colon."""
    loss: Literal["all", "answer"] = "answer"
    """The tokens that the loss covers: all, or the equations only."""
    validation_examples: int = Field(default=1000, ge=1, le=1_000_000)
    """Validation questions."""
    test_examples: int = Field(default=2000, ge=1, le=1_000_000)
    """Test questions."""

    def build(self) -> "CountdownTask":
        """Return the task of this config."""
        return CountdownTask(self)


@dataclass(frozen=True)
class _Games(Questions):
    """N questions with solutions."""

    numbers: NDArray[np.int64]
    """[N, numbers]"""
    equations: NDArray[np.int64]
    """[N, numbers - 1, 4] left operand, operator (an index of `_OPERATORS`), right operand, result."""


class CountdownTask(Task):
    """Countdown as a task; see the module's documentation."""

    def __init__(self, config: Countdown) -> None:
        self.config = config
        largest, equations = config.largest, config.numbers - 1
        self.metrics = Metrics(
            metric="valid",
            baselines=("chance", "shortcut", "oracle"),
            groups=(Group("equation", values=("all", *range(1, config.numbers)), margin=False),),
            curves=(
                Curve(("valid", "chance"), {"equation": "all"}),
                Curve(("valid", "chance"), each="equation", name="{measure}_equation_{equation}"),
            ),
            token_types=("number", "sign", "target", "pause", "operand", "operator", "result", "end"),
        )
        self.vocabulary = (*map(str, range(1, largest + 1)), *_OPERATORS, "=", ",", ".", ">", ":", "_")
        """The token of number i is i - 1."""
        self._first_operator = largest
        self._equals, self._comma, self.end, self._reach, self._colon, self._pause = range(largest + 4, largest + 10)
        self._answer = config.numbers + 3 + config.pause
        """The first position of the answer."""
        self.longest_answer = 6 * equations
        plan = [
            *["number"] * config.numbers, "sign", "target", *["pause"] * config.pause, "sign",
            *["operand", "operator", "operand", "sign", "result", "sign"] * equations,
        ]  # fmt: skip
        plan[-1] = "end"
        self._plan = np.array([self.token_types.index(kind) for kind in plan], np.uint8)
        sets = math.comb(largest + config.numbers - 1, config.numbers)
        self._large = sets >= max(LARGE, 4 * (config.validation_examples + config.test_examples))

    def size(self, split: Split) -> int | None:
        """Return the number of examples in a split; None for training, which is unlimited."""
        sizes = {"train": None, "validation": self.config.validation_examples, "test": self.config.test_examples}
        return sizes[split]

    def max_length(self, split: Split) -> int:
        """Return the number of tokens of every example."""
        return len(self._plan)

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """Return the examples of a split at `indices` [N]; see `Task.examples`.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """
        games = self._games(split, indices, seed)
        count, columns = len(indices), np.arange(len(self._plan))
        tokens = np.empty((count, len(columns)), np.uint16)
        given = self.config.numbers
        tokens[:, :given] = games.numbers - 1
        tokens[:, given] = self._reach
        tokens[:, given + 1] = games.equations[:, -1, 3] - 1
        tokens[:, given + 2 : self._answer - 1] = self._pause
        tokens[:, self._answer - 1] = self._colon
        tokens[:, self._answer :] = self._written(games.equations)
        answer = np.broadcast_to(columns >= self._answer, tokens.shape)
        remaining = np.where(
            columns >= self._answer, len(columns) - columns, 1
        )  # a wrong token makes those after it wrong
        return Examples(
            tokens=tokens,
            lengths=np.full(count, len(columns)),
            loss_mask=answer.copy() if self.config.loss == "answer" else np.ones(tokens.shape, np.bool_),
            score_mask=answer.copy(),
            slices={},
            fingerprints=games.keys[:, None],
            token_features={},
            horizons=np.broadcast_to(remaining, tokens.shape).astype(np.uint8),
        )

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Return the role of each token [N, L]; see `Task.token_type`."""
        return np.broadcast_to(self._plan, examples.tokens.shape).copy()

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Return example `row` as `numbers`, `target`, `equations`, `text` and `tokens`.

        Equations are `[left, operator, right, result]`.
        """
        tokens = examples.tokens[row].tolist()
        given, answer = self.config.numbers, tokens[self._answer :]
        equations = [
            [answer[place] + 1, self.vocabulary[answer[place + 1]], answer[place + 2] + 1, answer[place + 4] + 1]
            for place in range(0, len(answer), 6)
        ]
        return {
            "numbers": [token + 1 for token in tokens[:given]],
            "target": tokens[given + 1] + 1,
            "equations": equations,
            "text": self.text(tokens),
            "tokens": tokens,
        }

    def prompts(self, examples: Examples) -> NDArray[np.int64]:
        """Return the length [N] of each question with its colon; see `GeneratedAnswers.prompts`."""
        return np.full(len(examples.tokens), self._answer)

    def answers(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> Answers:
        """Return a row for each answer, and one for each of its beginnings; see `Task.answers`.

        `predicted` [N, A] are generated answers (`GeneratedAnswers`).

        - `equation`: "all" for the whole answer, i for its first i equations.
        - `valid`: True if the equations are true and use numbers at hand, and the whole answer gives the target.
        - `chance`: `valid` of a random game, played as the examples' games are, on the same question.
        - `shortcut`: the same, but the last two numbers give the target if any operation does.
        - `oracle`: `valid` of the example's own answer.
        """
        # Answers to the same questions by the model and by each baseline.
        given = self.config.numbers
        numbers = examples.tokens[:, :given].astype(np.int64) + 1
        target = examples.tokens[:, given + 1].astype(np.int64) + 1
        random = draws32(stream("countdown", "guesses"), examples.fingerprints[:, 0].view(np.int64), 3 * (given - 1))
        answers = {
            "valid": predicted,
            "chance": self._written(self._played(numbers, random)),
            "shortcut": self._written(self._played(numbers, random, target)),
            "oracle": examples.tokens[:, self._answer :],
        }

        # One row for the whole answer, then one for each beginning.
        count = len(numbers)
        columns: Answers = {
            "equation": np.repeat(np.array(["all", *range(1, given)], object), count),
            "seen": np.tile(seen[:, 0], given),
        }
        for name, answer in answers.items():
            valid = self._judged(numbers, target, answer)  # the whole answer last
            columns[name] = np.roll(valid, 1, axis=1).T.reshape(-1)
        return columns

    def _written(self, equations: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Return the tokens [N, A] of equations [N, numbers - 1, 4]."""
        tokens = np.empty((*equations.shape[:2], 6), np.uint16)
        tokens[..., 0] = equations[..., 0] - 1
        tokens[..., 1] = equations[..., 1] + self._first_operator
        tokens[..., 2] = equations[..., 2] - 1
        tokens[..., 3] = self._equals
        tokens[..., 4] = equations[..., 3] - 1
        tokens[..., 5] = self._comma
        tokens[:, -1, 5] = self.end
        return tokens.reshape(len(equations), self.longest_answer)

    def _played(
        self, numbers: NDArray[np.int64], random: NDArray[np.uint32], target: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Return the equations [N, numbers - 1, 4] of random games.

        Args:
            numbers: [N, numbers] the given numbers.
            random: [N, 3 * (numbers - 1)] random numbers from which pairs and operations are drawn.
            target: [N] the result of the last equation wherever an operation gives it; None: the last one is random.
        """
        hand, rows = numbers.copy(), np.arange(len(numbers))
        equations = np.empty((len(numbers), numbers.shape[1] - 1, 4), np.int64)
        for played in range(equations.shape[1]):
            left = numbers.shape[1] - played  # numbers at hand, the first columns
            first = below(left, random[:, 3 * played]).astype(np.int64)
            second = below(left - 1, random[:, 3 * played + 1]).astype(np.int64)
            second += second >= first
            one, two = hand[rows, first], hand[rows, second]

            # Every operation's result; 0 where it is not allowed. One always is.
            high, low = np.maximum(one, two), np.minimum(one, two)
            results = np.stack([high + low, high - low, high * low * (low > 1), high // low * (low > 1)], axis=1)
            results[:, 3] *= high % low == 0
            results *= results <= self.config.largest
            options = results > 0
            if target is not None and left == 2:
                reaching = results == target[:, None]
                options = np.where(reaching.any(axis=1)[:, None], reaching, options)
            chosen = below(options.sum(axis=1), random[:, 3 * played + 2]).astype(np.int64)
            operator = (options.cumsum(axis=1) > chosen[:, None]).argmax(axis=1)

            # Sums and products are written in the order in which the numbers were drawn.
            ordered = operator % 2 == 1
            equations[:, played, 0] = np.where(ordered, high, one)
            equations[:, played, 1] = operator
            equations[:, played, 2] = np.where(ordered, low, two)
            equations[:, played, 3] = results[rows, operator]
            hand[rows, first] = results[rows, operator]
            hand[rows, second] = hand[:, left - 1]
        return equations

    def _judged(
        self, numbers: NDArray[np.int64], target: NDArray[np.int64], answers: NDArray[np.uint16]
    ) -> NDArray[np.bool_]:
        """Return [N, numbers] True if the first 1, 2, … equations of answers [N, A] are valid; last, if all are."""
        rows, largest = np.arange(len(numbers)), self.config.largest
        at_hand = np.zeros((len(numbers), len(self.vocabulary) + 1), np.int64)  # by number; signs are never at hand
        np.add.at(at_hand, (rows[:, None], numbers), 1)
        valid = np.ones(len(numbers), np.bool_)
        found = np.empty(numbers.shape, np.bool_)
        parts = answers.astype(np.int64).reshape(len(numbers), -1, 6)
        for place in range(parts.shape[1]):
            left, operator, right, equals, result, separator = parts[:, place].T
            left, right, result = left + 1, right + 1, result + 1
            ends = self.end if place == parts.shape[1] - 1 else self._comma
            valid &= (equals == self._equals) & (separator == ends) & (result <= largest)
            for number in (left, right):
                at_hand[rows, number] -= 1
                valid &= at_hand[rows, number] >= 0
            true = [left + right == result, left - right == result, left * right == result, left == right * result]
            kind = operator - self._first_operator
            valid &= np.select([kind == k for k in range(len(_OPERATORS))], true, False)
            at_hand[rows, np.where(valid, result, 0)] += 1
            found[:, place] = valid
        found[:, -1] = valid & (parts[:, -1, 4] + 1 == target)
        return found

    @cached_property
    def _test_keys(self) -> KeySet:
        return KeySet(self._games("test", np.arange(self.config.test_examples), 0).keys)

    @cached_property
    def _evaluation_keys(self) -> KeySet:
        validation = self._games("validation", np.arange(self.config.validation_examples), 0)
        return KeySet(np.concatenate([self._test_keys.keys, validation.keys]))

    def _games(self, split: Split, indices: NDArray[np.int64], seed: int) -> _Games:
        """Return the questions at `indices` [N], with replacements for held-out ones and for small targets."""
        check_indices(split, indices, self.size(split))
        names = ("countdown", split, seed) if split == "train" else ("countdown", split)
        held_out = None
        if split != "test" and self._large:
            held_out = self._test_keys if split == "validation" else self._evaluation_keys

        def unwanted(games: _Games) -> NDArray[np.int64]:
            small = games.equations[:, -1, 3] < LEAST_TARGET
            if held_out is not None:
                small[held_out.positions(games.keys)] = True
            return np.flatnonzero(small)

        return redrawn(
            self._drawn((*names, 0), indices),
            unwanted,
            lambda attempt, rows: self._drawn((*names, attempt), indices[rows]),
        )

    def _drawn(self, names: tuple[str | int, ...], indices: NDArray[np.int64]) -> _Games:
        """Return the questions at `indices` [N] of the streams that begin with `names`."""
        given = self.config.numbers
        random = draws32(stream(*names), indices, given + 3 * (given - 1))
        numbers = 1 + below(self.config.largest, random[:, :given]).astype(np.int64)
        equations = self._played(numbers, random[:, given:])

        # A sum of hashes does not depend on the order of the numbers.
        keys = mixed(numbers.astype(np.uint64) * _ODD + _NUMBER).sum(axis=1, dtype=np.uint64)
        keys += mixed(equations[:, -1, 3].astype(np.uint64) * _ODD + _TARGET)
        return _Games(mixed(keys), numbers, equations)
