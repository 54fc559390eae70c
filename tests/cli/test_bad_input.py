"""Bad input of every kind, to every command: one line that says what is wrong and what is allowed; nothing is written.

The table's cases run in a folder of their own, with the files that they name. A content that is `FOLDER` is a folder in
place of a file.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lab.cli.main import main
from lab.experiments import store as stores
from lab.experiments.experiment import dump_yaml
from lab.home import home
from lab.report import studies
from tests.conftest import TINY, result_of, tiny

FOLDER = None
Content = str | bytes | None

POLYNOMIALS, STORIES, MIXTURE = (f"datasets/{name}.yaml" for name in ("polynomials", "stories", "stories_and_novels"))
TEXT, DEMO, LR = "datasets/text.yaml", "sweeps/demo_polynomials.yaml", "sweeps/study_lr.yaml"

SWEEP: dict[str, Any] = {
    "question": "Is it refused?",
    "endpoint": "None.",
    "baseline": TINY,
    "axes": {"seed": [0, 1]},
    "scales": {"cpu": {"budget": "nothing"}},
}
STUDY: dict[str, Any] = {
    **{part: SWEEP[part] for part in ("question", "endpoint", "baseline", "scales")},
    "arms": {"objective.n": [1, 2]},
    "space": {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}},
}
FROM_SOURCE = {"axes": {"init_from": ["first"]}, "sources": {"first": {}}}


class Case(NamedTuple):
    """A command, the files it finds, and what its error says."""

    name: str
    arguments: list[str]
    files: dict[str, Content]
    said: tuple[str, ...]


def command(line: str, *said: str, **files: Content) -> Case:
    """A command by itself; the files' names have no dots."""
    return Case(line, shlex.split(line), files, said)


def recipe(path: str, overrides: str, *said: str) -> Case:
    """Fields of a shipped recipe."""
    return Case(f"{Path(path).stem} {overrides}", ["data", "show", path, *shlex.split(overrides)], {}, (path, *said))


def field(override: str, *said: str) -> Case:
    """A field of a small experiment."""
    arguments = ["train", "tiny.yaml", override]
    return Case(f"tiny {override}", arguments, {"tiny.yaml": yaml.safe_dump(TINY)}, ("tiny.yaml: ", *said))


def override(text: str, *said: str) -> Case:
    """What is no override, or no YAML."""
    return Case(f"override {text}", ["train", POLYNOMIALS, text], {}, said)


def both(one: str, other: str, *said: str) -> Iterator[Case]:
    """Overrides of which one takes away what the other sets, in either order."""
    for first, second in ((one, other), (other, one)):
        for line in ("train tiny.yaml", "data show tiny.yaml", "bench batches"):
            arguments = [*line.split(), first, second]
            yield Case(f"{line} {first} {second}", arguments, {"tiny.yaml": yaml.safe_dump(TINY)}, said)


def sweep(changes: dict[str, Any], *said: str) -> Case:
    """Parts of a sweep that are changed; None leaves one out."""
    return changed("sweep status", SWEEP, changes, said)


def study(changes: dict[str, Any], *said: str) -> Case:
    """Parts of a study that are changed; None leaves one out."""
    return changed("study run", STUDY, changes, said)


def changed(line: str, whole: dict[str, Any], changes: dict[str, Any], said: tuple[str, ...]) -> Case:
    parts = {part: content for part, content in {**whole, **changes}.items() if content is not None}
    text = yaml.safe_dump(parts, sort_keys=False)
    return Case(f"{line} {json.dumps(changes)[:90]}", [*line.split(), "it.yaml"], {"it.yaml": text}, said)


def texts(name: str, content: Content, *said: str, file: str = "t.txt", fields: str = "") -> Case:
    """A file of stories."""
    arguments = ["data", "show", TEXT, f"task.files=[{file}]", "task.tokens=words", *fields.split()]
    return Case(f"text {name}", arguments, {file: content}, said)


ONE = tiny("objective.n=1")  # what runs begin from
RUN = f"runs/{ONE.label}"
CONFIG, DONE = (
    dump_yaml(ONE),
    json.dumps(result_of(ONE.identity)),
)

NO_SCORES = json.dumps({**result_of("a"), "scores": {}})


def begins_from(name: str, files: dict[str, Content], *said: str, fields: str = "") -> Case:
    """A run that begins from a run of which `files` are there."""
    arguments = ["train", "tiny.yaml", f"init_from={RUN}", *fields.split()]
    there = {f"{RUN}/{file}": content for file, content in files.items()}
    return Case(f"init_from {name}", arguments, {"tiny.yaml": yaml.safe_dump(TINY), **there}, said)


SWEEPS = (f"sweep run {DEMO}", f"sweep status {DEMO}", f"sweep show {DEMO}", f"sweep keep {DEMO}")


def kept(
    name: str,
    content: Content,
    *said: str,
    lines: tuple[str, ...] = (f"study show {LR}", f"study keep {LR}", "figures study_lr"),
    table: str = "studies/study_lr.cpu.jsonl",
) -> Iterator[Case]:
    """A table of results/ as each command that reads it finds it."""
    for line in lines:
        yield Case(f"{line} from {name}", line.split(), {f"results/{table}": content}, (f"results/{table}", *said))


def read_by_all(name: str, content: Content, *said: str) -> Iterator[Case]:
    """A YAML file as each command that reads one finds it."""
    for line in ("data show", "train", "sweep status", "sweep run", "study run", "figures study_lr --sweep"):
        yield Case(f"{line} {name}", [*line.split(), "it.yaml"], {"it.yaml": content}, ("it.yaml", *said))


def tale(number: int) -> str:
    return f"Once there was a fox. {number} times Mira met Tom, and then Mira and Tom ran.\n"


TALES = "<|endoftext|>\n".join(map(tale, range(12)))
JUNK = bytes(range(256))

