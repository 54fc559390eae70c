"""`lab bench`: measure speed on this machine."""

import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lab.cli.bench_decode import decode
from lab.cli.console import as_json, bars, clock, counting, print_json, print_table, say

if TYPE_CHECKING:
    from lab.analysis.speed import Setting

ORDERS = ("joint", "sequential", "fused")  # lab.objectives.backward.Order
PEERS = ("nanogpt", "litgpt", "transformers-gpt2", "transformers-llama", "x-transformers")  # lab.analysis.peers.PEERS


class Bytes(click.ParamType[int]):
    """An amount of memory like 512MiB or 8GiB, in bytes."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(MiB|GiB)", value)
        if not match:
            self.fail(f"'{value}' is not allowed: should be an amount like 512MiB or 8GiB", param, ctx)
        return int(float(match[1]) * {"MiB": 2**20, "GiB": 2**30}[match[2]])


def measured_on(part: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options that say what training steps are measured on; help on heads begins with `part`."""
    options = (
        click.option("--objective", default="parallel", show_default=True, help=f"{part}The objective."),
        click.option(
            "--order", "orders", type=click.Choice(ORDERS), multiple=True, default=ORDERS,
            help=f"{part}Backward order; can be given several times.  [default: all]",
        ),
        click.option(
            "--context", type=click.IntRange(1, 2**24), default=256, show_default=True, help="Positions of a row."
        ),
        click.option(
            "--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True,
            help="auto: the GPU if there is one; in bf16 there, in fp32 on a CPU.",
        ),
    )  # fmt: skip

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group()
def bench() -> None:
    """Measure speed on this machine, each part against its alternative."""


