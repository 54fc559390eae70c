"""A step is the same step whether one process reads it at once, in several passes, or several processes do."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.experiments.run import execute
from lab.experiments.store import RunDirectory, read_json_lines
from lab.learning import module as learning
from lab.learning.data import StepData, Steps, parts
from lab.learning.settings import Train
from lab.models.sizes import Model
from lab.objectives import build_model
from lab.objectives.backward import Losses, losses
from lab.objectives.base import Batch
from lab.objectives.causal import Causal
from tests.conftest import same_end, tiny, without_times
from tests.objectives.test_objectives import random_batch
from tests.processes import CASES, PROCESSES, experiment_of, train

TOLERANCE = 3e-6
"""Of weights after five steps, which move them by some thousandths: 4e-7 measured."""


def steps_of(batch: Batch, n: int) -> StepData:
    return StepData(batch, torch.tensor([4, 7]), int((batch.document_ids >= 0).sum()))


# Which part has what


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_every_row_is_in_one_part(rows: int, processes: int, passes: int, n: int, spans: bool) -> None:
    """As processes and passes share them out; a part without rows is padding, and so without targets."""
    batch = random_batch(seed=rows, n=n, rows=rows)
    batch.tokens[:, 0] = torch.arange(rows)  # which row it is
    step, shares, met = steps_of(batch if spans else batch._replace(horizons=None), n), processes * passes, []
    sizes = []
    for rank in range(processes):
        mine = list(parts(step, n, shares, range(rank, shares, processes)))
        assert len(mine) == passes
        assert [part.tokens for part in mine] == [step.tokens] + [0] * (passes - 1)
        assert [part.occurring.tolist() for part in mine] == [[4, 7]] + [[]] * (passes - 1)
        for part in mine:
            assert len(part.batch.tokens) > 0
            if (part.batch.document_ids == -1).all():
                sizes.append(0)
                continue
            sizes.append(len(part.batch.tokens))
            for k, row in enumerate(part.batch.tokens[:, 0].tolist()):
                met.append(row)
                for one, whole in zip(part.batch, step.batch, strict=True):
                    assert (one is None) == (whole is None)
                    assert one is None or whole is None or torch.equal(one[k], whole[row])
    assert sorted(met) == list(range(rows))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shares", [1, 2, 3, 5])
@pytest.mark.parametrize("order", ["joint", "sequential", "fused"])
def test_the_mean_of_the_parts_is_the_step(shares: int, order: Any) -> None:
    model = build_model(Model(layers=4, width=16, heads=2), Causal(n=3), 7, seed=0).double()
    batch, weights = random_batch(seed=5, n=3, rows=3), [1.0, 0.5, 2.0]
    whole = losses(model.objective, model.decoder, batch, weights, order)
    assert len(set(whole.targets.tolist())) == 3
    expected = torch.autograd.grad(whole.total, list(model.parameters()))
    step = steps_of(batch, 3)
    found = [
        losses(model.objective, model.decoder, part.batch, weights, order, part.loss_denominators)
        for part in parts(step, 3, shares, range(shares))
    ]
    assert sum(each.total.item() for each in found) / shares == pytest.approx(whole.total.item(), rel=1e-12)
    assert torch.equal(torch.stack([each.targets for each in found]).sum(dim=0), whole.targets)
    torch.testing.assert_close(torch.stack([each.nats for each in found]).sum(dim=0), whole.nats, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(each.total, list(model.parameters())) for each in found]
    for one, *several in zip(expected, *gradients, strict=True):
        assert (torch.stack(several).mean(dim=0) - one).abs().max() <= 1e-12


def test_a_head_without_targets_in_any_part() -> None:
    batch = random_batch(seed=5, n=2, rows=3)
    step = steps_of(batch._replace(document_ids=torch.arange(14).expand(3, 14)), 2)
    assert all(
        part.loss_denominators is not None and (part.loss_denominators == 0.5).all()
        for part in parts(step, 2, 2, range(2))
    )


# Passes


Alone = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What a case leaves that one process computes in one pass."""
    folder = tmp_path_factory.mktemp("alone")

    @cache
    def found(case: str) -> dict[str, Any]:
        whole = experiment_of(case)
        at_once = whole.execution.model_copy(update={"passes": 1, "data_workers": 0})
        whole = whole.model_copy(update={"execution": at_once})
        return train(whole, folder / f"{case}.jsonl")

    return found


def by_row(found: dict[str, Any]) -> list[dict[str, float]]:
    return [without_times(row) for row in found["rows"]]


def same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in found["weights"].items():
        assert (weight - expected["weights"][name]).abs().max() < TOLERANCE, name
    assert found["tokens"] == expected["tokens"] > 0
    assert torch.equal(found["seen"], expected["seen"])
    rows, others = by_row(found), by_row(expected)
    assert [row["step"] for row in rows] == [3, 5]
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        assert {"loss", "loss_1", "targets_1", "weight_1", "gradient_norm", "clip_share"} < row.keys()
        assert row == pytest.approx(other, rel=1e-5)


EQUAL = [case for case in CASES if case not in ("passes", "workers", "balanced")]
"""Cases of other models, data and orders, which one process can compute in one pass."""


@pytest.mark.parametrize("case", EQUAL)
def test_passes_change_rounding_alone(case: str, alone: Alone, tmp_path: Path) -> None:
    for passes in (2, 3) if case in ("joint", "causal") else (3,):
        found = train(experiment_of(case, f"execution.passes={passes}"), tmp_path / f"{passes}.jsonl")
        same_training(found, alone(case))


