"""Peak memory of a training step by n, net of parameters and optimiser state: a colour for each backward order.

One panel for each vocabulary. Hollow points were not run: they are estimated. The dotted line is n = 1 trained plainly.
"""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lab.report.drawing import GREY, grid, heading, side_by_side

TABLE = "bench_memory"
COMMAND = "lab bench memory"
MARKERS = {"joint": "o", "sequential": "s", "fused": "D"}


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab bench memory` measured."""
    cells = pd.DataFrame(table["cells"])
    cells["gibibytes"] = cells.net_bytes.astype(float).fillna(cells.estimated_net_bytes) / 2**30
    parts = list(cells.groupby("vocabulary"))
    figure, places = grid(len(parts), len(parts), 2.8, 4.0)
    for axes, (vocabulary, part) in zip(places, parts, strict=True):
        panel(axes, part)
        axes.set_title(f"vocabulary {vocabulary:,}", loc="left", fontsize="medium")
    axes = places[0]  # they share their y axis
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(LogLocator(base=2))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("GiB")
    axes.legend(frameon=False, fontsize="small", title="backward order", title_fontsize="small", alignment="left")
    heading(
        figure,
        "Peak memory of a training step, net of parameters and optimiser state\n"
        f"{table['objective']} heads, {table['size']}, {table['tokens']:,} tokens, {table['precision']} "
        f"on {'CPU' if table['hardware']['device'] == 'cpu' else table['hardware']['device']}",
        "hollow: estimated, not run; dotted: n = 1, joint",
    )
    return figure


def panel(axes: Axes, cells: pd.DataFrame) -> None:
    """Peaks at one vocabulary."""
    ns = sorted(cells.n.unique())
    first = cells[(cells.n == 1) & (cells.order == "joint")]
    if len(first):
        axes.axhline(first.gibibytes.iloc[0], color=GREY, linewidth=1, linestyle=":", zorder=0)
    shifts = side_by_side(range(len(MARKERS)), 0.24)  # sequential and fused are the same where one chunk holds all
    for place, ((order, marker), colour) in enumerate(zip(MARKERS.items(), sns.color_palette("Dark2"), strict=False)):
        part = cells[cells.order == order].sort_values("n")
        x = [ns.index(n) + shifts[place] for n in part.n]
        axes.plot(x, part.gibibytes, color=colour, linewidth=1.2, alpha=0.7)
        for ran, filled in ((True, colour), (False, "white")):
            points = [index for index, each in enumerate(part.ran) if each == ran]
            axes.plot(
                [x[index] for index in points], part.gibibytes.iloc[points], marker, color=colour,
                markerfacecolor=filled, markersize=6, label=order if ran else None,
            )  # fmt: skip
    axes.set_xticks(range(len(ns)), [str(n) for n in ns])
    axes.set_xlim(-0.4, len(ns) - 0.6)
    axes.set_xlabel("n")
