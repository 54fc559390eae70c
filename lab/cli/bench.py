"""`lab bench`: measure speed on this machine."""

import os

import click

from lab.cli.console import as_json, bars, print_json, say


@click.group()
def bench() -> None:
    """Measure speed on this machine, each part against its alternative."""


@bench.command()
@click.option("--count", type=click.IntRange(1, 2048), default=500, show_default=True, help="Expressions for sympy.")
@as_json
def data(count: int, as_json: bool) -> None:
    """The polynomial generator against sympy's evaluation of the same expressions, in F_7[X]/(X^5), on one thread."""
    from lab.analysis.speed import generator
    from lab.tasks.polynomials import Polynomials

    rows = []
    for operations in (1, 5, 10):
        rows.append(generator(Polynomials(), operations, count))
        ours, theirs, ratio = (rows[-1][name] for name in ("per_second", "sympy_per_second", "ratio"))
        if not as_json:
            click.echo(f"m = {operations:>2}: {ours:>11,.0f} /s, sympy {theirs:>6,.0f} /s, {ratio:,.0f} ×")
    if as_json:
        print_json(rows)


@bench.command()
@click.argument("overrides", nargs=-1)
@click.option("--steps", type=click.IntRange(min=1), default=10, show_default=True, help="Steps of each layout.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=os.cpu_count(), help="CPU threads.  [default: all cores]"
)
@as_json
def batches(overrides: tuple[str, ...], steps: int, threads: int, as_json: bool) -> None:
    """Packing with document masks against padding and length buckets, in useful tokens a second of training.

    On datasets/polynomials.yaml with the 1M model; OVERRIDES change any of its fields.
    """
    import torch

    from lab.analysis.speed import layouts
    from lab.experiments.experiment import load_experiment

    experiment = load_experiment("datasets/polynomials.yaml", overrides)
    torch.set_num_threads(threads)
    tokens = experiment.train.batch_tokens
    say(f"{experiment.model.label}, {tokens} tokens a step, {threads} threads, {steps} steps of each layout")
    with bars() as shown:
        bar = shown.add_task("steps", total=steps, about="")
        rows = layouts(
            experiment, (64, 128, 256, 1024), (1, 2, 4), steps, lambda step: shown.update(bar, completed=step)
        )
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['layout']:>26}: {row['tokens_per_second']:>9,.0f} tokens/s, {row['of_best']:.2f} of the best")
