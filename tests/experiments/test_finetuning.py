"""Runs that begin with another's weights: heads kept, dropped, added; their identity; sweeps that have sources."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from lab.cli.main import cli
from lab.errors import BadInput, Failure
from lab.experiments import store as stores
from lab.experiments.experiment import Experiment, experiment_from, load_experiment, overridden
from lab.experiments.inheritance import load_matching, seen_in_training
from lab.experiments.result import RunResult
from lab.experiments.run import execute
from lab.experiments.store import RunDirectory, find_run, keep_results
from lab.experiments.sweep import load_sweep, runs, states
from lab.learning.data import Steps, questions
from lab.objectives import LanguageModel, build_model
from lab.objectives.flops import instantiate
from tests.conftest import TINY, held, of, same_end, tiny

SHORT = ("train.steps=12", "evaluation.every=6")
SOURCES = {n: tiny(f"objective.n={n}", *SHORT) for n in (1, 3)}  # of 4 layers: a trunk of 3, and one of 1
ARMS = [(3, 3), (3, 1), (1, 1), (1, 3)]
arms = pytest.mark.parametrize(("before", "after"), ARMS, ids=[f"{before} to {after}" for before, after in ARMS])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the sources are finished."""
    folder = tmp_path_factory.mktemp("sources")
    for source in SOURCES.values():
        execute(source, folder)
    return folder


def begun(store: Path, name: object, *overrides: str) -> Experiment:
    """The tiny experiment, begun from the run that `name` names in `store`."""
    mapping = overridden({**TINY, "init_from": str(name)}, overrides)
    return experiment_from(mapping, "tiny", lambda name: find_run(name, store).experiment)


def model_of(experiment: Experiment) -> LanguageModel:
    vocabulary = len(experiment.task.build().vocabulary)
    return build_model(experiment.model, experiment.objective, vocabulary, experiment.seed)


def weights_of(store: Path, experiment: Experiment) -> dict[str, torch.Tensor]:
    return load_file(RunDirectory(store, experiment).final)


def part(name: str) -> str:
    """`decoder`, or which head."""
    return "decoder" if name.startswith("decoder.") else name[: len("objective.heads.0")]


@arms
def test_heads_are_kept_dropped_and_added(store: Path, before: int, after: int) -> None:
    experiment = begun(store, SOURCES[before].label, f"objective.n={after}", "seed=5")
    theirs = weights_of(store, SOURCES[before])
    drawn, model = model_of(experiment), model_of(experiment)
    counts = load_matching(model, theirs)
    initial, own = drawn.state_dict(), model.state_dict()
    heads = [f"objective.heads.{index}" for index in range(3)]
    kept, fresh = heads[: min(before, after)], heads[before:after]
    for name, weight in own.items():
        assert torch.equal(weight, initial[name] if part(name) in fresh else theirs[name]), name
        assert part(name) in ("decoder", *kept, *fresh)
    assert len(model.decoder.trunk) == 4 - before
    assert experiment.model.shape.layers == 4 - before + after
    parts: dict[str, Any] = {**counts}
    assert {fate: list(places) for fate, places in parts.items()} == {
        **{"taken": ["decoder", *kept], "new": fresh, "dropped": heads[after:before]},
    }
    layer = counts["taken"]["objective.heads.0"]
    assert sum(counts["taken"].values()) + sum(counts["new"].values()) == sum(each.numel() for each in own.values())
    assert {count for fate in parts.values() for place, count in fate.items() if place != "decoder"} == {layer}


@arms
def test_the_next_token_is_predicted_as_the_source_did_bit_for_bit(store: Path, before: int, after: int) -> None:
    source, ours = model_of(SOURCES[before]), model_of(begun(store, SOURCES[before].label, f"objective.n={after}"))
    source.load_state_dict(weights_of(store, SOURCES[before]))
    load_matching(ours, source.state_dict())
    tokens = torch.from_numpy(tiny().task.build().examples("test", np.arange(60, 80), 0).tokens.astype(np.int64))

    def logits(model: LanguageModel) -> list[torch.Tensor]:
        context = model.decoder.context(tokens, None)
        return list(model.objective.logits(model.decoder, model.decoder(tokens, context), context, model.objective.n))

    for theirs, own in zip(logits(source), logits(ours), strict=False):
        assert torch.equal(theirs, own)


