"""pass@k after finetuning, in the form of Fig. 4 of arXiv 2404.19737: one colour for each n pretrained with and kept.

A panel for each slice of the test set. Each point is at the best temperature for its k, which looks at the scores: an
oracle, as in the paper. Dots are seeds, lines their means, bars the 95 % interval over seeds.
"""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lab.report.answers import over_seeds
from lab.report.drawing import grid, heading, label_at_right, means_with_intervals, side_by_side
from lab.report.page import named

TABLE = "finetuning_generation"
COMMAND = "lab analyze generation sweeps/finetuning.yaml --examples 200 --samples 100"


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze generation` measured on finetuned runs."""
    arms = {run["identity"]: named(run["arm"]) for run in table["runs"]}
    called = {named(run["arm"]): words(run["arm"]) for run in table["runs"]}
    seeds = pd.DataFrame(table["passing"]).query("temperature == 'oracle'")
    seeds = seeds.assign(arm=seeds.identity.map(arms))
    means = pd.DataFrame(over_seeds(table)["passing"]).query("temperature == 'oracle'")
    parts = list(means.groupby("slice", sort=False))
    figure, places = grid(len(parts), len(parts), 3.6, 4.4)
    colours = dict(zip(called, sns.color_palette("Dark2", len(called)), strict=True))
    for axes, (part, of_part) in zip(places, parts, strict=True):
        labels = panel(axes, of_part, seeds[seeds.slice == part], colours)
        axes.set_title(str(part), loc="left", fontsize="medium")
    places[0].set_ylabel("pass@k (%)")
    places[0].set_ylim(0, None)
    named_labels = [(height, called[kind], colour) for height, kind, colour in labels]
    label_at_right(places[-1], named_labels, gap=0.06 * places[0].get_ylim()[1])
    heading(
        figure,
        "pass@k on test expressions after finetuning, n pretrained with → n finetuned with",
        f"best temperature for each k (oracle); dots: seeds ({means.seeds.iloc[0]}); bars: 95 % interval over seeds",
    )
    return figure


def panel(
    axes: Axes, means: pd.DataFrame, seeds: pd.DataFrame, colours: dict[str, Any]
) -> list[tuple[float, str, Any]]:
    """The arms of one slice; returns the height at which each ends, the arm and its colour."""
    ends = []
    for (kind, colour), shift in zip(colours.items(), side_by_side(range(len(colours)), 0.16).values(), strict=True):
        own, dots = (frame[frame.arm == kind] for frame in (means, seeds))
        x = own.k * 10**shift
        axes.plot(x, 100 * own["mean"], color=colour, linewidth=1.5)
        axes.scatter(dots.k * 10 ** (shift - 0.016), 100 * dots.pass_at_k, s=12, color=colour, alpha=0.5, linewidths=0)
        means_with_intervals(axes, x, own, color=colour, linestyle="none")
        ends.append((100 * own["mean"].iloc[-1], kind, colour))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(means.k.unique())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(k) for k in sorted(means.k.unique())])
    axes.set_xlabel("k, samples of which one is to be right")
    return ends


def words(arm: dict[str, Any]) -> str:
    """An arm as n pretrained with → n finetuned with."""
    return " → ".join(str(value).removeprefix("n") for value in arm.values())
