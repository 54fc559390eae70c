"""Next-token prediction no deeper than the next token's path in a model of n heads: a control.

Heads that are taken from a model's N layers leave its next-token path N - n + 1 layers deep. Whatever a smaller depth
does by itself, good or bad, this model does as well, and it predicts one token.

- Unembedding and final norm: the decoder's.
- Head depth: the trunk is the N - n layers that n heads leave, one layer more is the head; n - 1 layers are missing.
- Intermediate tokens: there are none.
"""

from typing import Literal

from pydantic import Field

from lab.models.sizes import Model
from lab.objectives.heads import OneHead, blocks
from lab.objectives.parallel import ParallelHeads


class Shallow(OneHead):
    """Next-token prediction with the path depth of n heads (control)."""

    name: Literal["shallow"] = "shallow"
    n: int = Field(ge=1, le=64)
    """The number of heads whose next-token path is meant: N-n+1 of the model's N layers are built."""

    def head_layers(self) -> int:
        """Layers of the model's N that the trunk does not have: the head, and those that are left out."""
        return self.n

    def build(self, model: Model, vocabulary: int) -> ParallelHeads:
        return ParallelHeads(blocks(model, 1))
