"""Weights and seen questions that a run takes over from the run that it begins from."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from lab.errors import BadInput, Failure
from lab.experiments.experiment import Experiment
from lab.experiments.result import Inherited
from lab.experiments.store import RunDirectory, find_run
from lab.learning.data import examples_per_step
from lab.objectives import LanguageModel
from lab.shell import argument, command

EXAMPLES = 16_384
"""Examples generated at once to see which of them a run met."""


def final_weights(run: RunDirectory, field: str = "init_from") -> dict[str, torch.Tensor]:
    """The weights that a run ended with.

    Raises:
        BadInput: it is not finished, or its result or its weights are damaged or gone; names `field`, which names it.
    """
    try:
        result = run.read_result()
    except Failure as error:
        raise BadInput(f"{field}: {error}") from None
    if result is None:
        again = command("train", argument(run.config), "--store", run.path.parent)
        raise BadInput(f"{field}: {run.path} is not finished; go on with: {again}")
    if not run.final.is_file():
        raise BadInput(f"{field}: {run.final} is gone; remove {run.path} to run it again")
    return read_weights(run, run.final, field)


def read_weights(run: RunDirectory, path: Path, field: str) -> dict[str, torch.Tensor]:
    """Weights that a run has left at `path`.

    Raises:
        BadInput: they are damaged; names `field`, which names the run.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{field}: {path} cannot be read ({error}); remove {run.path} to run it again") from None


def load_matching(model: LanguageModel, weights: dict[str, torch.Tensor]) -> Inherited:
    """Give a model the weights that another ended with, all that it has, too, by name and shape.

    Heads beyond the other model's keep the initial weights that their seed gives them; its heads beyond the model's are
    dropped. Nothing but names and shapes is looked at: between objectives of two kinds, a head is taken whose layers
    are named alike, though it may have been trained to read something else.

    Returns:
        How many parameters of the decoder and of each part of the objective were `taken`, are `new`, were `dropped`.

    Raises:
        BadInput: the decoder is not the other's.
    """
    own = model.state_dict()
    taken = {name: weight for name, weight in weights.items() if name in own and own[name].shape == weight.shape}
    new = {name: weight for name, weight in own.items() if name not in taken}
    dropped = {name: weight for name, weight in weights.items() if name not in taken}
    if any(name.startswith("decoder.") for name in (*new, *dropped)):
        raise BadInput("init_from: is not allowed: the run that it names has another trunk or vocabulary")
    model.load_state_dict(taken, strict=False)
    return {"taken": _counts(taken), "new": _counts(new), "dropped": _counts(dropped)}


def _counts(weights: dict[str, torch.Tensor]) -> dict[str, int]:
    """Return the number of parameters of the decoder and of each part of the objective (`objective.heads.0`)."""
    counts: dict[str, int] = {}
    for name, weight in weights.items():
        part = "decoder" if name.startswith("decoder.") else ".".join(name.split(".")[:3])
        counts[part] = counts.get(part, 0) + weight.numel()
    return counts


def seen_in_training(experiment: Experiment, store: Path, asked: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return bool [Q]: True for questions `asked` that a finished run, or a run it began from, was trained on.

    A run does not leave this behind, for it knows its own questions alone. But its examples are a function of its
    experiment, and are generated again here: as they are neither packed nor trained on, in about 1 % of its time on a
    CPU, yet with a fast GPU in as long as it took to train a small model.
    """
    task = experiment.task.build()
    number, seen = experiment.train.steps * examples_per_step(task, experiment.train), np.zeros(len(asked), np.bool_)
    for first in range(0, number, EXAMPLES):
        examples = task.examples("train", np.arange(first, min(first + EXAMPLES, number)), experiment.seed)
        seen |= np.isin(asked, examples.fingerprints) & (asked > 0)  # 0 is no question
    if experiment.init_from:
        seen |= seen_in_training(find_run(experiment.init_from, store).experiment, store, asked)
    return seen
