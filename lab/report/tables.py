"""One tidy table of results, and summaries with intervals over seeds."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # Student's t quantile; scipy.stats takes a second to import

from lab.errors import BadInput, Failure
from lab.experiments.store import Result
from lab.experiments.sweep import Cell
from lab.files import atomic_write
from lab.tasks.base import ScoreRow, Task


class Interval(NamedTuple):
    """A mean over seeds and its 95 % confidence interval (Student's t; nan bounds for a single seed)."""

    mean: float
    low: float
    high: float


def interval(values: Iterable[float]) -> Interval:
    """The mean of `values` and the 95 % interval of the mean."""
    sample = np.asarray(list(values), dtype=float)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stdtrit(len(sample) - 1, 0.975) * sample.std(ddof=1) / np.sqrt(len(sample)))
    return Interval(mean, mean - half, mean + half)


def tidy(finished: Iterable[tuple[Cell, Result]]) -> pd.DataFrame:
    """One row for each row of each result's score table.

    Columns: `n`, `seed`, `identity`, `non_embedding_parameters`, the sweep's axes by their dotted names (values that
    are lists or mappings as text), then the score table's own (`checkpoint`, `step`, `split`, slices, `count`,
    measures). A slice of which no question was seen in training stands in the result as `seen` = "all" alone; here it
    also counts as "unseen".
    """
    rows: list[ScoreRow] = []
    for cell, result in finished:
        about = _about(cell, result)
        slices = [name for name in cell.experiment.task.build().slices if name != "seen"]

        def place(score: ScoreRow, names: list[str] = slices) -> tuple[Any, ...]:
            return tuple(score[name] for name in (*names, "checkpoint", "split"))

        seen = {place(score) for score in result["scores"] if score.get("seen") == "seen"}
        for score in result["scores"]:
            rows.append({**about, "seen": "all", **score})
            if score.get("seen") == "all" and place(score) not in seen:
                rows.append({**about, **score, "seen": "unseen"})
    return pd.DataFrame(rows)


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write the tidy table, over an earlier one if this one has all of its runs and columns.

    Raises:
        BadInput: what is there is no such table, or has others.
    """
    if path.exists() and path.stat().st_size:
        try:
            before = pd.read_csv(path, dtype=str)
            lost = {*before["identity"]} - {*frame["identity"]} or {*before.columns} - {*frame.columns}
        except (ValueError, KeyError, OSError):
            raise BadInput(
                f"--table: '{path}' is not allowed: it is there, and is no table of scores; name another file"
            ) from None
        if lost:
            some = ", ".join(sorted(lost)[:3])
            raise BadInput(
                f"--table: '{path}' is not allowed: it has runs or columns that would be lost ({some}); name another "
                "file, or move it away"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as fresh:
        frame.to_csv(fresh, index=False)


def curves(finished: Iterable[tuple[Cell, Result]]) -> pd.DataFrame:
    """The learning curves: one row for each evaluation of each run while it trained.

    Columns: `n`, `seed`, `identity`, `non_embedding_parameters` and the sweep's axes as of `tidy`, then `step`,
    `tokens` trained on, and what was logged there (`validation/…`, with the epoch oracle also `test/…`).

    Raises:
        Failure: a run was kept before results had curves.
    """
    rows: list[ScoreRow] = []
    for cell, result in finished:
        if "curve" not in result:
            raise Failure(f"run {cell.experiment.identity} has no learning curve: it was kept before results had them")
        about = _about(cell, result)
        rows += [{**about, **row} for row in result["curve"]]
    return pd.DataFrame(rows)


def _about(cell: Cell, result: Result) -> ScoreRow:
    """The columns that say which run a row is of."""
    return {
        "n": cell.experiment.objective.n,
        "seed": cell.experiment.seed,
        "identity": cell.experiment.identity,
        "non_embedding_parameters": result["non_embedding_parameters"],
        **{axis: value if isinstance(value, int | float | str) else str(value) for axis, value in cell.axes.items()},
    }


def past(accuracy: "pd.Series[float]", count: "pd.Series[int]", level: "pd.Series[float]") -> "pd.Series[bool]":
    """Return True for each accuracy over `count` examples whose 95 % interval lies above its level.

    The interval is Wilson's, for examples that are independent; level is taken as exact.
    """
    low: pd.Series[float] = wilson(accuracy, count)[0]
    return low > level


def wilson(share: Any, count: Any) -> tuple[Any, Any]:
    """Wilson's (1927) 95 % interval of a share of `count`: its ends, numbers or arrays as the arguments are."""
    z = 1.96
    middle = share + z**2 / (2 * count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)


