"""Sweeps: their cells, states, workers, tables, figures."""

import json
import math
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from scipy import stats

from lab import home as homes
from lab.cli.main import cli
from lab.errors import BadInput, Failure
from lab.experiments import store as stores
from lab.experiments import workers
from lab.experiments.store import RunDirectory, keep_results, kept_results
from lab.experiments.sweep import load_sweep, states
from lab.home import home
from lab.learning.progress import Progress
from lab.report.tables import interval, paired_differences, score_tables, summarise, tidy
from tests.conftest import TINY, held, of, result_of, same_end

SWEEP: dict[str, Any] = {
    "question": "Does it run?",
    "endpoint": "Exact match.",
    "baseline": {**TINY, "train": {**TINY["train"], "steps": 12}},
    "axes": {"seed": [0, 1], "objective.n": [1, 2]},
    "scales": {"cpu": {"budget": "seconds"}, "long": {"budget": "more", "baseline": {"train": {"steps": 24}}}},
}


def sweep_file(folder: Path, **changes: Any) -> str:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
    return str(path)


def lab(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_cells_are_the_product_of_the_axes(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path), "cpu")
    points = [(cell.experiment.seed, cell.experiment.objective.n) for cell in sweep.cells]
    assert points == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert len({cell.experiment.identity for cell in sweep.cells}) == 4
    assert {cell.experiment.train.steps for cell in sweep.cells} == {12}
    assert {cell.experiment.train.steps for cell in load_sweep(sweep_file(tmp_path), "long").cells} == {24}


def test_an_objective_can_be_an_axis(tmp_path: Path) -> None:
    axes = {"objective": ["next_token", {"name": "parallel", "n": 3}]}
    sweep = load_sweep(sweep_file(tmp_path, axes=axes), "cpu")
    assert [(cell.experiment.objective.name, cell.experiment.objective.n) for cell in sweep.cells] == [
        ("next_token", 1),
        ("parallel", 3),
    ]


def test_an_axis_with_a_name_of_its_own_moves_several_fields(tmp_path: Path) -> None:
    arms = {
        "one": {"objective": {"name": "parallel", "n": 1}},
        "two, faster": {"objective": {"name": "parallel", "n": 2}, "train": {"lr": 0.25}},
    }
    where = {"as is": {}, "answer": {"task": {"loss": "answer"}}}
    sweep = load_sweep(sweep_file(tmp_path, axes={"seed": [0, 1], "condition": where, "arm": arms}), "cpu")
    assert [cell.axes for cell in sweep.cells[:4]] == [
        {"seed": 0, "condition": place, "arm": arm} for place in where for arm in arms
    ]
    last = sweep.cells[3].experiment
    assert (last.objective.n, last.train.lr, last.train.steps) == (2, 0.25, 12)
    assert getattr(last.task, "loss", None) == "answer"
    assert sweep.cells[0].experiment.train.lr != 0.25
    frame = pd.DataFrame([{**cell.axes, "m": 1, "x": cell.experiment.objective.n} for cell in sweep.cells])
    rows = paired_differences(frame, ["condition", "arm"], "m", "x").to_dict("records")
    assert [
        (row["condition"], row["arm"], row["less"]["condition"], row["less"]["arm"], row["mean"]) for row in rows
    ] == [(place, "two, faster", place, "one", 1.0) for place in where]


