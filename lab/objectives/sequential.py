"""Sequential heads that read the true tokens between: DeepSeek-V3's MTP modules (arXiv 2412.19437, Section 2.2).

With h_1 the output of head 1's layer (the model's representation, before the final norm), head i = 2..n is

    h_i = layer_i( M_i [RMSNorm(h_{i-1}) ; RMSNorm(Emb(x_{t+i-1}))] )

and predicts x_{t+i}. It is the report's depth k = i-1, which reads token k ahead and predicts token k+1 ahead.

- Unembedding, and embedding of the tokens read: the decoder's, shared by all heads.
- Final norm: one, shared by all heads. The report does not say; the published weights have one for each module.
- Head depth: head i is head i-1 and one transformer layer more. The layers are taken from the trunk: N in all whatever
  n, so the next-token path is N - n + 1 layers deep. The report adds its modules to a whole model: `extra_layers` n-1.
- Intermediate tokens: the true ones. Head i at position t sees x_1..x_{t+i-1}: what it predicts is a next token, too.
  Without tokens ahead there is head 1 alone; `hidden_states` of more heads needs `tokens`, true ones or drafts.
- `trunk_gradient` scales what heads 2..n send back at h_1, so in head 1's layer and in the trunk, and what they send
  into the embedding of the tokens that they read.

The projections M_i [d×2d] and the two norms before each come on top: (n-1) (2d² + 2d) parameters more than `parallel`.
The report weighs the mean over depths by λ: `weights: {name: auxiliary}`. Without, every head weighs the same.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from lab.models.decoder import Context, Decoder, RMSNorm
from lab.models.sizes import Model
from lab.objectives.gradients import scale_gradient
from lab.objectives.heads import Heads, LayerHeads, blocks


class Sequential(LayerHeads):
    """n transformer heads in a chain, each of which reads one true token more (DeepSeek-V3's)."""

    name: Literal["sequential"] = "sequential"

    def build(self, model: Model, vocabulary: int) -> "SequentialHeads":
        return SequentialHeads(model, self.n)


class Join(nn.Module):
    """One vector of a hidden state and of a token's embedding, [B, T, D] each and out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.latent_norm = RMSNorm(width)
        self.token_norm = RMSNorm(width)
        # Not named `output`: it starts a residual stream and adds to none, so its initial weights are not scaled down.
        self.projection = nn.Linear(2 * width, width, bias=False)

    def forward(self, hidden_BTD: Tensor, token_BTD: Tensor) -> Tensor:
        both = torch.cat((self.latent_norm(hidden_BTD), self.token_norm(token_BTD)), dim=-1)
        return self.projection(both)  # type: ignore[no-any-return]


class SequentialHeads(Heads):
    """One transformer layer a head; each after the first on the output of the head before it and a true token."""

    def __init__(self, model: Model, n: int) -> None:
        super().__init__(blocks(model, n))
        self.joins = nn.ModuleList(Join(model.shape.width) for _ in range(n - 1))

    heads_share_layers, teacher_forced = True, True

    def hidden_states(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        hidden_BTD = self.heads[0](trunk_BTD, context)
        yield hidden_BTD
        if heads > 1:
            if tokens is None:
                raise ValueError("sequential heads beyond the first read the tokens between: they need `tokens`")
            yield from self.next_hidden_states(decoder, hidden_BTD, context, heads, tokens)

    def next_hidden_states(
        self, decoder: Decoder, hidden_BTD: Tensor, context: Context, heads: int, tokens: Tensor
    ) -> Iterator[Tensor]:
        positions = hidden_BTD.shape[1]
        hidden_BTD = scale_gradient(hidden_BTD, self.trunk_gradient)
        for ahead, (head, join) in enumerate(zip(self.heads[1:heads], self.joins, strict=False), start=1):
            # Near a document's end this reads another's token, but only where the head has no target.
            read_BTD = scale_gradient(decoder.embedding(tokens[:, ahead : ahead + positions]), self.trunk_gradient)
            hidden_BTD = head(join(hidden_BTD, read_BTD), context)
            yield hidden_BTD
