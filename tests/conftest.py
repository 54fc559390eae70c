"""What tests share: one torch thread, and the smallest experiment that is still one."""

from typing import Any

import pytest
import torch
import yaml

from lab.experiments.experiment import Experiment, experiment_from, override, parse_override

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
def tiny_file(tmp_path: Any) -> str:
    """A recipe file of the tiny experiment."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


def tiny(*overrides: str) -> Experiment:
    """The tiny experiment with overrides."""
    mapping = TINY
    for text in overrides:
        mapping = override(mapping, *parse_override(text))
    return experiment_from(mapping, "tiny")
