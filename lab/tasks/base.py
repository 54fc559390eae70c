"""The contract of a task: a generator of examples, and one row for each answer that is scored.

A task implements `Task`'s abstract methods and sets `vocabulary` and `metrics`. Everything else follows: grouping into
slices, baselines, seen and unseen questions, summaries (`lab.tasks.scoring`), training, evaluation and reports.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lab.tasks.scoring import Answers, Metrics, score_rows, summarise
from lab.tasks.scoring import ScoreRow as ScoreRow

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def check_indices(split: Split, indices: NDArray[np.int64], size: int | None) -> None:
    """Raise for examples that a split does not have; `size` None means that it is unlimited.

    Raises:
        IndexError: an index is negative, or beyond the split's size.
    """
    if len(indices) and (indices.min() < 0 or (size is not None and indices.max() >= size)):
        raise IndexError(f"an index of the {split} split is outside 0 to {'…' if size is None else size - 1}")


@dataclass(frozen=True)
class Examples:
    """`N` documents, padded on the right to the longest of them, `L` tokens."""

    tokens: NDArray[np.uint16]
    """[N, L] token ids; 0 beyond a document's end."""
    lengths: NDArray[np.int64]
    """[N] numbers of tokens of the documents."""
    loss_mask: NDArray[np.bool_]
    """[N, L] True for tokens that the loss covers when they are targets."""
    score_mask: NDArray[np.bool_]
    """[N, L] True for tokens that are scored."""
    slices: dict[str, NDArray[Any]]
    """[N] each: properties of the examples, by which they can be selected."""
    fingerprints: NDArray[np.uint64]
    """[N, K] hashes of each example's questions. A question whose hash occurs in training counts as seen. 0 where an
    example has fewer than K questions. K may differ between splits."""
    token_features: dict[str, NDArray[np.uint8]]
    """[N, L] each: properties of the tokens, for scores by token."""
    horizons: NDArray[np.uint8] | None = None
    """[N, L] k: if a token is wrong, k tokens in a row become wrong, itself the first (Section 5.1 of the paper). With
    k = 1 the tokens after it are unaffected. None: 1 for all tokens."""
    further_loss_mask: NDArray[np.bool_] | None = None
    """[N, L] True for tokens that further heads have as targets, among those of the loss (`objective.where`); None:
    all of them."""
    inputs: NDArray[np.uint16] | None = None
    """[N, L] token ids that training reads in place of `tokens`, which remain the targets. None: `tokens`."""


class Task(ABC):
    """A task built from its config. Example i of a split is a pure function of (config, seed, split, i)."""

    vocabulary: tuple[str, ...]
    """The text of each token id."""
    metrics: Metrics
    """The task's measures, and the way its answers are grouped."""

    @abstractmethod
    def size(self, split: Split) -> int | None:
        """Return the number of examples in a split; None if it is unlimited."""

    @abstractmethod
    def max_length(self, split: Split) -> int:
        """Return an upper bound on the tokens of one example of a split."""

    @abstractmethod
    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """Return the examples of a split at `indices` [N]. `seed` changes the training split only.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """

    @abstractmethod
    def answers(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> Answers:
        """Return one row for each scored answer, as columns: the groups of `metrics`, `seen`, and the measures.

        Args:
            examples: N examples.
            predicted: [N, L] the most likely token at each position, given the true tokens before it (0 at position
                0). For `GeneratedAnswers` the answers that the model wrote, as described there.
            seen: [N, K] True for fingerprints that occurred in training.
        """

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Return example `row` in JSON types; a task may add keys to `text` and `tokens`."""
        tokens = examples.tokens[row, : examples.lengths[row]].tolist()
        return {"text": self.text(tokens), "tokens": tokens}

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Return the type of each token [N, L], an index into `token_types`; 0 beyond a document's end.

        By default scored tokens have type 1, all others type 0.
        """
        return examples.score_mask.view(np.uint8)

    def text(self, tokens: Sequence[int]) -> str:
        """Return tokens as readable text, by default with spaces between them."""
        return " ".join(self.vocabulary[token] for token in tokens)

    # The rest is the same for all tasks.

    @property
    def metric(self) -> str:
        """The measure that selects checkpoints and compares arms; see `Metrics.metric`."""
        return self.metrics.metric

    @property
    def baselines(self) -> tuple[str, ...]:
        """The measures to compare with; see `Metrics.baselines`."""
        return self.metrics.baselines

    @property
    def slices(self) -> tuple[str, ...]:
        """The group columns of score rows. The value "all" in one of them means that the row covers all its values."""
        return tuple(group.name for group in self.metrics.groups)

    @property
    def main_slice(self) -> str:
        """The group column along which scores are shown."""
        return self.metrics.groups[0].name

    @property
    def token_types(self) -> tuple[str, ...]:
        """The names of the types that tokens can have."""
        return self.metrics.token_types

    def score(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> list[ScoreRow]:
        """Return the score table of greedy predictions, in JSON types; see `answers` and `scoring.score_rows`."""
        return score_rows(self.answers(examples, predicted, seen), self.metrics)

    def summary(self, rows: list[ScoreRow]) -> dict[str, float]:
        """Return the numbers of a score table that make learning curves, `metric` among them; see `Metrics.curves`."""
        return summarise(rows, self.metrics)


@runtime_checkable
class HasEntropies(Protocol):
    """A task whose documents come from a source with known entropies."""

    def entropies(self, examples: Examples, n: int) -> NDArray[np.float64]:
        """Return H(x_{t+i} | x_1..x_t) in nats, [N, L, n], for each position t and i = 1..n.

        It is the lower bound of head i's loss, which sees no token between t and t + i. Beyond a document's end it is
        nan.
        """


class Landmark(NamedTuple):
    """Positions that a model has to attend to, and the positions it does so from."""

    queries: NDArray[np.bool_]
    """[N, L] True for positions that a model attends from."""
    keys: NDArray[np.bool_]
    """[N, L] True for positions that it should attend to."""


@runtime_checkable
class Landmarks(Protocol):
    """A task with one deciding token in each example, and known positions of the tokens that determine it."""

    def deciding(self, examples: Examples) -> NDArray[np.bool_]:
        """Return the mask [N, L] of the positions that predict the deciding token, one in each example."""

    def landmarks(self, examples: Examples) -> dict[str, Landmark]:
        """Return the positions to attend to, by name, in the order of the steps that lead to the deciding token."""


@runtime_checkable
class GeneratedAnswers(Protocol):
    """A task whose questions have several right answers, so that the answer a model generates is scored.

    Teacher forcing compares with one right answer. Instead, every example is decoded greedily from its prompt until the
    end token. The `predicted` of `Task.answers` is then [N, `longest_answer`]: the generated tokens with the end token,
    then more end tokens up to the width. An answer without an end token was cut off; no right answer is that long.
    """

    @property
    def end(self) -> int:
        """The token that ends an answer."""

    @property
    def longest_answer(self) -> int:
        """The largest number of tokens of a right answer, its end token included."""

    def prompts(self, examples: Examples) -> NDArray[np.int64]:
        """Return the number of tokens [N] before the answer of each document."""
