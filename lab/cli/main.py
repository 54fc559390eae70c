"""The `lab` command."""

import click

from lab import __version__
from lab.cli import bench, data, figures, models, sweep, train
from lab.cli.console import fail
from lab.errors import BadInput, Failure


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="lab")
def cli() -> None:
    """When and why does predicting n future tokens at once beat predicting one?

    Begin with `lab sweep run sweeps/demo.yaml --workers 2`, or look at what a model sees:
    `lab data show datasets/polynomials.yaml`.

    Exit status: 0 done, 1 ran and failed, 2 bad input.
    """


for command in (data.data, models.models, train.train, sweep.sweep, figures.figures, bench.bench):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every error is one line, without a traceback."""
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        where = f"{error.ctx.command_path}: " if isinstance(error, click.UsageError) and error.ctx else ""
        fail(where + " ".join(error.format_message().split()), 2)
    except BadInput as error:
        fail(str(error), 2)
    except Failure as error:
        fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted; the same command goes on from the last checkpoint", 130)
