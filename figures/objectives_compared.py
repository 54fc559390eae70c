"""Ways of predicting n tokens side by side, at equal tokens and at equal training FLOPs: an ablation table, drawn.

A line for each value of the axis `objective`, a panel for each value of the axis `train`. Dots are seeds and bars the
mean over them with its 95 % interval, on unseen test expressions of the most operations trained on. At the right stands
what the arm's runs cost, against those of the first arm.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Sweep
from lab.report.drawing import GREY, grid, heading, one_run_each, panels
from lab.report.style import colour_of
from lab.report.tables import summarise, tidy, unsliced
from lab.tasks.polynomials.task import Polynomials

SWEEP = "sweeps/objectives.yaml"


def draw(sweep: Sweep, finished: list[tuple[Cell, Result]]) -> Figure:
    """The figure of a sweep over objectives and, as a rule, budgets."""
    task = sweep.cells[0].experiment.task
    assert isinstance(task, Polynomials), f"draws polynomials, not {task.name}"
    most = task.train_operations[1]
    table = unsliced(tidy(finished), task.build())
    table = table.query(f"operations == {most} and split == 'test' and checkpoint == 'final' and seen == 'unseen'")
    costs = pd.DataFrame(
        {"identity": cell.experiment.identity, "FLOPs": result["flops"], "tokens": result["tokens"]}
        for cell, result in finished
    )
    table = table.merge(costs, on="identity")
    budgets = [axis for axis in sweep.axes if axis not in ("objective", "seed")]
    one_run_each(table, [*budgets, "objective", "seed"])
    parts = panels(table, budgets)
    arms = list(dict.fromkeys(table.objective))
    figure, places = grid(len(parts), len(parts), 4.4, 1.2 + 0.32 * len(arms))
    for axes, (words, part) in zip(places, parts, strict=True):
        panel(axes, part, arms)
        axes.set_title(", ".join(each.removeprefix("train = ") for each in words), loc="left", fontsize="medium")
    right = max(axes.get_xlim()[1] for axes in places)
    for axes in places:
        axes.set_xlim(0, right)
    places[0].set_yticks(range(len(arms)), arms)
    places[0].invert_yaxis()
    ring = rf"$F_{{{task.prime}}}[X]/(X^{{{task.degree}}})$"
    heading(
        figure,
        f"Exact match on unseen expressions of m = {most} operations in {ring}, the most that were trained on",
        "dots: seeds; bars: mean and its 95 % interval; line: the first arm's mean; dotted: best constant answer",
    )
    return figure


def panel(axes: Axes, scores: pd.DataFrame, arms: list[str]) -> None:
    """A line for each arm."""
    means = summarise(scores, ["objective"], "operations", "exact_match").set_index("objective")
    first = scores[scores.objective == arms[0]]
    axes.axvline(100 * means["mean"][arms[0]], color=GREY, linewidth=0.8, zorder=0)
    axes.axvline(100 * scores.constant_answer.mean(), color=GREY, linestyle=":", zorder=0)
    dearer = "FLOPs" if scores.tokens.max() < 1.02 * scores.tokens.min() else "tokens"
    axes.text(1.02, 1.01, dearer, transform=axes.transAxes, color=GREY, fontsize="small", va="bottom")
    for place, arm in enumerate(arms):
        seeds, mean = scores[scores.objective == arm], means.loc[arm]
        colour = colour_of(int(seeds.n.iloc[0]))
        axes.scatter(100 * seeds.exact_match, [place] * len(seeds), s=14, color=colour, alpha=0.5, linewidths=0)
        low, high = max(mean["low"], 0), min(mean["high"], 1)  # an accuracy has no others
        axes.errorbar(
            100 * mean["mean"], place, xerr=[[100 * (mean["mean"] - low)], [100 * (high - mean["mean"])]],
            marker="|", markersize=10, linewidth=1.5, elinewidth=1, capsize=2.5, color=colour,
        )  # fmt: skip
        cost = seeds[dearer].mean() / first[dearer].mean()
        at_right = axes.get_yaxis_transform()
        axes.text(1.02, place, f"{cost:.2f} ×", transform=at_right, color=GREY, fontsize="small", va="center")
    axes.set_xlabel("exact match (%)")
