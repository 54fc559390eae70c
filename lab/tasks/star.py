"""Path-star graphs: only the goal determines the first step of a path (Bachmann and Nagarajan 2024, arXiv 2403.06963).

`arms` arms of `length` nodes leave the start. A row lists the graph's edges in random order, then `/`, the start, the
goal (the end of one arm), `=`, and the path without its first node:

    edges               start goal    path (scored)
    6 1 3 6 8 4 3 8  /  3     4    =  8 4

Here 3 leads to 6 and on to 1, and to 8 and on to 4. Labels are drawn anew for each graph, so the edges of a graph are
known only from its row. Places of the path are counted from 1:

- Place 1 is the deciding step. All arms look alike from the start; to find the right one, a model traces the path back
  from the goal.
- Every later node is the successor of the node before it, a look-up. Next-token training has the true previous node in
  its input. So it learns the look-up, and need not learn to decide (the Clever Hans cheat of the paper).

`masked` hides nodes of the path in the training inputs, which makes the cheat less useful. `backwards` is the share of
rows with `<` instead of `=`. Their path is written from the node before the goal to the start. Then every node is a
look-up: the predecessor of the node before it, or at place 1 of the goal.

A row has 2 * arms * length + 4 + length tokens, for instance 14 with two arms of two nodes. All rows have the same
length, so there is no end token.

Hold-out: a question is a graph and its goal, for any order of the edges and either direction of the path. There are
labels! / (labels - nodes)! / (arms - 1)! questions. Hold-out applies where they are at least `LARGE`, and at least four
times as many as evaluation questions. Then a validation question that is also a test question, and a training question
that is either, is drawn again. Smaller spaces are shared by all splits, and scores are split into questions seen and
unseen in training.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lab.config import Config, Neutral
from lab.tasks.base import Examples, Landmark, Split, Task, check_indices
from lab.tasks.draws import below, draws32, mixed, stream
from lab.tasks.holdout import LARGE, KeySet, Questions, redrawn
from lab.tasks.scoring import Answers, Curve, Group, Metrics

_PAIR, _GOAL = (stream("star", "hash", part) for part in ("pair", "goal"))
_ODD = np.uint64(0x9E3779B97F4A7C15)


class Star(Config):
    """Paths in path-star graphs."""

    name: Literal["star"] = "star"
    arms: int = Field(default=2, ge=2, le=64)
    """Arms that leave the start."""
    length: int = Field(default=2, ge=2, le=64)
    """Nodes of an arm, not counting the start; the last one is its end."""
    labels: int = Field(default=20, ge=5, le=5000)
    """Labels that a graph's nodes are drawn from, without repeats; at least 1 + arms * length."""
    backwards: float = Field(default=0.0, ge=0, le=1)
    """Share of the rows whose path is written backwards, from the node before the goal to the start."""
    masked: Annotated[float, Neutral(0.0), Field(ge=0, lt=1)] = 0.0
    """Share of the path's nodes that are `_` in the training inputs (they remain targets). 0 is next-token training;
    close to 1 is teacherless training, where no true node helps with the next one (Frydenlund 2024, arXiv 2410.13779).
    Evaluation masks nothing."""
    loss: Literal["all", "answer"] = "answer"
    """The tokens that the loss covers: all, or the path only."""
    validation_examples: int = Field(default=1000, ge=1, le=1_000_000)
    """Validation graphs."""
    test_examples: int = Field(default=2000, ge=1, le=1_000_000)
    """Test graphs."""

    @model_validator(mode="after")
    def _enough_labels(self) -> "Star":
        nodes = 1 + self.arms * self.length
        if self.labels < nodes:
            raise ValueError(
                f"labels: {self.labels} is not allowed: {self.arms} arms of {self.length} nodes take at least {nodes}"
            )
        return self

    def build(self) -> "StarTask":
        """Return the task of this config."""
        return StarTask(self)


