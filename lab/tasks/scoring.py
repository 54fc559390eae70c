"""Score rows of tasks that grade one answer an example: means of measures by slice, and by seen or unseen."""

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lab.tasks.base import ScoreRow


def mean_rows(
    about: ScoreRow,
    measures: Mapping[str, NDArray[np.generic]],
    slices: Mapping[str, NDArray[np.generic]],
    seen: NDArray[np.bool_],
) -> list[ScoreRow]:
    """Rows of means over N examples: over all of them, and by the values of each slice and their combinations.

    A slice with a single value gives no rows of its own, nor do combinations without examples. Rows by `seen` ("seen",
    "unseen") stand beside "all" where some were seen.

    Args:
        about: columns that are the same in every row.
        measures: [N] each, bool or float; the columns that are averaged.
        slices: [N] each, the value of every example.
        seen: [N] True for examples whose question training had.

    Returns:
        Rows with the columns of `about`, the slices (a value, or "all"), `seen`, `count` and the measures.
    """
    everything = np.ones(len(seen), np.bool_)
    options: list[list[tuple[object, NDArray[np.bool_]]]] = []
    for values in slices.values():
        present = np.unique(values).tolist()
        apart = [(value, values == value) for value in present] if len(present) > 1 else []
        options.append([("all", everything), *apart])

    rows: list[ScoreRow] = []
    for combination in itertools.product(*options):
        chosen = np.logical_and.reduce([mask for _, mask in combination]) if combination else everything
        parts = {"all": chosen}
        if (chosen & seen).any():
            parts |= {"seen": chosen & seen, "unseen": chosen & ~seen}
        place = dict(zip(slices, (value for value, _ in combination), strict=True))
        for familiarity, part in parts.items():
            if part.any():
                means = {name: float(values[part].mean()) for name, values in measures.items()}
                rows.append({**about, **place, "seen": familiarity, "count": int(part.sum()), **means})
    return rows
