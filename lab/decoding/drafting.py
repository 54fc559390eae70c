"""Drafting: heads 2 to k propose the tokens after a row's newest one. Two strategies behind one interface.

- `ParallelDrafter`: heads that read hidden states of the same forward pass. They come with the pass that verifies.
- `SequentialDrafter`: teacher-forced heads (`Objective.teacher_forced`), each of which reads the draft of the one
  before it. They run after the pass, once the accepted tokens are known.

Shape suffixes: B active rows, S tokens of a forward pass, C columns of the cache, D width, V tokens, k heads.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lab.decoding.sampling import Sampling, distribution, sample
from lab.decoding.state import Rows
from lab.decoding.tree import Tree, draft_tree
from lab.models.cache import Cache
from lab.models.decoder import Context
from lab.objectives import LanguageModel

_HIDDEN_STATES = "head 1"
"""Owner, in the cache, of head 1's hidden states, which sequential heads read again."""


class Drafts(NamedTuple):
    """Tokens that the next forward pass reads."""

    nodes_BS: Tensor
    """int64 [B, S] each row's newest token, then its drafts, in the order of the tree's nodes."""
    q: list[Tensor]
    """[B, V] distribution that each head's draft was sampled from, head 2 first; empty in greedy decoding."""


class Drafter(ABC):
    """A way of running the model's heads, and of making drafts with heads 2 to k."""

    def __init__(
        self, model: LanguageModel, cache: Cache, widths: Sequence[int], device: torch.device, sampling: Sampling | None
    ) -> None:
        """Begin with an empty cache.

        Args:
            model: any objective.
            cache: keys and values of all tokens read; every forward pass writes to it.
            widths: candidates of each head, head 2 first.
            device: the model's.
            sampling: parameters of sampling; None for greedy decoding.
        """
        self.decoder, self.objective = model.decoder, model.objective
        self.cache, self.widths, self.sampling = cache, widths, sampling
        self.heads = len(widths) + 1
        self.tree: Tree = draft_tree(widths, device)
        self.generator = torch.Generator(device)
        if sampling is not None:
            self.generator.manual_seed(sampling.seed)

    @abstractmethod
    def hidden_states(self, tokens_BS: Tensor, context: Context) -> list[Tensor]:
        """Run a forward pass; return the hidden states [B, S, D] of head 1 and of all other heads that it computes."""

    @abstractmethod
    def candidates(self, rows: Rows, hidden_kBD: Tensor) -> list[Tensor]:
        """Return the candidates [B, width], int64, of each of heads 2 to k, likeliest first.

        Args:
            rows: the rows; at least one is active.
            hidden_kBD: hidden states of the heads after head 1 that the last forward pass computed, at the position
                before each row's newest token.
        """

    def propose(self, rows: Rows, hidden_kBD: Tensor) -> Drafts:
        """Return drafts for all active rows. The arguments are those of `candidates`."""
        self.q: list[Tensor] = []
        newest_B1 = rows.newest_B[:, None]
        if not self.widths or not len(rows.active):
            return Drafts(newest_B1, self.q)
        candidates = torch.cat(self.candidates(rows, hidden_kBD), dim=1)
        return Drafts(torch.cat((newest_B1, candidates[:, self.tree.candidates]), dim=1), self.q)

    def choose(self, logits_BV: Tensor, width: int) -> Tensor:
        """Return a head's candidates [B, width]: its likeliest tokens, or one sampled token."""
        if self.sampling is None:
            return logits_BV.topk(width, dim=-1).indices
        self.q.append(distribution(logits_BV, self.sampling))
        return sample(self.q[-1], self.generator)[:, None]


class ParallelDrafter(Drafter):
    """Heads that are computed in every forward pass, beside head 1."""

    def hidden_states(self, tokens_BS: Tensor, context: Context) -> list[Tensor]:
        trunk_BSD = self.decoder(tokens_BS, context)
        return list(self.objective.hidden_states(self.decoder, trunk_BSD, context, self.heads))

    def candidates(self, rows: Rows, hidden_kBD: Tensor) -> list[Tensor]:
        logits: Iterable[Tensor]
        if self.objective.unembeddings():
            of_head = self.objective.logits_of
            logits = (of_head(self.decoder, head, hidden_BD) for head, hidden_BD in enumerate(hidden_kBD, start=2))
        else:  # all heads share the unembedding: one matrix product
            logits = self.objective.logits_of(self.decoder, 2, hidden_kBD)
        return [self.choose(logits_BV, width) for width, logits_BV in zip(self.widths, logits, strict=True)]


class SequentialDrafter(Drafter):
    """Teacher-forced heads, which read committed tokens, and drafts where there are none yet.

    Where a head has read drafts it reads again once tokens are committed there. So at every earlier position it has
    read the true tokens, as in training.
    """

    _read: NDArray[np.int64] | None = None
    """[rows] position of each row's newest token at the last proposal; None before the first proposal."""

    def hidden_states(self, tokens_BS: Tensor, context: Context) -> list[Tensor]:
        trunk_BSD = self.decoder(tokens_BS, context)
        [hidden_BSD] = self.objective.hidden_states(self.decoder, trunk_BSD, context, 1)
        if self.widths and context.slots is not None:
            self.cache.write(_HIDDEN_STATES, context.slots.places, hidden_BSD)
        return [hidden_BSD]

    def candidates(self, rows: Rows, hidden_kBD: Tensor) -> list[Tensor]:
        # Choose the window of positions to read, [start, start + width). The first time it is the prompt. Later it
        # covers the new positions, and before them the k-2 positions at which heads may have read drafts.
        if self._read is None:
            self._read = np.zeros_like(rows.lengths)
            start, width = self._read[rows.active], rows.prompt_width
        else:
            start, width = np.maximum(0, self._read[rows.active] - (self.heads - 2)), 2 * self.heads - 2
        self._read[rows.active] = rows.positions

        # A position sees all columns up to its own.
        start_B1 = torch.from_numpy(start).to(rows.text.device)[:, None]
        columns_BS = start_B1 + rows.columns[:width]
        seen_BSC = None
        if start.any():
            seen_BSC = rows.columns[: int(start.max()) + width] <= columns_BS[..., None]
        context = self.decoder.continuation(self.cache, columns_BS, columns_BS, seen_BSC)

        # Run the heads one after another; each draft is written to `tokens` before the next head reads it there.
        [hidden_BSD] = self.cache.read(_HIDDEN_STATES, self.cache.places(columns_BS))
        tokens = rows.text[rows.active_B[:, None], start_B1 + rows.columns[: width + self.heads - 1]]
        hidden_states = self.objective.next_hidden_states(self.decoder, hidden_BSD, context, self.heads, tokens)
        last_B = rows.position_B - 1 - start_B1[:, 0]
        candidates: list[Tensor] = []
        for depth, tree_width in enumerate(self.widths, start=1):
            if candidates:
                tokens[rows.batch_B, last_B + depth] = candidates[-1][:, 0]
            hidden_BD = next(hidden_states)[rows.batch_B, last_B]
            logits_BV = self.objective.logits_of(self.decoder, depth + 1, hidden_BD)
            candidates.append(self.choose(logits_BV, tree_width))
        return candidates
