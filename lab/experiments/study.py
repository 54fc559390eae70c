"""Studies: which values of some fields do best on validation, searched for in each of several arms."""

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from lab.config import Config, did_you_mean, validated
from lab.errors import BadInput
from lab.experiments import layers
from lab.experiments.documents import read_recipe, read_yaml, yaml_text
from lab.experiments.experiment import Experiment, combine, experiment_from, load_experiment, merge, moved
from lab.experiments.sweep import STORE
from lab.shell import argument, command

Point = dict[str, Any]
"""A value for each field that is searched: a number within its range, or a choice's name (of a list, the choice)."""

_CORNERS = 1000


class Dimension(Config):
    """The values that a field is searched over: a range, or choices."""

    low: float | None = None
    """The least value. (Where the field is a whole number, whole numbers are tried.)"""
    high: float | None = None
    """The greatest value."""
    log: bool = False
    """True if equal factors count as equal steps."""
    choices: Any = None
    """A list of plain values, or a mapping from names to values of any kind."""
    when: dict[str, Any] = {}
    """Fields searched before this one, and the choice, or a list of choices, with which this one is searched at all."""

    @model_validator(mode="after")
    def _consistent(self) -> "Dimension":
        if self.choices is None:
            if self.low is None or self.high is None:
                raise ValueError("should be low and high, or choices")
            if self.low >= self.high:
                raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
            if self.log and self.low <= 0:
                raise ValueError(f"low {self.low:g} must be above 0, for log")
            return self
        if self.low is not None or self.high is not None or self.log:
            raise ValueError("choices have no low, high or log")
        if not isinstance(self.choices, list | dict) or not self.choices:
            raise ValueError("choices should be a list or a mapping, of one choice at least")
        if any(isinstance(label, list | dict) for label in self.labels):
            raise ValueError("choices that are lists or mappings need names: {name: choice, …}")
        if len({(isinstance(label, bool), label) for label in self.labels}) < len(self.labels):
            raise ValueError("choices should differ")
        return self

    @property
    def labels(self) -> list[Any]:
        """The names of the choices; of a range, its ends."""
        if self.choices is not None:
            return list(self.choices)
        assert self.low is not None
        assert self.high is not None
        return [int(end) if end.is_integer() else end for end in (self.low, self.high)]

    def value(self, label: Any) -> Any:
        """Return the value that a label stands for."""
        return self.choices[label] if isinstance(self.choices, dict) else label

    def applies(self, point: Point) -> bool:
        """Return True if the field is searched, given the values chosen before it."""
        return all(field in point and point[field] in _several(labels) for field, labels in self.when.items())


class StudyScale(Config):
    """A study at one size of machine; laid over the study's own fields."""

    budget: str
    """Cost of the scale, in words."""
    baseline: dict[str, Any] = {}
    """Experiment fields, as in a recipe."""
    arms: dict[str, Any] = {}
    """Values by field; a field named here replaces the study's."""
    space: dict[str, Dimension] = {}
    """Searched ranges, by field; a field named here replaces the study's."""
    trials: Annotated[int | None, Field(ge=1, le=100_000)] = None
    """Trials in each arm; the study's when null."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]] | None, Field(min_length=1)] = None
    """Seeds of each trial; the study's when null."""


