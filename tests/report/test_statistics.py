"""Tests, intervals and power: against other libraries, enumeration and published numbers."""

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from lab.report.statistics import (
    at_most,
    difference_of_shares,
    fewest_pairs,
    fisher,
    holm,
    log_rank,
    page_trend,
    pairing_gain,
    power,
    seeds_needed,
    sign_flip,
)
from lab.report.tables import interval, wilson

POINTS = st.lists(st.integers(-40, 40), min_size=2, max_size=9)
SHARES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30)


@given(POINTS)
@example([18, 21, -21, -18])
@example([1, 2, -3])  # a mean of 0: all patterns say as much
def test_p_is_the_share_of_signs_that_say_as_much(points: list[int]) -> None:
    sums = [
        abs(sum(s * p for s, p in zip(signs, points, strict=True))) for signs in product((1, -1), repeat=len(points))
    ]
    expected = np.mean([each >= abs(sum(points)) for each in sums])
    assert sign_flip(np.array(points) / 100) == pytest.approx(expected)


@given(POINTS, st.randoms(use_true_random=False))
def test_p_does_not_ask_for_the_order_or_the_sign(points: list[int], random: "np.random.Generator") -> None:
    shuffled = [*points]
    random.shuffle(shuffled)
    p = sign_flip(np.array(points) / 100)
    assert sign_flip(np.array(shuffled) / 100) == p
    assert sign_flip(-np.array(points) / 100) == p


@pytest.mark.parametrize("seeds", [2, 7, 10])
def test_p_is_that_of_scipys_permutations(seeds: int) -> None:
    differences = np.random.default_rng(seeds).normal(0.4, 1, seeds)
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=2**seeds)
    assert sign_flip(differences) == pytest.approx(theirs.pvalue)


@pytest.mark.parametrize("seeds", [6, 20, 31, 40])
def test_p_of_solved_or_not_is_mcnemars(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    for _ in range(5):
        differences = rng.choice([-1.0, 0.0, 1.0], seeds, p=[0.2, 0.3, 0.5])
        more, less = int((differences > 0).sum()), int((differences < 0).sum())
        assert sign_flip(differences) == pytest.approx(stats.binomtest(more, more + less).pvalue, rel=1e-12)


def test_p_of_very_many_pairs_is_by_random_signs() -> None:
    differences = np.repeat([1.0, -1.0], [40, 20])
    exact = stats.binomtest(40, 60).pvalue
    assert sign_flip(differences) == pytest.approx(exact, abs=4 * math.sqrt(exact / 2**16))


def test_six_pairs_are_the_fewest_that_can_decide() -> None:
    assert fewest_pairs() == 6
    assert sign_flip(np.ones(6)) == pytest.approx(2 / 2**6)
    assert sign_flip(np.ones(6)) <= 0.05 < sign_flip(np.ones(5))
    assert sign_flip(np.ones(20)) == pytest.approx(2 / 2**20)
    assert math.isnan(sign_flip(np.array([0.3])))
    assert sign_flip(np.zeros(8)) == 1


def test_an_interval_is_that_of_scipys_t_test() -> None:
    values = np.random.default_rng(0).normal(0.2, 1, 11)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values)[1:] == pytest.approx((theirs.low, theirs.high))


P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(P_VALUES)
@example([0.01, 0.02, 0.03])
def test_holms_p_is_that_of_closed_testing(p: list[float]) -> None:
    # A claim stands if every set of claims that has it is refused by Bonferroni (Marcus, Peritz and Gabriel 1976).
    sets = [each for size in range(1, len(p) + 1) for each in combinations(range(len(p)), size)]
    expected = [max(min(1.0, len(each) * min(p[k] for k in each)) for each in sets if i in each) for i in range(len(p))]
    assert holm(p) == pytest.approx(expected)


@given(P_VALUES, st.randoms(use_true_random=False), st.floats(0, 1), st.integers(0, 5))
def test_holms_p_follows_the_order_and_never_falls_where_a_p_rises(
    p: list[float], random: "np.random.Generator", rise: float, place: int
) -> None:
    order = [*range(len(p))]
    random.shuffle(order)
    assert holm([p[k] for k in order]) == pytest.approx([holm(p)[k] for k in order])
    assert all(own <= corrected <= 1 for own, corrected in zip(p, holm(p), strict=True))
    higher = [max(each, rise) if k == place else each for k, each in enumerate(p)]
    assert all(a <= b + 1e-12 for a, b in zip(holm(p), holm(higher), strict=True))


def test_holm_of_nothing_is_nothing() -> None:
    assert holm([]) == []


