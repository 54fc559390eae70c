"""`lab bench decode`: how fast runs decode."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lab.cli.console import as_json, counting, print_json, print_table, say, store_option
from lab.cli.sweep import scale_option

if TYPE_CHECKING:
    from lab.analysis.finished_run import FinishedRun


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN|SWEEP...")
@scale_option
@click.option(
    "--batch", "batches", type=click.IntRange(1, 2**16), multiple=True, default=(1, 8, 64),
    help="Rows decoded at once; can be given several times.  [default: 1, 8, 64]",
)  # fmt: skip
@click.option(
    "--count", type=click.IntRange(1), default=16, show_default=True, help="Prompts, and more to fill the last batch."
)
@click.option("--new-tokens", type=click.IntRange(2, 2**20), default=64, show_default=True, help="The most added.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Times that each is decoded.")
@click.option(
    "--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True, help="In fp32."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=os.cpu_count(), help="CPU threads.  [default: all cores]"
)
@store_option
@as_json
def decode(
    names: tuple[str, ...], scale: str, batches: tuple[int, ...], count: int, new_tokens: int, rounds: int, device: str,
    threads: int, store: Path, as_json: bool,
) -> None:  # fmt: skip
    """Measure how fast finished runs decode greedily, with k = 1 to n of their heads.

    A RUN is a run's directory, label or identity; a SWEEP a YAML file such as sweeps/decoding.yaml, whose runs must
    all be there with their weights. Prompts are test examples, as of `lab decode`, which tells more of one run. All k
    take their turns in every batch, and medians count. `of layers` is the speed-up as a share of what layers allow:
    tokens a forward times the layers of k = 1 over those of k; in a batch rows also wait for each other, by the factor
    `waiting` more than with k = 1. Characters a second compare runs with unlike tokens.

    Then plain decoding beside `generate` of transformers' Llama with its cache, in the runs' shapes, with random
    weights (pip install 'mtp-lab[peers]').
    """
    import torch

    from lab.analysis.finished_run import open_runs
    from lab.bench.decoding_speed import BOUND, beside_transformers, measure
    from lab.errors import BadInput
    from lab.experiments import provenance

    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device: cuda is not allowed: this machine has no GPU that torch can use")
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.set_num_threads(threads)
    found = [run for name in names for run in open_runs(name, scale, store)]
    runs = list({run.experiment.identity: run for run in found}.values())
    shapes = dict.fromkeys((run.experiment.model.shape, len(run.task.vocabulary)) for run in runs)
    rows, beside, sizes = [], [], tuple(dict.fromkeys(batches))
    with counting("batch sizes", (len(runs) + len(shapes)) * len(sizes)) as listen:
        for run in runs:
            of_run = measure(run, sizes, count, new_tokens, rounds, place, listen)
            rows += [{"run": _label(run), **row} for row in of_run]
        for shape, vocabulary in shapes:
            for batch in sizes:
                beside.append(beside_transformers(shape, vocabulary, batch, 64, new_tokens, rounds, place))
                listen()
    held = [row["of_layers"] for row in rows if row["batch"] == 1 and row["k"] == row["n"] > 1]
    bound = {"at_least": BOUND, "of_layers": min(held), "holds": min(held) >= BOUND} if held else None
    if as_json:
        where = {
            "hardware": provenance.hardware(place),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
        }
        asked = {"names": list(names), "scale": scale, "new_tokens": new_tokens, "rounds": rounds, "precision": "fp32"}
        print_json({**asked, **where, "rows": rows, "beside_transformers": beside, "bound": bound})
        return
    _show(rows)
    _show_beside(beside)
    if bound:
        words = "holds" if bound["holds"] else "does not hold"
        click.echo(f"bound, batch 1, all heads: {bound['of_layers']:.2f} ≥ {BOUND} of what layers allow: {words}")


def _label(run: "FinishedRun") -> str:
    """Return a run's label without its seed: its values on the axes of its sweep, else its identity."""
    from lab.report.page import named

    return named(run.arm) or run.experiment.identity


def _show(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("run", justify="right")
    for column in (
        "seed", "batch", "k", "tokens a\nforward", "tokens/s", "characters/s", "speed-up", "layers\nallow", "of layers",
        "waiting",
    ):  # fmt: skip
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["run"],
            str(row["seed"]),
            str(row["batch"]),
            str(row["k"]),
            f"{row['tokens_per_forward']:.2f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['characters_per_second']:,.0f}",
            f"{row['speed_up']:.2f}",
            f"{row['layers_allow']:.2f}",
            f"{row['of_layers']:.2f}",
            f"{row['waiting']:.2f}",
        )
    print_table(table)
    for run, words in dict.fromkeys((row["run"], row["beyond"]) for row in rows if row["beyond"]):
        say(f"{run}: {words}")
    for row in (row for row in rows if row["identical"] < 1):
        differ = f"{1 - row['identical']:.1%} of prompts differ from k = 1, as rounding at ties may have it"
        say(f"{row['run']}, seed {row['seed']}, batch {row['batch']}, k = {row['k']}: {differ}")


def _show_beside(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        shape = f"{row['layers']} layers of {row['width']}, V = {row['vocabulary']:,}, batch {row['batch']}"
        told = row["missing"] or (
            f"{row['seconds']:.3f} s, transformers' {row['peer_seconds']:.3f} s: {row['of_peer']:.2f} times as fast"
        )
        click.echo(f"{shape}, {row['prompt']} tokens read, {row['new_tokens']} made: {told}")
