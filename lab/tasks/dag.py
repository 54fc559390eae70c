"""Paths in a random directed acyclic graph that is memorised (ALPINE, arXiv 2405.09220; 2509.23186, Section 5).

All rows are about one graph, drawn from a seed of its own. A row has a start and a goal, then a path between them:

    start goal :    path (scored)
    17    63   :    17 20 41 63 .

The graph is never an input: a model has to learn its edges from rows. Each pair of nodes is an edge with probability
`edge_probability`, from the smaller to the larger node. Training is a finite corpus, in a new order every epoch. It has
every edge as a row ("17 20 : 17 20 ."), and `paths` random paths for each training pair: the ends of every edge, and a
share `train_pairs` of the other reachable pairs. A path is a random walk over nodes from which the goal can be reached.
The remaining reachable pairs are the validation and test questions.

Every path is right: an answer is valid if it begins at the start, follows edges, and ends at the goal. The answer that
the model generates is scored (`GeneratedAnswers`).

Degree, as in the paper: node u is *observed* for a goal if a training path to the goal passes through u, not counting
the path's first node. A question has degree 0 if its start is observed for its goal. Otherwise its degree is one more
than the least degree of its start's successors with the same goal, at most 3. A learner that combines observed facts,
but infers no new ones, answers degrees 0 and 1.
"""

from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lab.config import Config
from lab.errors import BadInput
from lab.tasks.base import Examples, Split, Task, check_indices
from lab.tasks.draws import below, draws, draws32, epoch_indices, stream
from lab.tasks.scoring import Answers, Curve, Group, Metrics

_DEGREES = 3
"""The largest degree; larger ones count as this."""
_ROWS = 4096
"""Walks computed at once."""


class Dag(Config):
    """Paths in a random directed acyclic graph."""

    name: Literal["dag"] = "dag"
    nodes: int = Field(default=100, ge=3, le=500)
    """Nodes of the graph."""
    edge_probability: float = Field(default=0.1, gt=0, le=1)
    """Probability of the edge between any two nodes, from the smaller to the larger."""
    graph: int = Field(default=0, ge=0)
    """Seed of the graph, its training pairs and their paths."""
    train_pairs: float = Field(default=0.1, ge=0, lt=1)
    """Share of the pairs with a path but without an edge that are training pairs; the ends of edges always are."""
    paths: int = Field(default=20, ge=1, le=1000)
    """Training paths for each training pair."""
    loss: Literal["all", "answer"] = "all"
    """The tokens that the loss covers: all, or the path and its end token only."""
    validation_examples: int = Field(default=500, ge=1, le=100_000)
    """Validation questions, at most half of the pairs that are not training pairs."""
    test_examples: int = Field(default=2000, ge=1, le=100_000)
    """Test questions, at most the pairs that are neither training pairs nor validation questions."""

    def build(self) -> "DagTask":
        """Return the task of this config.

        Raises:
            BadInput: the graph has too few pairs of nodes for both sets of questions.
        """
        return DagTask(self)