def fourfold(both: int, first: int, second: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The seeds that both arms solved, the first alone, the second alone, and neither."""
    counts = [both, first, second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, Table II, method 10
        ((14, 5, 0, 22), 0.011, 0.226),  # Altman et al. 2000, Statistics with Confidence, p. 53
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland et al. 2014, after Bentur et al. 2009
    ],
)
def test_a_difference_of_shares_has_the_published_interval(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    found = difference_of_shares(*fourfold(*counts))
    digits = 5e-5 if abs(low * 1e4 % 10) > 1e-6 else 5e-4
    assert found.low == pytest.approx(low, abs=digits + 1e-9)
    assert found.high == pytest.approx(high, abs=digits + 1e-9)
    assert found.mean == pytest.approx((counts[1] - counts[2]) / sum(counts))


@given(SHARES)
def test_a_difference_of_shares_turns_with_its_arms(pairs: list[tuple[bool, bool]]) -> None:
    one, other = np.array(pairs).T
    forth, back = difference_of_shares(one, other), difference_of_shares(other, one)
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert -1 <= forth.low <= forth.mean <= forth.high <= 1
    assert forth.high > forth.low, "seeds that agree are still few"


@pytest.mark.parametrize(
    (
        "chances",
        "least",
    ),  # of both, the first alone, the second alone, neither; at the edge Wilson's interval covers less
    [((0.1, 0.6, 0.1, 0.2), 0.94), ((0.4, 0.1, 0.1, 0.4), 0.94), ((0.0, 0.95, 0.0, 0.05), 0.91)],
)
@pytest.mark.parametrize("seeds", [10, 20])
def test_a_difference_of_shares_is_covered(chances: tuple[float, ...], least: float, seeds: int) -> None:
    truth, covered = chances[1] - chances[2], 0.0
    tables = [
        (both, first, second, seeds - both - first - second)
        for both in range(seeds + 1)
        for first in range(seeds + 1 - both)
        for second in range(seeds + 1 - both - first)
    ]
    chance_of = stats.multinomial.pmf(np.array(tables), seeds, chances)
    for table, chance in zip(tables, chance_of, strict=True):
        if chance > 1e-6:
            found = difference_of_shares(*fourfold(*table))
            covered += float(chance) * (found.low <= truth <= found.high)
    assert covered > least


def test_wilsons_interval_is_scipys() -> None:
    for right in (0, 3, 20):
        theirs = stats.binomtest(right, 20).proportion_ci(0.95, "wilson")
        assert wilson(right / 20, 20) == pytest.approx((theirs.low, theirs.high), abs=1e-5)  # z is 1.96 here


@given(SHARES)
def test_fishers_p_sums_what_is_as_unlikely(pairs: list[tuple[bool, bool]]) -> None:
    one, other = np.array(pairs).T
    seeds, solved = len(one), int(one.sum() + other.sum())
    ways = {
        k: math.comb(seeds, k) * math.comb(seeds, solved - k)
        for k in range(max(0, solved - seeds), min(seeds, solved) + 1)
    }
    as_far = sum(each for each in ways.values() if each <= ways[int(one.sum())] * (1 + 1e-9))
    assert fisher(one, other) == pytest.approx(as_far / sum(ways.values()))


def log_rank_by_hand(one: list[float], other: list[float], end: float) -> float:
    """The test from its definition: at each time, what was seen less what was expected of those still watched."""
    runs = [(min(t, end), t <= end, arm) for arm, times in ((0, one), (1, other)) for t in times]
    seen_less_expected = variance = 0.0
    for time in {t for t, event, _ in runs if event}:
        risk = [arm for t, _, arm in runs if t >= time]
        events = [arm for t, event, arm in runs if event and t == time]
        n, mine, d = len(risk), risk.count(0), len(events)
        seen_less_expected += events.count(0) - d * mine / n
        variance += d * mine / n * (1 - mine / n) * (n - d) / (n - 1) if n > 1 else 0.0
    return float(stats.chi2.sf(seen_less_expected**2 / variance, 1)) if variance else 1.0


TIMES = st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, math.nan]), min_size=2, max_size=8)


@given(TIMES, TIMES)
@example([math.nan] * 3, [math.nan] * 3)
@example([2.0, 2.0], [2.0, 2.0])
@settings(max_examples=60)
def test_the_log_rank_test_counts_runs_that_never_came_to_it_as_watched_to_the_end(
    one: list[float], other: list[float]
) -> None:
    ours = log_rank(np.array(one), np.array(other), 4.0)
    never = [[math.inf if math.isnan(time) else time for time in times] for times in (one, other)]
    assert ours == pytest.approx(log_rank_by_hand(never[0], never[1], 4.0))


@pytest.mark.parametrize("seed", range(4))
def test_pages_p_is_the_share_of_orders_that_say_as_much(seed: int) -> None:
    scores = np.random.default_rng(seed).normal(0, 1, (4, 3)) + np.arange(3) * [0.0, 0.7, 1.5, -1.0][seed]
    orders = [*permutations((1, 2, 3))]
    every = [sum(sum(k * r for k, r in enumerate(row, start=1)) for row in rows) for rows in product(orders, repeat=4)]
    own = float((stats.rankdata(scores, axis=1) @ [1, 2, 3]).sum())
    one_sided = [np.mean([each >= own for each in every]), np.mean([each <= own for each in every])]
    spread, p = page_trend(scores)
    assert p == pytest.approx(min(1, 2 * min(one_sided)))
    assert spread[:] == pytest.approx(interval([stats.spearmanr(row, [0, 1, 2]).statistic for row in scores])[:])


def test_a_trend_turns_with_its_order_and_ties_are_none() -> None:
    scores = np.random.default_rng(0).normal(0, 1, (8, 6)) + 0.3 * np.arange(6)
    (up, p), (down, turned) = page_trend(scores), page_trend(scores[:, ::-1])
    assert (up.mean, up.low, p) == pytest.approx((-down.mean, -down.high, turned))
    flat, p = page_trend(np.ones((8, 4)))
    assert (flat.mean, p) == (0, 1)
    single, p = page_trend(scores[:1])
    assert single.mean == pytest.approx(stats.spearmanr(scores[0], range(6)).statistic)
    assert math.isnan(p)


def test_a_trend_of_ties_is_found_no_more_often_than_by_chance() -> None:
    # Solved or not, at the same chance at each of four values: Page's p is exact without ties, and safe with them.
    rng = np.random.default_rng(1)
    found = [page_trend(rng.integers(0, 2, (8, 4)).astype(float))[1] <= 0.05 for _ in range(400)]
    assert np.mean(found) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(
    ("effect", "seeds"),
    [(0.2, 199), (0.5, 34), (0.8, 15), (1.5, 6), (5.3, 3), (9.7, 3), (14.0, 2)],  # the last three by integration
)
def test_seeds_needed_are_those_of_the_tables(effect: float, seeds: int) -> None:
    # G*Power 3.1, difference of two dependent means, two-sided, alpha 0.05, power 0.8.
    assert seeds_needed(effect, 1.0) == seeds
    assert seeds_needed(-3 * effect, 3.0) == seeds
    assert power(effect, 1.0, seeds) >= 0.8
    assert seeds == 2 or power(effect, 1.0, seeds - 1) < 0.8


def test_seeds_needed_at_the_ends() -> None:
    assert seeds_needed(0.1, 0.0) == 2
    assert seeds_needed(0.1, math.nan) is None
    assert seeds_needed(1e-6, 1.0) is None


@pytest.mark.parametrize(("effect", "seeds"), [(0.3, 8), (0.9, 10), (1.2, 6), (0.5, 40)])
def test_power_is_that_of_scipys_noncentral_t(effect: float, seeds: int) -> None:
    bound, shift = stats.t.ppf(0.975, seeds - 1), effect * math.sqrt(seeds)
    theirs = stats.nct.sf(bound, seeds - 1, shift) + stats.nct.cdf(-bound, seeds - 1, shift)
    assert power(effect, 1.0, seeds) == pytest.approx(theirs, abs=1e-5)


def test_power_is_how_often_a_t_test_finds_the_effect() -> None:
    draws = np.random.default_rng(0).normal(0.6, 1.3, (40_000, 9))
    found = np.asarray(stats.ttest_1samp(draws, 0, axis=1).pvalue) < 0.05
    assert power(0.6, 1.3, 9) == pytest.approx(found.mean(), abs=4 * math.sqrt(0.25 / 40_000))
    assert power(0.0, 1.3, 9) == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize(("shift", "seeds"), [(0.7, 2), (4.9, 3), (6.0, 2), (11.0, 2), (2.5, 40)])
def test_power_is_a_number_where_scipys_distribution_has_none(shift: float, seeds: int) -> None:
    z, chi = np.random.default_rng(3).standard_normal(200_000), np.random.default_rng(4).chisquare(seeds - 1, 200_000)
    t = (z + shift * math.sqrt(seeds)) / np.sqrt(chi / (seeds - 1))
    found = np.abs(t) > stats.t.ppf(0.975, seeds - 1)
    assert power(shift, 1.0, seeds) == pytest.approx(found.mean(), abs=4 * math.sqrt(0.25 / 200_000))


def test_the_upper_limit_of_a_deviation_covers_it_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(0, 2.0, (20_000, 4)).std(axis=1, ddof=1)
    assert np.mean([at_most(each, 4) >= 2.0 for each in draws]) == pytest.approx(0.8, abs=0.012)
    assert math.isnan(at_most(1.0, 1))


def test_pairing_gains_what_seeds_share() -> None:
    rng = np.random.default_rng(2)
    common, noise = rng.normal(0, 3, 5000), rng.normal(0, 1, (2, 5000))
    assert pairing_gain(common + noise[0], common + noise[1]) == pytest.approx(10, rel=0.1)
    assert pairing_gain(noise[0], noise[1]) == pytest.approx(1, rel=0.1)
    assert math.isnan(pairing_gain(common[:2], common[:2] + 1))
    assert math.isnan(pairing_gain(common, common))  # nothing to compare: no deviation at all
