"""The record of one finished run: the content of its result.json, and of its line in a committed table."""

from typing import Any, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from lab.tasks.base import ScoreRow

_STRICT = ConfigDict(extra="forbid", strict=True)


@with_config(_STRICT)
class Hardware(TypedDict):
    """The machine of a run."""

    host: str
    cpu: str
    cores: int
    """Cores that the process may use."""
    threads: int
    """Threads that torch uses."""
    instructions: NotRequired[str]
    """The CPU's vector instructions that torch uses."""
    kernels: NotRequired[str]
    """`compiled` if the lab's own kernels compute attention and layers on the CPU, else `torch`."""
    device: str
    """The GPU's name, or `cpu`."""
    variables: NotRequired[dict[str, str]]
    """Environment variables that change rounding."""


@with_config(_STRICT)
class Inherited(TypedDict):
    """Parameter counts of a run with `init_from`, by part (`decoder`, `objective.heads.0`)."""

    taken: dict[str, int]
    """Parameters copied from the other run."""
    new: dict[str, int]
    """Parameters that keep their random initial values."""
    dropped: dict[str, int]
    """Parameters of the other run that this model does not have."""


@with_config(_STRICT)
class RunResult(TypedDict):
    """One finished run. It is a mapping, as in JSON, whose keys and types mypy checks and `checked` enforces.

    Fields that are not required came after the first committed results.
    """

    identity: str
    """16 hexadecimal digits, the hash of the fields of the experiment that define the science."""
    experiment: dict[str, Any]
    """The whole experiment in JSON types; `experiment_from` reads it."""
    steps: int
    """Optimiser steps."""
    tokens: int
    """Training tokens, without padding."""
    parameters: int
    non_embedding_parameters: int
    flops: int | float
    """Training FLOPs, by formula (`lab.objectives.flops`)."""
    seconds: float
    """Time of training, without evaluation."""
    evaluation_seconds: float
    """Time of the evaluation at the end."""
    tokens_per_second: float
    peak_memory_bytes: int
    """Peak of the GPU's allocator, or of the process's resident memory on a CPU."""
    backward: NotRequired[str]
    """Order of the heads' backward passes: joint, sequential or fused."""
    layout: NotRequired[str]
    """Layout of training examples in rows: packed or joined."""
    clip_share: NotRequired[float | None]
    """Share of the logged steps whose gradient was clipped; None if no step was logged."""
    inherited: NotRequired[Inherited]
    """Parameters taken from the run that `init_from` names; only there."""
    hardware: Hardware
    versions: dict[str, str]
    """Versions of Python and of the libraries that change numbers."""
    commit: str | None
    """The checkout's commit, `+` appended if tracked files differed from it; None outside a checkout."""
    finished: str
    """End of the run, ISO 8601, UTC."""
    curve: NotRequired[list[ScoreRow]]
    """Validation scores during training, one row for each evaluation."""
    scores: list[ScoreRow]
    """Final scores: one row for each slice, split and checkpoint."""


_ADAPTER = TypeAdapter(RunResult)
_ROW_FIELDS = {"split", "checkpoint", "count"}
"""The columns that every row of `scores` has, beside the task's own."""


def checked(content: Any) -> RunResult:
    """Return `content` as a record.

    Raises:
        ValueError: a field is missing, unknown or of a wrong type, or there are no scores.
    """
    try:
        result = _ADAPTER.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if not result["scores"]:
        raise ValueError("scores: there are none")
    for row in result["scores"]:
        if not row.keys() >= _ROW_FIELDS:
            raise ValueError(f"scores: a row lacks one of {', '.join(sorted(_ROW_FIELDS))}")
    return result
