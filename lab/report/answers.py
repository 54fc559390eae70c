"""Results of `lab analyze generation` on a sweep, over seeds."""

from typing import Any

import pandas as pd

from lab.report.page import named
from lab.report.tables import interval
from lab.tasks.base import ScoreRow

MEASURES = {
    "passing": ("pass_at_k",),
    "answering": (
        "generative_accuracy",
        "choice_accuracy",
        "choice_chance",
        "confidence",
        "accuracy",
        "calibration_error",
        "calibrated_error",
    ),
}


def over_seeds(document: dict[str, Any]) -> dict[str, list[ScoreRow]]:
    """Means over the seeds of each arm with their 95 % intervals (Student's): what single rows have standard errors for
    is over questions, this over seeds.

    Args:
        document: the analysis' JSON: `runs`, `passing`, `answering`.

    Returns:
        Rows by table. Each has `arm`, in words, `slice`, of `passing` also `k` and `temperature`, then `measure`,
        `mean`, `low`, `high` (nan of a single seed) and `seeds`.
    """
    arms = {run["identity"]: named(run["arm"]) for run in document["runs"]}
    found: dict[str, list[ScoreRow]] = {}
    for table, measures in MEASURES.items():
        by = ["arm", "slice", *(("k", "temperature") if table == "passing" else ())]
        rows = pd.DataFrame(document[table])
        rows["arm"] = rows.identity.map(arms)
        found[table] = [
            {
                **dict(zip(by, values, strict=True)),
                "measure": measure,
                **interval(part[measure])._asdict(),
                "seeds": len(part),
            }
            for values, part in rows.groupby(by, sort=False)
            for measure in measures
        ]
    return found
