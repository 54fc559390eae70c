"""Tests, intervals and power for paired seeds: arrays of numbers in, numbers out.

What decides is exact: signs flipped over pairs (`sign_flip`), corrected for several claims (`holm`). It needs no normal
distribution, so it holds where scores come in two heaps, as on tasks that are learned with a jump.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, ndtr, stdtrit

from lab.report.tables import Interval, interval, wilson

ALPHA = 0.05
"""The level of every test: the chance of a claim where there is nothing."""
MANY = 10_000
"""Seeds beyond which nobody will run them: `seeds_needed` looks no further."""
_ENUMERATED = 40
"""Pairs up to which `sign_flip` is exact: it lists the signs of one half of them, and of the other."""
_FLIPS = 2**16
"""Random flips beyond that."""
_EXACT_LEVELS = 8
"""Values of an axis up to which Page's test is exact within a second."""
_POINTS = 4000
"""Of a mean over quantiles."""
_ROUNDING = 1e-24
"""A variance of scores that is none."""


def sign_flip(differences: NDArray[np.float64]) -> float:
    """The two-sided p value of a mean of paired differences, were each as likely to have the other sign.

    Of S pairs the smallest p is 2 / 2^S (Fisher 1935, Section 21). Of differences that are -1, 0 or 1, as of seeds that
    one arm solved and the other did not, this is McNemar's exact test. Exact up to 40 pairs: sums over the signs of one
    half are looked up among the sorted sums of the other; beyond, by random flips.

    Args:
        differences: [S] by seed.

    Returns:
        The share of all 2^S sign patterns whose mean is at least as far from 0; nan of a single pair.
    """
    pairs = len(differences)
    if pairs < 2:
        return math.nan
    # Scores are ratios of counts: sums that differ by rounding alone are ties, which count as "as far".
    bound = abs(float(differences.sum())) - 1e-9 * float(np.abs(differences).max())
    if bound <= 0:
        return 1.0

    if pairs > _ENUMERATED:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (_FLIPS, pairs))
        return float((1 + np.count_nonzero(np.abs(signs @ differences) >= bound)) / (1 + _FLIPS))

    # A pattern is one of the first half's sums and one of the second's; as many sums are below -bound as above bound.
    one, other = _signed_sums(differences[: pairs // 2]), np.sort(_signed_sums(differences[pairs // 2 :]))
    above = len(other) - np.searchsorted(other, bound - one)
    return float(2 * int(above.sum()) / 2**pairs)


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums of all 2^K patterns of signs of K values."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def fewest_pairs() -> int:
    """The fewest pairs of which a `sign_flip` can be at most `ALPHA`: six."""
    return 1 + math.ceil(math.log2(1 / ALPHA))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p values of a family of claims, in the order given.

    Whatever the claims depend on in common, the chance that any true null hypothesis of the family has an adjusted p of
    at most `ALPHA` is at most `ALPHA`.
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(each) for each in adjusted]


def difference_of_shares(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Interval:
    """The difference of two shares of the same seeds, with its 95 % interval.

    Newcombe's (1998, Stat. Med. 17:2635) tenth method: Wilson's intervals of both shares, put together with their
    correlation. Unlike Student's it has a width where all seeds of an arm agree.

    Args:
        one: [S] whether a seed counts.
        other: [S] the same of the other arm, in the same order.
    """
    pairs, a, b = len(one), float(one.mean()), float(other.mean())
    (low_a, high_a), (low_b, high_b) = wilson(a, pairs), wilson(b, pairs)

    # The correlation of the two, by their fourfold table; what is positive is corrected towards 0.
    product = math.sqrt(a * (1 - a) * b * (1 - b)) * pairs**2
    both, neither = int((one & other).sum()), int((~one & ~other).sum())
    excess = both * neither - int((one & ~other).sum()) * int((~one & other).sum())
    excess_less = max(excess - pairs / 2, 0.0) if excess > 0 else float(excess)
    phi = excess_less / product if product else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x**2 - 2 * phi * x * y + y**2, 0.0))

    down, up = reach(a - low_a, high_b - b), reach(high_a - a, b - low_b)
    return Interval(a - b, max(a - b - down, -1.0), min(a - b + up, 1.0))


