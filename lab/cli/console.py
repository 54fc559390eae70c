"""Options, progress and output that all commands share."""

import json
import logging
import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from lab.cli.streams import spelt
from lab.files import located
from lab.learning.progress import STOPPING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.table import Table
    from rich.text import Text

    from lab.learning.progress import Progress

QUIET = 60.0
"""Seconds between lines that tell of progress where there is no terminal."""


class Duration(click.ParamType[float]):
    """A time like 90s, 9m or 1h30m, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", value)
        if not match or not value:
            self.fail(f"'{value}' is not allowed: should be a time like 90s, 9m or 1h30m", param, ctx)
        hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(3600 * hours + 60 * minutes + seconds)


class Place(click.Path):
    """A path that can be written to, if need be after making the folders above it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(located(value), param, ctx)))
        above = next((each for each in path.parents if each.exists()), path.parent)
        if above.exists() and not above.is_dir():
            self.fail(f"'{path}' is not allowed: '{above}' is no folder", param, ctx)
        return path


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines: one document, the last line.")
store_option = click.option(
    "--store",
    type=Place(file_okay=False),
    default=Path("runs"),  # lab.experiments.sweep.STORE
    show_default=True,
    help="Folder of the run directories.",
)
time_limit_option = click.option(
    "--time-limit",
    type=Duration(),
    default=None,
    help="Stop at a checkpoint after this time, e.g. 9m; the same command goes on from there.  [default: none]",
)


cpu_option = click.option("--cpu", is_flag=True, help="Carry out on the CPU what is meant for a GPU (bf16).")


def say(text: str) -> None:
    """A line for people, on standard error: standard output is for results."""
    click.echo(text, err=True)


class LogLines(logging.Handler):
    """Shows what the code below logs."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def print_json(content: Any) -> None:
    """One JSON document on one line; numbers that are not finite are null."""
    click.echo(json.dumps(_finite(content), allow_nan=False))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def deadline(time_limit: float | None) -> float:
    """Return the time to stop at, in seconds since the epoch."""
    return time.time() + time_limit if time_limit is not None else float("inf")


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C or SIGTERM makes the function return true; a second one interrupts at once."""
    heard = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        if heard:
            raise KeyboardInterrupt
        heard = True
        say(STOPPING)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: heard
    finally:
        for number, handler in before.items():  # once heard, a late second one must not disturb the end
            signal.signal(number, signal.SIG_IGN if heard else handler)


def rich_console(**options: Any) -> "Console":
    """A console that prints text as it is: names in brackets are no styles, and what the encoding lacks is spelt before
    it is laid out.
    """
    from rich.console import Console

    class Spelt(Console):
        def render_str(self, text: str, **how: Any) -> "Text":
            return super().render_str(spelt(text, self.encoding), **how)

    return Spelt(markup=False, emoji=False, **options)


@contextmanager
def bars() -> Iterator["Bars"]:
    """Progress bars on standard error, with rate, losses by head and time left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[about]}", markup=False),
    )
    console = rich_console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        yield shown


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar for `total` things of a kind, with time left; what it gives is called after each of them.

    Without a terminal, as in a batch job's log, a line now and then.
    """
    with bars() as shown:
        started, done, bar = time.perf_counter(), 0, shown.add_task(what, total=total, about="")
        told = started

        def count() -> None:
            nonlocal done, told
            done, now = done + 1, time.perf_counter()
            left = clock((now - started) * max(0, total - done) / done)
            shown.update(bar, completed=done, about=f"{left} left")
            if shown.disable and now - told >= QUIET:
                told = now
                say(f"{what}: {done} of {total}, {left} left")

        yield count


def clock(seconds: float) -> str:
    """Minutes and seconds, as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def about(progress: "Progress") -> str:
    """Rate, losses by head and time left, for a bar."""
    if progress.step == progress.steps:
        return "evaluating"
    losses = " ".join(f"{loss:.3f}" for loss in progress.losses)
    left = clock(progress.seconds_left)
    return f"{progress.tokens_per_second:,.0f} tokens/s · loss {losses} · {left} left"


def print_table(table: "Table") -> None:
    """A table for people: rather lines that the terminal wraps than numbers without their digits."""
    from rich.measure import Measurement

    console = rich_console()
    widest = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.width = max(console.width, widest)
    console.print(table)


def fail(message: str, status: int) -> None:
    """One line on standard error, and out."""
    say(f"lab: {message}")
    sys.exit(status)
