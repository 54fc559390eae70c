"""A task is added as CONTRIBUTING.md says, in a copy of the lab: a file and its registration; the rest follows."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
import yaml

from lab.home import home
from tests.conftest import TINY

SCORES = """
import numpy as np
from lab.tasks.mqar import Mqar

config = Mqar(pairs=5, symbols=64, evaluation_examples=400)
task = config.build()
examples = task.examples("test", np.arange(400), 0)
seen = np.zeros(examples.fingerprints.shape, bool)
[whole, *by_query] = task.score(examples, examples.tokens, seen)
assert (whole["query"], whole["count"], whole["accuracy"], whole["oracle"]) == ("all", 2000, 1.0, 1.0), whole
assert [(row["query"], row["count"]) for row in by_query] == [(query, 400) for query in range(1, 6)]
assert task.summary([whole, *by_query]) == {"accuracy": 1.0, "shortcut": whole["shortcut"]}

# The shortcut, played: a random value of the row.
rng = np.random.default_rng(0)
values = examples.tokens[:, 1:10:2]
guesses = np.zeros_like(examples.tokens)
guesses[examples.score_mask] = values[np.arange(400)[:, None], rng.integers(0, 5, (400, 5))].reshape(-1)
[played, *_] = task.score(examples, guesses, seen)
assert abs(played["accuracy"] - played["shortcut"]) < 0.04, played
assert 1 / 5 <= played["shortcut"] < 1 / 5 + 2 / 64

# Rows do not depend on the others; training depends on the seed, evaluation does not.
alone = task.examples("train", np.array([7]), 0).tokens
assert (alone == task.examples("train", np.arange(9), 0).tokens[7]).all()
assert (alone != task.examples("train", np.array([7]), 1).tokens).any()
assert (task.examples("test", np.arange(9), 1).tokens == examples.tokens[:9]).all()
"""


def code_lines(source: str) -> int:
    """Return the number of lines with code on them: blank lines, comments and docstrings not counted."""
    lines: set[int] = set()
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    layout = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER}
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        docstring = token.type == tokenize.STRING and before.type in layout and after.type == tokenize.NEWLINE
        if token.type not in layout and not docstring:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines)


@pytest.fixture(scope="module")
def section() -> tuple[str, str, str]:
    """The path and the code of the task's file, and the line that imports it."""
    text = (home() / "CONTRIBUTING.md").read_text().split("## A new task, worked out")[1].split("\n## ")[0]
    code, line = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    [path] = re.findall(r"a file `([^`]+)`", text)
    return path, code, line


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, section: tuple[str, str, str]) -> Path:
    """The lab with the example in it."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("lab", "datasets", "sweeps", "figures"):
        shutil.copytree(home() / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    path, code, line = section
    (folder / path).write_text(code)
    registry = folder / "lab" / "tasks" / "__init__.py"
    assert line.count("\n") == 1
    text, name = registry.read_text(), line.split()[-1]
    registry.write_text(
        text.replace("\nTaskConfig", f"{line}\nTaskConfig", 1).replace("Polynomials |", f"{name} | Polynomials |", 1)
    )
    recipe = {**TINY, "task": {"name": "mqar", "pairs": 4, "evaluation_examples": 30}}
    (folder / "mqar.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def run(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_short(section: tuple[str, str, str]) -> None:
    assert code_lines('"""Title."""\n\nx = f(\n    1,\n)  # note\n') == 3
    assert 40 < code_lines(section[1]) <= 60


def test_it_is_scored(copy: Path) -> None:
    run(copy, "-c", SCORES)


def test_it_is_shown(copy: Path) -> None:
    shown = [
        json.loads(line)
        for line in run(copy, "-m", "lab", "data", "show", "mqar.yaml", "--count", "3", "--json").splitlines()
    ]
    assert len(shown) == 3
    for record in shown:
        words = record["text"].split()
        assert len(record["tokens"]) == len(words) == 16
        values = dict(zip(words[:8:2], words[1:8:2], strict=True))
        assert dict(zip(words[8::2], words[9::2], strict=True)) == values
        assert len(values) == 4


def test_it_trains(copy: Path) -> None:
    out = run(copy, "-m", "lab", "train", "mqar.yaml", "train.steps=10", "--json")
    result = json.loads(out.splitlines()[-1])
    assert result["experiment"]["task"]["name"] == "mqar"
    rows = [row for row in result["scores"] if (row["split"], row["checkpoint"]) == ("test", "final")]
    assert [row["query"] for row in rows] == ["all", 1, 2, 3, 4]
    assert all({"accuracy", "shortcut", "oracle", "count"} <= row.keys() for row in rows)
