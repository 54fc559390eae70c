"""Parts of figures: panels, points beside each other, intervals, labels that do not overlap."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Sweep

GREY = "0.35"


def further_axes(sweep: Sweep, *shown: str) -> list[str]:
    """The sweep's axes that are neither the seed nor n nor among (or below) those `shown` in another way."""
    known = {"seed", "objective.n", *shown}
    return [axis for axis in sweep.axes if axis not in known and axis.split(".")[0] not in known]


def panels(frame: pd.DataFrame, axes: Sequence[str]) -> list[tuple[list[str], pd.DataFrame]]:
    """A part of the table for each combination of the values of `axes`, in their order: `axis = value` each, and rows.

    The whole table, with no words, when there are no axes.
    """
    if not axes:
        return [([], frame)]
    return [
        ([f"{axis} = {value}" for axis, value in zip(axes, values, strict=True)], part)
        for values, part in frame.groupby(list(axes), sort=False)
    ]


def grid(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `columns` in a row, `width` by `height` inches each, that share the y axis."""
    rows = -(-count // columns)
    size = (1.5 + width * columns, height * rows)
    figure, cells = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for spare in cells.flat[count:]:
        spare.remove()
    return figure, list(cells.flat[:count])


def one_run_each(frame: pd.DataFrame, columns: list[str]) -> None:
    """Make sure that no point of a figure is a mean over what the figure does not show.

    Raises:
        ValueError: two rows have the same values in `columns`.
    """
    twins = frame[frame.duplicated(columns)]
    if len(twins):
        which = ", ".join(f"{column} = {twins.iloc[0][column]}" for column in columns)
        raise ValueError(f"{which}: this figure does not tell several runs apart")


def size_name(cell: Cell, result: Result) -> str:
    """A model's size in Table S14, or its non-embedding parameters, as 0.29M."""
    millions = float(f"{result['non_embedding_parameters'] / 1e6:.2g}")
    return cell.experiment.model.size or f"{millions:g}M"


def sizes(finished: Iterable[tuple[Cell, Result]]) -> dict[str, int]:
    """The non-embedding parameters of each size of model by its name, the smallest first."""
    found: dict[str, int] = {}
    for cell, result in sorted(finished, key=lambda each: int(each[1]["non_embedding_parameters"])):
        found.setdefault(size_name(cell, result), result["non_embedding_parameters"])
    return found


def heading(figure: Figure, title: str, legend: str) -> None:
    """Write what a figure shows above it, and below it what its signs mean."""
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)  # inches
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    figure.supxlabel(legend, x=0.01, ha="left", fontsize="small", color=GREY)


def side_by_side(values: Iterable[int], width: float) -> dict[int, float]:
    """Return the shift of each of `values` that puts them side by side within about `width`."""
    ordered = sorted(set(values))
    return {value: (place - (len(ordered) - 1) / 2) * width / len(ordered) for place, value in enumerate(ordered)}


def means_with_intervals(axes: Axes, x: Any, means: pd.DataFrame, **style: Any) -> None:
    """Means of accuracies in percent at `x` with bars of their 95 % interval; `means` as of `summarise`."""
    low, high = means.low.clip(lower=0), means.high.clip(upper=1)  # an accuracy has no others
    axes.errorbar(
        x, 100 * means["mean"], yerr=[100 * (means["mean"] - low), 100 * (high - means["mean"])],
        marker="_", markersize=10, linewidth=1.5, elinewidth=1, capsize=2.5, **style,
    )  # fmt: skip


def label_at_right(axes: Axes, labels: Iterable[tuple[float, str, Any]], gap: float) -> None:
    """Write labels (y, text, colour) at the right of the axes, as near to their y as a `gap` between them allows."""
    ordered = sorted(labels, key=lambda label: label[0])
    steps = gap * np.arange(len(ordered))
    heights = isotonic_regression(np.array([y for y, _, _ in ordered]) - steps).x + steps
    for height, (_, text, colour) in zip(heights, ordered, strict=True):
        axes.annotate(
            text, (1, height), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
            color=colour, va="center", fontsize="small", annotation_clip=False,
        )  # fmt: skip
