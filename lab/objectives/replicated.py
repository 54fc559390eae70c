"""Parallel transformer heads with an unembedding each (arXiv 2404.19737, Appendix B; its byte-level models).

- Unembedding: one a head; the first head's is the decoder's.
- Final norm: one, shared by all heads (the paper speaks of the unembedding alone).
- Head depth: one transformer layer a head, taken from the trunk: N layers in all whatever n, so the next-token path is
  N - n + 1 layers deep, `extra_layers` more where they are added.
- Intermediate tokens: none, neither true nor predicted.
- `trunk_gradient` scales what heads 2..n send back at the trunk's output; `readout_gradient`, in the final norm alone.

The unembeddings are (n-1) d V parameters more than with `parallel`; those outside of embeddings are as many.
"""

from typing import Literal

from torch import Tensor, nn

from lab.models.decoder import Decoder
from lab.models.sizes import Model
from lab.objectives.gradients import apply_scaled
from lab.objectives.heads import LayerHeads, blocks
from lab.objectives.parallel import ParallelHeads


class Replicated(LayerHeads):
    """n parallel transformer heads with an unembedding each."""

    name: Literal["replicated"] = "replicated"

    def build(self, model: Model, vocabulary: int) -> "ReplicatedHeads":
        return ReplicatedHeads(model, vocabulary, self.n)


class ReplicatedHeads(ParallelHeads):
    """One transformer layer a head on the same trunk output, and an unembedding for each head after the first."""

    def __init__(self, model: Model, vocabulary: int, n: int) -> None:
        super().__init__(blocks(model, n))
        self.replicas = nn.ModuleList(nn.Linear(model.shape.width, vocabulary, bias=False) for _ in range(n - 1))

    def logits_of(self, decoder: Decoder, head: int, hidden: Tensor) -> Tensor:
        if head == 1:
            return super().logits_of(decoder, head, hidden)
        return self.replicas[head - 2](apply_scaled(decoder.norm, self.readout_gradient, hidden))  # type: ignore[no-any-return]

    def unembeddings(self) -> list[nn.Module]:
        return list(self.replicas)
