"""Score tables for people."""

from collections.abc import Callable
from typing import Any

from rich import box
from rich.table import Table

from lab.cli.console import print_table
from lab.report.page import percent


def print_scores(tables: list[dict[str, Any]], caption: str) -> None:
    """Print each table of `lab.report.tables.score_tables`: a row an arm, a column a slice.

    In percent: the mean over seeds ± half of its 95 % interval; then differences, paired by seed. Where a
    value rests on fewer seeds than its line, their number stands in brackets. Dim lines are the task's levels.
    """
    for table in tables:
        if table["seen"] == "seen":
            continue  # what was trained on says little; it is in the JSON
        across, arms = table["across"], table["arms"]
        values = sorted({row[across] for row in table["rows"]}, key=lambda value: (isinstance(value, str), value))
        which = "" if table["seen"] == "all" else f", {table['seen']} questions"
        title = f"{table['measure'].replace('_', ' ')} (%) by {across}: {caption}{which}"
        shown = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
        for arm in arms:
            shown.add_column(arm, justify="right")
        shown.add_column("seeds", justify="right")
        for value in values:
            shown.add_column(str(value), justify="right")
        _add_arms(shown, table["rows"], arms, across, values, lambda row: percent(row, ""))
        first = table["levels"][0]["level"].replace("_", " ")
        shown.caption = f"past: seeds above {first}, by the 95 % interval over their examples"
        _add_arms(shown, table["rows"], arms, across, values, lambda row: f"{row['past']} past")
        _add_arms(shown, table["differences"], arms, across, values, lambda row: percent(row, "+"))
        own = ["level", *(arm for arm in arms if arm in table["levels"][0])]
        for key in dict.fromkeys(tuple(row[name] for name in own) for row in table["levels"]):
            levels = {row[across]: row for row in table["levels"] if tuple(row[name] for name in own) == key}
            label = " ".join([key[0].replace("_", " "), *map(str, key[1:])])
            blanks = [label, *[""] * len(arms)] if arms else [label]
            cells = (f"{100 * levels[value]['mean']:.1f}" if value in levels else "" for value in values)
            shown.add_row(*blanks, *cells, style="dim")
        print_table(shown)


def _add_arms(
    shown: Table,
    rows: list[dict[str, Any]],
    arms: list[str],
    across: str,
    values: list[Any],
    write: Callable[[dict[str, Any]], str],
) -> None:
    """A line for each arm, or for each difference of arms."""
    for key in dict.fromkeys(tuple(row[arm] for arm in arms) for row in rows):
        cells = {row[across]: row for row in rows if tuple(row[arm] for arm in arms) == key}
        less = next(iter(cells.values())).get("less", {})
        names = (
            f"{one} − {less[arm]}" if less.get(arm, one) != one else str(one)
            for arm, one in zip(arms, key, strict=True)
        )
        seeds = max(row["seeds"] for row in cells.values())
        written = {value: write(row) for value, row in cells.items()}
        fewer = {value: f"{written[value]} ({row['seeds']})" for value, row in cells.items() if row["seeds"] < seeds}
        shown.add_row(*names, str(seeds), *({**written, **fewer}.get(value, "") for value in values))
