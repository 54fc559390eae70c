"""Runs in several local processes at once."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

from lab.errors import BadInput, Failure
from lab.experiments.experiment import Experiment
from lab.experiments.provenance import cores
from lab.experiments.store import Busy
from lab.learning.progress import Progress


class Outcome(NamedTuple):
    """How a run ended: `done`, `stopped`, `failed`, `busy` (someone else's), or `lost` with the pool's processes.

    One whose source failed, or is someone else's, is left `waiting`. The same command goes on with what was stopped or
    lost.
    """

    experiment: Experiment
    state: str
    reason: str = ""


def carry_out(
    experiments: Sequence[Experiment],
    store: Path,
    workers: int,
    deadline: float,
    listen: Callable[[str, Progress], None],
) -> Iterator[Outcome]:
    """Carry out runs, `workers` at a time, and yield each outcome as it comes; a run begins when its source is done.

    The processes are kept alive from run to run (importing Lightning takes seconds) and share the cores evenly. At
    `deadline` (seconds since the epoch), or when the caller leaves early (Ctrl-C), runs stop at a checkpoint.

    Args:
        experiments: what to run; sources that are not among them are done.
        store: the folder of run directories.
        workers: processes.
        deadline: when to stop.
        listen: told a run's identity and its progress.
    """
    spawn = multiprocessing.get_context("spawn")
    news, stop = spawn.Queue(), spawn.Event()
    # By workers, not by runs left: the last run of a sweep, gone on with alone, must keep its threads to keep its bits.
    threads = max(1, cores() // workers)
    pool = ProcessPoolExecutor(workers, spawn, _initialise, (_Shared(news, stop, deadline, threads, store),))
    futures: dict[Future[tuple[str, str]], Experiment] = {}

    def begin(experiment: Experiment) -> None:
        try:
            future = pool.submit(_carry_out_one, experiment.model_dump_json())
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        futures[future] = experiment

    try:
        identities = {experiment.identity for experiment in experiments}
        for experiment in experiments:
            if experiment.source not in identities:
                begin(experiment)
        while futures:
            with contextlib.suppress(Empty):
                listen(*news.get(timeout=0.2))
            for future in [future for future in futures if future.done()]:
                experiment = futures.pop(future)
                try:
                    outcome = Outcome(experiment, *future.result())
                except BrokenProcessPool:
                    outcome = Outcome(experiment, "lost", "a worker process was killed")
                yield outcome
                for dependant in (each for each in experiments if each.source == experiment.identity):
                    if outcome.state == "done":
                        begin(dependant)
                    elif outcome.state in ("failed", "busy"):
                        yield Outcome(dependant, "waiting", f"its source: {outcome.state}")
                    else:
                        yield Outcome(dependant, outcome.state, outcome.reason)
    finally:
        # An impatient second Ctrl-C must not leave half of this undone: the runs are at their checkpoints in a moment.
        heard = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        stop.set()
        pool.shutdown(cancel_futures=True)
        for number, handler in heard.items():
            signal.signal(number, handler)


class _Shared(NamedTuple):
    """What a worker process is given once."""

    news: Any
    stop: Any
    deadline: float
    threads: int
    store: Path


_shared: _Shared


def _initialise(shared: _Shared) -> None:
    global _shared
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and tells by `stop`
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Do not outlive a parent that was killed: whatever is not in a checkpoint is lost, nothing else."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _carry_out_one(text: str) -> tuple[str, str]:
    experiment = Experiment.model_validate_json(text)
    shared = _shared

    def stop() -> bool:
        return shared.stop.is_set() or time.time() > shared.deadline

    if stop():
        return "stopped", ""

    def listen(progress: Progress) -> None:
        shared.news.put((experiment.identity, progress))

    from lab.experiments.run import execute  # takes seconds to import, so the parent, which may find all done, does not

    try:
        result = execute(experiment, shared.store, shared.threads, listen, stop)
        return ("done" if result else "stopped"), ""
    except Busy as error:
        return "busy", str(error)
    except (BadInput, Failure) as error:
        return "failed", str(error)
    except Exception as error:  # one run's, whatever it is; the others go on
        return "failed", " ".join(f"{type(error).__name__}: {error}".split())
