"""Exact match by number of operations, one colour for each n, in the form of Fig. 8 of arXiv 2404.19737."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lab.experiments.sweep import Sweep
from lab.report.style import colour_of
from lab.report.tables import summarise

SWEEP = "sweeps/polynomials_n.yaml"


def draw(sweep: Sweep, table: pd.DataFrame) -> Figure:
    """Dots are seeds, lines their mean, bars the 95 % interval of the mean."""
    task = sweep.cells[0].experiment.task
    whole = table[(table.checkpoint == "final") & (table.split == "test") & (table.operator == "all")]
    whole = whole[whole.seen == "all"]
    means = summarise(whole, ["n"], "operations", "exact_match")
    numbers = sorted(means["n"].unique())
    figure, axes = plt.subplots(figsize=(8, 4.6))
    width = 0.6 / len(numbers)
    for place, n in enumerate(numbers):
        shift = (place - (len(numbers) - 1) / 2) * width
        seeds, mean = whole[whole.n == n], means[means.n == n]
        colour = colour_of(n)
        axes.scatter(seeds.operations + shift, 100 * seeds.exact_match, s=16, color=colour, alpha=0.5, linewidths=0)
        half = 100 * (mean.high - mean["mean"])
        axes.errorbar(
            mean.operations + shift, 100 * mean["mean"], yerr=half, color=colour, marker="_", markersize=11,
            linewidth=1.5, elinewidth=1, capsize=2.5, label=f"n = {n}",
        )  # fmt: skip
    constant = whole.groupby("operations").constant_answer.mean()
    axes.plot(constant.index, 100 * constant, color="0.35", linestyle=":", label="constant answer")

    last = task.train_operations[1]
    highest = int(whole.operations.max())
    if last < highest:
        axes.axvspan(last + 0.5, highest + 0.5, color="0.94", zorder=0)
        for x, words in (
            ((whole.operations.min() + last) / 2, "trained on"),
            ((last + 1 + highest) / 2, "more operations"),
        ):
            axes.text(x, 1.01, words, transform=axes.get_xaxis_transform(), ha="center", va="bottom", color="0.35")
    axes.set_xlim(whole.operations.min() - 0.5, highest + 0.5)
    axes.set_ylim(0, 104)
    axes.set_xticks(range(int(whole.operations.min()), highest + 1))
    axes.set_xlabel("operations in the expression")
    axes.set_ylabel("exact match (%)")
    seeds_each = whole.groupby("n").seed.nunique().min()
    axes.set_title(
        rf"$F_{{{task.prime}}}[X]/(X^{{{task.degree}}})$ by tokens predicted at once; {seeds_each} seeds each",
        pad=24, loc="left", fontsize="medium",
    )  # fmt: skip
    axes.legend(frameon=False, loc="upper right")
    return figure
