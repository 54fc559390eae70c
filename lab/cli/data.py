"""`lab data`: look at what a model will see."""

from typing import TYPE_CHECKING, Any

import click

from lab.cli.console import print_json
from lab.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lab.tasks.base import Examples, Split, Task

_SCAN = 200_000  # examples searched for a first fit before giving up on an unlimited split

_FEW = 40  # tokens of a vocabulary that are listed


@click.group()
def data() -> None:
    """Look at what a model will see."""


@data.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="train",
    show_default=True,
    help="Which examples.",
)
@click.option("--operations", type=int, help="Only examples with this many operations (polynomials).  [default: all]")
@click.option("--count", type=click.IntRange(min=1), help="Examples to show.  [default: 10, or as many as there are]")
@click.option(
    "--start", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Index of the first example."
)
@click.option("--json", "as_json", is_flag=True, help="Print each example as one line of JSON.")
def show(
    recipe: str,
    overrides: tuple[str, ...],
    split: "Split",
    operations: int | None,
    count: int | None,
    start: int,
    as_json: bool,
) -> None:
    """Show examples of RECIPE (a YAML file, e.g. datasets/polynomials.yaml).

    OVERRIDES change its fields, each once: task.pause=5, task.tokens=bytes, seed=3. A mapping of fields leaves the
    others as they are; one that is a value, as task.operators={neg: 1}, replaces the whole, and task.operators.neg=2
    sets one entry of it. `lab train --help` lists all fields.
    """
    from lab.experiments.experiment import load_experiment

    experiment = load_experiment(recipe, overrides)
    task = experiment.task.build()
    wanted = {} if operations is None else {"operations": operations}
    size = task.size(split)
    if size is not None and start >= size:
        raise BadInput(f"--start: {start} is not allowed: {split} has {size} examples, from 0 on")
    found = list(_found(task, split, experiment.seed, start, count, wanted))  # all, before anything is shown
    if not as_json:
        few = task.vocabulary if len(task.vocabulary) <= _FEW else (*task.vocabulary[:_FEW], "…")
        click.echo(f"{len(task.vocabulary)} tokens: {' '.join(few)}")
        click.echo(f"{split}: {size or 'unlimited'} examples of at most {task.max_length(split)} tokens")
    for index, examples, row in found:
        record = task.record(examples, row)
        if as_json:
            print_json(record)
        else:
            click.echo(f"{index:>8}  {record['text']}")


def _found(
    task: "Task", split: "Split", seed: int, start: int, count: int | None, wanted: dict[str, Any]
) -> "Iterator[tuple[int, Examples, int]]":
    """Examples whose slices are as wanted: their indices, and in which rows they are of what."""
    import numpy as np

    size = task.size(split)
    shown, first = 0, start
    met: dict[str, set[Any]] = {name: set() for name in wanted}
    while (size is None or first < size) and (shown or first < start + _SCAN):
        indices = np.arange(first, first + 4096 if size is None else min(first + 4096, size))
        first += 4096
        examples = task.examples(split, indices, seed)
        fits = np.ones(len(indices), bool)
        for name, value in wanted.items():
            if name not in examples.slices:
                raise BadInput(f"--{name}: this task has no such slice; it has: {', '.join(examples.slices)}")
            met[name].update(examples.slices[name].tolist())
            fits &= examples.slices[name] == value
        for row in np.flatnonzero(fits):
            yield int(indices[row]), examples, int(row)
            shown += 1
            if shown == (count or 10):
                return
    for name, value in wanted.items():
        if value not in met[name]:
            there = ", ".join(map(str, sorted(met[name]))) or "none"
            raise BadInput(f"--{name}: {value} does not occur in {split} from index {start} on; there are: {there}")
    if count is not None:
        raise BadInput(f"--count: {count} is not allowed: {split} has {shown} such examples from index {start} on")
