"""Self-speculative decoding on rooflines: where forward passes with k heads lie, and the speed-up by batch.

Left: the FLOP/s that each chip can attain by FLOP/byte, and on it the passes with k heads and some numbers of rows, in
the first context of the table. Right, for each context: the speed-up over k = 1 by batch, a line for each chip.
"""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullLocator

from lab.report.drawing import GREY, heading, label_at_right
from lab.report.style import colour_of

TABLE = "cost_decoding"
COMMAND = "lab cost decoding 6.7B --context 128 --context 768"
ROWS = {1: "o", 8: "s", 64: "D"}
"""Numbers of rows whose passes are drawn on rooflines."""
FAINT = 0.25


def draw(table: dict[str, Any]) -> Figure:
    """The figure of what `lab cost decoding` printed."""
    contexts = table["contexts"]
    widths = [1.4, *[1.0] * len(contexts)]
    figure, places = plt.subplots(
        1, len(widths), figsize=(1.5 + 3.6 * sum(widths), 5.4), width_ratios=widths, squeeze=False, layout="constrained"
    )
    roofline, *others = places[0]
    rooflines(roofline, table, contexts[0])
    for axes, context in zip(others, contexts, strict=True):
        speed_ups(axes, table, context)
    others[0].set_ylabel("speed-up over k = 1")
    shape, paper = table["shape"], "; ×: measured by the paper (Table S2, code)" if table["table_s2"] else ""
    heading(
        figure,
        f"Self-speculative decoding with k of {table['n']} heads, as rooflines bound it\n"
        f"{shape['name']}: {shape['layers']} layers of width {shape['width']:,}, weights and cache in bf16",
        f"faint: more than the chip's memory holds{paper}",
    )
    return figure


def rooflines(axes: Axes, table: dict[str, Any], context: int) -> None:
    """Attainable FLOP/s of every chip, and the passes on it."""
    rows = [row for row in table["rows"] if row["context"] == context and row["k"] in drawn(table)]
    places = {place: ROWS[batch] for place, batch in enumerate(table["batches"]) if batch in ROWS}
    low, high = min(min(row["flops_per_byte"]) for row in rows) / 1.6, 2000.0
    labels = []
    for chip in table["chips"]:
        x = np.array([low, min(chip["ridge"] or high, high), high])
        y = np.log10(np.minimum(x * chip["bandwidth"], chip["peak"] or np.inf))  # so that labels can be kept apart
        axes.plot(x, y, color=GREY, linewidth=0.9, zorder=1)
        labels.append((float(y[-1]), chip["name"], GREY))
    for row in rows:
        for place, marker in places.items():
            axes.plot(
                row["flops_per_byte"][place], np.log10(row["flops_per_second"][place]), marker, markersize=5.5,
                color=colour_of(row["k"]), alpha=1 if row["fits"][place] else FAINT, markeredgewidth=0,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MultipleLocator(1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10 ** (value - 12):g}"))
    axes.set_xlabel("FLOP/byte")
    axes.set_ylabel("attainable TFLOP/s")
    axes.set_title(f"{context:,} positions in the cache", loc="left", fontsize="medium")
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top)
    label_at_right(axes, labels, 0.045 * (top - bottom))
    signs: list[tuple[str, str, Any]] = [(f"k = {k}", "o", colour_of(k)) for k in drawn(table)]
    signs += [(f"batch {table['batches'][place]}", marker, GREY) for place, marker in places.items()]
    handles = [Line2D([], [], linestyle="", label=label, marker=sign, color=colour) for label, sign, colour in signs]
    axes.legend(handles=handles, frameon=False, fontsize="small", loc="upper left", labelspacing=0.3, handletextpad=0.1)


def speed_ups(axes: Axes, table: dict[str, Any], context: int) -> None:
    """The speed-up by batch; chips' names are at the lines of the most heads."""
    most = drawn(table)[-1]
    labels = []
    for row in table["rows"]:
        if row["context"] != context or row["k"] not in drawn(table)[1:]:
            continue
        colour, held = colour_of(row["k"]), sum(row["fits"])  # batches come in order
        axes.plot(table["batches"], row["speed_up"], color=colour, linewidth=1, alpha=FAINT)
        axes.plot(table["batches"][:held], row["speed_up"][:held], color=colour, linewidth=1.2)
        if row["k"] == most:
            labels.append((row["speed_up"][-1], row["chip"], colour))
    for each in table["table_s2"]:
        if (each["text"], each["context"]) == ("code", context) and each["k"] in drawn(table):
            axes.plot(each["batch"], each["speed_up"], "x", color="black", markersize=7, zorder=5)
    axes.axhline(1, color=GREY, linewidth=1, linestyle=":", zorder=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("batch")
    axes.set_title(f"{context:,} positions in the cache", loc="left", fontsize="medium")
    axes.set_ylim(0, most)
    heights = [height for height, _, _ in labels]
    if labels and max(heights) - min(heights) < 0.01 * most:
        labels = [(max(heights), "every chip", labels[0][2])]
    label_at_right(axes, labels, 0.045 * most)


def drawn(table: dict[str, Any]) -> list[int]:
    """The numbers of heads that are drawn: 1, 2, and the most whose tokens of a forward pass are known."""
    known = {each["k"] for each in table["passes"] if each["tokens_per_forward"] is not None}
    return sorted({1, 2, max(known)} & known)
