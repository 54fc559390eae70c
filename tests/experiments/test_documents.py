"""YAML documents: read as YAML 1.2 says, merge keys, doubled keys, and what is written reads back equal."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lab.cli.main import cli
from lab.errors import BadInput
from lab.experiments.documents import parse_value, parse_yaml, yaml_text
from lab.experiments.experiment import dump_yaml, load_experiment
from lab.experiments.sweep import load_sweep
from tests.conftest import TINY, tiny

# Scalars. YAML 1.2.2, Example 10.9 (the core schema), and what YAML 1.1 reads as something else.
CORE: dict[str, Any] = {
    "": None, "null": None, "Null": None, "~": None,
    "true": True, "True": True, "false": False, "FALSE": False,
    "0": 0, "0o7": 7, "0x3A": 58, "-19": -19, "+3": 3,
    "0.": 0.0, "-0.0": 0.0, ".5": 0.5, "+12e03": 12000.0, "-2E+05": -200000.0, "1e-3": 0.001, "5e4": 50000.0,
    "010": 10, "007": 7, "-08": -8, "09": 9, "010.5": 10.5, "0e0": 0.0,
}  # fmt: skip
TEXT = [
    "on", "off", "yes", "no", "On", "OFF", "Yes", "NO", "y", "n", "nULL", "tRUE",
    "1:30", "1:30.5", "190:20:30", "1_000", "0b101", "-0o7", "0x", "0o8", "1e", "e3", "1e3.5", "+", ".", "..", "1.2.3",
    "2020-01-01", "2020-01-01 10:00:00", "2020-13-45", "=", "<<",
]  # fmt: skip


@pytest.mark.parametrize("text", CORE)
def test_scalars_are_of_the_core_schema(text: str) -> None:
    for found in (parse_value(text, ""), parse_yaml(f"a: {text}", "")["a"], parse_yaml(f"[x, {text} ]", "")[-1:][0]):
        if text or found != "x":
            assert found == CORE[text]
            assert type(found) is type(CORE[text])


@pytest.mark.parametrize("text", TEXT)
def test_what_only_yaml_1_1_takes_for_something_is_text(text: str) -> None:
    assert parse_value(text, "") == text
    assert parse_yaml(f"{{a: [{text}]}}", "") == {"a": [text]}


@given(st.from_regex(r"[-+]?[0-9]{1,30}", fullmatch=True, alphabet=st.characters(max_codepoint=127)))
def test_digits_are_decimal(text: str) -> None:
    assert parse_value(text, "") == int(text, 10)


def test_infinity_and_what_is_no_number_are_read_and_then_refused() -> None:
    assert [parse_value(text, "") for text in (".inf", "-.Inf", "+.INF")] == [float("inf"), -float("inf"), float("inf")]
    assert parse_value(".NaN", "") != parse_value(".nan", "")


@pytest.mark.parametrize(
    "text", ["!!int 0b11", "!!bool yes", "!!null x", "!!float 1_0", "!!int 1:30", "1" * 5000, "1e-400"]
)
def test_a_tag_takes_what_the_core_schema_takes(text: str) -> None:
    with pytest.raises(BadInput, match=r"o, line 1: not YAML: '.*' is no (int|bool|null|float)$"):
        parse_value(text, "o")


def test_a_tag_can_make_text_of_a_number() -> None:
    assert parse_yaml("{a: !!str 010, b: '010', c: \"010\"}", "") == {"a": "010", "b": "010", "c": "010"}


# Keys


def test_keys_are_the_words_that_are_written() -> None:
    words = ["off", "on", "010", "1e-3", "true", "null", "~", "2020-01-01", "1:30", "True", "1", "1.0"]
    assert list(parse_yaml("\n".join(f"{word}: {place}" for place, word in enumerate(words)), "")) == words


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\nb: 2\na: 3", 3, "a"),
        ("1: a\n'1': b", 2, "1"),
        ("x: {a: 1, b: {c: 1,\n c: 2}}", 2, "c"),
        ("<<: {a: 1}\na: 2\na: 3", 3, "a"),
        ("a: 2\n<<: {a: 1}\na: 3", 3, "a"),
        ("<<: {b: 1, b: 2}\na: 2", 1, "b"),
        ("<<: {a: 1}\n<<: {b: 1}", 2, "<<"),
        ("true: 1\ntrue: 2", 2, "true"),
    ],
)
def test_a_key_given_twice_is_an_error(text: str, line: int, key: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_yaml(text, "it.yaml")
    assert str(caught.value) == f"it.yaml, line {line}: not YAML: '{key}' is given twice"


@pytest.mark.parametrize("text", ["[a]: 1", "{a: 1}: 2", "? \n: 1", "{<<: 3}", "{<<: [{a: 1}, 3]}", "{<<: a}"])
def test_what_is_no_key_is_one_line(text: str) -> None:
    with pytest.raises(BadInput, match=r"^o, line 1: not YAML: [^\n]+$"):
        parse_yaml(text, "o")


# Merge keys


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{<<: {lr: 1e-3}, steps: 200}", {"lr": 0.001, "steps": 200}),
        ("{steps: 200, <<: {lr: 1e-3, steps: 5}}", {"lr": 0.001, "steps": 200}),
        ("{<<: [{a: 1, b: 1}, {b: 2, c: 2}], c: 3}", {"a": 1, "b": 1, "c": 3}),
        ("{<<: {<<: {a: 1, b: 1}, b: 2, c: 2}, c: 3}", {"a": 1, "b": 2, "c": 3}),
        ("{<<: {}, a: 1}", {"a": 1}),
        ("{<<: [], a: 1}", {"a": 1}),
        ("{<<: {a: {x: 1, y: 2}}, a: {x: 3}}", {"a": {"x": 3}}),
        ("{'<<': {a: 1}}", {"<<": {"a": 1}}),
        ("[&a {x: 1}, {<<: *a, y: 2}, {<<: *a}]", [{"x": 1}, {"x": 1, "y": 2}, {"x": 1}]),
    ],
)
def test_merge_keys(text: str, expected: Any) -> None:
    assert parse_yaml(text, "") == expected
    if "'<<'" not in text:
        assert yaml.safe_load(text.replace("1e-3", "1.0e-3")) == expected, "as PyYAML has them"


def test_a_merge_that_holds_itself_is_one_line() -> None:
    with pytest.raises(BadInput, match="nested too deeply"):
        parse_yaml("a: &a {<<: *a}", "")


def test_a_recipe_and_a_sweep_merge(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**TINY, "train": None}).replace("null", '{"<<": {"lr": 0.5}}').replace('"<<"', "<<"))
    assert load_experiment(recipe, ["train={<<: {context: 32, warmup: 5}, steps: 200}"]).train.lr == 0.5
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"question: why\nendpoint: none\nrecipe: {recipe}\n"
        "baseline: {train: {<<: &base {context: 32, warmup: 5}, steps: 20}}\n"
        "axes:\n  task.pause: {off: 0, on: 2}\n  arm:\n    slow: &slow {train: {lr: 1e-3}}\n"
        "    fast: {<<: *slow, train: {<<: *base, lr: 5e-3}}\n"
        "scales: {cpu: {budget: none}}\n"
    )
    found = [(cell.axes, cell.experiment.train.lr) for cell in load_sweep(str(sweep), "cpu").cells]
    rates = {"slow": 1e-3, "fast": 5e-3}
    assert found == [({"task.pause": pause, "arm": arm}, rates[arm]) for pause in ("off", "on") for arm in rates]
    said = CliRunner().invoke(cli, ["sweep", "status", str(sweep), "--store", str(tmp_path / "runs")]).stdout
    assert "task.pause=off arm=slow" in said
    assert "task.pause=on arm=fast" in said


def test_seeds_with_zeros_before_them_are_decimal(tmp_path: Path) -> None:
    assert tiny("seed=010").seed == 10
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"question: why\nendpoint: none\nbaseline: {json.dumps(TINY)}\nscales: {{cpu: {{budget: none}}}}\n"
        "axes:\n  seed: [01, 02, 03, 04, 05, 06, 07, 08, 09, 010]\n"
    )
    assert [cell.experiment.seed for cell in load_sweep(str(sweep), "cpu").cells] == list(range(1, 11))
    for wrong in ("1:30", "1_000", "0b11", "2020-01-01"):
        with pytest.raises(BadInput, match=f'seed: "{wrong}" is not allowed: should be a valid integer'):
            tiny(f"seed={wrong}")
    with pytest.raises(BadInput, match=r'execution\.tensorboard: "yes" is not allowed: should be true or false'):
        tiny("execution.tensorboard=yes")


# A value on the command line is the whole of it


@pytest.mark.parametrize("text", ["3 # x", "#x", "---", "--- 3", "3\n...", "a #b"])
def test_what_yaml_would_drop_of_a_value_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is no part of the value in YAML"):
        parse_value(text, "o")


# What is written reads back equal

words = st.one_of(
    st.text(),
    st.sampled_from([*CORE, *TEXT, "# x", "a #b", "a: b", "- a", "'", '"', "{", "*a", "&a", "!a", "%", "@", "`"]),
    st.sampled_from(["---", " a", "a ", "a\n", "\n", "a\n\nb", "\t", "\x85", "\u2028", "\ufeff", "é", "😀", "x\ty"]),
    st.from_regex(r"[-+.0-9eExob_:]{1,8}", fullmatch=True),
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words
documents = st.recursive(
    scalars, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(words.filter(bool), inside, max_size=3)
)


@settings(max_examples=500, deadline=None)
@given(documents)
def test_what_is_written_reads_back_equal_by_either_version(content: Any) -> None:
    text, line = yaml_text(content), yaml_text(content, one_line=True)
    for found in (parse_yaml(text, ""), parse_value(line, ""), yaml.safe_load(text), yaml.safe_load(line)):
        assert found == content
        assert json.dumps(found) == json.dumps(content), "true is not 1, and 1 not 1.0"


@given(documents)
def test_json_is_yaml(content: Any) -> None:
    text = json.dumps(content, ensure_ascii=False)
    assume(all(each.isprintable() and each != "\ufeff" for each in text))  # as YAML wants characters unescaped
    assert parse_yaml(text, "") == content


@pytest.mark.parametrize("column", ["010", "on", "1e-3", "0o10", "1:30", "null", "2020-01-01", "~", "<<", "é"])
def test_a_runs_own_file_keeps_text_that_looks_like_something_else(column: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Once Mira met Tom, and then Mira and Tom ran.\n<|endoftext|>\n" * 3)
    experiment = tiny("objective.weights={name: geometric, ratio: 0.5}")
    text: dict[str, Any] = {
        "name": "mixture",
        "scored": column,
        "parts": {column: {"weight": 1.0}, "other": {"weight": 2.0}},
    }
    for part in text["parts"].values():
        part["task"] = TINY["task"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({**experiment.model_dump(mode="json"), "task": text}))
    loaded = load_experiment(recipe)
    recipe.write_text(dump_yaml(loaded))
    assert load_experiment(recipe) == loaded
    assert getattr(loaded.task, "scored", None) == column
