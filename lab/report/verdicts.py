"""Verdicts: what a sweep's primary endpoint says of each arm, and how many seeds would say more.

Arms are compared seed by seed on the endpoint's number (`lab.report.endpoints.scored`). The claim under test is that
heads beyond the next token's help: where an arm whose trunk they taught is compared with one whose trunk they did not,
a verdict says "reproduced" or "reversed". Any other comparison, as of controls with each other, says "above" or
"below".

A direction is said where two things agree: the 95 % interval of the difference lies beyond 0, and the exact test has a
p of at most 0.05 after Holm's correction. The correction's family is the sweep at one scale, since a sweep asks one
question: all its comparisons, and its trends, of at least six pairs; those of a sweep that is a screen are in none. "No
difference" is said of an interval within the margin, which is a test of equivalence at 2.5 % on either side; it is not
corrected. Fewer than six pairs are a screen: no exact p of theirs can be 0.05.

Seeds are paired by what they share, data and initial weights, so the exact tests are those of pairs, right whether or
not pairing gains anything: signs flipped over seeds for scores and for the share of the budget that was left, which for
the share of seeds solved is McNemar's test. Fisher's test and the log-rank test, which take no account of the pairs,
stand beside them, and decide nothing.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from lab.experiments.result import Hardware
from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Primary, Sweep
from lab.report.endpoints import scored
from lab.report.statistics import (
    ALPHA,
    at_most,
    difference_of_shares,
    fewest_pairs,
    fisher,
    holm,
    log_rank,
    page_trend,
    pairing_gain,
    seeds_needed,
    sign_flip,
)
from lab.report.tables import Interval, interval, pairs
from lab.tasks.base import ScoreRow, Task

CLAIM = ("reproduced", "reversed")
"""Further heads against none."""
CONTROL = ("above", "below")
"""Any other comparison."""
TREND = ("rising", "falling")
"""The endpoint's number along an axis."""


def verdict(difference: Interval, p: float, margin: float | None, seeds: int, words: tuple[str, str] = CLAIM) -> str:
    """The word for a paired difference, or for a trend.

    Args:
        difference: its mean and 95 % interval.
        p: of the exact test, corrected for the other claims of its family.
        margin: within which arms count as alike; None where nothing counts as alike.
        seeds: the pairs behind it.
        words: for a difference above 0 and for one below.

    Returns:
        "screen" of fewer than six seeds; one of `words` if the interval lies on one side of 0 and p is at most 0.05;
        "no difference" if the interval lies within ± margin; else "inconclusive".
    """
    if seeds < fewest_pairs():
        return "screen"
    if p <= ALPHA and difference.low > 0:
        return words[0]
    if p <= ALPHA and difference.high < 0:
        return words[1]
    alike = margin is not None and max(-difference.low, difference.high) <= margin
    return "no difference" if alike else "inconclusive"


def judge(sweep: Sweep, finished: Iterable[tuple[Cell, Result]]) -> list[ScoreRow]:
    """A row for each arm that is compared with another, of those seeds that both have.

    Scores are shares of 1. Columns:
        `arm`, `less`: the arm's values on the sweep's axes but the seed, and the other arm's; `n`, the arm's.
        `claim`: true where heads beyond the next token's are compared with none; else of controls, or of such heads.
        `differences`: of the endpoint's number, by seed; `mean`, `low`, `high` of them, and `seeds`, how many they are.
        `p`: of the exact test; `holm`, after Holm's correction over the sweep (None in a screen); `verdict`.
        `change`: `mean`, `low`, `high` of what the differences have beyond those under the sweep's first condition
            (None where there is but one, or for the first).
        `score`, `other_score`: the mean of either arm.
        `past`, `other_past`: how many of their seeds are past the level, the stated one or else the task's first.
        `tokens_to`, `other_tokens_to`: the median of the tokens after which validation stayed there (nan unless more
            than half of the seeds came to; None where curves do not tell); `tokens_first`, until the first evaluation.
        `fisher`, `log_rank`: p without the pairing, of seeds solved and of tokens to a level (else None).
        `pairing_gain`; `deviation` of the differences.
        `seeds_for_margin`, `seeds_for_margin_safe`: the seeds, at least six, that would find a difference as large as
            the margin in four cases of five, were it the only comparison: by the deviation, and by its upper 80 % limit
            (None of shares of seeds, whose deviation hangs on the difference).
        `minutes_for_margin_safe`: the cost of the latter, training of both arms on what a run of theirs had (a GPU, or
            its threads' cores), by the fastest run of each, which shared that with the fewest others.

    Raises:
        BadInput: the sweep states no primary endpoint, or one that its runs have no scores for.
    """
    return _judged(sweep, scored(sweep, finished))[0]


