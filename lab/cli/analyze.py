"""`lab analyze`: look into finished runs."""

import math
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lab.cli.console import as_json, counting, print_json, print_table, store_option
from lab.cli.heads import heads
from lab.cli.landmarks import landmarks
from lab.cli.sweep import scale_option

if TYPE_CHECKING:
    from lab.analysis.finished_run import FinishedRun

name_argument = click.argument("name", metavar="RUN|SWEEP")
examples_option = click.option(
    "--examples", type=click.IntRange(2), default=100, show_default=True, help="Test examples that are looked at."
)


@click.group()
def analyze() -> None:
    """Look into what finished runs have learned, and how it came about.

    RUN is a run's directory, label or identity. A SWEEP is a YAML file such as sweeps/choices.yaml, whose runs must all
    be there with their weights. What is looked at is the last weights; with --json, and by `heads`, also all others
    that a run has kept on its way (`execution.snapshots`), but for answers, gaps and running free.
    """


analyze.add_command(heads)
analyze.add_command(landmarks)


@analyze.command()
@name_argument
@scale_option
@examples_option
@store_option
@as_json
def weights(name: str, scale: str, examples: int, store: Path, as_json: bool) -> None:
    """Implicit loss weights: derived, counted and measured.

    The argument is Section 5.1's of the paper. A token that decides k tokens, itself the first, counts W(n, k) times, a
    choice point n (n + 1) / 2 times. Measured is what the terms of the loss that belong to tokens of a kind amount to,
    and their gradients into the trunk: those that arrive at its output, and their mean over its parameters. Tasks say
    what their tokens decide; stories do not.
    """
    from lab.analysis.finished_run import open_runs
    from lab.analysis.loss_weights import derivation, measure, positions

    proved = derivation()
    rows: list[dict[str, Any]] = []
    runs = open_runs(name, scale, store)
    with counting("models", _models(runs, every=as_json)) as count:
        for run in runs:
            for _, of_step in groupby(measure(run, examples, every=as_json), itemgetter("step")):
                rows += of_step
                count()
    if as_json:
        about, counted = _about("weights", name, scale, runs, examples), positions((1, 2, 4, 8), 4, 6)
        print_json({**about, "derivation": proved, "positions": counted, "kinds": _rounded(rows)})
        return
    for line in proved:
        click.echo(f"{line['claim']}: {line['left']} = {line['right']}   {_proved(line['holds'])}")
    for run in runs:
        _table(
            f"\n{run.directory.path}, step {run.steps[-1]}: terms of the loss by the kind of token that they belong to",
            _of(run, {"kinds": rows})["kinds"],
            ("kind", "span", "events", "terms", "weight", "loss", "excess", "arriving", "gradient"),
        )  # fmt: skip


@analyze.command()
@name_argument
@scale_option
@examples_option
@click.option(
    "--positions", type=click.IntRange(2), default=32, show_default=True, help="Positions at which heads are compared."
)
@store_option
@as_json
def information(name: str, scale: str, examples: int, positions: int, store: Path, as_json: bool) -> None:
    """Information between tokens: derived and measured.

    The argument is Section 5.2's of the paper. Measured are head i's loss on a token less head 1's on the same token,
    by kind of token; how far heads are from the marginals of what head 1 says step by step; and accuracy given the true
    tokens against that of running free.
    """
    from lab.analysis.finished_run import open_runs
    from lab.analysis.information import gaps, identities, losses, mismatch

    proved = identities()
    tables: dict[str, list[dict[str, Any]]] = {"losses": [], "gaps": [], "mismatch": []}
    runs = open_runs(name, scale, store)
    several = [run for run in runs if run.experiment.objective.n > 1]  # with one head there are no losses to compare
    with counting("models, gaps and mismatches", _models(several, every=as_json) + len(runs)) as count:
        for run in runs:
            for _, of_step in groupby(losses(run, examples, every=as_json), itemgetter("step")):
                tables["losses"] += of_step
                count()
            tables["gaps"] += gaps(run, positions)
            tables["mismatch"] += mismatch(run, examples)
            count()
    if as_json:
        rounded = {table: _rounded(rows) for table, rows in tables.items()}
        print_json({**_about("information", name, scale, runs, examples), "identities": proved, **rounded})
        return
    for line in proved:
        click.echo(f"{line['claim']}: {line['statement']}   {_proved(line['holds'])}")
    for run in runs:
        mine = _of(run, tables)
        click.echo(f"\n{run.directory.path}, step {run.steps[-1]}")
        if not mine["losses"]:
            click.echo("one head: there are no others to compare it with")
        _table(
            "nats a token, head i and head 1 on the same tokens", mine["losses"],
            ("kind", "head", "targets", "loss", "loss_1", "information", "true_information"),
        )  # fmt: skip
        _table(
            "further heads against the marginals of head 1's steps", mine["gaps"],
            ("kind", "head", "positions", "divergence", "error", "distance", "mass"),
        )  # fmt: skip
        _table(
            "accuracy of the tokens ahead, the first scored one being 1 ahead", mine["mismatch"],
            ("ahead", "documents", "teacher_forced", "free_running"),
        )  # fmt: skip