def summarise(frame: pd.DataFrame, arms: list[str], across: str, measure: str) -> pd.DataFrame:
    """Mean and interval of `measure` over seeds, for each arm and each value of `across`.

    Columns: arms, across, mean, low, high, seeds, examples (behind each seed's value). Arms stand as in the frame.
    """
    rows: list[dict[str, Any]] = []
    for key, group in _grouped(frame, arms, across):
        names = dict(zip([*arms, across], key, strict=True))
        spread = interval(group[measure])._asdict()
        rows.append({**names, **spread, "seeds": len(group), "examples": int(group["count"].min())})
    return pd.DataFrame(rows)


def _grouped(frame: pd.DataFrame, arms: list[str], across: str) -> Any:
    """The frame by arm, in the order of first appearance, and within by the values of `across`."""
    ordered = {arm: pd.Categorical(frame[arm], frame[arm].unique(), ordered=True) for arm in arms}
    return frame.assign(**ordered).groupby([*arms, across], sort=True, observed=True)


def pairs(frame: pd.DataFrame, arms: list[str]) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """The rows of each arm, and those of the arm that it is compared with.

    Where `arms` are about the objective (`arm`, what it begins from) and about something else, the other is the first
    objective with the same of that; otherwise it is the first arm.
    """
    compared = [arm for arm in arms if arm.split(".")[0] in ("arm", "objective", "init_from")] or arms
    within = [arm for arm in arms if arm not in compared]
    for _, part in frame.groupby(within, sort=False) if within else [((), frame)]:
        base, *others = (group for _, group in part.groupby(compared, sort=False)) if compared else (part,)
        yield from ((group, base) for group in others)


def paired_differences(frame: pd.DataFrame, arms: list[str], across: str, measure: str) -> pd.DataFrame:
    """Each arm less another (`pairs`), seed by seed: arms that share a seed share its data and much of its weights.

    Columns as of `summarise`, `examples` left out, and `less`: what the other arm has in place of each of `arms`. No
    rows when there is one arm, or none of its seeds is the other's.
    """
    rows: list[dict[str, Any]] = []
    for group, base in pairs(frame, arms):
        scores, than = (each.set_index([across, "seed"])[measure] for each in (group, base))
        for value, differences in (scores - than).dropna().groupby(level=across):
            about, less = ({arm: each[arm].tolist()[0] for arm in arms} for each in (group, base))
            spread = interval(differences.to_numpy(float))._asdict()
            rows.append({**about, across: value, "less": less, **spread, "seeds": len(differences)})
    return pd.DataFrame(rows)


def unsliced(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The rows that are sliced by nothing but the task's main slice and `seen`."""
    others = [name for name in task.slices if name not in (task.main_slice, "seen")]
    return frame[(frame[others] == "all").all(axis=1)]


def score_tables(frame: pd.DataFrame, arms: list[str], task: Task) -> list[dict[str, Any]]:
    """Return the tables of a sweep to print: the task's metric by arm along its main slice, and its baselines.

    One table for all examples, and where some questions were trained on, one for seen and one for unseen questions.

    Returns:
        JSON types: `seen`, `measure`, `across`, `arms` (columns), `rows` (as of `summarise`, and in `past` how many of
        the seeds are past the task's first level), `differences` (as of `paired_differences`), and `levels` (rows as of
        `summarise` by the task's own axes, `level` naming the measure).
    """
    whole = unsliced(frame, task)
    apart = (whole.seen == "seen").any()
    tables = []
    for seen in ("all", "unseen", "seen"):
        part = whole[whole.seen == seen]
        if part.empty or (seen == "unseen" and not apart):
            continue
        own = [arm for arm in arms if arm.split(".")[0] == "task"]  # a level belongs to a task, not to an arm
        levels = [
            {"level": level, **row}
            for level in task.baselines
            for row in summarise(part, own, task.main_slice, level).to_dict("records")
        ]
        beyond = part.assign(past=past(part[task.metric], part["count"], part[task.baselines[0]]))
        rows = summarise(part, arms, task.main_slice, task.metric)
        rows["past"] = _grouped(beyond, arms, task.main_slice).past.sum().to_numpy()
        tables.append(
            {
                "seen": seen,
                "measure": task.metric,
                "across": task.main_slice,
                "arms": arms,
                "rows": rows.to_dict("records"),
                "differences": paired_differences(part, arms, task.main_slice, task.metric).to_dict("records"),
                "levels": levels,
            }
        )
    return tables
