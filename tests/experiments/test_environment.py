"""What the environment may not do: change a run, hinder what draws nothing, or be blamed on an experiment."""

import errno
import json
import math
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from torch.utils.data import DataLoader, IterableDataset

from lab.bench.costs import Architecture, net_bytes
from lab.cli.main import cli
from lab.environment import unheard
from lab.errors import BadInput, Failure, MachineFault, ProcessDied, blamed
from lab.experiments import processes, provenance, workers
from lab.experiments.experiment import dump_yaml
from lab.experiments.processes import ended
from lab.experiments.run import chosen_order, execute
from lab.experiments.search import Search, default_url
from lab.experiments.store import RunDirectory
from lab.experiments.study import load_study
from lab.experiments.sweep import load_sweep, states
from lab.home import home
from lab.learning.callbacks import CheckpointFiles
from lab.learning.trainer import LightningEnvironment
from lab.models.decoder import inner_width
from lab.objectives.flops import instantiate
from tests.conftest import TINY, of, tiny, without_times

SWEEP: dict[str, Any] = {
    "question": "Whose fault is it?",
    "endpoint": "None.",
    "baseline": {**TINY, "train": {**TINY["train"], "steps": 12}},
    "axes": {"seed": [0, 1, 2]},
    "scales": {"cpu": {"budget": "seconds"}},
}
STUDY: dict[str, Any] = {
    **{part: SWEEP[part] for part in ("question", "endpoint", "baseline", "scales")},
    "space": {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}},
    "trials": 2,
}


def lab(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


@pytest.fixture
def sweep(tmp_path: Path) -> str:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP, sort_keys=False))
    return str(path)


@pytest.fixture
def study(tmp_path: Path) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return str(path)


def broken(folder: Path, package: str, code: str) -> Path:
    """A folder of packages in which one does something when it is imported."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(code)
    return folder


# One run is one run

ELSEWHERE = {
    **{"RANK": "1", "LOCAL_RANK": "x", "WORLD_SIZE": "4", "MASTER_ADDR": "nowhere", "MASTER_PORT": "port"},
    **{"GROUP_RANK": "1", "NODE_RANK": "y", "OMPI_COMM_WORLD_RANK": "3", "PMI_RANK": "3", "JSM_NAMESPACE_RANK": "2"},
    **{"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_NODEID": "1"},
    **{"TORCHELASTIC_RUN_ID": "none", "PL_GLOBAL_SEED": "x", "PL_SEED_WORKERS": "x", "PL_TRAINER_FAST_DEV_RUN": "1"},
    **{"PL_TRAINER_GRADIENT_CLIP_VAL": "1e-9", "PL_TRAINER_LIMIT_TRAIN_BATCHES": "2", "PL_TRAINER_PROFILER": "simple"},
    **{"PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "20"},
    **{"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MPLCONFIGDIR": "/proc/nothing"},
}
"""As of a process of many, in a notebook, in another language."""


def left_by(store: Path) -> list[str]:
    """The files in a store; TensorBoard's name holds host and time."""
    files = (path.relative_to(store) for path in store.rglob("*") if path.is_file())
    return sorted(str(each.parent / "events") if "tfevents" in each.name else str(each) for each in files)


