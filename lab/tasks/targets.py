"""Selection of the tokens that further heads have as targets (`objective.where`).

A token is selected by its type, one of the task's `token_types`, or by its place in an answer. An answer is a run of
consecutive scored tokens. Its places are counted from the first token, 1, 2, …, and from the last, -1, -2, …:

    tokens    + 1 0 * 2 1 1 1 =  0  0  .
    places                       1  2  3
                                -3 -2 -1
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from lab.config import did_you_mean
from lab.tasks import TaskConfig
from lab.tasks.base import Examples, Task

_CHECKED = 256
"""Training examples that must contain a selected token."""


def answer_places(scored: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of tokens in answers, counted from the first token, and from the last; 0 outside of answers.

    Args:
        scored: [N, L] the `score_mask` of `Examples`.

    Returns:
        Two arrays [N, L]: places 1, 2, …, and -1, -2, ….
    """
    return _counted(scored), -_counted(scored[:, ::-1])[:, ::-1]


def _counted(scored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the length [N, L] of the run of scored tokens that ends with each token; 0 if it is not scored."""
    columns = np.arange(1, scored.shape[1] + 1)
    last_outside = np.maximum.accumulate(np.where(scored, 0, columns), axis=1)
    return np.where(scored, columns - last_outside, 0)


def token_mask(task: Task, examples: Examples, where: Sequence[int | str]) -> NDArray[np.bool_]:
    """Return the mask [N, L] of the tokens that `where`, a list of places and token types, selects."""
    types = [task.token_types.index(each) for each in where if isinstance(each, str)]
    places = [each for each in where if isinstance(each, int)]
    inside = np.arange(examples.tokens.shape[1]) < examples.lengths[:, None]
    chosen = np.isin(task.token_type(examples), types) & inside if types else np.zeros(inside.shape, np.bool_)
    for counted in answer_places(examples.score_mask):
        chosen |= np.isin(counted, places)
    return chosen


def limit_targets(task: Task, examples: Examples, where: Sequence[int | str] | None) -> Examples:
    """Return the examples with a `further_loss_mask` of the tokens that `where` selects; None: all tokens."""
    return examples if where is None else replace(examples, further_loss_mask=token_mask(task, examples, where))


def check_where(task: TaskConfig, where: Sequence[int | str]) -> None:
    """Raise for places and token types that a task's training does not have.

    Raises:
        ValueError: one line with the allowed values.
    """
    for name in where:
        complaint = _complaint(task.model_dump_json(), name)
        if complaint:
            raise ValueError(f"objective.where: {complaint}")


@lru_cache(maxsize=64)
def _complaint(config: str, name: int | str) -> str | None:
    """Return an error message for a place or token type, or None; cached, since experiments of a sweep share it."""
    task: Task = TypeAdapter(TaskConfig).validate_json(config).build()
    if name == 0 or (isinstance(name, str) and name not in task.token_types):
        allowed = f"a place in an answer (1, 2, … or -1, -2, …) or one of {', '.join(map(repr, task.token_types))}"
        return f"{name!r} is not allowed: should be {allowed}{did_you_mean(name, task.token_types)}"
    examples = task.examples("train", np.arange(_CHECKED), 0)
    if (token_mask(task, examples, [name]) & examples.loss_mask).any():
        return None
    answer = int((answer_places(examples.score_mask)[0] * examples.loss_mask).max(initial=0))
    return f"{name!r} is not allowed: training has no such target; its longest answer has {answer} tokens"
