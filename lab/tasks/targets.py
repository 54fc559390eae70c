"""Selects tokens by what they are: the targets that `objective.where` leaves to further heads.

A token is named by its kind, one of the task's `kinds`, or by its place in an answer. An answer is a run of scored
tokens, those that the score looks at one after another: of polynomials the coefficients and the end token. Its tokens
are counted from its first, 1, 2, …, and from its last, -1, -2, …
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

_LOOKED_AT = 256
"""Training examples among which a token has to be found for its name to be allowed."""


def answer_places(scored: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places in answers, counted from the first token and, below 0, from the last; 0 outside of answers.

    Args:
        scored: [N, L] as of `Examples`.

    Returns:
        Two arrays [N, L].
    """
    return _counted(scored), -_counted(scored[:, ::-1])[:, ::-1]


def _counted(scored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[N, L] how many tokens in a row have been scored, up to and with each."""
    columns = np.arange(1, scored.shape[1] + 1)
    last_outside = np.maximum.accumulate(np.where(scored, 0, columns), axis=1)
    return np.where(scored, columns - last_outside, 0)


def token_mask(task: Task, examples: Examples, where: Sequence[int | str]) -> NDArray[np.bool_]:
    """[N, L] the tokens of `task`'s examples that any of `where`, places and kinds, names."""
    kinds = [task.token_types.index(each) for each in where if isinstance(each, str)]
    numbers = [each for each in where if isinstance(each, int)]
    inside = np.arange(examples.tokens.shape[1]) < examples.lengths[:, None]
    chosen = np.isin(task.token_type(examples), kinds) & inside if kinds else np.zeros(inside.shape, np.bool_)
    for counted in answer_places(examples.score_mask):
        chosen |= np.isin(counted, numbers)
    return chosen


def limit_targets(task: Task, examples: Examples, where: Sequence[int | str] | None) -> Examples:
    """The examples, of whose tokens further heads have those as targets that `where` names; None: all."""
    return examples if where is None else replace(examples, further_loss_mask=token_mask(task, examples, where))


def check_where(task: TaskConfig, where: Sequence[int | str]) -> None:
    """Refuse names of tokens that a task's training does not have.

    Raises:
        ValueError: in one line, with what is allowed.
    """
    for name in where:
        complaint = _complaint(task.model_dump_json(), name)
        if complaint:
            raise ValueError(f"objective.where: {complaint}")


@lru_cache(maxsize=64)
def _complaint(config: str, name: int | str) -> str | None:
    """Says what is wrong with a name, if anything; remembered, since the experiments of a sweep share it."""
    task: Task = TypeAdapter(TaskConfig).validate_json(config).build()
    if name == 0 or (isinstance(name, str) and name not in task.token_types):
        allowed = f"a place in an answer (1, 2, … or -1, -2, …) or one of {', '.join(map(repr, task.token_types))}"
        return f"{name!r} is not allowed: should be {allowed}{did_you_mean(name, task.token_types)}"
    examples = task.examples("train", np.arange(_LOOKED_AT), 0)
    if (token_mask(task, examples, [name]) & examples.loss_mask).any():
        return None
    answer = int((answer_places(examples.score_mask)[0] * examples.loss_mask).max(initial=0))
    return f"{name!r} is not allowed: training has no such target; its longest answer has {answer} tokens"
