"""The polynomial task: what is drawn, how it is written, what is held out, how it is scored."""

import hashlib
import json
from collections import Counter
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from lab.config import validated
from lab.errors import BadInput
from lab.learning.data import packed_batch
from lab.objectives.base import targets
from lab.tasks.base import Examples, ScoreRow, Split, Task
from lab.tasks.draws import draws32, stream
from lab.tasks.holdout import LARGE
from lab.tasks.polynomials.expressions import OPERATORS, Expression
from lab.tasks.polynomials.task import Polynomials, PolynomialTask
from lab.tasks.polynomials.trees import ADD, LEAF, NEG, PAD, split_words, uniform_words

SPLITS: tuple[Split, ...] = get_args(Split)
DEFAULT = Polynomials()
OTHER = Polynomials(syntax="infix", pause=3, coefficients="leading_first", loss="answer", shape="split")
SMALL_SETS: dict[str, Any] = {"test_examples": 40, "validation_examples": 20}
X = sympy.Symbol("X")


@st.composite
def configs(draw: st.DrawFn) -> Polynomials:
    low = draw(st.integers(1, 6))
    return Polynomials(
        prime=draw(st.sampled_from([2, 3, 7, 11, 101, 65521])),
        degree=draw(st.integers(1, 6)),
        operators=draw(st.dictionaries(st.sampled_from(OPERATORS), st.floats(0.1, 10), min_size=1)),
        train_operations=(low, low + draw(st.integers(0, 6))),
        test_operations=(1, draw(st.integers(1, 9))),
        shape=draw(st.sampled_from(["uniform", "split"])),
        syntax=draw(st.sampled_from(["prefix", "infix"])),
        coefficients=draw(st.sampled_from(["constant_first", "leading_first"])),
        pause=draw(st.integers(0, 3)),
        loss=draw(st.sampled_from(["all", "answer"])),
        unique_examples=draw(st.none() | st.integers(1, 50)),
        hint=draw(st.sampled_from(["none", "filler", "operand"])),
        **SMALL_SETS,
    )


