"""Countdown: rows and answers against an evaluator and an exhaustive search of their own."""

import hashlib
import itertools
import json
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.config import validated
from lab.errors import BadInput
from lab.learning.evaluation import evaluate, generate
from lab.models.sizes import Model
from lab.objectives import build_model
from lab.objectives.parallel import Parallel
from lab.tasks.base import SPLITS, GeneratedAnswers, Split
from lab.tasks.countdown import Countdown, CountdownTask
from tests.cli.test_cli import lab

SMALL = Countdown(numbers=3, largest=20, validation_examples=40, test_examples=80)
PAUSED = Countdown(numbers=5, largest=200, pause=3, validation_examples=50, test_examples=60)

GOLDEN = [
    ["499465e5890bd46e", "fef4ce125ba93721", "659b4264c294157f"],
    ["6c3e1d19944f7c0f", "17e8982d139182cb", "c106848159b3df08"],
    ["e0c90a26cdbb6c9a", "6da43b33f132b47e", "e2d006d1bf75c9c1"],
]

Equation = list[Any]


def value(left: int, operator: str, right: int) -> Fraction | None:
    """The value of an operation; None for a division by zero."""
    if operator == "/":
        return Fraction(left, right) if right else None
    return Fraction({"+": left + right, "-": left - right, "*": left * right}[operator])


def steps_right(numbers: list[int], equations: list[Equation]) -> list[bool]:
    """For each equation whether all up to it are true and use numbers at hand."""
    at_hand, right, found = Counter(numbers), True, []
    for left, operator, second, result in equations:
        at_hand[left] -= 1
        at_hand[second] -= 1
        right = right and min(at_hand[left], at_hand[second]) >= 0 and value(left, operator, second) == result
        at_hand[result] += 1
        found.append(right)
    return found


def check(record: dict[str, Any], config: Countdown) -> None:
    """Hold one record of `lab data show --json` to the rules."""
    numbers, target, equations = record["numbers"], record["target"], record["equations"]
    assert len(numbers) == config.numbers
    assert len(equations) == config.numbers - 1
    assert all(1 <= number <= config.largest for number in [*numbers, *(each[3] for each in equations)])
    assert 10 <= target <= config.largest
    assert all(steps_right(numbers, equations))
    assert equations[-1][3] == target
    told = " , ".join(f"{a} {operator} {b} = {c}" for a, operator, b, c in equations)
    pauses = "_ " * config.pause
    assert record["text"] == f"{' '.join(map(str, numbers))} > {target} {pauses}: {told} ."
    signs = dict(zip("+-*/=,.>:_", itertools.count(config.largest), strict=False))
    assert record["tokens"] == [signs[w] if w in signs else int(w) - 1 for w in record["text"].split()]


@pytest.mark.parametrize("fields", [{}, {"numbers": 5, "largest": 300, "pause": 8}])
def test_an_evaluator_confirms_2000_shown_answers(fields: dict[str, Any]) -> None:
    overrides = [f"task.{name}={each}" for name, each in fields.items()]
    shown = lab("data", "show", "datasets/countdown.yaml", *overrides, "--split", "test", "--count", "2000", "--json")
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(records) == 2000
    for record in records:
        check(record, Countdown(**fields))
    used = Counter(equation[1] for record in records for equation in record["equations"])
    assert set(used) == set("+-*/")


