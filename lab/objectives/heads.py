"""What the objectives with a module for each head share: their fields, their heads, and what inference drops."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from lab.config import Config, Neutral
from lab.models.decoder import Block
from lab.models.sizes import Model
from lab.objectives.base import Objective

Reduction = Literal["sum", "mean"]


class LayerHeads(Config):
    """Fields of an objective with one transformer layer for each of n heads."""

    name: str
    n: int = Field(ge=1, le=64)
    """Future tokens predicted at once, one head each; 1 is next-token prediction."""
    reduction: Reduction = "sum"
    """How the heads' losses become one: their sum (the paper), or their mean (the clip norm is met as with n=1)."""
    extra_layers: Annotated[int, Neutral(0), Field(ge=0, le=64)] = 0
    """Layers added to the trunk: 0 leaves the model its N layers whatever n, n-1 leaves the trunk as it is with n=1."""

    def head_layers(self) -> int:
        """Layers of the model's N that the heads take."""
        return self.n - self.extra_layers


class Heads(Objective):
    """One module for each head, nearest first. How they are connected is the subclass's `logits`."""

    def __init__(self, heads: Iterable[nn.Module], reduction: Reduction) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.n = len(self.heads)
        self.weight = 1.0 if reduction == "sum" else 1 / self.n

    def dropped(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.named_parameters() if not name.startswith("heads.0."))


def blocks(model: Model, n: int) -> Iterator[Block]:
    """n transformer layers of the model's shape."""
    _, width, heads = model.shape
    return (Block(width, heads) for _ in range(n))
