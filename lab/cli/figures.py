"""`lab figures`: pictures from stored results."""

from pathlib import Path

import click

from lab.cli.console import Place, as_json, print_json, say, store_option


@click.command()
@click.argument("names", nargs=-1)
@click.option("--sweep", help="The sweep file to draw.  [default: the figure's own]")
@click.option("--scale", default="cpu", show_default=True, help="The sweep's scale.")
@click.option(
    "--output",
    type=Place(file_okay=False),
    default=Path("runs/figures"),
    show_default=True,
    help="Folder for NAME.png and NAME.svg.",
)
@store_option
@as_json
def figures(names: tuple[str, ...], sweep: str | None, scale: str, output: Path, store: Path, as_json: bool) -> None:
    """Draw the figures NAMES, or all of them, from stored results.

    A figure is a script under figures/. Results are looked for in the store and among the committed results/. One that
    is missing is an error, which names the command that fills it; of all figures, those are left out, and said to be.
    """
    from lab.errors import Missing
    from lab.report import figures as report

    for name in names:  # all of them, before anything is drawn
        report.check(name)
    written = []
    for name in names or report.names():
        try:
            written += report.draw(name, sweep, scale, store, output)
        except Missing as error:
            if names:
                raise
            say(f"{name}: left out: {error}")
    if as_json:
        print_json([str(path) for path in written])
    else:
        for path in written:
            click.echo(path)
