"""Polynomial arithmetic in F_p[X]/(X^d) (arXiv 2404.19737, Section 4.2).

A question is an expression of m operations; the answer is the d coefficients of its value. With p = 7 and d = 5:

    question                               answer (scored)
    + 1 0 3 0 0 * 2 0 0 0 0 0 4 0 0 0 =    1 1 3 0 0 .

Elements are canonical representatives of degree < d, reduced after every operation. Negation, addition and
multiplication do not depend on that choice. Composition does: it is not well defined on the quotient unless the inner
polynomial has no constant term. The convention here is to compose the representatives, then truncate.

In prefix syntax an expression with l leaves has m + dl tokens; infix syntax has 2m more. Pause tokens, `=`, d answer
tokens and `.` follow. There is nothing between documents.

With `hint`, a token stands behind each coefficient of the answer. It is the same coefficient of the outermost
operation's first operand, which helps to compute the answer's (the operand of `- A` is A), or a filler, `_`:

    hint: operand    + * 2 0 1 2 1 1 = 0 2 2 1 .
    hint: filler     + * 2 0 1 2 1 1 = 0 _ 2 _ .

Next-token prediction reads the hint after it has written the coefficient, too late to use it. A head that predicts two
tokens ahead has to predict the hint at the position that predicts the coefficient. If the operand is a leaf, it is part
of the question; otherwise it is a partial result, the value of an expression with fewer operations.

Hold-out: p^(dl) expressions with l leaves differ in their coefficients only. Hold-out applies where these are at least
`LARGE`, and at least four times as many as the evaluation expressions for each m. Then a validation expression that is
also a test expression, and a training expression that is either, is drawn again; at most a quarter of the draws is
lost. Smaller spaces are shared by all splits, and scores are split into expressions seen and unseen in training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from lab.config import Config, Neutral
from lab.tasks.base import Examples, Split, Task, check_indices
from lab.tasks.draws import below, draws, draws32, epoch_indices, mixed, stream
from lab.tasks.holdout import LARGE, KeySet, Questions, redrawn
from lab.tasks.polynomials.expressions import (
    MOST_OPERATIONS,
    OPERATORS,
    Expression,
    Hint,
    Notation,
    Operator,
    Order,
    Parser,
    Syntax,
)
from lab.tasks.polynomials.rings import Elements, Ring, ring
from lab.tasks.polynomials.trees import ADD, COMPOSE, LEAF, MUL, NEG, PAD, leaf_counts, split_words, uniform_words
from lab.tasks.scoring import Answers, Curve, Group, Metrics

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Polynomials(Config):
    """Polynomial arithmetic in F_p[X]/(X^d)."""

    name: Literal["polynomials"] = "polynomials"
    prime: int = 7
    """p, the number of values of a coefficient; a prime from 2 to 65521 (coefficients are single tokens)."""
    degree: int = Field(default=5, ge=1, le=64)
    """d, the number of coefficients of a polynomial."""
    operators: dict[Operator, Weight] = Field(default={"neg": 1.0, "add": 1.0, "mul": 1.0, "compose": 1.0})
    """The weight of each operator; an operator is drawn with probability proportional to its weight."""
    train_operations: tuple[int, int] = (1, 5)
    """The least and the most operations of a training or validation expression; uniform between."""
    test_operations: tuple[int, int] = (1, 10)
    """The least and the most operations of a test expression."""
    test_examples: int = Field(default=2000, ge=1, le=1_000_000)
    """Test expressions for each number of operations."""
    validation_examples: int = Field(default=500, ge=1, le=1_000_000)
    """Validation expressions for each number of operations in `train_operations`."""
    shape: Literal["uniform", "split"] = "uniform"
    """The distribution of trees, given the operators: uniform over all tree shapes, or operations split uniformly
    between the operands, from the root down."""
    syntax: Syntax = "prefix"
    """The syntax of expressions: prefix without brackets, or infix with brackets around every operation."""
    coefficients: Order = "constant_first"
    """The order of a polynomial's coefficients."""
    pause: int = Field(default=0, ge=0, le=1000)
    """Pause tokens between the question and `=` (Appendix K)."""
    loss: Literal["all", "answer"] = "all"
    """The tokens that the loss covers: all, or the answer and its end token only."""
    unique_examples: Annotated[int | None, Neutral(None), Field(ge=1, le=100_000_000)] = None
    """The size of a finite training corpus, seen in a new order every epoch; unlimited when null."""
    hint: Annotated[Hint, Neutral("none")] = "none"
    """A token behind each coefficient of the answer, which is trained on but not scored: the same coefficient of the
    outermost operation's first operand (operand), or `_` as a control (filler); or no such token. Later coefficients
    are predicted from the true hints before them. These help with a product or a composition, not with a sum or a
    negation: compare within a condition, or by the first coefficient. A model that generates answers also has to
    generate the hints. For `objective.where` each coefficient is then an answer of its own."""

    @field_validator("prime")
    @classmethod
    def _prime(cls, prime: int) -> int:
        if not 2 <= prime <= 65521 or any(prime % factor == 0 for factor in range(2, math.isqrt(prime) + 1)):
            raise ValueError("should be a prime from 2 to 65521")
        return prime

    @field_validator("operators")
    @classmethod
    def _some_operator(cls, operators: dict[Operator, float]) -> dict[Operator, float]:
        if not any(operators.values()):
            raise ValueError(f"at least one of {', '.join(OPERATORS)} needs a positive weight")
        return operators

    @field_validator("train_operations", "test_operations")
    @classmethod
    def _ordered(cls, operations: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= operations[0] <= operations[1] <= MOST_OPERATIONS:
            raise ValueError(f"should be the least and the most operations, from 1 to {MOST_OPERATIONS}")
        return operations

    def build(self) -> "PolynomialTask":
        """Return the task of this config."""
        return PolynomialTask(self)


_NAMES = np.array(["", *OPERATORS, ""])
"""The name of each symbol."""
_EMPTY = 0xFFFF
"""A slot without a token; the vocabulary ends below."""


def _hash_weights(name: str, count: int) -> NDArray[np.uint64]:
    return draws(stream("polynomials", "hash", name), np.arange(count), 1)[:, 0]


@dataclass(frozen=True)
class _Questions(Questions):
    """N expressions, words and operands hashed. W = 2M + 1, where M is at least the most operations among them."""

    operations: NDArray[np.int64]
    """[N]"""
    words: NDArray[np.uint8]
    """[N, W] prefix words."""
    operands: NDArray[np.uint16]
    """[N, M + 1, d] coefficients of the leaves, constant term first; 0 beyond a tree's leaves."""
    leaves: NDArray[np.int64]
    """[N]"""


def _mean_of_means(right: NDArray[np.bool_]) -> float:
    """Return the mean accuracy of d coefficients from [A, d] answers."""
    return float(right.mean(axis=0).mean())


def _share_of_most_frequent(answers: NDArray[np.int64]) -> float:
    """Return the share of the most frequent of answers [A], given as numbers from 0 on."""
    return float(np.bincount(answers).max() / len(answers))


class PolynomialTask(Task):
    """Polynomial arithmetic as a task; see the module's and the config's documentation."""

    def __init__(self, config: Polynomials) -> None:
        self.config = config
        self.metrics = Metrics(
            metric="exact_match",
            baselines=("constant_answer",),
            groups=(Group("operations", margin=False), Group("operator", values=OPERATORS)),
            curves=(
                Curve(("exact_match", "exact_match_without_end", "coefficient_accuracy")),
                Curve(
                    ("exact_match", "constant_answer"),
                    {"seen": "unseen"},
                    each="operations",
                    name="{measure}_operations_{operations}_seen_unseen",
                ),
            ),
            token_types=("question", "answer") if config.hint == "none" else ("question", "answer", "hint"),
            aggregates={"coefficient_accuracy": _mean_of_means, "constant_answer": _share_of_most_frequent},
        )
        self.ring: Ring = ring(config.prime, config.degree)
        p, d = config.prime, config.degree
        self.vocabulary = (*map(str, range(p)), "-", "+", "*", "o", "=", ".", "_", "(", ")")
        self._minus, self._equals, self._end, self._pause, self._open, self._close = (
            self.vocabulary.index(text) for text in "-=._()"
        )
        most = max(config.train_operations[1], config.test_operations[1])
        self._symbols = np.array([_EMPTY, p, p + 1, p + 2, p + 3, _EMPTY], np.uint16)
        """The token of each symbol of a word; `_EMPTY` if it has none."""
        self._stride = 1 if config.hint == "none" else 2
        """The distance between two coefficients of the answer."""
        self._tail = config.pause + d * self._stride + 2
        """The number of tokens after the expression: pause, `=`, answer with hints, end."""
        self._per_operation = 1 if config.syntax == "prefix" else 3

        weights = [Fraction(config.operators.get(operator, 0.0)) for operator in OPERATORS]
        self._thresholds = [int(sum(weights[:k]) * 2**32 / sum(weights)) for k in range(1, len(OPERATORS))]
        needed = max(LARGE, 4 * (config.test_examples + config.validation_examples))
        self._leaves_of_large = next(leaves for leaves in range(1, needed) if p ** (d * leaves) >= needed)
        self._word_weights = _hash_weights("word", 2 * most + 1)
        self._operand_weights = _hash_weights("operands", (most + 1) * d)

    def size(self, split: Split) -> int | None:
        """Return the number of examples in a split; None for training, where a finite corpus repeats."""
        if split == "train":
            return None
        (low, high), each = self._evaluation(split)
        return (high - low + 1) * each

    def max_length(self, split: Split) -> int:
        """Return an upper bound on the tokens of one example of a split."""
        most = (self.config.test_operations if split == "test" else self.config.train_operations)[1]
        return most * self._per_operation + (most + 1) * self.config.degree + self._tail

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """Return the examples of a split at `indices` [N]; see `Task.examples`.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """
        return self._rendered(self._questions(split, indices, seed))

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Return example `row` as `operations`, `expression`, `answer`, `text` and `tokens`, parsed from its tokens."""
        tokens = examples.tokens[row, : examples.lengths[row]].tolist()
        expression, answer = self.parse(tokens)
        return {
            "operations": int(examples.slices["operations"][row]),
            "expression": expression,
            "answer": answer,
            "text": self.text(tokens),
            "tokens": tokens,
        }

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Return the type of each token [N, L]: question, answer with its end token, or hint; see `Task.token_type`."""
        answer = examples.score_mask.view(np.uint8)
        return answer + 2 * examples.token_features["hint"] if "hint" in examples.token_features else answer

    def parse(self, tokens: Sequence[int]) -> tuple[Expression, list[int]]:
        """Return the expression and the answer of a document, coefficients with the constant term first.

        Raises:
            BadInput: the tokens are not a document of this task: an expression of at most `MOST_OPERATIONS` operations
                in the configured syntax, the pause tokens, `=`, d coefficients, each with its hint if there are some,
                and the end token. (Answer and hints may be wrong.)
        """
        config, known = self.config, self.vocabulary
        notation = Notation(config.degree, config.syntax, config.coefficients, config.pause, config.hint)
        texts = [known[token] if 0 <= token < len(known) else "" for token in tokens]
        return Parser(notation, texts).document()

    def evaluate(self, expression: Expression) -> list[int]:
        """Return the value of an expression, coefficients with the constant term first."""
        return [int(coefficient) for coefficient in self.ring.coefficients(self._value(expression))[0]]

    def answers(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> Answers:
        """Return a row for each answer; see `Task.answers`.

        - `operations`: the expression's number of operations; `operator`: its outermost one.
        - `exact_match`: True if all coefficients and the end token are right; `exact_match_without_end`: True if all
          coefficients are.
        - `coefficient_accuracy`: in the table the mean over answers and coefficients.
        - `coefficients`: in the table d accuracies, in written order.
        - `constant_answer`: in the table the share of the most frequent answer, the best that a constant can reach.

        Predictions are teacher-forced, which for exact matches gives the same result as greedy decoding. The exception
        are hints, which are not scored, and are given to the model.
        """
        d = self.config.degree
        columns = examples.lengths[:, None] - 1 - self._stride * np.arange(d, -1, -1)
        truth = np.take_along_axis(examples.tokens, columns, axis=1)
        right = np.take_along_axis(predicted, columns, axis=1) == truth
        return {
            "operations": examples.slices["operations"],
            "operator": examples.slices["operator"],
            "seen": seen[:, 0],
            "exact_match": right.all(axis=1),
            "exact_match_without_end": right[:, :d].all(axis=1),
            "coefficient_accuracy": right[:, :d],
            "coefficients": right[:, :d],
            "constant_answer": np.unique(truth[:, :d], axis=0, return_inverse=True)[1].reshape(-1),
        }

    def _evaluation(self, split: Split) -> tuple[tuple[int, int], int]:
        """Return the range of operations of the validation or test split, and its examples for each number of them."""
        if split == "validation":
            return self.config.train_operations, self.config.validation_examples
        return self.config.test_operations, self.config.test_examples

    @cached_property
    def _test_keys(self) -> KeySet:
        return KeySet(self._large_keys("test"))

    @cached_property
    def _evaluation_keys(self) -> KeySet:
        return KeySet(np.concatenate([self._test_keys.keys, self._large_keys("validation")]))

    def _large_keys(self, split: Literal["validation", "test"]) -> NDArray[np.uint64]:
        """Return the keys of those expressions in a split that other splits must not contain."""
        (low, high), each = self._evaluation(split)
        keys = []
        total = (high - low + 1) * each
        for indices in np.split(np.arange(total), range(8192, total, 8192)):  # to bound memory
            questions = self._questions(split, indices, seed=0)
            keys.append(questions.keys[questions.leaves >= self._leaves_of_large])
        return np.concatenate(keys)

    def _questions(self, split: Split, indices: NDArray[np.int64], seed: int) -> _Questions:
        """Return the expressions at `indices` [N], with replacements for held-out ones."""
        check_indices(split, indices, self.size(split))
        if split == "train":
            names: tuple[str | int, ...] = ("polynomials", split, seed)
            if self.config.unique_examples is not None:
                indices = epoch_indices("polynomials", indices, self.config.unique_examples, seed)
            low, high = self.config.train_operations
            random = draws32(stream(*names, "operations"), indices, 1)[:, 0]
            operations = low + below(high - low + 1, random).astype(np.int64)
        else:
            names = ("polynomials", split)
            (low, _), each = self._evaluation(split)
            operations = low + indices // each

        most = int(operations.max(initial=1))
        questions = self._drawn((*names, 0), indices, operations, most)
        if split == "test":
            return questions
        held_out = self._test_keys if split == "validation" else self._evaluation_keys
        return redrawn(
            questions,
            lambda these: held_out.positions(these.keys),
            lambda attempt, rows: self._drawn((*names, attempt), indices[rows], operations[rows], most),
        )

    def _drawn(
        self, names: tuple[str | int, ...], indices: NDArray[np.int64], operations: NDArray[np.int64], most: int
    ) -> _Questions:
        """Return expressions of `operations` [N], at most `most`, from the streams that begin with `names`."""
        d = self.config.degree
        kinds = draws32(stream(*names, "operators"), indices, most)
        operators = np.full(kinds.shape, NEG, np.uint8)
        for threshold in self._thresholds:
            operators += kinds >= threshold
        operators *= np.arange(most) < operations[:, None]  # PAD is 0

        uniform = self.config.shape == "uniform"
        random = draws32(stream(*names, "shape"), indices, 2 * most if uniform else most)
        words = (uniform_words if uniform else split_words)(operators, random)

        leaves = leaf_counts(operators)
        random = draws32(stream(*names, "operands"), indices, (most + 1) * d)
        flat = below(self.config.prime, random).astype(np.uint16, order="C")
        operands = flat.reshape(len(indices), most + 1, d)
        unused = np.flatnonzero(np.arange(most + 1) >= leaves[:, None])
        operands.reshape(-1, d)[unused] = 0

        # A random linear function of the symbols and coefficients: padding, being 0, does not enter.
        keys = words @ self._word_weights[: words.shape[1]] + flat @ self._operand_weights[: flat.shape[1]]
        return _Questions(mixed(keys), operations, words, operands, leaves)

    def _rendered(self, questions: _Questions) -> Examples:
        """Return the questions as documents with their answers."""
        config, d = self.config, self.config.degree
        count, width = questions.words.shape
        words = questions.words.reshape(-1)
        leaf = np.flatnonzero(words == LEAF)
        used = np.flatnonzero(np.arange((width + 1) // 2) < questions.leaves[:, None])
        operands = questions.operands.reshape(-1, d).take(used, axis=0)  # several times faster than [used]
        values, sizes = self._evaluated(questions, leaf, operands)
        answers = self._written(values[::width])
        if config.coefficients == "leading_first":
            operands = operands[:, ::-1]

        # Every symbol has a row of slots for its tokens. A sheet has all slots of a document, then its last tokens; the
        # document is the sheet without the empty slots.
        tail = np.empty((count, self._tail), np.uint16)
        tail[:, : config.pause] = self._pause
        tail[:, config.pause] = self._equals
        tail[:, config.pause + 1 : -1 : self._stride] = answers
        if config.hint != "none":  # the first operand is the subtree at the second symbol
            hints = self._written(values[1::width]) if config.hint == "operand" else self._pause
            tail[:, config.pause + 2 : -1 : 2] = hints
        tail[:, -1] = self._end
        if config.syntax == "prefix":
            slots = self._prefix(words, leaf, operands)
        else:
            slots = self._infix(words, leaf, operands, sizes)
        sheet = np.concatenate([slots.reshape(count, width * slots.shape[1]), tail], axis=1).reshape(-1)
        lengths = questions.operations * self._per_operation + questions.leaves * d + self._tail

        # 16 bits are enough for any length, and make arrays of N by L several times cheaper.
        columns, ends = np.arange(lengths.max(initial=0), dtype=np.int16), lengths[:, None].astype(np.int16)
        document = columns < ends
        tokens = np.zeros(document.shape, np.uint16)
        tokens.reshape(-1)[np.flatnonzero(document)] = sheet.take(np.flatnonzero(sheet != _EMPTY))
        answered = document & (columns >= ends - np.int16(self._stride * d + 1))
        scored = answered if config.hint == "none" else answered & ((ends - 1 - columns) % 2 == 0)
        outermost = _NAMES[questions.words[:, 0]]
        features = {} if config.hint == "none" else {"hint": (answered & ~scored).view(np.uint8)}
        return Examples(
            tokens=tokens,
            lengths=lengths,
            loss_mask=document if config.loss == "all" else answered,
            score_mask=scored,
            slices={"operations": questions.operations, "operator": outermost},
            fingerprints=questions.keys[:, None],
            token_features=features,
            # A wrong coefficient is assumed to spoil those after it.
            horizons=np.where(answered, np.maximum(ends - 1 - columns, 1), 1).astype(np.uint8),
        )

    def _evaluated(
        self, questions: _Questions, leaf: NDArray[np.int64], operands: NDArray[np.uint16]
    ) -> tuple[Elements, NDArray[np.int64]]:
        """Return the value and the number of symbols of the subtree at each of the N * W symbols.

        Step k evaluates the k-th operator from the left of every word, from the last to the first one, since all
        operands of an operator lie to its right.
        """
        words = questions.words.reshape(-1)
        elements = self.ring.from_coefficients(operands)
        values = np.zeros((len(words), *elements.shape[1:]), elements.dtype)
        values[leaf] = elements
        sizes = np.ones(len(words), np.int64)

        # [N, operations] the position of each word's k-th operator; -1 if there are fewer.
        ranks = np.full((len(questions.words), questions.operations.max(initial=1)), -1)
        present = np.arange(ranks.shape[1]) < questions.operations[:, None]
        ranks.reshape(-1)[np.flatnonzero(present)] = np.flatnonzero((words != PAD) & (words != LEAF))
        for column in ranks.T[::-1]:
            rank = column[np.flatnonzero(column >= 0)]
            kinds = words[rank]
            for kind, apply in ((ADD, self.ring.add), (MUL, self.ring.mul), (COMPOSE, self.ring.compose)):
                here = rank[np.flatnonzero(kinds == kind)]
                first = here + 1
                second = first + sizes[first]
                values[here] = apply(values[first], values[second])
                sizes[here] += sizes[first] + sizes[second]
            here = rank[np.flatnonzero(kinds == NEG)]
            values[here] = self.ring.neg(values[here + 1])
            sizes[here] += sizes[here + 1]
        return values, sizes

    def _written(self, values: Elements) -> NDArray[np.integer]:
        """Return the coefficients of values, in written order."""
        coefficients = self.ring.coefficients(values)
        return coefficients if self.config.coefficients == "constant_first" else coefficients[:, ::-1]

    def _value(self, expression: Expression) -> Elements:
        if isinstance(expression[0], str):
            value: Elements = getattr(self.ring, expression[0])(*map(self._value, expression[1:]))
            return value
        return self.ring.from_coefficients(np.array([expression]))

    def _prefix(
        self, words: NDArray[np.uint8], leaf: NDArray[np.int64], operands: NDArray[np.uint16]
    ) -> NDArray[np.uint16]:
        """Return the slots [N * W, slots] of prefix syntax: an operator, or d coefficients."""
        slots = np.full((len(words), self.config.degree), _EMPTY, np.uint16)
        slots[:, 0] = self._symbols.take(words)
        slots[leaf] = operands
        return slots

    def _infix(
        self,
        words: NDArray[np.uint8],
        leaf: NDArray[np.int64],
        operands: NDArray[np.uint16],
        sizes: NDArray[np.int64],
    ) -> NDArray[np.uint16]:
        """Return the slots [N * W, slots] of infix syntax.

        A symbol's slots are, in order: the operator whose second operand begins with it; `(`, `( -` or d coefficients;
        a `)` for each operation that ends with it.
        """
        operators = np.flatnonzero((words != PAD) & (words != LEAF))
        unary, binary = operators[words[operators] == NEG], operators[words[operators] != NEG]
        ending = np.bincount(operators + sizes[operators] - 1, minlength=len(words))
        middle = 1 + max(2, self.config.degree)
        slots = np.full((len(words), middle + ending.max(initial=0)), _EMPTY, np.uint16)
        slots[binary + 1 + sizes[binary + 1], 0] = self._symbols[words[binary]]
        slots[operators, 1] = self._open
        slots[unary, 2] = self._minus
        slots[leaf, 1 : 1 + self.config.degree] = operands
        slots[:, middle:][np.arange(slots.shape[1] - middle) < ending[:, None]] = self._close
        return slots