class DagTask(Task):
    """Paths in a random directed acyclic graph as a task; see the module's documentation."""

    metrics = Metrics(
        metric="valid",
        baselines=("walk", "observed", "oracle"),
        groups=(Group("degree"),),
        curves=(
            Curve(("valid", "walk")),
            Curve(("valid", "walk"), each="degree", name="{measure}_degree_{degree}"),
            Curve(("follows", "arrives")),
        ),
        token_types=("start", "goal", "sign", "first", "between", "last", "end"),
    )

    def __init__(self, config: Dag) -> None:
        self.config = config
        nodes = config.nodes
        self.vocabulary = (*map(str, range(nodes)), ":", ".")
        self._colon, self.end = nodes, nodes + 1

        # The graph, the reachable pairs (a node reaches itself), and the number of nodes of the longest path.
        chances = draws32(stream("dag", "edges", config.graph), np.arange(nodes), nodes)
        self.adjacency = np.triu(chances < round(config.edge_probability * 2**32), k=1)
        self.reaches = np.eye(nodes, dtype=np.bool_)
        depth = np.ones(nodes, np.int64)
        for node in reversed(range(nodes)):
            after = np.flatnonzero(self.adjacency[node])
            self.reaches[node] |= self.reaches[after].any(axis=0)
            depth[node] += depth[after].max(initial=0)
        self._longest = int(depth.max())
        self.longest_answer = self._longest + 1

        # The training pairs, and the questions.
        pairs = np.argwhere(self.reaches & ~np.eye(nodes, dtype=np.bool_))
        joined = self.adjacency[pairs[:, 0], pairs[:, 1]]
        chances = draws32(stream("dag", "pairs", config.graph), pairs[:, 0] * nodes + pairs[:, 1], 1)[:, 0]
        trained = joined | (chances < round(config.train_pairs * 2**32))
        self._edges, self._trained, questions = pairs[joined], pairs[trained], pairs[~trained]
        order = draws(stream("dag", "questions", config.graph), questions[:, 0] * nodes + questions[:, 1], 1)[:, 0]
        questions = questions[np.argsort(order, kind="stable")]
        half = min(config.validation_examples, len(questions) // 2)
        self._pairs = {"validation": questions[:half], "test": questions[half:][: config.test_examples]}
        if not half:
            raise BadInput(
                f"task.nodes: {nodes} is not allowed: with edge_probability {config.edge_probability} and train_pairs "
                f"{config.train_pairs} the graph leaves {len(questions)} pairs to ask for, at least 2 are needed"
            )

    def size(self, split: Split) -> int | None:
        """Return the number of questions in a split; None for training, whose corpus repeats."""
        return None if split == "train" else len(self._pairs[split])

    @property
    def corpus(self) -> int:
        """The number of rows of the training corpus: edges, then `paths` for each training pair."""
        return len(self._edges) + self.config.paths * len(self._trained)

    def max_length(self, split: Split) -> int:
        """Return an upper bound on the tokens of one example."""
        return 3 + self.longest_answer

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """Return the examples of a split at `indices` [N]; see `Task.examples`.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """
        check_indices(split, indices, self.size(split))
        if split == "train":
            starts, goals, paths = self._corpus(epoch_indices("dag", indices, self.corpus, seed))
        else:
            starts, goals = self._pairs[split][indices].T
            random = draws32(stream("dag", "answers", self.config.graph, split), indices, self._longest)
            paths = self._walks(starts, goals, random, self.reaches)
        return self._rendered(starts, goals, paths)

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Return the role of each token [N, L]: "first" repeats the start, "last" the goal. See `Task.token_type`."""
        columns, lengths = np.arange(examples.tokens.shape[1]), examples.lengths[:, None]
        kinds = np.select([columns < 4, columns < lengths - 2, columns == lengths - 2, columns == lengths - 1],
                          [columns, 4, 5, 6], 0)  # fmt: skip
        return np.broadcast_to(kinds, examples.tokens.shape).astype(np.uint8)

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Return example `row` as `edges`, `start`, `goal`, `path`, `degree`, `text` and `tokens`.

        `edges` is the whole graph, as `[source, target]`, the same in every record.
        """
        tokens = examples.tokens[row, : examples.lengths[row]].tolist()
        return {
            "edges": self._listed,
            "start": tokens[0],
            "goal": tokens[1],
            "path": tokens[3:-1],
            "degree": int(examples.slices["degree"][row]),
            "text": self.text(tokens),
            "tokens": tokens,
        }

    @cached_property
    def _listed(self) -> list[list[int]]:
        edges: list[list[int]] = self._edges.tolist()
        return edges

    def prompts(self, examples: Examples) -> NDArray[np.int64]:
        """Return the length [N] of each question: start, goal and colon; see `GeneratedAnswers.prompts`."""
        return np.full(len(examples.tokens), 3)

    def answers(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> Answers:
        """Return a row for each answer; `predicted` [N, A] are generated ones (`GeneratedAnswers`); see `Task.answers`.

        - `degree`: the question's degree, 0 to 3.
        - `seen`: False, since training has no question of validation and test.
        - `valid`: True if the answer is a path from the start to the goal.
        - `follows`: True if every step is an edge; `arrives`: True if it begins at the start and ends at the goal.
        - `walk`: `valid` of a random walk along edges until it reaches the goal.
        - `observed`: `valid` of a walk that prefers nodes observed on the way to the goal; right on degrees 0 and 1.
        - `oracle`: `valid` of a walk along nodes from which the goal is reached.
        """
        starts, goals = examples.tokens[:, :2].astype(np.int64).T
        columns: Answers = {
            "degree": examples.slices["degree"],
            "seen": np.zeros(len(starts), np.bool_),
            **self._judged(starts, goals, predicted),
        }
        random = draws32(stream("dag", "guesses", self.config.graph), starts * self.config.nodes + goals, self._longest)
        learners = {"walk": np.ones_like(self.reaches), "observed": self.observed, "oracle": self.reaches}
        for name, preferred in learners.items():
            walks = self._walks(starts, goals, random, preferred)
            columns[name] = self._judged(starts, goals, walks)["valid"]
        return columns

    @cached_property
    def observed(self) -> NDArray[np.bool_]:
        """[node, goal] True where a training path to the goal passes through the node, its first node not counted."""
        found = np.zeros_like(self.reaches)
        for first in range(0, self.corpus, _ROWS):
            _, goals, paths = self._corpus(np.arange(first, min(first + _ROWS, self.corpus)))
            inside = paths[:, 1:] != self.end
            found[paths[:, 1:][inside], np.broadcast_to(goals[:, None], inside.shape)[inside]] = True
        return found

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """[start, goal] the degree of the question; `_DEGREES` also if the goal cannot be reached."""
        found = np.where(self.observed, 0, _DEGREES)
        for node in reversed(range(self.config.nodes)):
            after = found[self.adjacency[node]].min(axis=0, initial=_DEGREES)
            found[node] = np.minimum(found[node], after + 1)
        return found

    def _corpus(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the start [N], goal [N] and path [N, A] (see `_walks`) of `rows` [N] of the training corpus."""
        number = (rows - len(self._edges)) // self.config.paths
        direct = number < 0
        pairs = np.where(direct[:, None], self._edges[np.where(direct, rows, 0)], self._trained[number])
        starts, goals = pairs.T
        random = draws32(stream("dag", "paths", self.config.graph), rows, self._longest)
        paths = self._walks(starts, goals, random, self.reaches)
        paths[direct, 1], paths[direct, 2:] = goals[direct], self.end
        return starts, goals, paths

    def _walks(
        self,
        starts: NDArray[np.int64],
        goals: NDArray[np.int64],
        random: NDArray[np.uint32],
        preferred: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """Return random walks [N, A] along edges until the goal or a dead end: nodes, then end tokens.

        Args:
            starts: [N].
            goals: [N].
            random: [N, longest path] random numbers from which steps are drawn.
            preferred: [node, goal] True for nodes that a walk to the goal prefers. The next node is drawn from the
                preferred successors, or from all of them if none is preferred.
        """
        walks = np.full((len(starts), self.longest_answer), self.end)
        walks[:, 0] = starts
        rows = np.flatnonzero(starts != goals)
        for step in range(1, self._longest):
            here = walks[rows, step - 1]
            options = self.adjacency[here] & preferred[:, goals[rows]].T
            options = np.where(options.any(axis=1)[:, None], options, self.adjacency[here])
            count = options.sum(axis=1)
            rows, options, count = rows[count > 0], options[count > 0], count[count > 0]
            chosen = below(count, random[rows, step]).astype(np.int64)
            walks[rows, step] = (options.cumsum(axis=1, dtype=np.int16) > chosen[:, None]).argmax(axis=1)
            rows = rows[walks[rows, step] != goals[rows]]
        return walks

    def _judged(
        self, starts: NDArray[np.int64], goals: NDArray[np.int64], answers: NDArray[np.integer]
    ) -> dict[str, NDArray[np.bool_]]:
        """Return for answers [N, A] three masks [N]: `follows` edges, `arrives` at the goal, and both: `valid`."""
        answers = answers.astype(np.int64)
        rows = np.arange(len(answers))
        ended = answers == self.end
        length = np.where(ended.any(axis=1), ended.argmax(axis=1), answers.shape[1])  # without the end token
        proper = ended.any(axis=1) & (length > 0)

        # Signs are not nodes: no edge leads to or from them.
        joined = np.zeros((len(self.vocabulary), len(self.vocabulary)), np.bool_)
        joined[: self.config.nodes, : self.config.nodes] = self.adjacency
        beyond = np.arange(1, answers.shape[1]) >= length[:, None]
        follows = proper & (joined[answers[:, :-1], answers[:, 1:]] | beyond).all(axis=1)
        arrives = proper & (answers[:, 0] == starts) & (answers[rows, np.maximum(length - 1, 0)] == goals)
        return {"valid": follows & arrives, "follows": follows, "arrives": arrives}

    def _rendered(self, starts: NDArray[np.int64], goals: NDArray[np.int64], paths: NDArray[np.int64]) -> Examples:
        """Return the questions as documents, with their answers."""
        lengths = 3 + (paths != self.end).sum(axis=1) + 1
        width = int(lengths.max(initial=0))
        colon = np.full_like(starts, self._colon)
        tokens = np.concatenate([np.stack([starts, goals, colon], axis=1), paths], axis=1)[:, :width]
        columns = np.arange(width)
        document = columns < lengths[:, None]
        answer = document & (columns >= 3)
        remaining = np.minimum(lengths[:, None] - columns, 255)  # a wrong node makes those after it wrong
        pair = starts * self.config.nodes + goals
        return Examples(
            tokens=np.where(document, tokens, 0).astype(np.uint16),
            lengths=lengths,
            loss_mask=document if self.config.loss == "all" else answer,
            score_mask=answer,
            slices={"degree": self.degrees[starts, goals]},
            fingerprints=draws(stream("dag", "hash", self.config.graph), pair, 1),
            token_features={},
            horizons=np.where(answer, remaining, 1).astype(np.uint8),
        )
