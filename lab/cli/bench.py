"""`lab bench`: measure speed on this machine."""

import os
import re
import time
from typing import Any

import click

from lab.cli.bench_decode import decode
from lab.cli.bench_train import train
from lab.cli.console import as_json, bars, clock, counting, print_json, say
from lab.cli.measured import holds, in_words, measured_on, print_rows, setting_of, shape, where


class ByteSize(click.ParamType[int]):
    """An amount of memory like 512MiB or 8GiB, in bytes."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(MiB|GiB)", value)
        if not match:
            self.fail(f"'{value}' is not allowed: should be an amount like 512MiB or 8GiB", param, ctx)
        return int(float(match[1]) * {"MiB": 2**20, "GiB": 2**30}[match[2]])


@click.group()
def bench() -> None:
    """Measure speed on this machine, each part against its alternative."""


bench.add_command(decode)
bench.add_command(train)


@bench.command()
@click.option("--count", type=click.IntRange(1, 2048), default=500, show_default=True, help="Expressions for sympy.")
@as_json
def data(count: int, as_json: bool) -> None:
    """The generators, on one thread.

    Polynomials against sympy's evaluation of the same expressions, in F_7[X]/(X^5); then what preparing the batches of
    each demo takes, of a training step of its small model.
    """
    import torch

    from lab.bench.speed import generator, preparation
    from lab.experiments.sweep import load_sweep
    from lab.tasks.polynomials.task import Polynomials

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
    "--threads", type=click.IntRange(1, 1024), default=os.cpu_count(), help="CPU threads.  [default: all cores]"
)
@as_json
def batches(overrides: tuple[str, ...], steps: int, threads: int, as_json: bool) -> None:
    """Packing with document masks against padding and length buckets, in useful tokens a second of training.

    On datasets/polynomials.yaml with the 1M model; OVERRIDES change fields of task, model and objective,
    train.batch_tokens and the seed, as in `lab train`.
    """
    import torch

    from lab.bench.speed import layouts
    from lab.errors import BadInput
    from lab.experiments.experiment import load_experiment, paths_set

    experiment = load_experiment("datasets/polynomials.yaml", overrides)
    measured = ("task", "model", "objective", "train.batch_tokens", "seed")
    for path in paths_set(overrides):
        if not path.startswith(measured):
            raise BadInput(f"{path}: is not allowed: what is measured has {', '.join(measured)} alone")
    torch.set_num_threads(threads)
    tokens = experiment.train.batch_tokens
    say(f"{experiment.model.label}, {tokens} tokens a step, {threads} threads, {steps} steps of each layout")
    with counting("steps", steps) as count:
        rows = layouts(experiment, (64, 128, 256, 1024), (1, 2, 4), steps, lambda step: count())
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(f"{row['layout']:>26}: {row['tokens_per_second']:>9,.0f} tokens/s, {row['of_best']:.2f} of the best")


@bench.command()
@click.option(
    "--n", "ns", type=click.IntRange(1, 64), multiple=True, default=(1, 2, 4, 8),
    help="Heads; can be given several times.  [default: 1, 2, 4, 8]",
)  # fmt: skip
@click.option(
    "--vocabulary", "vocabularies", type=click.IntRange(1, 2**24), multiple=True, default=(256, 32_000, 128_000),
    help="Tokens of the vocabulary; can be given several times.  [default: 256, 32000, 128000]",
)  # fmt: skip
@click.option("--size", default="30M", show_default=True, help="The model's size, as in `lab models`.")
@click.option("--tokens", type=click.IntRange(1, 2**24), default=4096, show_default=True, help="Positions of a step.")
@click.option("--context", type=click.IntRange(1, 2**24), default=256, show_default=True, help="Positions of a row.")
@measured_on()
@click.option(
    "--limit",
    type=ByteSize(),
    help="Memory that a cell may take, e.g. 8GiB; larger ones are estimated.  [default: all]",
)
@as_json
def memory(
    ns: tuple[int, ...], vocabularies: tuple[int, ...], size: str, tokens: int, context: int, objective: str,
    orders: tuple[str, ...], device: str, limit: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Peak memory of a training step by n, vocabulary and backward order.

    What tensors hold at most during a second step (forward, backward, AdamW), by the allocator's own count. `net` is
    less parameters and the optimiser's state: activations, logits and gradients. Cells that by their estimate do not
    fit are not run. On 2 cores all of it takes about half an hour; --vocabulary 32000 alone, ten minutes.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines, before it is loaded

    from lab.bench.memory import available, bound, cells
    from lab.config import validated
    from lab.errors import BadInput
    from lab.models.sizes import Model

    try:
        model = validated(Model, {"size": size})
    except BadInput as error:
        raise BadInput(f"--{error}") from None
    setting = setting_of(model, objective, tokens, context, device, ns)
    limit = available(setting.device) if limit is None else limit
    say(f"{in_words(setting)}; limit {limit / 2**30:.1f} GiB")
    started = time.perf_counter()
    with bars() as shown:
        bar = shown.add_task("", total=100, about="")

        def listen(cell: str, done: float) -> None:
            left = f"{clock((time.perf_counter() - started) * (1 - done) / done)} left" if done else ""
            shown.update(bar, description=cell, completed=round(100 * done), about=f"% {left}")

        rows = cells(setting, ns, vocabularies, orders, limit, listen)  # type: ignore[arg-type]
    held = bound(setting, rows)
    if as_json:
        print_json({**shape(setting), **where(setting), "limit_bytes": limit, "cells": rows, "bound": held})
        return
    lines = [
        [
            f"{row['vocabulary']:,}",
            row["order"],
            str(row["n"]),
            _mebibytes(row["peak_bytes"]),
            _mebibytes(row["net_bytes"]),
            f"{row['ratio_to_n1']:.3f}" if row["ratio_to_n1"] else "",
            _mebibytes(row["estimated_net_bytes"]),
            "" if row["ran"] else f"not run: takes about {row['estimated_peak_bytes'] / 2**30:.0f} GiB",
        ]
        for row in rows
    ]
    heads = ("vocabulary", "order", "n", "peak\nMiB", "net\nMiB", "net against\nn = 1", "estimated\nnet MiB", "")
    print_rows(in_words(setting), heads, lines)
    for order, ratio in held["ratio_to_n1"].items() if held else ():
        words = holds(bool(held and held["holds"][order]))
        click.echo(f"bound, n = 4 against 1 at V = 32,000: {order} {ratio:.3f} ≤ 1.02 {words}")


def _mebibytes(number: int | None) -> str:
    return "" if number is None else f"{number / 2**20:,.0f}"
