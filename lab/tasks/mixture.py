"""Training on several recipes at once, scored on one of them (Appendix J of arXiv 2404.19737: books and stories).

A mixture of stories (scored) and sums, with equal weights, gives training examples in turns:

    part       example
    stories    Once upon a time there was a fox named Mi ra . Soon Mi ra went ...
    sums       + 1 0 * 2 1 1 1 = 0 0 .
    stories    One day a bear named Ta lo ...

Validation and test examples are those of the scored part.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from lab.config import Config
from lab.errors import BadInput
from lab.tasks.base import Examples, Split, Task
from lab.tasks.polynomials.task import Polynomials
from lab.tasks.scoring import Answers
from lab.tasks.stories.task import Stories
from lab.tasks.text.task import Text

_MEASURED = 4096
"""Examples of a part whose mean length is measured."""
_GRAIN = 2**24
"""Shares of examples are multiples of 1 / `_GRAIN`, so that counting is exact."""


class Part(Config):
    """One part of a mixture."""

    weight: float = Field(gt=0)
    """The part's share of the training tokens, relative to the weights of the other parts."""
    task: Annotated[Polynomials | Stories | Text, Field(discriminator="name")]
    """The part's task; its name selects it."""


class Mixture(Config):
    """A weighted mixture of recipes, scored on one of them."""

    name: Literal["mixture"] = "mixture"
    parts: dict[str, Part] = Field(min_length=2)
    """The parts, by names of your choice. Tokens with the same text in two parts are the same token."""
    scored: str
    """The part whose validation and test sets are the mixture's."""

    @field_validator("scored")
    @classmethod
    def _known(cls, scored: str, info: ValidationInfo) -> str:
        parts = info.data.get("parts", {scored: None})  # errors in the parts themselves are reported first
        if scored not in parts:
            raise ValueError(f"should be one of {', '.join(parts)}")
        return scored

    def build(self) -> "MixtureTask":
        """Return the task of this config.

        Raises:
            BadInput: a part cannot be built.
        """
        tasks: dict[str, Task] = {}
        for name, part in self.parts.items():
            with _part_named(name):
                tasks[name] = part.task.build()
        return MixtureTask(tasks, {name: part.weight for name, part in self.parts.items()}, self.scored)


@contextmanager
def _part_named(name: str) -> Iterator[None]:
    """Make errors of a part's task, raised inside the context, name the part's field."""
    try:
        yield
    except BadInput as error:
        raise BadInput(re.sub("^task", f"task.parts.{name}.task", str(error))) from None


