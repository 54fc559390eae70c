"""What choices that decide k tokens send into the trunk while training, against choices that decide one, by n.

Solid lines are measured: the mean gradient of all terms that belong to choices of one station, by that of the station
with k = 1. Dotted ones are what the count says, W(n, k) / W(n, 1). One panel for each n.
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.analysis.loss_weights import implicit_weight
from lab.report.drawing import grid, heading, label_at_right

TABLE = "choices_weights"
COMMAND = "lab analyze weights sweeps/choices.yaml --examples 48"


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze weights` measured on a sweep of choices."""
    rows = pd.DataFrame(table["kinds"]).merge(pd.DataFrame(table["runs"])[["identity", "objective", "n", "seed"]])
    rows = rows[rows.kind.str.endswith("choice") & (rows.objective == "parallel")]
    measures = {"loss": "loss", "arriving": "gradient that arrives", "gradient": "mean gradient of the trunk"}
    ns = sorted(rows.n.unique())
    figure, places = grid(len(measures) * len(ns), len(ns), 2.6, 2.7)
    for row, (measure, name) in enumerate(measures.items()):
        for column, n in enumerate(ns):
            axes = places[row * len(ns) + column]
            panel(axes, rows[rows.n == n], measure, int(n))
            axes.set_xlim(0, rows.step.max())
            if row == 0:
                axes.set_title(f"n = {n}", loc="left", fontsize="medium")
            if row == len(measures) - 1:
                axes.set_xlabel("step")
            if column == 0:
                axes.set_ylabel(f"{name},\nagainst k = 1")
    seeds = rows.seed.nunique()
    heading(
        figure,
        "What choices that decide k tokens amount to in training, against those that decide one",
        f"solid: measured, geometric means over {seeds} seeds, as far as gradients stand out of noise in all; "
        "dotted: what the count says, W(n, k) / W(n, 1)",
    )
    return figure


def panel(axes: Axes, rows: pd.DataFrame, measure: str, n: int) -> None:
    """One measure with one n: a line for each span."""
    spans = sorted(rows.span.unique())
    base = rows[rows.span == spans[0]].set_index(["seed", "step"])[measure]
    labels: list[tuple[float, str, Any]] = []
    for span, colour in zip(spans[1:], sns.color_palette("flare", len(spans) - 1), strict=True):
        ratio = rows[rows.span == span].set_index(["seed", "step"])[measure] / base
        logs = np.log2(ratio.where((ratio > 0) & np.isfinite(ratio)))  # a gradient can be lost in noise
        logs = logs.groupby("step").agg(lambda seeds: seeds.mean(skipna=False)).dropna()
        axes.plot(logs.index, logs, color=colour, linewidth=1.8)
        axes.axhline(np.log2(implicit_weight(n, int(span)) / n), color=colour, linewidth=1, linestyle=":")
        if len(logs):
            labels.append((float(logs.iloc[-1]), f"k = {span:g}", colour))
    axes.set_ylim(-3.2, 4.2)
    axes.set_yticks(range(-3, 5), ["⅛", "¼", "½", "1", "2", "4", "8", "16"])
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    label_at_right(axes, labels, gap=0.75)
