"""Progress of a run."""

from typing import NamedTuple

STOPPING = "stopping at a checkpoint; once more to stop at once"
"""Message when runs are asked to stop."""


class Progress(NamedTuple):
    """Progress of a run at a step."""

    step: int
    steps: int
    tokens_per_second: float
    """Useful tokens (padding not counted) a second since the last report."""
    seconds_left: float
    losses: tuple[float, ...]
    """By head, in nats per target, means since the last report."""
