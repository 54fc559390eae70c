"""Polynomial arithmetic in F_p[X]/(X^d) (arXiv 2404.19737, Section 4.2).

An example asks for the value of an expression of m operations, and answers with its coefficients:

    + 1 0 3 0 0 * 2 0 0 0 0 0 4 0 0 0 = 1 1 3 0 0 .

Elements are canonical representatives of degree < d, reduced after every operation. Negation, addition and
multiplication do not depend on that choice. Composition does: it is not well defined on the quotient unless the inner
polynomial has no constant term, so "compose the representatives, then truncate" is our convention.

Written in prefix, an expression with l leaves has m + dl question tokens, and infix has 2m more; pause tokens, `=`, d
answer tokens and `.` follow. Nothing separates or precedes documents.

With hints (`hint`) a token stands behind each coefficient of the answer: the same coefficient of the outermost
operation's first operand, from which it would be worked out (of `- A` that is A), or a filler, `_`:

    + * 2 0 1 2 1 1 = 0 2 2 1 .        + * 2 0 1 2 1 1 = 0 _ 2 _ .

It comes too late for next-token prediction, which has written the coefficient by then; a head that looks two tokens
ahead has to say it in the place where the coefficient is due. An operand that is a leaf stands in the question; another
is a partial result, an expression of fewer operations.

Hold-out: an expression with l leaves is one of p^(dl) that differ in their coefficients alone. Where that is at least
`LARGE`, and at least four times the evaluation expressions for each m, a validation expression that is also a test
expression, and a training expression that is either, is drawn again. So at most a quarter of draws is lost. Smaller
spaces are shared by all splits, and scores are split into expressions seen and unseen in training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from lab.config import Config, Neutral
from lab.errors import BadInput
from lab.tasks.base import Examples, Split, Task, check_indices
from lab.tasks.draws import below, draws, draws32, epoch_indices, mixed, stream
from lab.tasks.holdout import LARGE, KeySet, Questions, redrawn
from lab.tasks.polynomials.rings import Elements, Ring, ring
from lab.tasks.polynomials.trees import ADD, COMPOSE, LEAF, MUL, NEG, PAD, leaf_counts, split_words, uniform_words
from lab.tasks.scoring import Answers, Curve, Group, Metrics

Operator = Literal["neg", "add", "mul", "compose"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
"""Operator k is symbol k + 1 of a word."""

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Hint = Literal["none", "filler", "operand"]

MOST_OPERATIONS = 64

Expression = list[Any]
"""`["add", A, B]`, `["mul", A, B]`, `["compose", OUTER, INNER]`, `["neg", A]`; leaves are coefficient lists, constant
term first."""


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
    """How the tree is drawn, given its operators: every tree shape equally likely, or, from the root down, operations
    split uniformly between the operands."""
    syntax: Literal["prefix", "infix"] = "prefix"
    """How an expression is written: prefix without brackets, or infix with brackets around every operation."""
    coefficients: Literal["constant_first", "leading_first"] = "constant_first"
    """The order in which a polynomial's coefficients are written."""
    pause: int = Field(default=0, ge=0, le=1000)
    """Pause tokens between the question and `=` (Appendix K)."""
    loss: Literal["all", "answer"] = "all"
    """The tokens that training covers: all, or the answer and its end token alone."""
    unique_examples: Annotated[int | None, Neutral(None), Field(ge=1, le=100_000_000)] = None
    """The size of a finite training corpus, seen in a new order every epoch; unlimited when null."""
    hint: Annotated[Hint, Neutral("none")] = "none"
    """A token behind each coefficient of the answer, trained on but not scored: that coefficient of the outermost
    operation's first operand; its control, `_`, which says nothing, in the same places; or none. Later coefficients are
    read with the true hints before them, of which the outermost operation has no use in a sum or a negation, but in a
    product or a composition: compare within a condition, or by the first coefficient. A model that answers by itself
    has to write the hints, too. For `objective.where` each coefficient is then an answer of its own."""

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
        """The task that this describes."""
        return PolynomialTask(self)


_BY_TEXT = dict(zip("-+*o", OPERATORS, strict=True))

