"""Accuracy on the second tokens of names while training: fresh validation names, by tokens trained on.

One colour for each n: thin lines are seeds, thick ones their means. One panel for each size of model (columns) and each
value of any further axis of the sweep (rows).
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Sweep
from lab.report.drawing import GREY, further_axes, grid, heading, label_at_right, one_run_each, panels, size_name
from lab.report.style import colour_of
from lab.report.tables import curves, tidy, unsliced

SWEEP = "sweeps/induction.yaml"
MEASURE = "validation/second_token_accuracy"


def draw(sweep: Sweep, finished: list[tuple[Cell, Result]]) -> Figure:
    """The figure of a sweep over n."""
    names = {cell.experiment.identity: size_name(cell, result) for cell, result in finished}
    table = curves(finished).sort_values("non_embedding_parameters", kind="stable")
    table["size"] = table.identity.map(names)
    scores = unsliced(tidy(finished), sweep.cells[0].experiment.task.build())
    scores = scores.query("names == 'fresh' and split == 'validation' and checkpoint == 'final' and seen == 'all'")
    further = further_axes(sweep, "model", "train.lr")
    one_run_each(table, [*further, "size", "n", "seed", "step"])
    parts = [
        ([f"{size} parameters", *words], part)
        for words, row in panels(table, further)
        for size, part in row.groupby("size", sort=False)
    ]
    figure, places = grid(len(parts), table["size"].nunique(), 4.2, 3.6)
    for axes, (words, part) in zip(places, parts, strict=True):
        panel(axes, part, scores[scores.identity.isin(part.identity)].class_copying.mean())
        axes.set_title(", ".join(words), loc="left", fontsize="medium")
        axes.set_xlabel("training tokens (millions)")
    for axes in places[:: table["size"].nunique()]:
        axes.set_ylabel("accuracy (%)")
    heading(
        figure,
        "Second tokens of names at later mentions, fresh validation names",
        f"thin lines: seeds ({table.seed.nunique()}); thick lines: their means",
    )
    return figure


def panel(axes: Axes, curve: pd.DataFrame, copying: float) -> None:
    """Learning curves of one size, and the share right that copying any character's second token would have."""
    axes.axhline(100 * copying, color=GREY, linewidth=1, linestyle=":", zorder=0)
    labels: list[tuple[float, str, Any]] = [(100 * copying, "class copying", GREY)]
    for n in sorted(curve.n.unique()):
        runs, colour = curve[curve.n == n], colour_of(n)
        for _, run in runs.groupby("seed"):
            axes.plot(run.tokens / 1e6, 100 * run[MEASURE], color=colour, linewidth=0.8, alpha=0.45)
        mean = runs.groupby("step")[["tokens", MEASURE]].mean()
        axes.plot(mean.tokens / 1e6, 100 * mean[MEASURE], color=colour, linewidth=2.4)
        labels.append((100 * mean[MEASURE].iloc[-1], f"n = {n}", colour))
    axes.set_xlim(0, curve.tokens.max() / 1e6)
    axes.set_ylim(0, 104)
    label_at_right(axes, labels, gap=7)
