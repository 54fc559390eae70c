"""Typed experiments: fields, files, overrides, identity."""

from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from lab.config import Config, Neutral, canonical, validated
from lab.errors import BadInput
from lab.experiments.experiment import (
    Experiment,
    dump_yaml,
    experiment_from,
    load_experiment,
    overridden,
    parse_override,
)
from tests.conftest import TINY, tiny

# Every field that defines the science, with a value other than the tiny experiment's.
CHANGES = [
    "task.prime=5", "task.degree=3", "task.operators={add: 1}", "task.operators={add: 2, mul: 1}",
    "task.train_operations=[1, 3]", "task.test_operations=[1, 4]", "task.test_examples=31",
    "task.validation_examples=21", "task.shape=split", "task.syntax=infix", "task.coefficients=leading_first",
    "task.pause=1", "task.loss=answer", "task.unique_examples=100", "task.hint=filler", "task.hint=operand",
    "model={size: 1M, layers: null, width: null, heads: null}", "model.layers=5", "model.width=32", "model.heads=4",
    "model.rotary_base=100",
    "objective=next_token", "objective.n=1", "objective.n=3", "objective.reduction=mean", "objective.extra_layers=1",
    "objective={name: linear, n: 2}", "objective={name: replicated, n: 2}", "objective={name: causal, n: 2}",
    "objective={name: anticausal, n: 2}", "objective={name: sequential, n: 2}", "objective={name: shallow, n: 2}",
    "objective={name: detached, n: 2}", "objective={name: reweighted, n: 2}",
    "objective={name: reweighted, n: 2, reduction: mean}",
    "objective.weights={name: listed, values: [1, 1]}", "objective.weights={name: listed, values: [1, 0.5]}",
    "objective.weights={name: geometric}", "objective.weights={name: geometric, ratio: 0.25}",
    "objective.weights={name: auxiliary}", "objective.weights={name: auxiliary, first: 0.2}",
    "objective.weights={name: auxiliary, last: 0.2}", "objective.weights={name: auxiliary, change: 0.5}",
    "objective.weights={name: curriculum, order: forward}", "objective.weights={name: curriculum, order: reverse}",
    "objective.weights={name: curriculum, order: forward, share: 0.5}",
    "objective.weights={name: balanced}", "objective.weights={name: balanced, decay: 0.5}",
    "objective.weights={name: balanced, every: 1}",
    "objective.trunk_gradient=0.5", "objective.readout_gradient=0", "objective.where=[answer]", "objective.where=[-1]",
    "init_from=0123456789abcdef", "train.flops=1e9",
    "train.steps=41", "train.batch_tokens=257", "train.context=33", "train.lr=2e-3", "train.warmup=6",
    "train.decay_ratio=0.1", "train.betas=[0.9, 0.99]", "train.betas=[0.8, 0.95]", "train.eps=1e-6",
    "train.weight_decay=0", "train.clip=0.5", "train.clip_apart=true",
    "evaluation.every=21", "evaluation.examples=19", "evaluation.epoch_oracle=true", "seed=1", "precision=bf16",
]  # fmt: skip
EXECUTION = [
    "execution.device=cpu", "execution.threads=2", "execution.data_workers=1", "execution.log_every=6",
    "execution.checkpoint_every=11", "execution.tensorboard=true", "execution.backward=fused", "execution.passes=2",
    "execution.recompute=true", "execution.snapshots=20",
]  # fmt: skip


