"""Results of `lab analyze weights` on a sweep of choices, in the terms of Section 5.1."""

from typing import Any

import numpy as np
import pandas as pd

from lab.report.tables import interval
from lab.tasks.base import ScoreRow

MEASURES = ("loss", "arriving", "gradient")


def against_one(table: dict[str, Any]) -> pd.DataFrame:
    """Choices that decide k tokens against those that decide one, and that against the same with n = 1.

    The latter since stations differ in more than what they count: long branches are easier to look back at. Each seed
    has a ratio of its own; those that are 0 or infinite, as gradients that are lost in noise give, are left out.

    Args:
        table: the JSON document of a sweep over parallel objectives, n = 1 among them.

    Returns:
        Columns `measure`, `n`, `span`, `step`, the geometric mean over seeds `mean` with its 95 % interval `low` and
        `high`, the `seeds` behind it, and `complete`, whether those are all.
    """
    rows = pd.DataFrame(table["kinds"]).merge(pd.DataFrame(table["runs"])[["identity", "objective", "n", "seed"]])
    rows = rows[rows.kind.str.endswith("choice") & (rows.objective == "parallel")]
    found: list[ScoreRow] = []
    for measure in MEASURES:
        values: dict[Any, float] = rows.set_index(["n", "span", "seed", "step"])[measure].to_dict()
        ratios: dict[tuple[Any, ...], list[float]] = {}
        for (n, span, seed, step), value in values.items():
            if n == 1 or span == 1:
                continue
            below = values[n, 1, seed, step] * values[1, span, seed, step]
            ratio = value * values[1, 1, seed, step] / below if below else np.nan
            ratios.setdefault((n, span, step), []).append(ratio)
        for (n, span, step), each in sorted(ratios.items()):
            sound = [ratio for ratio in each if np.isfinite(ratio) and ratio > 0]
            if sound:
                logs = interval(np.log(sound))
                spread = {name: float(np.exp(value)) for name, value in logs._asdict().items()}
                about = {"measure": measure, "n": n, "span": span, "step": step}
                found.append({**about, **spread, "seeds": len(sound), "complete": len(sound) == len(each)})
    return pd.DataFrame(found)