_NAMES = np.array(["", *OPERATORS, ""])
"""By symbol."""
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
        """The token of each symbol of a word that has one."""
        self._stride = 1 if config.hint == "none" else 2
        """From one coefficient of the answer to the next."""
        self._tail = config.pause + d * self._stride + 2
        """The tokens after the expression: pause, `=`, answer with its hints, end."""
        self._per_operation = 1 if config.syntax == "prefix" else 3

        weights = [Fraction(config.operators.get(operator, 0.0)) for operator in OPERATORS]
        self._thresholds = [int(sum(weights[:k]) * 2**32 / sum(weights)) for k in range(1, len(OPERATORS))]
        needed = max(LARGE, 4 * (config.test_examples + config.validation_examples))
        self._leaves_of_large = next(leaves for leaves in range(1, needed) if p ** (d * leaves) >= needed)
        self._word_weights = _hash_weights("word", 2 * most + 1)
        self._operand_weights = _hash_weights("operands", (most + 1) * d)

    def size(self, split: Split) -> int | None:
        """The number of examples in a split; None when it is unlimited, as training is: a finite corpus repeats."""
        if split == "train":
            return None
        (low, high), each = self._evaluation(split)
        return (high - low + 1) * each

    def max_length(self, split: Split) -> int:
        """An upper bound on the tokens of one example of a split."""
        most = (self.config.test_operations if split == "test" else self.config.train_operations)[1]
        return most * self._per_operation + (most + 1) * self.config.degree + self._tail

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """The examples of a split at `indices` [N]; see `Task.examples`.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """
        return self._rendered(self._questions(split, indices, seed))

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Example `row` as `operations`, `expression`, `answer`, `text` and `tokens`, parsed back from its tokens."""
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
        """The answer with its end token, what comes before, and hints; see `Task.token_type`."""
        answer = examples.score_mask.view(np.uint8)
        return answer + 2 * examples.token_features["hint"] if "hint" in examples.token_features else answer

    def parse(self, tokens: Sequence[int]) -> tuple[Expression, list[int]]:
        """The expression and the answer that a document spells, coefficients with the constant term first.

        Raises:
            BadInput: it is not a document of this task: an expression of at most `MOST_OPERATIONS` operations in the
                configured syntax, the pause tokens, `=`, d coefficients, each with its hint if there are some, and
                the end token. (Answer and hints may be wrong.)
        """
        return _Parser(self, tokens).document()

    def evaluate(self, expression: Expression) -> list[int]:
        """The value of an expression, coefficients with the constant term first."""
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
        """The range of operations of the validation or test split, and its examples for each number of them."""
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
        """The keys of those expressions in a split that other splits must not contain."""
        (low, high), each = self._evaluation(split)
        keys = []
        total = (high - low + 1) * each
        for indices in np.split(np.arange(total), range(8192, total, 8192)):  # to bound memory
            questions = self._questions(split, indices, seed=0)
            keys.append(questions.keys[questions.leaves >= self._leaves_of_large])
        return np.concatenate(keys)

    def _questions(self, split: Split, indices: NDArray[np.int64], seed: int) -> _Questions:
        """The expressions at `indices` [N], held-out ones replaced."""
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
        """Expressions of `operations` [N], at most `most`, from the streams that begin with `names`."""
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
        """The questions as documents, answers worked out."""
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

        # Every symbol has a row of slots, filled from a sheet that is then read without its empty slots.
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

        # 16 bits, which hold any length, make what is N by L several times cheaper.
        columns, ends = np.arange(lengths.max(initial=0), dtype=np.int16), lengths[:, None].astype(np.int16)
        document = columns < ends
        tokens = np.zeros(document.shape, np.uint16)
        tokens.reshape(-1)[np.flatnonzero(document)] = sheet.take(np.flatnonzero(sheet != _EMPTY))
        answered = document & (columns >= ends - np.int16(self._stride * d + 1))
        scored = answered if config.hint == "none" else answered & ((ends - 1 - columns) % 2 == 0)
        outermost = _NAMES[questions.words[:, 0]]
        return Examples(
            tokens=tokens,
            lengths=lengths,
            loss_mask=document if config.loss == "all" else answered,
            score_mask=scored,
            slices={"operations": questions.operations, "operator": outermost},
            fingerprints=questions.keys[:, None],
            token_features={} if config.hint == "none" else {"hint": (answered & ~scored).view(np.uint8)},
            # A wrong digit is taken to spoil those after it; nothing depends on what is answered elsewhere.
            horizons=np.where(answered, np.maximum(ends - 1 - columns, 1), 1).astype(np.uint8),
        )

    def _evaluated(
        self, questions: _Questions, leaf: NDArray[np.int64], operands: NDArray[np.uint16]
    ) -> tuple[Elements, NDArray[np.int64]]:
        """The value and the number of symbols of the subtree at each of the N * W symbols, rank by rank.

        Each step does the operators that are k-th from the left in their words, k from the last to the first: all that
        an operator needs lies to its right.
        """
        words = questions.words.reshape(-1)
        elements = self.ring.from_coefficients(operands)
        values = np.zeros((len(words), *elements.shape[1:]), elements.dtype)
        values[leaf] = elements
        sizes = np.ones(len(words), np.int64)

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
        """The coefficients of values, in written order."""
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
        """[N * W, slots] for prefix syntax: an operator, or d coefficients."""
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
        """[N * W, slots] for infix syntax.

        In a symbol's slots: the operator of which it begins the second operand; `(`, or `( -`, or d coefficients;
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


