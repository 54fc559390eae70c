"""Studies: their files, what is tried, workers that die, what is shown and kept."""

import contextlib
import json
import math
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from optuna.trial import TrialState
from scipy import stats

from lab.cli.main import cli
from lab.errors import BadInput, Failure
from lab.experiments import run as runs
from lab.experiments import search as searches
from lab.experiments import trials as carrying
from lab.experiments.experiment import Experiment, load_experiment
from lab.experiments.result import RunResult
from lab.experiments.run import execute
from lab.experiments.search import Search, default_url
from lab.experiments.store import Busy, RunDirectory
from lab.experiments.study import Study, load_study
from lab.experiments.sweep import STORE
from lab.experiments.trials import validation_score
from lab.home import home
from lab.report import studies
from lab.report.studies import wilson
from tests.conftest import TINY

STUDY: dict[str, Any] = {
    "question": "Does it search?",
    "endpoint": "Exact match on validation.",
    "baseline": {**TINY, "train": {**TINY["train"], "steps": 12}, "evaluation": {"every": 3, "examples": 20}},
    "arms": {"objective.n": [1, 2]},
    "space": {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}},
    "trials": 4,
    "seeds": [7],
    "scales": {"cpu": {"budget": "seconds"}},
}


def study_file(folder: Path, **changes: Any) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return str(path)


def lab(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def worker(study: Study, url: str, store: Path, deadline: float = math.inf) -> "carrying._Worker":
    """A worker in this process."""
    connection, _worker_keeps_alive[connection] = multiprocessing.Pipe()
    return carrying._Worker(connection, Search(study, url, begin=False), store, 1, deadline)


_worker_keeps_alive: dict[Any, Any] = {}


def work(study: Study, store: Path, url: str | None = None) -> list[dict[str, Any]]:
    """Carry a study out in this process; its rows."""
    url = url or default_url(study, store)
    search = Search(study, url, begin=True)
    worker(study, url, store).work()
    return search.rows()


def tried(rows: list[dict[str, Any]]) -> list[Any]:
    return [(row["arm"], row["trial"], row["state"], row["values"], row["score"]) for row in rows]


# Files


def test_arms_are_the_product_of_their_values_and_trials_their_seeds(tmp_path: Path) -> None:
    arms = {"objective.n": [1, 2], "task": {"easy": {"train_operations": [1, 1]}, "hard": {"train_operations": [1, 3]}}}
    study = load_study(study_file(tmp_path, arms=arms, seeds=[7, 8]), "cpu")
    assert [arm.name for arm in study.arms] == [
        f"objective.n={n} task={task}" for n in (1, 2) for task in ("easy", "hard")
    ]
    one, other = study.experiments(study.arms[3], {"train.lr": 0.01})
    assert (one.seed, other.seed, one.train.lr, one.objective.n) == (7, 8, 0.01, 2)
    assert getattr(one.task, "train_operations", None) == (1, 3)


def test_an_arm_with_a_name_moves_several_fields_and_can_be_repeated(tmp_path: Path) -> None:
    arms = {"arm": {"two": {"objective": {"name": "parallel", "n": 2}, "train": {"clip": 2.0}}}}
    study = load_study(study_file(tmp_path, arms=arms, recipe="datasets/polynomials.yaml"), "cpu")
    (arm,) = study.arms
    (experiment,) = study.experiments(arm, {"train.lr": 0.01})
    assert (arm.name, experiment.objective.n, experiment.train.clip) == ("arm=two", 2, 2.0)
    _, train, recipe, *overrides = shlex.split(study.repeat(arm, {"train.lr": 0.01}, STORE))
    assert (train, load_experiment(recipe, overrides).identity) == ("train", experiment.identity)


CONDITIONAL = {
    "objective": {"choices": {"next token": {"name": "next_token"}, "many": {"name": "parallel"}}},
    "objective.n": {"choices": [2, 3], "when": {"objective": "many"}},
    "objective.weights": {
        "choices": {"equal": None, "falling": {"name": "geometric"}},
        "when": {"objective": ["many"]},
    },
    "objective.weights.ratio": {"low": 0.1, "high": 1, "when": {"objective.weights": "falling"}},
    "train.warmup": {"low": 2, "high": 8},
}


def test_fields_are_searched_where_others_call_for_them(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path, arms={}, space=CONDITIONAL, trials=24), "cpu")
    assert [study.whole(field) for field in study.space] == [False, False, False, False, True]
    assert len(study.corners()) == 2 * (1 + 2 * (1 + 2))
    search = Search(study, default_url(study, tmp_path), begin=True)
    seen = []
    (found,) = search.searches
    for _ in range(24):
        search.queue(found)
        with pytest.warns(UserWarning, match="Heartbeat"):
            trial = found.ask()
        point = searches.suggest(study, trial)
        (experiment,) = study.experiments(study.arms[0], point)
        found.tell(trial, experiment.objective.n)
        assert ("objective.n" in point) == (point["objective"] == "many") == (experiment.objective.n > 1)
        assert ("objective.weights.ratio" in point) == (point.get("objective.weights") == "falling")
        weights = getattr(experiment.objective, "weights", None)
        assert (weights.ratio if weights else None) == point.get("objective.weights.ratio")
        assert isinstance(point["train.warmup"], int)
        seen.append(tuple(point))
    assert len(set(seen)) == 3
    assert found.best_value == 3