class MixtureTask(Task):
    """A mixture as a task. Parts alternate as evenly as their shares allow; each has its own sequence of examples."""

    def __init__(self, tasks: Mapping[str, Task], weights: Mapping[str, float], scored: str) -> None:
        self._names = sorted(tasks, key=lambda name: (name != scored, name))  # the scored part keeps its token ids
        self._tasks, self._weights = [tasks[name] for name in self._names], [weights[name] for name in self._names]
        self._scored = tasks[scored]
        self.metrics = self._scored.metrics

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:  # type: ignore[override]  # known when it is first needed
        """The text of each token id: those of the scored part, then further ones of the other parts.

        Raises:
            BadInput: a part's files cannot be read.
        """
        texts: dict[str, None] = {}
        for name, task in zip(self._names, self._tasks, strict=True):
            with _part_named(name):
                texts |= dict.fromkeys(task.vocabulary)
        return tuple(texts)

    @cached_property
    def _ids(self) -> list[NDArray[np.uint16]]:
        """For each part, the mixture's id of each of its tokens."""
        ids = {text: token for token, text in enumerate(self.vocabulary)}
        return [np.array(list(map(ids.__getitem__, task.vocabulary)), np.uint16) for task in self._tasks]

    @cached_property
    def _shares(self) -> list[int]:
        """Each part's share, in grains, of the examples that belong to no earlier part; the last part has the rest."""
        lengths: list[float] = []
        for name, task in zip(self._names, self._tasks, strict=True):
            with _part_named(name):  # files are read here, or for the vocabulary
                lengths.append(float(task.examples("train", np.arange(_MEASURED), 0).lengths.mean()))
        rates = [weight / length for weight, length in zip(self._weights, lengths, strict=True)]
        return [round(rates[k] / sum(rates[k:]) * _GRAIN) for k in range(len(rates) - 1)]

    def size(self, split: Split) -> int | None:
        """Return the number of examples: None for training, else that of the scored part."""
        return None if split == "train" else self._scored.size(split)

    def max_length(self, split: Split) -> int:
        """Return an upper bound on the tokens of one example of a split."""
        return max(task.max_length(split) for task in (self._tasks if split == "train" else [self._scored]))

    def turns(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the part [N] of each training example at `indices` [N], and its index [N] in that part."""
        part, place = np.full(len(indices), len(self._tasks) - 1), indices.copy()
        waiting = np.arange(len(indices))
        for k, share in enumerate(self._shares):
            before = place[waiting] * share // _GRAIN
            after = (place[waiting] + 1) * share // _GRAIN
            taken = after > before
            part[waiting[taken]] = k
            place[waiting] = np.where(taken, before, place[waiting] - before)
            waiting = waiting[~taken]
        return part, place

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """Return the examples at `indices` [N]; see `Task.examples`. Training examples have the slice `part`."""
        if split != "train":
            return self._scored.examples(split, indices, seed)
        part, place = self.turns(indices)
        of_part = {int(k): self._tasks[k].examples(split, place[part == k], seed) for k in np.unique(part)}
        width = max((each.tokens.shape[1] for each in of_part.values()), default=0)
        keys = max((each.fingerprints.shape[1] for each in of_part.values()), default=0)
        shape = (len(indices), width)
        whole = Examples(
            tokens=np.zeros(shape, np.uint16),
            lengths=np.zeros(len(indices), np.int64),
            loss_mask=np.zeros(shape, np.bool_),
            score_mask=np.zeros(shape, np.bool_),
            slices={"part": np.array(self._names)[part]},
            fingerprints=np.zeros((len(indices), keys), np.uint64),
            token_features={"kind": np.zeros(shape, np.uint8)},
            horizons=np.ones(shape, np.uint8) if any(each.horizons is not None for each in of_part.values()) else None,
        )
        for k, each in of_part.items():
            mine = np.flatnonzero(part == k)
            inside = np.arange(each.tokens.shape[1]) < each.lengths[:, None]
            whole.tokens[mine, : each.tokens.shape[1]] = self._ids[k][each.tokens] * inside
            whole.lengths[mine] = each.lengths
            whole.loss_mask[mine, : each.tokens.shape[1]] = each.loss_mask
            if whole.horizons is not None and each.horizons is not None:
                whole.horizons[mine, : each.tokens.shape[1]] = each.horizons
            whole.fingerprints[mine, : each.fingerprints.shape[1]] = each.fingerprints
            if self._tasks[k] is self._scored:
                whole.score_mask[mine, : each.tokens.shape[1]] = each.score_mask
                whole.token_features["kind"][mine, : each.tokens.shape[1]] = self._scored.token_type(each)
        return whole

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Return example `row`: in evaluation the scored part's record; in training its `part`, `text` and `tokens`."""
        if "part" not in examples.slices:
            return self._scored.record(examples, row)
        tokens = examples.tokens[row, : examples.lengths[row]].tolist()
        part = str(examples.slices["part"][row])
        number = self._names.index(part)
        own = {int(whole): token for token, whole in enumerate(self._ids[number])}
        text = self._tasks[number].text([own[token] for token in tokens])
        return {"part": part, "text": text, "tokens": tokens}

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Return the types [N, L] of the scored part's tokens; those of other parts in training have type 0."""
        return examples.token_features["kind"] if "part" in examples.slices else self._scored.token_type(examples)

    def text(self, tokens: Sequence[int]) -> str:
        """Return tokens as the scored part's text; with spaces between them if some belong to other parts only."""
        if max(tokens, default=0) >= len(self._scored.vocabulary):
            return " ".join(self.vocabulary[token] for token in tokens)
        return self._scored.text(tokens)

    def answers(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> Answers:
        """Return the scored part's answers."""
        return self._scored.answers(examples, predicted, seen)
