"""Information of tokens about later ones while training, from the heads' losses, and the source's own.

Of a choice's tokens: the loss of head i less that of head 1 on the same token, the mean over heads of n. Solid lines
are measured, dotted ones are the source's own. One panel for each n.
"""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from lab.report.drawing import grid, heading, label_at_right

TABLE = "choices_information"
COMMAND = "lab analyze information sweeps/choices.yaml --examples 48"


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze information` measured."""
    rows = pd.DataFrame(table["losses"]).merge(pd.DataFrame(table["runs"])[["identity", "n", "seed"]])
    rows = rows[rows.kind != "all"]
    kinds = [kind for kind in dict.fromkeys(rows.kind) if not kind.endswith("choice")]
    ns = sorted(rows.n.unique())
    figure, places = grid(len(ns), len(ns), 3.6, 3.8)
    for axes, n in zip(places, ns, strict=True):
        labels: list[tuple[float, str, Any]] = []
        for kind, colour in zip(kinds, sns.color_palette("Dark2", len(kinds)), strict=True):
            part = rows[(rows.n == n) & (rows.kind == kind)]
            if part.empty:
                continue
            by_seed = part.groupby(["seed", "step"])[["information", "true_information"]].mean()
            for _, one in by_seed.groupby("seed"):
                axes.plot(one.index.get_level_values("step"), one.information, color=colour, linewidth=0.6, alpha=0.5)
            mean = by_seed.groupby("step").mean()
            axes.plot(mean.index, mean.information, color=colour, linewidth=2)
            if mean.true_information.notna().all():
                axes.axhline(mean.true_information.iloc[-1], color=colour, linewidth=1, linestyle=":")
            labels.append((float(mean.information.iloc[-1]), kind, colour))
        axes.set_title(f"n = {n}", loc="left", fontsize="medium")
        axes.set_xlabel("step")
        label_at_right(axes, labels, gap=0.12)
    places[0].set_ylabel("nats a token")
    heading(
        figure,
        "Information between tokens, as losses have it: head i on a token, less head 1 on the same",
        f"mean over heads 2 to n; thin lines: seeds ({rows.seed.nunique()}); dotted: the source's own",
    )
    return figure
