"""Training steps on random tokens, as some of `lab bench` measure them: options, shape, place, tables."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from lab.cli.console import print_table

if TYPE_CHECKING:
    from lab.bench.speed import Setting
    from lab.models.sizes import Model

ORDERS = ("joint", "sequential", "fused")  # lab.objectives.backward.Order
WORDS = ("order", "loop", "part", "operation", "")
"""Heads of columns that hold words."""


def measured_on(part: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options that say what training steps are measured on; help on heads begins with `part`."""
    options = (
        click.option("--objective", default="parallel", show_default=True, help=f"{part}The objective."),
        click.option(
            "--order", "orders", type=click.Choice(ORDERS), multiple=True, default=ORDERS,
            help=f"{part}Backward order; can be given several times.  [default: all]",
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


def setting_of(
    model: "Model", objective: str, tokens: int, context: int, device: str, ns: tuple[int, ...]
) -> "Setting":
    """Return what training steps are measured on.

    Raises:
        BadInput: there is no such objective or device, no room for the heads, or tokens make no whole rows.
    """
    import torch

    from lab.bench.speed import Setting
    from lab.errors import BadInput

    if tokens % context:
        raise BadInput(f"--tokens: {tokens} is not allowed: should be a multiple of --context, {context}")
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device: cuda is not allowed: this machine has no GPU that torch can use")
    place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    setting = Setting(model, objective, tokens, context, place, "bf16" if place.type == "cuda" else "fp32")
    for n in ns:
        setting.instantiated(n, vocabulary=1)
    return setting


def in_words(setting: "Setting") -> str:
    """Return what is measured, for a table's title."""
    shape = f"{setting.objective}, {setting.model.label}, {setting.tokens:,} tokens a step in rows of {setting.context}"
    return f"{shape}, {setting.precision} on {setting.device.type}"


def shape(setting: "Setting") -> dict[str, Any]:
    """Return what was measured, for JSON."""
    return {
        "objective": setting.objective,
        "size": setting.model.label,
        "tokens": setting.tokens,
        "context": setting.context,
        "precision": setting.precision,
    }


def where(setting: "Setting") -> dict[str, Any]:
    """Return where it was measured, and by which code, for JSON."""
    from lab.experiments import provenance

    return {
        "hardware": provenance.hardware(setting.device),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
    }


def print_rows(title: str, heads: tuple[str, ...], rows: list[list[str]]) -> None:
    """Print a table of numbers, and words in columns of `WORDS`."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for head in heads:
        table.add_column(head, justify="left" if head in WORDS else "right")
    for row in rows:
        table.add_row(*row)
    print_table(table)


def holds(held: bool) -> str:
    """Say whether a bound holds."""
    return "holds" if held else "does not hold"
