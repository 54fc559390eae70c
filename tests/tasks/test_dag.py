"""Paths in a graph learned by heart: rows and degrees against searches of their own, any valid answer counts."""

import hashlib
import itertools
import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.config import validated
from lab.errors import BadInput
from lab.learning.evaluation import answered, evaluate, generate
from lab.models.sizes import Model
from lab.objectives import build_model
from lab.objectives.parallel import Parallel
from lab.tasks.base import SPLITS, GeneratedAnswers, Split
from lab.tasks.dag import Dag, DagTask
from tests.cli.test_cli import lab

SMALL = Dag(nodes=30, edge_probability=0.2, train_pairs=0.2, paths=3, validation_examples=20, test_examples=60)

GOLDEN = [
    ["4da7b605aec50245", "d9eb883d9635ab03", "dab978ff208ac22e"],
    ["c93e5ebf7f948ad9", "189e8f72e95060b1", "d599f8d0f00af53a"],
]

Graph = dict[int, list[int]]


def successors(edges: list[list[int]]) -> Graph:
    """The graph as lists of successors."""
    after: Graph = defaultdict(list)
    for source, target in edges:
        after[source].append(target)
    return after


def reached(after: Graph, start: int) -> set[int]:
    """The nodes that can be reached from the start, itself among them, by depth-first search."""
    found, open_nodes = {start}, [start]
    while open_nodes:
        for node in after[open_nodes.pop()]:
            if node not in found:
                found.add(node)
                open_nodes.append(node)
    return found


def is_path(after: Graph, path: list[int], start: int, goal: int) -> bool:
    """True if the path leads from start to goal along edges."""
    steps = itertools.pairwise(path)
    return bool(path) and path[0] == start and path[-1] == goal and all(b in after[a] for a, b in steps)


def degree_of(after: Graph, observed: set[tuple[int, int]], start: int, goal: int) -> int:
    """The degree by the paper's four cases, `observed` holding (node, goal)."""
    if (start, goal) in observed:
        return 0
    if any((node, goal) in observed for node in after[start]):
        return 1
    for node in after[start]:
        if (node, goal) not in observed and any((further, goal) in observed for further in after[node]):
            return 2
    return 3


def records(task: DagTask, split: Split, count: int | None = None) -> list[dict[str, Any]]:
    count = count or task.size(split) or 0
    examples = task.examples(split, np.arange(count), 0)
    return [task.record(examples, row) for row in range(count)]


def observed_in(corpus: list[dict[str, Any]]) -> set[tuple[int, int]]:
    """(node, goal) of the nodes after the first of each training path."""
    return {(node, record["goal"]) for record in corpus for node in record["path"][1:]}


def check(record: dict[str, Any], after: Graph, nodes: int) -> None:
    """Hold one shown record to what a row of this task is."""
    start, goal, path = record["start"], record["goal"], record["path"]
    assert is_path(after, path, start, goal)
    said = [start, goal, ":", *path, "."]
    assert record["text"] == " ".join(map(str, said))
    assert record["tokens"] == [{":": nodes, ".": nodes + 1}.get(each, each) for each in said]


def test_a_search_of_the_graph_confirms_2000_shown_answers_and_their_degrees() -> None:
    shown = {}
    for split, count in (("train", 604), ("test", 1396)):
        printed = lab("data", "show", "datasets/dag.yaml", "--split", split, "--count", str(count), "--json").stdout
        shown[split] = [json.loads(line) for line in printed.splitlines()]
        assert len(shown[split]) == count
    edges = shown["test"][0]["edges"]
    after, task = successors(edges), Dag().build()
    assert task.corpus == 14_694
    observed = observed_in(records(task, "train", task.corpus))
    for split, found in shown.items():
        for record in found:
            assert record["edges"] == edges
            check(record, after, 100)
            if split == "test":
                assert record["degree"] == degree_of(after, observed, record["start"], record["goal"])
    assert [sum(record["degree"] == degree for record in shown["test"]) for degree in range(4)] == [646, 597, 126, 27]