def document(sweep: Sweep, finished: Iterable[tuple[Cell, Result]]) -> dict[str, Any]:
    """All that is to be said of a sweep's endpoint, in JSON types.

    `sweep` (its file), `scale`, `question`, `endpoint`, `budget`, `measure`, `primary`, the `commits` and
    `hardware` of its runs, `verdicts` (`judge`), `trends` (`_trends`), and `runs`: `arm`, `seed`, `identity` and
    `score` of each, with `tokens_to` (None where curves do not tell).

    Raises:
        BadInput: as `scored` does.
    """
    results, measure = list(finished), sweep.cells[0].experiment.task.build().metric
    scores = scored(sweep, results)
    rows, trends = _judged(sweep, scores)
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
        "verdicts": rows,
        "trends": trends,
        "runs": [
            {
                "arm": {axis: run[axis] for axis in axes},
                "score": run[measure],
                "tokens_to": run.get("tokens_to"),
                "seed": run["seed"],
                "identity": run["identity"],
            }
            for run in scores.to_dict("records")
        ],
    }


def _judged(sweep: Sweep, scores: pd.DataFrame) -> tuple[list[ScoreRow], list[ScoreRow]]:
    """The comparisons of `judge` and the trends of `_trends`, with their verdicts, by the table of `scored`."""
    primary = sweep.primary
    assert primary is not None  # `scored` refuses what states none
    axes = [axis for axis in sweep.axes if axis != "seed"]
    task = sweep.cells[0].experiment.task.build()
    rows = [
        _compared(arm.set_index("seed").loc[shared], other.set_index("seed").loc[shared], axes, task, primary)
        for arm, other in pairs(scores, axes)
        if (shared := sorted({*arm.seed} & {*other.seed}))
    ]
    first: dict[tuple[Any, ...], ScoreRow] = {}
    for row in rows:
        moved = tuple((axis, value) for axis, value in row["arm"].items() if value != row["less"][axis])
        row["change"] = _change(row, first.setdefault(moved, row))
    trends = _trends(primary, scores, axes)

    # The family of claims: whatever in this sweep can be one.
    claims = [row for row in (*rows, *trends) if not primary.screen and row["seeds"] >= fewest_pairs()]
    for row, corrected in zip(claims, holm([row["p"] for row in claims]), strict=True):
        spread, trend = Interval(row["mean"], row["low"], row["high"]), "axis" in row
        words = TREND if trend else CLAIM if row["claim"] else CONTROL
        row["holm"] = corrected
        row["verdict"] = verdict(spread, corrected, None if trend else primary.margin, row["seeds"], words)
    return rows, trends


def _machine(hardware: Hardware) -> str:
    where = "" if hardware["device"] == "cpu" else f", {hardware['device']}"
    return f"{hardware['cpu']}, {hardware['cores']} cores, threads a run: {hardware['threads']}{where}"


