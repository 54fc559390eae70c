"""The cache of decoding: keys and values of the tokens that were read, for every attention layer, by column.

A place is a column of a row, counted through all rows: one index finds it, and is made once for all layers of a pass.

Shape suffixes: B rows, S tokens of one forward pass, C columns, M columns moved, H attention heads, K width of a head.
"""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Cache:
    """Tensors [B, C, ...] by owner, all with the same columns, one a token; a layer of attention owns keys and values.

    Column j of a row is for token j of the row as soon as that is settled; what lies beyond a row's settled tokens is
    of no account, and is overwritten. Room is made when an owner first writes.
    """

    def __init__(self, rotary_CK: Tensor) -> None:
        """An empty cache with a column for each of the rotations, complex64 [C, 1, K/2], position 0 first."""
        self.rotary = rotary_CK
        self._kept: dict[Hashable, list[Tensor]] = {}

    @property
    def layers(self) -> int:
        """Attention layers that have taken part."""
        return sum(isinstance(owner, nn.Module) for owner in self._kept)

    def places(self, columns_BS: Tensor) -> Tensor:
        """The places of some columns of each row, int64 [B, S]."""
        rows = torch.arange(len(columns_BS), device=columns_BS.device)
        return columns_BS + len(self.rotary) * rows[:, None]

    def write(self, owner: Hashable, places_BS: Tensor, *values: Tensor) -> list[Tensor]:
        """Put an owner's values [B, S, ...] into places; returns all that it keeps, [B, C, ...] each."""
        if owner not in self._kept:
            columns = len(self.rotary)
            self._kept[owner] = [each.new_zeros(len(each), columns, *each.shape[2:]) for each in values]
        for kept, each in zip(self._kept[owner], values, strict=True):
            kept.flatten(0, 1).index_copy_(0, places_BS.flatten(), each.flatten(0, 1))
        return self._kept[owner]

    def read(self, owner: Hashable, places_BS: Tensor) -> list[Tensor]:
        """Return an owner's entries at some places: [B, S, ...] each."""
        return [kept.flatten(0, 1)[places_BS] for kept in self._kept[owner]]

    def move(self, source_BM: Tensor, target_BM: Tensor) -> None:
        """Copy columns (int64) to others, for every owner."""
        source, target = self.places(source_BM), self.places(target_BM)
        for owner in self._kept:
            self.write(owner, target, *self.read(owner, source))

    def select(self, rows: Tensor) -> None:
        """Keep some of the rows, int64 [B'], and let the others go."""
        self._kept = {owner: [each[rows] for each in kept] for owner, kept in self._kept.items()}


class Slots(NamedTuple):
    """The places that a forward pass's tokens take in a cache."""

    cache: Cache
    places: Tensor
    """int64 [B, S]."""
    end: int
    """Columns that are attended over, the first ones; what the pass's mask speaks of."""

    def extended(self, layer: nn.Module, k_BSHK: Tensor, v_BSHK: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values; returns those of all columns, [B, end, H, K] each."""
        k_BCHK, v_BCHK = self.cache.write(layer, self.places, k_BSHK, v_BSHK)
        return k_BCHK[:, : self.end], v_BCHK[:, : self.end]
