"""What came out of a study: its trials as a table, the best of each arm, and what is kept of them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lab.errors import BadInput, Failure, Missing
from lab.experiments.search import Search, default_url
from lab.experiments.store import read_json_lines, write_text
from lab.experiments.study import Arm, Study
from lab.home import home
from lab.report.tables import Interval
from lab.tasks.base import Row


def wilson(accuracy: float, count: int) -> Interval:
    """A share of right answers among `count` independent ones, and its 95 % interval (Wilson's)."""
    z = 1.96
    middle = (accuracy + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return Interval(
        accuracy, min(accuracy, float(middle - half)), max(accuracy, float(middle + half))
    )  # but for rounding


def best(rows: list[Row], arm: Arm) -> Row | None:
    """The complete trial with the best score in an arm, of equals the first, with its interval as `low` and `high`."""
    done = [row for row in rows if row["arm"] == arm.labels and row["state"] == "complete"]
    if not done:
        return None
    first = max(done, key=lambda row: row["score"])
    return {**first, **_interval(first["score"], first["examples"])}


def _interval(score: float, examples: int) -> dict[str, float]:
    return dict(zip(("score", "low", "high"), wilson(score, examples), strict=True))


def table(study: Study, rows: list[Row]) -> pd.DataFrame:
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


def trials(study: Study, store: Path, storage: str | None = None) -> tuple[list[Row], Search | None]:
    """A study's trials: those of its database, or if it has none, those kept in results/.

    Raises:
        BadInput: the database cannot be opened, or the trials are of another study of this name.
        Missing: there are none.
    """
    try:
        search = Search(study, default_url(study, store) if storage is None else storage, begin=False)
    except Failure:
        kept = kept_path(study)
        if storage or not kept.exists():
            raise Missing(
                f"{study.path}, scale {study.scale}: no trial yet; begin with: {study.command(store, storage)}"
            ) from None
        return _read(study, kept), None
    return search.rows(), search


def complete(study: Study, store: Path) -> list[Row]:
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
    """Where a study's trials are kept, and committed."""
    return home() / "results" / "studies" / f"{study.name}.{study.scale}.jsonl"


def keep(study: Study, rows: list[Row]) -> Path:
    """Write a study's finished trials as a table to commit: one JSON object a line."""
    path = kept_path(study)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows if row["state"] not in ("running", "waiting")))
    return path


def _read(study: Study, path: Path) -> list[Row]:
    arms = {json.dumps(arm.labels): arm for arm in study.arms}
    try:
        rows = read_json_lines(path)
        for row in rows:
            if row["state"] != "failed":
                experiments = study.experiments(arms[json.dumps(row["arm"])], row["values"])
                assert row["identities"] == [each.identity for each in experiments]
    except (OSError, ValueError, TypeError, KeyError, AssertionError, BadInput):
        raise BadInput(f"{path}: not the trials of {study.path}, scale {study.scale}, as it is; keep it anew") from None
    return rows
