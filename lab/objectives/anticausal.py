"""Anticausal heads: the furthest token first, the next token last (arXiv 2404.19737, Appendix B and Table S4).

- Unembedding: one, shared by all heads.
- Final norm: one, shared by all heads, on the way to the logits only: the next head takes the hidden state before it.
- Head depth: head n is one transformer layer on the trunk, head i one more than head i+1. The layers are taken from the
  trunk: N in all whatever n, so the next-token path is all N layers, as with n = 1, and `extra_layers` more where they
  are added; head n's is N - n + 1 deep.
- Intermediate tokens: none of the true ones; head i has the hidden states that predict the tokens beyond t+i.
- `trunk_gradient` scales what the losses of heads 2..n send back at the heads' outputs, before the final norm. Head 1
  stands on all the other heads, so they have no layer that is not on the next token's path: every layer and the trunk
  get that share. At 0 the layers are trained as with n = 1, and the further losses reach norm and unembedding alone.

Next-token inference needs every head's layer, so none is dropped; further unembeddings are saved.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from lab.models.decoder import Context, Decoder
from lab.models.sizes import Model
from lab.objectives.gradients import scale_gradient
from lab.objectives.heads import Heads, LayerHeads, blocks


class Anticausal(LayerHeads):
    """n transformer heads in a chain, the next token's last."""

    name: Literal["anticausal"] = "anticausal"

    def build(self, model: Model, vocabulary: int) -> "AnticausalHeads":
        return AnticausalHeads(blocks(model, self.n))


class AnticausalHeads(Heads):
    """One transformer layer a head, each applied to the output of the head that predicts one token further."""

    heads_share_layers = True

    def hidden_states(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        hidden_states = [trunk_BTD]
        for head in self.heads[::-1]:
            hidden_states.append(head(hidden_states[-1], context))
        yield hidden_states[-1]
        for hidden_BTD in hidden_states[::-1][1:heads]:
            yield scale_gradient(hidden_BTD, self.trunk_gradient)

    def training_only(self) -> frozenset[str]:
        return frozenset()
