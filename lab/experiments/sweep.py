"""Sweeps: a baseline, axes that vary, scales that fit them to a machine, and sources, runs that others begin from."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lab.config import Config, did_you_mean, validated
from lab.errors import BadInput, Failure
from lab.experiments import layers
from lab.experiments.documents import read_recipe, read_yaml
from lab.experiments.experiment import SEVERAL, Experiment, combine, experiment_from, merge, moved
from lab.experiments.store import Result, RunDirectory, kept_results
from lab.shell import argument, command


def _several(values: Any) -> Any:
    if not isinstance(values, list | dict):
        raise ValueError("should be a list of values, or a mapping from names to values")
    return values


def _plain(value: Any) -> Any:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError("should be a whole number or a word, as in the score table")
    return value


Values = Annotated[Any, AfterValidator(_several)]
"""The values of an axis: a list, or a mapping from names to values."""


def _name(value: Any) -> str:
    """An axis' value in words; of numbers the same whatever their type."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


class Primary(Config):
    """The primary endpoint, for machines: one number of each run, by which its arms are judged.

    It is read off the task's measure: on test with final weights, or where learning is timed on validation.
    """

    where: dict[str, Annotated[Any, AfterValidator(_plain)]] = {}
    """Values of the task's slices, as in the score table; "all" of those not named."""
    measure: Literal["score", "solved", "tokens_to_level"] = "score"
    """The number: the score; 1 where it is at or past `level` and else 0, so that arms are compared by the share of
    seeds that solve the task; or, for learning sooner, the share of the training tokens that was left when validation
    came to stay at or past `level` (0 where it never did)."""
    level: float | None = Field(default=None, gt=0, le=1)
    """The score, as a share of 1, from which on a run counts as having solved the task. Null: seeds are counted that
    are past the task's first level."""
    margin: float = Field(gt=0, lt=1)
    """A difference within which arms count as alike, as a share of 1: of the score, of the seeds, or of the tokens."""
    screen: bool = False
    """True if the sweep only points to where more seeds are to be run: then no verdicts are given."""
    controls: tuple[str, ...] = ()
    """Arms, by their values on an axis, that are controls beside those whose objective makes them so (next-token
    prediction in any form, detached heads): they are told as above or below, not as reproduced or reversed."""
    trend: str | None = None
    """An axis along which the number is expected to rise or fall, in the order of its values (dose and response)."""
    limits: str | None = None
    """Limits of the verdicts, printed beside them."""

    @model_validator(mode="after")
    def _has_a_level(self) -> Self:
        if self.measure != "score" and self.level is None:
            raise ValueError(f"level: missing, which measure '{self.measure}' needs")
        return self

    def is_control(self, arm: dict[str, Any]) -> bool:
        """True of an arm, values by axis, that is among the `controls`."""
        return not {_name(value) for value in arm.values()}.isdisjoint(self.controls)

    def check(self, axes: dict[str, Any]) -> None:
        """Refuse what speaks of an axis or an arm that is not among a sweep's `axes`, values by field.

        Raises:
            BadInput: names the field, its value and what is allowed.
        """
        names = [_name(value) for axis, values in axes.items() if axis != "seed" for value in values]
        for control in self.controls:
            if control not in names:
                hint = did_you_mean(control, names)
                raise BadInput(f"primary.controls: '{control}' is no arm; allowed: {', '.join(names)}{hint}")
        allowed = [axis for axis, values in axes.items() if axis != "seed" and len(values) > 2]
        if self.trend is not None and self.trend not in allowed:
            said = f"primary.trend: '{self.trend}' is no axis of three values or more"
            known = f"; allowed: {', '.join(allowed)}{did_you_mean(self.trend, allowed)}" if allowed else ""
            raise BadInput(said + known)


class Scale(Config):
    """A sweep at one size of machine; laid over the sweep's own baseline and axes."""

    budget: str
    """Cost of the scale, in words."""
    baseline: dict[str, Any] = {}
    """Experiment fields, as in a recipe."""
    primary: Primary | None = None
    """The primary endpoint: its fields, laid over the sweep's."""
    axes: dict[str, Values] = {}
    """Values by field; an axis named here replaces the sweep's."""
    sources: dict[str, dict[str, Any]] = {}
    """Experiment fields by source; laid over the sweep's own."""