SWEEPS = sorted(path for path in (home() / "sweeps").glob("*.yaml") if not path.stem.startswith("study_"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_labs_own_sweeps_are_sound(path: Path) -> None:
    scales = yaml.safe_load(path.read_text())["scales"]
    for scale in scales:
        sweep = load_sweep(str(path), scale)
        assert len({cell.experiment.seed for cell in sweep.cells}) >= 2
        operations = sweep.primary.where.get("operations") if sweep.primary else None
        if operations is not None:  # what the endpoints say: the most operations trained on
            assert {cell.experiment.task.model_dump()["train_operations"][1] for cell in sweep.cells} == {operations}
        if path.stem == "polynomials_n":
            assert {cell.experiment.objective.n for cell in sweep.cells} == {1, 2, 4}
        if path.stem == "finetuning":
            before = {source.experiment.identity: source.experiment.objective.n for source in sweep.sources}
            arms = {(before[cell.experiment.source or ""], cell.experiment.objective.n) for cell in sweep.cells}
            assert arms == {(4, 4), (4, 1), (1, 1), (1, 4)}
            assert len(sweep.cells) == 2 * len(sweep.sources)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A sweep that two workers have carried out: its file and its store."""
    folder = tmp_path_factory.mktemp("sweep")
    path, store = sweep_file(folder), str(folder / "store")
    ran = lab("sweep", "run", path, "--workers", "2", "--store", store, "--json")
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        **{"sweep": path, "scale": "cpu", "runs": 4, "done": 4},
        **{"failed": 0, "stopped": 0, "busy": 0, "waiting": 0},
    }
    return path, store


def test_a_sweep_that_is_done_is_not_redone(finished: tuple[str, str]) -> None:
    path, store = finished
    before = {file: file.stat().st_mtime_ns for file in Path(store).rglob("*")}
    ran = lab("sweep", "run", path, "--workers", "2", "--store", store)
    assert ran.exit_code == 0
    assert "4 done before, 0 to do" in ran.stderr
    assert before == {file: file.stat().st_mtime_ns for file in Path(store).rglob("*")}


def test_one_run_of_a_sweep_can_be_carried_out_alone(finished: tuple[str, str], tmp_path: Path) -> None:
    path, store = finished
    chosen = load_sweep(path, "cpu").cells[2].experiment
    again = lab("sweep", "run", path, "--store", str(tmp_path), "--weights", "--only", chosen.identity, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout.splitlines()[-1])["done"] == json.loads(again.stdout.splitlines()[-1])["runs"] == 1
    same_end(RunDirectory(Path(store), chosen), RunDirectory(tmp_path, chosen))
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == [chosen.label]


def test_status_tells_done_failed_started_and_waiting(finished: tuple[str, str], tmp_path: Path) -> None:
    path, store = finished
    said = json.loads(lab("sweep", "status", path, "--store", store, "--json").stdout)
    assert [row["state"] for row in said["runs"]] == ["done"] * 4

    cells = load_sweep(path, "cpu").cells
    one, other = (RunDirectory(tmp_path, cell.experiment) for cell in cells[:2])
    with pytest.raises(Failure), one.claimed():
        raise ValueError("broke\nin two lines")
    with other.claimed():
        other.metrics.write_text('{"step": 5}\n')
    said = json.loads(lab("sweep", "status", path, "--store", str(tmp_path), "--json").stdout)
    assert [row["state"] for row in said["runs"]] == ["failed", "started", "waiting", "waiting"]
    if sys.platform == "linux":
        with held(RunDirectory(tmp_path, cells[2].experiment)):
            assert "1 running" in lab("sweep", "status", path, "--store", str(tmp_path)).stdout
    assert said["runs"][0]["reason"] == "ValueError: broke in two lines"
    assert said["runs"][1]["step"] == 5
    assert "1 failed" in lab("sweep", "status", path, "--store", str(tmp_path)).stdout


def test_a_failed_run_does_not_stop_the_others_and_is_retried_on_request(tmp_path: Path) -> None:
    path = sweep_file(tmp_path, axes={"train.lr": [1e30, 1e-3]}, baseline={**SWEEP["baseline"], "seed": 3})
    store = str(tmp_path / "store")
    ran = lab("sweep", "run", path, "--store", store, "--json")
    assert isinstance(ran.exception, Failure)
    states_now = [state.name for state in states(load_sweep(path, "cpu"), Path(store))]
    assert states_now == ["failed", "done"]
    assert "0 to do" in lab("sweep", "run", path, "--store", store).stderr
    assert "1 to do" in lab("sweep", "run", path, "--store", store, "--retry").stderr


def test_a_run_whose_processes_die_again_and_again_is_given_up_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "LIVES", 2)
    bad, good = (cell.experiment for cell in load_sweep(sweep_file(tmp_path), "cpu").cells[:2])
    killed: set[int | None] = set()

    def listen(identity: str, progress: Progress) -> None:
        (process,) = multiprocessing.active_children()
        if identity == bad.identity and process.pid not in killed:
            killed.add(process.pid)
            process.kill()

    outcomes = list(workers.carry_out([bad, good], tmp_path, 1, math.inf, listen))
    assert len(killed) == 2
    assert [outcome.state for outcome in outcomes] == ["failed", "done"]
    reason = "2 processes died over it in a row, the last killed by signal 9"  # why is not known, and not said
    assert outcomes[0].reason == RunDirectory(tmp_path, bad).read_failure() == reason
    assert not multiprocessing.active_children()


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(named: str | None, number: int) -> list[str | None]:
        found = []
        for place in range(5):
            with monkeypatch.context() as patch:
                patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
                if named is not None:
                    patch.setenv("CUDA_VISIBLE_DEVICES", named)
                patch.setattr(torch.cuda, "device_count", lambda: number)
                workers.take_gpu(place)
                found.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return found

    assert seen(None, 2) == ["0", "1", "0", "1", "0"]
    assert seen("3,5,GPU-8f", 3) == ["3", "5", "GPU-8f", "3", "5"]
    assert seen(None, 0) == [None] * 5
    assert seen("", 0) == [""] * 5


def test_axes_whose_values_are_lists_or_mappings_stay_apart(tmp_path: Path) -> None:
    objectives = [{"name": "parallel", "n": 1}, {"name": "parallel", "n": 2}]
    axes = {"objective": objectives, "task.train_operations": [[1, 1], [1, 2]]}
    sweep = load_sweep(sweep_file(tmp_path, axes=axes), "cpu")
    score = {"operations": 1, "operator": "all", "seen": "all", "checkpoint": "final", "split": "test"}
    rows = [{**score, "count": 5, "exact_match": 0.5, "constant_answer": 0.1}]
    frame = tidy(
        [(cell, result_of(cell.experiment.identity, non_embedding_parameters=9, scores=rows)) for cell in sweep.cells]
    )
    (table,) = score_tables(frame, list(axes), sweep.cells[0].experiment.task.build())
    assert len(table["rows"]) == 4
    assert [row["seeds"] for row in table["rows"]] == [1] * 4
    assert len(table["levels"]) == 2, "a level for each task"


def test_a_time_limit_stops_at_a_checkpoint(tmp_path: Path) -> None:
    path, store = sweep_file(tmp_path), str(tmp_path / "store")
    ran = lab("sweep", "run", path, "--store", store, "--time-limit", "0s", "--json")
    assert ran.exit_code == 0
    assert json.loads(ran.stdout)["stopped"] == 4
    assert not list(Path(store).rglob("result.json"))


def test_tables_whose_rows_differ_in_what_they_have_are_kept(tmp_path: Path) -> None:
    curve = [{"step": 1, "unseen": 0.1}, {"step": 2, "late": 0.4}]
    keep_results(tmp_path / "it.jsonl", [result_of("x", curve=curve)])
    (line,) = (tmp_path / "it.jsonl").read_text().splitlines()
    assert json.loads(line)["curve"] == {"step": [1, 2], "unseen": [0.1, None], "late": [None, 0.4]}


def test_results_that_are_kept_count_as_done(
    finished: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = finished
    sweep = load_sweep(path, "cpu")
    results = [state.result for state in states(sweep, Path(store)) if state.result]
    (tmp_path / "results").mkdir()
    keep_results(tmp_path / "results" / "sweep.cpu.jsonl", results[:3])
    assert len(kept_results(tmp_path / "results")) == 3
    monkeypatch.setattr(stores, "home", lambda: tmp_path)
    found = states(sweep, tmp_path / "empty")
    assert [state.name for state in found] == ["done"] * 3 + ["waiting"]
    assert [state.result for state in found[:3]] == results[:3]
    del results[0]["curve"]  # as in what was kept before there were curves
    (tmp_path / "results" / "sweep.cpu.jsonl").unlink()
    keep_results(tmp_path / "results" / "sweep.cpu.jsonl", results[:2])
    assert list(kept_results(tmp_path / "results").values()) == results[:2]
    (tmp_path / "results" / "bad.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match=r"bad\.jsonl, line 1"):
        kept_results(tmp_path / "results")


def test_runs_that_sweeps_share_are_kept_once(
    finished: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = finished
    (tmp_path / "results").mkdir()
    for module in (stores, homes):
        monkeypatch.setattr(module, "home", lambda: tmp_path)
    other = tmp_path / "other.yaml"
    content = yaml.safe_load(Path(path).read_text())
    content["axes"]["seed"] = [*content["axes"]["seed"], 7]  # these two are not done
    other.write_text(yaml.safe_dump(content))
    asked = (path, path, str(other))
    told = [json.loads(lab("sweep", "keep", each, "--store", store, "--json").stdout) for each in asked]
    assert [(each["results"], each["elsewhere"]) for each in told] == [(4, 0), (4, 0), (0, 4)]
    assert [each.name for each in (tmp_path / "results").iterdir()] == ["sweep.cpu.jsonl"]
    assert [state.name for state in states(load_sweep(str(other), "cpu"), tmp_path / "empty")].count("done") == 4


def test_the_tidy_table_holds_every_score(finished: tuple[str, str], tmp_path: Path) -> None:
    path, store = finished
    table = tmp_path / "table.csv"
    shown = lab("sweep", "show", path, "--store", store, "--table", str(table), "--json")
    frame = pd.read_csv(table)
    sweep = load_sweep(path, "cpu")
    results = [state.result for state in states(sweep, Path(store))]
    assert (frame.seen == "all").sum() == sum(
        row["seen"] == "all" for result in results if result for row in result["scores"]
    )
    counts = frame.pivot_table(
        index=["identity", "checkpoint", "split", "operations", "operator"],
        columns="seen",
        values="count",
        fill_value=0,
    )
    assert (counts["all"] == counts["seen"] + counts["unseen"]).all(), "every question is seen or unseen"
    assert set(frame.n) == {1, 2}
    assert set(frame.seed) == {0, 1}

    tables = json.loads(shown.stdout)["tables"]
    whole = next(each for each in tables if each["seen"] == "all")
    for row in whole["rows"]:
        values = [
            score["exact_match"]
            for cell, result in zip(sweep.cells, results, strict=True)
            for score in of(result)["scores"]
            if cell.experiment.objective.n == row["objective.n"]
            and (score["checkpoint"], score["split"]) == ("final", "test")
            and (score["operator"], score["seen"], score["operations"]) == ("all", "all", row["operations"])
        ]
        assert len(values) == row["seeds"] == 2
        assert row["mean"] == pytest.approx(np.mean(values))
    printed = lab("sweep", "show", path, "--store", store)
    assert "constant answer" in printed.stdout


def test_the_epoch_oracle_is_shown_where_there_is_one(finished: tuple[str, str], tmp_path: Path) -> None:
    path, store = finished
    shown = lab("sweep", "show", path, "--store", store, "--checkpoint", "epoch_oracle")
    assert isinstance(shown.exception, BadInput)
    assert str(shown.exception) == (
        f"--checkpoint: epoch_oracle is not allowed: {path} runs without evaluation.epoch_oracle: true"
    )
    baseline = {**SWEEP["baseline"], "evaluation": {**TINY["evaluation"], "epoch_oracle": True}}
    path = sweep_file(tmp_path, baseline=baseline, axes={"seed": [0]})
    assert lab("sweep", "run", path, "--store", str(tmp_path)).exit_code == 0
    shown = lab("sweep", "show", path, "--store", str(tmp_path), "--checkpoint", "epoch_oracle")
    assert "test, epoch oracle weights" in " ".join(shown.stdout.split())


def test_intervals_are_students(finished: tuple[str, str]) -> None:
    values = [0.1, 0.4, 0.35, 0.8]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((np.mean(values), expected.low, expected.high))
    alone = interval([0.5])
    assert alone.mean == 0.5
    assert math.isnan(alone.low)
    frame = pd.DataFrame({"n": [1, 1, 2], "m": [1, 1, 1], "x": [0.0, 1.0, 0.5], "count": [7, 5, 9]})
    rows = summarise(frame, ["n"], "m", "x").to_dict("records")
    assert [(row["n"], row["mean"], row["seeds"], row["examples"]) for row in rows] == [(1, 0.5, 2, 5), (2, 0.5, 1, 9)]


def test_differences_are_paired_by_seed() -> None:
    frame = pd.DataFrame(
        {"n": [1, 1, 1, 2, 2, 2], "seed": [0, 1, 2, 2, 1, 0], "m": [3] * 6, "x": [0.1, 0.5, 0.9, 0.97, 0.6, 0.15]}
    )
    (row,) = paired_differences(frame, ["n"], "m", "x").to_dict("records")
    expected = stats.ttest_rel([0.15, 0.6, 0.97], [0.1, 0.5, 0.9]).confidence_interval(0.95)
    assert (row["n"], row["m"], row["seeds"]) == (2, 3, 3)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.22 / 3, expected.low, expected.high))
    assert row["less"] == {"n": 1}
    assert paired_differences(frame[frame.n == 1], ["n"], "m", "x").empty


def test_objectives_are_compared_where_all_else_is_equal() -> None:
    cells = [(n, width, seed) for seed in (0, 1) for n in (1, 2) for width in (32, 64)]
    frame = pd.DataFrame(cells, columns=["objective.n", "model.width", "seed"]).assign(m=3)
    frame["x"] = frame["objective.n"] * frame["model.width"] / 100 + frame.seed
    rows = paired_differences(frame, ["objective.n", "model.width"], "m", "x").to_dict("records")
    assert [(row["model.width"], row["objective.n"], row["less"], row["mean"]) for row in rows] == [
        (32, 2, {"objective.n": 1, "model.width": 32}, pytest.approx(0.32)),
        (64, 2, {"objective.n": 1, "model.width": 64}, pytest.approx(0.64)),
    ]


def test_a_missing_cell_names_the_command_that_fills_it(finished: tuple[str, str], tmp_path: Path) -> None:
    path, store = finished
    drawn = lab("figures", "polynomials_by_operations", "--sweep", path, "--scale", "long", "--store", store)
    assert isinstance(drawn.exception, Failure)
    assert "4 of 4 results are missing" in str(drawn.exception)
    assert f"lab sweep run {path} --scale long" in str(drawn.exception)
    assert isinstance(lab("sweep", "show", path, "--scale", "long", "--store", store).exception, Failure)


def test_the_figure_is_drawn_and_always_the_same(finished: tuple[str, str], tmp_path: Path) -> None:
    path, store = finished
    for folder in ("a", "b"):
        output = str(tmp_path / folder)
        drawn = lab("figures", "polynomials_by_operations", "--sweep", path, "--store", store, "--output", output)
        assert drawn.exit_code == 0, drawn.output
    names = [f"polynomials_by_operations.sweep.{kind}" for kind in ("png", "svg")]
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == names
    for name in names:
        content = (tmp_path / "a" / name).read_bytes()
        assert len(content) > 10_000
        assert content == (tmp_path / "b" / name).read_bytes()


def test_scores_of_seen_and_unseen_questions_stand_apart(finished: tuple[str, str]) -> None:
    path, store = finished
    sweep = load_sweep(path, "cpu")
    done = [(cell, state.result) for cell, state in zip(sweep.cells, states(sweep, Path(store)), strict=True)]
    frame = tidy([(cell, result) for cell, result in done if result])
    chosen = frame[(frame.split == "test") & (frame.checkpoint == "final")]
    tables = score_tables(chosen, ["objective.n"], sweep.cells[0].experiment.task.build())
    assert {table["seen"] for table in tables} == {"all", "seen", "unseen"}