@pytest.mark.parametrize("path", sorted((home() / "sweeps").glob("study_*.yaml")), ids=lambda path: path.stem)
def test_the_labs_own_studies_are_sound(path: Path) -> None:
    for scale in yaml.safe_load(path.read_text())["scales"]:
        study = load_study(str(path), scale)
        evidence = {*range(20)}
        assert not evidence & set(study.seeds)
        for arm in study.arms:
            for corner in (study.corners()[0], study.corners()[-1]):
                said = shlex.split(study.repeat(arm, corner, STORE))
                assert said[:2] == ["lab", "train"]
                again = load_experiment(said[2], said[3:])
                assert again.identity == study.experiments(arm, corner)[0].identity


# Databases


def test_what_has_not_begun_is_said_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path, store = study_file(tmp_path), tmp_path / "store"
    shown = lab("study", "show", path, "--store", str(store))
    assert isinstance(shown.exception, Failure)
    assert f"begin with: lab study run {path} --scale cpu --store {store}" in str(shown.exception)
    assert not store.exists()


def test_trials_of_a_study_that_changed_are_not_mixed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    Search(load_study(study_file(tmp_path), "cpu"), url, begin=True)
    Search(load_study(study_file(tmp_path, trials=9, question="Else?"), "cpu"), url, begin=True)
    wide = {"train.lr": {"low": 1e-5, "high": 1e-1, "log": True}}
    for changes, part in (
        ({"baseline": {**STUDY["baseline"], "precision": "bf16"}}, "baseline: "),
        ({"seeds": [8]}, "baseline and seeds: "),
        ({"space": {**STUDY["space"], "train.clip": {"choices": [1.0]}}}, "space: "),
        ({"space": wide}, "baseline and space: "),
    ):
        with pytest.raises(BadInput, match=f"{part}not what it was when the trials in"):
            Search(load_study(study_file(tmp_path, **changes), "cpu"), url, begin=True)


# Made-up runs: what is tried, counted, pruned