def test_the_corpus_is_what_the_card_says() -> None:
    task = SMALL.build()
    corpus, (first, *_) = records(task, "train", task.corpus), records(task, "test", 1)
    edges, after = [tuple(edge) for edge in first["edges"]], successors(first["edges"])
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for record in corpus:
        counts[record["start"], record["goal"]] += 1
        check(record, after, 30)
    # Each edge once directly and three times as a pair, every other training pair three times.
    assert {counts[edge] for edge in edges} == {4}
    others = [pair for pair in counts if pair not in edges]
    assert {counts[pair] for pair in others} == {3}
    assert len(corpus) == task.corpus == 4 * len(edges) + 3 * len(others)
    direct = sum(record["path"] == [record["start"], record["goal"]] for record in corpus)
    assert direct >= len(edges)

    # Training pairs and questions are all pairs of which one reaches the other, and no pair is in two splits.
    asked = [(record["start"], record["goal"]) for split in SPLITS[1:] for record in records(task, split)]
    pairs = {(start, goal) for start in range(30) for goal in reached(after, start) - {start}}
    assert len(asked) == len(set(asked))
    assert not set(asked) & set(counts)
    everything = SMALL.model_copy(update={"test_examples": 1000}).build()
    asked = [(record["start"], record["goal"]) for split in SPLITS[1:] for record in records(everything, split)]
    assert set(asked) | set(counts) == pairs
    share = len(others) / (len(pairs) - len(edges))
    assert 0.08 < share < 0.35

    # The corpus comes in a new order every epoch, whole each time.
    epochs = task.examples("train", np.arange(2 * task.corpus), 0)
    rows = [tuple(row[:length]) for row, length in zip(epochs.tokens.tolist(), epochs.lengths, strict=True)]
    assert sorted(rows[: task.corpus]) == sorted(rows[task.corpus :])
    assert rows[: task.corpus] != rows[task.corpus :]


