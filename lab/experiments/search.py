"""A study's trials: Optuna's, in a database that several processes and machines may work on at once.

Every trial has an index below the study's number of trials. A trial whose worker dies has no heartbeat any more; it
then waits anew, with its index and the values that it had, so that its run is found by identity and goes on from its
checkpoint. Of trials with the same index one counts (`Search.standing`), so that none is lost or doubled, however many
workers queue and take trials at once.

What is tried is TPE's (Optuna's defaults), after a random start of half of the trials, ten at most, which is the same
in every arm. Its draws depend on the index and on the trials that are done, not on the process: with one worker, a
study that was stopped tries what it would have tried. A trial is pruned when its best so far is below the median of the
complete ones at the same step (Optuna's MedianPruner), after the random start and a third of its steps, unless
the study says `prune: false`.
"""

import itertools
import re
import sqlite3
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from lab.errors import BadInput, Failure
from lab.experiments.study import Arm, Point, Study
from lab.tasks.base import ScoreRow

STATES = ("complete", "pruned", "failed", "running", "waiting")
"""Of a trial."""
HEARTBEAT = 10
"""Seconds between a trial's signs of life; without one for three times as long it is taken for dead."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


def default_url(study: Study, store: Path) -> str:
    """The database of a study that names none: SQLite, under the store."""
    path = (store / "studies" / f"{study.name}.{study.scale}.db").absolute()
    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


class Search:
    """A study's trials in their database.

    Args:
        study: what is searched.
        url: the database, as SQLAlchemy names it.
        begin: whether to make what is not there yet.

    Raises:
        BadInput: the database cannot be opened, or its trials are of another study of this name.
        Failure: there are no trials, and none are to be made.
    """

    def __init__(self, study: Study, url: str, begin: bool) -> None:
        self.study = study
        self.url = url
        self.storage = open_storage(url, begin)
        self.searches = [self._search(arm, begin) for arm in study.arms]
        """Optuna's studies, one for each arm."""

    def _search(self, arm: Arm, begin: bool) -> optuna.Study:
        name = f"{self.study.name}.{self.study.scale}: {arm.name}"
        start = max(1, min(10, self.study.trials // 2))
        steps = self.study.experiments(arm, self.study.corners()[0])[0].train.steps
        falls_behind = optuna.pruners.MedianPruner(n_startup_trials=start, n_warmup_steps=steps // 3)
        pruner = falls_behind if self.study.file.prune else optuna.pruners.NopPruner()
        rules: dict[str, Any] = {"storage": self.storage, "sampler": IndexedTPE(start), "pruner": pruner}
        try:
            search = optuna.load_study(study_name=name, **rules)
        except KeyError:
            if not begin:
                raise Failure(f"{self.study.path}, scale {self.study.scale}: no trials in {shown(self.url)}") from None
            search = optuna.create_study(study_name=name, direction="maximize", load_if_exists=True, **rules)
        definition = self.study.definition(arm)
        former = search.user_attrs.get("definition")
        if former is None:
            search.set_user_attr("definition", definition)
        elif former != definition:
            changed = " and ".join(part for part in definition if former.get(part) != definition[part])
            raise BadInput(
                f"{self.study.path}: {changed}: not what it was when the trials in {shown(self.url)} were made; "
                "give the study another name, or move them away"
            )
        return search

    def standing(self, search: optuna.Study) -> dict[int, FrozenTrial]:
        """By index, the trial that counts: of several the first, but a failed one only if there is no other.

        A trial that failed without a reason never counts: it was stopped, or its worker died, or it was one too many.
        """
        trials = search.get_trials(deepcopy=False)
        failed = [trial for trial in trials if trial.state == TrialState.FAIL and "reason" in trial.user_attrs]
        found: dict[int, FrozenTrial] = {}
        for trial in (*(each for each in trials if each.state != TrialState.FAIL), *reversed(failed)):
            index = trial.user_attrs.get("index", self.study.trials)
            if index < self.study.trials:
                found.setdefault(index, trial)
        return found

    def queue(self, search: optuna.Study) -> None:
        """Let the next trial wait, if none does."""
        standing = self.standing(search)
        if not any(trial.state == TrialState.WAITING for trial in standing.values()):
            for index in itertools.islice((each for each in range(self.study.trials) if each not in standing), 1):
                search.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"index": index}))

    def retry(self) -> None:
        """Let trials wait anew that failed."""
        for search in self.searches:
            for trial in self.standing(search).values():
                if trial.state == TrialState.FAIL:
                    put_back(search, trial)

    def count_from_now(self) -> None:
        """Give every running trial a sign of life, since a worker may have died before it gave the first."""
        for search in self.searches:
            for trial in search.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.storage.record_heartbeat(trial._trial_id)

    def revive(self) -> None:
        """Let trials wait anew whose workers died."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            for search in self.searches:
                optuna.storages.fail_stale_trials(search)

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each state."""
        states = [row["state"] for row in self.rows()]
        return {state: states.count(state) for state in STATES}

    def rows(self) -> list[ScoreRow]:
        """A row in JSON types for each trial: what was tried, and what came of it."""
        return [
            _row(arm, index, standing.get(index))
            for arm, search in zip(self.study.arms, self.searches, strict=True)
            for standing in [self.standing(search)]
            for index in range(self.study.trials)
        ]

    def importances(self) -> list[dict[str, float]]:
        """Return each field's share of the variance of scores (PED-ANOVA), by arm; empty with too few trials."""
        found: list[dict[str, float]] = []
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            for search in self.searches:
                try:
                    found.append(optuna.importance.get_param_importances(search))
                except (ValueError, RuntimeError, UserWarning):
                    found.append({})
        return found