class SweepFile(Config):
    """The content of a sweep's YAML file."""

    question: str
    """The question of the sweep."""
    endpoint: str
    """The primary endpoint, stated before the sweep runs."""
    primary: Primary | None = None
    """The same for `lab report`, which judges by it."""
    recipe: str | None = None
    """The recipe that the baseline is laid over, as datasets/NAME.yaml."""
    baseline: dict[str, Any] = {}
    """Experiment fields that all cells share, unless an axis moves them."""
    axes: dict[str, Values] = {}
    """Values by field (`key.sub`), the slowest first; the cells are their product. Values that are mappings are given
    by name, as a mapping of names to values; tables and figures then have the names. The axes `arm` and `condition`
    are no fields: their values are mappings of several; arms are compared with the first, under each condition. No two
    axes may set one field."""
    sources: dict[str, dict[str, Any]] = {}
    """Runs that cells begin from, by the name that `init_from` gives them: experiment fields, laid over the baseline. A
    source has the seed and the model of its cell, where they are axes; other axes do not move it."""
    scales: dict[str, Scale] = Field(min_length=1)
    """The sizes at which the sweep can be run."""


STORE = Path("runs")
"""The default folder of runs."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a sweep."""

    experiment: Experiment
    axes: dict[str, Any]
    """The values by which it differs from the others; of a source, also its name as `source`."""


@dataclass(frozen=True)
class Sweep:
    """A sweep at one scale."""

    name: str
    path: str
    scale: str
    file: SweepFile
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    primary: Primary | None = None
    sources: tuple[Cell, ...] = ()
    """Runs that cells begin from: trained by the sweep, but no part of its question."""

    def command(self, store: Path, action: str = "run", options: Iterable[str] = ()) -> str:
        """A command on the sweep, as it runs in a shell: by default the one that fills missing cells."""
        where = [] if store == STORE else ["--store", store]
        return command("sweep", action, argument(self.path), "--scale", self.scale, *where, *options)


@dataclass(frozen=True)
class State:
    """State of a cell: `done`, `failed`, `running`, `started` (and interrupted) or `waiting`.

    Waiting has a reason if it is for a source that failed.
    """

    name: str
    result: Result | None = None
    reason: str | None = None


Chosen = dict[str, tuple[Any, Any]]
"""Of each axis, the name and the value that a cell has."""


def load_sweep(path: str, scale: str) -> Sweep:
    """The cells of a sweep file at a scale, and their sources.

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
            if axis in SEVERAL and not isinstance(values, dict):
                raise BadInput(f"axes.{axis}: should be a mapping from names to mappings of fields")
            if not values:
                raise BadInput(f"axes.{axis}: {values} is not allowed: needs at least one value")
        primary = _primary(file, size)
        if primary is not None:
            primary.check(axes)
        recipe = read_recipe(file.recipe)
        return _laid_out(path, scale, file, axes, merge(merge(recipe, file.baseline), size.baseline))
    except BadInput as error:
        raise BadInput(str(error) if str(error).startswith(path) else f"{path}: {error}") from None


def _laid_out(path: str, scale: str, file: SweepFile, axes: dict[str, Any], baseline: dict[str, Any]) -> Sweep:
    """The cells of a sweep, each the baseline with what the axes move laid over it."""
    size, origin = file.scales[scale], f"{path}, scale {scale}"
    named = {
        name: merge(file.sources.get(name, {}), fields) for name, fields in {**file.sources, **size.sources}.items()
    }
    cells: dict[str, Cell] = {}
    sources: dict[str, Cell] = {}
    for chosen in _combinations(axes):
        point = {axis: name for axis, (name, _) in chosen.items()}
        mapping = merge(baseline, combine(_moves(chosen)))
        if mapping.get("init_from") is not None:
            source = _source(mapping["init_from"], named, baseline, chosen, origin)
            sources[source.experiment.label] = source
            mapping = {**mapping, "init_from": source.experiment.label}
        cell = Cell(experiment_from(mapping, origin, lambda label: sources[label].experiment), point)
        twin = cells.setdefault(cell.experiment.identity, cell)
        if twin is not cell:
            raise BadInput(f"axes: {point} and {twin.axes} are the same experiment; name each value once")
    _check_scale(file, scale, axes, baseline, {source.axes["source"] for source in sources.values()})
    others = tuple(source for source in sources.values() if source.experiment.identity not in cells)
    primary = _primary(file, size)
    return Sweep(Path(path).stem, path, scale, file, tuple(axes), tuple(cells.values()), primary, others)


def _combinations(axes: dict[str, Any]) -> Iterator[Chosen]:
    """The choices of one value on each axis, the first axis the slowest."""
    pairs = [each.items() if isinstance(each, dict) else zip(each, each, strict=True) for each in axes.values()]
    for combination in itertools.product(*pairs):
        yield dict(zip(axes, combination, strict=True))


def _moves(chosen: Chosen) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the settings of the values on the axes, as parts of a layer."""
    for axis, (name, value) in chosen.items():
        yield moved("axes", axis, name, value)


