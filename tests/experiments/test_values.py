"""What was written is what runs: values from files, overrides, axes, arms and studies are found in the experiments."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import event, given, settings
from hypothesis import strategies as st

from lab.cli.main import cli
from lab.errors import BadInput
from lab.experiments.experiment import Experiment, load_experiment
from lab.experiments.study import load_study
from lab.experiments.sweep import Cell, load_sweep
from tests.conftest import TINY, tiny

POLYNOMIALS, MIXTURE = "datasets/polynomials.yaml", "datasets/stories_and_novels.yaml"
NEGATION = {"neg": 1}
STATED = {"neg": 1, "add": 1, "mul": 1, "compose": 1}


def lab(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def spelled(value: Any, oddly: bool) -> str:
    """A value in YAML: as JSON, which YAML 1.2 has within it, or with plain words, merge keys and zeros that lead."""
    if isinstance(value, dict) and oddly:
        first, *others = [f"{key}: {spelled(each, oddly)}" for key, each in value.items()] or [""]
        beaten = ", ".join([first, *(f"{key}: beaten" for key in list(value)[1:])])
        return "{" + ", ".join([f"<<: {{{beaten}}}", *others]) + "}" if others else "{" + first + "}"
    if isinstance(value, list) and oddly:
        return f"[{', '.join(spelled(each, oddly) for each in value)}]"
    return f"0{value}" if oddly and type(value) is int else json.dumps(value)


def written(folder: Path, content: dict[str, Any], name: str = "it.yaml", oddly: bool = False) -> str:
    """A YAML file."""
    path = folder / name
    path.write_text(spelled(content, oddly), "utf-8")
    return str(path)


def cells(folder: Path, scale: dict[str, Any] | None = None, oddly: bool = False, **parts: Any) -> tuple[Cell, ...]:
    """The cells of a sweep of the tiny experiment, and its sources."""
    parts = {"baseline": TINY, **parts, "scales": {"cpu": {"budget": "none", **(scale or {})}}}
    sweep = load_sweep(written(folder, {"question": "why", "endpoint": "none", **parts}, oddly=oddly), "cpu")
    return (*sweep.cells, *sweep.sources)


def trials(folder: Path, scale: dict[str, Any] | None = None, **parts: Any) -> list[Experiment]:
    """The experiments of a study of the tiny experiment: of each arm, at all ends and choices."""
    parts = {"baseline": TINY, "space": {"train.clip": {"choices": [2.0]}}, **parts}
    parts["scales"] = {"cpu": {"budget": "?", **(scale or {})}}
    study = load_study(written(folder, {"question": "?", "endpoint": "?", **parts}), "cpu")
    return [each for arm in study.arms for corner in study.corners() for each in study.experiments(arm, corner)]


# A mapping that is a value is replaced, one of fields is merged


def operators(experiment: Experiment) -> Any:
    return experiment.task.model_dump()["operators"]


def test_weights_by_name_are_replaced_as_a_whole_wherever_they_are_written(tmp_path: Path) -> None:
    """A file that states all four operators, and one that does not, say the same with `operators: {neg: 1}` over it."""
    task = {"task": {"operators": NEGATION}}
    for number, below in enumerate(({}, {"operators": STATED})):
        folder = tmp_path / str(number)
        folder.mkdir()
        base = {**TINY, "task": {**TINY["task"], **below}}
        recipe = written(folder, base, "recipe.yaml")
        over: dict[str, Any] = {"recipe": recipe, "baseline": {}}
        two = {"objective.n": [1, 2]}
        found = [
            load_experiment(recipe, ["task.operators={neg: 1}"]),
            load_experiment(recipe, ["task={operators: {neg: 1}}"]),
            *(each.experiment for each in cells(folder, **{**over, "baseline": task})),
            *(each.experiment for each in cells(folder, **over, scale={"baseline": task})),
            *(each.experiment for each in cells(folder, **over, axes={"task.operators": {"negation": NEGATION}})),
            *(each.experiment for each in cells(folder, **over, axes={"task": {"negation": task["task"]}})),
            *(each.experiment for each in cells(folder, **over, axes={**two, "arm": {"negation": task}})),
            *(each.experiment for each in cells(folder, **over, axes={**two, "condition": {"negation": task}})),
            cells(folder, **over, axes={"init_from": ["first"]}, sources={"first": task})[-1].experiment,
            *trials(folder, **{**over, "baseline": task}),
            *trials(folder, **over, scale={"baseline": task}),
            *trials(folder, **over, arms={"task.operators": {"negation": NEGATION}}),
            *trials(folder, **over, arms={"arm": {"negation": task}}),
            *trials(folder, **over, space={"task.operators": {"choices": {"negation": NEGATION}}}),
        ]
        assert [operators(each) for each in found] == [{"neg": 1.0}] * len(found)


def test_an_override_of_weights_draws_these_alone() -> None:
    shown = lab("data", "show", POLYNOMIALS, "task.operators={neg: 1}", "--count", "200", "--json")
    assert shown.exit_code == 0, shown.output
    drawn = {token for line in shown.stdout.splitlines() for token in json.loads(line)["text"].split()}
    assert drawn & {"+", "*", "o", "-"} == {"-"}


def test_a_path_into_a_value_sets_one_entry_of_what_is_there_stated_or_not(tmp_path: Path) -> None:
    assert "operators" not in TINY["task"]
    for below in (TINY, {**TINY, "task": {**TINY["task"], "operators": STATED}}):
        recipe = written(tmp_path, below, "recipe.yaml")
        assert operators(load_experiment(recipe, ["task.operators.add=2"])) == {**STATED, "add": 2}
        (cell,) = cells(tmp_path, recipe=recipe, baseline={}, axes={"task.operators.add": [2]})
        assert operators(cell.experiment) == {**STATED, "add": 2}
    two = load_experiment(recipe, ["task.operators.add=2", "task.operators.mul=3"])
    assert operators(two) == {**STATED, "add": 2, "mul": 3}


def test_parts_of_a_mixture_are_a_value_and_each_part_is_fields() -> None:
    def parts(*overrides: str) -> Any:
        return load_experiment(MIXTURE, overrides).task.model_dump()["parts"]

    stated = parts()
    lighter = parts("task.parts.novels.weight=2")
    assert lighter == {**stated, "novels": {**stated["novels"], "weight": 2}}
    assert parts("task.parts.novels={weight: 2}") == lighter, "a part is a mapping of fields"
    other = "{a: {weight: 1, task: stories}, b: {weight: 2, task: {name: stories, refrains: 1}}}"
    replaced = parts(f"task.parts={other}", "task.scored=a")
    assert {name: part["weight"] for name, part in replaced.items()} == {"a": 1, "b": 2}
    with pytest.raises(BadInput, match=r"task\.parts\.novels\.task: missing"):
        parts("task={parts: {novels: {weight: 2}, stories: {weight: 1}}}")
    named = parts("task.parts.novels.task={name: stories, pronouns: 0.5}")["novels"]["task"]
    assert (named["pronouns"], named["refrains"]) == (0.5, 1.0), "the same task keeps its fields"


def test_fields_are_merged(tmp_path: Path) -> None:
    assert tiny("train={lr: 0.5}").train.steps == TINY["train"]["steps"]
    (cell,) = cells(tmp_path, axes={"train": {"fast": {"lr": 0.5}}})
    assert (cell.experiment.train.lr, cell.experiment.train.steps) == (0.5, 40)


def test_a_part_may_be_called_as_fields_are(tmp_path: Path) -> None:
    """Which mapping is what is told by the fields' types, not by their names."""
    recipe = {
        "task": {
            "name": "mixture",
            "scored": "tokens",
            "parts": {name: {"weight": 1, "task": "polynomials"} for name in ("tokens", "weights")},
        }
    }
    path = written(tmp_path, recipe)
    found = load_experiment(path, ["task.parts.weights.weight=3", "task.parts.tokens.task.prime=5"]).task.model_dump()
    assert (found["parts"]["weights"]["weight"], found["parts"]["tokens"]["task"]["prime"]) == (3, 5)
    assert found["parts"]["weights"]["task"]["prime"] == 7


