"""Score tables for people."""

import math
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_scores(tables: list[dict[str, Any]], caption: str) -> None:
    """Print each table of `lab.report.tables.score_tables`: a row an arm, a column a slice.

    In percent: the mean over seeds ± half of its 95 % interval.
    """
    out = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        if table["seen"] == "seen":
            continue  # what was trained on says little; it is in the JSON
        across, arms = table["across"], table["arms"]
        values = sorted({row[across] for row in table["rows"]})
        which = "" if table["seen"] == "all" else f", {table['seen']} questions"
        title = f"{table['measure'].replace('_', ' ')} (%) by {across}: {caption}{which}"
        shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for arm in arms:
            shown.add_column(arm, justify="right")
        shown.add_column("seeds", justify="right")
        for value in values:
            shown.add_column(str(value), justify="right")
        for key in dict.fromkeys(tuple(row[arm] for arm in arms) for row in table["rows"]):
            cells = {row[across]: row for row in table["rows"] if tuple(row[arm] for arm in arms) == key}
            seeds = max(row["seeds"] for row in cells.values())
            shown.add_row(*map(str, key), str(seeds), *(_percent(cells.get(value)) for value in values))
        levels = {row[across]: row for row in table["levels"]}
        label = table["level"].replace("_", " ")
        blanks = [label, *[""] * len(arms)] if arms else [label]
        shown.add_row(*blanks, *(f"{100 * levels[value]['mean']:.1f}" for value in values), style="dim")
        out.print(shown)


def _percent(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    half = row["high"] - row["mean"]
    return f"{100 * row['mean']:.1f}" + ("" if math.isnan(half) else f" ± {100 * half:.1f}")
