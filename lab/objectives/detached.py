"""Parallel heads of which only the next token's teaches the trunk: a control.

What the shorter trunk, or the further heads' part in the unembedding's gradient, do by themselves, they do here, too;
what those heads teach the trunk is cut off: it is `parallel` with `trunk_gradient` 0.

- Unembedding and final norm: one each, shared and trained by all heads; by the next token's alone if
  `readout_gradient` is 0.
- Head depth: as with `parallel`, N - n + 1 layers for the next token.
- Intermediate tokens: none. Heads 2..n read the trunk's outputs, and send no gradient back.

With `readout_gradient` 0 and `train.clip_apart` nothing of heads 2..n reaches the next token's path: it is trained, bit
for bit, as by `shallow` of the same n (in the same backward order, with `reduction` sum and a first weight of 1).
"""

from typing import Annotated, Literal

from pydantic import Field

from lab.config import Neutral
from lab.models.sizes import Model
from lab.objectives.heads import LayerHeads, blocks
from lab.objectives.parallel import ParallelHeads


class Detached(LayerHeads):
    """n parallel transformer heads, all but the next token's on a detached trunk (control)."""

    name: Literal["detached"] = "detached"
    trunk_gradient: Annotated[float, Neutral(0.0), Field(ge=0, le=0)] = 0.0
    """0: the trunk hears nothing of further heads. `parallel` has it as a dial."""

    def build(self, model: Model, vocabulary: int) -> ParallelHeads:
        return ParallelHeads(blocks(model, self.n))