def test_training_moves_weights_by_more_than_the_tolerance(alone: Alone) -> None:
    experiment = experiment_of("joint")
    found = alone("joint")["weights"]
    for name, weight in build_model(experiment.model, experiment.objective, 12, 0).named_parameters():
        assert (weight - found[name]).abs().max() > 300 * TOLERANCE


@pytest.mark.parametrize("changes", [(), ("objective={name: shallow, n: 3}",), ("objective={name: reweighted, n: 3}",)])
def test_a_run_in_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: tuple[str, ...]) -> None:
    """Of all objectives, also those whose n is not their number of heads; what is logged counts whole steps."""
    n = build_model(tiny(*changes).model, tiny(*changes).objective, 12, 0).objective.n
    sizes: list[int] = []  # tokens of each forward pass

    def spy(*arguments: Any) -> Losses:
        sizes.append(int((arguments[2].document_ids[:, :-n] >= 0).sum()))
        return losses(*arguments)

    monkeypatch.setattr(learning, "losses", spy)
    rows = []
    for passes in (1, 3):
        experiment = tiny("train.steps=6", "execution.log_every=2", f"execution.passes={passes}", *changes)
        store = tmp_path / str(passes)
        result = execute(experiment, store)
        assert result is not None
        rows.append([*read_json_lines(RunDirectory(store, experiment).metrics), {"tokens": result["tokens"]}])
    whole, shared = sizes[:6], [sum(sizes[k : k + 3]) for k in range(6, len(sizes), 3)]
    assert whole == shared
    assert max(sizes[6:]) <= max(whole) // 3 + 32, "a third of the rows, which have 32 tokens"
    for one, three in zip(*rows, strict=True):
        assert without_times(three) == pytest.approx(without_times(one), rel=1e-4)


def test_data_workers_keep_the_order_of_parts(tmp_path: Path) -> None:
    stores = []
    for workers in (0, 2):
        experiment = tiny("train.steps=15", "execution.passes=3", f"execution.data_workers={workers}")
        assert execute(experiment, tmp_path / str(workers)) is not None
        stores.append(RunDirectory(tmp_path / str(workers), experiment))
    one, other = (list(map(without_times, read_json_lines(each.metrics))) for each in stores)
    assert one == other
    names = {path.name for path in stores[0].weights.iterdir()}
    assert {path.name: path.read_bytes() for path in stores[1].weights.iterdir()} == {
        name: (stores[0].weights / name).read_bytes() for name in names
    }


@pytest.mark.parametrize(("step", "changes"), [(7, ()), (10, ()), (13, ("execution.data_workers=1",))])
def test_a_run_in_passes_goes_on_where_it_was(tmp_path: Path, step: int, changes: tuple[str, ...]) -> None:
    experiment = tiny("train.steps=20", "evaluation.every=8", "execution.passes=2", *changes)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == step

    assert execute(experiment, tmp_path / "stopped", stop=stop) is None
    resumed: list[int] = []
    assert execute(experiment, tmp_path / "stopped", resumed=resumed.append) is not None
    assert resumed == [step]
    result = execute(experiment, tmp_path / "straight")
    same_end(*(RunDirectory(tmp_path / store, experiment) for store in ("stopped", "straight")))
    assert result is not None
    assert [row["step"] for row in result["curve"]] == [8, 16, 20]


def test_a_step_is_read_once_however_many_passes(tmp_path: Path) -> None:
    """The tokens of the run are those of the first 20 steps of the stream."""
    task = tiny().task.build()
    questions = np.empty(0, np.uint64)
    stream = Steps(task, Train(batch_tokens=256, context=32), 2, 0, 0, questions)
    expected = sum(int((step.batch.document_ids >= 0).sum()) for step in islice(stream, 20))
    for passes in (1, 4):
        result = execute(tiny("train.steps=20", f"execution.passes={passes}"), tmp_path / str(passes))
        assert result is not None
        assert result["tokens"] == expected


# Processes


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes has at the end of each case."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.processes", str(folder)]
    root, heard = Path(__file__).parents[2], folder / "heard"
    with heard.open("w") as file:
        main = subprocess.Popen(command, cwd=root, stdout=file, stderr=file, start_new_session=True)
    try:
        assert main.wait(timeout=400) == 0, heard.read_text()[-5000:]
    except subprocess.TimeoutExpired:
        os.killpg(main.pid, signal.SIGKILL)  # its processes, too
        raise
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("case", [case for case in CASES if case != "balanced"])
def test_processes_change_rounding_alone(case: str, together: list[dict[str, Any]], alone: Alone) -> None:
    for found in together:
        same_training(found[case], alone(case))


@pytest.mark.parametrize("case", CASES)
def test_processes_end_with_the_same_bits(case: str, together: list[dict[str, Any]]) -> None:
    one, other = (found[case] for found in together)
    assert all(torch.equal(weight, other["weights"][name]) for name, weight in one["weights"].items())
    assert by_row(one) == by_row(other)


def test_balanced_weights_are_one_for_all_processes(together: list[dict[str, Any]]) -> None:
    one, other = (found["balanced"] for found in together)
    assert one["norms"].tolist() == other["norms"].tolist()  # measured on the last step, too
    assert (one["norms"] > 0).all()
    rows = by_row(one)
    assert [row["weight_1"] + row["weight_2"] for row in rows] == pytest.approx([2.0, 2.0])
    assert rows[0]["weight_1"] != rows[1]["weight_1"]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_reduced_once_a_step(case: str, together: list[dict[str, Any]]) -> None:
    """However many heads there are, in whatever order, in however many passes (the paper: once a head, Table S5)."""
    assert [found[case]["reductions"] for found in together] == [5] * PROCESSES
