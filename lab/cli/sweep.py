"""`lab sweep`: many runs."""

import signal
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lab.cli.console import (
    Place,
    about,
    as_json,
    bars,
    cpu_option,
    deadline,
    print_json,
    say,
    store_option,
    time_limit_option,
)
from lab.errors import BadInput, Failure, MachineFault

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from rich.progress import TaskID

    from lab.experiments.sweep import Cell, State
    from lab.experiments.workers import Listen, Outcome
    from lab.learning.progress import Progress

sweep_argument = click.argument("path", metavar="SWEEP")
scale_option = click.option("--scale", default="cpu", show_default=True, help="Size of the sweep: cpu, gpu, paper …")


@click.group()
def sweep() -> None:
    """Run experiments that vary along axes, see how far they are, and what came out.

    A SWEEP is a YAML file such as sweeps/polynomials_n.yaml. Its runs may begin with the weights of others, which it
    names as its sources, as in sweeps/finetuning.yaml.
    """


@sweep.command()
@sweep_argument
@scale_option
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at a time.")
@time_limit_option
@click.option("--retry", is_flag=True, help="Also run again what failed before.")
@click.option("--weights", is_flag=True, help="Also run what only results/ has: it holds no weights for lab analyze.")
@click.option(
    "--only", multiple=True, metavar="IDENTITY", help="Only this run, and its source; several times for more."
)
@cpu_option
@store_option
@as_json
def run(
    path: str,
    scale: str,
    workers: int,
    time_limit: float | None,
    retry: bool,
    weights: bool,
    only: tuple[str, ...],
    cpu: bool,
    store: Path,
    as_json: bool,
) -> None:
    """Carry out every run of SWEEP that is not done.

    A finished run is not redone, whether its result lies in the store or among the committed results/; an interrupted
    one goes on from its last checkpoint; a failed one is recorded and does not stop the others. Sources run when a run
    waits for them, and before it. When all are done, their scores are shown, as `lab sweep show` does. Where the
    machine stands in the way (a full disk, workers that cannot begin) the sweep stops, and no run is blamed.
    """
    from lab.experiments.sweep import load_sweep, runs
    from lab.experiments.workers import carry_out, check_device, on_the_cpu

    end = deadline(time_limit)
    loaded = load_sweep(path, scale)
    found = _chosen(runs(loaded, store, weights), only)
    names = {cell.experiment.identity: _name(cell.axes) for cell, _ in found}
    todo = [cell.experiment for cell, state in found if not state.result and (retry or not state.reason)]
    if cpu:
        todo = list(map(on_the_cpu, todo))
    check_device(todo, f"{path}, scale {scale}")
    ends: Counter[str] = Counter(state.name for _, state in found if state.result or (state.reason and not retry))
    failed = f", {ends['failed']} failed before" if ends["failed"] else ""
    say(f"{path}, scale {scale}: {len(found)} runs, {ends['done']} done before{failed}, {len(todo)} to do")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: runs stop at a checkpoint
    fault = _watched(loaded.name, names, ends, partial(carry_out, todo, store, workers, end)) if todo else None
    if as_json:
        counts = {state: ends[state] for state in ("done", "failed", "stopped", "busy", "waiting")}
        print_json({"sweep": path, "scale": scale, "runs": len(found), **counts})
    left = len(found) - ends["done"]
    flags = [flag for flag, given in (("--weights", weights), ("--cpu", cpu)) if given]
    options = [*flags, *(word for identity in only for word in ("--only", identity))]
    again = loaded.command(store, options=[*options, *(["--retry"] if left == ends["failed"] else [])])
    say(f"{ends['done']} of {len(found)} runs done" + (f"; go on with: {again}" if left else ""))
    if not left and not only and not as_json:
        click.get_current_context().invoke(show, path=path, scale=scale, store=store)
    if fault:
        raise fault
    if ends["failed"]:
        raise Failure(f"failed: {ends['failed']} of {len(found)} runs; see: {loaded.command(store, 'status')}")


