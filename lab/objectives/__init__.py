"""The ways of predicting n tokens. A new one is a file beside this and its config's name in `ObjectiveConfig`."""

from typing import Annotated

from pydantic import Field
from torch import nn

from lab.models.decoder import Decoder, initialise
from lab.models.sizes import Model
from lab.objectives.anticausal import Anticausal
from lab.objectives.base import Objective
from lab.objectives.causal import Causal
from lab.objectives.detached import Detached
from lab.objectives.linear import Linear
from lab.objectives.next_token import NextToken
from lab.objectives.parallel import Parallel
from lab.objectives.replicated import Replicated
from lab.objectives.reweighted import Reweighted
from lab.objectives.sequential import Sequential
from lab.objectives.shallow import Shallow

ObjectiveConfig = Annotated[
    NextToken | Parallel | Linear | Replicated | Causal | Anticausal | Sequential | Shallow | Detached | Reweighted,
    Field(discriminator="name"),
]


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


def build_model(model: Model, objective: ObjectiveConfig, vocabulary: int, seed: int) -> LanguageModel:
    """An initialised model; arms that share a seed share every parameter that has the same name and shape.

    Raises:
        ValueError: the objective's heads leave no layer for the trunk.
    """
    language_model = LanguageModel(model, objective, vocabulary)
    initialise(language_model, seed, model.shape.layers)
    return language_model
