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

from lab.errors import BadInput, Failure, MachineFault, ProcessDied, blamed
from lab.experiments import provenance
from lab.experiments.experiment import Experiment
from lab.experiments.processes import READY, Unable, cannot_begin, ended, killed_for_memory, start
from lab.experiments.store import Busy, RunDirectory, write_json
from lab.learning.progress import STOPPING, Progress

log = logging.getLogger(__name__)

LIVES = 5
"""Processes that may be killed over a run, without its coming to a further checkpoint, before it counts as failed."""


Listen = Callable[[str, Progress], None]
"""Is told a run's identity and its progress."""


class Outcome(NamedTuple):
    """The end of a run: `done`, `stopped`, `failed`, or `busy` (someone else's).

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
    listen: Listen,
) -> Generator[Outcome]:
    """Carry out runs, `workers` at a time, and yield each outcome as it comes; a run begins when its source is done.

    The processes are kept alive from run to run (importing Lightning takes seconds), share the cores evenly, and take
    the GPUs in turn: with more workers than GPUs there are several on each. Where one is killed, another takes its
    place and goes on with its run from the last checkpoint. At `deadline` (seconds since the epoch), when the caller
    leaves early (Ctrl-C), and where the machine stands in the way, runs stop at a checkpoint.

    Args:
        experiments: what to run; sources that are not among them are done.
        store: the folder of run directories.
        workers: processes.
        deadline: when to stop.
        listen: told a run's identity and its progress.

    Raises:
        MachineFault: no worker can begin, or one is hindered: no run is to blame.
    """
    identities = {experiment.identity for experiment in experiments}
    ready = deque(experiment for experiment in experiments if experiment.source not in identities)
    losses = _Losses(store)
    # By workers, not by runs left: the last run of a sweep, gone on with alone, must keep its threads to keep its bits.
    gpu = torch.cuda.is_available() and any(experiment.execution.device != "cpu" for experiment in experiments)
    order = _Order(store, deadline, max(1, provenance.threads() // workers), gpu)
    with _crew(min(workers, len(experiments)), order) as crew:
        while ready or any(worker.run for worker in crew):
            for worker in crew:
                if ready and worker.run is None:
                    worker.begin(ready.popleft())
            for worker in _with_news(crew):
                experiment = worker.run
                assert experiment is not None
                said = worker.hear()
                if isinstance(said, _Death):
                    if not losses.count(experiment, said):
                        ready.appendleft(experiment)
                        continue
                elif said is None:
                    losses.unborn = 0
                    continue
                else:
                    losses.works = True
                ended = losses.given_up()
                if isinstance(said, Progress):
                    listen(experiment.identity, said)
                elif isinstance(said, tuple) and not isinstance(said, _Death):
                    ended.append(Outcome(experiment, *said))
                for outcome in ended:
                    yield outcome
                    for dependant in (each for each in experiments if each.source == outcome.experiment.identity):
                        if outcome.state == "done":
                            ready.append(dependant)
                        elif outcome.state in ("failed", "busy"):
                            yield Outcome(dependant, "waiting", f"its source: {outcome.state}")
                        else:
                            yield Outcome(dependant, outcome.state, outcome.reason)
        losses.end()


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


def check_device(experiments: Sequence[Experiment], origin: str) -> None:
    """Make sure that runs that are meant for a GPU find one: those in bf16, or on "cuda", that do not name the CPU.

    Raises:
        BadInput: they do not; names `origin`.
    """
    meant = [each for each in experiments if each.execution.device != "cpu"]
    meant = [each for each in meant if each.precision == "bf16" or each.execution.device == "cuda"]
    if meant and not torch.cuda.is_available():
        raise BadInput(
            f"{origin}: meant for a GPU ({len(meant)} of {len(experiments)} runs to do train in bf16 or on cuda), and "
            "this machine has none that torch can use; --cpu carries them out on the CPU all the same"
        )


def on_the_cpu(experiment: Experiment) -> Experiment:
    """The same experiment, carried out on the CPU."""
    return experiment.model_copy(update={"execution": experiment.execution.model_copy(update={"device": "cpu"})})


def take_gpu(place: int, needed: bool = False) -> None:
    """Let this process see one GPU, if there are any: in turn, by its place among the workers.

    Call it before CUDA is first used.

    Raises:
        MachineFault: one is needed, and cannot be used.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    listed = named.split(",") if named else map(str, range(torch.cuda.device_count()))
    gpus = [gpu for gpu in listed if gpu]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    if needed and not torch.cuda.is_available():
        raise MachineFault("it sees no GPU that torch can use, as the command does")


class _Death(NamedTuple):
    """The end of a worker's process over a run."""

    code: int
    """Its exit code, less than 0 where a signal killed it."""
    began: bool
    """True if it was ready to work."""
    of: str = ""
    """If one of its data workers died: the details that are known."""


