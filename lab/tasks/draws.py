"""Counter-based random numbers: draw j of example i of a stream is a pure function of (stream, i, j).

So an example is the same in any batch, order, worker or resumed run. NumPy's own generators are no alternative: one
generator for each example is slow to set up, one for all has no random access, and their streams may change between
versions. Here draw j of example i is splitmix64 (Steele, Lea & Flood 2014) used as a counter that starts at a hash of
the stream and i. It uses only integer operations modulo 2^64, which give the same results on all machines.
"""

import hashlib
import json
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=64)
def stream(*parts: int | str) -> np.uint64:
    """Return the key of the stream that is named by `parts`; different parts give unrelated streams."""
    name = json.dumps(parts).encode()  # tells 1 from "1", and ("ab", "c") from ("a", "bc")
    return np.uint64(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little"))


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the finaliser of splitmix64, a bijection that mixes all bits, of `values`, which it overwrites."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


def draws(key: np.uint64, indices: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
    """Return the first `count` draws [N, count] of the examples `indices` [N], uniform over 64 bits."""
    start = mixed(indices.astype(np.uint64) * _GOLDEN + key)
    return mixed(start[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


def draws32(key: np.uint64, indices: NDArray[np.int64], count: int) -> NDArray[np.uint32]:
    """Return draws [N, count] as `draws` does, but uniform over 32 bits, two from each draw of 64 bits."""
    pairs = draws(key, indices, (count + 1) // 2).astype("<u8", copy=False)
    return pairs.view("<u4")[:, :count]


def below(bound: int | NDArray[np.integer], random: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return integers from 0 to `bound` - 1, `bound` at most 2^32, from 32 random bits each: multiply and shift.

    Uniform up to a relative error of `bound` / 2^32.
    """
    product = np.multiply(random, bound, dtype=np.uint64, casting="unsafe")
    product >>= np.uint64(32)
    return product


def epoch_indices(name: str, indices: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """Return the members [N] of a finite corpus that are the training examples `indices` [N].

    The corpus is repeated without end, in a new random order every epoch.

    Args:
        name: the name of the corpus; other corpora have other orders.
        indices: [N] indices of training examples.
        size: the number of members of the corpus.
        seed: changes the orders.
    """
    epochs, places = np.divmod(indices, size)
    chosen = np.empty_like(indices)
    for epoch in np.unique(epochs).tolist():
        rows = epochs == epoch
        chosen[rows] = _epoch_order(name, size, seed, epoch)[places[rows]]
    return chosen


@lru_cache(maxsize=2)
def _epoch_order(name: str, size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order [size] of a finite corpus in an epoch."""
    random = draws(stream(name, "epoch", seed, epoch), np.arange(size), 1)[:, 0]
    return np.argsort(random, kind="stable")
