"""Every term of the training loss by itself: each head's cross-entropy at each place of the examples."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lab.learning.data import packed_batch, select
from lab.learning.evaluation import batches
from lab.objectives import LanguageModel
from lab.objectives.base import targets
from lab.tasks.base import Examples

_LOGITS = 2**26
"""Logits of a forward pass."""


def passes(model: LanguageModel, examples: Examples) -> Iterator[NDArray[np.int64]]:
    """Rows of examples for one forward pass each; passes alternate between two halves of the documents."""
    logits = model.objective.n * model.decoder.unembedding.out_features
    for rows in batches(examples):
        parts = 2 * -(-len(rows) * int(examples.lengths[rows].max()) * logits // _LOGITS)
        yield from (part for part in (rows[first::parts] for first in range(parts)) if len(part))


def valid(examples: Examples, n: int) -> NDArray[np.bool_]:
    """[N, L, n] whether place t has a target for head i = 1..n."""
    length = examples.tokens.shape[1]
    found = np.zeros((*examples.tokens.shape, n), np.bool_)
    for head in range(1, n + 1):
        inside = np.arange(head, length) < examples.lengths[:, None]
        found[:, : length - head, head - 1] = inside & examples.loss_mask[:, head:]
        if head > 1 and examples.further_loss_mask is not None:
            found[:, : length - head, head - 1] &= examples.further_loss_mask[:, head:]
    return found


def terms(model: LanguageModel, examples: Examples) -> tuple[Tensor, Tensor, Tensor | None]:
    """The trunk's output [B, T, D], cross-entropies [B, T, n] in nats, and importance [B, T], all in one graph.

    One document a row, in the examples' order, T the longest of them. Cross-entropies are 0 where there is no target;
    importance is the objective's (`Objective.token_weights`).
    """
    n, width = model.objective.n, int(examples.lengths.max())
    part = select(examples, slice(None))
    alone = Examples(**{**vars(part), "lengths": np.full_like(part.lengths, width)})  # rows that hold one each
    inside = torch.from_numpy(np.arange(width + n) < part.lengths[:, None])
    batch = packed_batch(alone, width, n)
    batch = batch._replace(document_ids=torch.where(inside, batch.document_ids, -1)).to(next(model.parameters()).device)
    tokens = batch.tokens[:, :width]
    context = model.decoder.context(tokens, None)
    trunk_BTD = model.decoder(tokens, context)
    found = []
    logits = model.objective.logits(model.decoder, trunk_BTD, context, n, batch.tokens[:, :-1])
    for head, logits_BTV in enumerate(logits, start=1):
        wanted = targets(batch, head, width)
        found.append(F.cross_entropy(logits_BTV.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted))
    return trunk_BTD, torch.stack(found, dim=-1), model.objective.token_weights(batch)
