"""Next-token prediction: parallel heads with n = 1, the baseline of every comparison.

- Unembedding and final norm: the decoder's, nothing to share them with.
- Head depth: the model's last layer is the head, so the next-token path is all N layers.
- Intermediate tokens: there are none.
"""

from typing import Literal

from lab.models.sizes import Model
from lab.objectives.heads import OneHead, blocks
from lab.objectives.parallel import ParallelHeads


class NextToken(OneHead):
    """Next-token prediction."""

    name: Literal["next_token"] = "next_token"
    n: Literal[1] = 1
    """Future tokens predicted at once."""

    def head_layers(self) -> int:
        return 1

    def build(self, model: Model, vocabulary: int) -> ParallelHeads:
        return ParallelHeads(blocks(model, 1))
