"""Attention of path-star models to what decides the path while training, what each head teaches, and what is needed.

One column for each arm; every seed a thin line, the median thick. From above: accuracy of the deciding step; attention
of the first layer, and of the last one before the next token, each of the attention head that pays most; the gradient
that each prediction head's loss sends into the first layer; and accuracy at the end where a layer cannot look there.
"""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.drawing import GREY, heading, one_run_each
from lab.report.style import colour_of

TABLE = "star_landmarks"
COMMAND = "lab analyze landmarks sweeps/star_attention.yaml"
COLOURS = dict(
    zip(("sign to goal", "goal's edge to predecessor", "sign to goal's edge"), sns.color_palette("Dark2"), strict=False)
)
FIRST, LAST = ("sign to goal", "goal's edge to predecessor"), ("sign to goal", "sign to goal's edge")
"""Landmarks shown for the first layer, and for the last one before the next token."""
ROWS = (
    "accuracy of the\ndeciding step", "attention,\nfirst layer", "attention,\nlast layer", "gradient,\nfirst layer",
    "accuracy,\nattention cut",
)  # fmt: skip


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze landmarks` found in a sweep over arms."""
    models = pd.DataFrame(table["models"])
    one_run_each(models, ["arm", "seed", "step"])
    arms = list(dict.fromkeys(models.arm))
    size = (1.5 + 3.0 * len(arms), 2.1 * len(ROWS))
    figure, cells = plt.subplots(len(ROWS), len(arms), figsize=size, sharey="row", squeeze=False)
    for column, arm in zip(cells.T, arms, strict=True):
        own = models[models.arm == arm]
        runs = own[["identity", "seed"]].drop_duplicates()
        attention, gradients, cuts = (
            pd.DataFrame(table[name]).merge(runs, on="identity") for name in ("attention", "gradients", "cuts")
        )
        path = list(dict.fromkeys(attention[attention.next_token_path].layer))
        column[0].set_title(arm, loc="left", fontsize="medium")
        seeds_and_median(column[0], own, "accuracy", colour_of(int(own.n.iloc[0])))
        for axes, layer, names in ((column[1], path[0], FIRST), (column[2], path[-1], LAST)):
            looks(axes, attention[attention.layer == layer], names)
        for head, part in gradients[gradients.layer == path[0]].groupby("predicts"):
            seeds_and_median(column[3], part, "norm", colour_of(int(str(head))), f"of head {head}'s loss")
        without(column[4], cuts, path, own[own.step == own.step.max()])
        for axes in column[:4]:
            axes.set_xlim(0, own.step.max())
        column[3].set_xlabel("training steps")
    for axes, words in zip(cells[:, 0], ROWS, strict=True):
        axes.set_ylabel(words)
        axes.set_ylim(0, 1.04)
    cells[3, 0].set_yscale("log")
    cells[3, 0].set_ylim(0.01, 3)
    for axes, place in ((cells[1, 0], "upper left"), (cells[2, 0], "upper left"), (cells[3, -1], "lower left")):
        axes.legend(frameon=False, fontsize="x-small", loc=place)
    heading(
        figure,
        f"Path-star graphs: where models look, on {table['examples']} test graphs",
        f"thin lines and dots: seeds ({models.seed.nunique()}); thick lines: their medians; crosses: nothing cut",
    )
    return figure


def looks(axes: Axes, rows: pd.DataFrame, names: tuple[str, ...]) -> None:
    """Attention of a layer to landmarks."""
    for name in names:
        most = rows.groupby(["seed", "step"])[name].max().reset_index()
        seeds_and_median(axes, most, name, COLOURS[name], name)


def without(axes: Axes, cuts: pd.DataFrame, path: list[str], whole: pd.DataFrame) -> None:
    """Accuracy with attention cut, a dot for each seed."""
    shown = [*((path[0], name) for name in FIRST), (path[-1], LAST[1])]
    for place, (layer, name) in enumerate(shown):
        rows = cuts[(cuts.layer == layer) & (cuts.landmark == name)]
        axes.plot([place] * len(rows), rows.accuracy, "o", color=COLOURS[name], markersize=4, alpha=0.7)
        axes.plot([place - 0.25] * len(whole), whole.accuracy, "x", color=GREY, markersize=4)
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set_xticks(
        range(len(shown)),
        [f"{layer}:\n{name.replace(' to ', chr(10) + 'to ')}" for layer, name in shown],
        fontsize="xx-small",
    )


def seeds_and_median(axes: Axes, rows: pd.DataFrame, measure: str, colour: Any, name: str | None = None) -> None:
    """Draw a line for each seed and the median of all."""
    for _, run in rows.groupby("seed"):
        axes.plot(run.step, run[measure], color=colour, linewidth=0.8, alpha=0.5)
    median = rows.groupby("step")[measure].median()
    axes.plot(median.index, median, color=colour, linewidth=2.4, label=name)