def test_what_is_not_trained_stays_as_it_was(store: Path) -> None:
    """A whole run, with updates too small for fp32: it ends with the source's weights, and scores as it did."""
    experiment = begun(store, SOURCES[3].label, "objective.n=1", "train.lr=1e-30", *SHORT)
    result = execute(experiment, store)
    theirs, own = (weights_of(store, each) for each in (SOURCES[3], experiment))
    assert own.keys() < theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in own.items())
    assert result is not None
    assert list(result["inherited"]["dropped"]) == ["objective.heads.1", "objective.heads.2"]
    assert result["scores"] == of(RunDirectory(store, SOURCES[3]).read_result())["scores"]
    built = instantiate(experiment.model, experiment.objective, len(experiment.task.build().vocabulary))
    assert result["parameters"] == sum(each.numel() for each in built.parameters())


def test_heads_of_another_kind_are_taken_by_name(store: Path) -> None:
    chained = begun(store, SOURCES[3].label, "objective={name: causal, n: 3}")
    assert load_matching(model_of(chained), weights_of(store, SOURCES[3]))["new"] == {}
    linear = begun(store, SOURCES[3].label, "objective={name: linear, n: 3}")
    counts = load_matching(model_of(linear), weights_of(store, SOURCES[3]))
    assert list(counts["taken"]) == ["decoder", "objective.heads.0"]
    assert counts["new"] == {"objective.heads.1": 256, "objective.heads.2": 256}
    assert list(counts["dropped"]) == ["objective.heads.1", "objective.heads.2"]
    stranger = model_of(tiny("objective.n=1"))
    with pytest.raises(BadInput, match="another trunk"):
        load_matching(stranger, weights_of(store, SOURCES[3]))


def test_the_identity_is_the_sources_and_not_its_place(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label, identity = SOURCES[3].label, SOURCES[3].identity
    shutil.copytree(store / label, tmp_path / "elsewhere" / label)
    monkeypatch.chdir(store)
    names = [label, identity, f"./{label}/", store / label, tmp_path / "elsewhere" / label, f"gone/{label}"]
    found = {begun(store, name).identity for name in names}
    assert len(found) == 1
    monkeypatch.chdir(tmp_path)
    assert begun(tmp_path / "elsewhere", identity).identity in found
    others = {begun(store, SOURCES[1].label).identity, begun(store, label, "seed=1").identity}
    plain = tiny("model.layers=3").identity  # the model that it becomes
    assert len({*found, *others, plain}) == 4


def test_the_model_is_the_sources(store: Path) -> None:
    label = SOURCES[3].label
    bare = {name: value for name, value in TINY.items() if name != "model"}
    found = [
        experiment_from({**bare, **model, "init_from": label}, "", lambda name: find_run(name, store).experiment)
        for model in ({}, {"model": TINY["model"]}, {"model": {**TINY["model"], "layers": 3}})  # n = 2 on a trunk of 1
    ]
    assert {each.identity for each in found} == {begun(store, label).identity}
    assert {each.model.shape.layers for each in found} == {3}
    wide = begun(store, SOURCES[1].label, "objective.n=6")
    assert wide.model.shape.layers == 9, "more heads than the source has layers"


def test_the_config_of_a_run_can_be_run_again(store: Path, tmp_path: Path) -> None:
    experiment = begun(store, store / SOURCES[1].label, *SHORT)
    result = execute(experiment, store)
    config = RunDirectory(store, experiment).config
    assert load_experiment(config, find=lambda name: find_run(name, store).experiment) == experiment
    assert load_experiment(config) == experiment
    ran = CliRunner().invoke(cli, ["train", str(config), "--store", str(store), "--json"])
    assert ran.exit_code == 0, ran.output
    assert "done before" in ran.stderr
    shutil.copytree(store / SOURCES[1].label, tmp_path / SOURCES[1].label)
    ran = CliRunner().invoke(cli, ["train", str(config), "--store", str(tmp_path), "--json"])
    again = json.loads(ran.stdout.splitlines()[-1])
    assert result is not None
    assert again["directory"] == str(tmp_path / experiment.label)
    assert again["scores"] == result["scores"]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("init_from=nothing", ["init_from: 'nothing'", "directory, label or identity"]),
        ("init_from=runs/x-0123456789abcdef", ["init_from: 'runs/x-0123456789abcdef'", "of a run in"]),
        ("init_from=5", ["init_from: 5", "string"]),
        ("task.prime=5", ["task: its token 3 is '3'", "{source}", "'-'"]),
        ("model.width=32", ["model.width: 32", "should be 16", "{source}"]),
        ("model.heads=4", ["model.heads: 4", "should be 2", "{source}"]),
        ("model.rotary_base=100", ["model.rotary_base: 100", "should be 10000", "{source}"]),
        ("model.layers=5", ["model.layers: 5", "should be 4 or 3,", "{source}"]),
        ("model={size: 1M, layers: null, width: null, heads: null}", ["model.layers: 5", "should be 4 or 3"]),
        ("objective.n=0", ["objective.n: 0"]),
    ],
)
def test_bad_input_is_one_clear_line(store: Path, change: str, parts: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        begun(store, SOURCES[3].label, change)
    message = str(caught.value)
    assert "\n" not in message
    for each in parts:
        assert each.format(source=SOURCES[3].identity) in message


def test_a_name_that_is_no_runs_is_refused_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r'init_from: "n4" is not allowed: should be a run'):
        tiny("init_from=n4")


