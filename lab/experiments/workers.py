"""Runs in several local processes at once, whatever becomes of the processes."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from lab.errors import Failure, one_line
from lab.experiments import provenance
from lab.experiments.experiment import Experiment
from lab.experiments.store import Busy, RunDirectory
from lab.learning.progress import STOPPING, Progress

log = logging.getLogger(__name__)

LIVES = 5
"""Processes that may be killed over a run, without its coming to a further checkpoint, before it counts as failed."""


class Outcome(NamedTuple):
    """How a run ended: `done`, `stopped`, `failed`, or `busy` (someone else's).

    One whose source failed, or is someone else's, is left `waiting`. The same command goes on with what was stopped.
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
) -> Generator[Outcome]:
    """Carry out runs, `workers` at a time, and yield each outcome as it comes; a run begins when its source is done.

    The processes are kept alive from run to run (importing Lightning takes seconds), share the cores evenly, and take
    the GPUs in turn: with more workers than GPUs there are several on each. Where one is killed, another takes its
    place and goes on with its run from the last checkpoint. At `deadline` (seconds since the epoch), or when the caller
    leaves early (Ctrl-C), runs stop at a checkpoint.

    Args:
        experiments: what to run; sources that are not among them are done.
        store: the folder of run directories.
        workers: processes.
        deadline: when to stop.
        listen: told a run's identity and its progress.
    """
    identities = {experiment.identity for experiment in experiments}
    ready = deque(experiment for experiment in experiments if experiment.source not in identities)
    deaths: dict[str, _Deaths] = {}
    # By workers, not by runs left: the last run of a sweep, gone on with alone, must keep its threads to keep its bits.
    order = _Order(store, deadline, max(1, provenance.threads() // workers))
    with _crew(min(workers, len(experiments)), order) as crew:
        while ready or any(worker.run for worker in crew):
            for worker in crew:
                if ready and worker.run is None:
                    worker.begin(ready.popleft())
            for worker in _with_news(crew):
                experiment = worker.run
                assert experiment is not None
                said = worker.hear()
                if isinstance(said, Progress):
                    listen(experiment.identity, said)
                    continue
                if isinstance(said, int):
                    directory = RunDirectory(store, experiment)
                    died = deaths[experiment.identity] = deaths.get(experiment.identity, _Deaths()).another(directory)
                    if died.number < LIVES:
                        ready.appendleft(experiment)
                        continue
                    said = "failed", _given_up(directory, said)
                outcome = Outcome(experiment, *said)
                yield outcome
                for dependant in (each for each in experiments if each.source == experiment.identity):
                    if outcome.state == "done":
                        ready.append(dependant)
                    elif outcome.state in ("failed", "busy"):
                        yield Outcome(dependant, "waiting", f"its source: {outcome.state}")
                    else:
                        yield Outcome(dependant, outcome.state, outcome.reason)


@contextlib.contextmanager
def undisturbed(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM kill these processes, and nothing else: for an end that must not be left half done."""

    def kill(*_: object) -> None:
        for process in processes:
            process.kill()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, kill) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def take_gpu(place: int) -> None:
    """Let this process see one GPU, if there are any: in turn, by its place among the workers.

    Call it before CUDA is first used.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(gpu) for gpu in range(torch.cuda.device_count())]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]


class _Deaths(NamedTuple):
    """Processes that were killed over one run since it last came to a checkpoint."""

    number: int = 0
    checkpoint: int = 0
    """When the run's checkpoint was written, in ns."""

    def another(self, directory: RunDirectory) -> "_Deaths":
        """One process more."""
        path = directory.checkpoint
        checkpoint = path.stat().st_mtime_ns if path.exists() else 0
        return _Deaths(self.number + 1 if checkpoint == self.checkpoint else 1, checkpoint)


def _given_up(directory: RunDirectory, code: int) -> str:
    """Records that a run's processes died, the last with an exit code, and returns the reason."""
    how = f"killed by signal {-code}" if code < 0 else f"gone with status {code}"
    reason = f"{LIVES} processes died over it in a row, the last {how}; for want of memory perhaps"
    with contextlib.suppress(Failure), directory.claimed():
        raise Failure(reason)
    return reason


class _Order(NamedTuple):
    """What every worker process is told."""

    store: Path
    deadline: float
    threads: int


class _Worker:
    """A process that carries out one run after another, and the one that takes its place when it is killed.

    They talk through a pipe of their own: unlike a queue or a pool, it has no lock that one could be killed with.
    """

    def __init__(self, order: _Order, place: int) -> None:
        self.order, self.place = order, place
        self.run: Experiment | None = None
        self._start()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(theirs, self.order, self.place))
        self.process.start()
        theirs.close()  # each end then hears of the other's death

    def begin(self, experiment: Experiment) -> None:
        """Have a run carried out."""
        self.run = experiment
        if not self.process.is_alive():  # killed while it had nothing to do, or over its last run
            self._start()
        with contextlib.suppress(OSError):  # killed right now: `hear` finds out
            self.pipe.send(experiment.model_dump_json())

    def hear(self) -> Progress | tuple[str, str] | int:
        """What there is to hear: how far the run is, how it ended, or the exit code of the process that died over it.

        Call it when there is something.
        """
        try:
            if self.pipe.poll():
                said: Progress | tuple[str, str] = self.pipe.recv()
                if not isinstance(said, Progress):
                    self.run = None
                return said
        except (EOFError, OSError):
            pass
        self.pipe.close()
        self.process.join()
        self.run = None
        return self.process.exitcode or 0

    def stop(self) -> None:
        """Have the run stop at a checkpoint, and the process end."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)

    def join(self) -> None:
        """Wait for the end of a process that was stopped."""
        while self.process.is_alive():
            with contextlib.suppress(EOFError, OSError):
                while self.pipe.poll(0.05):  # what it says is heard, so that it is not kept waiting
                    said = self.pipe.recv()
                    if not isinstance(said, Progress) and said[0] == "failed":
                        log.warning("failed: %s", said[1])
            self.process.join(0.05)


@contextlib.contextmanager
def _crew(size: int, order: _Order) -> Iterator[list[_Worker]]:
    """Worker processes. At the end runs stop at a checkpoint, and the processes end."""
    crew: list[_Worker] = []
    try:
        for place in range(size):
            crew.append(_Worker(order, place))
        yield crew
    finally:
        if any(worker.run for worker in crew):
            log.info(STOPPING)
        with undisturbed([worker.process for worker in crew]):
            for worker in crew:
                worker.stop()
            for worker in crew:
                worker.join()


def _with_news(crew: list[_Worker]) -> list[_Worker]:
    """The workers of which there is something to hear, after a moment's wait at most."""
    busy = [worker for worker in crew if worker.run]
    ready = wait([place for worker in busy for place in (worker.pipe, worker.process.sentinel)], timeout=0.2)
    return [worker for worker in busy if worker.pipe in ready or worker.process.sentinel in ready]


def _serve(pipe: Connection, order: _Order, place: int) -> None:
    """A worker process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent hears it, and tells
    threading.Thread(target=_end_with_parent, daemon=True).start()
    take_gpu(place)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        while (text := pipe.recv()) is not None:
            pipe.send(_carried_out(Experiment.model_validate_json(text), order, pipe))
            torch.cuda.empty_cache()  # others on the same GPU may need it


def _end_with_parent() -> None:
    """Do not outlive a parent that was killed: whatever is not in a checkpoint is lost, nothing else."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _carried_out(experiment: Experiment, order: _Order, pipe: Connection) -> tuple[str, str]:
    """How a run ended."""

    def stop() -> bool:
        return pipe.poll() or time.time() > order.deadline  # while there is a run, the parent says nothing but to stop

    def listen(progress: Progress) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, which is no fault of the run
            pipe.send(progress)

    if stop():
        return "stopped", ""

    from lab.experiments.run import execute  # takes seconds to import, so the parent, which may find all done, does not

    try:
        result = execute(experiment, order.store, order.threads, listen, stop)
        return ("done" if result else "stopped"), ""
    except Busy as error:
        return "busy", str(error)
    except Exception as error:  # one run's, whatever it is; the others go on
        return "failed", one_line(error)
