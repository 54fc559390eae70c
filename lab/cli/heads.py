"""`lab analyze heads`: what attention heads do, and when they came to do it."""

from pathlib import Path
from typing import Any

import click

from lab.cli.console import as_json, counting, print_json, print_table, say, store_option
from lab.cli.sweep import scale_option

SCORES = {
    "previous_token_random": "previous\ntoken,\nrandom",
    "previous_token_task": "previous\ntoken,\ntask",
    "previous_token_needed": "previous\ntoken,\nneeded",
    "prefix_matching_random": "prefix\nmatching,\nrandom",
    "prefix_matching_task": "prefix\nmatching,\ntask",
    "copying": "copying",
}
SHOWN = 2
"""Heads shown for each score, and of those whose loss is felt most."""


@click.command()
@click.argument("name", metavar="RUN|SWEEP")
@scale_option
@click.option(
    "--examples", type=click.IntRange(min=10), default=100, show_default=True, help="Test examples to measure on."
)
@store_option
@as_json
def heads(name: str, scale: str, examples: int, store: Path, as_json: bool) -> None:
    """Attention heads: what they do, since when, and what is lost without each.

    Previous-token score: attention to the token before. Prefix-matching score: attention to what came after earlier
    occurrences of the token. Both are means over queries, on random tokens said twice and inside test examples (prefix
    matching where a scored token is predicted; previous token of all tokens, and `needed`, of those that prefix
    matching is to find). Copying score: whether a head raises the logits of what it attends to, from -1 to 1. At the
    last step each head on the next token's path is left out in turn, and what the task's measure loses is told. Runs
    that kept weights on their way (execution.snapshots) are shown at every step.
    """
    from lab.analysis.attention import analyse, turns
    from lab.analysis.finished_run import open_runs
    from lab.experiments import provenance

    runs = open_runs(name, scale, store)
    say(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {sum(len(run.steps) for run in runs)} models")
    with counting("models and heads left out", turns(runs)) as listen:
        told = analyse(runs, examples, listen)
    if as_json:
        told = {"analysis": "heads", "of": name, "scale": scale, "examples": examples, **provenance.here(), **told}
        print_json(told)
        return
    for run in told["runs"]:
        of_run = [[row for row in told[kind] if row["identity"] == run["identity"]] for kind in ("heads", "models")]
        _print_run(run, *of_run)


def _print_run(run: dict[str, Any], heads: list[dict[str, Any]], models: list[dict[str, Any]]) -> None:
    """Print the heads that stand out at the end, and a line for each step."""
    from rich import box
    from rich.table import Table

    from lab.analysis.attention import RISING

    choice, last = run["choice"], [row for row in heads if row["step"] == run["steps"][-1]]
    title = f"{run['objective']}, n = {run['n']}, seed {run['seed']}, {run['label']}"
    measures = f"{choice} {models[-1][choice]:.3f}, {models[-1]['loss']:.3f} nats a scored token"
    table = Table(title=f"{title}\n{measures}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("head", *SCORES.values(), f"lost without,\n{choice}", "lost without,\nnats"):
        table.add_column(column, justify="left" if column == "head" else "right")
    for row in _standing_out(last):
        lost = [f"{row[name]:.3f}" for name in ("lost", "lost_nats")]
        table.add_row(f"{row['layer']}, {row['head']}", *(_number(row[name]) for name in SCORES), *lost)
    print_table(table)
    if len(models) > 1:
        for model in models:
            bests = ", ".join(f"{name} {_number(model[f'best_{name}'])}" for name in RISING)
            click.echo(f"step {model['step']:>7,}: {choice} {model[choice]:.3f}; best {bests}")
        steps = (f"{name} {'never' if step is None else f'at step {step:,}'}" for name, step in run["half_way"].items())
        click.echo(f"half way up: {', '.join(steps)}\n")


def _standing_out(heads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The next-token path's heads that are among the first by a score inside the task or by what is lost."""
    path = [row for row in heads if row["next_token_path"]]
    chosen: set[tuple[str, int]] = set()
    for name in ("previous_token_needed", "prefix_matching_task", "copying", "lost", "lost_nats"):
        able = sorted((row for row in path if row[name] == row[name]), key=lambda row: -row[name])  # nan is not itself
        chosen |= {(row["layer"], row["head"]) for row in able[:SHOWN]}
    return [row for row in path if (row["layer"], row["head"]) in chosen]


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3f}"
