"""Accuracy on the second tokens of names by size of model, in the form of Fig. 7 of arXiv 2404.19737.

One colour for each n: lines are means over seeds, bars the 95 % interval of the mean, dots the seeds. Grey lines are
what needs no learning, or bounds it. One panel for each value of any further axis of the sweep.
"""

import math
from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Sweep
from lab.report.drawing import (
    GREY,
    further_axes,
    grid,
    heading,
    label_at_right,
    means_with_intervals,
    one_run_each,
    panels,
    side_by_side,
    sizes,
)
from lab.report.style import colour_of
from lab.report.tables import summarise, tidy, unsliced

SWEEP = "sweeps/induction.yaml"
MEASURE = "second_token_accuracy"
LEVELS = ("oracle", "class_copying", "chance")


def draw(sweep: Sweep, finished: list[tuple[Cell, Result]]) -> Figure:
    """The figure of a sweep over n and, as a rule, the model's size."""
    scores = unsliced(tidy(finished), sweep.cells[0].experiment.task.build())
    scores = scores.query("names == 'fresh' and split == 'test' and checkpoint == 'final' and seen == 'all'")
    further = further_axes(sweep, "model", "train.lr")
    one_run_each(scores, [*further, "n", "non_embedding_parameters", "seed"])
    parts, ticks = panels(scores, further), sizes(finished)
    figure, places = grid(len(parts), len(parts), 3.2 + 0.7 * len(ticks), 4.6)
    for axes, (words, part) in zip(places, parts, strict=True):
        panel(axes, part, ticks)
        axes.set_title(", ".join(words), loc="left", fontsize="medium")
    places[0].set_ylabel("accuracy (%)")
    heading(
        figure,
        "Second tokens of names at later mentions, fresh test names",
        f"dots: seeds ({scores.seed.nunique()}); bars: 95 % interval of the mean",
    )
    return figure


def panel(axes: Axes, scores: pd.DataFrame, ticks: dict[str, int]) -> None:
    """Scores by non-embedding parameters; `ticks` gives the sizes their names."""
    places = [math.log10(number) for number in ticks.values()]
    space = min((right - left for left, right in pairwise(places)), default=0.4)  # in powers of ten
    means = summarise(scores, ["n"], "non_embedding_parameters", MEASURE)
    labels: list[tuple[float, str, Any]] = []
    for level in LEVELS:
        height = 100 * scores[level].mean()
        axes.axhline(height, color=GREY, linewidth=1, linestyle=":", zorder=0)
        labels.append((height, level.replace("_", " "), GREY))
    for n, shift in side_by_side(means.n, 0.6 * space).items():
        seeds, mean, colour = scores[scores.n == n], means[means.n == n], colour_of(n)
        beside = 0.12 * space / means.n.nunique()  # dots at the left of their bar
        x = seeds.non_embedding_parameters * 10 ** (shift - beside)
        axes.scatter(x, 100 * seeds[MEASURE], s=16, color=colour, alpha=0.5, linewidths=0, clip_on=False)
        means_with_intervals(axes, mean.non_embedding_parameters * 10 ** (shift + beside), mean, color=colour)
        labels.append((100 * mean["mean"].iloc[-1], f"n = {n}", colour))
    axes.set_xscale("log")
    axes.set_xlim(10 ** (places[0] - space / 2), 10 ** (places[-1] + space / 2))
    axes.xaxis.set_major_locator(FixedLocator(list(ticks.values())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels(ticks)
    axes.set_xlabel("non-embedding parameters")
    axes.set_ylim(0, 104)
    label_at_right(axes, labels, gap=5)