def _mean_of_means(right: NDArray[np.bool_]) -> float:
    """Return the mean accuracy of d coefficients from [A, d] answers."""
    return float(right.mean(axis=0).mean())


def _share_of_most_frequent(answers: NDArray[np.int64]) -> float:
    """Return the share of the most frequent of answers [A], given as numbers from 0 on."""
    return float(np.bincount(answers).max() / len(answers))


class _Parser:
    """Reads one document of a task, strictly, from left to right."""

    def __init__(self, task: PolynomialTask, tokens: Sequence[int]) -> None:
        self._config = task.config
        self._texts = [task.vocabulary[token] if 0 <= token < len(task.vocabulary) else "" for token in tokens]
        self._place = 0
        self._operations = 0

    def document(self) -> tuple[Expression, list[int]]:
        expression = self._expression()
        for text in ["_"] * self._config.pause + ["="]:
            self._expect(text)
        answer = self._polynomial(self._config.hint)
        self._expect(".")
        if self._place < len(self._texts):
            raise self._wrong("the end of the document")
        return expression, answer

    def _expression(self) -> Expression:
        if self._config.syntax == "prefix":
            return self._operation() if self._next in _BY_TEXT else self._polynomial()
        if self._next != "(":
            return self._polynomial()
        self._place += 1
        operation = self._operation()
        self._expect(")")
        return operation

    def _operation(self) -> Expression:
        """An operation, without its brackets."""
        self._operations += 1
        if self._operations > MOST_OPERATIONS:
            raise BadInput(f"not a document of this task: more than {MOST_OPERATIONS} operations")
        before = [self._expression()] if self._config.syntax == "infix" and self._next != "-" else []
        name = _BY_TEXT.get(self._next)
        if name is None or (before and name == "neg"):
            raise self._wrong("an operator")
        self._place += 1
        after = [self._expression() for _ in range((1 if name == "neg" else 2) - len(before))]
        return [name, *before, *after]

    def _polynomial(self, hint: Hint = "none") -> list[int]:
        """Coefficients, each with its hint behind it."""
        coefficients = []
        for _ in range(self._config.degree):
            coefficients.append(self._coefficient())
            if hint == "filler":
                self._expect("_")
            elif hint == "operand":
                self._coefficient()
        return coefficients if self._config.coefficients == "constant_first" else coefficients[::-1]

    def _coefficient(self) -> int:
        text = self._next
        if not text.isdecimal():
            raise self._wrong("a coefficient")
        self._place += 1
        return int(text)

    @property
    def _next(self) -> str:
        """The text of the next token; empty at the end, and for a token that is not in the vocabulary."""
        return self._texts[self._place] if self._place < len(self._texts) else ""

    def _expect(self, text: str) -> None:
        if self._next != text:
            raise self._wrong(f"'{text}'")
        self._place += 1

    def _wrong(self, allowed: str) -> BadInput:
        return BadInput(f"not a document of this task: token {self._place} is '{self._next}', not {allowed}")
