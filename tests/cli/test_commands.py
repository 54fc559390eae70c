"""Commands that are printed run when they are pasted, wherever files and stores are and whatever they are called."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Context, Group

from lab.cli.main import cli, main
from lab.errors import BadInput, Missing
from lab.experiments.experiment import dump_yaml, load_experiment
from lab.experiments.inheritance import final_weights
from lab.experiments.search import Search
from lab.experiments.store import RunDirectory, find_run
from lab.experiments.study import load_study
from lab.experiments.sweep import load_sweep
from lab.home import home
from lab.report import figures
from lab.tasks.text import corpus
from tests.conftest import TINY, tiny

NAMES = [
    "plain",
    "a b",
    'it\'s "so"',
    "100%s $HOME `x` !a",
    "süß 日本",
    "-dash",
    "a;b&c|(d)",
    "set [1]*?",
    "~tilde",
    "#x",
]
SCALE = "mid-size one"


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the folder, the files in it and the store are called; nothing that is carried out takes long."""
    monkeypatch.chdir(tmp_path)
    name = str(request.param)
    (tmp_path / name).mkdir()
    common = {"question": "?", "endpoint": "?", "scales": {SCALE: {"budget": "?"}}}
    sweep = {**common, "baseline": TINY, "axes": {"seed": [0, 1]}, "primary": {"margin": 0.1}}
    study = {
        **common, "recipe": f"{name}/{name}.tiny.yaml", "baseline": {"train": {"steps": 30}}, "trials": 2,
        "space": {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}},
    }  # fmt: skip
    for kind, content in {"sweep": sweep, "study": study, "tiny": TINY}.items():
        path = tmp_path / name / f"{name}.{kind}.yaml"
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    monkeypatch.setattr("lab.experiments.workers.carry_out", lambda *_: (each for each in list[str]()))
    monkeypatch.setattr("lab.experiments.trials.carry_out", lambda *_: (each for each in list[str]()))
    monkeypatch.setattr("lab.experiments.run.execute", lambda *_: None)
    return name


class Told:
    """What a command said, and the commands in it."""

    def __init__(self, status: int, said: str) -> None:
        self.status, self.said = status, said

    def command(self, before: str) -> list[str]:
        """The words that `lab` gets when the command after some text is pasted into a shell."""
        found = re.search(re.escape(before) + r"(lab .*?)(?=$|; run again with: )", self.said, re.MULTILINE)
        assert found, self.said
        paste = f"lab() {{ printf '%s\\0' \"$@\"; }}; {found[1]}"
        ran = subprocess.run(["bash", "-c", paste], capture_output=True, check=True)
        assert not ran.stderr
        return ran.stdout.decode().split("\0")[:-1]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in this process."""

    def run(*words: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["lab", *words])
        status = 0
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Told(status, out + err)

    return run


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters that a command gets of its words."""
    command, context, rest = cli, Context(cli), words
    while isinstance(command, Group):
        found, below, rest = command.resolve_command(context, rest)
        assert below is not None
        context = below.make_context(found, [*rest], parent=context)
        command = below  # type: ignore[assignment]
        rest = context._protected_args + context.args if isinstance(command, Group) else []
    return context.params


def of(name: str, kind: str) -> str:
    return f"{name}/{name}.{kind}.yaml"


def there(name: str, kind: str, *options: str) -> list[str]:
    """How a user names the file, the store and the scale."""
    return ["--scale", SCALE, "--store", f"{name} st", *options, "--", of(name, kind)]


def fail_all(name: str) -> None:
    for cell in load_sweep(of(name, "sweep"), SCALE).cells:
        directory = RunDirectory(Path(f"{name} st"), cell.experiment)
        directory.path.mkdir(parents=True)
        directory.failure.write_text('{"reason": "of a reason"}', encoding="utf-8")


def leads_there(words: list[str], name: str, kind: str) -> None:
    """The words name the same file, scale and store."""
    given = parsed(words)
    assert Path(given["path"]).samefile(of(name, kind))
    assert (given["scale"], given["store"]) == (SCALE, Path(f"{name} st"))


