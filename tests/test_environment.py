"""The machine's and the environment's part in a run: whatever they say, a run is the run that was written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from lab.analysis.costs import Architecture, net_bytes
from lab.cli.main import cli
from lab.errors import BadInput
from lab.experiments.run import chosen_order
from lab.experiments.store import RunDirectory
from lab.experiments.sweep import load_sweep
from lab.home import home
from lab.models.decoder import inner_width
from lab.objectives.cost import instantiate
from tests.conftest import TINY, same_end, tiny

OTHERS = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "MPLCONFIGDIR": "/dev/null/none",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "1",
    "NODE_RANK": "1",
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_NAME": "train",
    "OMPI_COMM_WORLD_RANK": "1",
    "PL_TRAINER_MAX_STEPS": "1",
}
"""Variables that a notebook, torchrun, SLURM and MPI set."""
PLAIN = {name: value for name, value in os.environ.items() if name not in OTHERS}
SHORT = ("train.steps=10", "evaluation.every=10", "execution.tensorboard=true")


def lab(*arguments: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    variables = {**PLAIN, "PYTHONPATH": str(home()), **environment}
    command = [sys.executable, "-m", "lab", *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_one_run_is_one_run_whatever_the_variables_say(tmp_path: Path, tiny_file: str) -> None:
    """Rank 1 of 4 by every launcher, under a notebook's backend: the same files, logs and numbers as without."""
    directories = []
    for name, variables in (("plain", {}), ("others", OTHERS)):
        ran = lab("train", tiny_file, *SHORT, "--store", str(tmp_path / name), folder=tmp_path, **variables)
        assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
        directories.append(RunDirectory(tmp_path / name, tiny(*SHORT)))
    same_end(*directories)
    logs = [[each.parent.name for each in directory.path.rglob("events.out.*")] for directory in directories]
    assert logs == [["tensorboard"], ["tensorboard"]]


def test_a_worker_that_cannot_start_stops_the_sweep_and_no_run_is_to_blame(tmp_path: Path) -> None:
    parts = {"question": "?", "endpoint": "?", "baseline": {**TINY, "train": {**TINY["train"], "steps": 10}}}
    sweep = {**parts, "axes": {"seed": [0, 1]}, "scales": {"cpu": {"budget": "?"}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    broken = tmp_path / "broken"
    (broken / "lightning").mkdir(parents=True)
    (broken / "lightning" / "__init__.py").write_text(
        "raise ImportError('libbroken.so: no such file')\n", encoding="utf-8"
    )
    path = os.pathsep.join((str(broken), str(home())))
    ran = lab("sweep", "run", "sweep.yaml", "--workers", "2", folder=tmp_path, PYTHONPATH=path)
    said = [line for line in ran.stderr.splitlines() if "libbroken.so" in line]
    assert (ran.returncode, len(said), "Traceback" in ran.stderr) == (1, 1, False), ran.stderr
    assert "memory" not in ran.stderr
    assert not list(tmp_path.rglob("failure.json"))

    # The next start, on a healthy machine, finds nothing failed and does it all.
    ran = lab("sweep", "run", "sweep.yaml", "--json", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "failed" not in ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["done"] == 2


@pytest.mark.parametrize("arguments", ["sweep run sweeps/induction.yaml", "study run sweeps/study_lr.yaml"])
def test_what_is_meant_for_a_gpu_is_not_run_elsewhere_unasked(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ran = CliRunner().invoke(cli, [*arguments.split(), "--scale", "gpu", "--store", str(tmp_path)])
    assert isinstance(ran.exception, BadInput)
    assert "meant for a GPU" in str(ran.exception)
    assert "--cpu" in str(ran.exception)
    assert not list(tmp_path.rglob("config.yaml"))


CARD = 80e9
"""Bytes of the smallest card that the sweeps are written for: an A100 or H100 of 80 GB; an H200 has 141."""


def large() -> list[tuple[str, str]]:
    """Sweeps and their scales that are meant for a GPU."""
    paths = sorted(path for path in (home() / "sweeps").glob("*.yaml") if not path.name.startswith("study"))
    files = {f"sweeps/{path.name}": yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}
    return [(path, scale) for path, file in files.items() for scale in ("gpu", "paper") if scale in file["scales"]]


@pytest.mark.parametrize(("path", "scale"), large())
def test_every_cell_fits_the_card(path: str, scale: str) -> None:
    """By the estimate of `lab cost`: parameters, moments and gradients in float32, and what a pass keeps."""
    for cell in load_sweep(path, scale).cells:
        experiment = cell.experiment
        vocabulary = len(experiment.task.build().vocabulary)
        model = instantiate(experiment.model, experiment.objective, vocabulary)
        layers, width, heads = experiment.model.shape
        shape = Architecture("", layers, width, heads, inner_width(width), vocabulary)
        tokens = experiment.train.batch_tokens // experiment.execution.passes
        order = chosen_order(experiment, model)
        net = net_bytes(shape, model.objective.n, tokens, experiment.train.context, order, "bf16")
        state = 16 * int(np.sum([each.numel() for each in model.parameters()]))
        assert net + state < CARD, (cell.axes, net / 2**30, state / 2**30)
