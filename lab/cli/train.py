"""`lab train`: one run."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lab.cli.console import about, as_json, bars, deadline, print_json, say, stopping, store_option, time_limit_option

if TYPE_CHECKING:
    from lab.learning.progress import Progress


class _WithFields(click.Command):
    """A command whose help lists the experiment's fields, from the configs' own descriptions."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from lab.cli.fields import fields

        for title, rows in fields():
            with formatter.section(title):
                formatter.write_dl(rows)


@click.command(cls=_WithFields)
@click.argument("recipe")
@click.argument("overrides", nargs=-1)
@store_option
@time_limit_option
@as_json
def train(recipe: str, overrides: tuple[str, ...], store: Path, time_limit: float | None, as_json: bool) -> None:
    """Train one model on RECIPE (a YAML file, e.g. datasets/polynomials.yaml, or a run's config.yaml).

    OVERRIDES set fields, in any order and each field once: `model.size=10M objective=parallel objective.n=2
    train.lr=1e-3`. Values are YAML 1.2. Naming another task or objective than the file's starts from its defaults. A
    mapping of fields, `train={lr: 1e-3, clip: 2}`, leaves the others as they are; a mapping that is a value (weights by
    name, parts of a mixture), `task.operators={neg: 1}`, replaces the whole, as lists do, and a path that goes on into
    it, `task.operators.neg=2`, sets one entry. A finished run is not redone, an interrupted one goes on from its last
    checkpoint.

    `init_from=runs/LABEL` finetunes: training begins with the final weights of that run. The model is its trunk with
    the heads of this run's objective: those that both have are kept, others dropped, or added with random weights.
    """
    import torch

    from lab.experiments.experiment import load_experiment
    from lab.experiments.store import RunDirectory, find_run

    experiment = load_experiment(recipe, overrides, lambda name: find_run(name, store).experiment)
    from lab.experiments.run import execute  # seconds of importing Lightning, which a typo should not take

    directory = RunDirectory(store, experiment)
    done_before = directory.read_result() is not None
    chosen = experiment.execution.device == "auto" and not torch.cuda.is_available()
    if experiment.precision == "bf16" and chosen and not done_before:
        say("trains in bf16 on the CPU, slowly: this machine has no GPU that torch can use")
    end = deadline(time_limit)
    say(str(directory.path))
    with stopping() as stop, bars() as shown:
        bar = shown.add_task("", total=experiment.train.steps, about="preparing")

        def listen(progress: "Progress") -> None:
            shown.update(bar, completed=progress.step, about=about(progress))

        def resumed(step: int) -> None:
            shown.console.print(f"goes on from the checkpoint of step {step}", highlight=False)

        result = execute(experiment, store, None, listen, lambda: stop() or time.time() > end, resumed)
    if result is None:
        say("stopped at a checkpoint; the same command goes on from there")
        if as_json:
            print_json({"identity": experiment.identity, "directory": str(directory.path), "state": "stopped"})
        return
    say("done before; nothing to do" if done_before else f"done in {result['seconds']:.0f} s")
    if as_json:
        print_json({"directory": str(directory.path), "state": "done", **result})
        return
    from lab.cli.scores import print_scores
    from lab.experiments.sweep import Cell
    from lab.report.tables import score_tables, tidy

    frame = tidy([(Cell(experiment, {}), result)])
    final = frame[(frame.checkpoint == "final") & (frame.split == "test")]
    print_scores(score_tables(final, ["n"], experiment.task.build()), "test, final weights")
