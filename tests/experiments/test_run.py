"""One run: its files, its end, and what survives an interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lab.errors import BadInput, Failure
from lab.experiments.experiment import dump_yaml, load_experiment
from lab.experiments.run import clip_share, execute
from lab.experiments.store import Busy, RunDirectory, read_json_lines
from lab.learning.progress import Progress
from lab.models import kernels
from lab.objectives import build_model
from tests.conftest import held, of, result_of, same_end, tiny, without_times


def test_what_a_run_leaves(tmp_path: Path) -> None:
    experiment = tiny()
    heard: list[Progress] = []
    result = execute(experiment, tmp_path, listen=heard.append)
    directory = RunDirectory(tmp_path, experiment)
    assert result is not None
    assert json.loads(directory.result.read_text()) == result == directory.read_result()
    assert load_experiment(directory.config) == experiment
    assert result["identity"] == experiment.identity
    assert not directory.checkpoint.exists()
    assert {"hardware", "versions", "commit", "finished", "flops"} <= result.keys()
    assert [progress.step for progress in heard] == list(range(5, 41, 5))

    rows = read_json_lines(directory.metrics)
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == list(range(5, 41, 5))
    assert [row["step"] for row in result["curve"]] == [20, 40]
    assert result["curve"] == [row for row in rows if "validation/exact_match" in row]
    assert {"validation/loss_1", "validation/loss_2"} < result["curve"][0].keys()
    assert not [name for name in result["curve"][0] if name.startswith("test/")]
    assert result["tokens"] == training[-1]["tokens"]
    assert result["tokens"] == pytest.approx(40 * 256, rel=0.05)
    for row in training:
        assert row["loss"] == pytest.approx(row["loss_1"] + row["loss_2"], rel=0.01)  # by step against by target
        assert row["targets_1"] > row["targets_2"] > 0
        assert 0 <= row["clip_share"] <= 1
        assert row["gradient_norm"] > 0
    assert training[-1]["loss_1"] < training[0]["loss_1"]
    assert result["clip_share"] == pytest.approx(np.mean([row["clip_share"] for row in training]))

    model = build_model(experiment.model, experiment.objective, len(experiment.task.build().vocabulary), seed=9)
    model.load_state_dict(load_file(directory.weights / "final.safetensors"))
    rows = [row for row in result["scores"] if row["operator"] == row["seen"] == "all"]
    assert {(row["checkpoint"], row["split"], row["operations"]) for row in rows} == {
        (checkpoint, split, m)
        for checkpoint in ("final", "best")
        for split, most in (("validation", 2), ("test", 3))
        for m in range(1, most + 1)
    }
    assert all(row["count"] == (30 if row["split"] == "test" else 20) for row in rows)


def test_examples_are_joined_where_the_kernels_compute_all_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout follows the stated rule, is recorded, and changes a short run by rounding alone."""

    def run(name: str, *overrides: str) -> Any:
        return execute(tiny("train.steps=10", "evaluation.every=10", *overrides), tmp_path / name)

    joined = run("joined")
    assert joined["layout"] == ("joined" if kernels.library() else "packed")
    packed = [run("accumulated", "execution.passes=2")]
    for name, patched in (("served", lambda _: False), ("long", None)):
        with monkeypatch.context() as patch:
            if patched:
                patch.setattr(kernels, "serve", patched)
            else:
                patch.setattr(kernels, "LONGEST", 5)
            packed.append(run(name))
    for each in packed:
        assert each["layout"] == "packed"
        assert each["tokens"] == joined["tokens"]
        losses = [result["curve"][-1]["validation/loss_1"] for result in (each, joined)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_share_of_clipped_steps_counts_each_step_once(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, tiny())
    directory.metrics.parent.mkdir(parents=True)
    assert clip_share(directory) is None
    rows = [{"step": 10, "clip_share": 1.0}, {"step": 10, "validation/loss_1": 2.0}, {"step": 40, "clip_share": 0.2}]
    directory.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert clip_share(directory) == pytest.approx((10 * 1.0 + 30 * 0.2) / 40)


def test_a_finished_run_is_not_redone(tmp_path: Path) -> None:
    experiment = tiny("train.steps=6")
    result = execute(experiment, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert execute(experiment, tmp_path) == result
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_seeds_move_the_run_and_nothing_else_does(tmp_path: Path) -> None:
    once, again = (execute(tiny("train.steps=6"), tmp_path / name) for name in "ab")
    other = execute(tiny("train.steps=6", "seed=1"), tmp_path)
    assert without_times(of(once)) == without_times(of(again))
    assert of(once)["scores"] != of(other)["scores"]


def test_the_epoch_oracle_looks_at_the_whole_test_set_and_changes_nothing_else(tmp_path: Path) -> None:
    changes = ("evaluation.every=5", "train.steps=60", "train.lr=2e-2")
    plain, oracle = (execute(tiny(*changes, *more), tmp_path) for more in ((), ("evaluation.epoch_oracle=true",)))
    assert plain is not None
    assert oracle is not None
    curve = [{name: row[name] for name in row if not name.startswith("test/")} for row in oracle["curve"]]
    assert curve == plain["curve"]
    assert [row for row in oracle["scores"] if row["checkpoint"] != "epoch_oracle"] == plain["scores"]

    # What it saw while training is what scoring its weights at the end says, and nothing it saw was better.
    task = tiny().task.build()
    tested = {row["step"]: row["test/exact_match"] for row in oracle["curve"]}
    assert list(tested) == list(range(5, 61, 5))
    assert len(set(tested.values())) > 2
    for name in ("final", "best", "epoch_oracle"):
        rows = [row for row in oracle["scores"] if row["checkpoint"] == name and row["split"] == "test"]
        assert task.summary(rows)["exact_match"] == tested[rows[0]["step"]]
    assert tested[rows[0]["step"]] == max(tested.values())


@pytest.mark.parametrize("step", [7, 20, 33])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, step: int) -> None:
    """Stopped at any step, between logs or not, it ends as the undisturbed run."""
    experiment = tiny("evaluation.every=8", "evaluation.epoch_oracle=true")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == step

    assert execute(experiment, tmp_path / "stopped", stop=stop) is None
    directory = RunDirectory(tmp_path / "stopped", experiment)
    assert directory.checkpoint.exists()
    assert directory.read_result() is None
    resumed: list[int] = []
    execute(experiment, tmp_path / "stopped", resumed=resumed.append)
    assert resumed == [step]
    execute(experiment, tmp_path / "straight")
    same_end(directory, RunDirectory(tmp_path / "straight", experiment))
    assert [row["step"] for row in of(directory.read_result())["curve"]] == [8, 16, 24, 32, 40]


def test_a_run_that_ends_while_it_is_evaluated_needs_no_more_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny()

    def evaluate(*_: Any) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr("lab.experiments.run.evaluate", evaluate)
    with pytest.raises(Failure, match="out of memory"):
        execute(experiment, tmp_path / "ended")
    monkeypatch.undo()
    directory = RunDirectory(tmp_path / "ended", experiment)
    assert "MemoryError: out of memory" in (directory.read_failure() or "")
    resumed: list[int] = []
    execute(experiment, tmp_path / "ended", resumed=resumed.append)
    assert resumed == [40]
    assert directory.read_failure() is None
    execute(experiment, tmp_path / "straight")
    same_end(directory, RunDirectory(tmp_path / "straight", experiment))


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """`kill -9` in the middle, the same command again: the weights and metrics of the undisturbed run, bit for bit."""
    experiment = tiny("train.steps=400", "train.warmup=20", "execution.checkpoint_every=30")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_yaml(experiment))
    directory = RunDirectory(tmp_path / "killed", experiment)
    command = [sys.executable, "-m", "lab", "train", str(recipe), "--store", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while directory.last_step() < 65 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert directory.checkpoint.exists()
    assert directory.read_result() is None, "it was killed too late to show anything"
    directory.weights.mkdir()
    (directory.weights / ".tmpmMkqLv").write_bytes(b"half")  # what safetensors leaves when it is killed as it writes

    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    said = next(line for line in ended.stderr.splitlines() if "goes on from the checkpoint of step" in line)
    assert int(said.split()[-1]) in range(60, 400, 30)
    execute(experiment, tmp_path / "straight")
    same_end(directory, RunDirectory(tmp_path / "straight", experiment))


def test_two_processes_never_work_on_one_run(tmp_path: Path) -> None:
    experiment = tiny()
    directory = RunDirectory(tmp_path, experiment)
    assert not directory.is_held()
    with held(directory):
        assert directory.is_held() == (sys.platform == "linux")
        with pytest.raises(Busy, match="another process"):
            execute(experiment, tmp_path)
    assert not directory.is_held()
    assert execute(experiment, tmp_path), "it is free again at once"


def test_a_run_that_diverges_is_recorded_and_can_be_tried_again(tmp_path: Path) -> None:
    experiment = tiny("train.lr=1e30", "train.clip=1e30")
    with pytest.raises(Failure, match="diverged"):
        execute(experiment, tmp_path)
    directory = RunDirectory(tmp_path, experiment)
    assert "diverged" in (directory.read_failure() or "")
    assert directory.read_result() is None


def test_a_store_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="cannot be written"):
        execute(tiny(), tmp_path / "file")


