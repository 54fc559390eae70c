"""How far a run is."""

from typing import NamedTuple

STOPPING = "stopping at a checkpoint; once more to stop at once"
"""What is said when a run or several are told to stop."""


class Progress(NamedTuple):
    """Where a run stands."""

    step: int
    steps: int
    tokens_per_second: float
    """Useful tokens (padding not counted) a second since the last report."""
    seconds_left: float
    losses: tuple[float, ...]
    """By head, in nats per target, means since the last report."""
