"""Scores on validation by learning rate, one colour for each n: a study of the learning rate.

Dots are trials, hollow ones pruned (at what they had reached); a ring is the best of its n, with the 95 % interval over
validation examples. One panel for each value of any further arm of the study.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.experiments.study import Study
from lab.report.drawing import GREY, grid, heading, panels
from lab.report.studies import table
from lab.report.style import colour_of
from lab.tasks.base import ScoreRow

STUDY = "sweeps/study_lr.yaml"


def draw(study: Study, rows: list[ScoreRow]) -> Figure:
    """The figure of a study that searches `train.lr`, and has n among its arms as a rule."""
    trials = table(study, rows)
    further = [field for field in rows[0]["arm"] if field != "objective.n"]
    parts = panels(trials, further)
    figure, places = grid(len(parts), len(parts), 5.4, 4.2)
    dimension = study.space["train.lr"]
    for axes, (words, part) in zip(places, parts, strict=True):
        panel(axes, part)
        axes.set_xscale("log" if dimension.log else "linear")
        axes.set_xlim(*dimension.labels)
        axes.set_title(", ".join(words), loc="left", fontsize="medium")
    task = study.experiments(study.arms[0], study.corners()[0])[0].task.build()
    places[0].set_ylabel(f"{task.metric.replace('_', ' ')}, validation (%)")
    places[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", title="the best")
    heading(
        figure,
        "The best learning rate for each number of tokens predicted at once",
        "dots: trials (hollow: pruned, where they stood); bars: the best of each, 95 % interval over examples",
    )
    return figure


def panel(axes: Axes, trials: pd.DataFrame) -> None:
    """Trials by learning rate."""
    for n in sorted(trials.n.unique()):
        own, colour = trials[trials.n == n], colour_of(n)
        best = own[own.best]
        axes.scatter(own["train.lr"], 100 * own.score, s=26, color=colour, alpha=0.7, linewidths=0)
        axes.scatter(own["train.lr"], 100 * own.reached, s=22, facecolors="none", edgecolors=[colour], alpha=0.7)
        axes.errorbar(
            best["train.lr"], 100 * best.score, yerr=[100 * (best.score - best.low), 100 * (best.high - best.score)],
            marker="o", markersize=9, markerfacecolor="none", elinewidth=1, capsize=2.5, color=colour, linewidth=0,
            label=f"n = {n}:  " + ", ".join(f"{lr:.2g}" for lr in best["train.lr"]),
        )  # fmt: skip
    axes.set_ylim(0, 104)
    axes.set_xlabel("learning rate (peak)")
    axes.grid(axis="y", color=GREY, alpha=0.15, linewidth=0.8)
