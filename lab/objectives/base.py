"""The contract of an objective: a way of predicting n future tokens from the trunk's output."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lab.models.decoder import Context, Decoder


class Batch(NamedTuple):
    """Packed rows: T positions to predict from, and n tokens beyond them to read.

    A target t+i exists where token t+i lies in the document of token t, is no padding, and is trained on; for i > 1
    also only where `further` has it.
    """

    tokens: Tensor
    """[B, T+n] int64 token ids."""
    document_ids: Tensor
    """[B, T+n] int64: which document of its row a token belongs to; -1 is padding."""
    loss_mask: Tensor
    """[B, T+n] bool: tokens that the loss covers, when they are targets."""
    horizons: Tensor | None = None
    """[B, T+n] int64: how many tokens each has consequences for (`lab.tasks.base.Examples`); None is 1 throughout."""
    further_loss_mask: Tensor | None = None
    """[B, T+n] bool: of the tokens trained on, those that are targets of heads 2 to n, too; None is all of them."""
    inputs: Tensor | None = None
    """[B, T+n] int64 token ids that are read in the places of `tokens`, which remain the targets; None is `tokens`."""

    @property
    def input_tokens(self) -> Tensor:
        """[B, T+n] int64 token ids that are read."""
        return self.tokens if self.inputs is None else self.inputs

    def rows(self, rows: slice) -> "Batch":
        """Some of the rows."""
        return Batch(*(None if each is None else each[rows] for each in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device."""
        return Batch(*(None if each is None else each.to(device) for each in self))  # type: ignore[arg-type]


def targets(batch: Batch, offset: int, positions: int) -> Tensor:
    """The tokens `offset` ahead [B, T], and -100 where there is no target."""
    here = batch.document_ids[:, :positions]
    ahead = slice(offset, offset + positions)
    valid = (batch.document_ids[:, ahead] == here) & (here >= 0) & batch.loss_mask[:, ahead]
    if offset > 1 and batch.further_loss_mask is not None:
        valid = valid & batch.further_loss_mask[:, ahead]
    return batch.tokens[:, ahead].masked_fill(~valid, -100)


class Objective(nn.Module, ABC):
    """The heads of one way of predicting n tokens; what they are trained on is `lab.objectives.backward`'s."""

    n: int
    """Tokens ahead of a position that are predicted, one head each."""
    trunk_gradient: float = 1.0
    """The share of the gradient of heads 2 to n that reaches the embedding and the layers which head 1 is computed by.
    `hidden_states` sees to it: with `scale_gradient`, where those heads stand on what is head 1's, too."""
    readout_gradient: float = 1.0
    """The share of that gradient that reaches the final norm and the unembedding which they share with head 1."""
    where: Sequence[int | str] | None = None
    """Names the tokens that heads 2 to n have as targets (`lab.tasks.targets`); None: all that are trained on. Like the
    two shares it is the config's, from which `LanguageModel` sets it."""
    heads_share_layers: ClassVar[bool]
    """True if heads share layers: then their backward passes run together. Otherwise each head reads the trunk alone,
    and can be differentiated and freed before the next one is computed."""

    teacher_forced: ClassVar[bool] = False
    """True if heads beyond the first read the true tokens between: then they predict next tokens, too."""

    def logits(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Logits [B, T, V] of the first `heads` heads; 1 is the next token, all that plain inference needs.

        The arguments are those of `hidden_states`.
        """
        for head, hidden_BTD in enumerate(self.hidden_states(decoder, trunk_BTD, context, heads, tokens), start=1):
            yield self.logits_of(decoder, head, hidden_BTD)

    @abstractmethod
    def hidden_states(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield the hidden states [B, T, D] of the first `heads` heads, nearest first, each computed when asked for.

        Args:
            decoder: the decoder that the trunk's output comes from.
            trunk_BTD: the trunk's output.
            context: the one it was computed with.
            heads: how many heads, nearest first.
            tokens: int64 [B, T+heads-1], the tokens that the trunk read and those that follow them. Only heads that
                read true tokens ahead look at them, head i at those up to t+i-1.
        """

    def next_hidden_states(
        self, decoder: Decoder, hidden_BTD: Tensor, context: Context, heads: int, tokens: Tensor
    ) -> Iterator[Tensor]:
        """Yield the hidden states [B, T, D] of teacher-forced heads 2 to `heads`, given head 1's, each when asked for.

        Head i looks at `tokens` when it is asked for: token t+i-1 may be written there once head i-1 has proposed it.
        The arguments are those of `hidden_states`, but for head 1's hidden states in the place of the trunk's output.
        """
        raise NotImplementedError

    def logits_of(self, decoder: Decoder, head: int, hidden: Tensor) -> Tensor:
        """Logits [..., V] of one head's hidden states [..., D]: the final norm and the head's unembedding."""
        return decoder.logits(hidden)

    def token_weights(self, batch: Batch) -> Tensor | None:
        """Return the weight of each position's targets in the loss [B, T]; None if all weigh the same."""
        return None

    @abstractmethod
    def training_only(self) -> frozenset[str]:
        """Names of the objective's parameters that next-token inference does not need."""

    def unembeddings(self) -> list[nn.Module]:
        """The objective's own unembeddings, one head each; the other heads share the decoder's.

        Where there are none, `read` is the same for all heads.
        """
        return []
