"""Exact match by number of operations, one colour for each n, in the form of Fig. 8 of arXiv 2404.19737.

Lines are means over seeds, bars the 95 % interval of the mean, dots the seeds; hollow dots leave out the expressions
that training met. One panel for each value of any other axis of the sweep.
"""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.experiments.sweep import Sweep
from lab.report.style import colour_of
from lab.report.tables import summarise

SWEEP = "sweeps/polynomials_n.yaml"
FEW = 100
"""Unseen expressions below which their accuracy is not drawn."""


def draw(sweep: Sweep, table: pd.DataFrame) -> Figure:
    """The figure of a sweep over n."""
    scores = table[(table.checkpoint == "final") & (table.split == "test") & (table.operator == "all")]
    others = [axis for axis in sweep.axes if axis not in ("seed", "objective.n")]
    panels = list(scores.groupby(others)) if others else [((), scores)]
    figure, grid = plt.subplots(
        1, len(panels), figsize=(1.5 + 6.5 * len(panels), 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    task = sweep.cells[0].experiment.task
    for axes, (values, part) in zip(grid[0], panels, strict=True):
        panel(axes, part, task.train_operations[1])
        others_here = [f"{axis} = {value}" for axis, value in zip(others, values, strict=True)]
        ring = rf"$F_{{{task.prime}}}[X]/(X^{{{task.degree}}})$"
        axes.set_title(
            ", ".join([f"Polynomial arithmetic in {ring}", *others_here]), loc="left", fontsize="medium", pad=24
        )
    grid[0][0].set_ylabel("exact match (%)")
    named = zip(*grid[0][-1].get_legend_handles_labels(), strict=True)
    handles, labels = zip(*sorted(named, key=lambda each: not each[1].startswith("n =")), strict=True)
    grid[0][-1].legend(
        handles, labels, frameon=False, loc="upper right", fontsize="small", title="tokens predicted at once"
    )
    return figure


def panel(axes: Axes, scores: pd.DataFrame, last: int) -> None:
    """Scores by number of operations, of which training had at most `last`."""
    whole = scores[scores.seen == "all"]
    unseen = scores[(scores.seen == "unseen") & scores["count"].between(FEW, whole["count"].max() - 1)]
    means = summarise(whole, ["n"], "operations", "exact_match")
    numbers = sorted(means["n"].unique())
    for place, n in enumerate(numbers):
        shift = (place - (len(numbers) - 1) / 2) * 0.36 / len(numbers)  # so that bars stand side by side
        seeds, fresh, mean = whole[whole.n == n], unseen[unseen.n == n], means[means.n == n]
        colour = colour_of(n)
        axes.scatter(seeds.operations + shift, 100 * seeds.exact_match, s=14, color=colour, alpha=0.5, linewidths=0)
        axes.scatter(fresh.operations + shift, 100 * fresh.exact_match, s=16, facecolors="none", edgecolors=[colour])
        low, high = mean.low.clip(lower=0), mean.high.clip(upper=1)  # an accuracy has no others
        axes.errorbar(
            mean.operations + shift, 100 * mean["mean"], yerr=[100 * (mean["mean"] - low), 100 * (high - mean["mean"])],
            color=colour, marker="_", markersize=10, linewidth=1.5, elinewidth=1, capsize=2.5,
            label=f"n = {n}  (seeds: {seeds.seed.nunique()})",
        )  # fmt: skip
    axes.scatter([], [], s=14, color="0.35", alpha=0.6, linewidths=0, label="a seed")
    if len(unseen):
        axes.scatter([], [], s=16, facecolors="none", edgecolors="0.35", label="a seed, unseen expressions")
    constant = whole.groupby("operations").constant_answer.mean()
    axes.plot(constant.index, 100 * constant, color="0.35", linestyle=":", label="best constant answer")

    least, most = int(whole.operations.min()), int(whole.operations.max())
    spans = [((least + min(last, most)) / 2, "as in training")]
    if last < most:
        axes.axvspan(last + 0.5, most + 0.5, color="0.94", zorder=0)
        spans.append(((last + 1 + most) / 2, "more operations than in training"))
    for x, words in spans:
        axes.text(x, 1.01, words, transform=axes.get_xaxis_transform(), ha="center", va="bottom", color="0.35")
    axes.set_xlim(least - 0.5, most + 0.5)
    axes.set_ylim(0, 104)
    axes.set_xticks(range(least, most + 1))
    axes.set_xlabel("operations in the expression")
