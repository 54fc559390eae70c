"""Verdicts: what a sweep's primary endpoint says of each arm, and how many seeds would say more.

The arms are compared seed by seed (`lab.report.tables.paired_differences`) on the sweep's `primary` endpoint. A verdict
is about the claim that the arm is better than what it is compared with.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import chdtri, ndtr, stdtrit

from lab.config import did_you_mean
from lab.errors import BadInput
from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Primary, Sweep
from lab.report.tables import Interval, curves, interval, pairs, past, tidy
from lab.tasks.base import Row, Task

MANY = 10_000
"""Seeds beyond which nobody will run them: `seeds_needed` looks no further."""
_POINTS = 4000
"""Of a mean over quantiles."""
_ROUNDING = 1e-24
"""A variance of scores that is none."""


def verdict(difference: Interval, margin: float) -> str:
    """What a paired difference says of the claim that it is above 0.

    "reproduced": the 95 % interval lies above 0; "reversed": below 0; "no difference": it holds 0 and lies within
    ± margin; "inconclusive": anything else, a single seed included.
    """
    if math.isnan(difference.low):
        return "inconclusive"
    if difference.low > 0:
        return "reproduced"
    if difference.high < 0:
        return "reversed"
    return "no difference" if max(-difference.low, difference.high) <= margin else "inconclusive"


def pairing_gain(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """How many times as many seeds unpaired arms would need for an interval as narrow: Var(a) + Var(b) over Var(a - b).

    1 when pairing gains nothing, below 1 when it loses; nan of fewer than three seeds.

    Args:
        one: [S] scores by seed.
        other: [S] the other arm's, of the same seeds.
    """
    paired = float(np.var(one - other, ddof=1)) if len(one) > 2 else 0.0
    return float(np.var(one, ddof=1) + np.var(other, ddof=1)) / paired if paired > _ROUNDING else math.nan


def sign_flip(differences: NDArray[np.float64]) -> float:
    """The two-sided p value of a mean of paired differences, were each as likely to have the other sign.

    It needs no normal distribution, so it holds where scores come in two heaps, as on tasks that are learned with a
    jump. Exact up to 16 seeds, of which the smallest p is 2 / 2^S (Fisher 1935, Section 21); nan of one.
    """
    from scipy.stats import permutation_test  # takes a second to import

    if len(differences) < 2:
        return math.nan

    def size(flipped: NDArray[np.float64], axis: int) -> Any:
        return np.abs(flipped.mean(axis)).round(12)  # scores are ratios of counts: what is as large is a tie

    rules: Any = {"permutation_type": "samples", "n_resamples": 2**16, "vectorized": True, "rng": 0}
    return float(permutation_test((differences,), size, alternative="greater", **rules).pvalue)


def power(effect: float, deviation: float, seeds: int) -> float:
    """The chance that a paired two-sided t test at 5 % finds a true `effect`, when differences have this `deviation`.

    The noncentral t distribution's tails (Cohen 1988, Section 2.3), as means of normal tails over the quantiles of the
    estimated deviation: scipy's own are nan for some large effects of few seeds.
    """
    bound, shift = stdtrit(seeds - 1, 0.975), abs(effect) / deviation * math.sqrt(seeds)
    quantiles = (np.arange(_POINTS) + 0.5) / _POINTS
    estimated = np.sqrt(chdtri(seeds - 1, quantiles) / (seeds - 1))
    return float((ndtr(shift - bound * estimated) + ndtr(-shift - bound * estimated)).mean())


def seeds_needed(effect: float, deviation: float, wanted: float = 0.8) -> int | None:
    """The fewest paired seeds with which an `effect` is found with a chance of `wanted`; None when beyond `MANY`."""
    if math.isnan(deviation):
        return None
    if deviation == 0:
        return 2
    low, high = 1, 2
    while power(effect, deviation, high) < wanted:
        low, high = high, 2 * high
        if low > MANY:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, deviation, middle) >= wanted else (middle, high)
    return high


def at_most(deviation: float, seeds: int, confidence: float = 0.8) -> float:
    """The upper limit, at `confidence`, of a deviation that was measured over `seeds`.

    A pilot's deviation is itself uncertain; planning with its upper limit is Browne's (1995) advice.
    """
    return deviation * math.sqrt((seeds - 1) / float(chdtri(seeds - 1, confidence))) if seeds > 1 else math.nan


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
    """One row a run: what `endpoint` has, `seconds` of training, and `past`, whether it is past the task's first level.

    Where learning curves have that level beside the measure, also `tokens_to`, the training tokens after which
    validation stayed above it.

    Raises:
        BadInput: the sweep states no primary endpoint, or one that its runs have no scores for.
    """
    results = list(finished)
    if sweep.primary is None:
        raise BadInput(f"{sweep.path}, scale {sweep.scale}: primary: is missing, so nothing can be judged")
    task = sweep.cells[0].experiment.task.build()
    try:
        scores = endpoint(tidy(results), sweep.primary, task)
    except BadInput as error:
        raise BadInput(f"{sweep.path}, scale {sweep.scale}: {error}") from None
    level = task.levels[0]
    seconds = {cell.experiment.identity: result["seconds"] for cell, result in results}
    above = past(scores[task.choice], scores["count"], scores[level])
    scores = scores.assign(past=above, seconds=scores.identity.map(seconds))
    if all("curve" in result for _, result in results):
        curve, of = curves(results), "".join(f"_{name}_{value}" for name, value in sweep.primary.where.items())
        if f"validation/{task.choice}{of}" not in curve:
            of = ""  # what the task's own summary is of
        measured, beside = (f"validation/{name}{of}" for name in (task.choice, level))
        told = curve.dropna(subset=[measured, beside]) if beside in curve else curve[:0]
        if told.identity.nunique() == curve.identity.nunique():  # older runs log less
            ahead = told.assign(above=told[measured] > told[beside])
            reached = {identity: tokens_to(run) for identity, run in ahead.groupby("identity")}
            scores["tokens_to"] = scores.identity.map(reached)
    return scores


def judge(sweep: Sweep, finished: Iterable[tuple[Cell, Result]]) -> list[Row]:
    """A row for each arm that is compared with another, of those seeds that both have.

    Columns: `arm`, the arm's values on the sweep's axes but the seed, and `n`; `less`, the other arm's; `mean`, `low`,
    `high` of the `differences`, by seed; `seeds`, their number; `verdict`, "screen" where the sweep is one; `p`, of
    `sign_flip`; `change`, by how much the difference is another than the same arm's under the sweep's first condition
    (`mean`, `low`, `high` over seeds; None where there is but one, or for the first); `score` and `other_score`, the
    mean of either; `past` and `other_past`, how many of their seeds are past the task's first level; `tokens_to` and
    `other_tokens_to`, the median of the tokens after which validation stayed above it (nan for a run that never did;
    None where curves do not tell); `pairing_gain`; `deviation` of the differences; `seeds_for_margin` and
    `seeds_for_margin_safe`, the seeds that would find a difference as large as the margin in four cases of five, by the
    deviation and by its upper 80 % limit; `minutes_for_margin_safe`, what the latter cost: training of both arms, on
    what a run of theirs had (a GPU, or its threads' cores), by the fastest run of each, which shared that with the
    fewest others. Scores are shares of 1.

    Raises:
        BadInput: the sweep states no primary endpoint, or one that its runs have no scores for.
    """
    return _judged(sweep, scored(sweep, finished))


def _judged(sweep: Sweep, scores: pd.DataFrame) -> list[Row]:
    """What `judge` says, of what `scored` has."""
    assert sweep.primary is not None  # `scored` refuses what states none
    task = sweep.cells[0].experiment.task.build()
    axes = [axis for axis in sweep.axes if axis != "seed"]
    rows = [
        _compared(arm.set_index("seed").loc[shared], other.set_index("seed").loc[shared], axes, task, sweep.primary)
        for arm, other in pairs(scores, axes)
        if (shared := sorted({*arm.seed} & {*other.seed}))
    ]
    first: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        moved = tuple((axis, value) for axis, value in row["arm"].items() if value != row["less"][axis])
        row["change"] = _change(row, first.setdefault(moved, row))
    return rows


def document(sweep: Sweep, finished: Iterable[tuple[Cell, Result]]) -> dict[str, Any]:
    """All that is to be said of a sweep's endpoint, in JSON types.

    `sweep` (its file), `scale`, `question`, `endpoint`, `budget`, `measure`, `primary`, the `commits` and `hardware` of
    its runs, `verdicts` (as of `judge`), and `runs`: `arm`, `seed`, `identity` and `score` of each.

    Raises:
        BadInput: as `scored` does.
    """
    results, measure = list(finished), sweep.cells[0].experiment.task.build().choice
    scores = scored(sweep, results)
    axes = [axis for axis in sweep.axes if axis != "seed"]
    return {
        "sweep": sweep.path,
        "scale": sweep.scale,
        "question": sweep.file.question,
        "endpoint": sweep.file.endpoint,
        "budget": sweep.file.scales[sweep.scale].budget,
        "measure": measure,
        "primary": sweep.primary.model_dump(mode="json") if sweep.primary else None,
        "commits": sorted({str(result["commit"]) for _, result in results}),
        "hardware": sorted({_machine(result["hardware"]) for _, result in results}),
        "verdicts": _judged(sweep, scores),
        "runs": [
            {
                "arm": {axis: run[axis] for axis in axes},
                "score": run[measure],
                "seed": run["seed"],
                "identity": run["identity"],
            }
            for run in scores.to_dict("records")
        ],
    }


def _machine(hardware: dict[str, Any]) -> str:
    where = "" if hardware["device"] == "cpu" else f", {hardware['device']}"
    return f"{hardware['cpu']}, {hardware['cores']} cores, threads a run: {hardware['threads']}{where}"


def _compared(arm: pd.DataFrame, other: pd.DataFrame, axes: list[str], task: Task, primary: Primary) -> Row:
    """One row of `judge` from the scores of two arms, by the same seeds."""
    a, b = (each[task.choice].to_numpy(float) for each in (arm, other))
    spread, seeds = interval(a - b), len(a)
    deviation = float(np.std(a - b, ddof=1)) if seeds > 1 else math.nan
    safe = seeds_needed(primary.margin, at_most(deviation, seeds))
    of_a_pair = float(arm.seconds.min() + other.seconds.min()) / 60
    return {
        "arm": {axis: arm[axis].tolist()[0] for axis in axes},
        "n": arm.n.tolist()[0],
        "less": {axis: other[axis].tolist()[0] for axis in axes},
        **spread._asdict(),
        "seeds": seeds,
        "differences": dict(zip(arm.index.tolist(), (a - b).tolist(), strict=True)),
        "verdict": "screen" if primary.screen else verdict(spread, primary.margin),
        "p": sign_flip(a - b),
        "score": float(a.mean()),
        "other_score": float(b.mean()),
        "past": int(arm.past.sum()),
        "other_past": int(other.past.sum()),
        "tokens_to": _median(arm),
        "other_tokens_to": _median(other),
        "pairing_gain": pairing_gain(a, b),
        "deviation": deviation,
        "seeds_for_margin": seeds_needed(primary.margin, deviation),
        "seeds_for_margin_safe": safe,
        "minutes_for_margin_safe": None if safe is None else safe * of_a_pair,
    }


def _change(row: Row, first: Row) -> Row | None:
    """What a row's differences have beyond those of the first condition, seed by seed."""
    shared = [seed for seed in row["differences"] if seed in first["differences"]]
    if row is first or not shared:
        return None
    return interval(row["differences"][seed] - first["differences"][seed] for seed in shared)._asdict()


def _median(runs: pd.DataFrame) -> float | None:
    """The median of tokens; a run that never got there counts as the latest."""
    if "tokens_to" not in runs:
        return None
    middle = float(np.median(runs.tokens_to.fillna(math.inf)))
    return middle if math.isfinite(middle) else math.nan