class MadeUp:
    """Stands for `execute`: its score is best at a learning rate of 0.01, and so is every point of its curve."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.began: list[str] = []
        self.ended: list[str] = []
        self.lock = threading.Lock()

    def __call__(
        self,
        experiment: Experiment,
        store: Path,
        threads: int,
        listen: Callable[..., None],
        stop: Callable[[], bool],
        *,
        judge: Callable[[list[Any]], bool],
    ) -> dict[str, Any] | None:
        with self.lock:
            self.began.append(experiment.identity)
        time.sleep(self.seconds)
        score = math.exp(-abs(math.log(experiment.train.lr / 0.01))) / (1 + 0.1 * experiment.seed % 7)
        curve: list[Any] = []
        for step in range(3, experiment.train.steps + 1, 3):
            curve.append({"step": step, "validation/exact_match": score * step / experiment.train.steps})
            if judge(curve) or stop():
                return None
        with self.lock:
            self.ended.append(experiment.identity)
        row = {"operator": "all", "seen": "all", "split": "validation", "checkpoint": "final", "count": 20}
        about = dict.fromkeys(("hardware", "versions", "commit", "finished"))
        measures = ("exact_match", "exact_match_without_end", "coefficient_accuracy", "constant_answer")
        return {"scores": [{**row, "operations": 1, **dict.fromkeys(measures, score)}], **about}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    stand_in = MadeUp()
    monkeypatch.setattr(runs, "execute", stand_in)
    return stand_in


def test_one_worker_tries_the_same_again_and_finds_the_best(tmp_path: Path, made_up: MadeUp) -> None:
    study = load_study(study_file(tmp_path, trials=10), "cpu")
    first = work(study, tmp_path / "a")
    assert tried(work(study, tmp_path / "b")) == tried(first)
    assert [row["trial"] for row in first] == [*range(10), *range(10)]
    values = [[row["values"] for row in first if row["arm"] == arm.labels] for arm in study.arms]
    assert values[0][:5] == values[1][:5], "arms start alike"
    assert len({json.dumps(each) for each in values[0]}) == 10
    for arm in study.arms:
        best = studies.best(first, arm)
        assert best is not None
        assert 0.005 < best["values"]["train.lr"] < 0.02


def test_a_study_that_is_interrupted_tries_what_it_would_have_tried(
    tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(study_file(tmp_path, trials=4), "cpu")
    undisturbed = work(study, tmp_path / "a")
    url = default_url(study, tmp_path / "b")
    search = Search(study, url, begin=True)
    for asked in (3, 9, 14):  # stopped within a run, after so many questions whether to stop
        stopping, left = worker(study, url, tmp_path / "b"), iter(range(asked))
        monkeypatch.setattr(stopping, "stopping", lambda left=left: next(left, None) is None)
        stopping.work()
    counts = search.counts()
    assert 0 < counts["waiting"] < 8
    assert counts["running"] == counts["failed"] == 0
    worker(study, url, tmp_path / "b").work()
    assert tried(search.rows()) == tried(undisturbed)


def test_trials_that_fall_behind_are_pruned(tmp_path: Path, made_up: MadeUp) -> None:
    study = load_study(study_file(tmp_path, trials=12, arms={}), "cpu")
    rows = work(study, tmp_path)
    done = {row["trial"]: row["score"] for row in rows if row["state"] == "complete"}
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert len(done) + len(pruned) == 12
    assert pruned
    for row in pruned:
        assert row["trial"] >= 6, "not in the random start"
        assert (row["score"], row["reason"]) == (None, None)
        assert row["step"] == 6, "the first evaluation after a third of 12 steps"
        score = row["reached"] * 12 / 6
        assert score < np.median([each for trial, each in done.items() if trial < row["trial"]])
    assert set(made_up.began) == {row["identities"][0] for row in rows}
    assert set(made_up.began) - set(made_up.ended) == {row["identities"][0] for row in pruned}


def test_no_trial_is_pruned_where_the_study_says_so(tmp_path: Path, made_up: MadeUp) -> None:
    rows = work(load_study(study_file(tmp_path, trials=12, arms={}, prune=False), "cpu"), tmp_path)
    assert [row["state"] for row in rows] == ["complete"] * 12
    assert len(made_up.ended) == 12


def test_a_score_is_the_mean_over_seeds(tmp_path: Path, made_up: MadeUp) -> None:
    rows = work(load_study(study_file(tmp_path, seeds=[7, 8, 9], arms={}, trials=2), "cpu"), tmp_path)
    for row in rows:
        assert len(set(row["scores"])) == len(set(row["identities"])) == 3
        assert row["score"] == pytest.approx(np.mean(row["scores"]))


def test_a_run_that_is_done_is_found_by_its_identity(tmp_path: Path, made_up: MadeUp) -> None:
    study = load_study(study_file(tmp_path, arms={}, space={"train.clip": {"choices": [1.0, 2.0]}}), "cpu")
    search = Search(study, default_url(study, tmp_path), begin=True)
    one = worker(study, search.url, tmp_path)
    (done,) = study.experiments(study.arms[0], {"train.clip": 1.0})
    kept = made_up(done, tmp_path, 1, lambda *_: None, lambda: False, judge=lambda _: False)
    one.kept = {done.identity: cast(RunResult, kept)}  # as results/ holds it
    made_up.began.clear()
    one.work()
    assert search.counts()["complete"] == 4
    assert done.identity not in made_up.began
    assert made_up.began


def test_more_trials_are_added_and_fewer_leave_the_rest(tmp_path: Path, made_up: MadeUp) -> None:
    first = work(load_study(study_file(tmp_path, trials=3), "cpu"), tmp_path)
    more = work(load_study(study_file(tmp_path, trials=4), "cpu"), tmp_path)
    assert [row for row in tried(more) if row[1] < 3] == tried(first)
    assert len(more) == 8
    assert len(work(load_study(study_file(tmp_path, trials=2), "cpu"), tmp_path)) == 4
    assert len(made_up.began) == 8


def test_several_workers_never_do_the_same_trial(tmp_path: Path, made_up: MadeUp) -> None:
    made_up.seconds = 0.01
    study = load_study(study_file(tmp_path, trials=8), "cpu")
    url = default_url(study, tmp_path)
    search = Search(study, url, begin=True)
    threads = [threading.Thread(target=worker(study, url, tmp_path).work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = search.counts()
    assert counts["complete"] + counts["pruned"] == 16
    assert len(made_up.began) == len(set(made_up.began)) == 16
    finished = [
        each for one in search.searches for each in one.trials if each.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
    assert len(finished) == 16
    assert not any("reason" in each.user_attrs for one in search.searches for each in one.trials)


@pytest.mark.parametrize("noticed", ["while training", "at the end"])
def test_a_trial_that_was_taken_for_dead_waits_anew_and_counts_once(
    tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch, noticed: str
) -> None:
    study = load_study(study_file(tmp_path, arms={}, trials=2), "cpu")
    search = Search(study, default_url(study, tmp_path), begin=True)
    (found,) = search.searches
    taken: list[Any] = []

    def slow(*arguments: Any, judge: Any) -> Any:
        if not taken:
            taken.extend(found.get_trials(states=(TrialState.RUNNING,)))
            search.storage.set_trial_state_values(taken[0]._trial_id, TrialState.FAIL)
            searches.put_back(found, taken[0])
            judge = judge if noticed == "while training" else lambda _: False
        return made_up(*arguments, judge=judge)

    monkeypatch.setattr(runs, "execute", slow)
    worker(study, search.url, tmp_path).work()
    assert [(row["trial"], row["state"]) for row in search.rows()] == [(0, "complete"), (1, "complete")]
    assert search.rows()[0]["values"] == taken[0].params
    assert len(found.trials) == 3


def test_a_worker_that_died_before_its_first_sign_of_life_loses_nothing(
    tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "HEARTBEAT", 1)
    study = load_study(study_file(tmp_path, arms={}, trials=2), "cpu")
    search = Search(study, default_url(study, tmp_path), begin=True)
    search.queue(search.searches[0])
    with pytest.warns(UserWarning, match="Heartbeat"):
        search.searches[0].ask()
    assert search.counts() == {"complete": 0, "pruned": 0, "failed": 0, "running": 1, "waiting": 1}
    search.count_from_now()  # as `lab study run` does first
    worker(study, search.url, tmp_path).work()
    assert search.counts()["complete"] + search.counts()["pruned"] == 2


def test_a_run_that_another_process_works_on_is_waited_for(
    tmp_path: Path, made_up: MadeUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []

    def busy(*arguments: Any, **others: Any) -> Any:
        asked.append(None)
        if len(asked) == 1:
            raise Busy("another process works on this run")
        return made_up(*arguments, **others)

    monkeypatch.setattr(runs, "execute", busy)
    rows = work(load_study(study_file(tmp_path, arms={}, trials=2), "cpu"), tmp_path)
    assert [row["state"] for row in rows] == ["complete", "complete"]
    assert len(asked) == 3


# Real runs

DIVERGES = {"train.lr": {"choices": [1e-3, 1e30]}, "train.clip": {"choices": [1e30]}}


def test_a_trial_that_fails_is_recorded_and_retried_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(study_file(tmp_path, arms={}, space=DIVERGES), "cpu")
    rows = work(study, tmp_path / "store")
    failed = [row for row in rows if row["state"] == "failed"]
    assert {row["values"]["train.lr"] for row in failed} == {1e30}
    assert all("diverged" in row["reason"] and "\n" not in row["reason"] for row in failed)
    assert 0 < len(failed) < len(rows) == 4
    store = ("--store", str(tmp_path / "store"))
    shown = lab("study", "show", study.path, *store).stdout
    assert shown.count("failed: train.lr=1e+30") == len(failed)
    again = lab("study", "run", study.path, *store)
    assert again.exit_code == 0
    assert "4 done before, 0 to do" in again.stderr
    search = Search(study, default_url(study, tmp_path / "store"), begin=True)
    search.retry()
    assert search.counts()["waiting"] == len(failed)
    worker(study, search.url, tmp_path / "store").work()
    assert tried(search.rows()) == tried(rows)
    assert len(search.searches[0].trials) == 4 + len(failed)


def test_pruning_leaves_a_run_at_a_checkpoint_and_it_can_go_on(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path), "cpu")
    (experiment,) = study.experiments(study.arms[0], {"train.lr": 0.01})
    seen: list[Any] = []

    def judge(curve: list[Any]) -> bool:
        seen.append(len(curve))
        return len(curve) == 2

    assert execute(experiment, tmp_path / "a", judge=judge) is None
    assert seen == [0, 0, 1, 1, 1, 2], "asked after every step, with what is known then"
    assert RunDirectory(tmp_path / "a", experiment).checkpoint.exists()
    result, undisturbed = (execute(experiment, tmp_path / store) for store in ("a", "b"))
    assert result is not None
    assert undisturbed is not None
    assert (result["scores"], result["curve"]) == (undisturbed["scores"], undisturbed["curve"])


def postgresql() -> Path:
    """The folder of PostgreSQL's programs; the test is skipped where they or psycopg are not there."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    known = [Path(found).parent for found in [shutil.which("initdb")] if found]
    known += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not known:
        pytest.skip("no PostgreSQL server is installed")
    return known[-1]


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A PostgreSQL server of one's own: its URL."""
    programs = postgresql()
    # It refuses to be root, and nobody cannot look into root's temporary folders.
    user: Any = {"user": "nobody", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="lab", dir="/tmp") as folder:
        if user:
            shutil.chown(folder, "nobody")

        def program(name: str, *arguments: str) -> None:
            command = [str(programs / name), "-D", f"{folder}/data", *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=60, **user)

        program("initdb", "-U", "lab", "-A", "trust", "--no-sync")
        program("pg_ctl", "start", "-w", "-l", f"{folder}/log", "-o", f"-F -k {folder} -c listen_addresses=''")
        try:
            yield f"postgresql://lab@/postgres?host={folder}"
        finally:
            program("pg_ctl", "stop", "-m", "immediate")


