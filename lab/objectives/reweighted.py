"""Next-token prediction whose targets count as much as n heads make them count: a control without further heads.

With n heads a token whose consequences last k tokens, itself the first, counts in

    W(n, k) = sum_{i=1..n} min(i, k)

of their targets: n if k = 1, and the paper's n (n + 1) / 2 if k >= n (arXiv 2404.19737, Section 5.1 and Appendix
L.3). If that implicit weight is all that further heads add, this objective adds it, too. k is the task's to say
(`Examples.horizons`): in a polynomial's answer the digits left, elsewhere 1.

- Unembedding and final norm: the decoder's.
- Head depth: the model's last layer is the head, so the next-token path is all N layers.
- Intermediate tokens: there are none.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lab.models.sizes import Model
from lab.objectives.base import Batch
from lab.objectives.heads import OneHead, Reduction, blocks
from lab.objectives.parallel import ParallelHeads


class Reweighted(OneHead):
    """Next-token prediction with the implicit weights of n heads (control)."""

    name: Literal["reweighted"] = "reweighted"
    n: int = Field(ge=1, le=64)
    """The number of heads whose implicit weights W(n, k) the targets have."""
    reduction: Reduction = "sum"
    """Scale of the weights: that of the heads' sum, n and more, or that of their mean, 1 and more."""

    def head_layers(self) -> int:
        return 1

    def build(self, model: Model, vocabulary: int) -> "ReweightedHead":
        return ReweightedHead(model, self.n, self.n if self.reduction == "mean" else 1)


class ReweightedHead(ParallelHeads):
    """One head whose targets count W(n, k) / divisor."""

    def __init__(self, model: Model, implied: int, divisor: int) -> None:
        super().__init__(blocks(model, 1))
        self.implied, self.divisor = implied, divisor

    def token_weights(self, batch: Batch) -> Tensor:
        spans = torch.ones_like(batch.tokens) if batch.horizons is None else batch.horizons
        k_BT = spans[:, self.n :].clamp(max=self.implied)
        return (k_BT * self.implied - k_BT * (k_BT - 1) // 2) / self.divisor