def test_variables_change_nothing_of_a_run(tmp_path: Path) -> None:
    experiment = tiny("execution.tensorboard=true")
    with unheard("|".join(ELSEWHERE)):
        result = execute(experiment, tmp_path / "plain")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(dump_yaml(experiment))
    stub = broken(tmp_path / "stub", "matplotlib", "raise ValueError('drawn by what draws nothing')")
    environment = {**os.environ, **ELSEWHERE, "PYTHONPATH": f"{stub}{os.pathsep}{home()}"}
    del environment["HOME"]
    command = [sys.executable, "-m", "lab", "train", str(recipe), "--store", str(tmp_path / "other"), "--json"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert result is not None
    assert without_times(result).items() <= said.items()
    assert left_by(tmp_path / "other") == left_by(tmp_path / "plain")
    assert any(each.endswith("events") for each in left_by(tmp_path / "plain"))
    metrics = [json.loads(line) for line in RunDirectory(tmp_path / "other", experiment).metrics.open()]
    assert [row["step"] for row in metrics if "loss" in row][-1] == 40


def test_a_rank_that_lightning_has_from_elsewhere_is_no_run_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    LightningEnvironment().set_global_rank(3)
    try:
        execute(tiny("train.steps=6", "execution.tensorboard=true"), tmp_path)
        assert any(each.endswith("events") for each in left_by(tmp_path))
        assert os.environ["LOCAL_RANK"] == "3", "it is there again, for whoever set it"
    finally:
        LightningEnvironment().set_global_rank(0)


def test_settings_of_lightnings_own_trainer_are_not_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = execute(tiny("train.steps=6"), tmp_path / "plain")
    monkeypatch.setenv("PL_TRAINER_GRADIENT_CLIP_VAL", "1e-9")
    monkeypatch.setenv("PL_TRAINER_LIMIT_TRAIN_BATCHES", "2")
    other = execute(tiny("train.steps=6"), tmp_path / "other")
    assert without_times(of(other)) == without_times(of(plain))


def test_what_moves_last_bits_is_recorded_or_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = execute(tiny("train.steps=6"), tmp_path / "plain")
    assert plain is not None
    assert "variables" not in plain["hardware"]
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    torch.set_float32_matmul_precision("high")  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE does
    result = execute(tiny("train.steps=6"), tmp_path / "other")
    assert torch.get_float32_matmul_precision() == "highest"
    assert result is not None
    assert result["hardware"]["variables"] == {"NVIDIA_TF32_OVERRIDE": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert provenance.threads() == 3


DRAWS_NOTHING = """
import sys
from click.testing import CliRunner
from lab.bench.costs import Architecture, net_bytes
from lab.cli.main import cli
for line in sys.stdin:
    ran = CliRunner().invoke(cli, line.split())
    assert ran.exit_code == 0, (line, ran.exception)
    found = [name for name in ("matplotlib", "seaborn") if name in sys.modules]
    assert not found, (line, found)
"""


def test_what_draws_nothing_does_not_import_what_draws(tmp_path: Path) -> None:
    lines = (
        "models --objective parallel",
        "data show datasets/polynomials.yaml",
        "sweep status sweeps/pilot_answer.yaml",
        "sweep show sweeps/pilot_answer.yaml",
        "study show sweeps/study_lr.yaml",
        f"report sweeps/pilot_answer.yaml --page {tmp_path}/page.md",
        "cost training 1M --context 256 --tokens 256",
        f"train {tmp_path}/tiny.yaml train.steps=6 --store {tmp_path}/store",
    )
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    command = [sys.executable, "-c", DRAWS_NOTHING]
    ran = subprocess.run(
        command, input="\n".join(lines), capture_output=True, text=True, env={**os.environ, **ELSEWHERE}
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_what_draws_has_a_backend_and_a_style_of_its_own(tmp_path: Path) -> None:
    draw = ("figures", "memory_by_order", "--output")
    drawn = lab(*draw, tmp_path / "plain")
    assert drawn.exit_code == 0, drawn.exception
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nlines.linewidth: 9\nsavefig.transparent: True\n")
    command = [sys.executable, "-m", "lab", *draw, str(tmp_path / "other")]
    environment = {**os.environ, **ELSEWHERE, "PYTHONPATH": str(home())}
    del environment["HOME"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    for kind in ("png", "svg"):
        one, other = ((tmp_path / each / f"memory_by_order.{kind}").read_bytes() for each in ("plain", "other"))
        assert one == other


# Whose fault it is


class Dies(IterableDataset[int]):
    def __init__(self, how: Callable[[], object]) -> None:
        self.how = how

    def __iter__(self) -> Any:
        self.how()
        yield 0


def in_a_data_worker(how: Callable[[], object]) -> Callable[[], object]:
    return lambda: list(DataLoader(Dies(how), num_workers=1))


def full() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def diverges() -> None:
    raise Failure("training diverged")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize(
    ("happens", "kind", "said"),
    [
        (full, MachineFault, "No space left on device"),
        (lambda: CheckpointFiles().save_checkpoint({"a": torch.zeros(100_000)}, "/dev/full"), MachineFault, "No space"),
        (in_a_data_worker(full), MachineFault, "OSError: [Errno 28] No space left on device"),
        (in_a_data_worker(lambda: os.kill(os.getpid(), signal.SIGKILL)), ProcessDied, "DataLoader worker"),
        (lambda: sqlite3.connect("/proc/nothing/x.db").execute("select 1"), MachineFault, "unable to open database"),
        (lambda: __import__("no_such_library"), MachineFault, "No module named 'no_such_library'"),
        (diverges, Failure, "training diverged"),
        (in_a_data_worker(diverges), Failure, "training diverged"),
        (lambda: torch.zeros(10**14), Failure, "can't allocate memory"),
    ],
)
def test_faults_of_the_machine_are_known(happens: Callable[[], object], kind: type[Failure], said: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        happens()
    found, reason = blamed(raised.value)
    assert found is kind
    assert said in reason
    assert "\n" not in reason
    assert "Traceback" not in reason


def nothing_is_blamed(sweep: str, store: Path) -> None:
    assert [state.name for state in states(load_sweep(sweep, "cpu"), store)] == ["waiting"] * 3
    assert not list(store.rglob("failure.json"))


@pytest.mark.parametrize(
    ("package", "code", "said"),
    [
        ("lightning", "raise ValueError('not\\na backend')", "Lightning cannot be imported: ValueError: not a backend"),
        ("safetensors", "raise ImportError('libcudart.so.12: no such file')", "ImportError: libcudart.so.12: no such"),
        ("torch", "raise OSError('libtorch.so: cannot be read')", "OSError: libtorch.so: cannot be read"),
        ("lightning", "import os; os._exit(3)", "it is gone with status 3"),
        ("lightning", "import os; os.kill(os.getpid(), 9)", "2 in a row died, the last killed by signal 9"),
    ],
)
def test_a_worker_that_cannot_begin_stops_the_sweep_and_the_study(
    sweep: str, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, code: str, said: str
) -> None:
    monkeypatch.setattr(workers, "LIVES", 2)
    monkeypatch.syspath_prepend(broken(tmp_path / "stub", package, code))  # what workers are told to import from
    store = tmp_path / "store"
    ran = lab("sweep", "run", sweep, "--workers", "2", "--store", store, "--json")
    assert type(ran.exception) is MachineFault
    assert f"no worker process can begin: {said}" in str(ran.exception)
    assert "\n" not in str(ran.exception)
    assert json.loads(ran.stdout) == {
        **{"sweep": sweep, "scale": "cpu", "runs": 3, "done": 0},
        **{"failed": 0, "stopped": 0, "busy": 0, "waiting": 0},
    }
    nothing_is_blamed(sweep, store)
    ran = lab("study", "run", study, "--store", store)
    assert isinstance(ran.exception, Failure)
    assert said.replace("2 in a row died, the last", "a worker process was") in str(ran.exception)
    loaded = load_study(study, "cpu")
    assert Search(loaded, default_url(loaded, store), begin=False).counts()["waiting"] == 2


def test_a_full_disk_stops_a_sweep_and_a_study_and_is_blamed_on_none(sweep: str, study: str, tmp_path: Path) -> None:
    """Full for a file that outgrows a limit, which a study's database does not."""
    store = tmp_path / "store"
    limited = ["bash", "-c", 'ulimit -f "$0"; exec "$@"']
    run = [sys.executable, "-m", "lab", "sweep", "run", sweep, "--store", str(store)]
    ran = subprocess.run([*limited, "16", *run], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "File too large" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert "failed" not in ran.stderr
    found = states(load_sweep(sweep, "cpu"), store)
    assert "failed" not in [state.name for state in found]
    assert not list(store.rglob("failure.json"))
    again = lab("sweep", "run", sweep, "--store", store)
    assert again.exit_code == 0, again.output
    assert "0 done before, 3 to do" in again.stderr

    loaded = load_study(study, "cpu")
    url = default_url(loaded, tmp_path / "elsewhere")
    Search(loaded, url, begin=True)
    blocks = Path(url.removeprefix("sqlite:///")).stat().st_size // 1024 + 200
    wide = {**STUDY, "baseline": {**SWEEP["baseline"], "model": {"layers": 4, "width": 128, "heads": 2}}}
    Path(study).write_text(yaml.safe_dump(wide))
    run[3:] = ["study", "run", study, "--store", str(tmp_path / "full")]
    ran = subprocess.run([*limited, str(blocks), *run], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "File too large" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    loaded = load_study(study, "cpu")
    counts = Search(loaded, default_url(loaded, tmp_path / "full"), begin=False).counts()
    assert (counts["failed"], counts["waiting"]) == (0, 2)


def test_a_store_that_cannot_be_written_stops_the_sweep(sweep: str) -> None:
    ran = lab("sweep", "run", sweep, "--store", "/proc/nothing")
    assert isinstance(ran.exception, MachineFault)
    assert "/proc/nothing" in str(ran.exception)
    assert "cannot be written" in str(ran.exception)


def test_processes_that_cannot_be_had_stop_the_sweep(
    sweep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(context, "Pipe", none)
    ran = lab("sweep", "run", sweep, "--store", tmp_path / "store")
    assert isinstance(ran.exception, MachineFault)
    assert str(ran.exception) == "no worker process can be started: Too many open files"
    nothing_is_blamed(sweep, tmp_path / "store")


def dies_at_its_first_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that log to TensorBoard are killed when they first do; so it is imported then, and no sooner."""
    monkeypatch.setattr(workers, "LIVES", 2)
    monkeypatch.syspath_prepend(broken(folder, "tensorboard", "import os; os.kill(os.getpid(), 9)"))


def test_where_every_process_dies_over_its_run_no_run_is_blamed(
    sweep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dies_at_its_first_log(tmp_path / "stub", monkeypatch)
    baseline = {**SWEEP["baseline"], "execution": {**TINY["execution"], "tensorboard": True}}
    Path(sweep).write_text(yaml.safe_dump({**SWEEP, "baseline": baseline}))
    ran = lab("sweep", "run", sweep, "--store", tmp_path / "store")
    assert isinstance(ran.exception, MachineFault)
    assert "no run takes a step here" in str(ran.exception)
    assert "2 processes died over it in a row, the last killed by signal 9" in str(ran.exception)
    found = states(load_sweep(sweep, "cpu"), tmp_path / "store")
    assert "failed" not in [state.name for state in found]
    assert not list(tmp_path.rglob("failure.json"))


def test_where_processes_die_over_one_run_alone_it_is_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies_at_its_first_log(tmp_path / "stub", monkeypatch)
    bad, good = tiny("execution.tensorboard=true"), tiny("seed=1")
    outcomes = list(workers.carry_out([bad, good], tmp_path / "store", 1, math.inf, lambda *_: None))
    assert [(each.experiment, each.state) for each in outcomes] == [(bad, "failed"), (good, "done")]
    assert outcomes[0].reason == RunDirectory(tmp_path / "store", bad).read_failure()


def test_want_of_memory_is_said_where_the_kernel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "killed_for_memory", lambda: 5)
    assert ended(-9, 5) == "killed by signal 9"
    assert ended(-9, 3) == "killed by signal 9, after the kernel had begun to kill for want of memory (2 so far)"
    assert ended(-11, 3) == "killed by signal 11"
    assert ended(-9, None) == "killed by signal 9"
    monkeypatch.setattr(processes, "killed_for_memory", lambda: None)
    assert ended(-9, 3) == "killed by signal 9"


# Machines with and without a GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_what_is_meant_for_a_gpu_asks_before_it_runs_on_a_cpu(sweep: str, study: str, tmp_path: Path) -> None:
    for path, kind, content in ((sweep, "sweep", SWEEP), (study, "study", STUDY)):
        store = ("--store", tmp_path / kind)
        baseline = {**content["baseline"], "precision": "bf16"}
        Path(path).write_text(yaml.safe_dump({**content, "baseline": baseline}))
        ran = lab(kind, "run", path, *store)
        assert isinstance(ran.exception, BadInput)
        assert str(ran.exception).startswith(f"{path}, scale cpu: meant for a GPU")
        assert "--cpu" in str(ran.exception)
        assert not (tmp_path / kind).exists()
        limit = () if kind == "sweep" else ("--time-limit", "0s")
        ran = lab(kind, "run", path, "--cpu", *store, *limit, "--json")
        assert ran.exit_code == 0, ran.exception
        Path(path).write_text(yaml.safe_dump(content))
    (config, *_) = (tmp_path / "sweep").glob("*/config.yaml")
    assert yaml.safe_load(config.read_text())["execution"]["device"] == "cpu"
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    ran = lab("train", recipe, "precision=bf16", "train.steps=6", *store)
    assert ran.exit_code == 0
    assert "bf16 on the CPU" in ran.stderr
    assert "bf16 on the CPU" not in lab("train", recipe, "precision=bf16", "train.steps=6", *store).stderr


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