COMMAND = """
from lab.experiments import search
search.HEARTBEAT = 1
from lab.cli.main import main
if __name__ == "__main__":
    main()
"""


def command(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The command in a process group of its own, where death is noticed sooner."""
    script = folder / "lab_in_haste.py"
    script.write_text(COMMAND)
    environment = {**os.environ, "PYTHONPATH": str(home())}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment,
    )  # fmt: skip


def until(process: "subprocess.Popen[str]", condition: Callable[[], object]) -> None:
    """Wait for something that a running command does."""
    deadline = time.monotonic() + 300
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(each) for each in children if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]


LONG: dict[str, Any] = {
    "baseline": {**STUDY["baseline"], "train": {**TINY["train"], "steps": 60}},
    "arms": {},
    "trials": 3,
}


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "SQLite":
        yield f"sqlite:///{tmp_path}/x.db"
    else:
        with server() as url:
            yield url


def test_a_study_that_is_killed_mid_trial_loses_and_doubles_nothing(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "HEARTBEAT", 1)
    study, store = load_study(study_file(tmp_path, **LONG), "cpu"), tmp_path / "store"
    process = command(tmp_path, "study", "run", study.path, "--store", str(store), "--storage", database)
    until(process, lambda: list(store.glob("*/checkpoints/last.ckpt")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    search = Search(study, database, begin=True)
    assert search.counts() == {"complete": 0, "pruned": 0, "failed": 0, "running": 1, "waiting": 2}
    (killed,) = search.searches[0].get_trials(states=(TrialState.RUNNING,))

    search.count_from_now()
    worker(study, database, store).work()
    rows = search.rows()
    assert [row["trial"] for row in rows] == [0, 1, 2]
    assert search.counts()["complete"] + search.counts()["pruned"] == 3
    (failed,) = search.searches[0].get_trials(states=(TrialState.FAIL,))
    assert failed.number == killed.number
    assert len(search.searches[0].trials) == 4, "the killed one, and it alone, twice"
    assert rows[0]["values"] == killed.params

    undisturbed = work(study, tmp_path / "other")
    assert tried(rows)[0] == tried(undisturbed)[0]
    (experiment,) = study.experiments(study.arms[0], killed.params)
    resumed, whole = (RunDirectory(each, experiment).read_result() for each in (store, tmp_path / "other"))
    assert resumed is not None
    assert whole is not None
    assert (resumed["scores"], resumed["curve"]) == (whole["scores"], whole["curve"])


def test_when_a_worker_is_killed_the_other_goes_on_with_its_trial_too(tmp_path: Path) -> None:
    longer = {**LONG["baseline"], "train": {**TINY["train"], "steps": 200}}
    study, store = load_study(study_file(tmp_path, **{**LONG, "baseline": longer}), "cpu"), tmp_path / "store"
    process = command(tmp_path, "study", "run", study.path, "--store", str(store), "--workers", "2", "--json")
    until(process, lambda: len(list(store.glob("*/metrics.jsonl"))) == 2)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    said, told = process.communicate(timeout=600)
    assert process.returncode == 0, told
    assert "lost" in told
    assert "Traceback" not in told
    counts = json.loads(said.splitlines()[-1])
    done = {"complete": counts.pop("complete"), "pruned": counts.pop("pruned")}
    assert counts == {**{"study": study.path, "scale": "cpu", "trials": 3}, "failed": 0, "running": 0, "waiting": 0}
    assert sum(done.values()) == 3
    assert len(list(store.glob("*/result.json"))) == done["complete"]


def test_a_time_limit_and_a_signal_stop_at_a_checkpoint(tmp_path: Path) -> None:
    changes = {**LONG, "baseline": {**STUDY["baseline"], "train": {**TINY["train"], "steps": 100_000}}}
    path, store = study_file(tmp_path, **changes), tmp_path / "store"
    limited = lab("study", "run", path, "--store", str(store), "--time-limit", "0s", "--json")
    assert limited.exit_code == 0
    assert json.loads(limited.stdout)["waiting"] == 3
    assert f"go on with: lab study run {path} --scale cpu --store {store}" in limited.stderr

    process = command(tmp_path, "study", "run", path, "--store", str(store))
    until(process, lambda: list(store.glob("*/metrics.jsonl")))
    process.send_signal(signal.SIGTERM)  # as Ctrl-C, which background processes are deaf to
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "goes on from its last checkpoint" in told.splitlines()[-1]
    assert "Traceback" not in told
    study = load_study(path, "cpu")
    assert Search(study, default_url(study, store), begin=False).counts()["waiting"] == 3
    assert len(list(store.glob("*/checkpoints/last.ckpt"))) == 1


# What is shown and kept


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study that is done."""
    folder = tmp_path_factory.mktemp("study")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    baseline = {part: STUDY["baseline"][part] for part in ("train", "evaluation")}
    study = load_study(study_file(folder, recipe=str(recipe), baseline=baseline), "cpu")
    work(study, folder / "store")
    return study, folder / "store"


def test_the_best_of_each_arm_is_shown_with_the_command_that_repeats_it(finished: tuple[Study, Path]) -> None:
    study, store = finished
    ran = lab("study", "show", study.path, "--store", str(store), "--json")
    said = json.loads(ran.stdout.splitlines()[-1])
    assert (said["study"], said["scale"], said["measure"]) == (study.path, "cpu", "exact_match")
    assert [arm["arm"] for arm in said["arms"]] == [{"objective.n": 1}, {"objective.n": 2}]
    assert len(said["trials"]) == 8
    for arm in said["arms"]:
        own = [row for row in said["trials"] if row["arm"] == arm["arm"]]
        assert arm["complete"] + arm["pruned"] == len(own) == 4
        best = arm["best"]
        assert best["score"] == max(row["score"] for row in own if row["score"] is not None)
        assert best["low"] <= best["score"] <= best["high"]
        assert best["provenance"]["versions"]["torch"]
        lab_, train, recipe, *overrides, option, place = shlex.split(best["command"])
        assert (option, place) == ("--store", str(store))
        experiment = load_experiment(recipe, overrides)
        assert (lab_, train, [experiment.identity]) == ("lab", "train", best["identities"])
        result = RunDirectory(store, experiment).read_result()
        assert result is not None
        validation = [row for row in result["curve"] if row["step"] == 12]
        assert best["examples"] == 2 * 20
        assert validation_score(experiment, result) == (best["score"], 40)
        assert validation, "the curve has the last step"
    shown = lab("study", "show", study.path, "--store", str(store)).stdout
    assert shown.count("best: train.lr=") == 2
    assert shown.count("exact match on validation: ") == 2


def test_the_score_is_on_validation_alone(finished: tuple[Study, Path]) -> None:
    study, store = finished
    (experiment,) = study.experiments(
        study.arms[0], Search(study, default_url(study, store), False).rows()[0]["values"]
    )
    result = RunDirectory(store, experiment).read_result()
    assert result is not None
    score = validation_score(experiment, result)
    for row in result["scores"]:
        if row["split"] == "test":
            row["exact_match"] = 2.0
    assert validation_score(experiment, result) == score


def test_the_interval_is_wilsons() -> None:
    for right, count in ((0, 10), (3, 10), (240, 600), (600, 600)):
        expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
        assert wilson(right / count, count) == pytest.approx((right / count, expected.low, expected.high), abs=1e-4)


def test_kept_trials_need_no_database(
    finished: tuple[Study, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = finished
    monkeypatch.setattr(studies, "home", lambda: tmp_path)
    ran = lab("study", "keep", study.path, "--store", str(store), "--json")
    table = tmp_path / "results" / "studies" / "study.cpu.jsonl"
    assert json.loads(ran.stdout) == {"table": str(table), "trials": 8, "added": 8, "differing": [], "replaced": []}
    rows = Search(study, default_url(study, store), begin=False).rows()
    assert studies.trials(study, tmp_path / "empty") == (rows, None)
    assert studies.complete(study, tmp_path / "empty") == rows
    shown = json.loads(lab("study", "show", study.path, "--store", str(tmp_path / "empty"), "--json").stdout)
    assert shown["trials"] == rows
    again = lab("study", "keep", study.path, "--store", str(tmp_path / "empty"))
    assert isinstance(again.exception, Failure)
    table.write_text(table.read_text().replace(rows[0]["identities"][0], "0" * 16))
    with pytest.raises(BadInput, match=r"study\.cpu\.jsonl: not the trials of"):
        studies.trials(study, tmp_path / "empty")


def test_a_figure_of_an_unfinished_study_names_the_command_that_finishes_it(tmp_path: Path) -> None:
    study = load_study(study_file(tmp_path), "cpu")
    Search(study, default_url(study, tmp_path), begin=True)
    drawn = lab("figures", "study_lr", "--sweep", study.path, "--store", str(tmp_path))
    assert isinstance(drawn.exception, Failure)
    assert "8 of 8 trials are missing" in str(drawn.exception)
    assert f"lab study run {study.path} --scale cpu --store {tmp_path}" in str(drawn.exception)


@pytest.mark.parametrize("name", ["study_lr", "study_n"])
def test_figures_are_drawn_and_always_the_same(finished: tuple[Study, Path], tmp_path: Path, name: str) -> None:
    study, store = finished
    for folder in ("a", "b"):
        output = str(tmp_path / folder)
        drawn = lab("figures", name, "--sweep", study.path, "--store", str(store), "--output", output)
        assert drawn.exit_code == 0, drawn.exception
    for kind in ("png", "svg"):
        content = (tmp_path / "a" / f"{name}.study.{kind}").read_bytes()
        assert len(content) > 10_000
        assert content == (tmp_path / "b" / f"{name}.study.{kind}").read_bytes()
