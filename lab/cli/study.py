"""`lab study`: a search for the values that do best on validation."""

import itertools
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lab.cli.console import about, as_json, bars, cpu_option, deadline, print_json, say, store_option, time_limit_option
from lab.errors import Failure, MachineFault

if TYPE_CHECKING:
    from collections.abc import Generator

    from rich.progress import TaskID

    from lab.experiments.search import Search
    from lab.experiments.study import Study
    from lab.experiments.trials import News
    from lab.tasks.base import ScoreRow

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
@cpu_option
@store_option
@storage_option
@as_json
def run(
    path: str,
    scale: str,
    workers: int,
    time_limit: float | None,
    retry: bool,
    cpu: bool,
    store: Path,
    storage: str | None,
    as_json: bool,
) -> None:
    """Carry out every trial of STUDY that is not done.

    A trial is a run, or one for each of the study's seeds; its score is on validation, and the test set plays no part.
    A run that was done before is not redone; one that was interrupted goes on from its last checkpoint. A trial that
    falls behind is pruned, unless the study says `prune: false`; one that fails is recorded and does not stop the
    others. Several machines can work on a study if they share its database. When all are done, the best are shown, as
    `lab study show` does. Where the machine stands in the way (a full disk, workers that cannot begin) the study stops,
    and no trial is blamed.
    """
    from lab.experiments.search import Search, default_url
    from lab.experiments.study import load_study
    from lab.experiments.trials import carry_out
    from lab.experiments.workers import check_device

    end = deadline(time_limit)
    loaded = load_study(path, scale)
    if not cpu:
        first = (loaded.experiments(arm, loaded.corners()[0]) for arm in loaded.arms)
        check_device([*itertools.chain(*first)], f"{path}, scale {scale}")
    url = default_url(loaded, store) if storage is None else storage
    search = Search(loaded, url, begin=True)
    search.count_from_now()
    if retry:
        search.retry()
    total, before = len(loaded.arms) * loaded.trials, search.counts()
    done = _done(before)
    say(f"{path}, scale {scale}: {total} trials, {done} done before, {total - done} to do")
    if before["running"]:
        say(f"{before['running']} are someone else's, or were when that was killed: then they go on in half a minute")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: runs stop at a checkpoint
    lost = _watched(loaded.name, total, done, carry_out(loaded, url, store, workers, end, cpu)) if done < total else ""
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
    measure = loaded.experiments(loaded.arms[0], loaded.corners()[0])[0].task.build().metric
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
@click.option(
    "--replace", multiple=True, metavar="TRIAL",
    help="Let what is kept of this trial, as 'trial 3 objective.n=1', go for what the database has; several times for "
    "more.",
)  # fmt: skip
@store_option
@storage_option
@as_json
def keep(path: str, scale: str, replace: tuple[str, ...], store: Path, storage: str | None, as_json: bool) -> None:
    """Add the finished trials of STUDY to results/studies/, from which figures are drawn without the database.

    What is kept stays as it is: of a trial that failed and was carried out again the failure, unless --replace names
    it.
    """
    from lab.experiments.study import load_study
    from lab.report import studies

    loaded = load_study(path, scale)
    rows, search = studies.trials(loaded, store, storage)
    if search is None:
        raise Failure(f"{path}, scale {scale}: kept before, and there is no database to keep more of")
    told = studies.keep(loaded, rows, replace)
    if as_json:
        counts = {"trials": len(told.rows), "added": len(told.added)}
        print_json({"table": str(told.table), **counts, "differing": told.differing, "replaced": told.replaced})
        return
    total = len(loaded.arms) * loaded.trials
    click.echo(f"{len(told.rows)} of {total} trials in {told.table}, {len(told.added)} of them new")
    if told.replaced:
        click.echo(f"replaced: {', '.join(told.replaced)}")
    if told.differing:
        say(
            f"{len(told.differing)} ended otherwise since they were kept; what is kept stays, unless --replace names "
            f"them: {', '.join(told.differing)}"
        )


def _watched(study: str, total: int, done: int, carried_out: "Generator[News]") -> str:
    """Show how trials are carried out; returns why workers were lost, if any were."""
    lost = ""
    with closing(carried_out), bars() as shown:
        whole = shown.add_task(study, total=total, completed=done, about="trials")
        lines: dict[str, TaskID] = {}
        started, ended = time.monotonic(), 0
        try:
            for news in carried_out:
                if news.progress is not None:
                    if news.trial not in lines:
                        lines[news.trial] = shown.add_task(news.trial, total=news.progress.steps, about="")
                    shown.update(lines[news.trial], completed=news.progress.step, about=about(news.progress))
                    continue
                if news.trial in lines:
                    shown.remove_task(lines.pop(news.trial))
                lost = news.about if news.state == "lost" else lost
                seconds = time.monotonic() - started
                if news.state != "stopped":
                    line = f"{seconds / 60:5.1f} min  {news.state}  {news.trial}  {news.about}"
                    shown.console.print(line, highlight=False, markup=False, soft_wrap=True)
                if news.state in ("complete", "pruned", "failed"):
                    ended += 1
                    left = int(seconds / ended * (total - done - ended))
                    pace = f"trials · {seconds / ended:.0f} s each · {left // 60}:{left % 60:02d} left"
                    shown.update(whole, completed=done + ended, about=pace)
        except MachineFault as fault:
            return str(fault)
    return lost


def _arms(study: "Study", rows: "list[ScoreRow]", search: "Search | None", store: Path) -> Any:
    """Return the rows of arms that `show` prints."""
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
