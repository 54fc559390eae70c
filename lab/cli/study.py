"""`lab study`: a search for the values that do best on validation."""

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lab.cli.console import about, as_json, bars, deadline, print_json, say, store_option, time_limit_option
from lab.errors import Failure

if TYPE_CHECKING:
    from rich.progress import TaskID

    from lab.experiments.search import Search
    from lab.experiments.study import Study
    from lab.tasks.base import Row

study_argument = click.argument("path", metavar="STUDY")
scale_option = click.option("--scale", default="cpu", show_default=True, help="Size of the study: cpu, gpu …")
storage_option = click.option(
    "--storage",
    metavar="URL",
    help="Database of the trials, e.g. postgresql://user@host/name, which needs mtp-lab[postgresql] installed.  "
    "[default: SQLite, STORE/studies/NAME.SCALE.db]",
)


@click.group()
def study() -> None:
    """Search for the values of some fields that do best on validation, and see which they are.

    A STUDY is a YAML file such as sweeps/study_lr.yaml.
    """


@study.command()
@study_argument
@scale_option
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Trials at a time.")
@time_limit_option
@click.option("--retry", is_flag=True, help="Also carry out again what failed before.")
@store_option
@storage_option
@as_json
def run(
    path: str,
    scale: str,
    workers: int,
    time_limit: float | None,
    retry: bool,
    store: Path,
    storage: str | None,
    as_json: bool,
) -> None:
    """Carry out every trial of STUDY that is not done.

    A trial is a run, or one for each of the study's seeds; its score is on validation, and the test set plays no part.
    A run that was done before is not redone; one that was interrupted goes on from its last checkpoint. A trial that
    falls behind is pruned, unless the study says `prune: false`; one that fails is recorded and does not stop the
    others. Several machines can work on a study if they share its database. When all are done, the best are shown, as
    `lab study show` does.
    """
    from lab.experiments.search import Search, default_url
    from lab.experiments.study import load_study
    from lab.experiments.trials import carry_out

    end = deadline(time_limit)
    loaded = load_study(path, scale)
    url = default_url(loaded, store) if storage is None else storage
    search = Search(loaded, url, begin=True)
    search.count_from_now()
    if retry:
        search.retry()
    total, lost, before = len(loaded.arms) * loaded.trials, "", search.counts()
    done = _done(before)
    say(f"{path}, scale {scale}: {total} trials, {done} done before, {total - done} to do")
    if before["running"]:
        say(f"{before['running']} are someone else's, or were when that was killed: then they go on in half a minute")
    if done < total:
        with bars() as shown:
            whole = shown.add_task(loaded.name, total=total, completed=done, about="trials")
            lines: dict[str, TaskID] = {}
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: runs stop at a checkpoint
            started, ended = time.monotonic(), 0
            for news in carry_out(loaded, url, store, workers, end):
                if news.progress is not None:
                    if news.trial not in lines:
                        lines[news.trial] = shown.add_task(news.trial, total=news.progress.steps, about="")
                    shown.update(lines[news.trial], completed=news.progress.step, about=about(news.progress))
                    continue
                if news.trial in lines:
                    shown.remove_task(lines.pop(news.trial))
                lost = news.about if news.state == "lost" else lost
                if news.state != "stopped":
                    seconds = time.monotonic() - started
                    line = f"{seconds / 60:5.1f} min  {news.state}  {news.trial}  {news.about}"
                    shown.console.print(line, highlight=False, markup=False, soft_wrap=True)
                if news.state in ("complete", "pruned", "failed"):
                    ended += 1
                    left = int(seconds / ended * (total - done - ended))
                    pace = f"trials · {seconds / ended:.0f} s each · {left // 60}:{left % 60:02d} left"
                    shown.update(whole, completed=done + ended, about=pace)
    counts = search.counts()
    left = total - _done(counts)
    if as_json:
        print_json({"study": path, "scale": scale, "trials": total, **counts})
    say(
        f"{total - left} of {total} trials done ({_counted(counts)})"
        + (f"; go on with: {loaded.command(store, storage)}" if left else "")
    )
    if not left and not as_json:
        click.get_current_context().invoke(show, path=path, scale=scale, store=store, storage=storage)
    if left and lost:
        raise Failure(f"{lost}; the same command goes on")
    if not left and counts["failed"] == total:
        see, again = (loaded.command(store, storage, *how) for how in (("show",), ("run", ["--retry"])))
        raise Failure(f"every trial failed; see: {see}; run again with: {again}")