def _source(name: Any, named: dict[str, dict[str, Any]], baseline: dict[str, Any], chosen: Chosen, origin: str) -> Cell:
    """Return the source of the cell for which names and values are `chosen` on the axes."""
    if not isinstance(name, str) or name not in named:
        allowed = f"allowed: {', '.join(named)}" if named else "the sweep has no sources"
        raise BadInput(f"init_from: '{name}' is no source; {allowed}{did_you_mean(name, named)}")
    if named[name].get("init_from") is not None:
        raise BadInput(f"sources.{name}.init_from: is not allowed: a source begins with random weights")
    shared = {axis: chosen[axis] for axis in chosen if axis.split(".")[0] in ("seed", "model")}
    mapping = merge({**baseline, "init_from": None}, combine([*_moves(shared), (f"sources.{name}", named[name])]))
    point = {"source": name, **{axis: label for axis, (label, _) in shared.items()}}
    return Cell(experiment_from(mapping, f"{origin}, source {name}"), point)


def _check_scale(file: SweepFile, scale: str, axes: dict[str, Any], baseline: dict[str, Any], begun: set[str]) -> None:
    """Refuse what a scale says and no cell has; `begun` are the names of the sources that cells begin from.

    Raises:
        BadInput: a source that no cell begins from, or a baseline's field that the sweep's own axes move everywhere.
    """
    size = file.scales[scale]
    for name in {**size.sources, **({} if size.axes else file.sources)}:
        if name not in begun:
            raise BadInput(f"sources.{name}: is not allowed: no run begins from it{did_you_mean(name, begun)}")
    inherited = {axis: values for axis, values in axes.items() if axis not in size.axes}
    mappings = (merge(baseline, combine(_moves(chosen))) for chosen in _combinations(inherited))
    for field, value in layers.lost(Experiment, size.baseline, mappings):
        axis = "the axes under `axes` move it in every run; name them under the scale's `axes`, too"
        raise BadInput(f"scales.{scale}.baseline.{field}: {value!r} is not allowed: {axis}")


def _primary(file: SweepFile, size: Scale) -> Primary | None:
    """The primary endpoint at a scale."""
    if file.primary is None or size.primary is None:
        return size.primary or file.primary
    return validated(Primary, {**file.primary.model_dump(), **size.primary.model_dump(exclude_unset=True)})


def states(sweep: Sweep, store: Path) -> list[State]:
    """The state of each cell: by its run directory under `store`, or by a result kept in results/."""
    return [state for _, state in runs(sweep, store)[-len(sweep.cells) :]]


def runs(sweep: Sweep, store: Path, weights: bool = False) -> list[tuple[Cell, State]]:
    """The runs of a sweep and their states: the sources that are done or that a cell waits for, then the cells.

    What a cell waits for is done when it lies in the store: results/ holds no weights to begin with. If `weights` are
    wanted, that goes for all.
    """
    kept = {} if weights else kept_results()
    needed = {cell.experiment.source for cell, state in _found(sweep.cells, store, kept) if not state.result}
    elsewhere = {identity: result for identity, result in kept.items() if identity not in needed}
    both = _found((*sweep.sources, *sweep.cells), store, elsewhere)
    failed = {cell.experiment.identity for cell, state in both if state.name == "failed"}
    blocked = State("waiting", reason="its source failed")
    return [
        (cell, blocked if state.name == "waiting" and cell.experiment.source in failed else state)
        for cell, state in both
        if cell not in sweep.sources or state.result or cell.experiment.identity in needed
    ]


def _found(cells: Iterable[Cell], store: Path, kept: dict[str, Result]) -> list[tuple[Cell, State]]:
    return [(cell, _state(RunDirectory(store, cell.experiment), kept)) for cell in cells]


def _state(directory: RunDirectory, kept: dict[str, Result]) -> State:
    try:
        result = directory.read_result() or kept.get(directory.experiment.identity)
    except Failure as error:
        return State("failed", reason=str(error))
    if result:
        return State("done", result=result)
    if directory.is_held():
        return State("running")
    reason = directory.read_failure()
    if reason:
        return State("failed", reason=reason)
    return State("started" if directory.checkpoint.exists() or directory.metrics.exists() else "waiting")