CASES = [
    # Commands and their options
    command("trian", "trian", "train"),
    command("data shwo", "shwo", "show"),
    command("sweep rnu", "rnu", "run"),
    command("study kepe", "kepe", "keep"),
    command("bench memroy", "memroy", "memory"),
    command("data show", "RECIPE"),
    command("train", "RECIPE"),
    command("sweep keep", "SWEEP"),
    command(f"sweep run {DEMO} --only abc", "--only: 'abc' is no run of the sweep"),
    command("study keep", "STUDY"),
    command(f"data show {POLYNOMIALS} --split tset", "--split", "tset", "test"),
    command(f"data show {POLYNOMIALS} --operations 7", "--operations: 7", "1, 2, 3, 4, 5"),
    command(f"data show {STORIES} --operations 1", "--operations", "names, characters"),
    command(f"data show {POLYNOMIALS} --split test --operations 3 --count 2001", "--count: 2001", "2000"),
    command(f"data show {POLYNOMIALS} --count 0", "--count", "0", "1"),
    command(f"data show {POLYNOMIALS} --count many", "--count", "many", "integer"),
    command(f"data show {POLYNOMIALS} --split test --start 90000", "--start: 90000", "20000"),
    command(f"data show {POLYNOMIALS} --cuont 3", "--cuont", "--count"),
    command("data show datasets/nothing.yaml", "datasets/nothing.yaml: no such file", POLYNOMIALS),
    command("data show datasets/polynomial.yaml", "no such file", f"did you mean '{POLYNOMIALS}'?"),
    command("data show datasets", "datasets: a folder", datasets=FOLDER),
    command(f"data show {'x' * 300}.yaml", "x.yaml", "name too long"),
    command("models --objective paralel", "--objective: 'paralel'", "did you mean 'parallel'?"),
    command("models --vocabulary 0", "--vocabulary", "0", "1"),
    command("models --context 99999999999999999999", "--context", "16777216"),
    command("models parallel", "unexpected", "parallel"),
    command(f"train {POLYNOMIALS} --time-limit soon", "--time-limit", "soon", "1h30m"),
    command(f"train {POLYNOMIALS} --time-limit 10", "--time-limit", "'10'", "90s"),
    command(f"train {POLYNOMIALS} --store file", "--store", "'file' is a file", file=""),
    command(f"train {POLYNOMIALS} --store file/runs", "--store", "'file/runs'", "'file' is no folder", file=""),
    command(f"sweep run {DEMO} --store file/a/b", "--store", "'file/a/b'", "'file' is no folder", file=""),
    command(f"sweep show {DEMO} --table file/x.csv", "--table", "'file/x.csv'", "'file' is no folder", file=""),
    command("figures --output file/x", "--output", "'file/x'", "'file' is no folder", file=""),
    command("train sweeps/demo_stories.yaml", "sweeps/demo_stories.yaml: question: unknown field", "allowed: task"),
    command(f"sweep run {DEMO} --workers 0", "--workers", "0", "256"),
    command(f"sweep run {DEMO} --workers two", "--workers", "'two'"),
    command(f"sweep run {DEMO} --time-limit -1s", "--time-limit", "'-1s'", "9m"),
    command(f"sweep run {DEMO} --scale cup", DEMO, "has no 'cup'; allowed: cpu", "did you mean 'cpu'?"),
    command(f"sweep run {POLYNOMIALS}", f"{POLYNOMIALS}: task: unknown field; allowed: question"),
    command("sweep show sweeps/demo_storeis.yaml", "demo_storeis", "did you mean 'sweeps/demo_stories.yaml'?"),
    command(f"sweep show {DEMO} --checkpoint last", "--checkpoint", "'last'", "'final', 'best', 'epoch_oracle'"),
    command(f"sweep show {DEMO} --table folder", "--table", "'folder' is a directory", folder=FOLDER),
    command(f"sweep status {DEMO} --store file", "--store", "'file' is a file", file=""),
    command(f"sweep keep {LR}", f"{LR}: ", "unknown field; allowed: "),
    command(f"study run {LR} --workers 257", "--workers", "257", "256"),
    command(f"study run {LR} --time-limit ''", "--time-limit", "''", "9m"),
    command(f"study show {LR} --scale cup", LR, "has no 'cup'; allowed: cpu, gpu", "did you mean 'cpu'?"),
    command(f"study keep {DEMO}", f"{DEMO}: axes: unknown field; allowed: question"),
    command("figures polynomials_by_operation", "did you mean 'polynomials_by_operations'?"),
    command("figures polynomials_by_operations nothing", "'nothing' is not a figure", "study_lr"),
    command("figures polynomials_by_operations --scale cup", "has no 'cup'; allowed: cpu, gpu, paper"),
    command(f"figures polynomials_by_operations --sweep {LR}", f"{LR}: ", "unknown field"),
    command(f"figures memory_by_order --sweep {DEMO}", f"--sweep: '{DEMO}'", "lab bench memory"),
    command("figures --output file", "--output", "'file' is a file", file=""),
    command("bench data --count 0", "--count", "0", "2048"),
    command("bench batches --threads 0", "--threads", "0", "1024"),
    command("bench batches task.primes=7", "task.primes", "did you mean 'prime'?"),
    command("bench memory --limit 8GB", "--limit", "8GB", "8GiB"),
    command("bench memory --size 2M", "--size", "2M", "'1M'"),
    command("bench memory --order fuesd", "--order", "fuesd", "fused"),
    command("bench memory --objective paralel", "--objective", "did you mean 'parallel'?"),
    command("bench memory --objective next_token --n 2", "n: 2", "1"),
    command("bench memory --tokens 100 --context 64", "--tokens: 100", "multiple", "64"),
    command("bench memory --size 1M --n 5", "--n: 5", "5 layers", "at most 4"),
    command("bench memory --n 0", "--n", "0"),
    command("bench train --steps 0", "--steps", "0"),
    command("bench train --size 3M --n 8", "--n: 8", "at most 3"),
    command("bench train --vocabulary 99999999999999999999", "--vocabulary", "16777216"),
    command("bench train --device gpu", "--device", "'gpu'", "'cuda'"),
    command("bench train --size swepes", "--size: 'swepes'", "1M", "did you mean 'sweeps'?"),
    command("bench train --size sweeps --tokens 100", "--tokens: 100", "multiple", "64"),
    command("bench train --size sweeps --n 6", "--n: 6", "at most 5"),
    command("bench train --only heads --profile", "--profile", "--only heads"),
    # Databases of studies
    command(f"study run {LR} --storage nonsense", "storage: 'nonsense' cannot be opened"),
    command(f"study run {LR} --storage ''", "storage: '' cannot be opened"),
    command(f"study run {LR} --storage sqlite://", "storage: sqlite://", "should name a file"),
    command(f"study show {LR} --storage sqlite:///:memory:", "storage: :memory:", "should name a file"),
    command(f"study keep {LR} --storage sqlite:///folder", "storage: folder cannot be opened", folder=FOLDER),
    command(f"study run {LR} --storage sqlite:///file", "storage: file", "not a database", file="junk\n" * 99),
    command(f"study run {LR} --storage sqlite:////proc/none/x.db", "/proc/none/x.db cannot be opened"),
    command(f"study run {LR} --storage sqlite:///file/x.db", "storage: file/x.db", "File exists", file=""),
    command(f"study show {LR} --storage oracle2://me:secret@host/name", "oracle2://me:***@host/name cannot be opened"),
    command(f"study run {LR} --storage mysql://me:secret@host/name", "mysql://me:***@host/name", "driver"),
    command(f"study run {LR} --storage postgresql://me:secret@127.0.0.1:1/name", "me:***@127.0.0.1:1", "refused"),
    command(f"study run {LR} --storage postgresql://me:secret@host:port/name", "me:***@host:port/name", "port"),
    # Analyses and costs
    command("analyze weight", "No such command 'weight'", "weights"),
    command("analyze weights", "Missing argument 'RUN|SWEEP'"),
    command("analyze weights nothing", "RUN: 'nothing' is not allowed", "identity of a run in runs"),
    command("analyze heads 0123456789abcdef", "RUN: '0123456789abcdef' is not allowed"),
    command("analyze information sweeps/choicse.yaml", "no such file", "did you mean 'sweeps/choices.yaml'?"),
    command("analyze information sweeps/choices.yaml --scale gpu", "scales: has no 'gpu'", "allowed: cpu"),
    command("analyze weights nothing --examples 1", "--examples", "1 is not in the range"),
    command("analyze information nothing --positions 0", "--positions", "0 is not in the range"),
    command("analyze generation nothing --samples 1", "--samples", "1 is not in the range"),
    command("analyze generation nothing --temperature 0", "--temperature", "0.0 is not in the range"),
    command("decode nothing", "RUN: 'nothing' is not allowed", "identity of a run in runs"),
    command("decode nothing --tree a,b", "--tree", "'a,b' is not allowed: should be whole numbers"),
    command("cost trianing", "No such command 'trianing'", "training"),
    command("cost training llama2-7b", "SHAPE: 'llama2-7b'", "did you mean 'llama-2-7b'?"),
    command("cost decoding --device A1000", "--device: 'A1000'", "did you mean 'A100'?"),
    command("cost decoding --peak 3", "--bandwidth: missing"),
    # Overrides
    override("model.size", "'model.size'", "key.sub=value"),
    override("=3", "'=3'", "key.sub=value"),
    override("model..size=1M", "'model..size=1M'", "key.sub=value"),
    override("train.betas=[0.9", "override 'train.betas=[0.9', line 1: not YAML"),
    override("seed=!!int x", "override 'seed=!!int x', line 1: not YAML: 'x' is no int"),
    override("task.pause=3 # for now", "'# for now' is no part of the value in YAML; text is put in quotes"),
    override("init_from=---", "override 'init_from=---': '---' is no part of the value"),
    field("model.layers=", "model: needs all of layers, width and heads"),
    field("model=", "model: null", "mapping"),
    field("seed=", "seed: null", "integer"),
    field("task.prime.x=3", 'task.prime: {"x": 3}', "integer"),
    *both("task.pause=1", "task.pause=2", "task.pause: is set by 'task.pause=", " and by 'task.pause=", "set once"),
    *both("train={lr: 1e-3, clip: 2}", "train.lr=2e-3", "train.lr: is set by "),
    *both("task.operators={neg: 1}", "task.operators.add=2", "task.operators.add: is set by ", "and all of task."),
    *both("objective={name: parallel, n: 1}", "objective.n=2", "objective.n: is set by "),
    *both("objective=parallel", "objective=next_token", "objective.name: is set by "),
    *both("objective.weights=", "objective.weights.ratio=1", "all of objective.weights by 'objective.weights='"),
    Case(
        "bench batches execution.threads=3",
        ["bench", "batches", "execution.threads=3"],
        {},
        ("execution.threads: is not allowed: what is measured has task, model",),
    ),
    # Fields of every experiment
    field("trian.lr=1", "trian: unknown field", "did you mean 'train'?"),
    field("objective.n=true", "objective.n: true", "integer"),
    field("objective.n=2.5", "objective.n: 2.5", "integer"),
    field("objective.n='2'", 'objective.n: "2"', "integer"),
    field("objective.n=0", "objective.n: 0", "greater than or equal to 1"),
    field("objective.n=4", "objective.n: 4", "4 layers", "at most 3"),
    field("objective=paralel", "objective: 'paralel'", "next_token, parallel", "did you mean 'parallel'?"),
    field("objective=[1]", "objective: [1]", "mapping"),
    field("objective={n: 3, name: causal, extra_layer: 1}", "objective.extra_layer: unknown field", "extra_layers"),
    recipe(POLYNOMIALS, "objective.n=2", "objective.name: missing: should be one of next_token, parallel"),
    field("objective=causal", "objective.n: missing: Future tokens"),
    field("objective.reduction=man", 'objective.reduction: "man"', "did you mean 'mean'?"),
    field("objective.weights={name: listed, values: [1]}", "objective.weights.values: [1.0]", "should be 2 numbers"),
    field("objective.weights=lsited", "objective.weights: 'lsited'", "did you mean 'listed'?"),
    field("model.size=1M", "model: takes size", "not both"),
    field("model={size: 2M, layers: null, width: null, heads: null}", 'model.size: "2M"', "'1M'", "did you mean"),
    field("model.heads=3", "model: width 16", "3 heads of even width"),
    field("model.layers=null", "model: needs all of layers, width and heads"),
    field("model.layers=1", "model.layers: 1", "greater than or equal to 2"),
    field("model=3", "model: 3", "mapping"),
    field("train.lr=fast", 'train.lr: "fast"', "number"),
    field("train.lr=-1", "train.lr: -1", "greater than 0"),
    field("train.lr=.nan", "train.lr: NaN", "finite"),
    field("train.lr=.inf", "train.lr: Infinity", "finite"),
    field("train.warmup=40", "train: warmup 40 must be below steps 40"),
    field("train.betas=[0.9]", "train.betas.1: missing"),
    field("train.betas=[1.0, 0.9]", "betas [1.0, 0.9]", "below 1"),
    field("train.flops=1", "train.flops: 1 is not allowed: lasts 0 steps", "the 5 of warmup"),
    field("train.context=99999999999999999999", "train.context: 99999999999999999999", "1048576"),
    field("train.steps=99999999999999999999", "train.steps: 99999999999999999999", "1000000000"),
    field("train.flops=1e+300", "train.flops: 1e+300", "less than or equal to 1000"),
    field("train.context=8", "train.context: 8", "12 tokens"),
    field("evaluation.evrey=1", "evaluation.evrey: unknown field", "did you mean 'every'?"),
    field("seed=-1", "seed: -1", "greater than or equal to 0"),
    field("precision=fp16", 'precision: "fp16"', "'fp32' or 'bf16'"),
    field("execution.device=gpu", 'execution.device: "gpu"', "'cuda'"),
    field("execution.threads=0", "execution.threads: 0", "greater than or equal to 1"),
    # Polynomials
    field("task=stroies", "task: 'stroies'", "polynomials, stories", "did you mean 'stories'?"),
    field("task.prim=5", "task.prim: unknown field", "did you mean 'prime'?"),
    field("task.prime=4", "task.prime: 4", "prime from 2 to 65521"),
    field("task.degree=65", "task.degree: 65", "less than or equal to 64"),
    field("task.operators={ad: 1}", 'task.operators: "ad"', "did you mean 'add'?"),
    field("task.operators={1: 1}", 'task.operators: "1"', "'neg', 'add', 'mul' or 'compose'"),
    field("task.operators={}", "task.operators: {}", "positive weight"),
    field("task.operators={add: -1}", "task.operators.add: -1", "greater than or equal to 0"),
    field("task.operators={add: .inf}", "task.operators.add: Infinity", "finite"),
    field("task.train_operations=[3, 1]", "task.train_operations: [3, 1]", "the least and the most"),
    field("task.train_operations=[1, 99]", "task.train_operations: [1, 99]", "from 1 to 64"),
    field("task.train_operations=3", "task.train_operations: 3", "list"),
    field("task.test_examples=1000000000000", "task.test_examples: 1000000000000", "1000000"),
    field("task.syntax=postfix", 'task.syntax: "postfix"', "did you mean 'prefix'?"),
    # Stories
    recipe(STORIES, "task.names.fresh=1.5", "task.names.fresh: 1.5", "less than or equal to 1"),
    recipe(STORIES, "task.names.pool=9000", "task.names.pool: 9000", "720 names"),
    recipe(STORIES, "task.names.syllables=900 task.names.shared=false", "task.names.syllables: 900", "at most 800"),
    recipe(STORIES, "task.tokens=word", "task.tokens: 'word'", "words, bytes, bpe", "did you mean 'words'?"),
    recipe(STORIES, "task.tokens=bytes task.names.unseen=0.5", "task.names.unseen: 0.5", "only word tokens"),
    recipe(STORIES, "'task.tokens={name: bpe, vocabulary: 9}'", "task.tokens.vocabulary: 9", "300"),
    recipe(STORIES, "task.characters=[4,1]", "task.characters: [4, 1]", "from 1 to 4"),
    recipe(STORIES, "task.length=[5,20]", "task.length: [5, 20]", "up to 40"),
    recipe(STORIES, "train.context=100", "train.context: 100", "160 tokens"),
    recipe(STORIES, "task.prime=7", "task.prime: unknown field; allowed: name, tokens, names"),
    # Mixtures
    recipe(MIXTURE, "task.scored=novel", 'task.scored: "novel"', "stories, novels"),
    recipe(MIXTURE, "task.parts=3", "task.parts: 3", "mapping"),
    recipe(MIXTURE, "task.parts.novels=", "task.parts.novels: null", "mapping"),
    recipe(MIXTURE, "task.parts.novels.weight=0", "task.parts.novels.weight: 0", "greater than 0"),
    recipe(MIXTURE, "task.parts.x.weight=1", "task.parts.x.task: missing: The part's task"),
    recipe(MIXTURE, "task.parts.novels.task=story", "task.parts.novels.task: 'story'", "did you mean 'stories'?"),
    recipe(MIXTURE, "task.parts.novels.task.lenght=3", "task.parts.novels.task.lenght", "did you mean 'length'?"),
    recipe(MIXTURE, "task.parts.novels.task.names.pool=9000", "task.parts.novels.task.names.pool: 9000", "900 names"),
    recipe(MIXTURE, "'task.parts.novels.task={name: text, files: [a]}'", "task.parts.novels.task.files: no file"),
    # Text files
    recipe(TEXT, "task.files=[none.txt]", "task.files: no file matches 'none.txt'"),
    recipe(TEXT, "task.files=none.txt", 'task.files: "none.txt"', "list"),
    recipe(TEXT, "task.files=[]", "task.files: []", "at least 1 item"),
    texts("folder", FOLDER, "task.files: 't.txt' should be a file that ends in .txt"),
    texts("ending", TALES, "task.files: 't.csv' should be a file that ends in .txt or .parquet", file="t.csv"),
    texts("empty", "", "task.files: t.txt", "it is empty"),
    texts("white", " \n\n", "task.files: t.txt", "it holds no story"),
    texts("not UTF-8", TALES.encode() + b"\xff", f"task.files: t.txt is not allowed: byte {len(TALES)} is not UTF-8"),
    texts("binary", JUNK, "task.files: t.txt", "it is no text"),
    texts("no parquet", "junk", "task.files: t.parquet", "cannot be read as parquet", file="t.parquet"),
    texts("no names", "Once.\n<|endoftext|>\nThe end.", "task.files: t.txt", "no story names a character twice"),
    texts("other separator", TALES, "task.separator: '====='", "t.txt one story", fields="task.separator====== "),
    texts("few stories", TALES, "task.test_examples: 100", "12 of 12 different stories"),
    texts("other files", TALES, "task.fingerprint: 'abc'", "null takes any", fields="task.fingerprint=abc"),
    # YAML files, as every command reads them
    *read_by_all("folder", FOLDER, "a folder, not a file"),
    *read_by_all("empty", "", "not a mapping from field names to values"),
    *read_by_all("list", "- task\n- model\n", "not a mapping from field names to values"),
    *read_by_all("scalar", "polynomials", "not a mapping from field names to values"),
    *read_by_all("not UTF-8", b"a: \xff", "not readable as text", "0xff"),
    *read_by_all("binary", JUNK, "not readable as text"),
    *read_by_all("control character", "a: \x00", "not YAML", "#x0000"),
    *read_by_all("syntax", "task:\n  name: [polynomials\n", "line 3: not YAML"),
    *read_by_all("twice", "seed: 1\ntask: {}\nseed: 2\n", "line 3: not YAML: 'seed' is given twice"),
    *read_by_all("alias within itself", "a: &a [*a]", "can be configured: Circular reference"),
    *read_by_all("set", "a: !!set {b}", "line 1: not YAML", "yaml.org,2002:set"),
    *read_by_all("no such type", "a: 1\nb: !!bool maybe", "line 2: not YAML: 'maybe' is no bool"),
    *read_by_all("python", "a: !!python/object/apply:os.getcwd []", "line 1: not YAML", "python/object"),
    *read_by_all("half a character", r'a: "\ud800"', "can be configured", "surrogates"),
    *read_by_all("deep", "a: " + "[" * 500, "nested too deeply"),
    *read_by_all("unknown field", "qestion: why\nsede: 1", "unknown field; allowed: ", "did you mean"),
    # Sweeps
    sweep({"axis": {}}, "it.yaml: axis: unknown field", "did you mean 'axes'?"),
    sweep({"question": None}, "it.yaml: question: missing: The question of the sweep."),
    sweep({"axes": {"sede": [1]}}, "it.yaml, scale cpu: sede: unknown field", "did you mean 'seed'?"),
    sweep({"axes": {"objective.m": [1]}}, "it.yaml, scale cpu: objective.m: unknown field"),
    sweep({"axes": {"arm": {"a": {"objectiv": 1}}}}, "it.yaml, scale cpu: objectiv: unknown field", "'objective'"),
    sweep({"axes": {"arm": {"a": {"seed": 1}}}}, "it.yaml: axes.arm: seed: 1 is not allowed"),
    sweep({"axes": {"condition": [{}]}}, "it.yaml: axes.condition: should be a mapping from names to mappings"),
    sweep({"axes": {"trian": {"a": {"lr": 1}}}}, "it.yaml, scale cpu: trian: unknown field", "'train'"),
    sweep({"primary": {"where": {"operations": True}, "margin": 0.1}}, "it.yaml: primary.where.operations: true"),
    sweep({"primary": {"where": {}, "margin": 0}}, "it.yaml: primary.margin: 0"),
    sweep({"axes": {"arm": {"a": 3}}}, "it.yaml: axes.arm: 3 is not allowed", "a mapping of fields"),
    sweep({"axes": {"seed": []}}, "it.yaml: axes.seed: []", "at least one value"),
    sweep({"axes": {"seed": 3}}, "it.yaml: axes.seed: 3", "list of values"),
    sweep({"axes": ["seed"]}, 'it.yaml: axes: ["seed"]', "mapping"),
    sweep({"axes": {"seed": [0, 0]}}, "it.yaml: axes: ", "are the same experiment; name each value once"),
    sweep({"axes": {"train.lr": {"one": 1e-3, "same": 0.001}}}, "axes: ", "one", "same", "same experiment"),
    sweep({"axes": {"execution.threads": [1, 2]}}, "are the same experiment"),
    sweep({"axes": {"objective.n": [1, 4]}}, "it.yaml, scale cpu: objective.n: 4", "at most 3"),
    sweep({"axes": {"objective": {"a": {"name": "prallel"}}}}, "objective: 'prallel'", "did you mean 'parallel'?"),
    sweep({"recipe": "datasets/none.yaml"}, "it.yaml: recipe: datasets/none.yaml: no such file", POLYNOMIALS),
    sweep({"recipe": DEMO}, "it.yaml, scale cpu: question: unknown field"),
    sweep({"baseline": {}}, "it.yaml, scale cpu: task: missing"),
    sweep({"baseline": [1]}, "it.yaml: baseline: [1]", "mapping"),
    sweep({"scales": {}}, "it.yaml: scales: {}", "at least 1 item"),
    sweep({"scales": {"gpu": {"budget": "x"}}}, "it.yaml: scales: has no 'cpu'; allowed: gpu"),
    sweep({"scales": {"cpu": {}}}, "it.yaml: scales.cpu.budget: missing: Cost of the scale"),
    sweep({"scales": {"cpu": {"budget": "x", "axes": {"seed": 1}}}}, "it.yaml: scales.cpu.axes.seed: 1", "list"),
    sweep({"axes": {"init_from": ["first"]}}, "init_from: 'first' is no source; the sweep has no sources"),
    sweep({**FROM_SOURCE, "axes": {"init_from": ["frist"]}}, "init_from: 'frist' is no source; allowed: first"),
    sweep({**FROM_SOURCE, "sources": {"first": {"init_from": "first"}}}, "sources.first.init_from: is not allowed"),
    sweep({**FROM_SOURCE, "sources": {"first": {"trian": {}}}}, "source first: trian: unknown field", "'train'"),
    sweep({**FROM_SOURCE, "sources": {"first": {"task": {"prime": 5}}}}, "task: its token 3 is '-'", "vocabulary"),
    sweep({**FROM_SOURCE, "sources": {"first": {"model": {"width": 32}}}}, "model.width: 16", "should be 32, to fit"),
    sweep({"source": {}}, "it.yaml: source: unknown field", "did you mean 'sources'?"),
    sweep(
        {"axes": {"train.lr": [1e-3], "arm": {"fast": {"train": {"lr": 5e-3}}, "slow": {}}}},
        "it.yaml: train.lr: is set by axes.train.lr and by axes.arm.fast; a field is set once",
    ),
    sweep(
        {"axes": {"train.lr": [1e-3], "train": {"fast": {"lr": 5e-3}}}},
        "it.yaml: train.lr: is set by axes.train.lr and by axes.train.fast",
    ),
    sweep(
        {"axes": {"condition": {"a": {}, "b": {"seed": 1}}}},
        "it.yaml: axes.condition: seed: 1 is not allowed: arms are paired",
    ),
    sweep(
        {"axes": {"condition": {"a": {"task": {"pause": 1}}}, "arm": {"b": {"task": {"pause": 1}}}}},
        "it.yaml: task.pause: is set by axes.condition.a and by axes.arm.b",
    ),
    sweep(
        {"axes": {"task.operators.add": [2], "arm": {"a": {"task": {"operators": {"neg": 1}}}}}},
        "it.yaml: task.operators.add: is set by axes.task.operators.add, and all of task.operators by axes.arm.a",
    ),
    sweep(
        {"axes": {"objective.n": [2], "objective": {"a": {"name": "parallel", "n": 1}}}},
        "it.yaml: objective.n: is set by axes.objective.n and by axes.objective.a",
    ),
    sweep({"axes": {"train.steps": [30], "train.flops": [1e11]}}, "train.steps: 30 is not allowed beside train.flops"),
    sweep(
        {"axes": {"train.lr": [1]}, "scales": {"cpu": {"budget": "x", "axes": {"arm": {"a": {"train": {"lr": 2}}}}}}},
        "it.yaml: train.lr: is set by axes.train.lr and by axes.arm.a",
    ),
    sweep(
        {"axes": {"train.lr": [1]}, "scales": {"cpu": {"budget": "x", "baseline": {"train": {"lr": 2}}}}},
        "it.yaml: scales.cpu.baseline.train.lr: 2 is not allowed: the axes under `axes` move it in every run",
    ),
    sweep(
        {**FROM_SOURCE, "axes": {"init_from": ["first"], "seed": [0]}, "sources": {"first": {"seed": 3}}},
        "it.yaml: seed: is set by axes.seed and by sources.first",
    ),
    sweep({**FROM_SOURCE, "sources": {"first": {}, "frist": {}}}, "sources.frist: is not allowed: no run begins from"),
    # Studies
    study({"spaces": {}}, "it.yaml: spaces: unknown field", "did you mean 'space'?"),
    study({"space": {}}, "it.yaml: space: {} is not allowed: needs at least one field"),
    study({"space": {"train.lr": {"low": 0.1, "high": 0.01}}}, "is not allowed: low 0.1 must be below high 0.01"),
    study({"space": {"train.lr": {"low": 0, "high": 1, "log": True}}}, "low 0 must be above 0, for log"),
    study({"space": {"train.lr": {"low": 0.1}}}, 'space.train.lr: {"low": 0.1}', "low and high, or choices"),
    study({"space": {"train.lr": {"low": 0.1, "high": 1, "choices": [1]}}}, "choices have no low"),
    study({"space": {"train.lr": {"low": 0.1, "hihg": 1}}}, "space.train.lr.hihg: unknown field; allowed: low, high"),
    study({"space": {"train.lr": {"low": "x", "high": 1}}}, 'space.train.lr.low: "x"', "number"),
    study({"space": {"train.lr": {"low": 0.1, "high": float("inf")}}}, "space.train.lr.high: Infinity", "finite"),
    study({"space": {"train.lr": {"choices": []}}}, "choices should be a list or a mapping, of one choice"),
    study({"space": {"train.lr": {"choices": 5}}}, "choices should be a list or a mapping, of one choice"),
    study({"space": {"train.lr": {"choices": [1, 1]}}}, "space.train.lr: ", "choices should differ"),
    study({"space": {"train.betas": {"choices": [[0.9, 0.9]]}}}, "choices that are lists or mappings need names"),
    study({"space": {"train.rl": {"low": 0.1, "high": 1}}}, "it.yaml, scale cpu: train.rl: unknown field", "'lr'"),
    study({"space": {"train.lr": {"low": -1, "high": 1}}}, "train.lr: -1", "greater than 0"),
    study({"space": {"train.clip": {"choices": [1, "high"]}}}, 'train.clip: "high"', "number"),
    study({"space": {"train.warmup": {"low": 2.5, "high": 8}}}, "train.warmup: 2.5", "integer"),
    study({"space": {"objective.n": {"choices": [2, 4]}}, "arms": {}}, "objective.n: 4", "at most 3"),
    study({"space": {"objective.n": {"choices": [1, 2]}}}, "objective.n: is set by arms.objective.n and by space.obj"),
    study({"space": {"objective": {"choices": {"a": "next_token"}}}}, "objective.n: 2 is not allowed: should be 1"),
    study(
        {"space": {**STUDY["space"], "train.clip": {"choices": [1], "when": {"train.lr": 1}}}},
        "space.train.clip.when: 'train.lr' is not among the choices before it; there are none",
    ),
    study(
        {"space": {"train.clip": {"choices": [1, 2]}, "train.lr": {"choices": [1], "when": {"train.clip": 3}}}},
        "space.train.lr.when.train.clip: '3' is no choice; allowed: 1, 2",
    ),
    study(
        {"arms": {"arm": {"fast": {"train": {"lr": 5e-3}}, "slow": {}}}},
        "it.yaml: train.lr: is set by arms.arm.fast and by space.train.lr; a field is set once",
    ),
    study(
        {"arms": {"train.clip": [1.0], "arm": {"a": {"train": {"clip": 2.0}}}}},
        "it.yaml: train.clip: is set by arms.train.clip and by arms.arm.a",
    ),
    study(
        {"space": {"train": {"choices": {"a": {"lr": 1, "clip": 2}}}, "train.lr": {"choices": [2]}}},
        "it.yaml: train.lr: is set by space.train.a and by space.train.lr",
    ),
    study(
        {"scales": {"cpu": {"budget": "x", "baseline": {"train": {"lr": 2}}}}},
        "it.yaml: scales.cpu.baseline.train.lr: 2 is not allowed: `arms` or `space` moves it in every run",
    ),
    study({"baseline": {**TINY, "seed": 3}}, "it.yaml: baseline.seed: is not allowed: `seeds` says"),
    study({"scales": {"cpu": {"budget": "x", "baseline": {"seed": 3}}}}, "it.yaml: baseline.seed: is not allowed"),
    study({"space": {"train.clip": {"choices": [1, 1.0]}}}, "space.train.clip: ", "choices should differ"),
    study({"space": {"seed": {"low": 1, "high": 9}}}, "space.seed: is not allowed: `seeds` says"),
    study({"arms": {"seed": [1, 2]}}, "arms.seed: is not allowed: `seeds` says"),
    study({"arms": {"objective.n": []}}, "arms.objective.n: should be a list or a mapping, of one value"),
    study({"arms": {"objective.n": 2}}, "arms.objective.n: should be a list or a mapping, of one value"),
    study({"arms": {"objective": [{"name": "next_token"}]}}, "arms.objective: values that are lists or mappings need"),
    study({"arms": {"objective.n": [1, 1]}}, "it.yaml: arms: objective.n=1 and objective.n=1 are the same"),
    study({"arms": {"objective.m": [1, 2]}}, "it.yaml, scale cpu: objective.m: unknown field"),
    study({"seeds": []}, "it.yaml: seeds: []", "at least 1 item"),
    study({"seeds": [1, 1]}, "it.yaml: seeds: [1, 1] is not allowed: name each seed once"),
    study({"trials": 0}, "it.yaml: trials: 0", "greater than or equal to 1"),
    study({"trials": 10**9}, "it.yaml: trials: 1000000000", "100000"),
    study({"scales": {"gpu": {"budget": "x"}}}, "it.yaml: scales: has no 'cpu'; allowed: gpu"),
    study({"scales": {"cpu": {}}}, "it.yaml: scales.cpu.budget: missing"),
    study({"recipe": "datasets/none.yaml"}, "it.yaml: recipe: datasets/none.yaml: no such file"),
    study({"baseline": {}}, "it.yaml, scale cpu: task: missing"),
    # Runs that others begin from
    field("init_from=before", "init_from: 'before'", "directory, label or identity of a run in runs"),
    field("init_from=3", "init_from: 3", "string"),
    field(f"init_from={ONE.identity}", f"init_from: '{ONE.identity}'", "identity of a run in runs"),
    begins_from("config is a folder", {"config.yaml": FOLDER}, "init_from: ", "run in runs"),
    begins_from("config is empty", {"config.yaml": ""}, f"{RUN}/config.yaml: not a mapping"),
    begins_from("config is binary", {"config.yaml": JUNK}, f"{RUN}/config.yaml: not readable as text"),
    begins_from("config is cut off", {"config.yaml": CONFIG[:30] + "["}, f"{RUN}/config.yaml", "not YAML"),
    begins_from("config was changed", {"config.yaml": CONFIG.replace("seed: 0", "seed: 7")}, "init_from: "),
    begins_from("other width", {"config.yaml": CONFIG}, "model.width: 32", "should be 16", fields="model.width=32"),
    begins_from("other task", {"config.yaml": CONFIG}, "task: its token 3", ONE.identity, fields="task.prime=5"),
    begins_from("not finished", {"config.yaml": CONFIG}, f"init_from: {RUN} is not finished", "lab train"),
    begins_from(
        "result is junk",
        {"config.yaml": CONFIG, "result.json": "junk"},
        f"init_from: {RUN}/result.json: is not the result of run {ONE.identity}",
    ),
    begins_from(
        "result is a folder",
        {"config.yaml": CONFIG, "result.json": FOLDER},
        f"init_from: {RUN}/result.json: is not the result of run {ONE.identity}",
    ),
    begins_from(
        "no weights",
        {"config.yaml": CONFIG, "result.json": DONE},
        f"init_from: {RUN}/weights/final.safetensors is gone",
    ),
    begins_from(
        "weights are empty",
        {"config.yaml": CONFIG, "result.json": DONE, "weights/final.safetensors": ""},
        f"init_from: {RUN}/weights/final.safetensors cannot be read",
    ),
    begins_from(
        "weights are junk",
        {"config.yaml": CONFIG, "result.json": DONE, "weights/final.safetensors": JUNK},
        f"init_from: {RUN}/weights/final.safetensors cannot be read",
    ),
    # Tables of results/
    *kept("no result", "{}\n", "x.jsonl, line 1: not a run's result", lines=SWEEPS, table="x.jsonl"),
    *kept("no scores", NO_SCORES, "x.jsonl, line 1: not a run's result", lines=SWEEPS, table="x.jsonl"),
    *kept("folder", FOLDER, "x.jsonl: cannot be read: Is a directory", lines=SWEEPS, table="x.jsonl"),
    *kept("binary", JUNK, "x.jsonl, line 1: not a run's result", lines=SWEEPS, table="x.jsonl"),
    *kept("no JSON", "\njunk", "x.jsonl, line 1: not a run's result", lines=SWEEPS, table="x.jsonl"),
    *kept("no JSON", "junk", "not the trials of sweeps/study_lr.yaml, scale cpu"),
    *kept("no trials", "[]\n3\n", "not the trials of sweeps/study_lr.yaml, scale cpu"),
    *kept("folder", FOLDER, "not the trials of sweeps/study_lr.yaml, scale cpu"),
    *kept("binary", JUNK, "not the trials of sweeps/study_lr.yaml, scale cpu"),
]  # fmt: skip


