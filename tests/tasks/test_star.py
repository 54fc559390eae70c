"""Path-star graphs: rows against a search of their own graphs, hold-out, scores against plain retellings."""

import hashlib
import json
from collections import Counter, defaultdict, deque
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lab.config import canonical, validated
from lab.errors import BadInput
from lab.learning.data import packed_batch
from lab.models.sizes import Model
from lab.objectives import build_model
from lab.objectives.backward import Order, losses
from lab.objectives.base import Batch, targets
from lab.objectives.parallel import Parallel
from lab.objectives.sequential import Sequential
from lab.tasks.base import SPLITS, Examples, Split
from lab.tasks.star import Star, StarTask
from tests.cli.test_cli import lab

SMALL = Star(arms=2, length=2, labels=6, validation_examples=50, test_examples=100)
MIXED = Star(arms=3, length=3, labels=30, backwards=0.5, validation_examples=200, test_examples=300)

GOLDEN = [
    ["24b2c332604b6290", "ba35d6127b2a6767", "c532a462d413f582"],
    ["c7889b4f3ec01fe9", "c2832f6686d6ead6", "e2d60cd47288e244"],
    ["5fb3bbf4c546daf0", "467b5cc6ef320b4a", "a7a03474449afd4c"],
]

configs = st.builds(
    lambda arms, length, spare, backwards: Star(
        arms=arms, length=length, labels=1 + arms * length + spare, backwards=backwards,
        validation_examples=20, test_examples=20,
    ),
    st.integers(2, 6), st.integers(2, 6), st.integers(0, 40), st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip


def found_path(edges: list[list[int]], start: int, goal: int) -> list[int]:
    """The path from start to goal by breadth-first search, from the edges alone."""
    after = defaultdict(list)
    for source, target in edges:
        after[source].append(target)
    paths = deque([[start]])
    while paths:
        path = paths.popleft()
        if path[-1] == goal:
            return path
        paths.extend([*path, node] for node in after[path[-1]])
    raise AssertionError("the goal cannot be reached")


def check(record: dict[str, Any], arms: int, length: int, labels: int) -> None:
    """Hold one record of `lab data show --json` to what a path-star graph is."""
    edges, start, goal, path = (record[name] for name in ("edges", "start", "goal", "path"))
    assert len(edges) == arms * length
    nodes = {node for edge in edges for node in edge}
    assert len(nodes) == 1 + arms * length
    assert nodes <= set(range(labels))
    out, into = Counter(source for source, _ in edges), Counter(target for _, target in edges)
    assert out[start] == arms
    assert into[start] == 0
    assert all(into[node] == 1 and out[node] <= 1 for node in nodes - {start})
    assert out[goal] == 0
    assert path == found_path(edges, start, goal)
    assert len(path) == length + 1
    written, sign = (path[-2::-1], "<") if record["backwards"] else (path[1:], "=")
    said = [*(node for edge in edges for node in edge), "/", start, goal, sign, *written]
    assert record["text"] == " ".join(map(str, said))
    signs = {"/": labels, "=": labels + 1, "<": labels + 2}
    assert record["tokens"] == [signs.get(each, each) for each in said]


@pytest.mark.parametrize("fields", [
    {}, {"arms": 3, "length": 3, "labels": 10}, {"arms": 2, "length": 4, "labels": 50, "backwards": 0.4},
])  # fmt: skip
def test_a_search_of_the_graph_confirms_2000_shown_answers(fields: dict[str, Any]) -> None:
    config = Star(**fields)
    overrides = [f"task.{name}={value}" for name, value in fields.items()]
    shown = lab("data", "show", "datasets/star.yaml", *overrides, "--split", "test", "--count", "2000", "--json")
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(records) == 2000
    for record in records:
        check(record, config.arms, config.length, config.labels)
    assert sum(record["backwards"] for record in records) / 2000 == pytest.approx(config.backwards, abs=0.04)


@given(configs, st.integers(0, 2**40), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_row_is_a_path_star(config: Star, first: int, seed: int) -> None:
    task = config.build()
    examples = task.examples("train", np.arange(first, first + 8), seed)
    assert (examples.lengths == task.max_length("train")).all()
    assert examples.tokens.shape == (8, 2 * config.arms * config.length + config.length + 4)
    assert examples.tokens.max() < len(task.vocabulary)
    for row in range(8):
        record = task.record(examples, row)
        check(record, config.arms, config.length, config.labels)
        assert examples.slices["direction"][row] == ("backwards" if record["backwards"] else "forwards")
        where = np.flatnonzero(examples.score_mask[row])
        assert where.tolist() == list(range(len(record["tokens"]) - config.length, len(record["tokens"])))
        kinds = [task.token_types[kind] for kind in task.token_type(examples)[row]]
        assert kinds[where[0]] == "choice"
        assert kinds[-1] == "last"
        assert kinds.count("between") == config.length - 2
        assert kinds[where[0] - 3 : where[0]] == ["start", "goal", "sign"]


def test_what_is_drawn_is_unbiased() -> None:
    task, count = Star(arms=3, length=2, labels=9, backwards=0.25).build(), 30_000
    examples = task.examples("train", np.arange(count), 1)
    records = [task.record(examples, row) for row in range(count)]
    starts = Counter(record["start"] for record in records)
    goals = Counter(record["goal"] for record in records)
    places = Counter(record["edges"].index(record["path"][:2]) for record in records)  # of the edge that is chosen
    for counts, ways in ((starts, 9), (goals, 9), (places, 6)):
        assert len(counts) == ways
        assert stats.chisquare(list(counts.values())).pvalue > 1e-4
    assert np.mean([record["backwards"] for record in records]) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("config", [Star(), SMALL, MIXED], ids=["default", "small", "mixed"])
@pytest.mark.parametrize("split", SPLITS)
def test_examples_are_pure(config: Star, split: Split) -> None:
    task, indices = config.build(), np.arange(50)
    whole = task.examples(split, indices, 3)
    some = config.build().examples(split, np.array([41, 3]), 3)
    for one, other in (
        (some.tokens, whole.tokens),
        (some.fingerprints, whole.fingerprints),
        (some.loss_mask, whole.loss_mask),
    ):
        np.testing.assert_array_equal(one, other[[41, 3]])
    moved = (task.examples(split, indices, 4).tokens != whole.tokens).any()
    assert moved == (split == "train")
    assert len(task.examples(split, indices[:0], 3).lengths) == 0


def test_an_index_outside_of_a_split_is_refused() -> None:
    task = SMALL.build()
    assert task.size("train") is None
    wrong: list[tuple[Split, int]] = [("test", 100), ("validation", 50), ("train", -1)]
    for split, index in wrong:
        with pytest.raises(IndexError, match=split):
            task.examples(split, np.array([index]), 0)


def question(record: dict[str, Any]) -> tuple[frozenset[tuple[int, int]], int]:
    """What a row asks: its graph, in no order, and the goal."""
    return frozenset((source, target) for source, target in record["edges"]), record["goal"]


def test_keys_are_of_the_question_not_its_spelling() -> None:
    task = SMALL.model_copy(update={"backwards": 0.5}).build()
    examples = task.examples("train", np.arange(4000), 0)
    questions = [question(task.record(examples, row)) for row in range(4000)]
    pairs = set(zip(questions, examples.fingerprints[:, 0].tolist(), strict=True))
    # 6! / 1! labellings of five nodes; as many questions, since swapping the arms and which of them holds the goal
    # cancel.
    assert len(set(questions)) == len(set(examples.fingerprints[:, 0].tolist())) == len(pairs)
    assert 700 < len(pairs) <= 720


def all_keys(task: StarTask, split: Split, count: int | None = None, seed: int = 0) -> Any:
    return task.examples(split, np.arange(count or task.size(split) or 0), seed).fingerprints[:, 0]


def test_evaluation_is_kept_out_of_large_spaces() -> None:
    # 9 * 8 * 7 * 6 * 5 = 15,120 questions, of which evaluation takes a quarter.
    config = Star(labels=9, validation_examples=1500, test_examples=2200)
    task = config.build()
    test, validation = all_keys(task, "test"), all_keys(task, "validation")
    train = np.concatenate([all_keys(task, "train", 20_000, seed) for seed in (0, 1)])
    assert not np.isin(validation, test).any()
    assert not np.isin(train, np.concatenate([test, validation])).any()
    # Without the hold-out there would be overlap: the same draws with nothing to keep out have it.
    free = config.model_copy(update={"test_examples": 4000}).build()
    assert np.isin(all_keys(free, "train", 20_000), all_keys(free, "test")).any()


def test_small_spaces_overlap_and_are_scored_apart() -> None:
    task = SMALL.build()
    examples = task.examples("test", np.arange(100), 0)
    seen = np.isin(examples.fingerprints, all_keys(task, "train", 300))
    assert 0.1 < seen.mean() < 0.9
    wrong = np.where(seen, examples.tokens, 0).astype(np.uint16)  # right on seen questions alone
    by_seen = {row["seen"]: row for row in task.score(examples, wrong, seen) if row["place"] == "all"}
    assert by_seen["seen"]["accuracy"] == 1.0
    assert by_seen["unseen"]["accuracy"] == 0.0
    assert by_seen["all"]["accuracy"] == pytest.approx(seen.mean())
    assert {each: by_seen[each]["count"] for each in by_seen} == {
        "all": 100, "seen": int(seen.sum()), "unseen": int((~seen).sum())
    }  # fmt: skip


def retold(task: StarTask, examples: Examples, predicted: Any) -> dict[Any, float]:
    """Accuracy by place and direction, one row after another."""
    hits: dict[Any, list[bool]] = defaultdict(list)
    for row in range(len(examples.tokens)):
        record = task.record(examples, row)
        path = record["path"][-2::-1] if record["backwards"] else record["path"][1:]
        right = [int(said) == node for said, node in zip(predicted[row, -len(path) :], path, strict=True)]
        for direction in ("all", "backwards" if record["backwards"] else "forwards"):
            hits["all", direction].append(all(right))
            for place, hit in enumerate(right, start=1):
                hits[place, direction].append(hit)
    return {key: float(np.mean(values)) for key, values in hits.items()}


def test_scores_are_those_of_a_retelling() -> None:
    task = MIXED.build()
    examples = task.examples("test", np.arange(300), 0)
    random = np.random.default_rng(0)
    predicted = np.where(random.random(examples.tokens.shape) < 0.3, 0, examples.tokens).astype(np.uint16)
    rows = task.score(examples, predicted, np.zeros((300, 1), np.bool_))
    told = retold(task, examples, predicted)
    assert {(row["place"], row["direction"]): row["accuracy"] for row in rows} == pytest.approx(told)
    assert {row["oracle"] for row in rows} == {1.0}
    summary = task.summary(rows)
    assert summary["accuracy"] == pytest.approx(told["all", "all"])
    assert summary["accuracy_place_1"] == pytest.approx(told[1, "all"])
    assert summary["chance_place_1"] == summary["chance"] == pytest.approx(1 / 3)
    assert task.metric in summary


@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("backwards", [0.0, 0.5, 1.0])
def test_the_shortcut_guesses_the_arm_and_looks_up_the_rest(length: int, backwards: float) -> None:
    task = Star(arms=4, length=length, labels=40, backwards=backwards).build()
    examples = task.examples("test", np.arange(2000), 0)
    table = task.score(examples, examples.tokens, np.zeros((2000, 1), np.bool_))
    rows = {row["place"]: row for row in table if row["direction"] == "all"}
    for place in ("all", 1):
        assert rows[place]["chance"] == 0.25
        assert rows[place]["shortcut"] == pytest.approx(0.25, abs=0.04)
    assert all(rows[place]["shortcut"] == 1.0 for place in range(2, length + 1))
    assert rows[2]["chance"] == pytest.approx(1 / (1 + 4 * length))

    # What it may say at place 1: a node at the true one's depth, one of each arm.
    for row, options in enumerate(task._options(examples)[:100].tolist()):
        record = task.record(examples, row)
        arms = [found_path(record["edges"], record["start"], end) for end in ends(record["edges"])]
        assert sorted(options) == sorted(arm[-2 if record["backwards"] else 1] for arm in arms)


def ends(edges: list[list[int]]) -> set[int]:
    """The nodes that lead nowhere."""
    return {target for _, target in edges} - {source for source, _ in edges}


def test_loss_covers_what_is_asked_for() -> None:
    answer, everything = (Star(loss=loss).build().examples("train", np.arange(5), 0) for loss in ("answer", "all"))
    assert (answer.loss_mask == answer.score_mask).all()
    assert answer.loss_mask.sum(axis=1).tolist() == [2] * 5
    assert everything.loss_mask.all()
    assert (everything.tokens == answer.tokens).all()
    assert answer.horizons is not None
    assert answer.horizons[0].tolist() == [1] * 12 + [2, 1]


def digest(config: Star, split: Split) -> str:
    task = config.build()
    examples = task.examples(split, np.arange(task.size(split) or 64), 0)
    parts = [
        examples.tokens.astype("<u2"),
        examples.loss_mask,
        examples.score_mask,
        examples.fingerprints.astype("<u8"),
    ]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


@pytest.mark.parametrize(("config", "expected"), [(Star(), GOLDEN[0]), (SMALL, GOLDEN[1]), (MIXED, GOLDEN[2])])
def test_golden_hashes(config: Star, expected: list[str]) -> None:
    """Every result rests on these examples: if they must change, raise the config's `version`."""
    assert [digest(config, split) for split in SPLITS] == expected


@pytest.mark.parametrize(("fields", "line"), [
    ({"labels": 9, "arms": 3, "length": 3}, "labels: 9 is not allowed: 3 arms of 3 nodes take at least 10"),
    ({"arms": 1}, "arms: 1 is not allowed"),
    ({"length": 1}, "length: 1 is not allowed"),
    ({"backwards": 1.5}, "backwards: 1.5 is not allowed"),
    ({"loss": "path"}, 'loss: "path" is not allowed'),
    ({"lenght": 3}, "lenght: unknown field"),
])  # fmt: skip
def test_bad_fields(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as error:
        validated(Star, fields)
    assert str(error.value).startswith(line)


def test_masks_hide_nodes_from_training_alone() -> None:
    plain, config = Star(length=3), Star(length=3, masked=0.3)
    task = config.build()
    examples, before = task.examples("train", np.arange(5000), 2), plain.build().examples("train", np.arange(5000), 2)
    assert examples.inputs is not None
    assert before.inputs is None
    assert (examples.tokens == before.tokens).all()
    hidden = examples.inputs != examples.tokens
    assert {task.vocabulary[token] for token in np.unique(examples.inputs[hidden])} == {"_"}
    assert not hidden[~examples.score_mask].any()
    assert hidden[examples.score_mask].mean() == pytest.approx(0.3, abs=0.01)
    assert np.corrcoef(hidden[:, -1], hidden[:, -2])[0, 1] == pytest.approx(0, abs=0.05)
    assert task.examples("test", np.arange(5), 2).inputs is None
    again = task.examples("train", np.array([77, 3]), 2).inputs
    assert again is not None
    assert (again == examples.inputs[[77, 3]]).all()
    assert canonical(plain) == canonical(Star(length=3, masked=0.0))
    assert "masked" not in canonical(plain)


@pytest.mark.parametrize("objective", [Parallel(n=2), Sequential(n=2)], ids=["parallel", "sequential"])
def test_what_is_masked_is_not_read_and_still_a_target(objective: Parallel | Sequential) -> None:
    task = Star(length=3, masked=0.5).build()
    examples = task.examples("train", np.arange(8), 0)
    model = build_model(Model(layers=3, width=16, heads=2), objective, len(task.vocabulary), 0).double()
    batch = packed_batch(examples, 30, 2)
    assert batch.inputs is not None

    def nats(batch: Batch) -> torch.Tensor:
        return losses(model.objective, model.decoder, batch, [1.0, 1.0]).nats

    # The loss is what one gets from reading the masked row where targets are looked up in the true one.
    positions = batch.tokens.shape[1] - 2
    context = model.decoder.context(batch.inputs[:, :positions], batch.document_ids[:, :positions])
    trunk = model.decoder(batch.inputs[:, :positions], context)
    heads = model.objective.logits(model.decoder, trunk, context, 2, batch.inputs[:, :-1])
    for head, logits in enumerate(heads, start=1):
        wanted = targets(batch, head, positions)
        true = torch.nn.functional.cross_entropy(logits[wanted != -100], wanted[wanted != -100], reduction="sum")
        assert nats(batch)[head - 1] == pytest.approx(float(true.detach()))
        assert (wanted[wanted != -100] < 20).all()  # no mask is a target
    assert (nats(batch) != nats(batch._replace(inputs=None))).all()
    orders: tuple[Order, ...] = ("sequential", "fused")
    for order in orders:
        again = losses(model.objective, model.decoder, batch, [1.0, 1.0], order).nats
        torch.testing.assert_close(again, nats(batch))

    # Parts of a batch keep what they read.
    half, other = (batch.rows(slice(k, None, 2)) for k in range(2))
    torch.testing.assert_close(nats(half) + nats(other), nats(batch))
