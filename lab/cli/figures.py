"""`lab figures`: pictures from stored results."""

from pathlib import Path

import click

from lab.cli.console import as_json, print_json, store_option


@click.command()
@click.argument("names", nargs=-1)
@click.option("--sweep", help="The sweep file to draw.  [default: the figure's own]")
@click.option("--scale", default="cpu", show_default=True, help="The sweep's scale.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/figures"),
    show_default=True,
    help="Folder for NAME.png and NAME.svg.",
)
@store_option
@as_json
def figures(names: tuple[str, ...], sweep: str | None, scale: str, output: Path, store: Path, as_json: bool) -> None:
    """Draw the figures NAMES, or all of them, from stored results.

    A figure is a script under figures/. Results are looked for in the store and among the committed results/; a missing
    one is an error that names the command that fills it.
    """
    from lab.report import figures as report

    written = [path for name in names or report.names() for path in report.draw(name, sweep, scale, store, output)]
    if as_json:
        print_json([str(path) for path in written])
    else:
        for path in written:
            click.echo(path)