def same(left: Examples, right: Examples) -> None:
    """Equal, up to padding on the right."""
    width = max(left.tokens.shape[1], right.tokens.shape[1])
    for name in ("tokens", "loss_mask", "score_mask"):
        a, b = (
            np.pad(array, ((0, 0), (0, width - array.shape[1])))
            for array in (getattr(left, name), getattr(right, name))
        )
        np.testing.assert_array_equal(a, b)
    assert left.horizons is not None
    assert right.horizons is not None
    a, b = (
        np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=1)
        for each in (left.horizons, right.horizons)
    )
    np.testing.assert_array_equal(a, b)
    for name in ("lengths", "fingerprints"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert left.slices.keys() == right.slices.keys()
    for name in left.slices:
        np.testing.assert_array_equal(left.slices[name], right.slices[name])


def rows_of(examples: Examples, rows: NDArray[np.int64]) -> Examples:
    slices = {name: values[rows] for name, values in examples.slices.items()}
    names = ("tokens", "lengths", "loss_mask", "score_mask", "fingerprints", "horizons")
    return Examples(**{name: getattr(examples, name)[rows] for name in names}, slices=slices, token_features={})


def count_operations(expression: Expression) -> int:
    return 1 + sum(map(count_operations, expression[1:])) if isinstance(expression[0], str) else 0


def count_leaves(expression: Expression) -> int:
    return sum(map(count_leaves, expression[1:])) if isinstance(expression[0], str) else 1


def sympy_value(expression: Expression, prime: int, degree: int) -> sympy.Poly:
    if not isinstance(expression[0], str):
        return sympy.Poly(expression[::-1], X, modulus=prime)
    name, *values = expression[0], *(sympy_value(operand, prime, degree) for operand in expression[1:])
    if name == "neg":
        value = -values[0]
    elif name == "add":
        value = values[0] + values[1]
    else:
        value = values[0] * values[1] if name == "mul" else values[0].compose(values[1])
    return value.rem(sympy.Poly(X**degree, X, modulus=prime))


def sympy_coefficients(expression: Expression, prime: int, degree: int) -> list[int]:
    coefficients = [int(c) % prime for c in sympy_value(expression, prime, degree).all_coeffs()[::-1]]
    return coefficients + [0] * (degree - len(coefficients))


def test_it_is_a_task() -> None:
    task: Task = DEFAULT.build()
    examples = task.examples("test", np.arange(20), 0)
    rows = task.score(examples, examples.tokens, np.arange(20)[:, None] % 2 == 0)
    assert all({task.metric, *task.baselines, task.main_slice, *task.slices, "count"} <= row.keys() for row in rows)
    assert task.metric in task.summary(rows)
    assert task.vocabulary == (*"0123456", "-", "+", "*", "o", "=", ".", "_", "(", ")")


@pytest.mark.parametrize(("prime", "degree"), [(7, 5), (3, 2), (101, 2), (13, 4), (65521, 3), (7, 9)])
@pytest.mark.parametrize("shape", ["uniform", "split"])
def test_answers_agree_with_sympy(prime: int, degree: int, shape: Any) -> None:
    task = Polynomials(prime=prime, degree=degree, shape=shape, **SMALL_SETS).build()
    examples = task.examples("test", np.arange(0, 400, 4), 0)
    for row in range(len(examples.lengths)):
        record = task.record(examples, row)
        assert record["answer"] == sympy_coefficients(record["expression"], prime, degree)
        assert task.evaluate(record["expression"]) == record["answer"]


# Hints


@pytest.mark.parametrize("syntax", ["prefix", "infix"])
@pytest.mark.parametrize("coefficients", ["constant_first", "leading_first"])
@pytest.mark.parametrize(("prime", "degree"), [(3, 2), (7, 5), (101, 1)])
def test_hints_are_the_first_operand_by_sympy(syntax: Any, coefficients: Any, prime: int, degree: int) -> None:
    fields = {"syntax": syntax, "coefficients": coefficients, "prime": prime, "degree": degree, **SMALL_SETS}
    task = Polynomials(hint="operand", **fields).build()
    examples = task.examples("test", np.arange(0, 400, 7), 0)
    for row in range(len(examples.lengths)):
        record = task.record(examples, row)
        answer = record["text"].split(" = ")[1].split()
        first = sympy_coefficients(record["expression"][1], prime, degree)
        assert answer[1:-1:2] == list(map(str, first if coefficients == "constant_first" else first[::-1]))
        assert record["answer"] == sympy_coefficients(record["expression"], prime, degree)


@pytest.mark.parametrize("config", [DEFAULT, OTHER, Polynomials(prime=3, degree=2, loss="answer")])
@pytest.mark.parametrize("split", SPLITS)
def test_hints_add_tokens_and_change_nothing_else(config: Polynomials, split: Split) -> None:
    plain = config.build()
    indices = np.arange(0, plain.size(split) or 300, 1 if split == "train" else 211)
    without, d = plain.examples(split, indices, 4), config.degree
    hinted = [config.model_copy(update={"hint": hint}).build() for hint in ("filler", "operand")]
    filler, operand = (task.examples(split, indices, 4) for task in hinted)
    for task, examples in zip(hinted, (filler, operand), strict=True):
        assert task.vocabulary == plain.vocabulary
        assert task.max_length(split) == plain.max_length(split) + d
        np.testing.assert_array_equal(examples.lengths, without.lengths + d)
        np.testing.assert_array_equal(examples.fingerprints, without.fingerprints)
        np.testing.assert_array_equal(
            task.token_type(examples) == task.token_types.index("hint"), examples.token_features["hint"] == 1
        )
        for row in range(len(indices)):
            hints = examples.token_features["hint"][row] == 1
            assert hints.sum() == d
            assert examples.loss_mask[row, hints].all()
            for name in ("tokens", "score_mask", "loss_mask"):
                kept = getattr(examples, name)[row, ~hints][: without.lengths[row]]
                np.testing.assert_array_equal(kept, getattr(without, name)[row, : without.lengths[row]])
    # The two conditions differ in what the hints say, and not in where they stand.
    np.testing.assert_array_equal(filler.token_features["hint"], operand.token_features["hint"])
    assert (filler.tokens[filler.token_features["hint"] == 1] == plain.vocabulary.index("_")).all()
    np.testing.assert_array_equal(filler.tokens != operand.tokens, filler.token_features["hint"] == 1)
    np.testing.assert_array_equal(filler.loss_mask, operand.loss_mask)


def test_who_has_to_say_a_hint() -> None:
    """The second head, where the next token's says the coefficient."""
    task = Polynomials(hint="operand", **SMALL_SETS).build()
    examples = task.examples("test", np.arange(0, 400, 9), 0)
    batch = packed_batch(examples, 100, 2)
    near, far = (targets(batch, offset, 100).numpy() for offset in (1, 2))
    found = {}
    for row, columns in enumerate((batch.tokens == task.vocabulary.index("=")).numpy()):
        for place in np.flatnonzero(columns):
            found[int(batch.document_ids[row, place])] = (
                near[row, place : place + 10 : 2],
                far[row, place : place + 10 : 2],
            )
    for row in range(len(examples.lengths)):
        record = task.record(examples, row)
        assert found[row][0].tolist() == record["answer"]
        assert found[row][1].tolist() == sympy_coefficients(record["expression"][1], 7, 5)


def test_hints_are_not_scored() -> None:
    for hint in ("filler", "operand"):
        task = Polynomials(hint=hint, **SMALL_SETS).build()
        examples = task.examples("test", np.arange(0, 400, 3), 0)
        nothing = np.zeros(examples.fingerprints.shape, np.bool_)
        predicted = np.where(examples.token_features["hint"], 8, examples.tokens).astype(np.uint16)
        assert task.summary(task.score(examples, predicted, nothing))["exact_match"] == 1
        predicted[:, :-1] = examples.tokens[:, 1:]  # a hint in the place of the coefficient before it is wrong
        assert task.summary(task.score(examples, predicted, nothing))["exact_match"] == 0


# Writing


def spelled(task: PolynomialTask, expression: Expression, answer: list[int], given: list[str]) -> list[str]:
    """A document, written the slow way; its hints are as in the document `given`."""
    config = task.config
    step = 1 if config.coefficients == "constant_first" else -1
    signs: dict[str, str] = dict(zip(OPERATORS, "-+*o", strict=True))

    def write(node: Expression) -> list[str]:
        if not isinstance(node[0], str):
            return list(map(str, node[::step]))
        parts = list(map(write, node[1:]))
        if config.syntax == "prefix":
            return [signs[node[0]], *(text for part in parts for text in part)]
        middle = [signs[node[0]], *parts[0]] if len(parts) == 1 else [*parts[0], signs[node[0]], *parts[1]]
        return ["(", *middle, ")"]

    if config.hint == "none":
        written = list(map(str, answer[::step]))
    else:
        hints = ["_"] * len(answer) if config.hint == "filler" else given[-2 * len(answer) : -1 : 2]
        written = [text for pair in zip(map(str, answer[::step]), hints, strict=True) for text in pair]
    return [*write(expression), *["_"] * config.pause, "=", *written, "."]


@settings(max_examples=60, deadline=None)
@given(configs(), st.sampled_from(SPLITS), st.integers(0, 2**31))
def test_documents(config: Polynomials, split: Split, seed: int) -> None:
    task, d = config.build(), config.degree
    examples = task.examples(split, np.arange(0, 20, 3), seed)
    low, high = config.test_operations if split == "test" else config.train_operations
    assert examples.tokens.dtype == np.uint16
    assert examples.tokens.shape[1] == examples.lengths.max() <= task.max_length(split)
    for row, length in enumerate(examples.lengths.tolist()):
        record = task.record(examples, row)
        assert json.loads(json.dumps(record)) == record
        assert list(record) == ["operations", "expression", "answer", "text", "tokens"]
        expression, m, leaves = record["expression"], record["operations"], count_leaves(record["expression"])
        texts = record["text"].split()
        assert texts == spelled(task, expression, record["answer"], texts)
        assert record["tokens"] == [task.vocabulary.index(text) for text in record["text"].split()]
        assert low <= m == count_operations(expression) <= high
        assert examples.slices["operations"][row] == m
        assert examples.slices["operator"][row] == expression[0]
        assert task.evaluate(expression) == record["answer"]
        assert length == len(record["tokens"])
        answer = d if config.hint == "none" else 2 * d
        assert length == m * (1 if config.syntax == "prefix" else 3) + leaves * d + config.pause + answer + 2
        place = np.arange(examples.tokens.shape[1])
        scored = np.isin(place, np.arange(length - answer - 1, length, answer // d))
        np.testing.assert_array_equal(examples.score_mask[row], scored)
        trained = (place < length) & ((place >= length - answer - 1) | (config.loss == "all"))
        np.testing.assert_array_equal(examples.loss_mask[row], trained)
        # The digits, and those after them: in the question, in pauses, at the end and beyond, nothing follows.
        followed = [1] * (length - answer - 1) + list(range(answer, 0, -1)) + [1] * (len(place) - length + 1)
        assert examples.horizons is not None
        assert examples.horizons[row].tolist() == followed
        assert not examples.tokens[row, length:].any()


@settings(max_examples=150, deadline=None)
@given(configs(), st.data())
def test_malformed_documents_are_refused(config: Polynomials, data: st.DataObject) -> None:
    task = config.build()
    examples = task.examples("test", np.array([data.draw(st.integers(0, 39))]), 0)
    tokens = examples.tokens[0, : examples.lengths[0]].tolist()
    damage = data.draw(st.sampled_from(["drop", "insert", "swap", "end"]))
    place = data.draw(st.integers(0, len(tokens) - 1))
    other = data.draw(st.integers(-2, len(task.vocabulary) + 2))
    if damage == "drop":
        broken = tokens[:place] + tokens[place + 1 :]
    elif damage == "insert":
        broken = [*tokens[:place], other, *tokens[place:]]
    elif damage == "end":
        broken = tokens[:place]
    else:
        broken = [*tokens[:place], other, *tokens[place + 1 :]]
    try:
        expression, answer = task.parse(broken)
    except BadInput:
        # Only what is no document may be refused: another coefficient or another binary sign leaves a document.
        spare = {*map(str, range(config.prime))}, {"+", "*", "o"}
        texts = [task.vocabulary[t] if 0 <= t < len(task.vocabulary) else "" for t in (tokens[place], other)]
        assert damage != "swap" or not any(set(texts) <= kind for kind in spare)
    else:
        texts = [task.vocabulary[token] for token in broken]
        assert spelled(task, expression, answer, texts) == texts


@pytest.mark.parametrize(
    ("syntax", "text"),
    [
        ("prefix", ""), ("prefix", "="), ("prefix", "+ 1 1 = 1 1 ."), ("prefix", "+ 1 1 1 1 = 1 1"),
        ("prefix", "+ 1 1 1 1 = 1 1 . ."), ("prefix", "( 1 1 + 1 1 ) = 1 1 ."), ("prefix", "- - - -"),
        ("prefix", "+ 1 1 1 1 _ = 1 1 ."), ("prefix", "- 1 1 = 1 ."), ("prefix", "- " * 65 + "1 1 = 1 1 ."),
        ("prefix", "- " * 5000 + "1 1 = 1 1 ."),
        ("infix", "1 1 + 1 1 = 1 1 ."), ("infix", "( 1 1 + 1 1 = 1 1 ."), ("infix", "( 1 1 - 1 1 ) = 1 1 ."),
        ("infix", "( ( 1 1 ) + 1 1 ) = 1 1 ."), ("infix", "( + 1 1 ) = 1 1 ."), ("infix", "+ 1 1 1 1 = 1 1 ."),
        ("infix", "( 1 1 + 1 1 ) ) = 1 1 ."), ("infix", "( " * 5000),
    ],
)  # fmt: skip
def test_these_are_no_documents(syntax: Any, text: str) -> None:
    task = Polynomials(prime=3, degree=2, syntax=syntax).build()
    with pytest.raises(BadInput, match="not a document of this task"):
        task.parse([task.vocabulary.index(word) for word in text.split()])


def test_lengths_at_the_defaults() -> None:
    task = DEFAULT.build()
    assert [task.max_length(split) for split in SPLITS] == [6 * 5 + 12, 6 * 5 + 12, 6 * 10 + 12]
    assert OTHER.build().max_length("test") == 8 * 10 + 12 + 3
    for m in (1, 5, 10):
        examples = task.examples("test", np.arange(2000 * (m - 1), 2000 * m), 0)
        assert set(examples.slices["operations"].tolist()) == {m}
        assert examples.lengths.max() <= 6 * m + 12
        assert examples.lengths.mean() == pytest.approx(4.75 * m + 12, abs=0.1 * m)


# Drawing


def test_uniform_law_gives_every_word_its_share() -> None:
    # All prefix words of three operators: each number b of binary ones has one way for each rotation class.
    count = 60_000
    operators = (1 + draws32(stream("operators"), np.arange(count), 3) % 2).astype(np.uint8)
    words = Counter(map(bytes, uniform_words(operators, draws32(stream("words"), np.arange(count), 6))))

    def is_word(symbols: tuple[int, ...]) -> bool:
        missing = 1 + np.cumsum([{NEG: 0, ADD: 1, LEAF: -1}[s] for s in symbols])
        return missing[-1] == 0 and bool((missing[:-1] > 0).all()) and sum(s != LEAF for s in symbols) == 3

    every = [bytes(w) + bytes(7 - n) for n in (4, 5, 6, 7) for w in product((NEG, ADD, LEAF), repeat=n) if is_word(w)]
    assert len(every) == 1 + 6 + 10 + 5
    assert set(words) == set(every)
    binary = Counter(word.count(ADD) for word in every)
    drawn = np.bincount((operators == ADD).sum(axis=1))
    expected = [drawn[word.count(ADD)] / binary[word.count(ADD)] for word in every]
    chi_square = sum((words[word] - e) ** 2 / e for word, e in zip(every, expected, strict=True))
    assert chi_square < 38  # 18 degrees of freedom: p = 0.004


def test_both_laws_keep_the_operators_and_write_valid_words() -> None:
    count, most = 3000, 12
    operators = (1 + draws32(stream("kinds"), np.arange(count), most) % 4).astype(np.uint8)
    lengths = 1 + draws32(stream("m"), np.arange(count), 1) % most
    operators[np.arange(most) >= lengths] = PAD
    random = draws32(stream("law"), np.arange(count), 2 * most)
    for words in (uniform_words(operators, random), split_words(operators, random[:, :most])):
        arity = np.array([1, 1, 2, 2, 2, 0])[words]
        still_open = 1 + np.cumsum(arity - 1, axis=1)
        total = np.count_nonzero(words, axis=1)
        np.testing.assert_array_equal(words != PAD, np.arange(2 * most + 1) < total[:, None])
        np.testing.assert_array_equal(still_open > 0, np.arange(2 * most + 1) < total[:, None] - 1)
        for symbol in range(NEG, LEAF):
            np.testing.assert_array_equal((words == symbol).sum(axis=1), (operators == symbol).sum(axis=1))


def test_split_law_shares_operations_uniformly() -> None:
    count, most = 20_000, 5
    operators = np.full((count, most), ADD, np.uint8)
    words = split_words(operators, draws32(stream("split"), np.arange(count), most))
    below_first = []
    for word in words:
        still_open = 1 + np.cumsum(np.where(word[1:] == ADD, 1, -1))
        below_first.append(np.argmin(still_open > 0) // 2)
    shares = np.bincount(below_first, minlength=most)
    assert ((shares - count / most) ** 2 / (count / most)).sum() < 15  # 4 degrees of freedom


def test_what_is_drawn_is_unbiased() -> None:
    config = Polynomials(operators={"neg": 1.0, "add": 2.0, "compose": 5.0}, train_operations=(2, 4))
    task = config.build()
    count = 20_000
    examples = task.examples("train", np.arange(count), 5)
    operations = np.bincount(examples.slices["operations"], minlength=5)[2:]
    assert ((operations - count / 3) ** 2 / (count / 3)).sum() < 14
    question = np.arange(examples.tokens.shape[1]) < examples.lengths[:, None] - 7
    tokens = np.bincount(examples.tokens[question], minlength=16)
    assert np.abs(tokens[:7] / tokens[:7].sum() - 1 / 7).max() < 0.003
    assert np.abs(tokens[7:11] / tokens[7:11].sum() - np.array([1, 2, 0, 5]) / 8).max() < 0.01
    # The prefix word's first operator is an exchangeable one in the split distribution only.
    split = config.model_copy(update={"shape": "split"}).build().examples("train", np.arange(count), 5)
    shares = [np.mean(split.slices["operator"] == name) for name in OPERATORS]
    assert shares == pytest.approx([1 / 8, 2 / 8, 0, 5 / 8], abs=0.015)


@pytest.mark.parametrize(
    "config", [DEFAULT, OTHER, Polynomials(prime=3, degree=2, unique_examples=70), Polynomials(hint="operand")]
)
@pytest.mark.parametrize("split", SPLITS)
def test_examples_are_pure(config: Polynomials, split: Split) -> None:
    task = config.model_copy(update={"test_examples": 30, "validation_examples": 30}).build()
    whole = task.examples(split, np.arange(150), 3)
    shuffled = np.random.default_rng(0).permutation(150)
    same(task.examples(split, shuffled, 3), rows_of(whole, shuffled))
    again = config.model_copy(update={"test_examples": 30, "validation_examples": 30}).build()
    for indices in np.split(shuffled, [1, 2, 30, 31]):
        same(again.examples(split, indices, 3), rows_of(whole, indices))
    assert len(task.examples(split, np.arange(0), 3).lengths) == 0


def digest(config: Polynomials, split: Split) -> str:
    task = config.build()
    examples = task.examples(split, np.arange(0, task.size(split) or 64, 1 if split == "train" else 97), 0)
    parts = [examples.tokens.astype("<u2"), examples.lengths.astype("<i8"), examples.loss_mask, examples.score_mask]
    parts += [examples.slices["operations"].astype("<i8"), examples.fingerprints.astype("<u8")]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


@pytest.mark.parametrize(
    ("config", "split", "expected"),
    [
        (DEFAULT, "train", "4f0246f04cb3d090"),
        (DEFAULT, "validation", "0c51fc8242d45105"),
        (DEFAULT, "test", "d25d4172fc40f468"),
        (OTHER, "train", "1e28c02c4b530ba1"),
        (OTHER, "validation", "9d4bed2e92e351c0"),
        (OTHER, "test", "2cf8619fa1a5be37"),
        (Polynomials(hint="operand"), "train", "ca95fe81d984b990"),
        (Polynomials(hint="filler"), "test", "4927a124ebfa4d02"),
    ],
)
def test_golden_hashes(config: Polynomials, split: Split, expected: str) -> None:
    """Every result rests on these examples: if they must change, raise the config's `version`."""
    assert digest(config, split) == expected


def test_seeds_move_training_alone() -> None:
    task = DEFAULT.build()
    indices = np.arange(50)
    for split in ("validation", "test"):
        same(task.examples(split, indices, 0), task.examples(split, indices, 1))
    assert not np.isin(
        task.examples("train", indices, 0).fingerprints, task.examples("train", indices, 1).fingerprints
    ).any()


def test_keys_are_of_the_question_not_its_spelling() -> None:
    indices = np.arange(200)
    config = DEFAULT.model_copy(update={"shape": "split"})
    np.testing.assert_array_equal(
        config.build().examples("train", indices, 0).fingerprints,
        OTHER.build().examples("train", indices, 0).fingerprints,
    )
    wider = Polynomials(test_operations=(1, 20))
    np.testing.assert_array_equal(
        wider.build().examples("train", indices, 0).fingerprints,
        DEFAULT.build().examples("train", indices, 0).fingerprints,
    )
    # In a small ring many questions recur: equal keys and equal texts must be the same thing.
    task = Polynomials(prime=2, degree=2, train_operations=(1, 4)).build()
    examples = task.examples("train", np.arange(4000), 0)
    texts = [task.record(examples, row)["text"] for row in range(4000)]
    pairs = set(zip(texts, examples.fingerprints[:, 0].tolist(), strict=True))
    assert len(set(texts)) == len(set(examples.fingerprints[:, 0].tolist())) == len(pairs) < 3500


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_splits_are_ordered_by_operations(split: Split) -> None:
    task = Polynomials(train_operations=(2, 4), test_operations=(3, 5), **SMALL_SETS).build()
    low, each = (2, 20) if split == "validation" else (3, 40)
    assert task.size(split) == 3 * each
    examples = task.examples(split, np.arange(3 * each), 0)
    assert examples.slices["operations"].tolist() == [m for m in range(low, low + 3) for _ in range(each)]
    for index in (-1, 3 * each):
        with pytest.raises(IndexError, match=split):
            task.examples(split, np.array([index]), 0)


def test_training_is_unlimited() -> None:
    task = DEFAULT.build()
    assert task.size("train") is None
    assert task.examples("train", np.array([2**40, 0]), 0).lengths.min() > 0
    with pytest.raises(IndexError):
        task.examples("train", np.array([-1]), 0)


# Holding out


def all_keys(task: PolynomialTask, split: Split, count: int | None = None, seed: int = 0) -> NDArray[np.uint64]:
    return task.examples(split, np.arange(count or task.size(split) or 0), seed).fingerprints[:, 0]


@pytest.mark.parametrize("config", [
    DEFAULT,
    # 16807 negations, of which evaluation takes a fifth.
    Polynomials(operators={"neg": 1.0}, train_operations=(1, 1), test_operations=(1, 1)),
    Polynomials(operators={"neg": 1.0, "add": 1.0}, prime=101, degree=2, test_operations=(1, 2)),
])  # fmt: skip
def test_evaluation_is_kept_out_of_large_spaces(config: Polynomials) -> None:
    task = config.build()
    test, validation = all_keys(task, "test"), all_keys(task, "validation")
    train = np.concatenate([all_keys(task, "train", 20_000, seed) for seed in (0, 1)])
    assert not np.isin(validation, test).any()
    assert not np.isin(train, np.concatenate([test, validation])).any()
    if config is not DEFAULT:
        # Without the hold-out there would be overlap: held-out expressions are drawn, and replaced.
        small = config.model_copy(update={"test_examples": 1, "validation_examples": 1}).build()
        assert np.isin(all_keys(small, "train", 20_000), test).any()


def test_small_spaces_overlap() -> None:
    task = Polynomials(prime=3, degree=2, train_operations=(1, 2), test_operations=(1, 2)).build()
    assert np.isin(all_keys(task, "test"), all_keys(task, "train", 5000)).mean() > 0.5


def test_large_spaces_are_told_by_leaves() -> None:
    # In F_3[X]/(X^2) an expression with l leaves has 9^l fillings: five leaves make it large.
    task = Polynomials(prime=3, degree=2, train_operations=(1, 5), test_operations=(1, 5)).build()
    assert 9**4 < LARGE <= 9**5
    held_out, free = set(), set()
    for split in ("test", "validation"):
        examples = task.examples(split, np.arange(task.size(split) or 0), 0)
        leaves = (examples.lengths - 4 - examples.slices["operations"]) // 2
        held_out |= set(examples.fingerprints[leaves >= 5, 0].tolist())
        free |= set(examples.fingerprints[leaves < 5, 0].tolist())
    train = set(all_keys(task, "train", 50_000).tolist())
    assert held_out
    assert not train & held_out
    assert train & free


def test_spaces_that_evaluation_could_exhaust_are_shared() -> None:
    # 16807 negations are less than four times 10,000: holding them out could leave nothing to train on.
    task = Polynomials(
        operators={"neg": 1.0}, train_operations=(1, 1), test_operations=(1, 1), test_examples=10_000
    ).build()
    assert np.isin(all_keys(task, "train", 2000), all_keys(task, "test")).any()


# A finite corpus


def test_epochs_are_permutations_of_one_corpus() -> None:
    size = 100
    task = Polynomials(unique_examples=size).build()
    assert task.size("train") is None
    epochs = all_keys(task, "train", 5 * size).reshape(5, size)
    corpus = all_keys(DEFAULT.build(), "train", size)
    for epoch in epochs:
        assert Counter(epoch.tolist()) == Counter(corpus.tolist())
        assert epoch.tolist() != corpus.tolist()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 5
    assert not np.isin(all_keys(task, "train", size, seed=1), corpus).any()


# Scoring


def slow_score(
    task: PolynomialTask, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]
) -> list[ScoreRow]:
    d = task.config.degree
    groups: dict[tuple[int, str, str], list[tuple[list[bool], tuple[int, ...]]]] = {}
    for row, length in enumerate(examples.lengths.tolist()):
        step = 1 if task.config.hint == "none" else 2
        answer = slice(length - 1 - d * step, length, step)
        truth = examples.tokens[row, answer].tolist()
        right = [a == b for a, b in zip(truth, predicted[row, answer].tolist(), strict=True)]
        for operator in ("all", str(examples.slices["operator"][row])):
            for familiarity in ("all", "seen" if seen[row, 0] else "unseen"):
                key = (int(examples.slices["operations"][row]), operator, familiarity)
                groups.setdefault(key, []).append((right, tuple(truth[:d])))
    rows = []
    for (m, operator, familiarity), members in groups.items():
        if familiarity == "unseen" and (m, operator, "seen") not in groups:
            continue
        n = len(members)
        coefficients = [sum(right[k] for right, _ in members) / n for k in range(d)]
        rows.append({
            "operations": m, "operator": operator, "seen": familiarity, "count": n,
            "exact_match": sum(all(right) for right, _ in members) / n,
            "exact_match_without_end": sum(all(right[:d]) for right, _ in members) / n,
            "coefficient_accuracy": sum(coefficients) / d,
            "coefficients": coefficients,
            "constant_answer": Counter(answer for _, answer in members).most_common(1)[0][1] / n,
        })  # fmt: skip
    return rows


@settings(max_examples=40, deadline=None)
@given(configs(), st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.9, 1.0]))
def test_scores_against_a_slow_scorer(config: Polynomials, seed: int, share: float) -> None:
    task = config.build()
    examples = task.examples("test", np.arange(0, task.size("test") or 0, 3), 0)
    generator = np.random.default_rng(seed)
    wrong = generator.random(examples.tokens.shape) < 0.15
    predicted = np.where(wrong, 0, examples.tokens).astype(np.uint16)
    predicted[~examples.score_mask] = 1  # must not matter
    seen = generator.random((len(examples.lengths), 1)) < share

    def ordered(rows: list[ScoreRow]) -> list[ScoreRow]:
        return sorted(rows, key=lambda row: (row["operations"], row["operator"], row["seen"]))

    got, expected = task.score(examples, predicted, seen), slow_score(task, examples, predicted, seen)
    assert json.loads(json.dumps(got)) == got
    assert len(got) == len(expected)
    for left, right in zip(ordered(got), ordered(expected), strict=True):
        assert list(left) == list(right)
        for name, value in right.items():
            assert left[name] == (value if isinstance(value, str | int) else pytest.approx(value))
    summary = task.summary(got)
    whole = [row for row in expected if row["operator"] == row["seen"] == "all"]
    for name in ("exact_match", "exact_match_without_end", "coefficient_accuracy"):
        assert summary[name] == pytest.approx(np.mean([row[name] for row in whole]))
    of_m = {}
    for m in {row["operations"] for row in expected}:
        parts = {row["seen"]: row for row in expected if (row["operations"], row["operator"]) == (m, "all")}
        for name in ("exact_match", "constant_answer"):
            if "unseen" in parts or "seen" not in parts:  # where none is seen, all are unseen
                of_m[f"{name}_operations_{m}_seen_unseen"] = parts.get("unseen", parts["all"])[name]
    means = {"exact_match", "exact_match_without_end", "coefficient_accuracy"}
    assert {name: value for name, value in summary.items() if name not in means} == pytest.approx(of_m)


def test_right_and_wrong_ends() -> None:
    task = DEFAULT.build()
    examples = task.examples("test", np.arange(0, 20_000, 500), 0)
    nothing = np.zeros(examples.fingerprints.shape, np.bool_)
    perfect = task.summary(task.score(examples, examples.tokens, nothing))
    measures = ("exact_match", "exact_match_without_end", "coefficient_accuracy")
    assert [perfect[name] for name in measures] == [1.0, 1.0, 1.0]
    assert perfect["exact_match_operations_1_seen_unseen"] == 1.0
    predicted = examples.tokens.copy()
    predicted[np.arange(len(predicted)), examples.lengths - 1] = 0
    cut = task.summary(task.score(examples, predicted, nothing))
    assert [cut[name] for name in measures] == [0.0, 1.0, 1.0]


def test_constant_answers_at_known_rings() -> None:
    # Measured before: at most 0.3 % for p=7 d=5, 17 to 26 % for p=3 d=2.
    for config, low, high in ((DEFAULT, 0.0, 0.006), (Polynomials(prime=3, degree=2), 0.14, 0.28)):
        task = config.build()
        examples = task.examples("test", np.arange(task.size("test") or 0), 0)
        rows = task.score(examples, examples.tokens, np.zeros(examples.fingerprints.shape, np.bool_))
        shares = [row["constant_answer"] for row in rows if row["operator"] == "all"]
        assert len(shares) == 10
        assert low <= min(shares) <= max(shares) <= high


# Configuring


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prime": 1}, "prime from 2 to 65521"), ({"prime": 9}, "prime from 2 to 65521"),
        ({"prime": 65537}, "prime from 2 to 65521"), ({"prime": -7}, "prime from 2 to 65521"),
        ({"prime": 10**30}, "prime from 2 to 65521"), ({"prime": "7"}, "valid integer"),
        ({"degree": 0}, "greater than or equal to 1"), ({"degree": 65}, "less than or equal to 64"),
        ({"operators": {}}, "at least one of neg, add, mul, compose"), ({"operators": {"add": 0.0}}, "at least one of"),
        ({"operators": {"sub": 1.0}}, "'neg', 'add', 'mul' or 'compose'"), ({"operators": {"add": -1.0}}, "greater"),
        ({"operators": {"add": float("inf")}}, "finite"), ({"operators": {"add": float("nan")}}, "finite|greater"),
        ({"train_operations": (0, 5)}, "from 1 to 64"), ({"train_operations": (3, 2)}, "from 1 to 64"),
        ({"test_operations": (1, 65)}, "from 1 to 64"), ({"test_operations": (1, 2, 3)}, "at most 2"),
        ({"test_examples": 0}, "greater than"), ({"validation_examples": 0}, "greater than"),
        ({"unique_examples": 0}, "greater than"), ({"pause": -1}, "greater than"), ({"syntax": "postfix"}, "'prefix'"),
        ({"hint": "operands"}, "'none', 'filler' or 'operand'"),
    ],
)  # fmt: skip
def test_invalid_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Polynomials(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prime": 9}, "prime: 9 is not allowed: should be a prime from 2 to 65521"),
        (
            {"train_operations": [3, 2]},
            "train_operations: [3, 2] is not allowed: should be the least and the most operations, from 1 to 64",
        ),
        (
            {"operators": {"add": 0}},
            'operators: {"add": 0} is not allowed: at least one of neg, add, mul, compose needs a positive weight',
        ),
    ],
)
def test_refusals_read_well(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as refusal:
        validated(Polynomials, fields)
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    "fields",
    [
        {"train_operations": (64, 64), "test_operations": (64, 64), "operators": {"add": 1.0}, "syntax": "infix"},
        {"train_operations": (64, 64), "test_operations": (1, 1), "operators": {"neg": 1e-300}, "shape": "split"},
        {"prime": 2, "degree": 1, "operators": {"compose": 1e308, "mul": 1e308}},
        {"prime": 65521, "degree": 64, "train_operations": (1, 2)},
    ],
)
def test_extreme_configs_work(fields: dict[str, Any]) -> None:
    task = Polynomials(**fields, **SMALL_SETS).build()
    for split in SPLITS:
        examples = task.examples(split, np.arange(10), 0)
        assert examples.lengths.max() <= task.max_length(split)
        for row in range(10):
            record = task.record(examples, row)
            assert task.evaluate(record["expression"]) == record["answer"]
            assert set(np.unique(examples.slices["operator"])) <= set(fields.get("operators", OPERATORS))
