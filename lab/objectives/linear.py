"""Linear heads: further tokens are read off the last layer by one matrix each (arXiv 2404.19737, Table S4).

The paper says: a single linear layer without nonlinearity as head, a linear probe of the representation z. It leaves
open how many layers the trunk then has, and whether the next token has a matrix too. Here z is the output of all N
layers, since nothing has to make room for heads that are hardly parameters; and head 1 is no matrix but z itself, so
that n = 1 is next-token prediction, and an n that is larger leaves the next token's path as it is.

- Unembedding: one, shared by all heads.
- Final norm: one, shared by all heads, after the matrix. Neither it nor the unembedding has a bias, nor have these.
- Head depth: one d×d matrix for each of the heads 2..n, no residual connection; the next-token path is all N layers.
- Intermediate tokens: none. Head i sees z_t only.
- `trunk_gradient` scales what heads 2..n send back at z, so in all N layers: at 0 the matrices are probes.

The matrices come on top: (n-1) d² parameters more than next-token prediction, about a twelfth of a layer each. There is
no `extra_layers`: the heads take no layer that could be given back.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from lab.models.decoder import Context, Decoder
from lab.models.sizes import Model
from lab.objectives.gradients import scale_gradient
from lab.objectives.heads import Heads, ManyHeads, blocks


class Linear(ManyHeads):
    """Next-token prediction, and one matrix for each further token."""

    name: Literal["linear"] = "linear"

    def head_layers(self) -> int:
        """Layers of the model's N that the heads take: the last, which is named as next-token prediction's."""
        return 1

    def build(self, model: Model, vocabulary: int) -> "LinearHeads":
        width = model.shape.width
        matrices = (nn.Linear(width, width, bias=False) for _ in range(self.n - 1))
        return LinearHeads([*blocks(model, 1), *matrices])


class LinearHeads(Heads):
    """The model's last layer, and matrices on its output."""

    heads_share_layers = True

    def hidden_states(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        z_BTD = self.heads[0](trunk_BTD, context)
        yield z_BTD
        further_BTD = scale_gradient(z_BTD, self.trunk_gradient)
        for head in self.heads[1:heads]:
            yield head(further_BTD)