def _row(arm: Arm, index: int, trial: FrozenTrial | None) -> ScoreRow:
    trial = trial or create_trial(state=TrialState.WAITING)
    state = "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()
    about, last = trial.user_attrs, trial.last_step
    pruned = state == "pruned" and last is not None
    return {
        "arm": arm.labels,
        "trial": index,
        "state": state,
        "values": trial.params,
        "score": trial.value if state == "complete" else None,
        "scores": about.get("scores"),
        "examples": about.get("examples"),
        "step": last if pruned else None,
        "reached": trial.intermediate_values[last] if pruned and last is not None else None,
        "reason": about["reason"] if state == "failed" else None,
        "identities": about.get("identities", []),
        "provenance": about.get("provenance"),
    }


def put_back(search: optuna.Study, trial: FrozenTrial) -> None:
    """Let a trial that did not come to its end wait anew, with the values that it had."""
    if "index" in trial.user_attrs:
        search.add_trial(
            create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"index": trial.user_attrs["index"]},
            )
        )


def open_storage(url: str, begin: bool) -> RDBStorage:
    """A database of trials; unless `begin`, a SQLite file is not made.

    Raises:
        BadInput: it cannot be opened.
        Failure: there is no such file.
    """
    try:
        parsed = sqlalchemy.make_url(url)
        lite = parsed.get_backend_name() == "sqlite"
        if lite and parsed.database in (None, "", ":memory:"):
            raise ValueError("it should name a file, which workers can share")
        if lite and parsed.database and not Path(parsed.database).exists():
            if not begin:
                raise Failure(f"no trials in {shown(url)}")
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if lite else {"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT,
                grace_period=3 * HEARTBEAT,
                heartbeat_stale_trial_callback=put_back,
            )
        if lite:
            _write_from_the_start(storage.engine)
        return storage
    except ImportError:
        raise BadInput(
            f"storage: {shown(url)}: its driver is not installed; for PostgreSQL: pip install 'mtp-lab[postgresql]'"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, OSError, RuntimeError, ValueError) as error:
        known = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else getattr(error, "strerror", error)
        reason = str(known).split("\n")[0]
        raise BadInput(f"storage: {shown(url)} cannot be opened: {reason}") from None


def _write_from_the_start(engine: sqlalchemy.Engine) -> None:
    """Let SQLite's transactions begin with the right to write, as it has no SELECT … FOR UPDATE.

    Else two workers can read that a trial waits, and both take it. (The events are SQLAlchemy's recipe for SQLite.)
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def _(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # of connections that were made before


def shown(url: str) -> str:
    """A database's name without its password; of SQLite, its path."""
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # the latter of a port that is no number
        hidden = re.sub("(://[^:@/]*:).*@", r"\1***@", url)
        return f"'{hidden}'"
    lite = parsed.get_backend_name() == "sqlite" and parsed.database
    return str(parsed.database) if lite else parsed.render_as_string(hide_password=True)


class IndexedTPE(BaseSampler):
    """TPE whose draws for a trial depend on its index, and on the trials that are done.

    Args:
        start: how many trials are random, before there is anything to learn from.
    """

    def __init__(self, start: int) -> None:
        self.start = start

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        seed = int(np.random.SeedSequence([trial.user_attrs.get("index", 0)]).generate_state(1)[0])
        self.tpe = TPESampler(n_startup_trials=self.start, seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)


def suggest(study: Study, trial: optuna.Trial) -> Point:
    """Return the values that a trial tries."""
    point: Point = {}
    for field, dimension in study.space.items():
        if not dimension.applies(point):
            continue
        low, high = dimension.labels[0], dimension.labels[-1]
        if dimension.choices is not None:
            point[field] = trial.suggest_categorical(field, dimension.labels)
        elif study.whole(field):
            point[field] = trial.suggest_int(field, low, high, log=dimension.log)
        else:
            point[field] = trial.suggest_float(field, low, high, log=dimension.log)
    return point
