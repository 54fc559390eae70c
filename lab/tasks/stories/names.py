"""Names of two tokens: the config, and the sampler that draws them from a pool or fresh.

pool (4 names share a first token)    Mi ra   Mi so   Mi la   Mi tu   Ko ra   Ko fe   ...
fresh                                 a random pair of syllables
"""

from enum import IntFlag
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lab.config import Config
from lab.errors import BadInput
from lab.tasks.draws import below, draws32, stream
from lab.tasks.tokenizers import Bpe, Tokenizer, Tokens, Words

REFRAIN = 3
"""The name-like pairs of tokens in a story's refrain."""
SYLLABLES = 180
MOST_SYLLABLES = 2000
"""The largest number of syllables in a word vocabulary; few enough that all differ from words."""
_PATIENCE = 16
"""The number of times that unsuitable names of the pool are drawn again by their frequencies, then uniformly."""

Share = Annotated[float, Field(ge=0, le=1)]


class Names(Config):
    """The names of characters."""

    fresh: Share = 0.1
    """The share p of training names that are fresh pairs; the others are from the pool."""
    pool: int = Field(default=100, ge=8, le=10_000)
    """The number of names in the pool."""
    zipf: float = Field(default=1.0, ge=0, le=10)
    """The pool's k-th name has a frequency proportional to 1 / k to this power; 0 makes all equally frequent."""
    ambiguity: int = Field(default=4, ge=1, le=100)
    """The number of names of the pool that share a first token; at 1 the first token determines the second."""
    shared: bool | None = None
    """True if first and second tokens are from the same set. Null: true with words and bytes, false with BPE."""
    syllables: int | None = Field(default=None, ge=8, le=1600)
    """The number of different first, and second, tokens of training names. Null: 180, or as many as bytes and BPE
    have."""
    unseen: Share = 0.0
    """The share of tokens in fresh validation and test names that no training name has; only with words, whose
    vocabulary has a quarter more syllables for this."""

    def syllable_tokens(self) -> int:
        """Return the number of syllables in the word vocabulary."""
        each = self.syllables or SYLLABLES
        return (each + each // 4) * (2 if self.shared is False else 1)

    @model_validator(mode="after")
    def _enough(self) -> "Names":
        if self.syllable_tokens() > MOST_SYLLABLES:
            raise ValueError(
                f"syllables: {self.syllables} is not allowed with shared false: at most {MOST_SYLLABLES * 2 // 5}"
            )
        return self

    def check(self, tokens: Tokens) -> None:
        """Raise for settings that a kind of tokens does not allow.

        Raises:
            BadInput: unseen tokens where none are left over, or shared tokens with BPE.
        """
        if self.unseen and not isinstance(tokens, Words):
            raise BadInput(f"task.names.unseen: {self.unseen} is not allowed: only word tokens have some to spare")
        if self.shared and isinstance(tokens, Bpe):
            raise BadInput("task.names.shared: true is not allowed: a BPE name's first token has a capital")


class _Unseen(IntFlag):
    """The tokens of a name that no training name has."""

    FIRST = 1
    SECOND = 2


class NameSampler:
    """Draws names. A name is a number: an index into `tokens` [names, 2].

    Names are ordered by their `_Unseen` tokens; the first `usual` names have none, and can be training names.
    """

    def __init__(self, config: Names, tokens: Tokens, tokenizer: Tokenizer, characters: int) -> None:
        """Collect the pairs that can be a name, and draw the pool.

        Args:
            config: the config of names.
            tokens: the kind of tokens.
            tokenizer: gives the candidates.
            characters: the number of names of a story, without those of the refrain.

        Raises:
            BadInput: there are too few tokens or names.
        """
        config.check(tokens)
        self.config, self.characters = config, characters
        shared = config.shared if config.shared is not None else not isinstance(tokens, Bpe)

        # The candidates: the first `each` of them for training, a quarter more for unseen tokens.
        firsts, seconds = tokenizer.name_tokens(shared)
        each, fewest = config.syllables or SYLLABLES, min(len(firsts), len(seconds))
        if config.syllables and each > fewest:
            raise BadInput(f"task.names.syllables: {each} is not allowed: {tokens.name} tokens have {fewest}")
        spare = each // 4 if isinstance(tokens, Words) else 0
        allowed = tokenizer.allowed(firsts[: each + spare], seconds[: each + spare])
        if shared:
            np.fill_diagonal(allowed, False)

        # All names, ordered by their unseen tokens.
        first, second = np.nonzero(allowed)
        unseen = _Unseen.FIRST * (first >= each) + _Unseen.SECOND * (second >= each)
        order = np.argsort(unseen, kind="stable")
        self.tokens = np.stack([firsts[first], seconds[second]], axis=1)[order]
        self._sizes = np.bincount(unseen, minlength=4)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.usual = int(self._sizes[0])
        self.seconds = len(np.unique(self.tokens[: self.usual, 1]))
        """The number of different second tokens of training names."""
        self.held_out = np.zeros(len(self.tokens), np.bool_)
        """[names] True for names that training and validation must not have."""
        self._draw_pool(first[order][: self.usual])

    def _draw_pool(self, first: NDArray[np.int64]) -> None:
        """Draw the pool: groups of `ambiguity` names that share a first token, in random order of frequency."""
        # Groups of names by first token in random order; within a group names are in random order, too.
        config = self.config
        random = draws32(stream("names", "pool"), np.arange(self.usual), 2)
        rank = np.argsort(draws32(stream("names", "firsts"), np.arange(first.max() + 1), 1)[:, 0], kind="stable")
        order = np.lexsort((random[:, 0], rank[first]))
        ordered = rank[first][order]
        position = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # within the group

        # The first `ambiguity` names of each group, until the pool is full.
        chosen = order[position < config.ambiguity][: config.pool]
        if len(chosen) < config.pool:
            raise BadInput(
                f"task.names.pool: {config.pool} is not allowed: with ambiguity {config.ambiguity} "
                f"these tokens give {len(chosen)} names"
            )
        if len(np.unique(first[chosen])) < self.characters:
            raise BadInput(
                f"task.names.pool: {config.pool} is not allowed: with ambiguity {config.ambiguity} it has "
                f"{len(np.unique(first[chosen]))} first tokens, and a story can need {self.characters}"
            )

        # Cumulative frequencies, as 32-bit thresholds.
        self.pool = chosen[np.argsort(random[chosen, 1], kind="stable")]
        weights = np.arange(1, len(chosen) + 1) ** -float(config.zipf)
        self._thresholds = (np.cumsum(weights) / weights.sum() * 2**32)[:-1]

    def draw(
        self, names: tuple[str | int, ...], indices: NDArray[np.int64], fresh: float, unseen: float, free: bool
    ) -> NDArray[np.int64]:
        """Draw the names [N, characters + REFRAIN] of the stories `indices` [N].

        Characters differ in their first tokens, and no pair of the refrain contains one of these.

        Args:
            names: the name of the random stream.
            indices: [N] indices of stories.
            fresh: the share of fresh names; the refrain's pairs are all fresh.
            unseen: the share of tokens in fresh names that no training name has.
            free: True if names that are held out may occur.
        """
        drawn = self._drawn(names, 0, indices, fresh, unseen)
        attempt, rows = 0, np.arange(len(indices))
        while True:
            # Unsuitable names: a first token that an earlier character has, a refrain with a first token, held out.
            tokens = self.tokens[drawn[rows]]
            first, wrong = tokens[:, : self.characters, 0], np.zeros((len(rows), drawn.shape[1]), np.bool_)
            for place in range(1, self.characters):
                wrong[:, place] = (first[:, :place] == first[:, place, None]).any(axis=1)
            for place in range(self.characters, drawn.shape[1]):
                wrong[:, place] = (first[:, None] == tokens[:, place, :, None]).any(axis=(1, 2))
            if not free:
                wrong |= self.held_out[drawn[rows]]

            # Draw them again.
            again = np.flatnonzero(wrong.any(axis=1))
            if not len(again):
                return drawn
            attempt += 1
            rows, wrong = rows[again], wrong[again]
            drawn[rows] = np.where(wrong, self._drawn(names, attempt, indices[rows], fresh, unseen), drawn[rows])

    def _drawn(
        self, names: tuple[str | int, ...], attempt: int, indices: NDArray[np.int64], fresh: float, unseen: float
    ) -> NDArray[np.int64]:
        """Draw names [N, characters + REFRAIN] without regard to each other."""
        width = self.characters + REFRAIN
        random = draws32(stream(*names, attempt), indices, 3 * width)
        share, number, halves = np.split(random, 3, axis=1)

        # Fresh names: the two halves of a random number tell which tokens are unseen ones.
        kind = _Unseen.FIRST * (halves % 2**16 < unseen * 2**16).astype(np.int64)
        kind += _Unseen.SECOND * (halves >> np.uint32(16) < unseen * 2**16)
        kind[:, self.characters :] = 0
        fresh_names = self._starts[kind] + below(self._sizes[kind], number).astype(np.int64)

        # Names of the pool. A few frequent names may leave no others that are suitable; then all are equally likely.
        if attempt < _PATIENCE:
            rank = np.searchsorted(self._thresholds, number, side="right").astype(np.int64)
        else:
            rank = below(len(self.pool), number).astype(np.int64)
        is_fresh = share < fresh * 2**32
        is_fresh[:, self.characters :] = True
        return np.where(is_fresh, fresh_names, self.pool[rank])
