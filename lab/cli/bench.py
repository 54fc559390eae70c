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
    """The generators, on one thread.

    Polynomials against sympy's evaluation of the same expressions, in F_7[X]/(X^5); then what preparing the batches of
    each demo takes, of a training step of its small model.
    """
    import torch

    from lab.analysis.speed import generator, preparation
    from lab.experiments.sweep import load_sweep
    from lab.tasks.polynomials import Polynomials

    torch.set_num_threads(1)
    expressions, batches = [], []
    for operations in (1, 5, 10):
        expressions.append(generator(Polynomials(), operations, count))
        ours, theirs, ratio = (expressions[-1][name] for name in ("per_second", "sympy_per_second", "ratio"))
        if not as_json:
            click.echo(f"m = {operations:>2}: {ours:>11,.0f} expressions/s, sympy {theirs:>6,.0f} /s, {ratio:,.0f} ×")
    for name in ("demo_polynomials", "demo_stories"):
        batches.append(preparation(load_sweep(f"sweeps/{name}.yaml", "cpu").cells[0].experiment, steps=20))
        task, ours, theirs, share = (
            batches[-1][name] for name in ("task", "tokens_per_second", "training_tokens_per_second", "share_of_step")
        )
        if not as_json:
            click.echo(f"{task}: prepares {ours:,.0f} tokens/s, trains {theirs:,.0f} /s: {100 * share:.2f} % of a step")
    if as_json:
        print_json({"expressions": expressions, "batches": batches})


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
