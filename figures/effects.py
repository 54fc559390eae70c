"""Differences between arms on each sweep's primary endpoint, and what they are judged to be.

A line for each arm, less what it is compared with, under what its sweep is called; a panel for each task's measure.
Dots are seeds, in pairs, and bars the mean with its 95 % interval (cut off at the frame); the band is the margin within
which arms count as alike. Colours are n.
"""

from itertools import groupby
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Sweep
from lab.report.drawing import GREY, heading
from lab.report.page import named
from lab.report.style import colour_of
from lab.report.verdicts import Comparison, judge

SWEEPS = {
    "sweeps/pilot_rates_seeds.yaml": "Ten seeds, less next token at the same learning rate",
    "sweeps/pilot_polynomials_seeds.yaml": "Ten seeds, a learning rate for each arm",
    "sweeps/pilot_shallow_seeds.yaml": "Ten seeds, equal paths",
    "sweeps/pilot_whole_seeds.yaml": "Ten seeds, learning rate 2.0e-3",
    "sweeps/pilot_path_seeds.yaml": "Read after: learning rate 2.0e-3",
    "sweeps/pilot_best_seeds.yaml": "Read after: next token at 1.3e-3",
    "sweeps/pilot_polynomials.yaml": "Screen of arms",
    "sweeps/pilot_answer.yaml": "Screen: loss on the answer alone",
    "sweeps/pilot_unclipped.yaml": "Screen: no clipping",
    "sweeps/pilot_fresh_seeds.yaml": "Ten seeds, three names of ten fresh",
    "sweeps/pilot_fresh_again.yaml": "Ten other seeds",
    "sweeps/pilot_depth_seeds.yaml": "The first ten seeds",
}
GAP = 1.6
"""Between the last line of a sweep and the name of the next, in lines."""

Group = tuple[str, float, list[Comparison]]
"""A sweep's title, its margin in points, and its verdicts."""


def draw(several: list[tuple[str, Sweep, list[tuple[Cell, Result]]]]) -> Figure:
    """The figure of sweeps that state a primary endpoint."""
    parts = []
    for measure, sweeps in groupby(several, lambda each: compared(each[1])):
        judged = [(words, sweep.primary, judge(sweep, finished)) for words, sweep, finished in sweeps]
        parts.append((measure, [(words, 100 * primary.margin, rows) for words, primary, rows in judged if primary]))
    lines = [sum(len(rows) + GAP for _, _, rows in groups) for _, groups in parts]
    figure, places = plt.subplots(
        len(parts), figsize=(9.5, 0.4 + 0.6 * len(parts) + 0.27 * sum(lines)), height_ratios=lines, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, (measure, groups) in zip(places[:, 0], parts, strict=True):
        panel(axes, groups)
        axes.set_xlabel(f"difference in {measure} (points)")
    heading(
        figure,
        "Differences on the primary endpoint, paired by seed",
        "dots: seeds; bars: mean and its 95 % interval; band: margin of no difference; right: verdict (seeds)",
    )
    return figure


def compared(sweep: Sweep) -> str:
    """The number of each run that a sweep's arms are compared by, in words."""
    measure, primary = sweep.cells[0].experiment.task.build().metric.replace("_", " "), sweep.primary
    if primary is None or primary.level is None or primary.measure == "score":
        return measure
    level = f"{100 * primary.level:g} % {measure}"
    return f"seeds at {level}" if primary.measure == "solved" else f"training tokens left at {level}"


def panel(axes: Axes, groups: list[Group]) -> None:
    """The sweeps of one measure."""
    points = [
        100 * each for _, _, rows in groups for row in rows for each in (*row.differences.values(), row.difference.mean)
    ]
    widest = 1.1 * max(*map(abs, points), *(1.5 * margin for _, margin, _ in groups))
    axes.set_xlim(-widest, widest)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    at_left, place, ticks = axes.get_yaxis_transform(), 0.0, {}
    for words, margin, rows in groups:
        than = {named(row.less) for row in rows}
        less = f", less {than.pop()}" if len(than) == 1 else ""
        style: dict[str, Any] = {"ha": "right", "va": "center", "fontweight": "bold", "fontsize": "small"}
        axes.text(-0.01, place, f"{words}{less}", transform=at_left, **style)
        band = [place + 0.5, place + len(rows) + 0.5]
        axes.fill_betweenx(band, -margin, margin, color="0.93", linewidth=0, zorder=-1)
        for row in rows:
            place += 1
            ticks[place] = named(row.arm)
            line(axes, place, row)
            told = f"{row.verdict} ({row.seeds})"
            axes.text(1.01, place, told, transform=at_left, color=GREY, fontsize="small", va="center")
        place += GAP
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 1, -0.7)
    axes.spines["left"].set_visible(False)


def line(axes: Axes, place: float, row: Comparison) -> None:
    """The seeds of one arm, their mean and its interval."""
    points, colour = [100 * each for each in row.differences.values()], colour_of(row.n)
    axes.scatter(points, [place] * len(points), s=14, color=colour, alpha=0.5, linewidths=0)
    mean = 100 * row.difference.mean
    axes.errorbar(
        mean, place, xerr=[[mean - 100 * row.difference.low], [100 * row.difference.high - mean]],
        marker="|", markersize=10, linewidth=1.5, elinewidth=1, capsize=2.5, color=colour,
    )  # fmt: skip