def test_a_scales_primary_is_laid_over_the_sweeps(tmp_path: Path) -> None:
    primary = {"where": {"operations": 3, "seen": "unseen"}, "margin": 0.1, "screen": True}
    parts = {"question": "?", "endpoint": "?", "baseline": TINY, "primary": primary}
    scale = {"budget": "?", "primary": {"where": {"operations": 2}, "margin": 0.2}}
    found = load_sweep(written(tmp_path, {**parts, "scales": {"cpu": scale}}), "cpu").primary
    assert found is not None
    assert found.model_dump(exclude_defaults=True) == {"where": {"operations": 2}, "margin": 0.2, "screen": True}


# One of `steps` and `flops`


def test_flops_and_steps_written_over_each_other_count_and_written_beside_each_other_are_refused(
    tmp_path: Path,
) -> None:
    by_flops = tiny("train.flops=3e9")
    assert by_flops.train.steps not in (40, 2000)
    config = written(tmp_path, by_flops.model_dump(mode="json"), "config.yaml")
    assert load_experiment(config) == by_flops, "a run's own file states both"
    again = load_experiment(config, ["train.steps=50"]).train
    assert (again.steps, again.flops) == (50, None)
    assert load_experiment(config, ["train.flops=6e9", "objective.n=1"]).train.steps > by_flops.train.steps
    with pytest.raises(BadInput, match=r"train\.steps: 40 is not allowed beside train\.flops: 3e\+09, which last"):
        tiny("train.flops=3e9", "train.steps=40")
    with pytest.raises(BadInput, match=rf"train\.steps: {by_flops.train.steps} is not allowed beside"):
        load_experiment(config, ["objective.n=1"])
    (steps,) = cells(tmp_path, recipe=config, baseline={}, axes={"train.steps": [200]})
    assert (steps.experiment.train.steps, steps.experiment.train.flops) == (200, None)
    with pytest.raises(BadInput, match="beside"):
        cells(tmp_path, axes={"train.steps": [200], "train": {"a": {"flops": 1e9}}})


