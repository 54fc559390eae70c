"""Endpoints: the one number of each run by which a sweep's arms are judged, read off its results."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lab.config import did_you_mean
from lab.errors import BadInput
from lab.experiments.experiment import Experiment
from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Primary, Sweep
from lab.objectives import Detached, ObjectiveConfig
from lab.objectives.heads import ManyHeads
from lab.report.tables import curves, past, tidy
from lab.tasks.base import ScoreRow, Task


def endpoint(table: pd.DataFrame, primary: Primary, task: Task) -> pd.DataFrame:
    """The rows of `tidy`'s table that the endpoint is about: test, final weights, its slices; one a run.

    Raises:
        BadInput: there is no such slice, or a run has no scores for its value.
    """
    slices = tuple(dict.fromkeys((*task.slices, "seen")))
    for name in primary.where:
        if name not in slices:
            allowed = ", ".join(slices)
            raise BadInput(f"primary.where.{name}: no slice; allowed: {allowed}{did_you_mean(name, slices)}")
    rows = table[(table.split == "test") & (table.checkpoint == "final")]
    for name in slices:
        wanted = primary.where.get(name, "all")
        kept = rows[rows[name] == wanted]
        if kept.identity.nunique() < rows.identity.nunique():
            allowed = ", ".join(map(repr, rows[name].unique().tolist()))
            refused = f"{wanted!r} is not allowed: not every run has it"
            raise BadInput(f"primary.where.{name}: {refused}; there are: {allowed}")
        rows = kept
    return rows


def tokens_to(curve: pd.DataFrame) -> float:
    """Training tokens from which on a run's learning curve stays `above` a level; nan if it ends below."""
    below = curve[~curve.above].step.max()
    after = curve[curve.step > below] if not math.isnan(below) else curve
    return float(after.tokens.min()) if len(after) else math.nan


def scored(sweep: Sweep, finished: Iterable[tuple[Cell, Result]]) -> pd.DataFrame:
    """One row a run: the columns that `endpoint` keeps, and what judging needs beside them.

    `value`, the run's number by the sweep's `primary.measure`: the score, 1 or 0 for solved or not, or the share of the
    budget that was left when validation came to stay at or past the level (0 if it never did; the budget is that of the
    run with the fewest tokens). `past`: the final score is at or past the stated level, or by the lower end of its
    interval past the task's first one. `tokens_to`, the training tokens after which validation stayed there (nan: it
    never did), `first`, those of the first evaluation, and `budget`, where learning curves tell. `seconds` of training;
    `taught`, whether heads beyond the next token's taught the trunk.

    Raises:
        BadInput: the sweep states no primary endpoint, or one that its runs have no scores or no curves for.
    """
    results, primary = list(finished), sweep.primary
    if primary is None:
        raise BadInput(f"{sweep.path}, scale {sweep.scale}: primary: is missing, so nothing can be judged")
    task = sweep.cells[0].experiment.task.build()
    try:
        scores = endpoint(tidy(results), primary, task)
        times = _times_to_level(results, primary, task, scores)
        if times is None and primary.measure == "tokens_to_level":
            slices = ", ".join(f"{name} {value}" for name, value in primary.where.items()) or "all examples"
            said = f"not every run has a learning curve of {task.metric} on {slices}"
            raise BadInput(f"primary.measure: 'tokens_to_level' is not allowed: {said}")
    except BadInput as error:
        raise BadInput(f"{sweep.path}, scale {sweep.scale}: {error}") from None

    # What each run is, and how it ended.
    seconds = {cell.experiment.identity: result["seconds"] for cell, result in results}
    runs = {cell.experiment.identity: cell.experiment for cell in (*sweep.cells, *sweep.sources)}
    taught = {identity: taught_further(run, runs) for identity, run in runs.items()}
    above = (
        past(scores[task.metric], scores["count"], scores[task.baselines[0]])
        if primary.level is None
        else scores[task.metric] >= primary.level
    )
    scores = scores.assign(past=above, seconds=scores.identity.map(seconds), taught=scores.identity.map(taught))
    if times is not None:
        scores = scores.join(times, on="identity")

    # The number that is compared.
    if primary.measure == "solved":
        return scores.assign(value=scores.past.astype(float))
    if primary.measure == "tokens_to_level":
        spent = scores.tokens_to.fillna(math.inf).clip(upper=scores.budget)
        return scores.assign(value=1 - spent / scores.budget)
    return scores.assign(value=scores[task.metric])


def taught_further(run: Experiment, others: Mapping[str, Experiment]) -> bool:
    """True where heads beyond the next token's teach the trunk, in a run or in the one of `others` that it begins from.

    Next-token prediction in any form does not, nor do heads that are detached: such arms are controls.
    """
    source = others.get(run.source) if run.source is not None else None
    return any(_teaches(each.objective) for each in (run, source) if each)


def _teaches(objective: ObjectiveConfig) -> bool:
    """True where further heads' gradient reaches the trunk."""
    if not isinstance(objective, ManyHeads) or isinstance(objective, Detached):
        return False
    return objective.n > 1 and objective.trunk_gradient > 0


def _times_to_level(
    results: Sequence[tuple[Cell, Result]], primary: Primary, task: Task, scores: pd.DataFrame
) -> pd.DataFrame | None:
    """`tokens_to`, `first` and `budget` by identity (`scored`); None where not every run has a curve that tells."""
    if not all("curve" in result for _, result in results):
        return None
    curve, ending = curves(results), "".join(f"_{name}_{value}" for name, value in primary.where.items())
    if f"validation/{task.metric}{ending}" not in curve:
        if not _summary_is_of(primary, task, results[0], scores):
            return None
        ending = ""

    # Where the curve has the measure, and the level beside it unless that is stated.
    measured, beside = (f"validation/{name}{ending}" for name in (task.metric, task.baselines[0]))
    needed = [measured] if primary.level is not None else [measured, beside]
    if not {*needed} <= {*curve}:
        return None
    known = curve.dropna(subset=needed)
    if known.identity.nunique() < curve.identity.nunique():  # older runs log less
        return None
    above = known[measured] > known[beside] if primary.level is None else known[measured] >= primary.level
    runs = known.assign(above=above).groupby("identity")
    return pd.DataFrame(
        {
            "tokens_to": {identity: tokens_to(run) for identity, run in runs},
            "first": runs.tokens.min(),
            "budget": runs.tokens.max().min(),
        }
    )


def _summary_is_of(primary: Primary, task: Task, run: tuple[Cell, Result], scores: pd.DataFrame) -> bool:
    """True if the measure that curves call by its bare name is that of the endpoint's slices, by a run's final table.

    A task may summarise itself by a slice (`second_token_accuracy` is that of fresh names), or by a mean over slices.
    """
    if not primary.where:
        return True
    cell, result = run
    rows: list[ScoreRow] = [row for row in result["scores"] if (row["split"], row["checkpoint"]) == ("test", "final")]
    own: Any = scores.set_index("identity").loc[cell.experiment.identity, task.metric]
    return bool(np.isclose(task.summary(rows)[task.metric], own, rtol=0, atol=1e-12))
