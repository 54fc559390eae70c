"""The ways of predicting n tokens. A new one is a file beside this, and a line here that imports its config."""

from inspect import isabstract
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field
from torch import nn

from lab.models.decoder import Decoder, Unset, initialise
from lab.models.sizes import Model
from lab.objectives.base import Objective
from lab.objectives.heads import ManyHeads, PredictionConfig

# isort: off
from lab.objectives.next_token import NextToken as NextToken
from lab.objectives.parallel import Parallel as Parallel
from lab.objectives.linear import Linear as Linear
from lab.objectives.replicated import Replicated as Replicated
from lab.objectives.causal import Causal as Causal
from lab.objectives.anticausal import Anticausal as Anticausal
from lab.objectives.sequential import Sequential as Sequential
from lab.objectives.shallow import Shallow as Shallow
from lab.objectives.detached import Detached as Detached
from lab.objectives.reweighted import Reweighted as Reweighted

# isort: on

if TYPE_CHECKING:
    ObjectiveConfig = PredictionConfig
else:
    # Whatever is imported above, told apart by `name`.
    _CLASSES = [each for each in globals().values() if isinstance(each, type) and not isabstract(each)]
    _CONFIGS = [each for each in _CLASSES if issubclass(each, PredictionConfig)]
    ObjectiveConfig = Annotated[Union[tuple(_CONFIGS)], Field(discriminator="name")]  # noqa: UP007


class LanguageModel(nn.Module):
    """A decoder and the objective's heads on it."""

    def __init__(self, model: Model, objective: ObjectiveConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = objective
        trunk_layers = model.shape.layers - objective.head_layers()
        if trunk_layers < 1:
            raise ValueError(f"{objective.name} with n={objective.n} leaves no trunk in {model.shape.layers} layers")
        self.decoder = Decoder(model, trunk_layers, vocabulary)
        self.objective: Objective = objective.build(model, vocabulary)
        if isinstance(objective, ManyHeads):
            self.objective.trunk_gradient = objective.trunk_gradient
            self.objective.readout_gradient = objective.readout_gradient
            self.objective.where = objective.where


def build_model(model: Model, objective: ObjectiveConfig, vocabulary: int, seed: int) -> LanguageModel:
    """An initialised model; arms that share a seed share every parameter that has the same name and shape.

    Raises:
        ValueError: the objective's heads leave no layer for the trunk.
    """
    with Unset():
        language_model = LanguageModel(model, objective, vocabulary)
    initialise(language_model, seed, model.shape.layers)
    return language_model
