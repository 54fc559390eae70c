"""Worker processes that say whether they can begin.

What a run needs takes seconds to import, and may not be there to import at all. A worker imports it before it says that
it is ready: so a machine on which none can work is told from a run that fails.
"""

import contextlib
import importlib
import multiprocessing
import pickle
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

from lab.errors import MachineFault, one_line

READY = None
"""A worker's first word."""


class Unable(NamedTuple):
    """The first and last word of one that cannot begin."""

    reason: str


def start(
    target: Callable[..., None], place: int, gpu: bool, arguments: tuple[Any, ...]
) -> tuple[SpawnProcess, Connection]:
    """A process that says READY, or that it is `Unable`, and then carries out `target(pipe, *arguments)`.

    It is deaf to Ctrl-C and SIGTERM: the parent hears them, and tells.

    Args:
        target: a function of a module.
        place: the worker's, among the others: by it GPUs are taken in turn.
        gpu: whether it is to see a GPU.
        arguments: what is to be sent there.

    Returns:
        The process, and this end of its pipe. Each end hears of the other's death.

    Raises:
        MachineFault: no process can be had.
    """
    spawn = multiprocessing.get_context("spawn")
    try:
        ours, theirs = spawn.Pipe()
        entered = (theirs, place, gpu, target.__module__, target.__name__, pickle.dumps(arguments))
        process = spawn.Process(target=_enter, args=entered)
        process.start()
        theirs.close()
    except OSError as error:
        raise MachineFault(f"no worker process can be started: {error.strerror or error}") from error
    return process, ours


def cannot_begin(reason: str) -> MachineFault:
    """The fault that a worker that was `Unable` has told."""
    return MachineFault(f"no worker process can begin: {reason}")


def ended(code: int, killed: int | None = None) -> str:
    """Return in words the end of a process, given its exit code.

    Args:
        code: the number of the signal that killed it, negative, or its status.
        killed: what `killed_for_memory` was before.
    """
    if code >= 0:
        return f"gone with status {code}, its own words above"
    how = f"killed by signal {-code}"
    now = killed_for_memory() if code == -signal.SIGKILL else None
    if now is None or killed is None or now <= killed:
        return how
    return f"{how}, after the kernel had begun to kill for want of memory ({now - killed} so far)"


def killed_for_memory() -> int | None:
    """Processes that Linux has killed for want of memory: in this one's control group, or if it has none, in all.

    None where nobody counts.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, kind, place = line.split(":", 2)
            for file in (f"/sys/fs/cgroup{place}/memory.events", f"/sys/fs/cgroup/memory{place}/memory.oom_control"):
                if kind in ("", "memory") and (number := _counted(Path(file))) is not None:
                    return number
    return _counted(Path("/proc/vmstat"))


def _counted(file: Path) -> int | None:
    """The number beside `oom_kill` in a file of the kernel."""
    try:
        return next(
            int(line.split()[1])
            for line in file.read_text(encoding="utf-8").splitlines()
            if line.startswith("oom_kill ")
        )
    except (OSError, StopIteration):
        return None


def _enter(pipe: Connection, place: int, gpu: bool, module: str, name: str, packed: bytes) -> None:
    """A worker process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        importlib.import_module("lab.experiments.run")
        target = getattr(importlib.import_module(module), name)
        arguments = pickle.loads(packed)
        importlib.import_module("lab.experiments.workers").take_gpu(place, gpu)
    except BaseException as error:  # whatever an import may raise
        with contextlib.suppress(OSError):  # the parent is gone
            pipe.send(Unable(one_line(error)))
        return
    with contextlib.suppress(OSError):
        pipe.send(READY)
    target(pipe, *arguments)
