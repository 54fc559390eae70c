"""Landmarks by the record, a cut by a masked softmax, gradients by the training loss; the command and its figure."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from lab.analysis.attention import Looking, layers, look, next_token_logits
from lab.analysis.landmarks import accuracy, cut, cuts, gradients, looking
from lab.cli.main import cli
from lab.errors import BadInput
from lab.experiments.experiment import experiment_from
from lab.experiments.run import execute
from lab.home import home
from lab.learning.data import packed_batch
from lab.models.sizes import Model
from lab.objectives import LanguageModel, build_model
from lab.objectives.backward import losses
from lab.objectives.parallel import Parallel
from lab.report.style import use_style
from lab.tasks.star import Star, StarTask
from tests.conftest import TINY, tiny

STAR: dict[str, Any] = {
    "task": {"name": "star", "labels": 12, "validation_examples": 20, "test_examples": 60},
    "model": {"layers": 4, "width": 16, "heads": 2},
    "objective": {"name": "parallel", "n": 2},
    "train": {"steps": 12, "batch_tokens": 112, "context": 14, "warmup": 2},
    "evaluation": {"every": 6, "examples": 10},
    "precision": "fp32",
    "execution": {"snapshots": 6, "device": "cpu"},
}


def task_and_model(n: int = 2) -> tuple[StarTask, LanguageModel]:
    task = Star(labels=12, test_examples=40, validation_examples=10).build()
    model = build_model(Model(layers=4, width=16, heads=2), Parallel(n=n), len(task.vocabulary), 3)
    for parameter in model.parameters():  # at the start all heads look everywhere alike
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return task, model.eval()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 50), st.sampled_from([0.0, 1.0]))
def test_landmarks_are_where_the_record_has_them(arms: int, length: int, first: int, backwards: float) -> None:
    task = Star(arms=arms, length=length, labels=20, backwards=backwards).build()
    examples = task.examples("train", np.arange(first, first + 5), 0)
    marks, deciding = task.landmarks(examples), task.deciding(examples)
    for row in range(5):
        told = task.record(examples, row)
        words = told["text"].split()
        sign = words.index("<" if backwards else "=")
        assert np.flatnonzero(deciding[row]).tolist() == [sign]
        # The edge that leads to the goal, by the words alone.
        (edge,) = [place for place in range(0, words.index("/"), 2) if words[place + 1] == words[sign - 1]]
        expected = {"sign": sign, "goal": sign - 1, "goal's edge": edge + 1, "predecessor": edge}
        assert words[sign - 1] == str(told["goal"])
        assert words[edge] == str(told["path"][-2])
        for name, mark in marks.items():
            query, key = name.split(" to ")
            assert np.flatnonzero(mark.queries[row]).tolist() == [expected[query]]
            assert np.flatnonzero(mark.keys[row]).tolist() == [expected[key]]


def test_a_cut_is_a_softmax_without_the_keys_and_is_undone() -> None:
    task, model = task_and_model()
    examples = task.examples("test", np.arange(7), 0)
    ((tokens, asked),) = looking(model, task, examples)
    barred = asked["sign to predecessor"]
    attention = layers(model)["trunk.1"].attention
    taken: list[Any] = []
    with torch.no_grad():
        before = next_token_logits(model, tokens)
        hook = attention.register_forward_pre_hook(lambda _, inputs: taken.append(inputs))
        next_token_logits(model, tokens)
        hook.remove()
        (x, context), *_ = taken
        with cut(attention, barred):
            found, changed = attention(x, context), next_token_logits(model, tokens)

        # By hand: complex rotations, one row, one head, one query at a time.
        rows, positions, width = x.shape
        q, k, v = attention.inputs(x).view(rows, positions, 3, 2, width // 2).unbind(2)
        turned = []
        for each in (q, k):
            pairs = torch.view_as_complex(each.contiguous().view(rows, positions, 2, -1, 2))
            turned.append(torch.view_as_real(pairs * context.rotary).flatten(-2))
        mixed = torch.zeros(rows, positions, 2, width // 2)
        for row in range(rows):
            for head in range(2):
                for t in range(positions):
                    logits = turned[1][row, : t + 1, head] @ turned[0][row, t, head] / (width // 2) ** 0.5
                    if barred.queries[row, t]:
                        logits[barred.keys[row, t, : t + 1]] = -torch.inf
                    mixed[row, t, head] = logits.softmax(0) @ v[row, : t + 1, head]
        torch.testing.assert_close(found, attention.output(mixed.flatten(2)), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(before, changed)
        torch.testing.assert_close(next_token_logits(model, tokens), before, rtol=0, atol=0)


def test_what_cannot_be_looked_at_cannot_be_used() -> None:
    """With every key but the query itself barred in every layer, what stands before does not matter."""
    task, model = task_and_model()
    examples = task.examples("test", np.arange(5), 0)
    ((tokens, _),) = looking(model, task, examples)
    others = ~torch.eye(tokens.shape[1], dtype=torch.bool).expand(len(tokens), -1, -1)
    alone = Looking(torch.ones_like(tokens, dtype=torch.bool), others)
    seen: dict[str, Any] = {}
    with torch.no_grad():
        look(model, tokens, lambda name, _: seen.setdefault(name), heads=1)
        blocks = [layers(model)[name].attention for name in seen]
        with cut(blocks[0], alone), cut(blocks[1], alone), cut(blocks[2], alone):
            found = next_token_logits(model, tokens)
    for token in set(tokens.flatten().tolist()):
        here = found[tokens == token]
        torch.testing.assert_close(here, here[:1].expand_as(here), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_each_heads_loss_alone() -> None:
    task, model = task_and_model()
    examples = task.examples("test", np.arange(6), 0)
    rows = list(gradients(model, examples))
    assert {(row["layer"], row["predicts"]) for row in rows} == {
        (layer, head) for layer in ("trunk.0", "trunk.1", "head 1", "head 2") for head in (1, 2)
    }
    batch = packed_batch(examples, examples.tokens.shape[1] + 2, 2)
    for head in (1, 2):
        model.zero_grad()
        weights = [float(each == head) for each in (1, 2)]
        losses(model.objective, model.decoder, batch, weights).total.backward()  # type: ignore[no-untyped-call]
        for layer, block in layers(model).items():
            squares = [float(each.grad.double().square().sum()) for each in block.parameters() if each.grad is not None]
            (row,) = [row for row in rows if (row["layer"], row["predicts"]) == (layer, head)]
            assert row["norm"] == pytest.approx(sum(squares) ** 0.5, rel=1e-4, abs=1e-9)
    other = {"head 1": 2, "head 2": 1}
    assert [row["norm"] for row in rows if other.get(row["layer"]) == row["predicts"]] == [0.0, 0.0]


def test_accuracy_is_that_of_the_score_table() -> None:
    task, model = task_and_model()
    examples = task.examples("test", np.arange(40), 0)
    predicted = np.zeros_like(examples.tokens)
    with torch.no_grad():
        tokens = torch.from_numpy(examples.tokens.astype(np.int64))
        predicted[:, 1:] = next_token_logits(model, tokens)[:, :-1].argmax(-1).numpy()
    table = task.score(examples, predicted, np.zeros(examples.fingerprints.shape, np.bool_))
    (row,) = [row for row in table if row["place"] == 1 and row["direction"] == "all" and row["seen"] == "all"]
    assert accuracy(model, task, examples) == pytest.approx(row["accuracy"])
    told = list(cuts(model, task, examples))
    assert len(told) == 3 * 6
    assert len({row["accuracy"] for row in told}) > 1


def lab(*arguments: object) -> Any:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def test_the_command_and_its_figure(tmp_path: Path) -> None:
    table: dict[str, Any] = {}
    for arm, n in (("n = 1", 1), ("n = 2", 2)):
        experiment = experiment_from({**STAR, "objective": {"name": "parallel", "n": n}}, "star")
        assert execute(experiment, tmp_path) is not None
        ran = lab("analyze", "landmarks", experiment.identity, "--store", tmp_path, "--examples", 20, "--json")
        assert ran.exit_code == 0, ran.exception
        told = json.loads(ran.stdout.splitlines()[-1])
        assert told["examples"] == 20
        assert [row["step"] for row in told["models"]] == [0, 6, 12]
        for kind in ("models", "attention", "gradients", "cuts"):
            table.setdefault(kind, []).extend(told[kind])
        for row in told["models"]:  # as of a sweep
            row["arm"] = arm
        attention = np.array([[row[name] for name in row if " to " in name] for row in told["attention"]])
        assert ((attention >= 0) & (attention <= 1)).all()
        assert len(told["attention"]) == 3 * 4 * 2
        assert {row["predicts"] for row in told["gradients"]} == {*range(1, n + 1)}
        plain = lab("analyze", "landmarks", experiment.identity, "--store", tmp_path, "--examples", 20)
        assert plain.exit_code == 0, plain.exception
        assert "gradient" in plain.output
    use_style()
    figure = runpy.run_path(str(home() / "figures" / "star_landmarks.py"))["draw"]({**table, "examples": 20})
    figure.canvas.draw()
    assert len(figure.axes) == 10
    for axes, n in zip(figure.axes[:2], (1, 2), strict=True):
        expected = [row["accuracy"] for row in table["models"] if row["n"] == n]
        assert [*axes.lines[0].get_ydata()] == expected
    plt.close("all")


def test_a_task_without_landmarks_is_refused(tmp_path: Path) -> None:
    experiment = tiny("train.steps=6")
    execute(experiment, tmp_path)
    ran = lab("analyze", "landmarks", experiment.identity, "--store", tmp_path)
    assert isinstance(ran.exception, BadInput)
    assert f"'{TINY['task']['name']}' is not allowed" in str(ran.exception)
