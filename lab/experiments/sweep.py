"""Sweeps: a baseline, axes that vary, and scales that fit them to a machine."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.config import Config, did_you_mean, validated
from lab.errors import BadInput, Failure
from lab.experiments.experiment import Experiment, experiment_from, merge, override, read_yaml
from lab.experiments.store import Result, RunDirectory, kept_results


class Scale(Config):
    """What a sweep is at one size of machine; laid over the sweep's own baseline and axes."""

    budget: str
    """What the scale costs, in words."""
    baseline: dict[str, Any] = {}
    """Experiment fields, as in a recipe."""
    axes: dict[str, list[Any]] = {}
    """Values by field; an axis named here replaces the sweep's."""


class SweepFile(Config):
    """The content of a sweep's YAML file."""

    question: str
    """What the sweep is to find out."""
    endpoint: str
    """The primary endpoint, stated before the sweep runs."""
    recipe: str | None = None
    """The recipe that the baseline is laid over, as datasets/NAME.yaml."""
    baseline: dict[str, Any] = {}
    """Experiment fields that all cells share, unless an axis moves them."""
    axes: dict[str, list[Any]] = {}
    """Values by field (`key.sub`), the slowest first; the cells are their product."""
    scales: dict[str, Scale]
    """The sizes at which the sweep can be run."""


STORE = Path("runs")
"""Where runs go by default."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep."""

    experiment: Experiment
    axes: dict[str, Any]
    """The values by which it differs from the others."""


@dataclass(frozen=True)
class Sweep:
    """A sweep at one scale."""

    name: str
    path: str
    scale: str
    file: SweepFile
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]

    def command(self, store: Path) -> str:
        """The command that fills missing cells."""
        return f"lab sweep run {self.path} --scale {self.scale}" + (f" --store {store}" if store != STORE else "")


@dataclass(frozen=True)
class State:
    """How far a cell is: `done`, `failed`, `started` or `waiting`."""

    name: str
    result: Result | None = None
    reason: str | None = None


def load_sweep(path: str, scale: str) -> Sweep:
    """The cells of a sweep file at a scale.

    Raises:
        BadInput: anything that is not allowed, in one line.
    """
    try:
        file = validated(SweepFile, read_yaml(path))
        if scale not in file.scales:
            known = ", ".join(file.scales)
            raise BadInput(f"scales: has no '{scale}'; allowed: {known}{did_you_mean(scale, file.scales)}")
        size = file.scales[scale]
        axes = {**file.axes, **size.axes}
        for axis, values in axes.items():
            if not values:
                raise BadInput(f"axes.{axis}: [] is not allowed: needs at least one value")
    except BadInput as error:
        raise BadInput(str(error) if str(error).startswith(path) else f"{path}: {error}") from None
    baseline = merge(merge(read_yaml(file.recipe) if file.recipe else {}, file.baseline), size.baseline)
    cells: dict[str, Cell] = {}
    for combination in itertools.product(*axes.values()):
        point = dict(zip(axes, combination, strict=True))
        mapping = baseline
        for axis, value in point.items():
            mapping = override(mapping, axis, value)
        cell = Cell(experiment_from(mapping, f"{path}, scale {scale}"), point)
        twin = cells.setdefault(cell.experiment.identity, cell)
        if twin is not cell:
            raise BadInput(f"{path}: axes: {point} and {twin.axes} are the same experiment; name each value once")
    return Sweep(Path(path).stem, path, scale, file, tuple(axes), tuple(cells.values()))


def states(sweep: Sweep, store: Path) -> list[State]:
    """The state of each cell: by its run directory under `store`, or by a result kept in results/."""
    kept = kept_results()
    return [_state(RunDirectory(store, cell.experiment), kept) for cell in sweep.cells]


def _state(directory: RunDirectory, kept: dict[str, Result]) -> State:
    try:
        result = directory.read_result() or kept.get(directory.experiment.identity)
    except Failure as error:
        return State("failed", reason=str(error))
    if result:
        return State("done", result=result)
    reason = directory.read_failure()
    if reason:
        return State("failed", reason=reason)
    return State("started" if directory.checkpoint.exists() or directory.metrics.exists() else "waiting")
