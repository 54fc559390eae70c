"""Parallel transformer heads: the paper's architecture (arXiv 2404.19737, Section 2).

- Unembedding: one, shared by all heads.
- Final norm: one, shared by all heads.
- Head depth: one transformer layer a head, taken from the trunk: N layers in all whatever n, so the next-token path is
  N - n + 1 layers deep (`extra_layers` more where they are added, as in the paper's Tables S4 and S6).
- Intermediate tokens: none. Head i sees the trunk's outputs z_1..z_t only, neither the true nor the predicted tokens
  between t and t+i.
- `trunk_gradient` scales what heads 2..n send back at the trunk's output.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from lab.models.decoder import Context, Decoder
from lab.models.sizes import Model
from lab.objectives.gradients import scale_gradient
from lab.objectives.heads import Heads, LayerHeads, blocks


class Parallel(LayerHeads):
    """n parallel transformer heads, the paper's architecture."""

    name: Literal["parallel"] = "parallel"

    def build(self, model: Model, vocabulary: int) -> "ParallelHeads":
        return ParallelHeads(blocks(model, self.n))


class ParallelHeads(Heads):
    """One transformer layer a head, each applied to the same trunk output."""

    heads_share_layers = False

    def hidden_states(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        yield self.heads[0](trunk_BTD, context)
        further_BTD = scale_gradient(trunk_BTD, self.trunk_gradient)
        for head in self.heads[1:heads]:
            yield head(further_BTD, context)