def fisher(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Fisher's exact two-sided p of two shares: that of `sign_flip` without the pairing."""
    from scipy.stats import fisher_exact  # takes a second to import

    table = np.array([[each.sum(), (~each).sum()] for each in (one, other)])
    return float(fisher_exact(table).pvalue)


def log_rank(one: NDArray[np.float64], other: NDArray[np.float64], end: float) -> float:
    """The log-rank test's two-sided p of times to an event, without the pairing.

    Args:
        one: [S] times; nan of a run that had none until its end, which is censored at `end`.
        other: [S'] those of the other arm.
        end: until when all were watched.

    Returns:
        p by the normal approximation; 1 where there is no event.
    """
    from scipy.stats import CensoredData, logrank

    if not (one <= end).any() and not (other <= end).any():
        return 1.0

    def watched(times: NDArray[np.float64]) -> CensoredData:
        met = times <= end
        return CensoredData(uncensored=times[met], right=np.full(int((~met).sum()), end))

    with np.errstate(invalid="ignore"):
        p = float(logrank(watched(one), watched(other)).pvalue)
    return 1.0 if math.isnan(p) else p  # all had it at once: there is nothing to tell apart


def page_trend(scores: NDArray[np.float64]) -> tuple[Interval, float]:
    """Page's (1963) test of a rise, or a fall, of scores along an order that was stated, seed by seed.

    A small p says that scores rise or fall along the order, not that they do so at each step.

    Args:
        scores: [S, K] of S seeds at K >= 3 values in their order.

    Returns:
        The mean over seeds of Spearman's rank correlation of scores and order (ties have their mean rank, and a seed
        without any difference 0) with its 95 % interval (Student's t), which is Page's L on another scale; and twice
        the smaller of Page's one-sided p values: exact up to eight values, conservative where there are ties, and nan
        of a single seed.
    """
    from scipy.stats import page_trend_test, rankdata

    count = scores.shape[1]
    ranks = rankdata(scores, axis=1)
    places = np.arange(1, count + 1)
    correlations = ranks @ (places - places.mean()) / (count * (count**2 - 1) / 12)
    if len(scores) < 2:
        return interval(correlations), math.nan
    method: Literal["exact", "asymptotic"] = "exact" if count <= _EXACT_LEVELS else "asymptotic"
    sides = [page_trend_test(each, ranked=True, method=method).pvalue for each in (ranks, count + 1 - ranks)]
    return interval(correlations), min(1.0, 2 * float(min(sides)))


def pairing_gain(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The factor by which unpaired arms need more seeds for an interval as narrow: Var(a) + Var(b) over Var(a - b).

    1 when pairing gains nothing, below 1 when it loses; nan of fewer than three seeds.

    Args:
        one: [S] scores by seed.
        other: [S] the other arm's, of the same seeds.
    """
    paired = float(np.var(one - other, ddof=1)) if len(one) > 2 else 0.0
    return float(np.var(one, ddof=1) + np.var(other, ddof=1)) / paired if paired > _ROUNDING else math.nan


def power(effect: float, deviation: float, seeds: int) -> float:
    """The chance that a paired two-sided t test at 5 % finds a true `effect`, when differences have this `deviation`.

    The noncentral t distribution's tails (Cohen 1988, Section 2.3), as means of normal tails over the quantiles of the
    estimated deviation: scipy's own are nan for some large effects of few seeds.
    """
    bound, shift = stdtrit(seeds - 1, 1 - ALPHA / 2), abs(effect) / deviation * math.sqrt(seeds)
    quantiles = (np.arange(_POINTS) + 0.5) / _POINTS
    estimated = np.sqrt(chdtri(seeds - 1, quantiles) / (seeds - 1))
    return float((ndtr(shift - bound * estimated) + ndtr(-shift - bound * estimated)).mean())


def seeds_needed(effect: float, deviation: float, wanted: float = 0.8) -> int | None:
    """The fewest paired seeds with which a t test finds an `effect` with a chance of `wanted`; None beyond `MANY`."""
    if math.isnan(deviation):
        return None
    if deviation == 0:
        return 2
    low, high = 1, 2
    while power(effect, deviation, high) < wanted:
        low, high = high, 2 * high
        if low > MANY:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, deviation, middle) >= wanted else (middle, high)
    return high


def at_most(deviation: float, seeds: int, confidence: float = 0.8) -> float:
    """The upper limit, at `confidence`, of a deviation that was measured over `seeds`.

    A pilot's deviation is itself uncertain; planning with its upper limit is Browne's (1995) advice.
    """
    return deviation * math.sqrt((seeds - 1) / float(chdtri(seeds - 1, confidence))) if seeds > 1 else math.nan
