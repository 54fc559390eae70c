"""The best previous-token and prefix-matching heads while training, and the accuracy that they may explain.

One panel for each n: thin lines are seeds, thick ones their means. Scores are those inside test examples, of whichever
head on the next token's path is best at a step.
"""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.drawing import grid, heading, label_at_right, one_run_each

TABLE = "heads"
COMMAND = "lab analyze heads sweeps/heads.yaml"
SCORES = {
    "best_previous_token_task": "previous token",
    "best_previous_token_needed": "previous, needed",
    "best_prefix_matching_task": "prefix matching",
}


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze heads` found in a sweep over n."""
    choice = table["runs"][0]["choice"]
    rows = pd.DataFrame(table["models"]).sort_values("step")
    one_run_each(rows, ["objective", "n", "seed", "step"])
    parts = list(rows.groupby(["objective", "n"]))
    figure, places = grid(len(parts), min(len(parts), 3), 4.4, 3.8)
    for axes, ((objective, n), part) in zip(places, parts, strict=True):
        panel(axes, part, {**SCORES, choice: "accuracy"})
        axes.set_title(f"{objective}, n = {n}", loc="left", fontsize="medium")
        axes.set_xlabel("training steps")
    places[0].set_ylabel("score, accuracy")
    places[0].set_ylim(0, 1.04)  # they share their y axis
    heading(
        figure,
        f"Attention of the best heads and {choice.replace('_', ' ')}, on {table['examples']} test examples",
        f"thin lines: seeds ({rows.seed.nunique()}); thick lines: their means\n"
        "needed: where prefix matching is to find something, of layers before the last\n"
        "prefix matching: of layers after the first",
    )
    return figure


def panel(axes: Axes, rows: pd.DataFrame, measures: dict[str, str]) -> None:
    """Runs of one kind."""
    labels: list[tuple[float, str, Any]] = []
    colours = sns.color_palette("Dark2")
    for (measure, name), colour in zip(measures.items(), colours, strict=False):
        for _, run in rows.groupby("seed"):
            axes.plot(run.step, run[measure], color=colour, linewidth=0.8, alpha=0.5)
        mean = rows.groupby("step")[measure].mean()
        axes.plot(mean.index, mean, color=colour, linewidth=2.4)
        labels.append((float(mean.iloc[-1]), name, colour))
    axes.set_xlim(0, rows.step.max())
    label_at_right(axes, [label for label in labels if label[0] == label[0]], gap=0.08)