@study.command()
@study_argument
@scale_option
@store_option
@storage_option
@as_json
def show(path: str, scale: str, store: Path, storage: str | None, as_json: bool) -> None:
    """Show the best trial of each arm of STUDY: what it tried, its score, and the command that repeats it.

    The interval is over validation examples, at 95 %, were they independent; that the best of several looks better than
    it is, it does not say. Importances are PED-ANOVA's, where trials enough are complete.
    """
    from lab.experiments.study import load_study
    from lab.report.studies import trials

    loaded = load_study(path, scale)
    rows, search = trials(loaded, store, storage)
    arms = list(_arms(loaded, rows, search, store))
    measure = loaded.experiments(loaded.arms[0], loaded.corners()[0])[0].task.build().choice
    if as_json:
        print_json({"study": path, "scale": scale, "measure": measure, "arms": arms, "trials": rows})
        return
    from lab.experiments.study import words

    click.echo(f"{loaded.file.question}\nEndpoint: {loaded.file.endpoint}\nBudget: {loaded.file.scales[scale].budget}")
    for arm in arms:
        found, importances = arm["best"], arm["importances"]
        click.echo(f"\n{words(arm['arm']) or 'all'}: {_counted(arm)}, of {loaded.trials} trials")
        if found:
            score, low, high = (f"{100 * found[name]:.1f}" for name in ("score", "low", "high"))
            click.echo(
                f"  best: {words(found['values'])}  (trial {found['trial']})\n"
                f"  {measure.replace('_', ' ')} on validation: {score} % ({low} to {high})"
            )
            if importances and len(importances) > 1:
                click.echo(f"  importance: {words(importances)}")
            click.echo(f"  {found['command']}")
        for row in rows:
            if row["arm"] == arm["arm"] and row["reason"]:
                click.echo(f"  failed: {words(row['values'])}  (trial {row['trial']}): {row['reason']}")


@study.command()
@study_argument
@scale_option
@store_option
@storage_option
@as_json
def keep(path: str, scale: str, store: Path, storage: str | None, as_json: bool) -> None:
    """Copy the finished trials of STUDY into results/studies/, from which figures are drawn without the database."""
    from lab.experiments.study import load_study
    from lab.report import studies

    loaded = load_study(path, scale)
    rows, search = studies.trials(loaded, store, storage)
    if search is None:
        raise Failure(f"{path}, scale {scale}: kept before, and there is no database to keep more of")
    table = studies.keep(loaded, rows)
    done = sum(row["state"] not in ("running", "waiting") for row in rows)
    if as_json:
        print_json({"table": str(table), "trials": done})
    else:
        click.echo(f"{done} of {len(loaded.arms) * loaded.trials} trials in {table}")


def _arms(study: "Study", rows: "list[Row]", search: "Search | None", store: Path) -> Any:
    """What `show` says of each arm."""
    from lab.experiments.search import STATES
    from lab.report.studies import best

    importances = search.importances() if search else [None] * len(study.arms)
    for arm, importance in zip(study.arms, importances, strict=True):
        states = [row["state"] for row in rows if row["arm"] == arm.labels]
        found = best(rows, arm)
        if found:
            found["command"] = study.repeat(arm, found["values"], store)
        counts = {state: states.count(state) for state in STATES}
        yield {"arm": arm.labels, **counts, "best": found, "importances": importance}


def _done(counts: dict[str, int]) -> int:
    return counts["complete"] + counts["pruned"] + counts["failed"]


def _counted(counts: dict[str, Any]) -> str:
    from lab.experiments.search import STATES

    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