# Whatever is written is found: random recipes, overrides, axes, arms, conditions, scales and studies

WHOLE = {"task.operators"}
"""Fields whose mappings are values."""
NAMES = {"task", "objective", "objective.weights"}
"""Fields whose configs are told apart by name."""
INSTEAD = {("train.steps", "train.flops"), ("train.flops", "train.steps")}
"""Fields of which one stands in place of the other."""

weights = st.dictionaries(st.sampled_from(["neg", "add", "mul"]), st.sampled_from([1, 2, 0.5]), min_size=1)
laws = st.sampled_from(["geometric", "auxiliary", {"name": "geometric", "ratio": 0.25}, {"name": "balanced"}])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "task": st.sampled_from(["polynomials", {"pause": 3}, {"name": "polynomials", "degree": 2}])
    | st.just({"operators": NEGATION}),
    "task.prime": st.sampled_from([2, 3, 5]),
    "task.pause": st.integers(0, 2),
    "task.operators": weights,
    "task.operators.add": st.sampled_from([3, 4]),
    "task.loss": st.sampled_from(["all", "answer"]),
    "task.train_operations": st.sampled_from([[1, 1], [1, 2]]),
    "objective": st.sampled_from(["parallel", "next_token", {"n": 3}, {"name": "shallow", "n": 2}]),
    "objective.n": st.integers(1, 3),
    "objective.extra_layers": st.integers(0, 2),
    "objective.weights": laws | st.none(),
    "objective.weights.ratio": st.sampled_from([0.5, 2]),
    "model": st.sampled_from([{"width": 32}, {"rotary_base": 100}, {"size": "1M"}]),
    "model.layers": st.integers(4, 6),
    "model.size": st.sampled_from([None, "1M"]),
    "train": st.sampled_from([{"lr": 0.25}, {"steps": 50, "clip": 2}, {"flops": 1e10}]),
    "train.steps": st.sampled_from([30, 60]),
    "train.flops": st.sampled_from([1e10, 1e11, None]),
    "train.lr": st.sampled_from([1e-3, 1, 0.5]),
    "train.betas": st.sampled_from([[0.9, 0.99], [0.5, 0.5]]),
    "seed": st.integers(0, 3),
    "execution": st.sampled_from([{"threads": 2}, {"tensorboard": True}]),
    "execution.threads": st.sampled_from([None, 1, 3]),
}  # fmt: skip
Written = dict[str, Any]
"""Values by path, as they are written."""


