"""What tests share: one torch thread, and the smallest experiment that is still one."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lab.experiments.experiment import Experiment, experiment_from, overridden
from lab.experiments.result import RunResult, checked
from lab.experiments.store import RunDirectory, read_json_lines

TINY: dict[str, Any] = {
    "task": {
        "name": "polynomials",
        "prime": 3,
        "degree": 2,
        "train_operations": [1, 2],
        "test_operations": [1, 3],
        "test_examples": 30,
        "validation_examples": 20,
    },
    "model": {"layers": 4, "width": 16, "heads": 2},
    "objective": {"name": "parallel", "n": 2},
    "train": {"steps": 40, "batch_tokens": 256, "context": 32, "warmup": 5},
    "evaluation": {"every": 20, "examples": 20},
    "precision": "fp32",
    "execution": {"threads": 1, "log_every": 5, "checkpoint_every": 10, "tensorboard": False},
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def plain_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the CPU's compiled kernels, whose work torch does not see."""
    monkeypatch.setattr("lab.models.kernels.serve", lambda _: False)


@pytest.fixture
def tiny_file(tmp_path: Any) -> str:
    """A recipe file of the tiny experiment."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


def tiny(*overrides: str) -> Experiment:
    """The tiny experiment with overrides."""
    return experiment_from(overridden(TINY, overrides), "tiny")


TIMES = {"seconds", "tokens_per_second", "evaluation_seconds", "peak_memory_bytes", "hardware", "finished", "commit"}


def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMES}


def same_end(one: RunDirectory, other: RunDirectory) -> None:
    """Both runs ended bit for bit alike, time, memory and host fields aside: metrics, weights, curve, scores."""
    rows, others = (read_json_lines(each.metrics) for each in (one, other))
    assert list(map(without_times, rows)) == list(map(without_times, others))
    names = sorted(path.name for path in one.weights.iterdir())
    assert names == sorted(path.name for path in other.weights.iterdir())
    for name in names:
        weights, theirs = (load_file(each.weights / name) for each in (one, other))
        assert weights.keys() == theirs.keys()
        assert all(torch.equal(weights[key], theirs[key]) for key in weights)
    assert without_times(of(one.read_result())) == without_times(of(other.read_result()))


def of(result: RunResult | None) -> RunResult:
    """The result of a run that is finished."""
    assert result is not None
    return result


def result_of(identity: str, **fields: Any) -> RunResult:
    """A complete made-up result, with `fields` of its own."""
    result: Any = {
        "identity": identity,
        "experiment": {},
        **dict.fromkeys(("steps", "tokens", "parameters", "non_embedding_parameters", "peak_memory_bytes"), 1),
        **dict.fromkeys(("flops", "seconds", "evaluation_seconds", "tokens_per_second"), 1.0),
        "hardware": {"host": "h", "cpu": "c", "cores": 1, "threads": 1, "device": "cpu"},
        "versions": {},
        "commit": None,
        "finished": "2026-01-01T00:00:00+00:00",
        "scores": [{"split": "test", "checkpoint": "final", "count": 5}],
        **fields,
    }
    return checked(result)


@contextmanager
def held(directory: RunDirectory) -> Iterator[None]:
    """Inside, another process holds the run."""
    directory.path.mkdir(parents=True)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(directory.path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        yield
        other.kill()
