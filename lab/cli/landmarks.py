"""`lab analyze landmarks`: attention to what decides an answer, and when it came about."""

from pathlib import Path
from typing import Any

import click

from lab.cli.console import as_json, counting, print_json, print_table, say, store_option
from lab.cli.sweep import scale_option


@click.command()
@click.argument("name", metavar="RUN|SWEEP")
@scale_option
@click.option(
    "--examples", type=click.IntRange(min=10), default=500, show_default=True, help="Test examples to measure on."
)
@store_option
@as_json
def landmarks(name: str, scale: str, examples: int, store: Path, as_json: bool) -> None:
    """Attention to what decides the answer, by layer; what each prediction head teaches each layer; what is needed.

    Of path-star graphs: from the sign, which predicts the first step of the path, and from the goal, to the goal, to
    its edge and to its predecessor, from which that step is known. Attention is the mean of the layer's attention head
    that pays most; gradient is the norm of the gradient of a prediction head's mean loss in the layer's parameters; cut
    is the accuracy of the deciding token where the layer cannot look there. With --json there is a row for every
    attention head and for every step of which weights were kept (execution.snapshots), and the accuracy without each.
    """
    from lab.analysis.finished_run import open_runs
    from lab.analysis.landmarks import analyse, turns
    from lab.experiments import provenance

    runs = open_runs(name, scale, store)
    say(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {turns(runs)} models")
    with counting("models", turns(runs)) as listen:
        told = analyse(runs, examples, listen)
    if as_json:
        print_json(
            {"analysis": "landmarks", "of": name, "scale": scale, "examples": examples, **provenance.here(), **told}
        )
        return
    for run in told["runs"]:
        _print_run(
            run, {kind: [row for row in rows if row["identity"] == run["identity"]] for kind, rows in told.items()}
        )


def _print_run(run: dict[str, Any], told: dict[str, list[dict[str, Any]]]) -> None:
    """Print a line for each step, and a table of the last step's layers."""
    from rich import box
    from rich.table import Table

    click.echo(f"{run['objective']}, n = {run['n']}, seed {run['seed']}, {run['label']}")
    for row in told["models"]:
        click.echo(f"step {row['step']:>7,}: accuracy of the deciding token {row['accuracy']:.3f}")
    last = run["steps"][-1]
    attention = [row for row in told["attention"] if row["step"] == last]
    gradients = [row for row in told["gradients"] if row["step"] == last]
    about = {"step", "layer", "head", "next_token_path", *run}
    names = [name for name in attention[0] if name not in about]
    heads = sorted({row["predicts"] for row in gradients})
    table = Table(title=f"step {last:,}", title_justify="left", box=box.SIMPLE_HEAD)
    shown = (name.replace(" to ", "\nto ") for name in names)
    for column in ("layer", *shown, *(f"gradient\nof head {head}" for head in heads), "least when cut"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in dict.fromkeys(row["layer"] for row in attention):
        most = [max(row[name] for row in attention if row["layer"] == layer) for name in names]
        norms = [row["norm"] for row in gradients if row["layer"] == layer]
        cut = min((row for row in told["cuts"] if row["layer"] == layer), key=lambda row: row["accuracy"], default=None)
        least = "" if cut is None else f"{cut['accuracy']:.3f}, {cut['landmark']}"
        table.add_row(layer, *(f"{value:.2f}" for value in most), *(f"{norm:.3f}" for norm in norms), least)
    print_table(table)
