"""Causal heads: each head continues the one before it (arXiv 2404.19737, Appendix B and Table S4).

- Unembedding: one, shared by all heads.
- Final norm: one, shared by all heads, on the way to the logits only: the next head takes the hidden state before it.
- Head depth: head i is head i-1 and one transformer layer more; head 1 is nearest the trunk. The layers are taken from
  the trunk: N in all whatever n, so the next-token path is N - n + 1 layers deep, `extra_layers` more where they are
  added, and head n's is N deep.
- Intermediate tokens: none of the true ones; of a predicted one, the hidden state it was predicted from.
- `trunk_gradient` scales what heads 2..n send back at head 1's output, so in its layer and in the trunk.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from lab.models.decoder import Context, Decoder
from lab.models.sizes import Model
from lab.objectives.gradients import scale_gradient
from lab.objectives.heads import Heads, LayerHeads, blocks


class Causal(LayerHeads):
    """n transformer heads in a chain, the next token's first."""

    name: Literal["causal"] = "causal"

    def build(self, model: Model, vocabulary: int) -> "CausalHeads":
        return CausalHeads(blocks(model, self.n))


class CausalHeads(Heads):
    """One transformer layer a head, each applied to the output of the head before it."""

    heads_share_layers = True

    def hidden_states(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        hidden_BTD = self.heads[0](trunk_BTD, context)
        yield hidden_BTD
        hidden_BTD = scale_gradient(hidden_BTD, self.trunk_gradient)
        for head in self.heads[1:heads]:
            hidden_BTD = head(hidden_BTD, context)
            yield hidden_BTD
