"""Draws are pure functions of (stream, example, draw), follow splitmix64, and are uniform."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.tasks.draws import below, draws, draws32, mixed, stream

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The reference finaliser, on Python integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_splitmix64_known_values() -> None:
    # The first outputs of the published generator seeded with 1234567.
    counters = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mixed(counters).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(deadline=None)
@given(st.integers(0, MASK), st.integers(0, 2**62), st.integers(0, 40))
def test_one_draw_follows_its_definition(key: int, index: int, draw: int) -> None:
    golden = 0x9E3779B97F4A7C15
    expected = splitmix64((splitmix64((index * golden + key) & MASK) + (draw + 1) * golden) & MASK)
    assert draws(np.uint64(key), np.array([index]), draw + 1)[0, draw] == expected


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(0, 9), st.integers(0, 9))
def test_draws_depend_on_neither_batch_nor_count(indices: list[int], few: int, more: int) -> None:
    key = stream("test")
    batch = np.array(indices)
    for function in (draws, draws32):
        together = function(key, batch, few + more)
        np.testing.assert_array_equal(function(key, batch, few), together[:, :few])
        np.testing.assert_array_equal(function(key, batch[-1:], few + more), together[-1:])


def test_streams_are_told_apart() -> None:
    names: list[tuple[int | str, ...]] = [(), ("a",), ("b",), ("a", "b"), ("ab",), (1,), ("1",), (1, 0), (10,)]
    assert len({int(stream(*name)) for name in names}) == len(names)
    assert int(stream("polynomials", "train", 0)) == 9346736868488791399


def test_draws_are_uniform_and_uncorrelated() -> None:
    random = draws32(stream("uniformity"), np.arange(20_000), 8)
    bits = (random[..., None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.5 * 5 / np.sqrt(20_000)
    correlations = np.corrcoef(np.concatenate([random[1:], random[:-1]], axis=1).astype(float), rowvar=False)
    assert np.abs(correlations - np.eye(16)).max() < 5 / np.sqrt(20_000)


@pytest.mark.parametrize("bound", [1, 2, 7, 100, 65521])
def test_below_is_multiply_and_shift(bound: int) -> None:
    random = np.array([0, 1, 2**31, 2**32 - 1, 123456789], np.uint32)
    assert below(bound, random).tolist() == [int(r) * bound >> 32 for r in random]
    bounds = np.full(5, bound, np.int64)
    assert below(bounds, random).tolist() == below(bound, random).tolist()
    counts = np.bincount(below(bound, draws32(stream("below"), np.arange(100_000), 1)[:, 0]), minlength=bound)
    chi_square = ((counts - 100_000 / bound) ** 2).sum() / (100_000 / bound)
    assert abs(chi_square - (bound - 1)) < 5 * np.sqrt(2 * bound)
