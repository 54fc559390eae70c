"""Weight of choices that decide k tokens while training, relative to choices that decide one, by n.

Solid lines are measured, as returned by `lab.report.choices.against_one`. Dotted lines are the count,
W(n, k) / W(n, 1). One panel for each measure and n.
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.analysis.loss_weights import implicit_weight
from lab.report.choices import against_one
from lab.report.drawing import grid, heading, label_at_right

TABLE = "choices_weights"
COMMAND = "lab analyze weights sweeps/choices.yaml --examples 48"
MEASURES = {"loss": "loss", "arriving": "gradient that arrives", "gradient": "mean gradient of the trunk"}


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze weights` measured on a sweep of choices."""
    ratios = against_one(table)
    ns = sorted(ratios.n.unique())
    figure, places = grid(len(MEASURES) * len(ns), len(ns), 3.0, 2.7)
    for row, (measure, name) in enumerate(MEASURES.items()):
        for column, n in enumerate(ns):
            axes = places[row * len(ns) + column]
            panel(axes, ratios[(ratios.measure == measure) & (ratios.n == n) & ratios.complete], int(n))
            axes.set_xlim(0, ratios.step.max())
            if row == 0:
                axes.set_title(f"n = {n}", loc="left", fontsize="medium")
            if row == len(MEASURES) - 1:
                axes.set_xlabel("step")
            if column == 0:
                axes.set_ylabel(f"{name},\nagainst k = 1")
    heading(
        figure,
        "What choices that decide k tokens amount to in training, against those that decide one, and against n = 1",
        f"solid: measured, geometric means over {ratios.seeds.max()} seeds, as far as gradients stand out of noise in "
        "all; dotted: what the count says, W(n, k) / W(n, 1)",
    )
    return figure


def panel(axes: Axes, ratios: pd.DataFrame, n: int) -> None:
    """One measure with one n: a line for each span."""
    spans = sorted(ratios.span.unique())
    labels: list[tuple[float, str, Any]] = []
    for span, colour in zip(spans, sns.color_palette("flare", len(spans)), strict=True):
        line = ratios[ratios.span == span]
        axes.plot(line.step, np.log2(line["mean"]), color=colour, linewidth=1.8)
        axes.axhline(np.log2(implicit_weight(n, int(span)) / n), color=colour, linewidth=1, linestyle=":")
        labels.append((float(np.log2(line["mean"].iloc[-1])), f"k = {span:g}", colour))
    axes.set_ylim(-1.2, 3.2)
    axes.set_yticks(range(-1, 4), ["½", "1", "2", "4", "8"])
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    label_at_right(axes, labels, gap=0.42)
