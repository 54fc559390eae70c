"""Accuracy on the second tokens of names by the share of training names that are fresh, the pressure towards induction.

One colour for each n: dots are seeds, bars the 95 % interval of their mean, lines join the means. Grey is what copying
just any character's second token would have.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
)
from lab.report.style import colour_of
from lab.report.tables import summarise, tidy, unsliced

SWEEP = "sweeps/pilot_fresh.yaml"
MEASURE = "second_token_accuracy"
FRESH = "task.names.fresh"


def draw(sweep: Sweep, finished: list[tuple[Cell, Result]]) -> Figure:
    """The figure of a sweep over shares of fresh names and, as a rule, n."""
    scores = unsliced(tidy(finished), sweep.cells[0].experiment.task.build())
    scores = scores.query("names == 'fresh' and split == 'test' and checkpoint == 'final' and seen == 'all'")
    further = further_axes(sweep, FRESH, "arm")
    one_run_each(scores, [*further, "n", FRESH, "seed"])
    parts = panels(scores, further)
    figure, places = grid(len(parts), len(parts), 6.4, 4.2)
    for axes, (words, part) in zip(places, parts, strict=True):
        panel(axes, part)
        axes.set_title(", ".join(words), loc="left", fontsize="medium")
    places[0].set_ylabel("accuracy (%)")
    heading(
        figure,
        "Second tokens of names at later mentions, fresh test names",
        f"dots: seeds ({scores.seed.nunique()}); bars: 95 % interval of the mean, within 0 and 100 %",
    )
    return figure


def panel(axes: Axes, scores: pd.DataFrame) -> None:
    """Scores by share of fresh names, side by side for each n."""
    shares = sorted(scores[FRESH].unique())
    place = {share: i for i, share in enumerate(shares)}
    means = summarise(scores, ["n"], FRESH, MEASURE)
    height = 100 * scores.class_copying.mean()
    axes.axhline(height, color=GREY, linewidth=1, linestyle=":", zorder=0)
    labels: list[tuple[float, str, Any]] = [(height, "class copying", GREY)]
    for n, shift in side_by_side(means.n, 0.5).items():
        seeds, mean, colour = scores[scores.n == n], means[means.n == n], colour_of(n)
        x = mean[FRESH].map(place) + shift
        axes.scatter(
            seeds[FRESH].map(place) + shift - 0.06, 100 * seeds[MEASURE],
            s=16, color=colour, alpha=0.5, linewidths=0, clip_on=False,
        )  # fmt: skip
        means_with_intervals(axes, x + 0.06, mean, color=colour)
        labels.append((100 * mean["mean"].iloc[-1], f"n = {n}", colour))
    axes.set_xticks(range(len(shares)), [f"{share:g}" for share in shares])
    axes.set_xlim(-0.5, len(shares) - 0.5)
    axes.set_xlabel("share of fresh names in training")
    axes.set_ylim(0, 104)
    label_at_right(axes, labels, gap=5)
