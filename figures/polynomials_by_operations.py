"""Exact match by number of operations, one colour for each n, in the form of Fig. 8 of arXiv 2404.19737.

Lines are means over seeds, bars the 95 % interval of the mean, dots the seeds; hollow dots leave out the expressions
that training met. Arms of the same n, where a sweep names its arms, have different strokes. One panel for each value of
any other axis of the sweep.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Sweep
from lab.report.drawing import (
    GREY,
    further_axes,
    grid,
    means_with_intervals,
    one_run_each,
    panels,
    side_by_side,
)
from lab.report.style import colour_of
from lab.report.tables import summarise, tidy
from lab.tasks.polynomials.task import Polynomials

SWEEP = "sweeps/polynomials_n.yaml"
FEW = 100
"""Unseen expressions below which their accuracy is not drawn."""
STROKES = ("-", "--", ":", "-.")


def draw(sweep: Sweep, finished: list[tuple[Cell, Result]]) -> Figure:
    """The figure of a sweep over n."""
    table = tidy(finished)
    scores = table[(table.checkpoint == "final") & (table.split == "test") & (table.operator == "all")]
    named = [axis for axis in sweep.axes if axis in ("arm", "objective")][:1]
    scores = scores.assign(line=scores[named[0]] if named else "n = " + scores.n.astype(str))
    parts = panels(scores, further_axes(sweep, *named))
    figure, places = grid(len(parts), len(parts), 9.5 if named else 6.5, 4.6)
    task = sweep.cells[0].experiment.task
    assert isinstance(task, Polynomials), f"draws polynomials, not {task.name}"
    for axes, (words, part) in zip(places, parts, strict=True):
        panel(axes, part, task.train_operations[1])
        ring = rf"$F_{{{task.prime}}}[X]/(X^{{{task.degree}}})$"
        axes.set_title(", ".join([f"Polynomial arithmetic in {ring}", *words]), loc="left", fontsize="medium", pad=24)
    places[0].set_ylabel("exact match (%)")
    told = zip(*places[-1].get_legend_handles_labels(), strict=True)
    handles, labels = zip(*sorted(told, key=lambda each: "seeds:" not in each[1]), strict=True)
    where: dict[str, Any] = {"loc": "upper right", "title": "tokens predicted at once"}
    if named:  # too many, or too long, to stand among lines
        where = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
    places[-1].legend(handles, labels, frameon=False, fontsize="small", **where)
    return figure


def panel(axes: Axes, scores: pd.DataFrame, last: int) -> None:
    """Scores by number of operations, of which training had at most `last`."""
    whole = scores[scores.seen == "all"]
    one_run_each(whole, ["line", "operations", "seed"])
    unseen = scores[(scores.seen == "unseen") & scores["count"].between(FEW, whole["count"].max() - 1)]
    means = summarise(whole, ["line"], "operations", "exact_match")
    lines = whole.drop_duplicates("line").set_index("line").n
    shifts = side_by_side(range(len(lines)), 0.36)
    for place, (line, n) in enumerate(lines.items()):
        seeds, fresh, mean = (part[part.line == line] for part in (whole, unseen, means))
        colour, shift = colour_of(n), shifts[place]
        stroke = STROKES[int((lines.iloc[:place] == n).sum()) % len(STROKES)]
        axes.scatter(seeds.operations + shift, 100 * seeds.exact_match, s=14, color=colour, alpha=0.5, linewidths=0)
        axes.scatter(fresh.operations + shift, 100 * fresh.exact_match, s=16, facecolors="none", edgecolors=[colour])
        label = f"{line}  (seeds: {seeds.seed.nunique()})"
        means_with_intervals(axes, mean.operations + shift, mean, color=colour, label=label, linestyle=stroke)
    axes.scatter([], [], s=14, color=GREY, alpha=0.6, linewidths=0, label="a seed")
    if len(unseen):
        axes.scatter([], [], s=16, facecolors="none", edgecolors=GREY, label="a seed, unseen expressions")
    constant = whole.groupby("operations").constant_answer.mean()
    axes.plot(constant.index, 100 * constant, color=GREY, linestyle=":", label="best constant answer")

    least, most = int(whole.operations.min()), int(whole.operations.max())
    spans = [((least + min(last, most)) / 2, "as in training")]
    if last < most:
        axes.axvspan(last + 0.5, most + 0.5, color="0.94", zorder=0)
        spans.append(((last + 1 + most) / 2, "more operations than in training"))
    for x, words in spans:
        axes.text(x, 1.01, words, transform=axes.get_xaxis_transform(), ha="center", va="bottom", color=GREY)
    axes.set_xlim(least - 0.5, most + 0.5)
    axes.set_ylim(0, 104)
    axes.set_xticks(range(least, most + 1))
    axes.set_xlabel("operations in the expression")
