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
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

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
from lab.tasks.base import Task


class Verdict(StrEnum):
    """The outcome of a comparison or of a trend."""

    SCREEN = "screen"
    REPRODUCED = "reproduced"
    REVERSED = "reversed"
    ABOVE = "above"
    BELOW = "below"
    RISING = "rising"
    FALLING = "falling"
    NO_DIFFERENCE = "no difference"
    INCONCLUSIVE = "inconclusive"


CLAIM = (Verdict.REPRODUCED, Verdict.REVERSED)
"""Outcomes of a comparison of further heads with none: above 0, below 0."""
CONTROL = (Verdict.ABOVE, Verdict.BELOW)
"""Outcomes of any other comparison."""
TREND = (Verdict.RISING, Verdict.FALLING)
"""Outcomes of the endpoint's number along an axis."""


T = TypeVar("T")


class Both(NamedTuple, Generic[T]):
    """A quantity of the arm, and the same quantity of the arm that it is compared with."""

    arm: T
    other: T


@dataclass(frozen=True)
class Plan:
    """The paired seeds that find a difference as large as the margin in four cases of five, at least six."""

    seeds: int | None = None
    """By the measured deviation; None for shares of seeds, whose deviation depends on the difference."""
    seeds_safe: int | None = None
    """By the upper 80 % limit of the deviation."""
    minutes_safe: float | None = None
    """Minutes of training for `seeds_safe` seeds of both arms, each as fast as the fastest run of its arm."""


@dataclass(frozen=True)
class Comparison:
    """An arm compared with another, on the seeds that both have. Scores are shares of 1."""

    arm: dict[str, Any]
    """The arm's values on the sweep's axes, except the seed."""
    n: int
    """The arm's number of heads."""
    less: dict[str, Any]
    """The other arm's values on the same axes."""
    claim: bool
    """True if heads beyond the next token's are compared with none; false for any other comparison."""
    difference: Interval
    """The mean of `differences` and its 95 % interval."""
    differences: dict[int, float]
    """The paired differences of the endpoint's number, by seed."""
    p: float
    """The exact test's p; nan for a single pair."""
    score: Both[float]
    """The mean score of each arm."""
    past: Both[int]
    """The seeds of each arm past the level: the stated one, or else the task's first."""
    tokens_to: Both[float | None]
    """The median training tokens after which validation stayed past the level.

    nan unless more than half of the seeds reached it; None if the learning curves lack it.
    """
    tokens_first: float | None
    """Training tokens until the first evaluation; None if the learning curves lack the level."""
    fisher: float | None
    """Fisher's p of the seeds solved, without the pairing; None for other measures."""
    log_rank: float | None
    """The log-rank test's p of the tokens to a level, without the pairing; None for other measures."""
    pairing_gain: float
    """The factor by which unpaired arms need more seeds."""
    deviation: float
    """The standard deviation of `differences`; nan for a single pair."""
    plan: Plan
    holm: float | None = None
    """`p` after Holm's correction over the sweep; None in a screen."""
    verdict: Verdict = Verdict.SCREEN
    change: Interval | None = None
    """The differences less those under the sweep's first condition; None for the first condition itself."""

    @property
    def seeds(self) -> int:
        """The number of pairs."""
        return len(self.differences)

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as one flat mapping of JSON types."""
        return {
            "arm": self.arm,
            "n": self.n,
            "less": self.less,
            "claim": self.claim,
            **self.difference._asdict(),
            "seeds": self.seeds,
            "differences": self.differences,
            "p": self.p,
            "holm": self.holm,
            "verdict": self.verdict.value,
            "score": self.score.arm,
            "other_score": self.score.other,
            "past": self.past.arm,
            "other_past": self.past.other,
            "tokens_to": self.tokens_to.arm,
            "other_tokens_to": self.tokens_to.other,
            "tokens_first": self.tokens_first,
            "fisher": self.fisher,
            "log_rank": self.log_rank,
            "pairing_gain": self.pairing_gain,
            "deviation": self.deviation,
            "seeds_for_margin": self.plan.seeds,
            "seeds_for_margin_safe": self.plan.seeds_safe,
            "minutes_for_margin_safe": self.plan.minutes_safe,
            "change": self.change._asdict() if self.change else None,
        }


@dataclass(frozen=True)
class Trend:
    """A rise or fall of the endpoint's number along an axis, for one combination of the other axes' values."""

    arm: dict[str, Any]
    """The values on the other axes."""
    axis: str
    values: list[Any]
    """The axis' values, in the sweep's order."""
    means: list[float]
    """The mean number at each value, over the seeds that have all values."""
    difference: Interval
    """The mean rank correlation over seeds and its 95 % interval."""
    seeds: int
    p: float
    """Page's test's p."""
    holm: float | None = None
    """`p` after Holm's correction over the sweep; None in a screen."""
    verdict: Verdict = Verdict.SCREEN
    """Rising or falling along the axis, not at each step."""

    def to_json(self) -> dict[str, Any]:
        """Return the trend as one flat mapping of JSON types."""
        return {
            "arm": self.arm,
            "axis": self.axis,
            "values": self.values,
            "means": self.means,
            **self.difference._asdict(),
            "seeds": self.seeds,
            "p": self.p,
            "holm": self.holm,
            "verdict": self.verdict.value,
        }