def test_a_source_that_is_not_finished_or_has_lost_its_weights(store: Path, tmp_path: Path) -> None:
    source = SOURCES[3]
    directory = RunDirectory(tmp_path, source)
    assert execute(source, tmp_path, stop=lambda: True) is None
    experiment = begun(tmp_path, source.label)
    with pytest.raises(BadInput, match="is not finished; go on with: lab train"):
        execute(experiment, tmp_path)
    execute(source, tmp_path)
    directory.final.unlink()
    with pytest.raises(BadInput, match=r"final\.safetensors is gone"):
        execute(experiment, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [source.label], "what cannot be run leaves nothing behind"
    directory.config.write_text(directory.config.read_text().replace("seed: 0", "seed: 7"))
    with pytest.raises(BadInput, match="should be the directory, label or identity"):
        begun(tmp_path, source.label)


@pytest.mark.parametrize("step", [3, 8])
def test_a_stopped_run_goes_on_where_it_was(store: Path, tmp_path: Path, step: int) -> None:
    """Not where its source was."""
    experiment = begun(store, store / SOURCES[1].label, "objective.n=3", "train.lr=1e-2", *SHORT)
    asked = itertools.count(1)
    assert execute(experiment, tmp_path / "stopped", stop=lambda: next(asked) == step) is None
    resumed: list[int] = []
    execute(experiment, tmp_path / "stopped", resumed=resumed.append)
    assert resumed == [step]
    execute(experiment, tmp_path / "straight")
    same_end(*(RunDirectory(tmp_path / name, experiment) for name in ("stopped", "straight")))


def test_what_the_source_was_trained_on_counts_as_seen(store: Path) -> None:
    source = tiny("objective.n=3", *SHORT)
    task = source.task.build()
    sets = {split: task.examples(split, np.arange(task.size(split) or 0), 0) for split in ("validation", "test")}
    asked = questions(sets)
    expected = np.zeros(len(asked), np.bool_)
    for step in itertools.islice(Steps(task, source.train, 3, source.seed, 0, asked), source.train.steps):
        expected[step.occurring.numpy()] = True
    found = seen_in_training(source, store, asked)
    assert 0 < expected.sum() < len(asked)
    assert (found == expected).all()

    def seen(result: RunResult | None) -> int:
        return sum(row["count"] for row in of(result)["scores"] if row["seen"] == "seen")

    first = begun(store, source.label, "seed=3", "train.steps=2", "train.warmup=1")
    alone = execute(tiny("objective.n=3", "seed=3", "train.steps=2", "train.warmup=1"), store)
    assert seen(execute(first, store)) > max(seen(alone), seen(RunDirectory(store, source).read_result()))
    second = begun(store, first.label, "seed=4", "model.layers=3")
    assert (seen_in_training(second, store, asked) >= seen_in_training(first, store, asked)).all()
    assert (seen_in_training(first, store, asked) >= found).all()


# Sweeps.

SWEEP: dict[str, Any] = {
    "question": "Does it run?",
    "endpoint": "Exact match.",
    "baseline": {**TINY, "train": {**TINY["train"], "steps": 8}, "objective": {"name": "parallel", "n": 1}},
    "sources": {"n1": {"train": {"steps": 16}}, "n3": {"train": {"steps": 16}, "objective": {"n": 3}}},
    "axes": {"seed": [0, 1], "init_from": ["n1", "n3"], "objective.n": [1, 3]},
    "scales": {
        "cpu": {"budget": "seconds"},
        "long": {"budget": "more", "sources": {"n3": {"train": {"steps": 20}}}},
    },
}


def sweep_file(folder: Path, **changes: Any) -> str:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
    return str(path)


def lab(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def counted(ran: Result) -> dict[str, int]:
    """What `lab sweep run --json` counts, zeros left out."""
    said = json.loads(ran.stdout.splitlines()[-1])
    return {name: value for name, value in said.items() if isinstance(value, int) and value}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A sweep that two workers have carried out, from where a source and a cell were stopped: its file, its store."""
    folder = tmp_path_factory.mktemp("sweep")
    path, store = sweep_file(folder), folder / "store"
    sweep = load_sweep(path, "cpu")
    asked = itertools.count(1)
    execute(sweep.sources[0].experiment, store)
    assert execute(sweep.cells[1].experiment, store, stop=lambda: next(asked) == 3) is None
    assert execute(sweep.sources[1].experiment, store, stop=lambda: next(asked) == 8) is None
    assert [state.name for _, state in runs(sweep, store)][:6] == [
        "done",
        "started",
        "waiting",
        "waiting",
        "waiting",
        "started",
    ]
    ran = lab("sweep", "run", path, "--workers", 2, "--store", store, "--json")
    assert ran.exit_code == 0, ran.output
    assert counted(ran) == {"runs": 12, "done": 12}
    return path, store


def test_sources_are_named_once_and_have_their_cells_seed_and_model(tmp_path: Path) -> None:
    widths = {name: {"width": width} for name, width in {"narrow": 16, "wide": 32}.items()}
    axes = {**SWEEP["axes"], "model": widths, "train.lr": [1e-3, 1e-4]}
    sweep = load_sweep(sweep_file(tmp_path, axes=axes), "long")
    assert len(sweep.cells) == 32
    assert [source.axes for source in sweep.sources] == [
        {"source": name, "seed": seed, "model": width}
        for seed in (0, 1) for name in ("n1", "n3") for width in ("narrow", "wide")
    ]  # fmt: skip
    by_identity = {source.experiment.identity: source for source in sweep.sources}
    for cell in sweep.cells:
        source = by_identity[cell.experiment.source or ""]
        assert source.axes.items() <= {**cell.axes, "source": cell.axes["init_from"]}.items()
        assert source.experiment.seed == cell.experiment.seed
        assert source.experiment.train.steps == {"n1": 16, "n3": 20}[cell.axes["init_from"]]
        assert source.experiment.objective.n == {"n1": 1, "n3": 3}[cell.axes["init_from"]]
        assert cell.experiment.train.steps == 8
        shapes = cell.experiment.model.shape, source.experiment.model.shape
        assert {shape.width for shape in shapes} == set(widths[cell.axes["model"]].values())


def test_a_sweep_may_compare_with_random_weights(tmp_path: Path) -> None:
    sweep = load_sweep(sweep_file(tmp_path, axes={"init_from": [None, "n1"]}, sources={"n1": {}}), "cpu")
    scratch, tuned = (cell.experiment for cell in sweep.cells)
    assert scratch.source is None
    assert tuned.source == scratch.identity
    assert sweep.sources == (), "a source that is a cell itself is one run"
    assert [cell for cell, _ in runs(sweep, tmp_path)] == list(sweep.cells)


def test_a_sweep_runs_from_its_sources(finished: tuple[str, Path]) -> None:
    path, store = finished
    sweep = load_sweep(path, "cpu")
    for cell, state in zip(sweep.cells, states(sweep, store), strict=True):
        assert state.result is not None
        source = find_run(cell.experiment.init_from or "", store)
        began = of(source.read_result())["finished"]
        assert began <= state.result["finished"]
        heads = source.experiment.objective.n, cell.experiment.objective.n
        assert len(state.result["inherited"]["new"]) == max(0, heads[1] - heads[0])
        assert len(state.result["inherited"]["dropped"]) == max(0, heads[0] - heads[1])
    assert "12 done before, 0 to do" in lab("sweep", "run", path, "--store", store).stderr


def test_sources_are_marked_and_stand_in_no_table(finished: tuple[str, Path], tmp_path: Path) -> None:
    path, store = finished
    said = json.loads(lab("sweep", "status", path, "--store", store, "--json").stdout)["runs"]
    assert [row.get("source") for row in said] == ["n1", "n3"] * 2 + [None] * 8
    assert "source=n3 seed=1" in lab("sweep", "status", path, "--store", store).stdout
    shown = lab("sweep", "show", path, "--store", store, "--table", tmp_path / "table.csv", "--json")
    told = json.loads(shown.stdout)
    assert (told["runs"], told["finished"]) == (8, 8)
    rows = told["tables"][0]["rows"]
    assert {(row["init_from"], row["objective.n"], row["seeds"]) for row in rows} == {
        (name, n, 2) for name in ("n1", "n3") for n in (1, 3)
    }
    identities = {cell.experiment.identity for cell in load_sweep(path, "cpu").cells}
    table = (tmp_path / "table.csv").read_text()
    assert all(row["identity"] not in table for row in said if row["identity"] not in identities)
    drawn = lab("figures", "polynomials_by_operations", "--sweep", path, "--store", store, "--output", tmp_path)
    assert drawn.exit_code == 0, drawn.output


def test_a_sweep_that_was_stopped_went_on(finished: tuple[str, Path], tmp_path: Path) -> None:
    path, store = finished
    sweep = load_sweep(path, "cpu")
    for cell in (*sweep.sources[:2], sweep.cells[1], sweep.cells[2]):
        execute(cell.experiment, tmp_path)
        same_end(*(RunDirectory(folder, cell.experiment) for folder in (store, tmp_path)))


def test_what_waits_for_a_source_in_vain_is_left_and_the_others_go_on(tmp_path: Path) -> None:
    sources = {"sound": {}, "bad": {"train": {"lr": 1e30, "clip": 1e30}}, "busy": {"objective": {"n": 3}}}
    axes = {"init_from": ["bad", "busy", "sound"], "train.lr": [1e-3, 1e-4]}
    path, store = sweep_file(tmp_path, axes=axes, sources=sources), tmp_path / "store"
    sweep = load_sweep(path, "cpu")
    with held(RunDirectory(store, sweep.sources[1].experiment)):
        ran = lab("sweep", "run", path, "--workers", 2, "--store", store, "--json")
    assert isinstance(ran.exception, Failure)
    assert counted(ran) == {"runs": 9, "done": 3, "failed": 1, "busy": 1, "waiting": 4}
    assert "waiting  init_from=bad train.lr=0.001  its source: failed" in ran.stderr
    assert "waiting  init_from=busy train.lr=0.001  its source: busy" in ran.stderr
    said = json.loads(lab("sweep", "status", path, "--store", store, "--json").stdout)["runs"]
    assert [row["state"] for row in said] == ["failed", "waiting", "done"] + ["waiting"] * 4 + ["done"] * 2
    assert [row["reason"] for row in said[3:7]] == ["its source failed"] * 2 + [None] * 2

    for cell in (sweep.sources[1], *sweep.cells[2:4]):
        execute(cell.experiment, store)
    again = lab("sweep", "run", path, "--store", store, "--json")
    assert "6 done before, 1 failed before, 0 to do" in again.stderr
    assert counted(again) == {"runs": 9, "done": 6, "failed": 1, "waiting": 2}
    again = lab("sweep", "run", path, "--store", store, "--retry", "--json")
    assert "6 done before, 3 to do" in again.stderr
    assert counted(again) == {"runs": 9, "done": 6, "failed": 1, "waiting": 2}


def test_kept_results_need_no_source_and_a_missing_one_runs_its_source_again(
    finished: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = finished
    sweep = load_sweep(path, "cpu")
    results = [state.result for _, state in runs(sweep, store) if state.result]
    assert len(results) == 12
    table = tmp_path / "results" / "sweep.cpu.jsonl"
    table.parent.mkdir()
    monkeypatch.setattr(stores, "home", lambda: tmp_path)

    keep_results(table, results)
    assert [state.name for _, state in runs(sweep, tmp_path / "empty")] == ["done"] * 12
    table.unlink()
    keep_results(table, results[4:])
    ran = lab("sweep", "run", path, "--store", tmp_path / "empty")
    assert "8 runs, 8 done before, 0 to do" in ran.stderr, "sources are not wanted for themselves"
    table.unlink()
    keep_results(table, results[:-1])
    found = runs(sweep, tmp_path / "empty")
    assert [state.name for _, state in found] == ["done"] * 3 + ["waiting"] + ["done"] * 7 + ["waiting"]
    for cell, state in found:
        if state.result is None:
            execute(cell.experiment, tmp_path / "empty")
    (*_, (_, last)) = runs(sweep, tmp_path / "empty")
    assert last.result is not None
    assert last.result["scores"] == results[-1]["scores"]