def _compared(arm: pd.DataFrame, other: pd.DataFrame, axes: list[str], task: Task, primary: Primary) -> ScoreRow:
    """One row of `judge` from the scores of two arms, by the same seeds; until it is judged, that of a screen."""
    a, b = (each.value.to_numpy(float) for each in (arm, other))
    own, than = ({axis: each[axis].tolist()[0] for axis in axes} for each in (arm, other))
    solved = primary.measure == "solved"
    row: ScoreRow = {
        "arm": own,
        "n": arm.n.tolist()[0],
        "less": than,
        "claim": not _is_control(own, arm, primary) and _is_control(than, other, primary),
        **(difference_of_shares(a > 0, b > 0) if solved else interval(a - b))._asdict(),
        "seeds": len(a),
        "differences": dict(zip(arm.index.tolist(), (a - b).tolist(), strict=True)),
        "p": sign_flip(a - b),
        "holm": None,
        "verdict": "screen",
        "score": float(arm[task.metric].mean()),
        "other_score": float(other[task.metric].mean()),
        "past": int(arm.past.sum()),
        "other_past": int(other.past.sum()),
        "tokens_to": _median(arm),
        "other_tokens_to": _median(other),
        "tokens_first": max(float(each["first"].max()) for each in (arm, other)) if "first" in arm else None,
        "fisher": fisher(a > 0, b > 0) if solved else None,
        "log_rank": None,
        "pairing_gain": pairing_gain(a, b),
        "deviation": float(np.std(a - b, ddof=1)) if len(a) > 1 else math.nan,
    }
    if primary.measure == "tokens_to_level":
        own_times, other_times = (each.tokens_to.to_numpy(float) for each in (arm, other))
        row["log_rank"] = log_rank(own_times, other_times, float(arm.budget.min()))
    return {**row, **_planned(row, primary, float(arm.seconds.min() + other.seconds.min()) / 60)}


def _planned(row: ScoreRow, primary: Primary, minutes: float) -> ScoreRow:
    """The seeds that would find a difference as large as the margin, for a row of `judge`; `minutes` train a pair."""
    limit = at_most(row["deviation"], row["seeds"])
    needed, safe = (seeds_needed(primary.margin, deviation) for deviation in (row["deviation"], limit))
    if primary.measure == "solved":  # the deviation of a share hangs on the difference that is to be found
        needed, safe = None, None
    least = fewest_pairs()
    return {
        "seeds_for_margin": None if needed is None else max(needed, least),
        "seeds_for_margin_safe": None if safe is None else max(safe, least),
        "minutes_for_margin_safe": None if safe is None else max(safe, least) * minutes,
    }


def _is_control(values: ScoreRow, runs: pd.DataFrame, primary: Primary) -> bool:
    """True of an arm that the sweep names as a control, or whose trunk heads beyond the next token's taught nothing."""
    return not runs.taught.all() or primary.is_control(values)


def _trends(primary: Primary, scores: pd.DataFrame, axes: list[str]) -> list[ScoreRow]:
    """A row for each rise or fall of the endpoint's number along the axis that `primary.trend` names, in its order.

    One for each combination of the other axes' values, `arm`. Columns: `axis`, its `values`, the mean number at each
    (`means`) over the `seeds` that have all; `mean`, `low`, `high` of the seeds' rank correlations, and `p`
    (`page_trend`); `holm` and `verdict` as in `judge`: "rising" or "falling" along the axis, not at each step.
    """
    if primary.trend is None:
        return []
    found: list[ScoreRow] = []
    within = [axis for axis in axes if axis != primary.trend]
    for key, part in scores.groupby(within, sort=False) if within else [((), scores)]:
        values = part[primary.trend].unique().tolist()
        table = part.set_index(["seed", primary.trend]).value.unstack()[values].dropna()  # noqa: PD010
        if len(table):
            spread, p = page_trend(table.to_numpy(float))
            found.append(
                {
                    "arm": dict(zip(within, key, strict=True)),
                    "axis": primary.trend,
                    "values": values,
                    "means": table.mean().tolist(),
                    **spread._asdict(),
                    "seeds": len(table),
                    "p": p,
                    "holm": None,
                    "verdict": "screen",
                }
            )
    return found


def _change(row: ScoreRow, first: ScoreRow) -> ScoreRow | None:
    """Return a row's differences minus those of the first condition, seed by seed."""
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