def verdict(
    difference: Interval, p: float, margin: float | None, seeds: int, words: tuple[Verdict, Verdict] = CLAIM
) -> Verdict:
    """Return the outcome of a paired difference, or of a trend.

    Args:
        difference: its mean and 95 % interval.
        p: of the exact test, corrected for the other claims of its family.
        margin: the largest difference that counts as none; None if every difference counts.
        seeds: the number of pairs.
        words: the outcomes above 0 and below 0.

    Returns:
        "screen" for fewer than six seeds; one of `words` if the interval lies on one side of 0 and p is at most 0.05;
        "no difference" if the interval lies within ± margin; else "inconclusive".
    """
    if seeds < fewest_pairs():
        return Verdict.SCREEN
    if p <= ALPHA and difference.low > 0:
        return words[0]
    if p <= ALPHA and difference.high < 0:
        return words[1]
    alike = margin is not None and max(-difference.low, difference.high) <= margin
    return Verdict.NO_DIFFERENCE if alike else Verdict.INCONCLUSIVE


def judge(sweep: Sweep, finished: Iterable[tuple[Cell, Result]]) -> list[Comparison]:
    """Return a comparison for each pair of arms that share seeds.

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
        "verdicts": [row.to_json() for row in rows],
        "trends": [trend.to_json() for trend in trends],
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


def _judged(sweep: Sweep, scores: pd.DataFrame) -> tuple[list[Comparison], list[Trend]]:
    """Return the comparisons and the trends, with their verdicts, from the table of `scored`."""
    primary = sweep.primary
    assert primary is not None  # `scored` refuses what states none
    axes = [axis for axis in sweep.axes if axis != "seed"]
    task = sweep.cells[0].experiment.task.build()
    rows = [
        _compared(arm.set_index("seed").loc[shared], other.set_index("seed").loc[shared], axes, task, primary)
        for arm, other in pairs(scores, axes)
        if (shared := sorted({*arm.seed} & {*other.seed}))
    ]
    # The change of each difference against that under the first condition.
    first: dict[tuple[Any, ...], Comparison] = {}
    for place, row in enumerate(rows):
        moved = tuple((axis, value) for axis, value in row.arm.items() if value != row.less[axis])
        rows[place] = replace(row, change=_change(row, first.setdefault(moved, row)))
    trends = _trends(primary, scores, axes)

    # The family of claims: every comparison and trend of enough pairs, unless the sweep is a screen.
    judged: list[Comparison | Trend] = [] if primary.screen else [*rows, *trends]
    claims = [row for row in judged if row.seeds >= fewest_pairs()]
    corrected = {id(row): p for row, p in zip(claims, holm([row.p for row in claims]), strict=True)}
    for place, row in enumerate(rows):
        if (p := corrected.get(id(row))) is not None:
            words = CLAIM if row.claim else CONTROL
            rows[place] = replace(row, holm=p, verdict=verdict(row.difference, p, primary.margin, row.seeds, words))
    for place, trend in enumerate(trends):
        if (p := corrected.get(id(trend))) is not None:
            trends[place] = replace(trend, holm=p, verdict=verdict(trend.difference, p, None, trend.seeds, TREND))
    return rows, trends


def _machine(hardware: Hardware) -> str:
    where = "" if hardware["device"] == "cpu" else f", {hardware['device']}"
    return f"{hardware['cpu']}, {hardware['cores']} cores, threads a run: {hardware['threads']}{where}"


def _compared(arm: pd.DataFrame, other: pd.DataFrame, axes: list[str], task: Task, primary: Primary) -> Comparison:
    """Return the comparison of two arms from their scores on the same seeds, not yet judged."""
    a, b = (each.value.to_numpy(float) for each in (arm, other))
    own, than = ({axis: each[axis].tolist()[0] for axis in axes} for each in (arm, other))
    solved = primary.measure == "solved"
    deviation = float(np.std(a - b, ddof=1)) if len(a) > 1 else math.nan

    # The log-rank test, of times alone.
    logs: float | None = None
    if primary.measure == "tokens_to_level":
        own_times, other_times = (each.tokens_to.to_numpy(float) for each in (arm, other))
        logs = log_rank(own_times, other_times, float(arm.budget.min()))

    return Comparison(
        arm=own,
        n=arm.n.tolist()[0],
        less=than,
        claim=not _is_control(own, arm, primary) and _is_control(than, other, primary),
        difference=difference_of_shares(a > 0, b > 0) if solved else interval(a - b),
        differences=dict(zip(arm.index.tolist(), (a - b).tolist(), strict=True)),
        p=sign_flip(a - b),
        score=Both(float(arm[task.metric].mean()), float(other[task.metric].mean())),
        past=Both(int(arm.past.sum()), int(other.past.sum())),
        tokens_to=Both(_median(arm), _median(other)),
        tokens_first=max(float(each["first"].max()) for each in (arm, other)) if "first" in arm else None,
        fisher=fisher(a > 0, b > 0) if solved else None,
        log_rank=logs,
        pairing_gain=pairing_gain(a, b),
        deviation=deviation,
        plan=_planned(deviation, len(a), primary, float(arm.seconds.min() + other.seconds.min()) / 60),
    )


def _planned(deviation: float, seeds: int, primary: Primary, minutes: float) -> Plan:
    """Return the seeds needed by a deviation measured over `seeds`; training one pair takes `minutes`."""
    if primary.measure == "solved":  # the deviation of a share depends on the difference to be found
        return Plan()
    least = fewest_pairs()
    needed = seeds_needed(primary.margin, deviation)
    safe = seeds_needed(primary.margin, at_most(deviation, seeds))
    return Plan(
        seeds=None if needed is None else max(needed, least),
        seeds_safe=None if safe is None else max(safe, least),
        minutes_safe=None if safe is None else max(safe, least) * minutes,
    )


def _is_control(values: dict[str, Any], runs: pd.DataFrame, primary: Primary) -> bool:
    """True of an arm that the sweep names as a control, or whose trunk heads beyond the next token's taught nothing."""
    return not runs.taught.all() or primary.is_control(values)


