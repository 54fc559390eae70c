"""What choices that decide k tokens amount to while training, against choices that decide one, by n.

Solid lines are measured: what all terms that belong to choices of one station amount to, by those of the station with
k = 1; and that by the same with n = 1, since stations differ in more than what they count (long branches are easier to
look back at). Dotted ones are what the count says, W(n, k) / W(n, 1). One panel for each measure and n.
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
MEASURES = {"loss": "loss", "arriving": "gradient that arrives", "gradient": "mean gradient of the trunk"}


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze weights` measured on a sweep of choices."""
    rows = pd.DataFrame(table["kinds"]).merge(pd.DataFrame(table["runs"])[["identity", "objective", "n", "seed"]])
    rows = rows[rows.kind.str.endswith("choice") & (rows.objective == "parallel")]
    cells: Any = rows.set_index(["n", "span", "seed", "step"])[list(MEASURES)]
    first = cells.xs(min(rows.span), level="span")
    of_one = cells / first.reindex(cells.index.droplevel("span")).set_axis(cells.index)
    plain = of_one.xs(1, level="n")
    ratios = of_one / plain.reindex(of_one.index.droplevel("n")).set_axis(of_one.index)
    ns = [n for n in sorted(rows.n.unique()) if n > 1]
    figure, places = grid(len(MEASURES) * len(ns), len(ns), 3.0, 2.7)
    for row, (measure, name) in enumerate(MEASURES.items()):
        for column, n in enumerate(ns):
            axes = places[row * len(ns) + column]
            panel(axes, ratios[measure].xs(n, level="n"), int(n))
            axes.set_xlim(0, rows.step.max())
            if row == 0:
                axes.set_title(f"n = {n}", loc="left", fontsize="medium")
            if row == len(MEASURES) - 1:
                axes.set_xlabel("step")
            if column == 0:
                axes.set_ylabel(f"{name},\nagainst k = 1")
    heading(
        figure,
        "What choices that decide k tokens amount to in training, against those that decide one, and against n = 1",
        f"solid: measured, geometric means over {rows.seed.nunique()} seeds, as far as gradients stand out of noise in "
        "all; dotted: what the count says, W(n, k) / W(n, 1)",
    )
    return figure


def panel(axes: Axes, ratios: "pd.Series[float]", n: int) -> None:
    """One measure with one n, by span, seed and step: a line for each span."""
    spans = sorted(ratios.index.unique("span"))[1:]
    labels: list[tuple[float, str, Any]] = []
    for span, colour in zip(spans, sns.color_palette("flare", len(spans)), strict=True):
        ratio = ratios.xs(span, level="span")
        logs: Any = np.log2(ratio.where((ratio > 0) & np.isfinite(ratio)))  # a gradient can be lost in noise
        logs = logs.groupby("step").agg(lambda seeds: seeds.mean(skipna=False)).dropna()
        axes.plot(logs.index, logs, color=colour, linewidth=1.8)
        axes.axhline(np.log2(implicit_weight(n, int(span)) / n), color=colour, linewidth=1, linestyle=":")
        if len(logs):
            labels.append((float(logs.iloc[-1]), f"k = {span:g}", colour))
    axes.set_ylim(-1.2, 3.2)
    axes.set_yticks(range(-1, 4), ["½", "1", "2", "4", "8"])
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    label_at_right(axes, labels, gap=0.42)