@pytest.mark.parametrize(("action", "before"), [("show", "begin with: "), ("keep", "begin with: ")])
def test_a_sweep_that_has_not_begun(name: str, lab: Any, action: str, before: str) -> None:
    words = lab("sweep", action, *there(name, "sweep")).command(before)
    assert words[:2] == ["sweep", "run"]
    leads_there(words, name, "sweep")
    again = lab(*words)
    assert again.status == 0
    assert "0 of 2 runs done" in again.said
    assert again.command("go on with: ") == words


def test_a_sweep_that_failed(name: str, lab: Any) -> None:
    fail_all(name)
    for action in ("show", "run"):
        told = lab("sweep", action, *there(name, "sweep"))
        assert told.status == 1
        words = told.command("see: ")
        assert words[:2] == ["sweep", "status"]
        leads_there(words, name, "sweep")
        assert "of a reason" in lab(*words).said
    words = told.command("go on with: ")
    assert parsed(words)["retry"]
    assert "2 to do" in lab(*words).said


def test_one_run_of_a_sweep(name: str, lab: Any) -> None:
    identity = load_sweep(of(name, "sweep"), SCALE).cells[1].experiment.identity
    words = lab("sweep", "run", *there(name, "sweep", "--only", identity, "--weights")).command("go on with: ")
    leads_there(words, name, "sweep")
    assert (parsed(words)["only"], parsed(words)["weights"]) == ((identity,), True)
    assert "0 of 1 runs done" in lab(*words).said


@pytest.mark.parametrize(
    ("line", "before"),
    [
        (["analyze", "weights", "--"], "make them with: "),
        (["report", "--"], "fill them with: "),
        (["figures", "polynomials_by_operations", "--sweep"], "fill them with: "),
    ],
    ids=lambda part: part[0],
)
def test_runs_that_are_missing(name: str, lab: Any, line: list[str], before: str) -> None:
    told = lab(*line[:-1], "--scale", SCALE, "--store", f"{name} st", line[-1], of(name, "sweep"))
    assert told.status == 1
    words = told.command(before)
    leads_there(words, name, "sweep")
    assert parsed(words)["weights"] == (line[0] == "analyze")
    assert "2 to do" in lab(*words).said