@sweep.command()
@sweep_argument
@scale_option
@store_option
@as_json
def status(path: str, scale: str, store: Path, as_json: bool) -> None:
    """Say which runs of SWEEP, sources included, are done, failed (and why), running, started or waiting."""
    from lab.experiments.store import RunDirectory
    from lab.experiments.sweep import load_sweep, runs

    loaded = load_sweep(path, scale)
    rows, names = [], []
    for cell, state in runs(loaded, store):
        names.append(_name(cell.axes))
        directory = RunDirectory(store, cell.experiment)
        step = cell.experiment.train.steps if state.result else directory.last_step()
        row = {**cell.axes, "identity": cell.experiment.identity, "state": state.name, "step": step}
        rows.append(
            {**row, "steps": cell.experiment.train.steps, "reason": state.reason, "directory": str(directory.path)}
        )
    if as_json:
        print_json({"sweep": path, "scale": scale, "runs": rows})
        return
    click.echo(f"{loaded.file.question}\nEndpoint: {loaded.file.endpoint}\nBudget: {loaded.file.scales[scale].budget}")
    for name, row in zip(names, rows, strict=True):
        click.echo(f"{row['state']:>8}  {row['step']:>6}/{row['steps']}  {name}  {row['reason'] or ''}".rstrip())
    counts = Counter(row["state"] for row in rows)
    click.echo(", ".join(f"{number} {state}" for state, number in counts.items()))


@sweep.command()
@sweep_argument
@scale_option
@click.option(
    "--split", type=click.Choice(["validation", "test"]), default="test", show_default=True, help="Which examples."
)
@click.option(
    "--checkpoint",
    type=click.Choice(["final", "best", "epoch_oracle"]),
    default="final",
    show_default=True,
    help="The last weights, or those that did best on validation, or on test itself, while training.",
)
@click.option(
    "--table", type=Place(dir_okay=False),
    help="Also write the whole tidy table as CSV to this file: a new one, or an earlier table of these runs.",
)  # fmt: skip
@store_option
@as_json
def show(path: str, scale: str, split: str, checkpoint: str, table: Path | None, store: Path, as_json: bool) -> None:
    """Show the scores of SWEEP's finished runs, not of its sources: means over seeds with their 95 % intervals."""
    from lab.experiments.sweep import load_sweep, states
    from lab.report.tables import score_tables, tidy, write_csv

    loaded = load_sweep(path, scale)
    found = list(zip(loaded.cells, states(loaded, store), strict=True))
    finished = [(cell, state.result) for cell, state in found if state.result is not None]
    if not finished:
        failed = sum(state.name == "failed" for _, state in found)
        which = f"none of {len(found)} runs is finished, {failed} failed; see: {loaded.command(store, 'status')}"
        begin = f"no run is finished yet; begin with: {loaded.command(store)}"
        raise Failure(f"{path}, scale {scale}: {which if failed else begin}")
    frame = tidy(finished)
    if checkpoint not in set(frame.checkpoint):
        raise BadInput(f"--checkpoint: {checkpoint} is not allowed: {path} runs without evaluation.{checkpoint}: true")
    if table is not None:
        write_csv(table, frame)
    task = loaded.cells[0].experiment.task.build()
    arms = [axis for axis in loaded.axes if axis != "seed"]
    chosen = frame[(frame.checkpoint == checkpoint) & (frame.split == split)]
    tables = score_tables(chosen, arms, task)
    if as_json:
        print_json({"sweep": path, "scale": scale, "finished": len(finished), "runs": len(found), "tables": tables})
        return
    from lab.cli.scores import print_scores

    print_scores(tables, f"{split}, {checkpoint.replace('_', ' ')} weights")
    if len(finished) < len(found):
        say(f"{len(finished)} of {len(found)} runs are finished; go on with: {loaded.command(store)}")