def test_a_result_that_is_not_the_runs_is_noticed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, tiny())
    directory.path.mkdir()
    unscored = json.dumps({**result_of(tiny().identity), "scores": []})
    for content in ("", "{", "[]", '{"identity": "another"}', unscored):
        directory.result.write_text(content)
        with pytest.raises(Failure, match="is not the result of run"):
            execute(tiny(), tmp_path)


def test_a_disk_that_is_full_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    """Full for the file that outgrows a limit: the first checkpoint, after a finished run."""
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(dump_yaml(tiny("execution.log_every=1")))
    before = execute(tiny(), tmp_path)
    lab = [sys.executable, "-m", "lab", "train", str(recipe), "--store", str(tmp_path), "seed=1"]
    full = subprocess.run(["bash", "-c", 'ulimit -f 16; exec "$@"', "-", *lab], capture_output=True, text=True)
    directory = RunDirectory(tmp_path, tiny("seed=1"))
    assert full.returncode == 1
    assert "checkpoints/last.ckpt: File too large" in full.stderr.splitlines()[-1]
    assert "Traceback" not in full.stderr
    assert directory.read_failure() is None, "the disk's fault is not the run's"
    assert not list(directory.path.rglob("*.new"))
    assert execute(tiny(), tmp_path) == before
    subprocess.run(lab, check=True, capture_output=True)
    execute(tiny("execution.log_every=1", "seed=1"), tmp_path / "straight")
    same_end(directory, RunDirectory(tmp_path / "straight", tiny("seed=1")))


def test_a_store_that_vanishes_is_named(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with pytest.raises(Failure, match=r"metrics\.jsonl: No such file or directory"):
        execute(tiny(), store, listen=lambda _: shutil.rmtree(store, ignore_errors=True))
    assert not store.exists()
    assert execute(tiny(), store)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, tiny())
    with directory.claimed():
        directory.checkpoint.write_bytes(b"half a checkpoint")
    with pytest.raises(Failure, match=r"last\.ckpt cannot be read"):
        execute(tiny(), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"execution\.device"):
        execute(tiny("execution.device=cuda"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_a_gpu(tmp_path: Path) -> None:
    """bf16 on the GPU follows fp32 on the CPU."""
    fast = execute(tiny("execution.device=cuda", "precision=bf16"), tmp_path)
    slow = execute(tiny("execution.device=cpu"), tmp_path)
    assert fast is not None
    assert slow is not None
    losses = [
        read_json_lines(RunDirectory(tmp_path, each).metrics)[-2]["loss"]
        for each in (tiny("execution.device=cuda", "precision=bf16"), tiny())
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert fast["peak_memory_bytes"] > 0
