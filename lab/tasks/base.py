"""What a task is: a source of examples, and the way answers to them are scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

ScoreRow = dict[str, Any]
"""One row of a score table: the slice it speaks of, its measures, and the `count` of answers behind them."""


def check_indices(split: Split, indices: NDArray[np.int64], size: int | None) -> None:
    """Refuse examples that a split does not have; `size` None: it is unlimited.

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
    """[N] tokens in each document."""
    loss_mask: NDArray[np.bool_]
    """[N, L] tokens that the loss covers, when they are targets."""
    score_mask: NDArray[np.bool_]
    """[N, L] tokens that the score looks at."""
    slices: dict[str, NDArray[Any]]
    """[N] each: what the example is, for accuracy by slice."""
    fingerprints: NDArray[np.uint64]
    """[N, K] hashes of what the example asks; what has an equal key in training is seen; 0 where an example has fewer
    than K. A split has a K of its own."""
    token_features: dict[str, NDArray[np.uint8]]
    """[N, L] each: what a token is, for scores by token."""
    horizons: NDArray[np.uint8] | None = None
    """[N, L] k: how many tokens in a row, a token itself the first, are wrong once it is wrong (Section 5.1 of the
    paper; k = 1: what comes after is as if nothing had happened). None where no task says: 1 throughout."""
    further_loss_mask: NDArray[np.bool_] | None = None
    """[N, L] of the tokens trained on, those that further heads have as targets (`objective.where`); None: all."""
    inputs: NDArray[np.uint16] | None = None
    """[N, L] token ids that training reads in the places of `tokens`, which remain the targets. None: `tokens`."""


class Task(Protocol):
    """A task built from its config. Example i of a split is a pure function of (config, seed, split, i)."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The text of each token id."""

    @property
    def metric(self) -> str:
        """The measure by which checkpoints are chosen and arms compared; larger is better.

        A column of `score`'s rows, and a key of `summary`.
        """

    @property
    def baselines(self) -> tuple[str, ...]:
        """Columns of `score`'s rows to compare with: first what needs no learning, then others (the best possible)."""

    @property
    def slices(self) -> tuple[str, ...]:
        """The slice columns of `score`'s rows; "all" in one of them means that it is not sliced by."""

    @property
    def main_slice(self) -> str:
        """The slice along which scores are shown."""

    @property
    def token_types(self) -> tuple[str, ...]:
        """What tokens can be, for analyses that tell them apart."""

    def size(self, split: Split) -> int | None:
        """The number of examples in a split; None when it is unlimited."""

    def max_length(self, split: Split) -> int:
        """An upper bound on the tokens of one example of a split."""

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """The examples of a split at `indices` [N]. `seed` moves the training split alone."""

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """[N, L] what each token is, an index into `kinds`; 0 beyond a document's end."""

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as people read them."""

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Example `row` in a form for machines: plain JSON types, `text` and `tokens` among them."""

    def score(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> list[ScoreRow]:
        """The score table of greedy predictions, in JSON types.

        Each row has the task's `slices`, `count`, and measures, `choice` and `levels` among them. A slice `seen`
        ("all", "seen" or "unseen") is optional; of a part without seen questions the row "all" is enough.

        Args:
            examples: N examples.
            predicted: [N, L] the most likely token at each place, given the true tokens before it (0 at place 0); of
                `GeneratedAnswers` the answers, as described there.
            seen: [N, K] whether what has the same key was trained on.
        """

    def summary(self, rows: list[ScoreRow]) -> dict[str, float]:
        """The few numbers of a score table that are worth a learning curve.

        A measure at some values of slices is called after them, as `exact_match_operations_3_seen_unseen`.
        """


@runtime_checkable
class HasEntropies(Protocol):
    """A task whose documents come from a source with known entropies."""

    def entropies(self, examples: Examples, n: int) -> NDArray[np.float64]:
        """[N, L, n] H(x_{t+i} | x_1..x_t) in nats, for each place t and i = 1..n: what head i's loss cannot fall below.

        Of the tokens before t only these are given. What lies beyond a document's end has nan.
        """


class Landmark(NamedTuple):
    """Places whose tokens a model has to look at from other places."""

    queries: NDArray[np.bool_]
    """[N, L] where a model looks from."""
    keys: NDArray[np.bool_]
    """[N, L] what it should look at."""


@runtime_checkable
class Landmarks(Protocol):
    """A task that knows where the tokens are from which its deciding token is worked out."""

    def deciding(self, examples: Examples) -> NDArray[np.bool_]:
        """[N, L] the places that predict the deciding token, one in each example."""

    def landmarks(self, examples: Examples) -> dict[str, Landmark]:
        """What has to be looked at, by name, in the order in which it is worked out."""


@runtime_checkable
class GeneratedAnswers(Protocol):
    """A task whose questions have several right answers, so that `score` judges what a model writes by itself.

    Teacher forcing compares with one right answer. Here every example is decoded greedily from its prompt on until the
    end token; `score`'s `predicted` is then [N, `longest_answer`]: what was written, the end token included, and more
    end tokens up to the width. An answer without an end token was cut off: no right answer is as long.
    """

    @property
    def end(self) -> int:
        """The token that ends an answer."""

    @property
    def longest_answer(self) -> int:
        """The most tokens of a right answer, its end token included."""

    def prompts(self, examples: Examples) -> NDArray[np.int64]:
        """[N] tokens of each document that stand before the answer."""
