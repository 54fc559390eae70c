"""pass@k after finetuning, in the form of Fig. 4 of arXiv 2404.19737: one colour for each n pretrained with and kept.

Each point is at the best temperature for its k, which looks at the scores: an oracle, as in the paper. Dots are seeds,
lines their means, bars the 95 % interval over seeds.
"""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lab.report.answers import over_seeds
from lab.report.drawing import heading, label_at_right, means_with_intervals, side_by_side
from lab.report.page import named

TABLE = "finetuning_generation"
COMMAND = "lab analyze generation sweeps/finetuning.yaml --samples 200"


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab analyze generation` measured on finetuned runs."""
    arms = {run["identity"]: named(run["arm"]) for run in table["runs"]}
    called = {named(run["arm"]): words(run["arm"]) for run in table["runs"]}
    seeds = pd.DataFrame(table["passing"]).query("temperature == 'oracle'")
    seeds = seeds.assign(arm=seeds.identity.map(arms))
    means = pd.DataFrame(over_seeds(table)["passing"]).query("temperature == 'oracle'")
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    colours = sns.color_palette("Dark2", len(called))
    labels = []
    for kind, colour, shift in zip(called, colours, side_by_side(range(len(called)), 0.12).values(), strict=True):
        own, dots = (frame[frame.arm == kind] for frame in (means, seeds))
        x = own.k * 10**shift
        axes.plot(x, 100 * own["mean"], color=colour, linewidth=1.5)
        axes.scatter(dots.k * 10 ** (shift - 0.012), 100 * dots.pass_at_k, s=12, color=colour, alpha=0.5, linewidths=0)
        means_with_intervals(axes, x, own, color=colour, linestyle="none")
        labels.append((100 * own["mean"].iloc[-1], called[kind], colour))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted(means.k.unique())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(k) for k in sorted(means.k.unique())])
    axes.set_xlabel("k, samples of which one is to be right")
    axes.set_ylabel("pass@k (%)")
    axes.set_ylim(0, None)
    label_at_right(axes, labels, gap=0.05 * axes.get_ylim()[1])
    heading(
        figure,
        "pass@k on test expressions after finetuning, n pretrained with → n finetuned with",
        f"best temperature for each k (oracle); dots: seeds ({own.seeds.iloc[0]}); bars: 95 % interval over seeds",
    )
    return figure


def words(arm: dict[str, Any]) -> str:
    """An arm as n pretrained with → n finetuned with."""
    return " → ".join(str(value).removeprefix("n") for value in arm.values())