@pytest.mark.parametrize("storage", [None, "sqlite:///a b/it's.db"])
def test_a_study(name: str, lab: Any, storage: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ["--storage", storage] if storage else []
    words = lab("study", "show", *there(name, "study", *where)).command("begin with: ")
    assert words[:2] == ["study", "run"]
    leads_there(words, name, "study")
    assert parsed(words)["storage"] == storage
    again = lab(*words)
    assert again.status == 0, again.said
    assert again.command("go on with: ") == words
    if storage is None:
        drawn = lab("figures", "study_lr", "--sweep", of(name, "study"), "--scale", SCALE, "--store", f"{name} st")
        assert drawn.command("fill them with: ") == words
    monkeypatch.setattr(
        Search, "counts", lambda _: {"complete": 0, "pruned": 0, "failed": 2, "running": 0, "waiting": 0}
    )
    failed = lab("study", "run", "--json", *there(name, "study", *where))
    assert failed.status == 1
    for before, action in (("see: ", "show"), ("run again with: ", "run")):
        words = failed.command(before)
        assert words[:2] == ["study", action]
        leads_there(words, name, "study")
        assert parsed(words)["storage"] == storage
        assert parsed(words).get("retry", True)


def test_a_trial_alone(name: str, lab: Any) -> None:
    study, store = load_study(of(name, "study"), SCALE), Path(f"{name} st")
    (experiment,) = study.experiments(study.arms[0], {"train.lr": 0.01})
    words = Told(0, study.repeat(study.arms[0], {"train.lr": 0.01}, store)).command("")
    given = parsed(words)
    assert load_experiment(given["recipe"], given["overrides"]).identity == experiment.identity
    assert given["store"] == store
    assert str(store / experiment.label) in lab(*words).said


def test_a_run_that_others_begin_from(name: str, lab: Any) -> None:
    run = RunDirectory(Path(f"{name} st"), tiny("objective.n=1"))
    run.path.mkdir(parents=True)
    run.config.write_text(dump_yaml(run.experiment), encoding="utf-8")
    with pytest.raises(BadInput) as refused:
        final_weights(run)
    words = Told(2, f"{refused.value}").command("go on with: ")
    given = parsed(words)
    assert load_experiment(given["recipe"]).identity == run.experiment.identity
    assert given["store"] == run.path.parent
    assert str(run.path) in lab(*words).said


TABLES = sorted(each for each in figures.names() if hasattr(figures._load(home() / "figures" / f"{each}.py"), "TABLE"))


@pytest.mark.parametrize("figure", TABLES)
def test_a_table_that_is_missing(figure: str, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = figures._load(home() / "figures" / f"{figure}.py")
    monkeypatch.setattr("lab.report.figures.home", lambda: tmp_path / "it's home")
    (tmp_path / "it's home" / "results").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Missing) as missing:
        figures.measured(script.TABLE, "gpu", script.COMMAND)
    words = Told(1, f"{missing.value}").command("fill it with: ")
    assert words == []  # they went into the table
    table = tmp_path / "it's home" / "results" / f"{script.TABLE}.gpu.json"
    words = table.read_text(encoding="utf-8").split("\0")[:-1]
    assert parsed(words)["as_json"]
    assert parsed(words).get("scale", "gpu") == "gpu"


# --- paths that are given ---


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, with recipes, a run and stories, seen from elsewhere."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    (home / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    sweep = {"question": "?", "endpoint": "?", "recipe": "~/tiny.yaml", "scales": {"cpu": {"budget": "?"}}}
    (home / "sweep.YAML").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    return home


def test_tilde_is_home_for_every_path(at_home: Path, lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab("data", "show", "~/tiny.yaml").status == 0
    assert lab("sweep", "status", "~/sweep.YAML", "--store=~/st").status == 0
    monkeypatch.setattr("lab.experiments.run.execute", lambda *_: None)
    assert f"{at_home}/st/" in lab("train", "~/tiny.yaml", "--store=~/st").said
    done = "figures", "polynomials_by_operations", "--sweep", "~/sweep.YAML", "--store=~/st"
    assert "fill them with: lab sweep run '~/sweep.YAML'" in lab(*done).said
    assert "no weights in" in lab("analyze", "weights", "~/sweep.YAML").said
    lab("figures", "study_lr", "--output=~/pictures")
    assert (at_home / "pictures" / "study_lr.png").is_file()
    run = RunDirectory(at_home / "st", tiny("objective.n=1"))
    run.path.mkdir(parents=True)
    run.config.write_text(dump_yaml(run.experiment), encoding="utf-8")
    assert find_run(f"~/st/{run.path.name}", Path("runs")).path == run.path
    (at_home / "a.TXT").write_text("A story.", encoding="utf-8")
    assert corpus.matched(["~/a.TXT"]) == corpus.matched(["~/*.TXT"]) == [at_home / "a.TXT"]


def test_what_is_there_is_meant(at_home: Path, tmp_path: Path) -> None:
    """A folder that is called ~, a file whose name is a pattern of others."""
    (tmp_path / "elsewhere" / "~").mkdir()
    for text in ("~/a.txt", "set [1].txt", "set 1.txt", "*.txt"):
        Path(text).write_text(text, encoding="utf-8")
    (at_home / "a.txt").write_text("", encoding="utf-8")
    for text in ("~/a.txt", "set [1].txt", "*.txt"):
        assert [file.read_text(encoding="utf-8") for file in corpus.matched([text])] == [text]
    assert len(corpus.matched(["s*.txt"])) == 2
    for folder in ("set [1]", "set 1"):
        Path(folder).mkdir()
        Path(folder, "b.txt").write_text(folder, encoding="utf-8")
    for text in ("set [1]/*.txt", f"{Path.cwd()}/set [1]/[ab].txt", "set [1]/**/b.txt"):
        assert [file.read_text(encoding="utf-8") for file in corpus.matched([text])] == ["set [1]"]
    assert [str(file) for file in corpus.matched(["set*/b.txt"])] == ["set 1/b.txt", "set [1]/b.txt"]


def test_a_sweep_file_may_end_as_it_likes(at_home: Path, lab: Any) -> None:
    (at_home / "sweep.YAML").rename(at_home / "sweep")
    assert "no weights in" in lab("analyze", "weights", "~/sweep").said
    assert "identity of a run" in lab("analyze", "weights", "~/none").said