def _trends(primary: Primary, scores: pd.DataFrame, axes: list[str]) -> list[Trend]:
    """Return the trends along the axis that `primary.trend` names, not yet judged; none if it names no axis."""
    if primary.trend is None:
        return []
    found: list[Trend] = []
    within = [axis for axis in axes if axis != primary.trend]
    for key, part in scores.groupby(within, sort=False) if within else [((), scores)]:
        values = part[primary.trend].unique().tolist()
        table = part.set_index(["seed", primary.trend]).value.unstack()[values].dropna()  # noqa: PD010
        if len(table):
            spread, p = page_trend(table.to_numpy(float))
            found.append(
                Trend(
                    arm=dict(zip(within, key, strict=True)),
                    axis=primary.trend,
                    values=values,
                    means=table.mean().tolist(),
                    difference=spread,
                    seeds=len(table),
                    p=p,
                )
            )
    return found


def _change(row: Comparison, first: Comparison) -> Interval | None:
    """Return the differences less those of the first condition, seed by seed."""
    shared = [seed for seed in row.differences if seed in first.differences]
    if row is first or not shared:
        return None
    return interval(row.differences[seed] - first.differences[seed] for seed in shared)


def _median(runs: pd.DataFrame) -> float | None:
    """The median of tokens; a run that never got there counts as the latest."""
    if "tokens_to" not in runs:
        return None
    middle = float(np.median(runs.tokens_to.fillna(math.inf)))
    return middle if math.isfinite(middle) else math.nan
