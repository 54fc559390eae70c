"""`lab report`: verdicts."""

import math
from pathlib import Path
from typing import Any

import click

from lab.cli.console import as_json, print_json, print_table, say, store_option
from lab.cli.scores import percent


@click.command()
@click.argument("sweeps", nargs=-1, metavar="[SWEEPS]...")
@click.option("--scale", default="cpu", show_default=True, help="The sweeps' scale.")
@store_option
@as_json
def report(sweeps: tuple[str, ...], scale: str, store: Path, as_json: bool) -> None:
    """Judge SWEEPS by the primary endpoint that each states, or all of sweeps/ that are finished and state one.

    Each arm is compared with the first, seed by seed. "reproduced": the 95 % interval of the mean difference (Student's
    t) lies above 0; "reversed": below 0; "no difference": it holds 0 and lies within the sweep's margin; else
    "inconclusive". Beside it stand how many seeds are past the task's first level (class copying, the best constant
    answer) and after how many training tokens validation stayed above it; how many times as many seeds unpaired arms
    would need; and the paired seeds that would find a difference as large as the margin in four cases of five, by the
    deviation of the differences and, in brackets, by its upper 80 % limit.
    """
    from lab.errors import BadInput, Missing
    from lab.experiments.sweep import load_sweep
    from lab.home import home
    from lab.report.figures import complete
    from lab.report.verdicts import judge

    ours = sorted(path for path in (home() / "sweeps").glob("*.yaml") if not path.stem.startswith("study_"))
    documents = []
    for path in sweeps or [f"sweeps/{path.name}" for path in ours]:
        try:
            sweep = load_sweep(path, scale)
            results = complete(sweep, store)
            verdicts = judge(sweep, results)
        except (BadInput, Missing) as error:
            if sweeps:
                raise
            say(f"left out: {error}")
            continue
        documents.append(
            {
                "sweep": path,
                "scale": scale,
                "question": sweep.file.question,
                "endpoint": sweep.file.endpoint,
                "measure": sweep.cells[0].experiment.task.build().choice,
                "primary": sweep.primary.model_dump(mode="json") if sweep.primary else None,
                "commits": sorted({str(result["commit"]) for _, result in results}),
                "verdicts": verdicts,
            }
        )
    if as_json:
        print_json(documents)
        return
    for document in documents:
        _show(document)


def _show(document: dict[str, Any]) -> None:
    """One sweep's verdicts for people, in percent and points."""
    from rich import box
    from rich.table import Table

    primary, rows = document["primary"], document["verdicts"]
    where = ", ".join(f"{name} {value}" for name, value in primary["where"].items())
    click.echo(f"{document['sweep']}, scale {document['scale']}: {document['question']}")
    click.echo(f"Endpoint: {document['endpoint']}")
    measure = document["measure"].replace("_", " ")
    title = f"{measure} (%){', ' if where else ''}{where}; margin {100 * primary['margin']:g} points"
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    axes = list(rows[0]["less"]) if rows else []
    for axis in axes:
        table.add_column(axis)
    changes = any(row["change"] for row in rows)
    for name in (
        "seeds",
        "scores",
        "difference",
        *(["change"] if changes else []),
        "past",
        "tokens (M)",
        "pairing",
        "seeds needed",
    ):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in rows:
        names = [
            f"{row[axis]} − {row['less'][axis]}" if row[axis] != row["less"][axis] else str(row[axis]) for axis in axes
        ]
        table.add_row(
            *names,
            str(row["seeds"]),
            f"{100 * row['arm']:.1f}, {100 * row['other']:.1f}",
            percent(row, "+"),
            *([percent(row["change"], "+") if row["change"] else ""] if changes else []),
            f"{row['past']}, {row['other_past']}",
            f"{_millions(row['tokens_to'])}, {_millions(row['other_tokens_to'])}",
            _ratio(row["pairing_gain"]),
            f"{_seeds(row['seeds_for_margin'])} ({_seeds(row['seeds_for_margin_safe'])})",
            row["verdict"],
        )
    table.caption = (
        "Pairs are of the arm and of what it is compared with. "
        + ("change: against the difference under the first condition; " if changes else "")
        + "past: seeds past the task's first level; tokens: the "
        "median after which validation stayed above it; pairing: seeds that unpaired arms would need, as a multiple; "
        "seeds needed: to find a difference as large as the margin in 4 of 5 cases (safe)"
    )
    if len(rows) > 5:
        table.caption += f". Of {len(rows)} comparisons one in 20 is outside of its interval by chance"
    print_table(table)


def _millions(tokens: float | None) -> str:
    return "–" if tokens is None else "never" if math.isnan(tokens) else f"{tokens / 1e6:.2f}"


def _ratio(gain: float) -> str:
    return "–" if math.isnan(gain) else f"{gain:.1f} ×"


def _seeds(number: int | None) -> str:
    return "–" if number is None else str(number)
