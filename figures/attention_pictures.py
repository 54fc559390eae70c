"""Attention of two heads at the start of one example: the best previous-token and prefix-matching heads.

One row of panels for each objective and n, its first run. Queries are rows, keys columns; queries that predict a scored
token are in colour.
"""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lab.report.drawing import heading

TABLE = "heads"
COMMAND = "lab analyze heads sweeps/heads.yaml"
WORDS = {"previous_token_needed": "previous token", "prefix_matching_task": "prefix matching"}
SCORED = "tab:red"
INCHES = 0.115
"""Of a token."""


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze heads` found."""
    pictures = table["pictures"]
    columns = max(len(picture["heads"]) for picture in pictures)
    side = max(6.0, 1.6 + INCHES * max(len(picture["tokens"]) for picture in pictures))
    figure, cells = plt.subplots(
        len(pictures), columns, figsize=(side * columns, side * len(pictures)), squeeze=False, layout="constrained"
    )
    for places, picture in zip(cells, pictures, strict=True):
        for axes, head in zip(places, picture["heads"], strict=False):
            image = panel(axes, picture, head)
        for spare in places[len(picture["heads"]) :]:
            spare.remove()
    figure.colorbar(image, ax=cells, shrink=0.3, aspect=30, label="attention")
    heading(
        figure,
        "Attention of the best previous-token and prefix-matching heads at the last step",
        "rows: queries, columns: keys; red: queries that predict a scored token; in brackets: scores on all examples, "
        "the previous token's where prefix matching is to find something",
    )
    return figure


def panel(axes: Axes, picture: dict[str, Any], head: dict[str, Any]) -> AxesImage:
    """One head's attention."""
    count = len(picture["tokens"])
    attention = np.full((count, count), np.nan)
    for query, row in enumerate(head["attention"]):
        attention[query, : len(row)] = row
    image = axes.imshow(attention, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    names = [token.strip() or repr(token)[1:-1] for token in picture["tokens"]]
    axes.set_xticks(range(count), names, rotation=90, fontsize=6)
    axes.set_yticks(range(count), names, fontsize=6)
    for query in (place - 1 for place in picture["scored"]):
        axes.get_yticklabels()[query].set(color=SCORED, fontweight="bold")
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)
    which = f"layer {head['layer']}, attention head {head['head']}"
    title = f"{picture['objective']}, n = {picture['n']}: {WORDS[head['score']]} ({head['value']:.2f}), {which}"
    axes.set_title(title, loc="left", fontsize="small")
    return image
