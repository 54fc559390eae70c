"""What is kept stays: tables of results and trials, verdict pages, score tables and pictures are not written over."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from lab import home as homes
from lab.cli.main import cli
from lab.errors import BadInput
from lab.experiments import documents
from lab.experiments import store as stores
from lab.experiments.store import RunDirectory, keep_results, kept_results, write_json
from lab.experiments.study import load_study
from lab.experiments.sweep import load_sweep
from lab.report import figures as drawing
from lab.report import studies
from lab.report.page import PREFACE
from tests.conftest import TINY, result_of

SWEEP: dict[str, Any] = {
    "question": "Is it kept?",
    "endpoint": "None.",
    "baseline": TINY,
    "axes": {"seed": [0, 1, 2]},
    "scales": {"cpu": {"budget": "none"}},
}


def lab(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def told(ran: Result) -> Any:
    assert ran.exit_code == 0, ran.exception
    return json.loads(ran.stdout.splitlines()[-1])


def refused(ran: Result, *words: object) -> None:
    assert isinstance(ran.exception, BadInput), ran.exception
    for each in words:
        assert str(each) in str(ran.exception)
    assert "\n" not in str(ran.exception)


def sweep_file(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
    return path


def finish(path: Path, store: Path, score: float = 0.5, cells: slice = slice(None)) -> None:
    """Leave made-up results of a sweep's runs in a store."""
    for cell in load_sweep(str(path), "cpu").cells[cells]:
        directory = RunDirectory(store, cell.experiment)
        directory.path.mkdir(parents=True, exist_ok=True)
        row = {"operations": 1, "operator": "all", "seen": "all", "split": "test", "checkpoint": "final", "count": 9}
        measures = ("exact_match", "exact_match_without_end", "coefficient_accuracy", "constant_answer")
        curve, scores = [{"step": 1, "validation/exact_match": 0.1}], [{**row, **dict.fromkeys(measures, score)}]
        write_json(directory.result, result_of(cell.experiment.identity, curve=curve, scores=scores))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of the lab, with a sweep of its own that is kept."""
    folder = tmp_path / "home"
    for module in (stores, homes, studies, drawing, documents):
        monkeypatch.setattr(module, "home", lambda: folder)
    ours = sweep_file(folder / "sweeps" / "ours.yaml")
    finish(ours, tmp_path / "store")
    assert told(lab("sweep", "keep", ours, "--store", tmp_path / "store", "--json"))["added"] == 3
    return folder


def table(home: Path, name: str = "ours") -> Path:
    return home / "results" / f"{name}.cpu.jsonl"


def seeds(home: Path, name: str = "ours") -> list[int]:
    """Those of a table, in its order."""
    known = {cell.experiment.identity: cell.experiment.seed for cell in load_sweep(str(home / "all.yaml"), "cpu").cells}
    return [known[json.loads(line)["identity"]] for line in table(home, name).read_text().splitlines()]


@pytest.fixture(autouse=True)
def _all(home: Path) -> None:
    sweep_file(home / "all.yaml", axes={"seed": [*range(20)]})


# Results


def test_keeping_again_changes_no_byte_and_adds_what_is_new(home: Path, tmp_path: Path) -> None:
    ours, store = home / "sweeps" / "ours.yaml", tmp_path / "store"
    before, state = table(home).read_bytes(), table(home).stat()
    again = told(lab("sweep", "keep", ours, "--store", store, "--json"))
    assert (again["results"], again["added"], again["differing"]) == (3, 0, [])
    assert table(home).stat() == state, "not even written"

    sweep_file(ours, axes={"seed": [5, 1, 0]})  # the sweep has changed: 2 is no cell of it any more
    finish(ours, store)
    more = told(lab("sweep", "keep", ours, "--store", store, "--json"))
    assert (more["results"], more["added"]) == (3, 1)
    assert table(home).read_bytes()[: len(before)] == before
    assert seeds(home) == [0, 1, 2, 5]
    assert [each.name for each in (home / "results").iterdir()] == ["ours.cpu.jsonl"]


def test_the_labs_own_tables_are_what_keeping_them_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ours = homes.home()
    for before in sorted((ours / "results").glob("p*.jsonl")):
        results = list(stores.read_table(before).values())
        stores.keep_results(tmp_path / before.stem / before.name, results)
        assert (tmp_path / before.stem / before.name).read_bytes() == before.read_bytes()


def test_another_sweep_of_the_same_name_is_refused(home: Path, tmp_path: Path) -> None:
    before = table(home).read_bytes()
    mine = sweep_file(tmp_path / "mine" / "ours.yaml", axes={"seed": [0, 7]})
    finish(mine, tmp_path / "store")
    refused(lab("sweep", "keep", mine, "--store", tmp_path / "store"), mine, table(home), "another name")
    assert table(home).read_bytes() == before

    # Neither is the lab's own: told apart by what they hold.
    one, other = (
        sweep_file(tmp_path / folder / "x.yaml", axes={"seed": own}) for folder, own in (("a", [7]), ("b", [8]))
    )
    for each in (one, other):
        finish(each, tmp_path / "store")
    assert told(lab("sweep", "keep", one, "--store", tmp_path / "store", "--json"))["added"] == 1
    refused(lab("sweep", "keep", other, "--store", tmp_path / "store"), table(home, "x"), "none of this sweep's")
    assert seeds(home, "x") == [7]
    sweep_file(one, axes={"seed": [9, 7]})  # but one's own may grow
    finish(one, tmp_path / "store")
    assert told(lab("sweep", "keep", one, "--store", tmp_path / "store", "--json"))["results"] == 2
    assert seeds(home, "x") == [7, 9]


def test_a_link_to_the_labs_own_sweep_is_that_sweep(home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "ours.yaml"
    link.symlink_to(home / "sweeps" / "ours.yaml")
    assert told(lab("sweep", "keep", link, "--store", tmp_path / "store", "--json"))["results"] == 3


def test_a_run_that_was_carried_out_again_does_not_replace_what_is_kept(home: Path, tmp_path: Path) -> None:
    ours, store = home / "sweeps" / "ours.yaml", tmp_path / "again"
    before = table(home).read_bytes().splitlines()
    finish(ours, store, score=0.75)
    one, two, three = (cell.experiment.identity for cell in load_sweep(str(ours), "cpu").cells)
    again = told(lab("sweep", "keep", ours, "--store", store, "--json"))
    assert (again["results"], again["added"], again["differing"]) == (3, 0, [one, two, three])
    assert table(home).read_bytes().splitlines() == before
    assert f"--replace names them: {one} {two} {three}" in lab("sweep", "keep", ours, "--store", store).stderr

    said = told(lab("sweep", "keep", ours, "--store", store, "--replace", two, "--json"))
    assert (said["replaced"], said["differing"]) == ([two], [one, three])
    now = table(home).read_bytes().splitlines()
    assert (now[0], now[2]) == (before[0], before[2])
    assert kept_results(home / "results")[two]["scores"][0]["exact_match"] == 0.75
    for wrong in ("0" * 16, two[:-1]):
        refused(lab("sweep", "keep", ours, "--store", store, "--replace", wrong), "--replace", wrong)


def test_a_result_in_another_sweeps_table_stays_there_alone(home: Path, tmp_path: Path) -> None:
    other = sweep_file(home / "sweeps" / "other.yaml", axes={"seed": [2, 3]})
    finish(other, tmp_path / "store", score=0.25)
    before = table(home).read_bytes().splitlines()
    said = told(lab("sweep", "keep", other, "--store", tmp_path / "store", "--json"))
    shared, _ = (cell.experiment.identity for cell in load_sweep(str(other), "cpu").cells)
    assert (said["results"], said["elsewhere"], said["added"], said["differing"]) == (1, 1, 1, [shared])
    assert seeds(home, "other") == [3]
    assert table(home).read_bytes().splitlines() == before
    said = told(lab("sweep", "keep", other, "--store", tmp_path / "store", "--replace", shared, "--json"))
    assert said["replaced"] == [shared]
    assert table(home).read_bytes().splitlines()[:2] == before[:2]
    assert kept_results(home / "results")[shared]["scores"][0]["exact_match"] == 0.25
    assert seeds(home, "other") == [3]
    assert seeds(home) == [0, 1, 2]


@pytest.mark.parametrize("damage", [b"{}\n", b'{"identity": "', b"\n", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_table_is_left_as_it_is(home: Path, tmp_path: Path, damage: bytes) -> None:
    ours, store = home / "sweeps" / "ours.yaml", tmp_path / "store"
    with table(home).open("ab") as file:
        file.write(damage)
    before = table(home).read_bytes()
    sweep_file(ours, axes={"seed": [5]})
    finish(ours, store)
    refused(lab("sweep", "keep", ours, "--store", store), table(home), "line 4")
    assert table(home).read_bytes() == before


def test_a_table_whose_last_line_has_no_end_gets_one(home: Path, tmp_path: Path) -> None:
    ours, store = home / "sweeps" / "ours.yaml", tmp_path / "store"
    table(home).write_bytes(table(home).read_bytes().rstrip(b"\n"))
    sweep_file(ours, axes={"seed": [5]})
    finish(ours, store)
    assert told(lab("sweep", "keep", ours, "--store", store, "--json"))["added"] == 1
    assert seeds(home) == [0, 1, 2, 5]


def keep_twenty(folder: Path, name: int) -> None:
    row = {"split": "test", "checkpoint": "final", "count": 1}
    for number in range(20):
        result = result_of(f"{name}-{number}", scores=[row] * 200)
        keep_results(folder / f"{number % 2}.cpu.jsonl", [result])


def test_keeping_at_once_loses_nothing(tmp_path: Path) -> None:
    folder, fork = tmp_path / "tables", multiprocessing.get_context("fork")
    keepers = [fork.Process(target=keep_twenty, args=(folder, each)) for each in range(3)]
    for each in keepers:
        each.start()
    for each in keepers:
        each.join()
        assert each.exitcode == 0
    assert kept_results(folder).keys() == {f"{each}-{number}" for each in range(3) for number in range(20)}
    assert sorted(each.name for each in folder.iterdir()) == ["0.cpu.jsonl", "1.cpu.jsonl"]


# Studies

STUDY: dict[str, Any] = {
    "question": "Is it kept?",
    "endpoint": "None.",
    "baseline": TINY,
    "arms": {"objective.n": [1, 2]},
    "space": {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}},
    "trials": 3,
    "scales": {"cpu": {"budget": "none"}},
}


def trials(path: Path, rate: float = 1e-3) -> list[dict[str, Any]]:
    """Made-up trials of a study, as its database has them: the last of each arm still waits."""
    study = load_study(str(path), "cpu")
    rows = []
    for arm in study.arms:
        for trial in range(study.trials):
            values = {"train.lr": rate * (1 + trial)}
            identities = [each.identity for each in study.experiments(arm, values)]
            done = trial < study.trials - 1
            rows.append({
                "arm": arm.labels, "trial": trial, "state": "complete" if done else "waiting",
                "values": values if done else {}, "score": 0.5, "identities": identities, "reason": None,
            })  # fmt: skip
    return rows


def test_kept_trials_stay(home: Path, tmp_path: Path) -> None:
    path = home / "sweeps" / "search.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    study, rows = load_study(str(path), "cpu"), trials(path)
    rows[1] |= {"state": "failed", "reason": "it diverged"}
    kept = studies.keep(study, rows)
    before = kept.table.read_bytes()
    assert (len(kept.rows), len(kept.added), kept.differing) == (4, 4, [])
    assert studies.keep(study, rows).added == []
    assert kept.table.read_bytes() == before

    # One that failed was tried again, and another has ended.
    rows[1] |= {"state": "complete", "reason": None}
    later = studies.keep(study, [*rows[:2], {**rows[2], "state": "complete", "values": {"train.lr": 3e-3}}, *rows[3:]])
    assert later.added == ["trial 2 objective.n=1"]
    assert later.differing == ["trial 1 objective.n=1"]
    lines = kept.table.read_bytes().splitlines()
    assert set(before.splitlines()) < set(lines)
    assert [json.loads(line)["trial"] for line in lines] == [0, 1, 2, 0, 1]
    replaced = studies.keep(study, rows, ["trial 1 objective.n=1"])
    assert replaced.replaced == ["trial 1 objective.n=1"]
    assert json.loads(kept.table.read_bytes().splitlines()[1])["state"] == "complete"
    with pytest.raises(BadInput, match="--replace: 'trial 1'"):
        studies.keep(study, rows, ["trial 1"])


def test_another_searchs_or_studys_trials_are_refused(home: Path, tmp_path: Path) -> None:
    path = home / "sweeps" / "search.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    kept = studies.keep(load_study(str(path), "cpu"), trials(path))
    before = kept.table.read_bytes()
    with pytest.raises(BadInput, match="the trials of another search"):
        studies.keep(load_study(str(path), "cpu"), trials(path, rate=2e-3))
    mine = tmp_path / "mine" / "search.yaml"
    mine.parent.mkdir()
    mine.write_text(yaml.safe_dump(STUDY))
    with pytest.raises(BadInput, match="give this file another name"):
        studies.keep(load_study(str(mine), "cpu"), trials(mine))
    shown = lab("study", "show", mine, "--store", tmp_path)
    assert "no trial yet" in str(shown.exception)
    path.write_text(yaml.safe_dump({**STUDY, "baseline": {**TINY, "precision": "bf16"}}))
    with pytest.raises(BadInput, match="not the trials of"):
        studies.keep(load_study(str(path), "cpu"), trials(path))
    with kept.table.open("ab") as file:
        file.write(b'{"arm": ')
    path.write_text(yaml.safe_dump(STUDY))
    with pytest.raises(BadInput, match="not the trials of"):
        studies.keep(load_study(str(path), "cpu"), trials(path))
    assert kept.table.read_bytes() == before + b'{"arm": '


# Pages, tables, pictures


def test_a_page_takes_the_place_of_none_but_a_page_of_the_same_sweeps(home: Path, tmp_path: Path) -> None:
    primary = {"where": {"operations": 1}, "margin": 0.1}
    arms = {"seed": [0, 1], "objective.n": [1, 2]}
    files = [sweep_file(tmp_path / f"{name}.yaml", primary=primary, axes=arms) for name in ("one", "two")]
    about = {
        "hardware": {"host": "h", "cpu": "x", "cores": 1, "threads": 1, "device": "cpu"},
        "commit": "c",
        "finished": "f",
    }
    for each in files:
        finish(each, tmp_path / "store")
    for result in (tmp_path / "store").glob("*/result.json"):
        write_json(result, {**json.loads(result.read_text()), **about, "versions": {}, "tokens": 1, "steps": 1})
    page, store = tmp_path / "page.md", ("--store", tmp_path / "store")
    assert lab("report", *files, "--page", page, *store).exit_code == 0
    assert page.read_text().startswith(PREFACE)
    assert lab("report", *files, "--page", page, *store).exit_code == 0
    both = page.read_bytes()
    refused(lab("report", files[0], "--page", page, *store), page, f"{files[1]}, scale cpu")
    assert page.read_bytes() == both
    for content in ("# My notes\n", "# Verdicts\n\nBy hand.\n", b"\xff\xfe"):
        page.write_bytes(content if isinstance(content, bytes) else content.encode())
        before = page.read_bytes()
        refused(lab("report", *files, "--page", page, *store), page, "no verdict page")
        assert page.read_bytes() == before


def test_a_score_table_takes_the_place_of_none_but_one_of_the_same_runs(home: Path, tmp_path: Path) -> None:
    ours, store, csv = home / "sweeps" / "ours.yaml", tmp_path / "store", tmp_path / "scores.csv"
    show = ("sweep", "show", ours, "--store", store, "--table")
    assert lab(*show, csv).exit_code == 0
    assert lab(*show, csv).exit_code == 0
    before = csv.read_bytes()
    refused(lab(*show, table(home)), table(home), "no table of scores")
    assert seeds(home) == [0, 1, 2]
    other = sweep_file(home / "sweeps" / "other.yaml", axes={"seed": [2, 3]})
    finish(other, store)
    refused(lab("sweep", "show", other, "--store", store, "--table", csv), csv, "would be lost")
    assert csv.read_bytes() == before
    csv.write_text("identity,my notes\n" + load_sweep(str(ours), "cpu").cells[0].experiment.identity + ",good\n")
    refused(lab(*show, csv), csv, "my notes")


SCRIPT = """
from matplotlib.figure import Figure
SWEEP = "sweeps/ours.yaml"
def draw(sweep, finished):
    figure = Figure()
    figure.subplots().plot([1, len(finished)])
    return figure