ROOTS = st.sampled_from([("task",), ("objective",), ("train",), ("model", "execution", "seed"), tuple(FIELDS)])
"""What the fields of an example begin with: with few to choose from, they meet."""


def some(
    roots: tuple[str, ...], least: int = 0, most: int = 3, but: tuple[str, ...] = ()
) -> st.SearchStrategy[Written]:
    """A few fields with values, one perhaps within another."""
    known = [path for path in FIELDS if path.startswith(roots) and path not in but]
    chosen = st.lists(st.sampled_from(known), min_size=least, max_size=min(most, len(known)), unique=True)
    return chosen.flatmap(lambda paths: st.fixed_dictionaries({path: FIELDS[path] for path in paths}))


def mapping(fields: Written, base: Any = None) -> dict[str, Any]:
    """Written values as a file has them, over those of `base`."""
    whole: dict[str, Any] = json.loads(json.dumps(base or {}))
    for path, value in fields.items():
        *parents, last = path.split(".")
        place = whole
        for parent in parents:
            place[parent] = place.get(parent) if isinstance(place.get(parent), dict) else {}
            place = place[parent]
        place[last] = json.loads(json.dumps(value))
    return whole


def apart(roots: tuple[str, ...], least: int = 0, but: tuple[str, ...] = ()) -> st.SearchStrategy[Written]:
    """A few fields with values, none within another: what one mapping can say."""
    return some(roots, least, but=(*but, "task.operators.add")).filter(
        lambda fields: not any(within(one, other) for one in fields for other in fields if one != other)
    )


def parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A written value as the fields that it sets."""
    if path in NAMES and isinstance(value, str):
        yield f"{path}.name", value
    elif isinstance(value, dict) and path not in WHOLE:
        for key, each in value.items():
            yield from parts(f"{path}.{key}", each)
    else:
        yield path, value


def within(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.")


def covered(path: str, over: Iterable[tuple[str, Any]]) -> bool:
    """Whether what is laid over a field writes it too, or takes away what it is a field of."""
    for later, _ in (part for written in over for part in parts(*written)):
        if within(path, later) or within(later, path) or (path, later) in INSTEAD:
            return True
        if later.endswith(".name") and within(path, later.removesuffix(".name")):
            return True
    return False


def check(experiment: Experiment, *layers: Sequence[Written]) -> None:
    """All that the layers (each of several parts) write is found in the experiment, unless a later one is about it."""
    dump = experiment.model_dump(mode="json")
    for number, layer in enumerate(layers):
        over = [written for later in layers[number + 1 :] for part in later for written in part.items()]
        for path, value in (each for part in layer for written in part.items() for each in parts(*written)):
            found: Any = dump
            for key in path.split("."):
                found = found.get(key, "nowhere") if isinstance(found, dict) else "nowhere"
            if (path, value, found) != ("model.size", None, "1M"):  # null is this size, where no shape is given
                assert found == value or covered(path, over), f"{path} was written as {value}, and is {found}"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_overrides_are_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    roots, oddly = data.draw(st.tuples(ROOTS, st.booleans()))
    recipe = data.draw(apart(roots), label="recipe")
    overrides = data.draw(st.lists(some(roots, 1, 2), min_size=1, max_size=3), label="overrides")
    path = written(tmp_path_factory.getbasetemp(), mapping(recipe, TINY), oddly=oddly)
    try:
        load_experiment(path)
        told = [f"{path}={spelled(value, oddly)}" for each in overrides for path, value in each.items()]
        experiment = load_experiment(path, told)
    except BadInput:
        event("refused")
        return
    event("taken")
    check(experiment, [recipe], overrides)
    for override in overrides:  # the later is no layer over the earlier: each is found
        check(experiment, [override])


def axes(roots: tuple[str, ...], least: int = 1) -> st.SearchStrategy[dict[str, Any]]:
    """Axes by name, of several kinds: those that are fields, as a list or by name, and those that are several."""
    field = some(roots, 1, 2).map(lambda fields: {path: [value] for path, value in fields.items()})
    named = some(roots, 1, 1).map(lambda fields: {path: {"on": value} for path, value in fields.items()})
    several = st.sampled_from(["arm", "condition"]).flatmap(
        lambda axis: apart(roots, 1).map(lambda fields: {axis: {"off": fields, "010": {}}})
    )
    return st.lists(st.one_of(field, named, several), min_size=least, max_size=2).map(
        lambda found: {axis: values for each in found for axis, values in each.items()}
    )


def in_file(axes: dict[str, Any]) -> dict[str, Any]:
    """Axes as a file has them."""
    return {
        axis: {name: mapping(fields) for name, fields in values.items()} if axis in ("arm", "condition") else values
        for axis, values in axes.items()
    }


def check_moved(
    experiment: Experiment, moves: Sequence[tuple[dict[str, Any], dict[str, Any]]], *below: Written
) -> None:
    """What points write is found, and so is what is below. Moves: a point, and what its names stand for by axis."""
    chosen = []
    for point, axes in moves:
        for axis, name in point.items():
            value = axes[axis][name] if isinstance(axes[axis], dict) else name
            chosen.append(value if axis in ("arm", "condition") else {axis: value})
    for each in chosen:  # no axis is a layer over another
        check(experiment, [each])
    check(experiment, *([each] for each in below), chosen)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_axes_arms_and_conditions_are_found_at_every_scale(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    roots, oddly = data.draw(st.tuples(ROOTS, st.booleans()))
    baseline, scale = data.draw(apart(roots), label="baseline"), data.draw(apart(roots), label="scale's baseline")
    own, its = data.draw(axes(roots), label="axes"), data.draw(axes(roots, 0), label="scale's axes")
    folder = tmp_path_factory.getbasetemp()
    size = {"baseline": mapping(scale), "axes": in_file(its)}
    whole: dict[str, Any] = {"recipe": written(folder, TINY, "tiny.yaml")}
    whole |= {"baseline": mapping(baseline), "axes": in_file(own)}
    try:
        found = cells(folder, size, oddly, **whole)
    except BadInput:
        event("refused")
        return
    event("taken")
    for cell in found:
        check_moved(cell.experiment, [(cell.axes, {**own, **its})], baseline, scale)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_a_study_sets_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    roots, oddly = data.draw(st.tuples(ROOTS, st.booleans()))
    baseline, arms = data.draw(apart(roots, but=("seed",)), label="baseline"), data.draw(axes(roots), label="arms")
    space = data.draw(some(roots, 1, 1), label="space")
    folder = tmp_path_factory.getbasetemp()
    content: dict[str, Any] = {
        "recipe": written(folder, TINY, "tiny.yaml"),
        "baseline": mapping(baseline),
        "arms": in_file(arms),
        "space": {path: {"choices": {"no": value}} for path, value in space.items()},
        **{"question": "why", "endpoint": "none", "scales": {"cpu": {"budget": "none"}}},
    }
    try:
        study = load_study(written(folder, content, oddly=oddly), "cpu")
    except BadInput:
        event("refused")
        return
    event("taken")
    searched = {path: {"no": value} for path, value in space.items()}
    for arm in study.arms:
        (experiment,) = study.experiments(arm, study.corners()[0])
        assert experiment.seed == 1000
        check_moved(experiment, [(arm.labels, arms), (study.corners()[0], searched)], baseline)
