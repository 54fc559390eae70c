"""What `lab analyze generation` measured on a sweep, over seeds."""

from typing import Any

import pandas as pd

from lab.report.tables import interval
from lab.tasks.base import Row

MEASURES = {
    "passing": ("pass_at_k",),
    "answering": (
        "generative_accuracy",
        "choice_accuracy",
        "choice_chance",
        "confidence",
        "accuracy",
        "calibration_error",
    ),
}


def over_seeds(document: dict[str, Any]) -> dict[str, list[Row]]:
    """Means over the seeds of each arm with their 95 % intervals (Student's): what single rows have standard errors for
    is over questions, this over seeds.

    Args:
        document: the analysis' JSON, of a sweep: `runs`, `axes`, `passing`, `answering`.

    Returns:
        Rows by table. Each has the sweep's axes but the seed, of `passing` also `k` and `temperature`, then `measure`,
        `mean`, `low`, `high` (nan of a single seed) and `seeds`.
    """
    axes = [axis for axis in document["axes"] if axis != "seed"]
    runs = pd.DataFrame(document["runs"])[["identity", *axes]]
    found: dict[str, list[Row]] = {}
    for table, measures in MEASURES.items():
        by = [*axes, *(("k", "temperature") if table == "passing" else ())]
        rows = runs.merge(pd.DataFrame(document[table]), on="identity")
        groups = rows.groupby(by, sort=False) if by else [((), rows)]
        found[table] = [
            {
                **dict(zip(by, values, strict=True)),
                "measure": measure,
                **interval(part[measure])._asdict(),
                "seeds": len(part),
            }
            for values, part in groups
            for measure in measures
        ]
    return found
