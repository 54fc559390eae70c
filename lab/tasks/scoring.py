"""Score tables of all tasks: answers grouped into slices, averaged, and summarised for learning curves.

A task returns its scored answers as columns (`Task.answers`) and declares in a `Metrics` record how they are grouped.
Answers to two sums and one product, for instance, with `Group("operator")` give the rows

    operator   seen   count   exact_match   chance
    all        all    3       0.67          0.1
    mul        all    1       0.0           0.1
    sum        all    2       1.0           0.1
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

ScoreRow = dict[str, Any]
"""One row of a score table: the values of the group columns, `count` of answers, and the means of the measures."""

Answers = dict[str, NDArray[Any]]
"""One row for each scored answer, as columns [A]: the group columns, `seen` (bool, optional), and the measures.

A measure has the shape [A], or [A, k] for k numbers of each answer.
"""


Aggregate = Callable[[NDArray[Any]], float | list[float]]
"""A function of a measure's values [A, ...] for the answers of one row."""


@dataclass(frozen=True)
class Group:
    """A column of `Answers` by whose values scores are split."""

    name: str
    values: tuple[int | str, ...] | None = None
    """The values in the order of their rows; each that occurs has a row. None: the values that occur, sorted; if there
    is only one, it has no row beside that of "all"."""
    margin: bool = True
    """True if rows with the value "all" cover the answers of all values. False for values that are different things to
    measure, as a whole answer and each of its tokens."""


@dataclass(frozen=True)
class Curve:
    """Measures that a summary takes from a score table, from rows with "all" in each column that `where` leaves out."""

    measures: tuple[str, ...]
    where: Mapping[str, int | str] = field(default_factory=dict)
    """The value of group columns and of `seen`. "unseen" also stands for "all" where nothing is seen."""
    each: str | None = None
    """A group column of which every value except "all" has an entry of its own."""
    name: str = "{measure}"
    """The key, a format string with the `measure` and the row's columns."""


@dataclass(frozen=True)
class Metrics:
    """A task's measures, and the way its answers are grouped."""

    metric: str
    """The measure that selects checkpoints and compares arms; larger is better. Also a key of the summary."""
    baselines: tuple[str, ...]
    """Measures to compare with: first one that needs no learning, then others, for instance the best possible."""
    groups: tuple[Group, ...]
    """Group columns: first those without a margin. Along the first of all scores are shown."""
    curves: tuple[Curve, ...]
    """The summary's entries, in order."""
    token_types: tuple[str, ...] = ("question", "answer")
    """Names of the types that tokens can have."""
    crossed: bool = True
    """True for rows by all combinations of the groups with margins; False for rows by one of these groups at a time."""
    aggregates: Mapping[str, Aggregate] = field(default_factory=dict)
    """By a measure's name, the function that is used instead of the mean over answers."""


def score_rows(answers: Answers, metrics: Metrics) -> list[ScoreRow]:
    """Return the score table of some answers, in JSON types.

    Answers whose question was in training (`seen`) and the others have rows of their own beside "all", where some are
    seen.
    """
    names = [group.name for group in metrics.groups]
    measures = {name: values for name, values in answers.items() if name not in (*names, "seen")}
    rows: list[ScoreRow] = []
    for place, chosen in _slices(answers, metrics):
        for seen, part in _by_seen(chosen, answers.get("seen")):
            if part.any():
                row: ScoreRow = {**place, **seen, "count": int(part.sum())}
                for name, values in measures.items():
                    aggregate: Aggregate = metrics.aggregates.get(name, _mean)
                    row[name] = aggregate(values[part])
                rows.append(row)
    return rows


def summarise(rows: list[ScoreRow], metrics: Metrics) -> dict[str, float]:
    """Return the numbers of a score table that make learning curves: each curve's mean over the rows that it covers.

    Only a group without a margin has several rows to average, where the curve does not name a value of it.
    """
    found: dict[str, float] = {}
    for curve in metrics.curves:
        covered: dict[str, list[float]] = {}
        for row in rows:
            if _covers(curve, row, rows, metrics):
                for measure in curve.measures:
                    covered.setdefault(curve.name.format(measure=measure, **row), []).append(row[measure])
        found |= {name: sum(values) / len(values) for name, values in covered.items()}
    return found


def _mean(values: NDArray[Any]) -> float | list[float]:
    mean: float | list[float] = values.mean(axis=0).tolist()
    return mean


_Slice = tuple[ScoreRow, NDArray[np.bool_]]
"""The group columns of a slice, and the mask [A] of its answers."""


def _slices(answers: Answers, metrics: Metrics) -> list[_Slice]:
    """Return the slices of a score table in the order of its rows."""
    everything = np.ones(len(answers[metrics.metric]), np.bool_)
    with_margin = [group for group in metrics.groups if group.margin]

    # Every combination of values of the groups without a margin.
    outer: list[_Slice] = [({}, everything)]
    for group in metrics.groups:
        if not group.margin:
            outer = _product(outer, _values(answers, group))

    # Within each of them: the groups with a margin, in all combinations or one at a time.
    all_columns: ScoreRow = {group.name: "all" for group in with_margin}
    inner: list[_Slice] = [(all_columns, everything)]
    for group in with_margin:
        values = _values(answers, group)
        if metrics.crossed:
            inner = _product(inner, [({}, everything), *values])
        else:
            inner += _product([(all_columns, everything)], values)
    return _product(outer, inner)


def _product(left: list[_Slice], right: list[_Slice]) -> list[_Slice]:
    """Return the intersections of slices; the columns of the right one replace those of the left one."""
    pairs = itertools.product(left, right)
    return [({**columns, **more}, mask & further) for (columns, mask), (more, further) in pairs]


def _values(answers: Answers, group: Group) -> list[_Slice]:
    """Return a slice for each value of a group that has rows of its own."""
    column = answers[group.name]
    if group.values is not None:
        masks = [(value, column == value) for value in group.values]
        return [({group.name: value}, mask) for value, mask in masks if mask.any()]
    present = np.unique(column).tolist()
    if group.margin and len(present) == 1:
        return []
    return [({group.name: value}, column == value) for value in present]


def _by_seen(
    chosen: NDArray[np.bool_], seen: NDArray[np.bool_] | None
) -> Iterator[tuple[dict[str, str], NDArray[np.bool_]]]:
    """Yield the `seen` column, if there is one, and the mask [A] of the rows that a slice has for it."""
    if seen is None:
        yield {}, chosen
        return
    yield {"seen": "all"}, chosen
    if (chosen & seen).any():
        yield {"seen": "seen"}, chosen & seen
        yield {"seen": "unseen"}, chosen & ~seen


def _covers(curve: Curve, row: ScoreRow, rows: list[ScoreRow], metrics: Metrics) -> bool:
    """Return True if `row`, one of `rows`, counts in a curve."""
    for group in metrics.groups:
        value = row[group.name]
        if group.name == curve.each:
            if value == "all":
                return False
        elif group.name in curve.where:
            if value != curve.where[group.name]:
                return False
        elif group.margin and value != "all":
            return False

    # Where nothing of a slice is seen, its row "all" is the row of the unseen.
    wanted, found = curve.where.get("seen", "all"), row.get("seen", "all")
    if wanted == "unseen" and found == "all":
        names = [group.name for group in metrics.groups]
        place = [row[name] for name in names]
        same_slice = [other for other in rows if list(map(other.get, names)) == place]
        return all(other["seen"] == "all" for other in same_slice)
    return bool(found == wanted)