@analyze.command()
@name_argument
@scale_option
@examples_option
@click.option(
    "--samples", type=click.IntRange(2, 10_000), default=20, show_default=True, help="Answers drawn to each question."
)
@click.option(
    "--temperature",
    "temperatures",
    type=click.FloatRange(1e-3),
    multiple=True,
    default=(0.2, 0.5, 0.8, 1.0),
    show_default=True,
    help="Of drawing; can be given several times.",
)
@store_option
@as_json
def generation(
    name: str, scale: str, examples: int, samples: int, temperatures: tuple[float, ...], store: Path, as_json: bool
) -> None:
    """Answers: pass@k, choices between answers, calibration.

    A question is a test example up to its scored tokens, of which one run is the answer. Numbers of operations, and
    fresh and pool names, stand apart; the examples are shared among them. pass@k is the unbiased estimate from the
    samples, by temperature; `oracle` is the best temperature for each k, known only afterwards. Choices are between the
    answer and three near misses. Beside the calibration error stands what a calibrated model's would be on as many
    tokens. Errors of single runs are standard errors over questions; of a sweep's arms follow means over seeds with
    95 % intervals over seeds.
    """
    from lab.analysis.finished_run import open_runs
    from lab.analysis.generation import answering, passing
    from lab.report.answers import over_seeds

    ks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= samples]
    tables: dict[str, list[dict[str, Any]]] = {"passing": [], "answering": []}
    runs = open_runs(name, scale, store)
    rounds = len(runs) * (2 + len({*temperatures}))
    with counting("temperatures, their oracle, and choices", rounds) as count:
        for run in runs:
            found = passing(run, examples, samples, ks, tuple(dict.fromkeys(temperatures)))
            for _, of_one in groupby(found, itemgetter("temperature")):
                tables["passing"] += of_one
                count()
            tables["answering"] += answering(run, examples)
            count()
    document = {**_about("generation", name, scale, runs, examples), **tables}
    summary = over_seeds(document)
    if as_json:
        rounded = {table: _rounded(rows) for table, rows in tables.items()}
        of_arms = {table: _rounded(rows) for table, rows in summary.items()}
        print_json({**document, **rounded, "over_seeds": of_arms})
        return
    for run in runs:
        mine = _of(run, tables)
        click.echo(f"\n{run.directory.path}, step {run.steps[-1]}")
        _table(
            "pass@k; errors are standard errors over questions", mine["passing"],
            ("slice", "k", "temperature", "questions", "samples", "pass_at_k", "error"),
        )  # fmt: skip
        _table(
            "giving an answer, choosing one, and confidence on scored tokens", mine["answering"],
            (
                "slice", "generative_accuracy", "generative_error", "choice_accuracy", "choice_error", "choice_chance",
                "confidence", "accuracy", "calibration_error", "calibrated_error",
            ),
        )  # fmt: skip
    if len(runs) > 1:
        spread = ("mean", "low", "high", "seeds")
        best = [row for row in summary["passing"] if row["temperature"] == "oracle"]
        _table("over seeds: pass@k at the best temperature for each k", best, ("arm", "slice", "k", *spread))
        _table("over seeds: giving, choosing, confidence", summary["answering"], ("arm", "slice", "measure", *spread))


def _models(runs: "list[FinishedRun]", every: bool) -> int:
    """Return the number of models that are analysed: those of all steps that a run has kept, or the last one."""
    return sum(len(run.steps) if every else 1 for run in runs)


def _of(run: "FinishedRun", tables: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of one run."""
    identity = run.experiment.identity
    return {table: [row for row in rows if row["identity"] == identity] for table, rows in tables.items()}


def _about(analysis: str, name: str, scale: str, runs: "list[FinishedRun]", examples: int) -> dict[str, Any]:
    """Return the provenance of a document."""
    from lab.experiments import provenance

    return {
        "analysis": analysis,
        "of": name,
        "scale": scale,
        "examples": examples,
        **provenance.here(),
        "runs": [
            {
                **run.about,
                "arm": run.arm,
                "label": run.experiment.label,
                "task": run.experiment.task.name,
                "steps": run.steps,
            }
            for run in runs
        ],
    }


def _rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose numbers have six digits: more says nothing, and tables are committed."""
    return [{k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def _proved(holds: bool) -> str:
    return "proved" if holds else "DOES NOT HOLD"


def _table(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Rows for people; nothing where there are none."""
    from rich import box
    from rich.table import Table

    if not rows:
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.replace("_", "\n"), justify="left" if column == "kind" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    print_table(table)


def _cell(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float) and math.isnan(value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
