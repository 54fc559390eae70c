"""Parts that objectives share: their fields, a module for each head, and the parameters used in training only."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from lab.config import Config, Neutral
from lab.models.decoder import Block, Decoder
from lab.models.sizes import Model
from lab.objectives.base import Objective
from lab.objectives.gradients import apply_scaled
from lab.objectives.weights import Balanced, HeadWeights, Listed

Reduction = Literal["sum", "mean"]


def _place_or_kind(name: Any) -> Any:
    if isinstance(name, bool) or not isinstance(name, int | str):
        raise ValueError("should be a place in an answer, a whole number, or the name of a kind of tokens")
    return name


TokenName = Annotated[int | str, BeforeValidator(_place_or_kind)]
"""Names tokens of a task (`lab.tasks.targets`)."""


class PredictionConfig(Config, ABC):
    """The config of a way of predicting."""

    name: str
    n: int
    """Future tokens predicted at once, or those of the objective that a control is compared with."""

    @abstractmethod
    def head_layers(self) -> int:
        """Return the number of the model's N layers that are not the trunk's."""

    @abstractmethod
    def head_weights(self, done: float) -> list[float]:
        """Each head's weight in the training loss when a share `done` of training is over."""

    @abstractmethod
    def build(self, model: Model, vocabulary: int) -> Objective:
        """The heads, uninitialised, for a model of this shape and number of tokens."""


class OneHead(PredictionConfig):
    """Base of the objectives that predict the next token only."""

    def head_weights(self, done: float) -> list[float]:
        return [1.0]


class ManyHeads(PredictionConfig):
    """Fields of an objective with n heads."""

    n: int = Field(ge=1, le=64)
    """Future tokens predicted at once, one head each; 1 is next-token prediction."""
    reduction: Reduction = "sum"
    """Reduction of the heads' losses: their sum (the paper), or their mean (the clip norm is met as with n=1); both
    weighted, if there are `weights`."""
    weights: Annotated[HeadWeights | None, Neutral(None)] = None
    """Weight of each head over training; its name selects it. Null: all the same (the paper)."""
    trunk_gradient: Annotated[float, Neutral(1.0), Field(ge=0, le=1)] = 1.0
    """The share of the further heads' gradient that reaches what the next token is computed by, final norm and
    unembedding apart: 1 all (the paper), 0 none; where it is taken says lab/objectives/NAME.py."""
    readout_gradient: Annotated[float, Neutral(1.0), Field(ge=0, le=1)] = 1.0
    """The share of the further heads' gradient that reaches the final norm and unembedding which they share with the
    next token's: 1 all, 0 none. With trunk_gradient 0 and train.clip_apart they leave the next token's path alone."""
    where: Annotated[list[TokenName] | None, Neutral(None), Field(min_length=1)] = None
    """The tokens that further heads predict, of those trained on: places in an answer (1 its first token, -1 its last)
    and kinds of tokens that the task names. Null: all."""

    @model_validator(mode="after")
    def _balanced_alone(self) -> Self:
        if isinstance(self.weights, Balanced) and self.trunk_gradient != 1:
            raise ValueError(
                f"weights: balanced is not allowed with trunk_gradient={self.trunk_gradient:g}: it makes all heads' "
                "gradients at the trunk alike; allowed: other weights"
            )
        return self

    @model_validator(mode="after")
    def _one_weight_a_head(self) -> Self:
        if isinstance(self.weights, Listed) and (len(self.weights.values) != self.n or not self.weights.values[0]):
            raise ValueError(
                f"weights.values: {self.weights.values} is not allowed with n={self.n}: "
                f"should be {self.n} numbers, the first above 0"
            )
        return self

    def head_weights(self, done: float) -> list[float]:
        weights = self.weights.at(self.n, done) if self.weights else [1.0] * self.n
        return weights if self.reduction == "sum" else [each / sum(weights) for each in weights]


class LayerHeads(ManyHeads):
    """Fields of an objective with one transformer layer for each of n heads."""

    extra_layers: Annotated[int, Neutral(0), Field(ge=0, le=64)] = 0
    """Layers added to the trunk: 0 leaves the model its N layers whatever n, n-1 leaves the trunk as it is with n=1."""

    def head_layers(self) -> int:
        return self.n - self.extra_layers


class Heads(Objective):
    """One module for each head, nearest first. How they are connected is the subclass's `hidden_states`."""

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.n = len(self.heads)

    def logits_of(self, decoder: Decoder, head: int, hidden: Tensor) -> Tensor:
        if head == 1:
            return decoder.logits(hidden)
        normed = apply_scaled(decoder.norm, self.readout_gradient, hidden)
        return apply_scaled(decoder.unembedding, self.readout_gradient, normed)

    def training_only(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.named_parameters() if not name.startswith("heads.0."))


def blocks(model: Model, n: int) -> Iterator[Block]:
    """n transformer layers of the model's shape."""
    _, width, heads = model.shape
    return (Block(width, heads) for _ in range(n))
