"""Carries out a study's trials: each is a run of the lab, or one for each seed, found again by identity."""

import contextlib
import logging
import time
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import optuna
import torch
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lab.errors import Failure, MachineFault, blamed
from lab.experiments import provenance
from lab.experiments import search as searches
from lab.experiments.experiment import Experiment
from lab.experiments.processes import READY, Unable, cannot_begin, ended, killed_for_memory, start
from lab.experiments.search import Search, put_back, suggest
from lab.experiments.store import Busy, Result, kept_results
from lab.experiments.study import Arm, Study
from lab.experiments.workers import on_the_cpu, undisturbed
from lab.learning.progress import STOPPING, Progress
from lab.tasks.base import ScoreRow

log = logging.getLogger(__name__)


class News(NamedTuple):
    """A worker's message: a trial is `running`, with its progress, or is `complete`, `pruned`, `failed`, `stopped`.

    Without a trial: that the worker is `lost`, or `hindered` by the machine, which hinders all.
    """

    trial: str
    state: str
    about: str = ""
    progress: Progress | None = None


def carry_out(
    study: Study, url: str, store: Path, workers: int, deadline: float, on_cpu: bool = False
) -> Generator[News]:
    """Carry out the trials that wait, in several processes, and yield what they tell.

    At `deadline` (seconds since the epoch), when the caller leaves early or dies, and where the machine stands in the
    way, runs stop at a checkpoint and their trials wait anew. When a worker dies the others go on, with its trial as
    well.

    Raises:
        MachineFault: no worker can begin, or one is hindered: no trial is to blame.
    """
    threads = max(1, provenance.threads() // workers)
    gpu = torch.cuda.is_available() and not on_cpu
    killed = killed_for_memory()
    processes: dict[Connection, SpawnProcess] = {}
    ready: set[Connection] = set()
    try:
        for place in range(workers):
            arguments = (study, url, store, threads, deadline, on_cpu, searches.HEARTBEAT)
            process, pipe = start(_work, place, gpu, arguments)
            processes[pipe] = process
        while processes:
            for connection in wait(list(processes), 0.5):
                assert isinstance(connection, Connection)
                try:
                    said: News | Unable | None = connection.recv()
                except (EOFError, OSError):
                    process = processes.pop(connection)
                    process.join()
                    code = process.exitcode or 0
                    if code > 0 and connection not in ready:
                        raise cannot_begin(f"it is {ended(code)}") from None
                    if code:
                        Search(study, url, begin=False).count_from_now()
                        yield News("", "lost", f"a worker process was {ended(code, killed)}")
                    continue
                if isinstance(said, Unable):
                    raise cannot_begin(said.reason)
                if said is READY:
                    ready.add(connection)
                elif said.state == "hindered":
                    raise MachineFault(said.about)
                else:
                    yield said
    finally:
        if ready & processes.keys():
            log.info(STOPPING)
        with undisturbed(list(processes.values())):
            for connection in processes:
                connection.close()
            for process in processes.values():
                process.join()


def _work(
    connection: Connection,
    study: Study,
    url: str,
    store: Path,
    threads: int,
    deadline: float,
    on_cpu: bool,
    heartbeat: int,
) -> None:
    """Run a worker process."""
    searches.HEARTBEAT = heartbeat
    with contextlib.suppress(BrokenPipeError):
        try:
            _Worker(connection, Search(study, url, begin=False), store, threads, deadline, on_cpu).work()
        except Exception as error:  # the machine's, or the database's, whatever it is
            kind, reason = blamed(error)
            connection.send(News("", "lost" if kind is Failure else "hindered", reason))


class _Stopped(Exception):
    """The trial's run was stopped."""


class _Failed(Exception):
    """The trial's run failed."""


class _Surplus(Exception):
    """The trial is not the one that counts."""


class _Worker:
    """Carries out trials, one after another, while there are any."""

    def __init__(
        self,
        connection: Connection,
        search: Search,
        store: Path,
        threads: int,
        deadline: float,
        on_cpu: bool = False,
    ) -> None:
        self.connection = connection
        self.on_cpu = on_cpu
        self.search = search
        self.study = search.study
        self.store = store
        self.threads = threads
        self.deadline = deadline
        self.kept = kept_results()

    def stopping(self) -> bool:
        """Return True to stop. The parent never writes: if there is anything to read, it has hung up."""
        return self.connection.poll() or time.time() > self.deadline

    def tell(self, news: News) -> None:
        with contextlib.suppress(OSError):  # the parent has hung up
            self.connection.send(news)

    def work(self) -> None:
        """Carry out trials, of the arm first of which fewest have begun."""
        while not self.stopping():
            states = [[each.state for each in self.search.standing(one).values()] for one in self.search.searches]
            begun = [len(each) - each.count(TrialState.WAITING) for each in states]
            place = begun.index(min(begun))
            if begun[place] < self.study.trials:
                self.attempt(self.study.arms[place], self.search.searches[place])
            elif any(TrialState.RUNNING in each for each in states):
                self.connection.poll(1.0)
                self.search.revive()  # somebody else's, who may have died
            else:
                return

    def attempt(self, arm: Arm, search: optuna.Study) -> None:
        """Carry out a trial of an arm."""
        stopped: Exception | None = None

        def objective(trial: optuna.Trial) -> float:
            nonlocal stopped
            standing = self.search.standing(search).get(trial.user_attrs.get("index", -1))
            if standing is None or standing.number != trial.number:
                raise _Surplus  # another worker was faster with the last one
            name = " ".join([f"trial {trial.user_attrs['index']}", *([arm.name] if arm.labels else [])])
            try:
                score = self.score(trial, arm, name)
            except optuna.TrialPruned as pruned:
                self.tell(News(name, "pruned", str(pruned)))
                raise
            except _Stopped as error:
                stopped = error
                self.tell(News(name, "stopped"))
                raise
            except (OptunaError, SQLAlchemyError):
                raise
            except Exception as error:  # one trial's, whatever it is; the others go on
                kind, reason = blamed(error)
                if kind is not Failure:
                    stopped = error
                    self.tell(News(name, "stopped"))
                    raise _Stopped from error
                trial.set_user_attr("reason", reason)
                self.tell(News(name, "failed", reason))
                raise _Failed from error
            self.tell(News(name, "complete", f"{100 * score:.1f} %"))
            return score

        def after(search: optuna.Study, trial: FrozenTrial) -> None:
            if stopped:
                put_back(search, trial)

        self.search.queue(search)
        try:
            search.optimize(objective, n_trials=1, catch=(_Stopped, _Failed, _Surplus), callbacks=[after])
        except (UpdateFinishedTrialError, ValueError) as error:
            if isinstance(error, ValueError) and "Cannot tell a" not in str(error):
                raise  # else the trial was taken for dead, and waits anew
        if stopped and not isinstance(stopped, _Stopped):
            raise stopped  # the machine's fault

    def score(self, trial: optuna.Trial, arm: Arm, name: str) -> float:
        """The score of what a trial tries: the mean over its runs."""
        experiments = self.study.experiments(arm, suggest(self.study, trial))
        if self.on_cpu:
            experiments = list(map(on_the_cpu, experiments))
        trial.set_user_attr("identities", [each.identity for each in experiments])
        results = []
        for place, experiment in enumerate(experiments):
            judge = _Judge(trial, experiment, prunes=place == 0)
            result = self.kept.get(experiment.identity) or self.run(experiment, name, judge)
            if result is None:
                raise judge.verdict or _Stopped
            judge(result.get("curve", []))  # of a run that was done before
            results.append(result)
        scores, examples = zip(*map(validation_score, experiments, results), strict=True)
        trial.set_user_attr("scores", scores)
        trial.set_user_attr("examples", min(examples))
        about = {"hardware", "versions", "commit", "finished"}
        trial.set_user_attr("provenance", {part: value for part, value in results[0].items() if part in about})
        return fmean(scores)

    def run(self, experiment: Experiment, name: str, judge: Callable[[list[ScoreRow]], bool]) -> Result | None:
        """A run's result; None when it was stopped."""
        from lab.experiments.run import execute  # takes seconds to import, and there may be nothing to run

        def listen(progress: Progress) -> None:
            self.tell(News(name, "running", progress=progress))

        while not self.stopping():
            try:
                return execute(experiment, self.store, self.threads, listen, self.stopping, judge=judge)
            except Busy:
                self.connection.poll(1.0)  # somebody else's, whose result will do
        return None


class _Judge:
    """Reports a run's learning curve, and stops the run when its trial is to be pruned, or was taken for dead.

    A run that does not prune is not reported.
    """

    def __init__(self, trial: optuna.Trial, experiment: Experiment, prunes: bool) -> None:
        self.trial = trial
        self.prunes = prunes
        self.steps = experiment.train.steps
        self.measure = f"validation/{experiment.task.build().metric}"
        self.told = 0
        self.verdict: Exception | None = None

    def __call__(self, curve: list[ScoreRow]) -> bool:
        news = [row for row in curve[self.told :] if self.prunes and row["step"] < self.steps]
        self.told = len(curve)
        try:
            for row in news:
                self.trial.report(row[self.measure], row["step"])
            if news and self.trial.should_prune():
                self.verdict = optuna.TrialPruned(f"at step {news[-1]['step']}")
        except UpdateFinishedTrialError as error:
            self.verdict = error
        return self.verdict is not None


def validation_score(experiment: Experiment, result: Result) -> tuple[float, int]:
    """The task's choice on the validation set, by the final weights, and the number of examples behind it."""
    task = experiment.task.build()
    final = [row for row in result["scores"] if (row["split"], row["checkpoint"]) == ("validation", "final")]

    def share(one: ScoreRow) -> float:
        """Return the weight of a row in the score, which is linear in its rows."""
        return task.summary([{**row, task.metric: float(row is one)} for row in final])[task.metric]

    spread = sum(share(row) ** 2 / row["count"] for row in final if row["count"])
    return task.summary(final)[task.metric], round(1 / spread)
