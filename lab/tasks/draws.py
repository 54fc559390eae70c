"""Counter-based random numbers: draw j of example i of a stream is a pure function of (stream, i, j).

So an example is the same in any batch, order, worker or resumed run. numpy's own generators do not serve: one of them
for each example is slow to set up, one for all is no random access, and their streams are not promised across versions.
Here draw j of example i is splitmix64 (Steele, Lea & Flood 2014) run as a counter, whose start is a hash of stream and
i. It takes only integer operations modulo 2^64, which are the same everywhere.
"""

import hashlib
import json
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=64)
def stream(*parts: int | str) -> np.uint64:
    """The key of the stream that is named by `parts`; different parts give unrelated streams."""
    name = json.dumps(parts).encode()  # tells 1 from "1", and ("ab", "c") from ("a", "bc")
    return np.uint64(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, a bijection that leaves no visible order; overwrites `values` and returns it."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


def draws(key: np.uint64, indices: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
    """The first `count` draws of each of the examples `indices` [N]: [N, count], uniform over 64 bits."""
    start = mixed(indices.astype(np.uint64) * _GOLDEN + key)
    return mixed(start[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


def draws32(key: np.uint64, indices: NDArray[np.int64], count: int) -> NDArray[np.uint32]:
    """Like `draws`, uniform over 32 bits, two from each draw of 64: [N, count]."""
    pairs = draws(key, indices, (count + 1) // 2).astype("<u8", copy=False)
    return pairs.view("<u4")[:, :count]


def below(bound: int | NDArray[np.integer], random: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """32 random bits to integers from 0 to `bound` - 1, `bound` at most 2^32: multiply and shift.

    Uniform up to a relative error of `bound` / 2^32.
    """
    product = np.multiply(random, bound, dtype=np.uint64, casting="unsafe")
    product >>= np.uint64(32)
    return product


def epoch_indices(name: str, indices: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """Members of a finite corpus for the training examples `indices` [N]: it is gone through anew, shuffled, for ever.

    Args:
        name: the corpus's, which tells its orders from others'.
        indices: of examples.
        size: of the corpus.
        seed: moves the orders.
    """
    epochs, places = np.divmod(indices, size)
    chosen = np.empty_like(indices)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        chosen[rows] = _epoch_order(name, size, seed, epoch)[places[rows]]
    return chosen


@lru_cache(maxsize=2)
def _epoch_order(name: str, size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order [size] in which an epoch goes through a finite corpus."""
    random = draws(stream(name, "epoch", seed, epoch), np.arange(size), 1)[:, 0]
    return np.argsort(random, kind="stable")
