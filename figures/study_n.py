"""The best n, heads and head weights on validation, for each task and size: a study of objectives.

A line for each way of predicting that was tried, in the colour of its n. Dots are trials, hollow ones pruned (at what
they had reached), their form the head weights; the bar is the best trial's 95 % interval over validation examples, and
above the panel stands what the best trial was. One panel for each arm of the study.
"""

import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lab.experiments.study import Study, words
from lab.report.drawing import GREY, grid, heading
from lab.report.studies import table
from lab.report.style import colour_of
from lab.tasks.base import ScoreRow

STUDY = "sweeps/study_n.yaml"
MARKERS = ("o", "s", "^", "D", "v", "P")


def draw(study: Study, rows: list[ScoreRow]) -> Figure:
    """The figure of a study that searches objectives, n, head weights or some of these."""
    trials = table(study, rows)
    trials["way"] = [_way(trial, n) for trial, n in zip(trials.get("objective", trials.n), trials.n, strict=True)]
    ways = list(trials.sort_values(["n", "way"]).way.unique())
    trials["weights"] = trials.get("objective.weights", pd.Series(index=trials.index)).astype(object).fillna("equal")
    weights = list(trials.weights.unique())
    arms = list(trials.arm.unique())
    figure, places = grid(len(arms), min(2, len(arms)), 5.0, 1.8 + 0.34 * len(ways))
    for axes, arm in zip(places, arms, strict=True):
        own = trials[trials.arm == arm]
        panel(axes, own, ways, weights)
        axes.set_title(_title(study, own), loc="left", fontsize="small")
        task = study.experiments(next(each for each in study.arms if each.name == arm), study.corners()[0])[0].task
        axes.set_xlabel(f"{task.build().metric.replace('_', ' ')}, validation (%)")
    places[0].set_yticks(range(len(ways)), ways)
    places[0].invert_yaxis()
    marks = [
        Line2D([], [], marker=MARKERS[place % len(MARKERS)], linestyle="", color=GREY, label=label)
        for place, label in enumerate(weights)
    ]
    if len(marks) > 1:
        figure.legend(handles=marks, frameon=False, loc="outside right upper", fontsize="small", title="head weights")
    heading(
        figure,
        "The best way of predicting, by task and size",
        "dots: trials (hollow: pruned, where they stood); bar: the best, 95 % interval over examples",
    )
    return figure


def panel(axes: Axes, trials: pd.DataFrame, ways: list[str], weights: list[str]) -> None:
    """The trials of an arm."""
    for (n, form), own in trials.groupby(["n", "weights"], sort=False):
        marker, colour = MARKERS[weights.index(str(form)) % len(MARKERS)], colour_of(int(str(n)))
        heights = own.way.map(ways.index)
        axes.scatter(100 * own.score, heights, s=30, marker=marker, color=colour, alpha=0.6, linewidths=0)
        axes.scatter(100 * own.reached, heights, s=28, marker=marker, facecolors="none", edgecolors=[colour], alpha=0.6)
    best = trials[trials.best]
    sides = [100 * (best.score - best.low), 100 * (best.high - best.score)]
    axes.errorbar(
        100 * best.score, best.way.map(ways.index), xerr=sides,
        marker="|", markersize=16, linewidth=0, elinewidth=1.2, capsize=3, color=GREY,
    )  # fmt: skip
    axes.set_xlim(0, 104)
    axes.set_ylim(-0.6, len(ways) - 0.4)


def _way(objective: object, n: int) -> str:
    named = objective if isinstance(objective, str) and n > 1 else "next token" if n == 1 else "heads"
    return f"{named}, n = {n}"


def _title(study: Study, trials: pd.DataFrame) -> str:
    """The arm, and its best trial's values."""
    best = trials[trials.best].to_dict("records")
    tried = {
        field.rsplit(".", 1)[-1]: each[field] for each in best for field in study.space if not pd.isna(each[field])
    }
    return "\n".join([trials.arm.iloc[0], *textwrap.wrap(f"best: {words(tried)}", 52)])
