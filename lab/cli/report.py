"""`lab report`: verdicts."""

from pathlib import Path
from typing import Any

import click

from lab.cli.console import Place, as_json, print_json, print_table, say, store_option


@click.command()
@click.argument("sweeps", nargs=-1, metavar="[SWEEPS]...")
@click.option("--scale", default="cpu", show_default=True, help="The sweeps' scale.")
@click.option(
    "--page", type=Place(dir_okay=False),
    help="Also write it all, with every run, as Markdown to this file: a new one, or an earlier page of these sweeps.",
)  # fmt: skip
@store_option
@as_json
def report(sweeps: tuple[str, ...], scale: str, page: Path | None, store: Path, as_json: bool) -> None:
    """Judge SWEEPS by the primary endpoint that each states, or all of sweeps/ that are finished and state one.

    Each arm is compared with the first, seed by seed, by its final score, by the share of seeds that solve the task, or
    by the training tokens to a level (`primary.measure`). "reproduced": the 95 % interval of the difference lies above
    0, and the exact test's p after Holm's correction over the sweep is at most 0.05; "reversed": the same below 0;
    comparisons that are not of further heads against none, as controls, are "above" or "below"; "no difference": the
    interval lies within the sweep's margin; else "inconclusive". A sweep that is a screen, or has fewer than six pairs,
    gets no verdicts. Beside them stand p by exact sign flips; how many seeds are past the task's first level (class
    copying, the best constant answer) or the stated one, and after how many training tokens validation stayed there;
    how many times as many seeds unpaired arms would need; and the paired seeds that would find a difference as large as
    the margin in four cases of five, by the deviation of the differences and, in brackets, by its upper 80 % limit,
    with the minutes that training them takes. Where `primary.trend` names an axis, a rise or fall along it is tested,
    too.
    """
    from lab.errors import BadInput, Missing
    from lab.experiments.sweep import load_sweep
    from lab.home import home
    from lab.report.figures import complete
    from lab.report.page import LEGEND, sections, write
    from lab.report.verdicts import document

    if page is not None:
        sections(page)  # before anything is worked out
    ours = sorted(path for path in (home() / "sweeps").glob("*.yaml") if not path.stem.startswith("study_"))
    documents: list[dict[str, Any]] = []
    unstated, unfinished = [], []
    for path in sweeps or [f"sweeps/{path.name}" for path in ours]:
        try:
            sweep = load_sweep(path, scale)
            if sweep.primary is None and not sweeps:
                unstated.append(path)
            else:
                documents.append(document(sweep, complete(sweep, store)))
        except Missing:
            if sweeps:
                raise
            unfinished.append(path)
        except BadInput as error:
            if sweeps:
                raise
            say(f"left out: {error}")
    for why, paths in {"states no primary endpoint": unstated, "not finished": unfinished}.items():
        if paths:
            say(f"left out, {why}: {', '.join(paths)}")
    if page is not None:
        write(page, documents)
    if as_json:
        print_json(documents)
        return
    for each in documents:
        _show(each)
    if any(each["verdicts"] for each in documents):
        click.echo(LEGEND)


def _show(document: dict[str, Any]) -> None:
    """One sweep's verdicts for people, in percent and points."""
    from lab.report.page import table, title, trend_table, trend_title

    click.echo(f"{document['sweep']}, scale {document['scale']}: {document['question']}")
    click.echo(f"Endpoint: {document['endpoint']}")
    rows, arms = document["verdicts"], [*document["runs"][0]["arm"]]
    if not rows:
        click.echo("Nothing to compare: the sweep has one arm, or arms that share no seed.")
    else:
        many = f"Of {len(rows)} intervals about one in 20 misses the true difference." if len(rows) > 5 else None
        _print(title(document), *table(document), arms, many)
    if document["trends"]:
        _print(trend_title(document), *trend_table(document), arms, None)
    if document["primary"]["limits"]:
        click.echo(f"Not established: {document['primary']['limits']}")


def _print(title: str, heads: list[str], lines: list[list[str]], arms: list[str], caption: str | None) -> None:
    """A table of which the names of `arms` and the verdict stand at the left of their columns."""
    from rich import box
    from rich.table import Table

    shown = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD)
    for head in heads:
        shown.add_column(head, justify="left" if head in (*arms, "verdict") else "right")
    for line in lines:
        shown.add_row(*line)
    print_table(shown)