class StudyFile(Config):
    """The content of a study's YAML file."""

    question: str
    """The question of the study."""
    endpoint: str
    """The score of a trial, stated before the study runs."""
    recipe: str | None = None
    """The recipe that the baseline is laid over, as datasets/NAME.yaml."""
    baseline: dict[str, Any] = {}
    """Experiment fields that all trials share, unless an arm or the search moves them."""
    arms: dict[str, Any] = {}
    """Values by field, a list or a mapping from names to values; every combination is an arm, searched on its own. The
    names of `arm`, which is no field, stand for mappings of several. Nothing of `arms` and `space` may set one field
    twice."""
    space: dict[str, Dimension]
    """Searched ranges, by field (`key.sub`)."""
    trials: int = Field(default=16, ge=1, le=100_000)
    """Trials in each arm."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[1000], min_length=1)
    """Seeds of each trial, other than those of the evidence; the score is the mean over them, the first decides whether
    to prune."""
    prune: bool = True
    """True to give up a trial that falls behind. Not to be used where learning comes as a jump: in the pilot on
    stories a run that ends at 85 % stood at 3 % after a third of its steps, as did those that never learn."""
    scales: dict[str, StudyScale] = Field(min_length=1)
    """The sizes at which the study can be run."""


@dataclass(frozen=True)
class Arm:
    """One search of a study."""

    labels: Point
    """By which it differs from the others: a value, or its name, for each field of `arms`."""
    settings: dict[str, Any]
    """The same, as the experiment has it."""

    @property
    def name(self) -> str:
        """For people, and among the trials of a database."""
        return words(self.labels) or "all"


@dataclass(frozen=True)
class Study:
    """A study at one scale."""

    name: str
    path: str
    scale: str
    file: StudyFile
    base: dict[str, Any]
    """Experiment fields: the recipe, the study's baseline and the scale's, laid one over another."""
    arms: tuple[Arm, ...]
    space: dict[str, Dimension]
    trials: int
    seeds: tuple[int, ...]

    def experiments(self, arm: Arm, point: Point) -> list[Experiment]:
        """The runs of a trial, one a seed.

        Raises:
            BadInput: they are no experiments.
        """
        mapping = merge(self.base, self.settings(arm, point))
        origin = f"{self.path}, scale {self.scale}"
        return [experiment_from({**mapping, "seed": seed}, origin) for seed in self.seeds]

    def settings(self, arm: Arm, point: Point) -> dict[str, Any]:
        """Return the settings of an arm and a point; none may be set twice."""
        values = {field: self.space[field].value(label) for field, label in point.items()}
        try:
            return combine(
                itertools.chain(
                    (moved("arms", field, arm.labels[field], value) for field, value in arm.settings.items()),
                    (moved("space", field, point[field], value) for field, value in values.items()),
                )
            )
        except BadInput as error:
            raise BadInput(f"{self.path}: {error}") from None

    def corners(self) -> list[Point]:
        """The ends of every range with every choice there is beside them; some thousand of them, where there are more.

        Every end and every choice is in one of them.
        """
        points: list[Point] = [{}]
        for field, dimension in self.space.items():
            points = [
                {**point, field: label} if dimension.applies(point) else point
                for point in points[:: 1 + len(points) // _CORNERS]
                for label in (dimension.labels if dimension.applies(point) else [None])
            ]
        return points

    def whole(self, field: str) -> bool:
        """Return True if a range is of whole numbers, as the experiment's field is."""
        dimension = self.space[field]
        if dimension.low is None or dimension.high is None:
            return False
        between = dimension.low + (dimension.high - dimension.low) / math.pi
        try:
            self.experiments(self.arms[0], {**next(each for each in self.corners() if field in each), field: between})
        except BadInput:
            return True
        return False

    def definition(self, arm: Arm) -> dict[str, Any]:
        """Return the settings that must be equal for two trials to belong to one search."""
        return {
            "baseline": self.experiments(arm, self.corners()[0])[0].identity,
            "space": {field: dimension.model_dump(mode="json") for field, dimension in self.space.items()},
            "seeds": list(self.seeds),
        }

    def command(self, store: Path, storage: str | None = None, action: str = "run", options: Iterable[str] = ()) -> str:
        """A command on the study, as it runs in a shell: by default the one that carries out what is missing.

        `storage` is as `lab study run` takes it.
        """
        where = [*([] if store == STORE else ["--store", store]), *(["--storage", storage] if storage else [])]
        return command("study", action, argument(self.path), "--scale", self.scale, *where, *options)

    def repeat(self, arm: Arm, point: Point, store: Path) -> str:
        """The command that repeats a trial's first run on its own: the recipe and what the trial sets in it."""
        experiment = self.experiments(arm, point)[0]
        where = [] if store == STORE else ["--store", store]
        if self.file.recipe:
            baseline = merge(self.file.baseline, self.file.scales[self.scale].baseline)
            update = {**merge(baseline, self.settings(arm, point)), "seed": self.seeds[0]}
            overrides = [
                f"{'.'.join(path)}={yaml_text(value, one_line=True)}"
                for path, value in layers.leaves(Experiment, update)
            ]
            with contextlib.suppress(BadInput):  # a key that cannot be written as an override
                if load_experiment(self.file.recipe, overrides).identity == experiment.identity:
                    return command("train", argument(self.file.recipe), *overrides, *where)
        return command("train", argument(store / experiment.label / "config.yaml"), *where)


def words(point: Point) -> str:
    """Fields and their values for people."""
    return " ".join(f"{field}={_plain(label)}" for field, label in point.items())


