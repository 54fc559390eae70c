"""The profile of a training step on a CPU: time and calls by operation, and by part of the model.

torch's profiler records operators, and the compiled loops of `lab.models.kernels` as `lab::NAME`. What it records costs
time itself, about a microsecond a call, so shares are to be read, not seconds.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

WARMUP = 2
"""Steps before those that are recorded."""

PRODUCTS, ELSE = "matrix products", "everything else"

PATTERNS = {
    PRODUCTS: r"aten::(mm|addmm|bmm|baddbmm|mv|addmv)",
    "attention": r"aten::\w*scaled_dot_product\w*|lab::attention_\w+",
    "norms": r"aten::\w*(layer|rms)_norm\w*|lab::rms_norm_\w+|_RMSNorm(Backward)?",
    "SwiGLU or GELU": r"aten::(silu|gelu)\w*|lab::swiglu_\w+",
    "loss": r"aten::\w*(log_softmax|nll_loss|cross_entropy)\w*|_CrossEntropy(Backward)?",
    "optimiser and clipping": r"Optimizer\..*|aten::_(foreach|fused_adamw?)_\w*|aten::linalg_vector_norm",
    "copies and allocation": (
        r"aten::(copy_|clone|contiguous|cat|stack|fill_|zero_|(new_)?(empty|zeros|ones|full)\w*|_to_copy|resize_)"
    ),
}
"""The names of the operations of each part. What has no part of its own belongs to what it was called by."""

PARTS = (*PATTERNS, ELSE)
"""Everything else: additions, embedding, masks, views, what formulas put together from operators need (a peer's RMSNorm
without an operator of its own), autograd's and Python's own time."""

_STEP = "outside of operations"  # the name of a whole step: its own time is what no operation takes


@dataclass(frozen=True)
class Entry:
    """An operation's or a part's share of a step."""

    name: str
    part: str
    """The part itself, or the one that the operation belongs to."""
    seconds: float
    """A step, without what the operation calls."""
    share: float
    calls: float
    """Calls of operators and compiled loops in a step."""


@dataclass(frozen=True)
class Profile:
    """Time of a training step by operation and by part of the model."""

    seconds: float
    """A step, under the profiler."""
    calls: float
    """Calls of operators and compiled loops in a step."""
    parts: tuple[Entry, ...]
    """All of `PARTS`, in that order."""
    operations: tuple[Entry, ...]
    """Those that take most first; the same operation may be there once for each part that calls it."""

    def json(self) -> dict[str, Any]:
        """Return the profile as a JSON object."""
        return asdict(self)


def profiled(step: Callable[[], None], steps: int) -> Profile:
    """Return the mean profile of `steps` training steps, taken after `WARMUP` others.

    Times are wall-clock seconds of the calling thread, in which operators run; its helpers work at the same time.
    """
    for _ in range(WARMUP):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            with record_function(_STEP):
                step()

    # Each operation's own time goes to its name, within its part.
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    calls: dict[tuple[str, str], float] = defaultdict(float)
    for event in recorded.events():
        names = lineage(event)
        if names[-1] == _STEP:
            key = part_of(names), names[0]
            seconds[key] += event.self_cpu_time_total / 1e6 / steps
            calls[key] += names[0].startswith(("aten::", "lab::")) / steps
    total = sum(seconds.values())

    operations = [Entry(name, part, spent, spent / total, calls[part, name]) for (part, name), spent in seconds.items()]
    operations.sort(key=lambda entry: -entry.seconds)
    parts = []
    for part in PARTS:
        mine = [entry for entry in operations if entry.part == part]
        spent = sum(entry.seconds for entry in mine)
        parts.append(Entry(part, part, spent, spent / total, sum(entry.calls for entry in mine)))
    return Profile(total, sum(calls.values()), tuple(parts), tuple(operations))


def lineage(event: FunctionEvent) -> list[str]:
    """Return the name of an event, of what called it, and so on up to the outermost."""
    names, at = [], cast(FunctionEvent | None, event)
    while at is not None:
        names.append(at.name)
        at = at.cpu_parent
    return names


def part_of(names: list[str]) -> str:
    """Return the part of `PARTS` that an operation belongs to, by its `lineage`: the first name that has one.

    Matrix products are themselves alone: what they call takes no time.
    """
    for name in names:
        for part, pattern in PATTERNS.items():
            if re.fullmatch(pattern, name) and (part != PRODUCTS or name is names[0]):
                return part
    return ELSE
