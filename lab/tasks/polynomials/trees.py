"""Expression trees as prefix words, N at a time, and two distributions over them.

A word is a row of symbols: every operator stands before its operands, and the rest of the row is `PAD`. A tree with b
binary operators has b + 1 leaves, so m operators need at most 2m + 1 symbols.
"""

import numpy as np
from numpy.typing import NDArray

from lab.tasks.draws import below

PAD, NEG, ADD, MUL, COMPOSE, LEAF = range(6)
"""The symbols. All except `PAD` are positive, and all fit in three bits."""


def leaf_counts(operators: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of leaves [N] of trees with operators [N, M], padded with `PAD`."""
    binary: NDArray[np.int64] = np.count_nonzero(operators > NEG, axis=1)
    return 1 + binary


def uniform_words(operators: NDArray[np.uint8], random: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return words of the given operators, with every arrangement of operators and leaves in a tree equally likely.

    The distribution is that of a random permutation, rotated to its only rotation that is a prefix word; no sort is
    needed. By the cycle lemma a share s/n of all sequences of n symbols completes a word with s open operands. So with
    u unary and b binary operators among them the next symbol is binary with probability (s+1) b / (s (n-1)), and
    unary with probability u / (n-1).

    Args:
        operators: [N, M] symbols, each row padded with `PAD`.
        random: [N, 2M] random bits.

    Returns:
        [N, 2M + 1] words.
    """
    unary = np.count_nonzero(operators == NEG, axis=1).astype(np.int16)
    binary = np.count_nonzero(operators > NEG, axis=1).astype(np.int16)
    lengths = unary + 2 * binary + np.int16(1)
    still_open = np.ones(len(operators), np.int16)
    arities = np.zeros((2 * operators.shape[1] + 1, len(operators)), np.uint8)  # the last symbol can only be a leaf
    for position, bits in enumerate(np.ascontiguousarray(random.T)):
        draw = below(still_open * (lengths - np.int16(1 + position)), bits).astype(np.int16)
        bound = (still_open + np.int16(1)) * binary
        is_binary = draw < bound
        bound += still_open * unary
        arity = np.add(draw < bound, is_binary, out=arities[position], dtype=np.uint8)
        binary -= is_binary
        unary -= arity & np.uint8(1)
        still_open += arity
        still_open -= np.int16(1)

    # Beyond a word's end the arities are those of leaves: make them padding.
    words = np.array([LEAF, NEG, ADD], np.uint8).take(arities)
    words *= np.arange(len(words), dtype=np.int16)[:, None] < lengths
    rows = np.ascontiguousarray(words.T)

    # Binary operators are exchangeable: put them, in the given order, into their places.
    rows.reshape(-1)[np.flatnonzero(rows == ADD)] = operators.reshape(-1)[np.flatnonzero(operators > NEG)]
    return rows


def split_words(operators: NDArray[np.uint8], random: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return words with operators in the given order, split from the root down.

    A binary operator that has k operations below it gives 0, 1, …, k of them to its first operand, equally likely, and
    the rest to its second.

    Args:
        operators: [N, M] symbols, each row padded with `PAD`.
        random: [N, M] random bits, a number for each operator.

    Returns:
        [N, 2M + 1] words.
    """
    count, most = operators.shape
    rows = np.arange(count)
    words = np.full((count, 2 * most + 1), PAD, np.uint8)

    # A stack for each tree: the numbers of operations of the operands still to be written.
    stack = np.zeros((count, most + 1), np.int64)
    stack[:, 0] = np.count_nonzero(operators, axis=1)
    top = np.zeros(count, np.int64)
    used = np.zeros(count, np.int64)
    for position in range(2 * most + 1):
        writing = rows[top >= 0]
        budget = stack[writing, top[writing]]
        leaf, grown = writing[budget == 0], writing[budget > 0]
        words[leaf, position] = LEAF
        top[leaf] -= 1
        kind = operators[grown, used[grown]]
        words[grown, position] = kind
        below_it = budget[budget > 0] - 1
        stack[grown, top[grown]] = below_it
        first = below(below_it + 1, random[grown, used[grown]]).astype(np.int64)
        used[grown] += 1
        binary = kind > NEG
        split, first, below_it = grown[binary], first[binary], below_it[binary]
        stack[split, top[split]] = below_it - first
        top[split] += 1
        stack[split, top[split]] = first
    return words
