"""Where models of path-star graphs look while training, beside their accuracy and what each head teaches each layer.

One column for each arm. Top: accuracy of the deciding step; every seed a thin line, the median thick. Middle: attention
from where the step is decided to the goal's edge and to the goal's predecessor, of the attention head of the next
token's path that pays most at the end. Bottom: the gradient that each prediction head's loss sends into the trunk.
"""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.drawing import heading, label_at_right, one_run_each
from lab.report.style import colour_of

TABLE = "star_landmarks"
COMMAND = "lab analyze landmarks sweeps/star_attention.yaml"
LANDMARKS = ("sign to goal", "sign to goal's edge", "sign to predecessor", "goal to goal's edge", "goal to predecessor")


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze landmarks` found in a sweep over arms."""
    models, attention, gradients = (pd.DataFrame(table[name]) for name in ("models", "attention", "gradients"))
    one_run_each(models, ["arm", "seed", "step"])
    arms = list(dict.fromkeys(models.arm))
    size = (1.5 + 3.6 * len(arms), 8.4)
    figure, cells = plt.subplots(3, len(arms), figsize=size, sharex=True, sharey="row", squeeze=False)
    for column, arm in zip(cells.T, arms, strict=True):
        column[0].set_title(arm, loc="left", fontsize="medium")
        n = int(models[models.arm == arm].n.iloc[0])
        seeds_and_median(column[0], models[models.arm == arm], "accuracy", "", colour_of(n))
        looks(column[1], attention[(attention.arm == arm) & attention.next_token_path])
        taught(column[2], gradients[(gradients.arm == arm) & gradients.layer.str.startswith("trunk")])
        column[2].set_xlabel("training steps")
        column[0].set_xlim(0, models.step.max())
    for axes, words in zip(
        cells[:, 0], ("accuracy of\nthe deciding step", "attention", "gradient in the trunk"), strict=True
    ):
        axes.set_ylabel(words)
    cells[0, 0].set_ylim(0, 1.04)
    cells[1, 0].set_ylim(0, 1.04)
    cells[2, 0].set_yscale("log")
    heading(
        figure,
        f"Path-star graphs: where models look, on {table['examples']} test graphs",
        f"thin lines: seeds ({models.seed.nunique()}); thick lines: their medians\n"
        "attention: of the layer and head of the next token's path that pays most",
    )
    return figure


def looks(axes: Axes, rows: pd.DataFrame) -> None:
    """Attention to each landmark."""
    labels: list[tuple[float, str, Any]] = []
    for name, colour in zip(LANDMARKS, sns.color_palette("Dark2"), strict=False):
        most = rows.groupby(["seed", "step"])[name].max().reset_index()
        labels += seeds_and_median(axes, most, name, name, colour)
    label_at_right(axes, labels, gap=0.11)


def taught(axes: Axes, rows: pd.DataFrame) -> None:
    """The norm of each prediction head's gradient in all layers of the trunk."""
    labels: list[tuple[float, str, Any]] = []
    for head, part in rows.groupby("predicts"):
        squares = part.assign(square=part["norm"] ** 2)
        whole = squares.groupby(["seed", "step"]).square.sum().pow(0.5).reset_index()
        labels += seeds_and_median(axes, whole, "square", f"head {head}", colour_of(int(str(head))))
    for _, text, colour in labels:
        axes.plot([], [], color=colour, linewidth=2.4, label=text)
    axes.legend(frameon=False, fontsize="small")


def seeds_and_median(
    axes: Axes, rows: pd.DataFrame, measure: str, name: str, colour: Any
) -> list[tuple[float, str, Any]]:
    """Draw a line for each seed and the median of all; return the label of the median."""
    for _, run in rows.groupby("seed"):
        axes.plot(run.step, run[measure], color=colour, linewidth=0.8, alpha=0.5)
    median = rows.groupby("step")[measure].median()
    axes.plot(median.index, median, color=colour, linewidth=2.4)
    return [(float(median.iloc[-1]), name, colour)] if name else []
