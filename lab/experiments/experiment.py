"""The typed experiment, its files and overrides, and its identity."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from lab.config import Config, Neutral, canonical, validated
from lab.errors import BadInput
from lab.experiments import layers
from lab.experiments.documents import parse_value, read_yaml, yaml_text
from lab.learning.settings import Evaluation, Train
from lab.models.sizes import Model
from lab.objectives import ObjectiveConfig
from lab.objectives.flops import instantiate, training_flops_per_token
from lab.objectives.heads import ManyHeads
from lab.objectives.next_token import NextToken
from lab.tasks import TaskConfig
from lab.tasks.targets import check_where


class Execution(Config):
    """Settings of execution. Recorded, not part of a run's identity."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to run on; auto takes a GPU when there is one."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads of a run; all cores (or OMP_NUM_THREADS), shared between workers, when null. (Sums in another order
    change last bits.)"""
    backward: Literal["auto", "joint", "sequential", "fused"] = "auto"
    """Heads' logits in memory at once: of all heads, of one, or a part of one; auto chooses by their size."""
    passes: int = Field(default=1, ge=1, le=4096)
    """Forward and backward passes that a step's rows are shared out between, so that less is in memory at once."""
    recompute: bool = False
    """Keep of each layer its input alone, and compute the rest again in the backward pass: less memory, more time."""
    data_workers: int = Field(default=0, ge=0, le=64)
    """Processes that prepare batches; 0 prepares them in the run's own."""
    log_every: int = Field(default=50, ge=1)
    """Steps between rows of metrics.jsonl; each is a mean over them."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints to resume from."""
    snapshots: int | None = Field(default=None, ge=1)
    """Steps between weights that are kept for `lab analyze`, which then shows how things came about; null keeps the
    last and the best alone."""
    tensorboard: bool = True
    """Also log to TensorBoard, in the run's directory."""


def default_precision() -> Literal["fp32", "bf16"]:
    """bf16 where the machine has a GPU, else fp32."""
    return "bf16" if torch.cuda.is_available() else "fp32"


class Learner(Config):
    """The task, and the model and objective that learn it."""

    task: TaskConfig
    """The task; its name selects it."""
    model: Model = Model()
    """The decoder's shape."""
    objective: ObjectiveConfig = NextToken()
    """The number of tokens predicted at once, and their heads; its name selects it."""


