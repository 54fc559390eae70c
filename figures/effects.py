"""Differences between arms on each sweep's primary endpoint, and what they are judged to be.

A line for each arm, less what it is compared with, under what its sweep is called. Dots are seeds, in pairs, and bars
the mean with its 95 % interval (cut off at the frame); the band is the margin within which arms count as alike. Colours
are n.
"""

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Sweep
from lab.report.drawing import GREY, heading
from lab.report.style import colour_of
from lab.report.verdicts import judge
from lab.tasks.base import Row

SWEEPS = {"sweeps/objectives.yaml": "Ways of predicting two tokens"}


def draw(several: list[tuple[str, Sweep, list[tuple[Cell, Result]]]]) -> Figure:
    """The figure of sweeps that state a primary endpoint."""
    groups = [(words, sweep, judge(sweep, finished)) for words, sweep, finished in several]
    lines = sum(len(rows) + 1.6 for _, _, rows in groups)
    figure, axes = plt.subplots(figsize=(9.5, 0.9 + 0.27 * lines), layout="constrained")
    widest = max(
        abs(100 * each) for _, _, rows in groups for row in rows for each in (*row["differences"].values(), row["mean"])
    )
    widest = 1.1 * max(widest, 150 * max(sweep.primary.margin for _, sweep, _ in groups if sweep.primary))
    axes.set_xlim(-widest, widest)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    place = 0.0
    ticks = {}
    for words, sweep, rows in groups:
        assert sweep.primary is not None
        than = {name(row["less"]) for row in rows}
        less = f", less {than.pop()}" if len(than) == 1 else ""
        axes.text(
            -0.01,
            place,
            f"{words}{less}",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontweight="bold",
            fontsize="small",
        )
        margin = 100 * sweep.primary.margin
        axes.fill_betweenx(
            [place + 0.5, place + len(rows) + 0.5], -margin, margin, color="0.93", linewidth=0, zorder=-1
        )
        for row in rows:
            place += 1
            ticks[place] = name({axis: row[axis] for axis in row["less"]})
            colour = colour_of(row["n"])
            points = [100 * each for each in row["differences"].values()]
            axes.scatter(points, [place] * len(points), s=14, color=colour, alpha=0.5, linewidths=0)
            mean = 100 * row["mean"]
            axes.errorbar(
                mean, place, xerr=[[mean - 100 * row["low"]], [100 * row["high"] - mean]],
                marker="|", markersize=10, linewidth=1.5, elinewidth=1, capsize=2.5, color=colour,
            )  # fmt: skip
            told = f"{row['verdict']} ({row['seeds']})"
            axes.text(
                1.01, place, told, transform=axes.get_yaxis_transform(), color=GREY, fontsize="small", va="center"
            )
        place += 1.6
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 1, -0.7)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("difference (points)")
    heading(
        figure,
        "Differences on the primary endpoint, paired by seed",
        "dots: seeds; bars: mean and its 95 % interval; band: margin of no difference; right: verdict (seeds)",
    )
    return figure


def name(values: Row) -> str:
    """An arm by its values on the sweep's axes: names as they are, numbers with their axis."""
    return ", ".join(
        value if isinstance(value, str) else f"{axis.split('.')[-1]} = {value}" for axis, value in values.items()
    )
