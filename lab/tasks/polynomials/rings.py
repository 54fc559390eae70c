"""Arithmetic in F_p[X]/(X^d) on vectors of N elements, in two representations behind one interface.

An element is its canonical representative: d coefficients from 0 to p-1. Packed, these are the lanes of one 64-bit
integer, so that a product modulo X^d is one multiplication and a mask. Plain, they are a row of d integers.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Elements = NDArray[Any]
"""N elements: an array whose first axis is N; its other axes depend on the ring."""


class Ring(ABC):
    """F_p[X]/(X^d). All operations are elementwise on N elements and return new ones."""

    def __init__(self, prime: int, degree: int) -> None:
        self.prime, self.degree = prime, degree
        self._primes: Any = prime
        """p in every coefficient, the minuend of a negation."""

    def neg(self, a: Elements) -> Elements:
        """Return -a."""
        return self._reduced(self._primes - a)

    def add(self, a: Elements, b: Elements) -> Elements:
        """Return a + b."""
        return self._reduced(a + b)

    def mul(self, a: Elements, b: Elements) -> Elements:
        """Return a * b."""
        return self._reduced(self._product(a, b))

    def compose(self, outer: Elements, inner: Elements) -> Elements:
        """Return outer(inner(X)) of the canonical representatives, truncated.

        Truncating every Horner step gives the same as truncating once at the end, since X^d divides what is dropped
        and so divides all that it would be multiplied into.
        """
        result = self._constant(outer, self.degree - 1)
        for power in reversed(range(self.degree - 1)):
            result = self._reduced(self._product(result, inner) + self._constant(outer, power))
        return result

    @abstractmethod
    def from_coefficients(self, coefficients: NDArray[np.integer]) -> Elements:
        """Return elements with coefficients [N, d] between 0 and p-1, constant term first."""

    @abstractmethod
    def coefficients(self, elements: Elements) -> NDArray[np.integer]:
        """Return coefficients [N, d] between 0 and p-1, constant term first; their integer type depends on the ring."""

    @abstractmethod
    def _constant(self, elements: Elements, power: int) -> Elements:
        """Return the coefficient of X^power as a constant polynomial."""

    @abstractmethod
    def _product(self, a: Elements, b: Elements) -> Elements:
        """Return the product modulo X^d, its coefficients not reduced."""

    @abstractmethod
    def _reduced(self, elements: Elements) -> Elements:
        """Return every coefficient modulo p."""


class PackedRing(Ring):
    """Elements are uint64 [N]; the coefficient of X^k is lane k, which starts at bit k * `lane`.

    No lane overflows: a coefficient of a product is at most d(p-1)^2, that of a sum 2(p-1), and Horner adds p-1 to a
    constant term, which is at most (p-1)^2. From X^d on, wrapping and the mask drop what is zero in the ring.
    """

    def __init__(self, prime: int, degree: int, lane: int) -> None:
        if lane not in (8, 16, 32) or degree * lane > 64 or max(degree * (prime - 1) ** 2, prime) >= 1 << lane:
            raise ValueError(f"F_{prime}[X]/(X^{degree}) does not fit lanes of {lane} bits in 64")
        super().__init__(prime, degree)
        self.lane = lane
        self._lanes = np.dtype(f"<u{lane // 8}")  # little-endian, so that lane k is item k of a view on any machine
        self._mask = np.uint64((1 << degree * lane) - 1)
        self._primes = np.uint64(sum(prime << k * lane for k in range(degree)))

    def from_coefficients(self, coefficients: NDArray[np.integer]) -> Elements:
        """Return elements with coefficients [N, d], constant term first."""
        lanes = np.zeros((len(coefficients), 64 // self.lane), self._lanes)
        lanes[:, : self.degree] = coefficients
        return lanes.view("<u8")[:, 0]

    def coefficients(self, elements: Elements) -> NDArray[np.integer]:
        """Return coefficients [N, d], a view of the elements."""
        return elements.astype("<u8", copy=False)[:, None].view(self._lanes)[:, : self.degree]

    def _constant(self, elements: Elements, power: int) -> Elements:
        return (elements >> np.uint64(power * self.lane)) & np.uint64((1 << self.lane) - 1)

    def _product(self, a: Elements, b: Elements) -> Elements:
        return (a * b) & self._mask

    def _reduced(self, elements: Elements) -> Elements:
        # Division of small integers by a scalar is vectorised in numpy; the remainder is not.
        lanes = np.ascontiguousarray(elements, "<u8").view(self._lanes)
        multiples = (lanes // self._lanes.type(self.prime)).view("<u8") * np.uint64(self.prime)
        reduced: Elements = elements - multiples
        return reduced


class PlainRing(Ring):
    """Elements are int64 [N, d], constant term first; for any p and d with d(p-1)^2 below 2^63."""

    def from_coefficients(self, coefficients: NDArray[np.integer]) -> Elements:
        """Return elements with coefficients [N, d], constant term first."""
        return coefficients.astype(np.int64)

    def coefficients(self, elements: Elements) -> NDArray[np.integer]:
        """Return coefficients [N, d], the elements themselves."""
        return elements

    def _constant(self, elements: Elements, power: int) -> Elements:
        constant = np.zeros_like(elements)
        constant[:, 0] = elements[:, power]
        return constant

    def _product(self, a: Elements, b: Elements) -> Elements:
        product = a[:, :1] * b
        for power in range(1, self.degree):
            product[:, power:] += a[:, power, None] * b[:, :-power]
        return product

    def _reduced(self, elements: Elements) -> Elements:
        return elements % self.prime


def ring(prime: int, degree: int) -> Ring:
    """Return F_p[X]/(X^d), packed if 64 bits hold d lanes of 8, 16 or 32 bits for d(p-1)^2 and p, else plain."""
    for lane in (8, 16, 32):
        if max(degree * (prime - 1) ** 2, prime) < 1 << lane and degree * lane <= 64:
            return PackedRing(prime, degree, lane)
    return PlainRing(prime, degree)