@given(
    st.builds(
        lambda nodes, edge_probability, graph, train_pairs, paths: Dag(
            nodes=nodes, edge_probability=edge_probability, graph=graph, train_pairs=train_pairs, paths=paths
        ),
        st.integers(12, 40), st.floats(0.1, 0.6), st.integers(0, 1000), st.floats(0, 0.6), st.integers(1, 4),
    )
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_every_graph_is_consistent(config: Dag) -> None:
    try:
        task = config.build()
    except BadInput:
        return  # too dense or too sparse to leave questions
    corpus, asked = records(task, "train", task.corpus), records(task, "validation") + records(task, "test")
    after = successors(asked[0]["edges"])
    assert all(source < target for source, target in asked[0]["edges"])
    observed = observed_in(corpus)
    for record in asked:
        check(record, after, config.nodes)
        assert record["degree"] == degree_of(after, observed, record["start"], record["goal"])
        assert len(record["tokens"]) <= task.max_length("test")
    assert max(len(record["path"]) for record in corpus + asked) + 1 <= task.longest_answer


def padded(task: DagTask, answers: list[list[int]]) -> Any:
    """Answers as `generate` gives them."""
    found = np.full((len(answers), task.longest_answer), task.end, np.uint16)
    for row, answer in enumerate(answers):
        found[row, : len(answer)] = answer[: task.longest_answer]
    return found


def test_any_valid_path_counts_and_nothing_else() -> None:
    task, random = SMALL.build(), np.random.default_rng(0)
    asked, examples = records(task, "test"), task.examples("test", np.arange(60), 0)
    after = successors(asked[0]["edges"])

    # Another path than the one shown, by a search at random, where there is one; and spoiled ones.
    answers, judged = [], []
    for record in asked:
        path = [record["start"]]
        while path[-1] != record["goal"]:
            options = [node for node in after[path[-1]] if record["goal"] in reached(after, node)]
            path.append(int(random.choice(options)))
        spoiled = [
            path,
            path[1:],
            path[:-1],
            [*path, path[0]],
            [30, *path],
            [*path[:1], random.integers(30), *path[1:]],
            [],
        ]
        answer = spoiled[random.integers(len(spoiled))] if random.random() < 0.6 else path
        answers.append([int(node) for node in answer])
        judged.append(is_path(after, answers[-1], record["start"], record["goal"]))
    assert 10 < sum(judged) < 50
    assert any(answer != record["path"] for answer, record, right in zip(answers, asked, judged, strict=True) if right)
    rows = task.score(examples, padded(task, answers), np.zeros((60, 1), np.bool_))
    by_degree = {row["degree"]: row for row in rows}
    degrees = np.array([record["degree"] for record in asked])
    for degree, row in by_degree.items():
        chosen = np.array(judged)[(degrees == degree) | (degree == "all")]
        assert row["count"] == len(chosen)
        assert row["valid"] == pytest.approx(chosen.mean())
        assert row["oracle"] == 1.0
    assert task.summary(rows)["valid"] == pytest.approx(np.mean(judged))

    # An answer that never ends was cut off.
    endless = padded(task, answers)
    endless[:, len(answers[0]) :] = np.where(
        endless[:, len(answers[0]) :] == task.end, 0, endless[:, len(answers[0]) :]
    )
    endless[:, -1] = 0
    assert task.score(examples, endless, np.zeros((60, 1), np.bool_))[0]["valid"] == 0.0


def test_parts_of_validity_are_told_apart() -> None:
    task = SMALL.build()
    [record], examples = records(task, "test", 1), task.examples("test", np.arange(1), 0)
    start, goal, path = record["start"], record["goal"], record["path"]
    after = successors(record["edges"])
    stray = next(node for node in range(30) if node not in after[start] and node != start and goal not in after[node])
    for answer, follows, arrives in ((path, 1, 1), (path[:-1], 1, 0), ([start, stray, goal], 0, 1), ([], 0, 0)):
        [row, *_] = task.score(examples, padded(task, [answer]), np.zeros((1, 1), np.bool_))
        assert (row["follows"], row["arrives"], row["valid"]) == (follows, arrives, follows * arrives)


def test_baselines_are_right_where_they_should_be() -> None:
    task = Dag(test_examples=100_000, validation_examples=1).build()
    examples = task.examples("test", np.arange(task.size("test") or 0), 0)
    nothing = np.full((len(examples.tokens), task.longest_answer), task.end, np.uint16)
    rows = {row["degree"]: row for row in task.score(examples, nothing, np.zeros((len(nothing), 1), np.bool_))}
    assert rows["all"]["valid"] == 0.0
    assert rows[0]["observed"] == rows[1]["observed"] == 1.0
    assert rows[3]["observed"] < rows[2]["observed"] < 0.4

    # The random walk's share, exactly: the probability to meet the goal, summed over walks by dynamic programming.
    record = task.record(examples, 0)
    after, hits = successors(record["edges"]), []
    for start, goal in examples.tokens[:, :2].tolist():
        meets = {goal: 1.0}
        for node in reversed(range(goal)):
            meets[node] = sum(meets.get(further, 0.0) for further in after[node]) / max(1, len(after[node]))
        hits.append(meets[start])
    error = np.sqrt(np.mean(np.array(hits) * (1 - np.array(hits))) / len(hits))
    assert rows["all"]["walk"] == pytest.approx(np.mean(hits), abs=4 * error)


def test_answers_are_generated_as_a_plain_loop_would() -> None:
    task = SMALL.build()
    assert isinstance(task, GeneratedAnswers)
    model = build_model(Model(layers=3, width=32, heads=2), Parallel(n=2), len(task.vocabulary), seed=1).double().eval()
    with torch.no_grad():  # so that answers end at different places
        model.decoder.unembedding.weight[task.end] *= 3
    examples = task.examples("test", np.arange(40), 0)
    found = generate(model, task, examples)
    assert (answered(model, task, examples) == found).all()
    lengths = set()
    for row, answer in zip(examples.tokens, found.tolist(), strict=True):
        text = row[:3].tolist()
        while len(text) < 3 + task.longest_answer and text[-1] != task.end:
            tokens = torch.tensor([text])
            context = model.decoder.context(tokens, None)
            with torch.no_grad():
                logits = next(model.objective.logits(model.decoder, model.decoder(tokens, context), context, heads=1))
            text.append(int(logits[0, -1].argmax()))
        lengths.add(len(text))
        assert answer == text[3:] + [task.end] * (3 + task.longest_answer - len(text))
    assert len(lengths) > 1
    rows = evaluate(model, task, examples, np.zeros((40, 1), np.bool_))
    assert rows == task.score(examples, found, np.zeros((40, 1), np.bool_))


@pytest.mark.parametrize("split", SPLITS)
def test_examples_are_pure(split: Split) -> None:
    task, indices = SMALL.build(), np.arange(20)
    whole, some = task.examples(split, indices, 3), SMALL.build().examples(split, np.array([15, 3]), 3)
    for row, index in enumerate((15, 3)):
        length = whole.lengths[index]
        assert some.lengths[row] == length
        assert (some.tokens[row, :length] == whole.tokens[index, :length]).all()
        assert some.fingerprints[row] == whole.fingerprints[index]
    assert (task.examples(split, indices, 4).fingerprints != whole.fingerprints).any() == (split == "train")
    assert len(task.examples(split, indices[:0], 3).lengths) == 0
    if split != "train":
        with pytest.raises(IndexError):
            task.examples(split, np.array([task.size(split)]), 0)


def test_kinds_and_masks() -> None:
    task = SMALL.build()
    examples = task.examples("test", np.arange(30), 0)
    answer = SMALL.model_copy(update={"loss": "answer"}).build().examples("test", np.arange(30), 0)
    assert (answer.loss_mask == answer.score_mask).all()
    for row in range(30):
        length = examples.lengths[row]
        kinds = [task.token_types[kind] for kind in task.token_type(examples)[row, :length]]
        assert kinds == ["start", "goal", "sign", "first", *["between"] * (length - 6), "last", "end"]
        assert examples.score_mask[row].nonzero()[0].tolist() == list(range(3, length))
        assert examples.loss_mask[row].nonzero()[0].tolist() == list(range(length))
        assert examples.horizons is not None
        assert examples.horizons[row, :length].tolist() == [1, 1, 1, *range(length - 3, 0, -1)]


def digest(config: Dag, split: Split) -> str:
    task = config.build()
    examples = task.examples(split, np.arange(task.size(split) or 64), 0)
    parts = [
        examples.tokens.astype("<u2"),
        examples.loss_mask,
        examples.score_mask,
        examples.fingerprints.astype("<u8"),
    ]
    parts.append(examples.slices["degree"].astype("<i8"))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


@pytest.mark.parametrize(("config", "expected"), [(Dag(), GOLDEN[0]), (SMALL, GOLDEN[1])], ids=["default", "small"])
def test_golden_hashes(config: Dag, expected: list[str]) -> None:
    """Every result rests on these examples: if they must change, raise the config's `version`."""
    assert [digest(config, split) for split in SPLITS] == expected


@pytest.mark.parametrize(("fields", "line"), [
    ({"nodes": 2}, "nodes: 2 is not allowed"),
    ({"edge_probability": 0.0}, "edge_probability: 0.0 is not allowed"),
    ({"train_pairs": 1.0}, "train_pairs: 1.0 is not allowed"),
    ({"edge_prob": 0.1}, "edge_prob: unknown field"),
])  # fmt: skip
def test_bad_fields(fields: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as error:
        validated(Dag, fields)
    assert str(error.value).startswith(line)


def test_a_graph_that_leaves_no_questions_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^task.nodes: 5 is not allowed: .* leaves 0 pairs"):
        Dag(nodes=5, edge_probability=1.0).build()