class _Deaths(NamedTuple):
    """Processes that were killed over one run since it last came to a checkpoint."""

    number: int = 0
    checkpoint: int = 0
    """Time at which the run's checkpoint was written, in ns."""

    def another(self, directory: RunDirectory) -> "_Deaths":
        """One process more."""
        path = directory.checkpoint
        checkpoint = path.stat().st_mtime_ns if path.exists() else 0
        return _Deaths(self.number + 1 if checkpoint == self.checkpoint else 1, checkpoint)


class _Losses:
    """Counts processes that died, and says whose fault it is: a run's, or the machine's.

    It is a run's where LIVES of them died over it in a row while others come to something; where nothing has come to
    anything yet, it is the machine's: such runs are put aside until it is known.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.works = False  # whether any run has taken steps, or ended
        self.unborn = 0  # processes in a row that were killed before they could begin
        self.deaths: dict[str, _Deaths] = {}
        self.aside: list[tuple[Experiment, str]] = []
        self.killed = killed_for_memory()

    def count(self, experiment: Experiment, death: _Death) -> bool:
        """Count a process that died over a run, and return whether the run is given up.

        Raises:
            MachineFault: no process can begin, or none comes to anything.
        """
        if not death.began:
            self.unborn += 1
            if death.code >= 0:
                raise cannot_begin(f"it is {ended(death.code)}")
            if self.unborn == LIVES:
                raise cannot_begin(f"{LIVES} in a row died, the last {ended(death.code, self.killed)}")
            return False
        directory = RunDirectory(self.store, experiment)
        died = self.deaths.get(experiment.identity, _Deaths()).another(directory)
        self.deaths[experiment.identity] = died
        if died.number < LIVES:
            return False
        how = death.of or ended(death.code, self.killed)
        reason = f"{LIVES} processes died over it in a row, the last {how}"
        self.aside.append((experiment, reason))
        if not self.works and len(self.aside) > 1:
            self.end()
        return True

    def given_up(self) -> list[Outcome]:
        """Runs that are given up for certain; recorded as failed."""
        if not self.works:
            return []
        ended, self.aside = self.aside, []
        for experiment, reason in ended:
            directory = RunDirectory(self.store, experiment)
            with contextlib.suppress(Failure), directory.claimed():
                write_json(directory.failure, {"reason": reason})
        return [Outcome(experiment, "failed", reason) for experiment, reason in ended]

    def end(self) -> None:
        """Say so if the machine let no run come to anything.

        Raises:
            MachineFault: it did not.
        """
        if self.aside:
            experiment, reason = self.aside[-1]
            raise MachineFault(f"no run takes a step here, {experiment.label} for one: {reason}")


class _Order(NamedTuple):
    """Settings that every worker process gets."""

    store: Path
    deadline: float
    threads: int
    gpu: bool


class _Worker:
    """A process that carries out one run after another, and the one that takes its place when it is killed.

    They talk through a pipe of their own: unlike a queue or a pool, it has no lock that one could be killed with.
    """

    def __init__(self, order: _Order, place: int) -> None:
        self.order, self.place = order, place
        self.run: Experiment | None = None
        self._start()

    def _start(self) -> None:
        self.ready = False
        self.process, self.pipe = start(_serve, self.place, self.order.gpu, (self.order,))

    def begin(self, experiment: Experiment) -> None:
        """Have a run carried out."""
        self.run = experiment
        if not self.process.is_alive():  # killed while it had nothing to do, or over its last run
            self._start()
        with contextlib.suppress(OSError):  # killed right now: `hear` finds out
            self.pipe.send(experiment.model_dump_json())

    def hear(self) -> Progress | tuple[str, str] | _Death | None:
        """Return the worker's message: the run's progress, its end, or the process's death; None if it is ready.

        Call it when there is something.

        Raises:
            MachineFault: the machine stands in the way of any run.
        """
        try:
            if self.pipe.poll():
                said: Progress | Unable | tuple[str, str] | None = self.pipe.recv()
                if said is READY:
                    self.ready = True
                    return None
                if isinstance(said, Progress):
                    return said
                self.run = None
                if isinstance(said, Unable):
                    raise cannot_begin(said.reason)
                state, reason = said
                if state == "machine":
                    raise MachineFault(reason)
                if state == "failed" and self.order.gpu:
                    self._renew()  # a GPU's error stays with a process
                return _Death(0, True, reason) if state == "died" else (state, reason)
        except (EOFError, OSError):
            pass
        self.pipe.close()
        self.process.join()
        self.run = None
        return _Death(self.process.exitcode or 0, self.ready)

    def _renew(self) -> None:
        """Have another process take the place of one that has nothing to do."""
        self.stop()
        self.join()
        self.pipe.close()
        self._start()

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
                    if isinstance(said, tuple) and said[0] in ("failed", "machine"):
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
        if any(worker.run and worker.ready for worker in crew):
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


def _serve(pipe: Connection, order: _Order) -> None:
    """Run a worker process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
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
    """Carry out a run and return its outcome."""

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
    except Exception as error:  # one run's, whatever it is; the others go on, unless the machine is at fault
        kind, reason = blamed(error)
        states: dict[type[Failure], str] = {ProcessDied: "died", MachineFault: "machine"}
        return states.get(kind, "failed"), reason
