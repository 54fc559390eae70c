"""Results of a study: its trials as a table, the best of each arm, and its kept trials."""

import contextlib
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lab.config import did_you_mean
from lab.errors import BadInput, Failure, Missing
from lab.experiments.search import Search, default_url
from lab.experiments.store import own_table, read_json_lines, write_text
from lab.experiments.study import Arm, Study, words
from lab.files import locked
from lab.home import home
from lab.report.tables import Interval
from lab.tasks.base import ScoreRow


def wilson(accuracy: float, count: int) -> Interval:
    """A share of right answers among `count` independent ones, and its 95 % interval (Wilson's)."""
    z = 1.96
    middle = (accuracy + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return Interval(
        accuracy, min(accuracy, float(middle - half)), max(accuracy, float(middle + half))
    )  # but for rounding


def best(rows: list[ScoreRow], arm: Arm) -> ScoreRow | None:
    """The complete trial with the best score in an arm, of equals the first, with its interval as `low` and `high`."""
    done = [row for row in rows if row["arm"] == arm.labels and row["state"] == "complete"]
    if not done:
        return None
    first = max(done, key=lambda row: row["score"])
    return {**first, **_interval(first["score"], first["examples"])}


def _interval(score: float, examples: int) -> dict[str, float]:
    return dict(zip(("score", "low", "high"), wilson(score, examples), strict=True))


def table(study: Study, rows: list[ScoreRow]) -> pd.DataFrame:
    """The trials as a table.

    Columns: `arm` in words, `n`, `trial`, `state`, `score`, its interval `low` and `high`, whether it is its arm's
    `best`, what a pruned one `reached`, then what was tried: the arm's fields and the searched ones, None where they
    were not. Trials that failed or did not begin are left out.
    """
    found: list[dict[str, Any]] = []
    for row in rows:
        if row["state"] not in ("complete", "pruned"):
            continue
        arm = next(each for each in study.arms if each.labels == row["arm"])
        n = study.experiments(arm, row["values"])[0].objective.n
        score, reached = (math.nan if row[name] is None else row[name] for name in ("score", "reached"))
        named = {"arm": arm.name, "n": n, "trial": row["trial"], "state": row["state"], "reached": reached}
        searched = {field: row["values"].get(field) for field in study.space}
        found.append({**named, **_interval(score, row["examples"] or 1), **row["arm"], **searched})
    frame = pd.DataFrame(found)
    frame["best"] = frame.index.isin(frame[frame.state == "complete"].groupby("arm").score.idxmax())
    return frame


def trials(study: Study, store: Path, storage: str | None = None) -> tuple[list[ScoreRow], Search | None]:
    """A study's trials: those of its database, or if it has none, those kept in results/.

    Raises:
        BadInput: the database cannot be opened, or the trials are of another study of this name.
        Missing: there are none.
    """
    try:
        search = Search(study, default_url(study, store) if storage is None else storage, begin=False)
    except Failure:
        kept = None
        with contextlib.suppress(BadInput):  # the place is another study's: this one has kept nothing
            kept = kept_path(study)
        if kept and kept.exists() and not storage:
            return _read(study, kept), None
        raise Missing(
            f"{study.path}, scale {study.scale}: no trial yet; begin with: {study.command(store, storage)}"
        ) from None
    return search.rows(), search


def complete(study: Study, store: Path) -> list[ScoreRow]:
    """All of a study's trials.

    Raises:
        BadInput: as of `trials`.
        Missing: some are not finished; names the command that finishes them.
    """
    rows, _ = trials(study, store)
    missing = len(study.arms) * study.trials - sum(row["state"] not in ("running", "waiting") for row in rows)
    if missing:
        raise Missing(
            f"{study.path}, scale {study.scale}: {missing} of {len(study.arms) * study.trials} trials are missing; "
            f"fill them with: {study.command(store)}"
        )
    return rows


def kept_path(study: Study) -> Path:
    """Return the path of a study's kept trials.

    Raises:
        BadInput: that is the place of another study, of the same name.
    """
    return own_table(study.path, study.name, study.scale, home() / "results" / "studies")[0]


class KeptTrials(NamedTuple):
    """The outcome of keeping trials, by name."""

    table: Path
    rows: list[ScoreRow]
    """All that the table holds now."""
    added: list[str]
    differing: list[str]
    """Kept before with another end, which stays."""
    replaced: list[str]


def keep(study: Study, rows: Sequence[ScoreRow], replace: Collection[str] = ()) -> KeptTrials:
    """Add a study's finished trials to a table to commit: one JSON object a line, in the study's order.

    What was kept before stays as it is.

    Args:
        study: whose trials they are.
        rows: all of its trials.
        replace: names of trials whose kept end goes for that of `rows`.

    Raises:
        BadInput: the table is another study's or another search's; or of `replace` nothing is kept, or finished.
    """
    table = kept_path(study)
    table.parent.mkdir(parents=True, exist_ok=True)
    with locked(table.parent):
        before = {trial_name(row): row for row in _read(study, table)} if table.exists() else {}
        ours = {trial_name(row): row for row in rows}
        done = {name: row for name, row in ours.items() if row["state"] not in ("running", "waiting")}
        for name in before.keys() & done:
            if before[name]["values"] != done[name]["values"]:
                raise BadInput(
                    f"{table}: holds the trials of another search: in it {name} tried {words(before[name]['values'])}, "
                    f"here {words(done[name]['values'])}; move it away to keep these"
                )
        for name in replace:
            if name not in before or name not in done:
                allowed = f"should be a trial that is finished, and kept{did_you_mean(name, before.keys() & done)}"
                raise BadInput(f"--replace: '{name}' is not allowed: {allowed}")
        told = KeptTrials(table, [], [name for name in done if name not in before], [], [])
        for name in (each for each in done if each in before):
            if json.dumps(before[name]) != json.dumps(done[name]):
                (told.replaced if name in replace else told.differing).append(name)
        now = {**done, **{name: row for name, row in before.items() if name not in told.replaced}}
        order = [name for name in ours if name in now] + [name for name in before if name not in ours]
        told.rows.extend(now[name] for name in order)
        if told.added or told.replaced:
            write_text(table, "".join(json.dumps(row) + "\n" for row in told.rows))
    return told


def trial_name(row: ScoreRow) -> str:
    """A trial's name among those of its study, as `lab study run` tells it."""
    return " ".join(filter(None, (f"trial {row['trial']}", words(row["arm"]))))


def _read(study: Study, path: Path) -> list[ScoreRow]:
    arms = {json.dumps(arm.labels): arm for arm in study.arms}
    try:
        rows = read_json_lines(path)
        for row in rows:
            if row["state"] != "failed":
                experiments = study.experiments(arms[json.dumps(row["arm"])], row["values"])
                if row["identities"] != [each.identity for each in experiments]:
                    raise ValueError("another experiment")
    except (OSError, ValueError, TypeError, KeyError, BadInput):
        raise BadInput(
            f"{path}: not the trials of {study.path}, scale {study.scale}, as it is; move it away to keep them anew"
        ) from None
    return rows