@sweep.command()
@sweep_argument
@scale_option
@click.option(
    "--replace", multiple=True, metavar="IDENTITY",
    help="Let this run's kept result go for the one in the store; several times for more.",
)  # fmt: skip
@store_option
@as_json
def keep(path: str, scale: str, replace: tuple[str, ...], store: Path, as_json: bool) -> None:
    """Add the finished results of SWEEP to results/, where they are committed and count as done from then on.

    What is kept stays as it is: of a run that was carried out again the kept result, unless --replace names it; and
    those that another sweep has kept there are not written again.
    """
    from lab.experiments.store import keep_results, own_table
    from lab.experiments.sweep import load_sweep, runs
    from lab.home import home

    loaded = load_sweep(path, scale)
    found = runs(loaded, store)
    target, alone = own_table(path, loaded.name, scale, home() / "results")
    results = [state.result for _, state in found if state.result is not None]
    if not results:
        raise Failure(f"{path}, scale {scale}: no run is finished yet; begin with: {loaded.command(store)}")
    cells = {cell.experiment.identity for cell in (*loaded.sources, *loaded.cells)}
    told = keep_results(target, results, replace, None if alone else cells)
    if as_json:
        counts = {"results": len(told.here), "elsewhere": len(told.elsewhere), "added": len(told.added)}
        print_json({"table": str(target), **counts, "differing": told.differing, "replaced": told.replaced})
        return
    shared = f", {len(told.elsewhere)} more in other tables beside it" if told.elsewhere else ""
    click.echo(f"{len(told.here)} of {len(found)} results in {target}, {len(told.added)} of them new{shared}")
    if told.replaced:
        click.echo(f"replaced: {' '.join(told.replaced)}")
    if told.differing:
        say(
            f"{len(told.differing)} were carried out again since they were kept; the kept ones stay, unless "
            f"--replace names them: {' '.join(told.differing)}"
        )


def _watched(
    sweep: str, names: dict[str, str], ends: Counter[str], carry_out: "Callable[[Listen], Generator[Outcome]]"
) -> MachineFault | None:
    """Show how runs are carried out, by their identities' `names`, and count how they end; returns what stopped it."""
    with bars() as shown:
        total = shown.add_task(sweep, total=len(names), completed=ends["done"], about="runs")
        lines: dict[str, TaskID] = {}

        def count() -> None:
            counts = {"running": len(lines), **{state: ends[state] for state in ("failed", "busy")}}
            counts["waiting"] = len(names) - ends.total() - len(lines)
            told = [f"{number} {state}" for state, number in counts.items() if number]
            shown.update(total, completed=ends["done"], about=" · ".join(["runs", *told]))

        def listen(identity: str, progress: "Progress") -> None:
            if identity not in lines:
                lines[identity] = shown.add_task(names[identity], total=progress.steps, about="")
                count()
            shown.update(lines[identity], completed=progress.step, about=about(progress))

        started = time.monotonic()
        count()
        try:
            with closing(carry_out(listen)) as outcomes:
                for outcome in outcomes:
                    ends[outcome.state] += 1
                    name = names[outcome.experiment.identity]
                    if outcome.experiment.identity in lines:
                        shown.remove_task(lines.pop(outcome.experiment.identity))
                    count()
                    if outcome.state != "stopped":
                        minutes = (time.monotonic() - started) / 60
                        line = f"{minutes:5.1f} min  {outcome.state}  {name}  {outcome.reason}"
                        shown.console.print(line, highlight=False, markup=False, soft_wrap=True)
        except MachineFault as error:
            return error
    return None


def _chosen(found: "list[tuple[Cell, State]]", only: tuple[str, ...]) -> "list[tuple[Cell, State]]":
    """The runs of these identities, and what they begin from; all, when none is named.

    Raises:
        BadInput: there is no such run.
    """
    from lab.config import did_you_mean

    if not only:
        return found
    known = [cell.experiment.identity for cell, _ in found]
    for identity in only:
        if identity not in known:
            raise BadInput(f"--only: '{identity}' is no run of the sweep{did_you_mean(identity, known)}")
    wanted = {*only, *(cell.experiment.source for cell, _ in found if cell.experiment.identity in only)}
    return [(cell, state) for cell, state in found if cell.experiment.identity in wanted]


def _name(axes: dict[str, Any]) -> str:
    return " ".join(f"{axis}={value}" for axis, value in axes.items())
