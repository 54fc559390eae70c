"""Expressions over polynomials, and the parser of a document: an expression and its answer.

tokens        + 1 0 * 2 0 2 1 = 2 2 .          (prefix, p = 3, d = 2)
( 1 0 + ( 2 0 * 2 1 ) ) = 2 2 .  (infix)
expression    ["add", [1, 0], ["mul", [2, 0], [2, 1]]]
answer        [2, 2]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lab.errors import BadInput

Operator = Literal["neg", "add", "mul", "compose"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
"""Operator k is symbol k + 1 of a word."""
MOST_OPERATIONS = 64

Expression = list[Any]
"""`["add", A, B]`, `["mul", A, B]`, `["compose", OUTER, INNER]`, `["neg", A]`; leaves are coefficient lists, constant
term first."""

Syntax = Literal["prefix", "infix"]
Order = Literal["constant_first", "leading_first"]
Hint = Literal["none", "filler", "operand"]

_BY_TEXT = dict(zip("-+*o", OPERATORS, strict=True))


@dataclass(frozen=True)
class Notation:
    """The written form of a document; the fields are those of `Polynomials`."""

    degree: int
    syntax: Syntax
    coefficients: Order
    pause: int
    hint: Hint


class Parser:
    """A strict left-to-right parser of one document."""

    def __init__(self, notation: Notation, texts: Sequence[str]) -> None:
        """Start at the first of the tokens' `texts`, which are empty for tokens outside of the vocabulary."""
        self._notation, self._texts = notation, texts
        self._position = 0
        self._operations = 0

    def document(self) -> tuple[Expression, list[int]]:
        """Return the expression and the answer, coefficients with the constant term first.

        Raises:
            BadInput: the tokens are not a document in this notation.
        """
        expression = self._expression()
        for text in ["_"] * self._notation.pause + ["="]:
            self._expect(text)
        answer = self._polynomial(self._notation.hint)
        self._expect(".")
        if self._position < len(self._texts):
            raise self._error("the end of the document")
        return expression, answer

    def _expression(self) -> Expression:
        if self._notation.syntax == "prefix":
            return self._operation() if self._next in _BY_TEXT else self._polynomial()
        if self._next != "(":
            return self._polynomial()
        self._position += 1
        operation = self._operation()
        self._expect(")")
        return operation

    def _operation(self) -> Expression:
        """Return an operation; its brackets are read by the caller."""
        self._operations += 1
        if self._operations > MOST_OPERATIONS:
            raise BadInput(f"not a document of this task: more than {MOST_OPERATIONS} operations")

        # The operand before an infix operator, the operator, and the operands after it.
        before = [self._expression()] if self._notation.syntax == "infix" and self._next != "-" else []
        name = _BY_TEXT.get(self._next)
        if name is None or (before and name == "neg"):
            raise self._error("an operator")
        self._position += 1
        operands = 1 if name == "neg" else 2
        after = [self._expression() for _ in range(operands - len(before))]
        return [name, *before, *after]

    def _polynomial(self, hint: Hint = "none") -> list[int]:
        """Return d coefficients, constant term first, after skipping the hint behind each."""
        coefficients = []
        for _ in range(self._notation.degree):
            coefficients.append(self._coefficient())
            if hint == "filler":
                self._expect("_")
            elif hint == "operand":
                self._coefficient()
        return coefficients if self._notation.coefficients == "constant_first" else coefficients[::-1]

    def _coefficient(self) -> int:
        text = self._next
        if not text.isdecimal():
            raise self._error("a coefficient")
        self._position += 1
        return int(text)

    @property
    def _next(self) -> str:
        """The text of the next token; empty at the end, and for a token outside of the vocabulary."""
        return self._texts[self._position] if self._position < len(self._texts) else ""

    def _expect(self, text: str) -> None:
        if self._next != text:
            raise self._error(f"'{text}'")
        self._position += 1

    def _error(self, allowed: str) -> BadInput:
        return BadInput(f"not a document of this task: token {self._position} is '{self._next}', not {allowed}")
