"""Parallel transformer heads: the paper's architecture (arXiv 2404.19737, Section 2).

- Unembedding: one, shared by all heads.
- Final norm: one, shared by all heads.
- Head depth: one transformer layer a head, taken from the trunk: N layers in all whatever n, so the next-token path is
  N - n + 1 layers deep.
- Intermediate tokens: none. Head i sees the trunk's outputs z_1..z_t only, neither the true nor the predicted tokens
  between t and t+i.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from lab.config import Config
from lab.models.decoder import Block, Context, Decoder
from lab.models.sizes import Model
from lab.objectives.base import Batch, Objective, Term, cross_entropy, targets


class Parallel(Config):
    """n parallel transformer heads, the paper's architecture."""

    name: Literal["parallel"] = "parallel"
    n: int = Field(ge=1, le=64)
    """Future tokens predicted at once, one head each; 1 is next-token prediction."""
    reduction: Literal["sum", "mean"] = "sum"
    """How the heads' losses become one: their sum (the paper), or their mean (the clip norm is met as with n=1)."""

    def head_layers(self) -> int:
        """Layers of the model's N that the heads take."""
        return self.n

    def build(self, model: Model) -> "ParallelHeads":
        """The heads, uninitialised."""
        return ParallelHeads(model, self.n, self.reduction)


class ParallelHeads(Objective):
    """One transformer layer a head, each applied to the same trunk output."""

    def __init__(self, model: Model, n: int, reduction: Literal["sum", "mean"]) -> None:
        super().__init__()
        _, width, heads = model.shape
        self.n = n
        self.weight = 1.0 if reduction == "sum" else 1 / n
        self.heads = nn.ModuleList(Block(width, heads) for _ in range(n))

    def terms(self, decoder: Decoder, batch: Batch) -> Iterator[Term]:
        positions = batch.tokens.shape[1] - self.n
        inputs = batch.tokens[:, :positions]
        context = decoder.context(inputs, batch.documents[:, :positions])
        for offset, logits in enumerate(self.logits(decoder, decoder(inputs, context), context, self.n), start=1):
            loss, number = cross_entropy(logits, targets(batch, offset, positions))
            yield Term(offset, loss, number, self.weight)

    def logits(self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int) -> Iterator[Tensor]:
        for head in self.heads[:heads]:
            yield decoder.logits(head(trunk_BTD, context))

    def dropped(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.named_parameters() if not name.startswith("heads.0."))