def lay(folder: Path, files: dict[str, Content]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is FOLDER:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def content(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def left(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of the `lab` command."""
    monkeypatch.setattr(sys, "argv", ["lab", *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in; what is cached is elsewhere."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return here


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_line_and_status_two_and_leaves_nothing(
    case: Case,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    lay(folder, case.files)
    before = content(folder)
    if any(name.startswith("results/") for name in case.files):
        for module in (stores, studies):
            monkeypatch.setattr(module, "home", lambda: folder)
    status = left(case.arguments, monkeypatch)
    printed, said = capfd.readouterr()
    lines = [line for line in said.splitlines() if not line.startswith("runs/")]  # `lab train` says where it is to run
    assert status == 2, said
    assert not printed
    assert len(lines) == 1, said
    assert lines[0].startswith("lab: ")
    assert "secret" not in said
    for part in case.said:
        assert part in lines[0]
    assert all(lines[0].count(name) <= 1 for name in case.files if "." in name)
    assert content(folder) == before
    assert not [each for each in recwarn if not issubclass(each.category, DeprecationWarning)]


def test_every_command_has_a_case() -> None:
    commands = {"data show", "models", "train", "figures", "decode"}
    commands |= {f"sweep {each}" for each in ("run", "status", "show", "keep")}
    commands |= {f"study {each}" for each in ("run", "show", "keep")}
    commands |= {f"bench {each}" for each in ("data", "batches", "memory", "train")}
    commands |= {f"analyze {each}" for each in ("weights", "information", "heads", "generation")}
    commands |= {f"cost {each}" for each in ("training", "decoding")}
    for each in commands:
        assert any(" ".join(case.arguments).startswith(f"{each} ") for case in CASES), each
    assert len({case.name for case in CASES}) == len(CASES)


# Any damage to the files that the lab ships

SHIPPED = sorted(path for part in ("datasets", "sweeps") for path in (home() / part).glob("*.yaml"))
SCALARS = st.one_of(
    st.sampled_from(["", "null", "yes", "-1", "0", "1e400", ".nan", "1e-300", "99999999999999999999", "[]", "{}"]),
    st.sampled_from(["{a: 1}", "[[]]", "[1, x]", "2020-01-01", "!!int x", "!!binary a", "&a", "*a", '"\\ud800"']),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=5),
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, text: str) -> bytes:
    """A YAML file in which bytes were deleted, doubled or inserted, or another scalar stands in a value's place."""
    if draw(st.booleans()):
        values = list(re.finditer(r"(?<=[:\[,] )[^\s,\[\]{}#]+|(?<=\[)[^\s,\[\]{}#]+", text))
        value = draw(st.sampled_from(values))
        return (text[: value.start()] + draw(SCALARS) + text[value.end() :]).encode(errors="surrogateescape")
    whole = text.encode()
    first = draw(st.integers(0, len(whole) - 1))
    part = whole[first : first + draw(st.integers(1, 12))]
    fresh = draw(st.sampled_from([b"", part * 2]) | st.binary(max_size=6).map(lambda more: more + part))
    return whole[:first] + fresh + whole[first + len(part) :]


def without_comments(path: Path) -> str:
    """The file's content, in which any change is one of meaning."""
    return re.sub(r"(?m)^\s*#.*\n", "", path.read_text())


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(SHIPPED), data=st.data())
def test_a_damaged_file_is_accepted_or_refused_in_one_line(
    path: Path, data: st.DataObject, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    content = data.draw(damaged(without_comments(path)))
    assume(not re.search(rb"syllables: \d{4}|bpe", content) or path.stem == "text")  # which take seconds to build
    (folder / "it.yaml").write_bytes(content)
    arguments = ["sweep", "status", "it.yaml"]
    if path.parent.name == "datasets":
        small = {"question": "?", "endpoint": "?", "recipe": "it.yaml", "scales": {"cpu": {"budget": "?"}}}
        (folder / "sweep.yaml").write_text(yaml.safe_dump(small))
        arguments = ["sweep", "status", "sweep.yaml"]
    elif path.stem.startswith("study_"):
        arguments = ["study", "show", "it.yaml"]
    status = left(arguments, monkeypatch)
    said = capfd.readouterr().err
    if status == 1:
        assert "no trial yet; begin with: lab study run" in said
    else:
        assert status in (0, 2)
        assert len(said.splitlines()) == (status == 2)
