"""Parallel heads of which only the next token's teaches the trunk: a control.

What the shorter trunk, or the further heads' part in the unembedding's gradient, do by themselves, they do here, too;
what those heads teach the trunk is cut off.

- Unembedding and final norm: one each, shared and trained by all heads.
- Head depth: as with `parallel`, N - n + 1 layers for the next token.
- Intermediate tokens: none. Heads 2..n read the trunk's outputs, and send no gradient back.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from lab.models.decoder import Context, Decoder
from lab.models.sizes import Model
from lab.objectives.heads import Heads, LayerHeads, blocks


class Detached(LayerHeads):
    """n parallel transformer heads, all but the next token's on a detached trunk (control)."""

    name: Literal["detached"] = "detached"

    def build(self, model: Model, vocabulary: int) -> "DetachedHeads":
        return DetachedHeads(blocks(model, self.n))


class DetachedHeads(Heads):
    """One transformer layer a head; the further heads' gradient ends at the trunk's output."""

    chained = False

    def latents(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        for index, head in enumerate(self.heads[:heads]):
            yield head(trunk_BTD if index == 0 else trunk_BTD.detach(), context)