"""


def test_a_picture_takes_the_place_of_none_but_one_of_the_same(home: Path, tmp_path: Path) -> None:
    (home / "figures").mkdir()
    (home / "figures" / "line.py").write_text(SCRIPT)
    long = {"budget": "none", "axes": {"seed": [0, 1]}}
    ours = sweep_file(home / "sweeps" / "ours.yaml", scales={**SWEEP["scales"], "long": long})
    draw = ("figures", "line", "--store", tmp_path / "store", "--output", tmp_path / "out")
    first, again = (json.loads(lab(*draw, "--json").stdout) for _ in range(2))
    assert first == again == [str(tmp_path / "out" / f"line.{kind}") for kind in ("png", "svg")]
    drawn = {each: Path(each).read_bytes() for each in first}
    assert json.loads(lab(*draw, "--scale", "long", "--json").stdout)[0].endswith("out/line.long.png")
    assert {each: Path(each).read_bytes() for each in first} == drawn, "a scale has pictures of its own"

    one, two = (sweep_file(tmp_path / folder / "x.yaml", axes={"seed": [0]}) for folder in "ab")
    assert json.loads(lab(*draw, "--sweep", one, "--json").stdout)[0].endswith("out/line.x.png")
    before = (tmp_path / "out" / "line.x.png").read_bytes()
    refused(lab(*draw, "--sweep", two), tmp_path / "out" / "line.x.png", two)
    assert lab(*draw, "--sweep", ours).exit_code == 0
    mine = sweep_file(tmp_path / "mine" / "ours.yaml", axes={"seed": [0]})
    refused(lab(*draw, "--sweep", mine), tmp_path / "out" / "line.ours.png", mine)
    assert (tmp_path / "out" / "line.x.png").read_bytes() == before

    svg = tmp_path / "out" / "line.svg"
    svg.write_text("my own notes")
    refused(lab(*draw), svg)
    assert (svg.read_text(), (tmp_path / "out" / "line.png").read_bytes()) == ("my own notes", drawn[first[0]])


def test_what_is_write_protected_is_not_replaced(home: Path, tmp_path: Path) -> None:
    ours, csv = home / "sweeps" / "ours.yaml", tmp_path / "scores.csv"
    show = ("sweep", "show", ours, "--store", tmp_path / "store", "--table", csv)
    assert lab(*show).exit_code == 0
    csv.chmod(0o444)
    state = csv.stat()
    ran = lab(*show)
    assert isinstance(ran.exception, PermissionError)
    assert (csv.stat().st_ino, csv.stat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".new")] == []


def test_a_file_that_happens_to_be_beside_is_left_alone(home: Path, tmp_path: Path) -> None:
    beside = tmp_path / "scores.csv.new"
    beside.write_text("mine")
    assert lab("sweep", "show", home / "sweeps" / "ours.yaml", "--store", tmp_path / "store", "--table",
               tmp_path / "scores.csv").exit_code == 0  # fmt: skip
    assert beside.read_text() == "mine"
    assert os.listdir(tmp_path).count("scores.csv") == 1
