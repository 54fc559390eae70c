"""The verdict page: each sweep's question, its verdicts, and the runs behind them, as Markdown."""

import math
from typing import Any

from lab.tasks.base import Row

LEGEND = (
    "Pairs are of the arm and of what it is compared with. p: of the difference by exact sign flips, not corrected for "
    "the number of arms; change: against the difference under the first condition; "
    "past: seeds past the task's first level; tokens: the median, in millions, after which validation stayed above it; "
    "pairing: seeds that unpaired arms would need, as a multiple; seeds needed: to find a difference as large as the "
    "margin in 4 of 5 cases, by the deviation and, in brackets, by its upper 80 % limit; minutes: of training them, as "
    "many as in brackets, both arms, one run after the other, each as fast as the fastest of its arm."
)
PREFACE = (
    "# Verdicts\n\n"
    "Written by `lab report --page results/VERDICTS.md`; not to be edited. Scores and differences are in percent and "
    "points, ± half of a 95 % interval over seeds (Student's t). *Reproduced*: the interval of the difference lies "
    "above 0; *reversed*: below 0; *no difference*: it holds 0 and lies within the margin; else *inconclusive*. A "
    "*screen* points to where more seeds are run, and has no verdicts. Where no seed of either arm is past the first "
    "level, no difference is a floor, not a finding. To repeat a run: `lab sweep run SWEEP --scale SCALE --weights "
    "--only IDENTITY`; its whole experiment, hardware, versions and commit stand in its line of `results/*.jsonl`.\n\n"
)


def markdown(documents: list[dict[str, Any]]) -> str:
    """The page of what `lab.report.verdicts.document` says of sweeps."""
    return PREFACE + LEGEND + "\n" + "".join(f"\n{_section(each)}" for each in documents)


def title(document: dict[str, Any]) -> str:
    """What a sweep's table shows."""
    where = [f"{name} {value}" for name, value in document["primary"]["where"].items()]
    measure, margin = document["measure"].replace("_", " "), 100 * document["primary"]["margin"]
    return f"{', '.join([f'{measure} (%)', *where])}; margin {margin:g} points"


def table(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The heads and lines of a sweep's verdicts, in percent and points."""
    rows = document["verdicts"]
    axes = list(rows[0]["less"]) if rows else []
    changes = any(row["change"] for row in rows)
    heads = ["seeds", "scores", "difference", "p", *(["change"] if changes else []), "past", "tokens", "pairing"]
    lines = [
        [
            *(
                str(value) if value == row["less"][axis] else f"{value} − {row['less'][axis]}"
                for axis, value in row["arm"].items()
            ),
            str(row["seeds"]),
            f"{100 * row['score']:.1f}, {100 * row['other_score']:.1f}",
            percent(row, "+"),
            "–" if math.isnan(row["p"]) else f"{row['p']:.3f}",
            *([percent(row["change"], "+") if row["change"] else ""] if changes else []),
            f"{row['past']}, {row['other_past']}",
            f"{_millions(row['tokens_to'])}, {_millions(row['other_tokens_to'])}",
            "–" if math.isnan(row["pairing_gain"]) else f"{row['pairing_gain']:.1f} ×",
            f"{_seeds(row['seeds_for_margin'])} ({_seeds(row['seeds_for_margin_safe'])})",
            _minutes(row["minutes_for_margin_safe"]),
            row["verdict"],
        ]
        for row in rows
    ]
    return [*axes, *heads, "seeds needed", "minutes", "verdict"], lines


def percent(row: Row, sign: str) -> str:
    """A mean and half of its interval, in percent; `sign` as of a format."""
    half = row["high"] - row["mean"]
    told = "" if math.isnan(half) else f" ± {100 * half:.1f}" if half < 1 else " ± >100"
    return f"{100 * row['mean']:{sign}.1f}{told}"


def named(arm: Row) -> str:
    """An arm by its values on the sweep's axes: names as they are, numbers with their axis."""
    return ", ".join(
        value if isinstance(value, str) else f"{axis.split('.')[-1]} = {value}" for axis, value in arm.items()
    )


def _section(document: dict[str, Any]) -> str:
    heads, lines = table(document)
    rows = [heads, ["---"] * len(heads), *lines]
    made = f"Commit {', '.join(document['commits'])}. {'; '.join(document['hardware'])}."
    text = [
        f"## {document['sweep']}, scale {document['scale']}", "",
        f"{document['question']} Endpoint: {document['endpoint']}", "",
        f"{title(document)}.", "",
        *(f"| {' | '.join(cells)} |" for cells in rows), "",
        f"Budget: {document['budget']}. {made}", "",
        *_runs(document["runs"]),
    ]  # fmt: skip
    return "\n".join(text) + "\n"


def _runs(runs: list[Row]) -> list[str]:
    """A line for each arm: its seeds, their scores and identities."""
    arms: dict[str, list[str]] = {}
    for run in runs:
        arms.setdefault(named(run["arm"]), []).append(f"{run['seed']}: {100 * run['score']:.1f} `{run['identity']}`")
    return [f"- {arm}: {'; '.join(seeds)}" for arm, seeds in arms.items()]


def _millions(tokens: float | None) -> str:
    return "–" if tokens is None else "never" if math.isnan(tokens) else f"{tokens / 1e6:.2f}"


def _minutes(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _seeds(number: int | None) -> str:
    return "–" if number is None else str(number)