bench.add_command(decode)


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
    "--threads", type=click.IntRange(1, 1024), default=os.cpu_count(), help="CPU threads.  [default: all cores]"
)
@as_json
def batches(overrides: tuple[str, ...], steps: int, threads: int, as_json: bool) -> None:
    """Packing with document masks against padding and length buckets, in useful tokens a second of training.

    On datasets/polynomials.yaml with the 1M model; OVERRIDES change fields of task, model and objective,
    train.batch_tokens and the seed, as in `lab train`.
    """
    import torch

    from lab.analysis.speed import layouts
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
@measured_on()
@click.option(
    "--limit", type=Bytes(), help="Memory that a cell may take, e.g. 8GiB; larger ones are estimated.  [default: all]"
)
@as_json
def memory(
    ns: tuple[int, ...], vocabularies: tuple[int, ...], orders: tuple[str, ...], limit: int | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Peak memory of a training step by n, vocabulary and backward order.

    What tensors hold at most during a second step (forward, backward, AdamW), by the allocator's own count. `net` is
    less parameters and the optimiser's state: activations, logits and gradients. Cells that by their estimate do not
    fit are not run. On 2 cores all of it takes about half an hour; --vocabulary 32000 alone, ten minutes.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own lines, before it is loaded

    from lab.analysis.memory import available, bound, cells

    setting = _setting(options, ns)
    limit = available(setting.device) if limit is None else limit
    say(f"{_in_words(setting)}; limit {limit / 2**30:.1f} GiB")
    started = time.perf_counter()
    with bars() as shown:
        bar = shown.add_task("", total=100, about="")

        def listen(cell: str, done: float) -> None:
            left = f"{clock((time.perf_counter() - started) * (1 - done) / done)} left" if done else ""
            shown.update(bar, description=cell, completed=round(100 * done), about=f"% {left}")

        rows = cells(setting, ns, vocabularies, orders, limit, listen)  # type: ignore[arg-type]
    held = bound(setting, rows)
    if as_json:
        print_json({**_shape(setting), **_where(setting), "limit_bytes": limit, "cells": rows, "bound": held})
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
    _print_table(_in_words(setting), heads, lines)
    for order, ratio in held["ratio_to_n1"].items() if held else ():
        words = _holds(bool(held and held["holds"][order]))
        click.echo(f"bound, n = 4 against 1 at V = 32,000: {order} {ratio:.3f} ≤ 1.02 {words}")


@bench.command()
@click.option("--only", type=click.Choice(("loops", "heads")), help="Measure one part alone.  [default: both]")
@click.option(
    "--peer",
    "peers",
    type=click.Choice(PEERS),
    multiple=True,
    default=PEERS,
    help="Loops: whose models train beside ours; can be given several times.  [default: all]",
)
@click.option(
    "--n",
    "ns",
    type=click.IntRange(1, 64),
    multiple=True,
    default=(1, 2, 4),
    help="Heads: how many; can be given several times.  [default: 1, 2, 4]",
)
@measured_on("Heads: ")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    help="The model's size, as in `lab models`; can be given several times.  [default: loops 1M and 30M; heads 30M]",
)
@click.option("--vocabulary", type=click.IntRange(1, 2**24), help="Tokens.  [default: loops 256; heads 32000]")
@click.option(
    "--tokens", type=click.IntRange(1, 2**24), help="Positions of a step.  [default: 1024; loops of size 1M 4096]"
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of each that count.  [default: loops 20; heads 5]")
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=os.cpu_count(), help="CPU threads.  [default: all cores]"
)
@as_json
def train(
    only: str | None, peers: tuple[str, ...], ns: tuple[int, ...], sizes: tuple[str, ...], vocabulary: int | None,
    orders: tuple[str, ...], tokens: int | None, steps: int | None, threads: int, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Time of a training step, in two parts: loops and heads.

    Loops: next-token prediction in our bare loop, attention plainly causal as the peers'; with the masks of several
    documents in a row; in Lightning, as a run trains; and by other libraries' models in the same shape. One that is
    not installed is said to be (pip install 'mtp-lab[peers]').

    Heads: by n and backward order, on rows of one document. `beyond FLOPs` is the time against n = 1 in the same order,
    divided by the FLOPs against n = 1.

    Whoever is compared takes one step in turn, and medians count. Options that name no part are both's. On 2 cores the
    loops take about six minutes, the heads about five.
    """
    import torch

    def settings(default: tuple[str, ...], objective: str, ns: tuple[int, ...], of_1m: int) -> list["Setting"]:
        fields = {**options, "objective": objective}
        return [
            _setting({**fields, "size": size, "tokens": tokens or (of_1m if size == "1M" else 1024)}, ns)
            for size in sizes or default
        ]

    loops = settings(("1M", "30M"), "next_token", (1,), 4096) if only != "heads" else []
    heads = settings(("30M",), options["objective"], ns, 1024) if only != "loops" else []
    torch.set_num_threads(threads)
    show = not as_json
    told = {
        "loops": [_time_loops(each, vocabulary or 256, peers, steps or 20, show) for each in loops],
        "heads": [_time_heads(each, ns, vocabulary or 32_000, orders, steps or 5, show) for each in heads],
    }
    if as_json:
        print_json({**_where((loops + heads)[0]), **told})


def _time_loops(setting: "Setting", vocabulary: int, peers: tuple[str, ...], steps: int, show: bool) -> dict[str, Any]:
    """The first part of `train`, for one size."""
    from lab.analysis.loops import WARMUP, compare

    words = f"{_in_words(setting)}, V = {vocabulary:,}"
    say(f"loops: {words}; {steps} steps of each")
    with counting("rounds of steps", steps + WARMUP) as count:
        told = compare(setting, vocabulary, peers, steps, lambda turn: count())
    if show:
        _print_loops(words, told)
    return told


def _print_loops(words: str, told: dict[str, Any]) -> None:
    names = {"bare": "ours", "masks": "ours, documents' masks", "lightning": "ours, masks, Lightning"}
    lines = []
    for row in told["loops"]:
        name = names.get(row["loop"], row["loop"])
        if row["missing"]:
            lines.append([f"{name} (missing)", *[""] * 8])
            continue
        low, high = row["seconds_quartiles"]
        against, share = row["of_fastest_peer"], row["share_of_peak"]
        lines.append(
            [
                name,
                f"{row['non_embedding_parameters'] / 1e6:.3f}",
                f"{row['flops_per_token'] / 1e6:.2f}",
                f"{row['seconds']:.4g}",
                f"{low:.4g}–{high:.4g}",
                f"{row['tokens_per_second']:,.0f}",
                f"{against:.3f}" if against else "",
                f"{row['flops_per_second'] / 1e9:,.0f}",
                f"{100 * share:.0f} %" if share else "n/a",
            ]
        )
    heads = (
        "loop", "M inner\nparameters", "MFLOP/\ntoken", "seconds\na step", "quartiles", "tokens/s",
        "of fastest\npeer's speed", "GFLOP/s", "of\npeak",
    )  # fmt: skip
    _print_table(words, heads, lines)
    for row in told["loops"]:
        if row["missing"]:
            click.echo(f"{row['loop']}: {row['missing']}")
    peak = told["peak_flops_per_second"]
    by = "of the fastest matrix product" if told["peak_of"] == "products" else f"of {told['peak_of']}"
    click.echo(f"peak, {by}: {f'{peak / 1e9:,.0f} GFLOP/s' if peak else 'n/a'}")
    ahead, lightning = told["bounds"]["ahead_of_peers"], told["bounds"]["lightning"]
    if ahead:
        missing = f"; not measured: {', '.join(ahead['missing'])}" if ahead["missing"] else ""
        click.echo(
            f"bound, ahead of the fastest peer ({ahead['peer']}): {ahead['of_fastest_peer']:.3f} > 1 "
            f"{_holds(ahead['holds'])}{missing}"
        )
    ratio, at_most = lightning["of_bare_loop"], lightning["at_most"]
    click.echo(f"bound, Lightning against the bare loop: {ratio:.3f} ≤ {at_most} {_holds(lightning['holds'])}")


def _time_heads(
    setting: "Setting", ns: tuple[int, ...], vocabulary: int, orders: tuple[str, ...], steps: int, show: bool
) -> dict[str, Any]:
    """The second part of `train`, for one size."""
    from lab.analysis.speed import TIME_BOUND, step_times

    words = f"{_in_words(setting)}, V = {vocabulary:,}"
    say(f"heads: {words}; {steps} steps of each")
    with counting("rounds of steps", steps + 1) as count:
        rows = step_times(setting, ns, vocabulary, orders, steps, lambda turn: count())  # type: ignore[arg-type]
    holds = {row["order"]: row["beyond_flops"] <= TIME_BOUND for row in rows if row["n"] == 4 and 1 in ns}
    if show:
        lines = [
            [
                row["order"],
                str(row["n"]),
                f"{row['seconds']:.3f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['flops_per_token'] / 1e9:.4g}",
                f"{row['flops_per_second'] / 1e9:,.0f}",
                *(f"{row[name]:.3f}" if row[name] else "" for name in ("relative_to_n1", "beyond_flops")),
            ]
            for row in rows
        ]
        heads = ("order", "n", "seconds\na step", "tokens/s", "GFLOP/\ntoken", "GFLOP/s", "time against\nn = 1")
        _print_table(words, (*heads, f"beyond FLOPs\n(n = 4: ≤ {TIME_BOUND})"), lines)
    return {
        **_shape(setting),
        "vocabulary": vocabulary,
        "steps": steps,
        "cells": rows,
        "bound": {"n": 4, "at_most": TIME_BOUND, "holds": holds},
    }


def _setting(options: dict[str, Any], ns: tuple[int, ...]) -> "Setting":
    """What the options of `measured_on` say.

    Raises:
        BadInput: there is no such size, objective or device, no room for the heads, or tokens make no whole rows.
    """
    import torch

    from lab.analysis.speed import Setting
    from lab.config import validated
    from lab.errors import BadInput
    from lab.models.sizes import Model

    tokens, context, wanted = options["tokens"], options["context"], options["device"]
    if tokens % context:
        raise BadInput(f"--tokens: {tokens} is not allowed: should be a multiple of --context, {context}")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device: cuda is not allowed: this machine has no GPU that torch can use")
    device = torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
    precision = "bf16" if device.type == "cuda" else "fp32"
    try:
        model = validated(Model, {"size": options["size"]})
    except BadInput as error:
        raise BadInput(f"--{error}") from None
    setting = Setting(model, options["objective"], tokens, context, device, precision)  # type: ignore[arg-type]
    for n in ns:
        setting.instantiated(n, vocabulary=1)
    return setting


def _in_words(setting: "Setting") -> str:
    shape = f"{setting.objective}, {setting.model.label}, {setting.tokens:,} tokens a step in rows of {setting.context}"
    return f"{shape}, {setting.precision} on {setting.device.type}"


def _shape(setting: "Setting") -> dict[str, Any]:
    """What was measured."""
    return {
        "objective": setting.objective,
        "size": setting.model.label,
        "tokens": setting.tokens,
        "context": setting.context,
        "precision": setting.precision,
    }


def _where(setting: "Setting") -> dict[str, Any]:
    """Where it was measured, and by which code."""
    from lab.experiments import provenance

    return {
        "hardware": provenance.hardware(setting.device),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }


def _print_table(title: str, heads: tuple[str, ...], rows: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, justify="left" if head in ("order", "loop", "") else "right")
    for row in rows:
        table.add_row(*row)
    print_table(table)


def _mebibytes(number: int | None) -> str:
    return "" if number is None else f"{number / 2**20:,.0f}"


def _holds(held: bool) -> str:
    return "holds" if held else "does not hold"