def leaves(config: Config, path: str = "") -> Iterator[str]:
    """The dotted path of every field that is no config itself."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield path + name


def test_every_single_change_moves_the_identity() -> None:
    identities = [tiny(change).identity for change in CHANGES]
    assert len({tiny().identity, *identities}) == 1 + len(CHANGES)


def test_execution_leaves_the_identity_alone() -> None:
    assert {tiny(change).identity for change in EXECUTION} == {tiny().identity}
    assert all(tiny(change) != tiny() for change in EXECUTION)


def test_no_field_is_forgotten_here() -> None:
    named = {change.split("=")[0] for change in CHANGES + EXECUTION} | {"task.name", "objective.name", "model.size"}
    assert set(leaves(tiny())) <= named


def test_identities_stay() -> None:
    """Golden: a change here makes every stored result unfindable. Give new fields a `Neutral` value instead."""
    assert experiment_from({"task": {"name": "polynomials"}, "precision": "fp32"}, "").identity == "26b0d8f5132b1cf9"
    assert tiny().identity == "45ba1cffdafad15a"


def test_a_neutral_field_leaves_the_identity_alone() -> None:
    class Before(Config):
        a: int = 1

    class After(Config):
        a: int = 1
        b: Annotated[int, Neutral(0)] = 0

    class Later(Config):
        a: int = 1
        b: Annotated[int, Neutral(0)] = 5  # a new default is a new meaning: the neutral value is still 0

    assert canonical(Before()) == canonical(After()) == canonical(Later(b=0))
    assert canonical(After(b=5)) == canonical(Later()) != canonical(After())


def test_a_new_version_is_a_new_identity() -> None:
    class First(Config):
        a: int = 1

    class Second(Config):
        version = 2
        a: int = 1

    assert canonical(First()) != canonical(Second())


def test_the_same_number_written_otherwise_is_the_same() -> None:
    assert tiny("train.lr=1e-3").identity == tiny("train.lr=0.001").identity == tiny("train.lr=1.0e-03").identity
    assert tiny("train.clip=1").identity == tiny("train.clip=1.0").identity
    one, other = "task.operators={add: 1, mul: 2}", "task.operators={mul: 2.0, add: 1.0}"
    assert tiny(one).identity == tiny(other).identity


def test_an_experiment_survives_its_file(tmp_path: Any) -> None:
    experiment = tiny("train.eps=1e-9", "task.unique_examples=7", "objective.reduction=mean")
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(experiment))
    assert load_experiment(path) == experiment


def test_naming_an_objective_selects_it() -> None:
    assert tiny("objective=next_token").objective.n == 1
    assert tiny("objective=parallel").objective.n == 2, "naming what is already there keeps its fields"
    plain = {"task": "polynomials", "objective": "parallel"}
    assert experiment_from(overridden(plain, ["objective.n=4"]), "").objective.n == 4
    with pytest.raises(BadInput, match=r"objective\.n: missing"):
        experiment_from(overridden({"task": "polynomials", "objective": "next_token"}, ["objective=parallel"]), "")


def test_overrides_have_no_order() -> None:
    recipe = {"task": "polynomials"}
    one, other = (
        experiment_from(overridden(recipe, texts), "")
        for texts in (["objective.n=3", "objective=parallel"], ["objective=parallel", "objective.n=3"])
    )
    assert one == other
    assert (one.objective.name, one.objective.n) == ("parallel", 3)
    law = ["objective.weights.ratio=0.25", "objective.weights=geometric", "objective.n=3"]
    assert tiny(*law) == tiny(*reversed(law)) == tiny("objective={n: 3, weights: {name: geometric, ratio: 0.25}}")


def test_overrides_are_yaml() -> None:
    assert parse_override("train.lr=1e-3") == ("train.lr", 0.001)
    assert parse_override("a.b=[1, 2]") == ("a.b", [1, 2])
    assert parse_override("a=") == ("a", None)
    assert parse_override("a=x=y") == ("a", "x=y")
    for wrong in ("train.lr", "=3", "a..b=1", "a b=1", "a=[1"):
        with pytest.raises(BadInput):
            parse_override(wrong)


def test_validated_speaks_of_the_first_wrong_field_only() -> None:
    with pytest.raises(BadInput) as caught:
        validated(Experiment, {**TINY, "seed": -1, "precision": "x"})
    assert str(caught.value).count(" is not allowed") == 1