def load_study(path: str, scale: str) -> Study:
    """A study file at a scale.

    Raises:
        BadInput: anything that is not allowed, in one line.
    """
    try:
        file = validated(StudyFile, read_yaml(path))
        if scale not in file.scales:
            known = ", ".join(file.scales)
            raise BadInput(f"scales: has no '{scale}'; allowed: {known}{did_you_mean(scale, file.scales)}")
        size = file.scales[scale]
        axes, space = {**file.arms, **size.arms}, {**file.space, **size.space}
        seeds = tuple(file.seeds if size.seeds is None else size.seeds)
        _check(axes, space, seeds)
        recipe = read_recipe(file.recipe)
        if "seed" in {**file.baseline, **size.baseline}:
            raise BadInput("baseline.seed: is not allowed: `seeds` says which there are")
    except BadInput as error:
        raise BadInput(str(error) if str(error).startswith(path) else f"{path}: {error}") from None
    arms, base = tuple(_arms(axes)), merge(merge(recipe, file.baseline), size.baseline)
    study = Study(Path(path).stem, path, scale, file, base, arms, space, size.trials or file.trials, seeds)
    found: dict[str, Arm] = {}
    for arm in arms:
        for place, corner in enumerate(study.corners()):
            identity = study.experiments(arm, corner)[0].identity
            twin = found.setdefault(identity, arm) if not place else arm
            if twin is not arm:
                raise BadInput(f"{path}: arms: {arm.name} and {twin.name} are the same; name each value once")
    _check_scale(study)
    return study


def _check_scale(study: Study) -> None:
    """Refuse a field of the scale's baseline that the study's own arms and space move everywhere.

    Raises:
        BadInput: there is such a field.
    """
    size = study.file.scales[study.scale]
    mappings = (
        merge(
            study.base,
            study.settings(
                Arm(arm.labels, {field: value for field, value in arm.settings.items() if field not in size.arms}),
                {field: label for field, label in corner.items() if field not in size.space},
            ),
        )
        for arm in study.arms
        for corner in study.corners()
    )
    for field, value in layers.lost(Experiment, size.baseline, mappings):
        moved_by = "`arms` or `space` moves it in every run; name it under the scale's, too"
        raise BadInput(f"{study.path}: scales.{study.scale}.baseline.{field}: {value!r} is not allowed: {moved_by}")


def _check(axes: dict[str, Any], space: dict[str, Dimension], seeds: tuple[int, ...]) -> None:
    """Raise BadInput if the parts of a study contradict each other."""
    if len(set(seeds)) < len(seeds):
        raise BadInput(f"seeds: {list(seeds)} is not allowed: name each seed once")
    if not space:
        raise BadInput("space: {} is not allowed: needs at least one field")
    for field, values in axes.items():
        if not isinstance(values, list | dict) or not values:
            raise BadInput(f"arms.{field}: should be a list or a mapping, of one value at least")
        if isinstance(values, list) and any(isinstance(each, list | dict) for each in values):
            raise BadInput(f"arms.{field}: values that are lists or mappings need names: {{name: value, …}}")
    for part, fields in (("arms", axes), ("space", space)):
        if "seed" in fields:
            raise BadInput(f"{part}.seed: is not allowed: `seeds` says which there are")
    for place, (field, dimension) in enumerate(space.items()):
        earlier_choices = {name: each for name, each in itertools.islice(space.items(), place) if each.choices}
        for name, labels in dimension.when.items():
            if name not in earlier_choices:
                known = f"allowed: {', '.join(earlier_choices)}" if earlier_choices else "there are none"
                hint = did_you_mean(name, earlier_choices)
                raise BadInput(f"space.{field}.when: '{name}' is not among the choices before it; {known}{hint}")
            for label in _several(labels):
                if label not in earlier_choices[name].labels:
                    choices = earlier_choices[name].labels
                    allowed = f"allowed: {', '.join(map(_plain, choices))}{did_you_mean(label, map(_plain, choices))}"
                    raise BadInput(f"space.{field}.when.{name}: '{_plain(label)}' is no choice; {allowed}")


def _arms(axes: dict[str, Any]) -> Iterator[Arm]:
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        named = {field for field in axes if isinstance(axes[field], dict)}
        yield Arm(values, {field: axes[field][label] if field in named else label for field, label in values.items()})


def _several(labels: Any) -> list[Any]:
    return labels if isinstance(labels, list) else [labels]


def _plain(label: Any) -> str:
    return f"{label:.4g}" if isinstance(label, float) else str(label).lower() if isinstance(label, bool) else str(label)