class Experiment(Learner):
    """One training run."""

    init_from: Annotated[str | None, Neutral(None)] = None
    """A finished run whose final weights training begins with: its directory, its label or its identity. The model is
    that run's trunk with this objective's heads. Null: it begins with random weights."""
    train: Train = Train()
    """Optimiser and schedule."""
    evaluation: Evaluation = Evaluation()
    """Measurements while training."""
    seed: int = Field(default=0, ge=0)
    """Moves the initial weights and the training data. Validation and test sets are the same for every seed."""
    precision: Literal["fp32", "bf16"] = Field(default_factory=default_precision)
    """Number format of training; bf16 keeps fp32 master weights. Default: bf16 on a GPU, else fp32."""
    execution: Execution = Execution()
    """Settings of execution; not part of the run's identity."""

    @field_validator("init_from")
    @classmethod
    def _names_a_run(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"(.*[-/])?[0-9a-f]{16}/?", name):
            raise ValueError("should be a run's directory, label or identity; each ends in 16 hexadecimal digits")
        return name

    @model_validator(mode="after")
    def _fits(self) -> "Experiment":
        layers, heads = self.model.shape.layers, self.objective.head_layers()
        if heads >= layers:
            raise ValueError(
                f"objective.n: {self.objective.n} is not allowed: its {heads} head layers leave no trunk in a model of "
                f"{layers} layers; allowed: at most {layers - 1 + self.objective.n - heads}, or a larger model"
            )
        if isinstance(self.objective, ManyHeads) and self.objective.where is not None:
            check_where(self.task, self.objective.where)
        task = self.task.build()
        longest = task.max_length("train")
        if longest > self.train.context:
            raise ValueError(
                f"train.context: {self.train.context} is not allowed: the longest training example has {longest} tokens"
            )
        if self.train.flops is not None:
            built = instantiate(self.model, self.objective, len(task.vocabulary))
            a_step = training_flops_per_token(built, self.train.context) * self.train.batch_tokens
            steps = round(self.train.flops / a_step)
            if steps <= self.train.warmup:
                raise ValueError(
                    f"train.flops: {self.train.flops:g} is not allowed: lasts {steps} steps of {a_step:.3g}; should be "
                    f"more than the {self.train.warmup} of warmup"
                )
            if self.train.steps != steps and "steps" in self.train.model_fields_set:
                raise ValueError(
                    f"train.steps: {self.train.steps} is not allowed beside train.flops: {self.train.flops:g}, which "
                    f"last {steps} steps; give one of the two"
                )
            object.__setattr__(self, "train", self.train.model_copy(update={"steps": steps}))
        return self

    @property
    def identity(self) -> str:
        """16 hexadecimal digits that stand for every field that defines the science."""
        science = canonical(self)
        del science["execution"]
        if self.source is not None:  # not where it is, but what
            science["init_from"] = self.source
        text = json.dumps(science, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def source(self) -> str | None:
        """The identity of the run that this one begins from."""
        return self.init_from.rstrip("/")[-16:] if self.init_from is not None else None

    @property
    def label(self) -> str:
        """A readable name, which together with the identity names the run's directory."""
        objective = f"{self.objective.name}-n{self.objective.n}"
        return f"{self.task.name}-{objective}-{self.model.label}-s{self.seed}-{self.identity}"


def merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """`update` laid over `base`, both an experiment's fields, as a layer over the one below (`lab.experiments.layers`).

    Naming another task, objective, law of weights or kind of tokens starts from its own defaults: nothing of the
    former's is kept.
    """
    below, over = (layers.spelled_out(Experiment, each) for each in (base, update))
    return layers.merge(Experiment, below, over)  # type: ignore[no-any-return]


def setting(key: str, value: Any) -> dict[str, Any]:
    """The mapping that sets the field at the dotted path `key`."""
    return layers.at(Experiment, tuple(key.split(".")), value)  # type: ignore[no-any-return]


def combine(parts: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The one layer that parts are of, in whatever order; each part has its name in messages, and fields.

    Raises:
        BadInput: two of them set one field.
    """
    return layers.combine(Experiment, parts)


SEVERAL = ("arm", "condition")
"""Axes that are no field: their values are mappings of any fields but the seed. Arms are compared, under conditions."""


def moved(kind: str, axis: str, label: Any, value: Any) -> tuple[str, dict[str, Any]]:
    """Return the fields that a value of an axis sets, as a part of a layer, with its name in messages.

    An axis is a field, or one of `SEVERAL`, whose values are fields.

    Args:
        kind: what the axis is one of, as YAML has it, such as `axes`.
        axis: its name.
        label: the value's name; the value itself, where it has no other.
        value: the value.

    Raises:
        BadInput: one of `SEVERAL` whose value is no mapping, or moves the seed, by which arms are paired.
    """
    name = f"{kind}.{axis}"
    if axis in SEVERAL and not isinstance(value, dict):
        raise BadInput(f"{name}: {value!r} is not allowed: should be names, and a mapping of fields for each")
    if axis in SEVERAL and "seed" in value:
        raise BadInput(f"{name}: seed: {value['seed']!r} is not allowed: arms are paired by the axis seed")
    return name if label is value else f"{name}.{label}", value if axis in SEVERAL else setting(axis, value)


def parse_override(text: str) -> tuple[str, Any]:
    """The key and value of `key.sub=value`; the value is YAML.

    Raises:
        BadInput: not of that form.
    """
    key, equals, value = text.partition("=")
    if not equals or not key or not all(part.isidentifier() for part in key.split(".")):
        raise BadInput(f"'{text}' is not an override: should be key.sub=value, as in train.lr=1e-3")
    return key, parse_value(value, f"override '{text}'")


def paths_set(overrides: Iterable[str]) -> list[str]:
    """The dotted paths of the fields that overrides set.

    Raises:
        BadInput: one is no override, or two set one field.
    """
    layer = combine((f"'{text}'", setting(*parse_override(text))) for text in overrides)
    return [".".join(path) for path, _ in layers.leaves(Experiment, layer)]


def overridden(mapping: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """An experiment's fields with overrides.

    Raises:
        BadInput: one is no override, or two set one field.
    """
    return merge(mapping, combine((f"'{text}'", setting(*parse_override(text))) for text in overrides))


Find = Callable[[str], Experiment]
"""Finds the experiment of the run that `init_from` names."""


def load_experiment(path: str | Path, overrides: Iterable[str] = (), find: Find | None = None) -> Experiment:
    """The experiment of a recipe or of a run's config.yaml, with overrides; `find` as of `experiment_from`.

    Raises:
        BadInput: anything that is not allowed, in one line.
    """
    return experiment_from(overridden(read_yaml(path), overrides), str(path), find)


def experiment_from(mapping: dict[str, Any], origin: str, find: Find | None = None) -> Experiment:
    """A validated experiment; errors name `origin`.

    With `init_from`, `find` finds what it names, and the model comes from there, where the mapping has none. Without
    `find` the model is taken as it stands; so it stands in a run's config.yaml.
    """
    try:
        mapping = merge({}, mapping)
        name = mapping.get("init_from")
        if find and isinstance(name, str):
            mapping["model"] = begun_from(find(name), mapping).model_dump(mode="json")
        return validated(Experiment, mapping)
    except BadInput as error:
        raise BadInput(f"{origin}: {error}") from None


def begun_from(source: Experiment, mapping: dict[str, Any]) -> Model:
    """The model of an experiment that begins as `source` ended: its trunk, with the experiment's heads.

    If `mapping`, the experiment's, has a model of its own, it should be the source's, or the one that comes out.

    Raises:
        BadInput: it is another one, or the vocabulary is another than the source's.
    """
    theirs, run = source.model, f"run {source.identity}, which init_from names"
    mapping = {"model": theirs.model_dump(mode="json"), **mapping}
    learner = validated(Learner, {field: mapping[field] for field in Learner.model_fields if field in mapping})
    if learner.task != source.task:
        texts = zip_longest(*(each.task.build().vocabulary for each in (learner, source)))
        for token, (ours, other) in enumerate(texts):
            if ours != other:
                raise BadInput(f"task: its token {token} is {ours!r}; allowed: the vocabulary of {run}, with {other!r}")
    (before, width, heads), base = theirs.shape, theirs.rotary_base
    layers = before - source.objective.head_layers() + learner.objective.head_layers()
    given: dict[str, float] = dict(zip(("layers", "width", "heads"), learner.model.shape, strict=True))
    given["rotary_base"] = learner.model.rotary_base
    allowed: dict[str, list[float]] = {
        "layers": [before, layers],
        "width": [width],
        "heads": [heads],
        "rotary_base": [base],
    }
    for field, values in allowed.items():
        if given[field] not in values:
            choice = " or ".join(map(str, dict.fromkeys(values)))
            raise BadInput(f"model.{field}: {given[field]} is not allowed: should be {choice}, to fit {run}")
    return theirs if layers == before else validated(Model, {field: values[-1] for field, values in allowed.items()})


def dump_yaml(experiment: Experiment) -> str:
    """The experiment as YAML that `load_experiment` reads back to the same identity."""
    return yaml_text(experiment.model_dump(mode="json"))
