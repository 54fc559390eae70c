"""What an objective is: a way of predicting n future tokens from the trunk's output."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab.models.decoder import Context, Decoder


class Batch(NamedTuple):
    """Packed rows: T positions to predict from, and n tokens beyond them to read.

    A target t+i exists where token t+i lies in the document of token t, is no padding, and is trained on.
    """

    tokens: Tensor
    """[B, T+n] int64 token ids."""
    documents: Tensor
    """[B, T+n] int64: which document of its row a token belongs to; -1 is padding."""
    trained: Tensor
    """[B, T+n] bool: tokens that the loss covers, when they are targets."""


class Term(NamedTuple):
    """One head's part of the loss."""

    head: int
    """The offset i that the head predicts: token t+i at position t."""
    loss: Tensor
    """Mean cross-entropy over the head's valid targets, in nats; 0 when there are none."""
    targets: Tensor
    """The number of valid targets, int64."""
    weight: float
    """The term's weight in the training loss."""


def targets(batch: Batch, offset: int, positions: int) -> Tensor:
    """The tokens `offset` ahead [B, T], and -100 where there is no target."""
    here = batch.documents[:, :positions]
    ahead = slice(offset, offset + positions)
    valid = (batch.documents[:, ahead] == here) & (here >= 0) & batch.trained[:, ahead]
    return batch.tokens[:, ahead].masked_fill(~valid, -100)


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats over the targets that are not -100, computed in float32 or wider; and their number."""
    number = (targets_BT != -100).sum()
    wide = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
    total = F.cross_entropy(wide.flatten(0, 1), targets_BT.flatten(), ignore_index=-100, reduction="sum")
    return total / number.clamp(min=1), number


class Objective(nn.Module, ABC):
    """Heads and losses of one way of predicting n tokens. Parameters that inference drops are named by `dropped`."""

    n: int
    weight: float
    """Each head's weight in the training loss."""

    def terms(self, decoder: Decoder, batch: Batch) -> Iterator[Term]:
        """The loss terms, nearest head first, each computed when it is asked for."""
        positions = batch.tokens.shape[1] - self.n
        inputs = batch.tokens[:, :positions]
        context = decoder.context(inputs, batch.documents[:, :positions])
        heads = self.logits(decoder, decoder(inputs, context), context, self.n, batch.tokens[:, :-1])
        for offset, logits in enumerate(heads, start=1):
            loss, number = cross_entropy(logits, targets(batch, offset, positions))
            yield Term(offset, loss, number, self.weight)

    @abstractmethod
    def logits(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Logits [B, T, V] of the first `heads` heads; 1 is the next token, all that plain inference needs.

        Args:
            decoder: the decoder that the trunk's output comes from.
            trunk_BTD: the trunk's output.
            context: the one it was computed with.
            heads: how many heads, nearest first.
            tokens: int64 [B, T+heads-1], the tokens that the trunk read and those that follow them. Only heads that
                read true tokens ahead look at them, head i at those up to t+i-1.
        """

    @abstractmethod
    def dropped(self) -> frozenset[str]:
        """Names of the objective's parameters that next-token inference does not need."""

    def unembeddings(self) -> list[nn.Module]:
        """The objective's own unembeddings, one head each; the other heads share the decoder's."""
        return []
