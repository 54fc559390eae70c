"""A way of predicting is added as CONTRIBUTING.md says, in a copy of the lab: a file, a line, and the rest follows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lab.home import home
from tests.conftest import TINY

AGREEMENT = """
import torch
from lab.models.sizes import Model
from lab.objectives import Residual, build_model
from lab.objectives import backward
from tests.objectives.test_objectives import random_batch, training_loss

backward.CHUNK_BYTES = 4 * 7 * 5
model = build_model(Model(layers=3, width=8, heads=2), Residual(n=3), 7, seed=0).double()
found = []
for order in ("joint", "sequential", "fused"):
    model.zero_grad()
    backward.losses(model.objective, model.decoder, random_batch(seed=0, n=3), [1.0, 0.5, 2.0], order).total.backward()
    found.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
assert found[0].abs().max() > 1e-3
for each in found[1:]:
    torch.testing.assert_close(each, found[0], rtol=0, atol=1e-10)

dial = []
for share in (0.0, 0.5, 1.0):
    model = build_model(Model(layers=3, width=8, heads=2), Residual(n=3, trunk_gradient=share), 7, seed=0).double()
    training_loss(model, random_batch(seed=0, n=3)).backward()
    dial.append(torch.cat([each.grad.flatten() for each in model.decoder.trunk.parameters()]))
torch.testing.assert_close(dial[1], (dial[0] + dial[2]) / 2, rtol=0, atol=1e-10)
assert (dial[0] - dial[2]).abs().max() > 1e-3
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab with the example in it."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("lab", "tests", "datasets", "sweeps", "figures"):
        shutil.copytree(home() / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    section = (home() / "CONTRIBUTING.md").read_text().split("## A new way of predicting, worked out")[1]
    code, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    [path] = re.findall(r"a file `([^`]+)`", section)
    (folder / path).write_text(code)
    registry = folder / "lab" / "objectives" / "__init__.py"
    assert line.count("\n") == 1
    registry.write_text(registry.read_text().replace("\n# isort: on", line + "\n# isort: on", 1))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def run(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_trains(copy: Path) -> None:
    out = run(copy, "-m", "lab", "train", "tiny.yaml", "objective=residual", "objective.n=3", "--json")
    result = json.loads(out.splitlines()[-1])
    objective = result["experiment"]["objective"]
    assert {key: objective[key] for key in ("name", "n", "reduction", "weights")} == {
        "name": "residual", "n": 3, "reduction": "sum", "weights": None
    }  # fmt: skip
    assert len(list((copy / "runs").iterdir())) == 1


def test_it_is_counted_and_explained(copy: Path) -> None:
    rows = json.loads(run(copy, "-m", "lab", "models", "--objective", "residual", "--json").splitlines()[-1])
    one = next(row for row in rows if row["objective"] == "residual" and row["size"] == "1M" and row["n"] == 4)
    assert one["more_than_next_token"] == 3 * (128 * 128 + 128)
    assert "objective=residual" in run(copy, "-m", "lab", "train", "--help")


def test_its_gradients_are_the_same_in_every_order(copy: Path) -> None:
    run(copy, "-c", AGREEMENT)