@dataclass(frozen=True)
class _Graphs(Questions):
    """N graphs, each hashed with its goal. Node 0 is the start, node 1 + a * length + k the k-th of arm a."""

    labels: NDArray[np.int64]
    """[N, nodes]"""
    order: NDArray[np.int64]
    """[N, E] the edge at each position of the list; edge e leads to node e + 1."""
    arm: NDArray[np.int64]
    """[N] the arm whose end is the goal."""
    backwards: NDArray[np.bool_]
    """[N]"""


class StarTask(Task):
    """Paths in path-star graphs as a task; see the module's documentation."""

    def __init__(self, config: Star) -> None:
        self.config = config
        arms, length, labels = config.arms, config.length, config.labels
        self.metrics = Metrics(
            metric="accuracy",
            baselines=("chance", "shortcut", "oracle"),
            groups=(Group("place", values=("all", *range(1, length + 1)), margin=False), Group("direction")),
            curves=(
                Curve(("accuracy", "chance"), {"place": "all"}),
                Curve(("accuracy", "chance"), each="place", name="{measure}_place_{place}"),
            ),
            token_types=("edges", "sign", "start", "goal", "choice", "between", "last"),
        )
        self.vocabulary = (*map(str, range(labels)), "/", "=", "<", "_")
        self._slash, self._forwards, self._backwards, self._mask = range(labels, labels + 4)
        self._nodes, self._edges = 1 + arms * length, arms * length
        edge = np.arange(self._edges)
        self._sources, self._targets = np.where(edge % length == 0, 0, edge), edge + 1
        self._answer = 2 * self._edges + 4
        """The first position of the path."""
        plan = [
            *["edges"] * (2 * self._edges), "sign", "start", "goal", "sign",
            "choice", *["between"] * (length - 2), "last",
        ]  # fmt: skip
        self._plan = np.array([self.token_types.index(kind) for kind in plan], np.uint8)
        questions = math.perm(labels, self._nodes) // math.factorial(arms - 1)
        self._large = questions >= max(LARGE, 4 * (config.validation_examples + config.test_examples))

    def size(self, split: Split) -> int | None:
        """Return the number of examples in a split; None for training, which is unlimited."""
        sizes = {"train": None, "validation": self.config.validation_examples, "test": self.config.test_examples}
        return sizes[split]

    def max_length(self, split: Split) -> int:
        """Return the number of tokens of every example."""
        return len(self._plan)

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """Return the examples of a split at `indices` [N]; see `Task.examples`.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """
        graphs = self._graphs(split, indices, seed)
        count, length = len(indices), self.config.length
        edges = np.stack([graphs.labels[:, self._sources], graphs.labels[:, self._targets]], axis=2)
        edges = np.take_along_axis(edges, graphs.order[:, :, None], axis=1).reshape(count, 2 * self._edges)

        # The start and the nodes of the arm, then the path in written order, without its first node.
        nodes = 1 + graphs.arm[:, None] * length + np.arange(-1, length)
        nodes[:, 0] = 0
        whole = np.take_along_axis(graphs.labels, nodes, axis=1)
        path = np.where(graphs.backwards[:, None], whole[:, -2::-1], whole[:, 1:])
        slash = np.full((count, 1), self._slash)
        sign = np.where(graphs.backwards, self._backwards, self._forwards)[:, None]
        tokens = np.concatenate([edges, slash, whole[:, :1], whole[:, -1:], sign, path], axis=1)

        columns = np.arange(len(self._plan))
        answer = np.broadcast_to(columns >= self._answer, tokens.shape)
        remaining = np.where(columns >= self._answer, len(columns) - columns, 1)  # a wrong node spoils all after it
        inputs = None
        if split == "train" and self.config.masked:
            random = draws32(stream("star", "masks", seed), indices, length)
            inputs = tokens.astype(np.uint16)
            inputs[:, self._answer :][random < round(self.config.masked * 2**32)] = self._mask
        return Examples(
            tokens=tokens.astype(np.uint16),
            lengths=np.full(count, len(columns)),
            loss_mask=answer.copy() if self.config.loss == "answer" else np.ones(tokens.shape, np.bool_),
            score_mask=answer.copy(),
            slices={"direction": np.where(graphs.backwards, "backwards", "forwards")},
            fingerprints=graphs.keys[:, None],
            token_features={},
            horizons=np.broadcast_to(remaining, tokens.shape).astype(np.uint8),
            inputs=inputs,
        )

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Return the role of each token [N, L]; "choice" is place 1 of the path. See `Task.token_type`."""
        return np.broadcast_to(self._plan, examples.tokens.shape).copy()

    def deciding(self, examples: Examples) -> NDArray[np.bool_]:
        """Return the mask [N, L] of the sign, which predicts place 1 of the path."""
        return self._at(examples, self._answer - 1)

    def landmarks(self, examples: Examples) -> dict[str, Landmark]:
        """Return the steps from the sign to the goal, to its edge, and to the predecessor there; see `Landmarks`.

        A second head has to find the goal from the sign. The next-token head needs the goal's predecessor.
        """
        sign, goal = (self._at(examples, self._answer - back) for back in (1, 2))
        inside = np.arange(examples.tokens.shape[1]) < 2 * self._edges
        wanted = examples.tokens[:, [self._answer - 2]]
        arrival = (examples.tokens == wanted) & inside  # the goal has one edge, which leads to it
        predecessor = np.roll(arrival, -1, axis=1)
        return {
            "sign to goal": Landmark(sign, goal),
            "sign to goal's edge": Landmark(sign, arrival),
            "sign to predecessor": Landmark(sign, predecessor),
            "goal to goal's edge": Landmark(goal, arrival),
            "goal to predecessor": Landmark(goal, predecessor),
            "goal's edge to predecessor": Landmark(arrival, predecessor),
        }

    def _at(self, examples: Examples, place: int) -> NDArray[np.bool_]:
        """Return the mask [N, L] of one position in every row."""
        return np.broadcast_to(np.arange(examples.tokens.shape[1]) == place, examples.tokens.shape).copy()

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Return example `row` as `edges`, `start`, `goal`, `path`, `backwards`, `text` and `tokens`.

        Edges are `[source, target]`, in the order of the row. The path includes both ends. It leads from the start to
        the goal, also if it is written `backwards`.
        """
        tokens = examples.tokens[row].tolist()
        start, goal, sign = tokens[self._answer - 3 : self._answer]
        backwards, written = sign == self._backwards, tokens[self._answer :]
        return {
            "edges": [tokens[place : place + 2] for place in range(0, 2 * self._edges, 2)],
            "start": start,
            "goal": goal,
            "path": [*written[::-1], goal] if backwards else [start, *written],
            "backwards": backwards,
            "text": self.text(tokens),
            "tokens": tokens,
        }

    def answers(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> Answers:
        """Return a row for each whole path, and one for each of its nodes; see `Task.answers`.

        - `place`: "all" for the whole path, else the node's place in it, from 1 (the deciding step) on.
        - `direction`: "forwards" or "backwards".
        - `accuracy`: True if the node, or every node, is right. Predictions are teacher-forced, which for whole paths
          gives the same result as greedy decoding.
        - `chance`: the probability of the right arm for whole paths and place 1, of the right node elsewhere.
        - `shortcut`: `accuracy` of taking a random arm at place 1 and looking up the nodes after it.
        - `oracle`: 1.
        """
        # The path of each baseline.
        truth = examples.tokens[:, self._answer :]
        options = self._options(examples)
        taken = below(self.config.arms, (mixed(examples.fingerprints[:, 0].copy()) >> np.uint64(32)).astype(np.uint32))
        shortcut = truth.copy()
        shortcut[:, 0] = np.take_along_axis(options, taken.astype(np.int64)[:, None], axis=1)[:, 0]
        answers = {"accuracy": predicted[:, self._answer :], "shortcut": shortcut, "oracle": truth}

        # One row for the whole path, then one for each place.
        count, places = len(truth), 1 + self.config.length
        columns: Answers = {
            "place": np.repeat(np.array(["all", *range(1, places)], object), count),
            "direction": np.tile(examples.slices["direction"], places),
            "seen": np.tile(seen[:, 0], places),
        }
        for name, answer in answers.items():
            right = answer == truth
            columns[name] = np.concatenate([right.all(axis=1), *right.T])
        chance = np.full(places, 1 / self._nodes)
        chance[:2] = 1 / self.config.arms
        columns["chance"] = np.repeat(chance, count)
        return columns

    def _options(self, examples: Examples) -> NDArray[np.int64]:
        """Return the node [N, arms] at place 1 of each arm's path, found by following the edges from the start."""
        rows = np.arange(len(examples.tokens))[:, None]
        edges = examples.tokens[:, : 2 * self._edges].astype(np.int64).reshape(len(rows), self._edges, 2)
        start = examples.tokens[:, self._answer - 3 : self._answer - 2]
        leaving = np.nonzero(edges[:, :, 0] == start)[1].reshape(len(rows), self.config.arms)
        successor = np.zeros((len(rows), self.config.labels), np.int64)
        successor[rows, edges[:, :, 0]] = edges[:, :, 1]  # the start has several; one of them

        # Forward paths begin at the first node of an arm, backward paths at the node before its end.
        depths = np.where(examples.slices["direction"] == "backwards", self.config.length - 1, 1)
        nodes = np.take_along_axis(edges[:, :, 1], leaving, axis=1)
        options = nodes
        for depth in range(2, self.config.length):
            nodes = successor[rows, nodes]
            options = np.where(depths[:, None] == depth, nodes, options)
        return options

    @cached_property
    def _test_keys(self) -> KeySet:
        return KeySet(self._graphs("test", np.arange(self.config.test_examples), 0).keys)

    @cached_property
    def _evaluation_keys(self) -> KeySet:
        validation = self._graphs("validation", np.arange(self.config.validation_examples), 0)
        return KeySet(np.concatenate([self._test_keys.keys, validation.keys]))

    def _graphs(self, split: Split, indices: NDArray[np.int64], seed: int) -> _Graphs:
        """Return the graphs at `indices` [N], with replacements for held-out ones."""
        check_indices(split, indices, self.size(split))
        names = ("star", split, seed) if split == "train" else ("star", split)
        graphs = self._drawn((*names, 0), indices)
        if split == "test" or not self._large:
            return graphs
        held_out = self._test_keys if split == "validation" else self._evaluation_keys
        return redrawn(
            graphs,
            lambda these: held_out.positions(these.keys),
            lambda attempt, rows: self._drawn((*names, attempt), indices[rows]),
        )

    def _drawn(self, names: tuple[str | int, ...], indices: NDArray[np.int64]) -> _Graphs:
        """Return the graphs at `indices` [N] of the streams that begin with `names`."""
        config = self.config
        random = draws32(stream(*names, "labels"), indices, config.labels)
        labels = np.argsort(random, axis=1, kind="stable")[:, : self._nodes]
        order = np.argsort(draws32(stream(*names, "order"), indices, self._edges), axis=1, kind="stable")
        random = draws32(stream(*names, "question"), indices, 2)
        arm = below(config.arms, random[:, 0]).astype(np.int64)
        backwards = random[:, 1] < round(config.backwards * 2**32)

        # A sum of hashes does not depend on the order of the edges.
        pairs = labels[:, self._sources] * config.labels + labels[:, self._targets]
        keys = mixed(pairs.astype(np.uint64) * _ODD + _PAIR).sum(axis=1, dtype=np.uint64)
        goal = np.take_along_axis(labels, (arm[:, None] + 1) * config.length, axis=1)[:, 0]
        keys += mixed(goal.astype(np.uint64) * _ODD + _GOAL)
        return _Graphs(mixed(keys), labels, order, arm, backwards)
