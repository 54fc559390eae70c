"""Number of loss terms of each token around a choice that decides several tokens, by n (Fig. 9 of the paper)."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lab.report.drawing import GREY, grid, heading, label_at_right
from lab.report.style import colour_of

TABLE = "choices_weights"
COMMAND = "lab analyze weights sweeps/choices.yaml --examples 48"


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze weights` counted."""
    counts = pd.DataFrame(table["positions"])
    span = int(counts.k.iloc[0])
    figure, (axes,) = grid(1, 1, 6.0, 4.0)
    axes.axvspan(-0.5, span - 0.5, color="0.93", zorder=0)
    axes.annotate(
        f"the choice and what it decides, k = {span}", ((span - 1) / 2, 1), xycoords=("data", "axes fraction"),
        xytext=(0, -4), textcoords="offset points", ha="center", va="top", fontsize="small", color=GREY,
    )  # fmt: skip
    labels: list[tuple[float, str, Any]] = []
    for n in sorted(counts.n.unique()):
        part, colour = counts[counts.n == n], colour_of(int(n))
        axes.plot(part.place, part.weight, color=colour, drawstyle="steps-mid", linewidth=1.8)
        labels.append((float(part.weight.iloc[-1]), f"n = {n}", colour))
        peak = part[part.place == 0].iloc[0]
        axes.annotate(
            f"{peak.weight}", (0, peak.weight), xytext=(0, 3), textcoords="offset points", color=colour,
            ha="center", fontsize="small",
        )  # fmt: skip
    label_at_right(axes, labels, gap=1.6)
    axes.set_ylim(0, counts.weight.max() * 1.18)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("token, counted from the choice")
    axes.set_ylabel("terms of the loss")
    heading(
        figure,
        "Implicit weight by position: terms of an n-token loss that belong to each token",
        "a term belongs to the choice if that decides its target and was not yet made where it is predicted from;\n"
        "W(n, k) at the choice, n at a token without consequences",
    )
    return figure
