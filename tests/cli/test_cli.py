"""The command line: help, JSON, exit statuses, one line for bad input."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sympy
from click import Command, Group
from click.testing import CliRunner

from lab.cli import console
from lab.cli.main import cli
from lab.home import home

POLYNOMIALS = "datasets/polynomials.yaml"
X = sympy.Symbol("X")


def lab(*arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """The command as a user runs it, in a process of its own."""
    command = [sys.executable, "-m", "lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or home(), check=False)


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for name, command in cli.commands.items():
        found.append((name,))
        if isinstance(command, Group):
            found += [(name, sub) for sub in command.commands]
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_explains_itself_and_each_of_its_options(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*path, "--help"])
    assert shown.exit_code == 0
    command: Command = cli
    for name in path:
        assert isinstance(command, Group)
        command = command.commands[name]
    assert command.help
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.opts[-1] in shown.output
            assert getattr(parameter, "help", None), f"{path} {parameter.name} has no help"


def test_the_help_of_train_explains_every_field() -> None:
    shown = CliRunner().invoke(cli, ["train", "--help"]).output
    for field in ("task.prime", "task.pause", "model.size", "objective.n", "train.lr", "evaluation.every", "seed"):
        assert field in shown
    assert "init_from" in shown
    assert "[default: 0.001]" in " ".join(shown.split())
    assert "[required]" in shown


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, lab.cli.main; print([m for m in ('torch', 'numpy', 'pydantic', 'rich') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def value(expression: list[Any], prime: int, degree: int) -> sympy.Poly:
    """What an expression is worth, by sympy."""
    if not isinstance(expression[0], str):
        return sympy.Poly(expression[::-1], X, modulus=prime)
    name, *operands = expression[0], *(value(each, prime, degree) for each in expression[1:])
    results: dict[str, Callable[..., sympy.Poly]] = {
        "neg": lambda a: -a, "add": lambda a, b: a + b, "mul": lambda a, b: a * b, "compose": lambda a, b: a.compose(b),
    }  # fmt: skip
    return results[name](*operands).rem(sympy.Poly(X**degree, X, modulus=prime))


def test_two_thousand_examples_that_an_independent_evaluator_confirms() -> None:
    arguments = ("data", "show", POLYNOMIALS, "--split", "test", "--operations", "7", "--count", "2000", "--json")
    shown = lab(*arguments)
    assert shown.returncode == 0
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(records) == 2000
    for record in records:
        coefficients = [int(each) % 7 for each in value(record["expression"], 7, 5).all_coeffs()[::-1]]
        assert record["operations"] == 7
        assert record["answer"] == coefficients + [0] * (5 - len(coefficients))
    assert lab(*arguments).stdout == shown.stdout
    later = lab(*arguments[:-2], "3", "--start", "12100", "--json").stdout.splitlines()
    assert later == shown.stdout.splitlines()[100:103]


def test_examples_for_people() -> None:
    shown = lab("data", "show", POLYNOMIALS, "task.prime=3", "task.degree=2", "--count", "3").stdout.splitlines()
    assert len(shown) == 5
    assert shown[0].startswith("12 tokens: 0 1 2 - + * o = .")
    assert all("=" in line and line.endswith(".") for line in shown[2:])


def test_models() -> None:
    rows = json.loads(lab("models", "--json").stdout.splitlines()[-1])
    fields = {"size", "n", "objective", "trunk_layers", "non_embedding_parameters", "flops_per_token"}
    assert all(fields <= row.keys() for row in rows)
    by_size: dict[str, set[int]] = {}
    for row in rows:
        assert row["trunk_layers"] == row["layers"] - (1 if row["objective"] in ("linear", "reweighted") else row["n"])
        if row["objective"] not in ("linear", "sequential", "shallow"):  # which have matrices more, or layers less
            by_size.setdefault(row["size"], set()).add(row["non_embedding_parameters"])
    assert list(by_size) == ["1M", "3M", "10M", "30M", "100M", "300M", "1B"]
    assert all(len(counts) == 1 for counts in by_size.values())
    assert "non-embedding" in lab("models", "--objective", "parallel").stdout
    only = json.loads(lab("models", "--objective", "replicated", "--json").stdout.splitlines()[-1])
    assert {row["objective"] for row in only} == {"next_token", "replicated"}
    assert all(row["embedding_parameters"] == (1 + row["n"]) * 32_000 * row["width"] for row in only)


def test_train_prints_json_last(tiny_file: str, tmp_path: Path) -> None:
    arguments = ("train", tiny_file, "objective=next_token", "train.steps=6", "--store", str(tmp_path), "--json")
    ran = lab(*arguments)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert result["state"] == "done"
    assert result["experiment"]["objective"] == {"name": "next_token", "n": 1}
    again = lab(*arguments)
    assert "done before" in again.stderr
    assert json.loads(again.stdout.splitlines()[-1]) == result
    repeated = lab("train", f"{result['directory']}/config.yaml", "--store", str(tmp_path), "--json")
    assert json.loads(repeated.stdout)["identity"] == result["identity"]


def test_a_time_limit_stops_train_at_a_checkpoint(tiny_file: str, tmp_path: Path) -> None:
    ran = lab("train", tiny_file, "train.steps=100000", "--time-limit", "1s", "--store", str(tmp_path), "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["state"] == "stopped"
    assert list(tmp_path.rglob("last.ckpt"))


def test_bad_input_leaves_no_traceback() -> None:
    ran = lab("train", POLYNOMIALS, "train.lr=fast")
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [f'lab: {POLYNOMIALS}: train.lr: "fast" is not allowed: should be a valid number']


def test_a_run_that_fails_is_one_line_and_status_one(tiny_file: str, tmp_path: Path) -> None:
    ran = lab("train", tiny_file, "train.lr=1e30", "train.clip=1e30", "--store", str(tmp_path))
    assert ran.returncode == 1
    assert "diverged" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for quiet, lines in ((0.0, ["models: 1 of 2, 0:00 left", "models: 2 of 2, 0:00 left"]), (60.0, [])):
        monkeypatch.setattr(console, "QUIET", quiet)
        with console.counting("models", 2) as count:
            count()
            count()
        assert capsys.readouterr().err.splitlines() == lines
