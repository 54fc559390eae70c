"""The `lab` command."""

import logging
import sys

import click

from lab import __version__
from lab.cli import analyze, bench, cost, data, decode, figures, models, report, study, sweep, train
from lab.cli.console import LogLines, fail, say
from lab.cli.streams import lenient
from lab.errors import BadInput, Failure, one_line


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="lab")
def cli() -> None:
    """Find out when and why predicting n future tokens at once beats predicting one.

    Begin with `lab sweep run sweeps/demo_stories.yaml --workers 2`, or look at what a model sees:
    `lab data show datasets/polynomials.yaml`.

    Exit status: 0 done, or stopped as asked; 1 ran and failed; 2 bad input; 130 interrupted.
    """


for command in (
    data.data, models.models, train.train, sweep.sweep, study.study, figures.figures, report.report,
    analyze.analyze, decode.decode, cost.cost, bench.bench,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Run the command line; every error is one line, without a traceback."""
    logging.getLogger("lab").addHandler(LogLines())
    logging.getLogger("lab").setLevel(logging.INFO)
    with lenient():
        _run()


def _run() -> None:
    try:
        cli(prog_name="lab", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        say(error.ctx.get_help() if error.ctx else "")
        sys.exit(2)
    except click.ClickException as error:
        below = error.ctx.command_path.partition(" ")[2] if isinstance(error, click.UsageError) and error.ctx else ""
        fail(f"{below}: ".removeprefix(": ") + " ".join(error.format_message().split()), 2)
    except BadInput as error:
        fail(str(error), 2)
    except Failure as error:
        fail(str(error), 1)
    except UnicodeEncodeError as error:  # a path, as bytes that are no UTF-8 or in a locale without its characters
        fail(f"'{error.object[:200]}' is not allowed: a name in characters that {error.encoding} lacks", 2)
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1)
    except ImportError as error:
        fail(f"what the lab needs cannot be imported: {one_line(error)}", 1)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted; a run goes on from its last checkpoint when the command is given again", 130)
