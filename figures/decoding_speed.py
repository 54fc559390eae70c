"""Gain of further heads in decoding: tokens per forward pass, speed-up by batch, characters per second.

One colour for each kind of run; dots are seeds, lines their means. In the panels of speed-ups dashed lines are what the
layers allow. Characters a second are with all heads, against those of the first kind of run, of runs of its task.
"""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.drawing import GREY, grid, heading

TABLE = "bench_decode"
COMMAND = "lab bench decode sweeps/decoding.yaml sweeps/decoding_polynomials.yaml"


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab bench decode` measured."""
    rows = pd.DataFrame(table["rows"])
    colours = dict(zip(dict.fromkeys(rows.run), sns.color_palette("Dark2"), strict=False))
    batches = sorted(rows.batch.unique())
    drafting = rows[rows.n > 1]
    figure, places = grid(2 + len(batches), 2 + len(batches), 2.9, 4.2)
    curves(places[0], drafting[drafting.batch == batches[0]], "tokens_per_forward", colours)
    places[0].set_title("tokens a forward pass", loc="left", fontsize="medium")
    places[0].set_ylabel("times as many")
    for axes, batch in zip(places[1:-1], batches, strict=True):
        part = drafting[drafting.batch == batch]
        curves(axes, part, "layers_allow", colours, dots=False, linestyle="--", linewidth=1)
        curves(axes, part, "speed_up", colours)
        axes.set_title(f"speed-up, batch {batch}", loc="left", fontsize="medium")
    for axes in places[:-1]:
        axes.set_xlabel("heads used, k")
        axes.set_xticks(sorted(drafting.k.unique()))
    characters(places[-1], rows[(rows.k == rows.n) & (rows.task == rows.task.iloc[0])], colours, batches)
    for axes in places:
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        axes.set_ylim(0, None)
    handles = [places[-1].plot([], [], color=colour, linewidth=2, label=kind)[0] for kind, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize="small")
    where = "CPU" if table["hardware"]["device"] == "cpu" else table["hardware"]["device"]
    heading(
        figure,
        f"Decoding with a run's own further heads, greedy, {table['precision']} on {where}",
        "dots: seeds; lines: their means; dashed: what layers allow",
    )
    return figure


def curves(axes: Axes, rows: pd.DataFrame, column: str, colours: Any, dots: bool = True, **style: Any) -> None:
    """A column by k: a line for each kind of run, and dots for seeds."""
    for kind, part in rows.groupby("run", sort=False):
        mean = part.groupby("k")[column].mean()
        axes.plot(mean.index, mean, color=colours[kind], **{"linewidth": 2, **style})
        if dots:
            axes.scatter(part.k, part[column], s=14, color=colours[kind], alpha=0.5, linewidths=0)


def characters(axes: Axes, rows: pd.DataFrame, colours: Any, batches: list[int]) -> None:
    """Characters a second by batch, against the mean of the first kind of run."""
    against = rows.run.iloc[0]
    first = rows[rows.run == against].groupby("batch").characters_per_second.mean()
    place = {batch: i for i, batch in enumerate(batches)}
    for kind, part in rows.groupby("run", sort=False):
        ratio = part.characters_per_second / part.batch.map(first)
        mean = ratio.groupby(part.batch).mean()
        axes.plot(mean.index.map(place), mean, color=colours[kind], linewidth=2)
        axes.scatter(part.batch.map(place), ratio, s=14, color=colours[kind], alpha=0.5, linewidths=0)
    axes.set_title(f"characters a second\nagainst {against}", loc="left", fontsize="medium")
    axes.set_xticks(list(place.values()), [str(batch) for batch in batches])
    axes.set_xlabel("batch")
