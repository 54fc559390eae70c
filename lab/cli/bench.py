"""`lab bench`: measure speed here."""

import click


@click.group()
def bench() -> None:
    """Measure speed on this machine."""
