"""The task's score on validation while training, by tokens trained on: every seed a line.

One panel for each value of the sweep's axes beside seed and n; in it one colour for each n. Where the sweep states a
level from which on a run has solved the task, labels say how many seeds did, by test with final weights.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Sweep
from lab.objectives.heads import OneHead
from lab.report.drawing import GREY, further_axes, grid, heading, label_at_right, one_run_each, panels
from lab.report.endpoints import scored
from lab.report.style import colour_of
from lab.report.tables import curves

SWEEP = "sweeps/star_n.yaml"
COLUMNS = 4
"""Panels in a row."""


def draw(sweep: Sweep, finished: list[tuple[Cell, Result]]) -> Figure:
    """The figure of a sweep of one task."""
    task = sweep.cells[0].experiment.task.build()
    table, measure = curves(finished), f"validation/{task.metric}"
    further = further_axes(sweep)
    one_head = {cell.experiment.identity for cell, _ in finished if isinstance(cell.experiment.objective, OneHead)}
    table.loc[table.identity.isin(one_head), "n"] = 1  # a control's own n may be another's heads
    one_run_each(table, [*further, "n", "seed", "step"])
    level = sweep.primary.level if sweep.primary else None
    if level is not None:
        table = table.merge(scored(sweep, finished)[["identity", "past"]], on="identity")

    # Where guessing or the task's other baseline stands, if curves have it.
    baseline = f"validation/{task.baselines[0]}"
    at = table[baseline].mean() if baseline in table else None

    # A panel for each arm, and its seeds.
    parts = panels(table, further)
    columns = min(COLUMNS, len(parts))
    figure, places = grid(len(parts), columns, 3.1 if len(parts) > 1 else 6.0, 2.3 if len(parts) > 1 else 3.8)
    for axes, (words, part) in zip(places, parts, strict=True):
        panel(axes, part, measure, level is not None)
        axes.set_title(", ".join(word.removeprefix("arm = ") for word in words), loc="left", fontsize="medium")
        if at is not None:
            axes.axhline(100 * at, color=GREY, linewidth=1, linestyle=":", zorder=0)
    for axes in places[-columns:]:
        axes.set_xlabel("training tokens (millions)")
    for axes in places[::columns]:
        axes.set_ylabel("%")
    signs = [f"each line is a run; {table.seed.nunique()} seeds"]
    signs += [f"dotted: {task.baselines[0].replace('_', ' ')}"] if at is not None else []
    signs += [f"counted: seeds with at least {100 * level:g} % on test, final weights"] if level is not None else []
    heading(figure, f"{sweep.name}: {task.metric.replace('_', ' ')} on validation while training", "; ".join(signs))
    return figure


def panel(axes: Axes, curve: pd.DataFrame, measure: str, counted: bool) -> None:
    """Learning curves of one arm."""
    labels: list[tuple[float, str, Any]] = []
    for n in sorted(curve.n.unique()):
        runs, colour = curve[curve.n == n], colour_of(n)
        for _, run in runs.groupby("seed"):
            axes.plot(run.tokens / 1e6, 100 * run[measure], color=colour, linewidth=1, alpha=0.6)
        said = f"n = {n}"
        if counted:
            past = runs.groupby("seed").past.first()
            said = f"{said}: {int(past.sum())} of {len(past)}"
        labels.append((100 * runs.groupby("seed")[measure].last().median(), said, colour))
    axes.set_xlim(0, curve.tokens.max() / 1e6)
    axes.set_ylim(0, 104)
    label_at_right(axes, labels, gap=20)