@given(
    st.builds(
        lambda numbers, largest, pause: Countdown(numbers=numbers, largest=largest, pause=pause, test_examples=1),
        st.integers(2, 8), st.integers(20, 400), st.integers(0, 4),
    ),
    st.integers(0, 2**40), st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_every_row_is_a_solution(config: Countdown, first: int, seed: int) -> None:
    task = config.build()
    examples = task.examples("train", np.arange(first, first + 8), seed)
    assert examples.tokens.shape == (8, task.max_length("train"))
    assert examples.tokens.max() < len(task.vocabulary)
    for row in range(8):
        check(task.record(examples, row), config)
        words = task.record(examples, row)["text"].split()
        kinds = [task.token_types[kind] for kind in task.token_type(examples)[row]]
        assert [word for word, kind in zip(words, kinds, strict=True) if kind == "operator"] == [
            word for word in words[words.index(":") :] if word in "+-*/"
        ]
        assert kinds.count("pause") == config.pause == words.count("_")
        assert kinds[-1] == "end"
        start = words.index(":") + 1
        assert examples.score_mask[row].nonzero()[0].tolist() == list(range(start, len(words)))
        assert task.prompts(examples)[row] == start
        assert len(words) - start == task.longest_answer


def solutions(numbers: list[int], target: int, largest: int) -> list[list[Equation]]:
    """Every way to reach the target, by exhaustion."""
    if len(numbers) == 1:
        return [[]] if numbers[0] == target else []
    found = []
    for one, two in itertools.permutations(range(len(numbers)), 2):
        rest = [number for place, number in enumerate(numbers) if place not in (one, two)]
        for operator in "+-*/":
            result = value(numbers[one], operator, numbers[two])
            if result is None or result.denominator != 1 or not 1 <= result <= largest:
                continue
            equation = [numbers[one], operator, numbers[two], int(result)]
            found += [[equation, *more] for more in solutions([*rest, int(result)], target, largest)]
    return found


def written(task: CountdownTask, equations: list[Equation]) -> list[int]:
    """The tokens of an answer."""
    words = " , ".join(f"{a} {operator} {b} = {c}" for a, operator, b, c in equations) + " ."
    return [task.vocabulary.index(word) for word in words.split()]


def test_any_solution_counts_and_nothing_else() -> None:
    config = Countdown(numbers=3, largest=40, test_examples=60)
    task, random = config.build(), np.random.default_rng(0)
    examples = task.examples("test", np.arange(60), 0)
    answers, solved, steps = [], [], []
    for row in range(60):
        record = task.record(examples, row)
        ways = solutions(record["numbers"], record["target"], 40)
        assert record["equations"] in ways
        equations = [list(each) for each in ways[random.integers(len(ways))]]
        spoil = random.integers(5)
        if spoil == 1:  # another result
            equations[random.integers(2)][3] = int(random.integers(1, 41))
        if spoil == 2:  # another operand
            equations[random.integers(2)][2] = int(random.integers(1, 41))
        if spoil == 3:  # another operator
            equations[random.integers(2)][1] = "+-*/"[random.integers(4)]
        tokens = written(task, equations)
        right = steps_right(record["numbers"], equations)
        if spoil == 4:  # a sign in the wrong place
            place = int(random.integers(len(tokens)))
            old, tokens[place] = tokens[place], len(task.vocabulary) - 1 - int(random.integers(5))
            right = [each and (tokens[place] == old or place >= 6 * (k + 1)) for k, each in enumerate(right)]
        answers.append(tokens)
        steps.append(right)
        solved.append(right[-1] and equations[-1][3] == record["target"])
    assert 15 < sum(solved) < 50
    rows = task.score(examples, np.array(answers, np.uint16), np.zeros((60, 1), np.bool_))
    found = {row["equation"]: row["valid"] for row in rows}
    first, second = np.mean(steps, axis=0)
    assert found == pytest.approx({"all": np.mean(solved), 1: first, 2: second})
    summary = task.summary(rows)
    assert summary[task.metric] == found["all"]
    assert summary["valid_equation_1"] == found[1]


@pytest.mark.parametrize(("answer", "first", "both", "solved"), [
    ("6 + 4 = 10 , 10 * 2 = 20 .", True, True, True),
    ("2 * 4 = 8 , 8 + 6 = 14 .", True, True, False),  # true, but not the target
    ("6 + 6 = 12 , 12 + 4 = 16 .", False, False, False),  # a number twice
    ("6 - 4 = 2 , 2 + 2 = 4 .", True, True, False),  # the same number, but two of them at hand
    ("4 / 2 = 2 , 2 * 10 = 20 .", True, False, False),  # a number that is not there
    ("6 + 4 = 10 . 10 * 2 = 20 .", False, False, False),
    ("6 + 4 = 10 , 10 * 2 = 20 ,", True, False, False),
    ("6 + 4 = 10 , 2 + 18 = 20 .", True, False, False),
    (". . . . . . . . . . . .", False, False, False),
    ("4 - 6 = 2 , 2 + 2 = 4 .", False, False, False),
    ("6 / 4 = 1 , 1 * 2 = 2 .", False, False, False),
])  # fmt: skip
def test_answers_by_hand(answer: str, first: bool, both: bool, solved: bool) -> None:
    task = SMALL.build()
    examples = task.examples("test", np.arange(1), 0)
    question = [task.vocabulary.index(word) for word in ("6", "4", "2", ">", "20", ":")]
    examples.tokens[0, : len(question)] = question
    tokens = np.array([[task.vocabulary.index(word) for word in answer.split()]], np.uint16)
    rows = {row["equation"]: row["valid"] for row in task.score(examples, tokens, np.zeros((1, 1), np.bool_))}
    assert rows == {"all": solved, 1: first, 2: both}


def test_baselines_play_by_the_rules() -> None:
    task = Countdown(numbers=4, test_examples=3000).build()
    examples = task.examples("test", np.arange(3000), 0)
    nothing = np.full((3000, task.longest_answer), task.end, np.uint16)
    rows = {row["equation"]: row for row in task.score(examples, nothing, np.zeros((3000, 1), np.bool_))}
    assert {row["valid"] for row in rows.values()} == {0.0}
    assert {row["oracle"] for row in rows.values()} == {1.0}
    for level in ("chance", "shortcut"):
        assert all(rows[equation][level] == 1.0 for equation in (1, 2, 3))
    assert 0.1 < rows["all"]["chance"] < rows["all"]["shortcut"] < 0.5

    # With two numbers the shortcut has nothing to foresee: it always reaches a target that can be reached.
    pair = Countdown(numbers=2).build()
    examples = pair.examples("test", np.arange(500), 0)
    [row, _] = pair.score(examples, np.zeros((500, 6), np.uint16), np.zeros((500, 1), np.bool_))
    assert row["shortcut"] == 1.0
    assert row["chance"] < 0.9


def test_answers_are_generated() -> None:
    task = SMALL.build()
    assert isinstance(task, GeneratedAnswers)
    model = build_model(Model(layers=2, width=16, heads=2), Parallel(n=1), len(task.vocabulary), seed=0).eval()
    examples = task.examples("test", np.arange(20), 0)
    answers = generate(model, task, examples)
    assert answers.shape == (20, task.longest_answer)
    unseen = np.zeros((20, 1), np.bool_)
    assert evaluate(model, task, examples, unseen) == task.score(examples, answers, unseen)


def question(record: dict[str, Any]) -> tuple[tuple[int, ...], int]:
    return tuple(sorted(record["numbers"])), record["target"]


def test_keys_are_of_the_question_not_its_spelling() -> None:
    task = Countdown(numbers=2, largest=20).build()
    examples = task.examples("train", np.arange(3000), 0)
    questions = [question(task.record(examples, row)) for row in range(3000)]
    pairs = set(zip(questions, examples.fingerprints[:, 0].tolist(), strict=True))
    assert len(set(questions)) == len(set(examples.fingerprints[:, 0].tolist())) == len(pairs) < 1000


@pytest.mark.parametrize(("config", "kept_out"), [(Countdown(numbers=3, largest=60), True), (SMALL, False)])
def test_evaluation_is_kept_out_of_large_spaces(config: Countdown, kept_out: bool) -> None:
    task = config.build()
    asked = [task.examples(split, np.arange(task.size(split) or 0), 0).fingerprints for split in SPLITS[1:]]
    train = np.concatenate([task.examples("train", np.arange(30_000), seed).fingerprints for seed in (0, 1)])
    assert np.isin(np.concatenate(asked), train).any() == (not kept_out)
    if kept_out:
        validation, test = asked
        assert not np.isin(validation, test).any()


def test_seen_questions_are_scored_apart() -> None:
    task = SMALL.build()
    examples = task.examples("test", np.arange(80), 0)
    seen = np.arange(80)[:, None] < 30
    answers = np.where(seen, examples.tokens[:, task.prompts(examples)[0] :], 0).astype(np.uint16)
    rows = {row["seen"]: row for row in task.score(examples, answers, seen) if row["equation"] == "all"}
    assert {name: row["valid"] for name, row in rows.items()} == {"all": 30 / 80, "seen": 1.0, "unseen": 0.0}


@pytest.mark.parametrize("config", [Countdown(), SMALL, PAUSED], ids=["default", "small", "paused"])
@pytest.mark.parametrize("split", SPLITS)
def test_examples_are_pure(config: Countdown, split: Split) -> None:
    task, indices = config.build(), np.arange(40)
    whole, some = task.examples(split, indices, 3), config.build().examples(split, np.array([31, 3]), 3)
    assert (some.tokens == whole.tokens[[31, 3]]).all()
    assert (some.fingerprints == whole.fingerprints[[31, 3]]).all()
    assert (task.examples(split, indices, 4).tokens != whole.tokens).any() == (split == "train")
    assert len(task.examples(split, indices[:0], 3).lengths) == 0
    with pytest.raises(IndexError):
        task.examples(split, np.array([-1]), 0)


def digest(config: Countdown, split: Split) -> str:
    task = config.build()
    examples = task.examples(split, np.arange(task.size(split) or 64), 0)
    parts = [
        examples.tokens.astype("<u2"),
        examples.loss_mask,
        examples.score_mask,
        examples.fingerprints.astype("<u8"),
    ]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


@pytest.mark.parametrize(("config", "expected"), [(Countdown(), GOLDEN[0]), (SMALL, GOLDEN[1]), (PAUSED, GOLDEN[2])])
def test_golden_hashes(config: Countdown, expected: list[str]) -> None:
    """Every result rests on these examples: if they must change, raise the config's `version`."""
    assert [digest(config, split) for split in SPLITS] == expected


@pytest.mark.parametrize(("fields", "line"), [
    ({"numbers": 1}, "numbers: 1 is not allowed"),
    ({"largest": 10}, "largest: 10 is not allowed"),
    ({"pause": -1}, "pause: -1 is not allowed"),
    ({"number": 4}, "number: unknown field"),
])  # fmt: skip
def test_bad_fields(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as error:
        validated(Countdown, fields)
    assert str(error.value).startswith(line)
