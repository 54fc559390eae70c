"""The verdict page: each sweep's question, its verdicts, and the runs behind them, as Markdown."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.errors import BadInput
from lab.experiments.store import write_text
from lab.tasks.base import ScoreRow

LEGEND = (
    "Pairs are of the arm and of what it is compared with. p: of the difference by exact sign flips over seeds (of "
    "seeds solved McNemar's test); Holm: the same after Holm's correction over the sweep's comparisons and trends, by "
    "which the verdict goes; change: against the difference under the first condition; past: seeds past the task's "
    "first level; solved: seeds at or past the stated one; tokens: the median, in millions, after which validation "
    "stayed there (≤: since the first evaluation); Fisher, log-rank: p without the pairing; pairing: seeds that "
    "unpaired arms would need, as a multiple; seeds needed: at least six, to find a difference as large as the margin "
    "in 4 of 5 cases, by the deviation and, in brackets, by its upper 80 % limit, were it the only comparison; "
    "minutes: of training them, as many as in brackets, both arms, one run after the other, each as fast as the "
    "fastest of its arm."
)
_MARK = "# Verdicts\n\nWritten by `lab report --page"
"""By which a page is known."""
PREFACE = (
    f"{_MARK} results/VERDICTS.md`; not to be edited. Scores and differences are in percent and "
    "points, ± half of a 95 % interval over seeds (Student's t; of seeds solved Newcombe's, both ends in brackets). "
    "*Reproduced*: the interval of the difference lies above 0, and its exact p after Holm's correction over the "
    "sweep is at most 0.05; *reversed*: the same below 0. Comparisons that are not of further heads against none, as "
    "controls, are *above* or *below*. *No difference*: the interval lies within the margin; else *inconclusive*. A "
    "*screen* has no verdict: it was meant as one, or has fewer than six pairs, of which no exact p can be 0.05. "
    "Where no seed of either arm is past the first level, no difference is a floor, not a finding.\n\n"
    "A sweep asks one question, so its verdicts are corrected over the sweep; they do not move when other sweeps join "
    "the page. Of a page's claims one may ask for the share that is false: column *page* is the least rate of false "
    "discoveries, over all of the page's comparisons and trends with at least six pairs, at which the claim stands "
    "(Benjamini and Hochberg 1995).\n\n"
    "To repeat a run: `lab sweep run SWEEP --scale SCALE --weights --only IDENTITY`; its whole experiment, hardware, "
    "versions and commit stand in its line of `results/*.jsonl`.\n\n"
)


def markdown(documents: list[dict[str, Any]]) -> str:
    """The page of what `lab.report.verdicts.document` says of sweeps."""
    from scipy.stats import false_discovery_control  # takes a second to import

    claims = [row for each in documents for row in (*each["verdicts"], *each["trends"]) if row["holm"] is not None]
    rates = false_discovery_control([row["p"] for row in claims]).tolist() if claims else []
    over_page = {id(row): rate for row, rate in zip(claims, rates, strict=True)}
    return PREFACE + LEGEND + "\n" + "".join(f"\n{_section(each, over_page)}" for each in documents)


def sections(path: Path) -> set[str]:
    """The titles of the sections that a page has: a sweep and its scale each; none where there is no file.

    Raises:
        BadInput: what is there is no verdict page.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError):
        text = "?"
    if text and not text.startswith(_MARK):
        raise BadInput(f"--page: '{path}' is not allowed: it is there, and is no verdict page; name another file")
    return set(re.findall("^## (.*)$", text, re.MULTILINE))


def write(path: Path, documents: list[dict[str, Any]]) -> None:
    """Write the page, over an earlier one if this one has all of its sections.

    Raises:
        BadInput: what is there is no verdict page, or has others.
    """
    lost = sorted(sections(path) - {_heading(each) for each in documents})
    if lost:
        raise BadInput(
            f"--page: '{path}' is not allowed: it has {len(lost)} sections that would be lost ({lost[0]}"
            f"{', …' if len(lost) > 1 else ''}); name another file, or move it away"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, markdown(documents))


def _heading(document: dict[str, Any]) -> str:
    return f"{document['sweep']}, scale {document['scale']}"


def title(document: dict[str, Any]) -> str:
    """Return the title of a sweep's table: its measure, in percent, and its margin."""
    primary, measure = document["primary"], document["measure"].replace("_", " ")
    where, margin = [f"{name} {value}" for name, value in primary["where"].items()], 100 * primary["margin"]
    scores = ", ".join([f"{measure} (%)", *where])
    if primary["measure"] == "score":
        return f"{scores}; margin {margin:g} points"
    level = f"{100 * primary['level']:g} %"
    if primary["measure"] == "solved":
        return f"{scores}; difference: seeds (%) at {level} or more; margin {margin:g} points"
    left = f"training tokens (%) left when validation came to stay at {level} or more"
    return f"{scores}; difference: {left}; margin {margin:g} points"


def table(document: dict[str, Any], over_page: dict[int, float] | None = None) -> tuple[list[str], list[list[str]]]:
    """The heads and lines of a sweep's comparisons, in percent and points.

    Args:
        document: `lab.report.verdicts.document`.
        over_page: the false discovery rate of each row by its id, on a page; no such column when None.
    """
    rows, primary = document["verdicts"], document["primary"]
    axes = list(rows[0]["less"]) if rows else []
    columns: dict[str, Callable[[ScoreRow], str]] = {
        "seeds": lambda row: str(row["seeds"]),
        "scores": lambda row: f"{100 * row['score']:.1f}, {100 * row['other_score']:.1f}",
        "difference": lambda row: percent(row, "+"),
        **_tests(over_page),
    }
    if any(row["change"] for row in rows):
        columns["change"] = lambda row: percent(row["change"], "+") if row["change"] else ""
    columns["past" if primary["level"] is None else "solved"] = lambda row: f"{row['past']}, {row['other_past']}"
    columns["tokens"] = lambda row: ", ".join(
        _millions(row[name], row["tokens_first"]) for name in ("tokens_to", "other_tokens_to")
    )
    if primary["measure"] == "solved":
        columns["Fisher"] = lambda row: _p(row["fisher"])
    else:
        if primary["measure"] == "tokens_to_level":
            columns["log-rank"] = lambda row: _p(row["log_rank"])
        columns |= {
            "pairing": lambda row: "–" if math.isnan(row["pairing_gain"]) else f"{row['pairing_gain']:.1f} ×",
            "seeds needed": lambda row: f"{_seeds(row['seeds_for_margin'])} ({_seeds(row['seeds_for_margin_safe'])})",
            "minutes": lambda row: _minutes(row["minutes_for_margin_safe"]),
        }
    columns["verdict"] = lambda row: row["verdict"]
    lines = [[*_arms(row), *(write(row) for write in columns.values())] for row in rows]
    return [*axes, *columns], lines


def trend_table(
    document: dict[str, Any], over_page: dict[int, float] | None = None
) -> tuple[list[str], list[list[str]]]:
    """The heads and lines of a sweep's trends; the arguments are those of `table`."""
    rows = document["trends"]
    columns: dict[str, Callable[[ScoreRow], str]] = {
        "seeds": lambda row: str(row["seeds"]),
        "means (%)": lambda row: ", ".join(f"{100 * mean:.1f}" for mean in row["means"]),
        "rank correlation": lambda row: plus_minus(row, "+", 2),
        **_tests(over_page),
        "verdict": lambda row: row["verdict"],
    }
    lines = [[*map(str, row["arm"].values()), *(write(row) for write in columns.values())] for row in rows]
    return [*(rows[0]["arm"] if rows else []), *columns], lines


def trend_title(document: dict[str, Any]) -> str:
    """The axis and the order of a sweep's trends."""
    first = document["trends"][0]
    return f"Trend along {first['axis']}: {', '.join(map(str, first['values']))} (Page's test, two-sided)"


def percent(row: ScoreRow, sign: str) -> str:
    """A mean and half of its interval, in percent; `sign` as in a format."""
    return plus_minus({name: 100 * row[name] for name in ("mean", "low", "high")}, sign, 1)


def plus_minus(row: ScoreRow, sign: str, digits: int) -> str:
    """A mean and half of its interval, or in brackets both ends of one that is not symmetric."""
    mean, low, high = row["mean"], row["low"], row["high"]
    written, half = f"{mean:{sign}.{digits}f}", high - mean
    if math.isnan(half):
        return written
    if abs(half - (mean - low)) > 10**-digits / 2:
        return f"{written} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"
    return f"{written} ± {half:.{digits}f}" if half < 100 else f"{written} ± >100"


def named(arm: ScoreRow) -> str:
    """An arm by its values on the sweep's axes: names as they are, numbers with their axis."""
    return ", ".join(
        value if isinstance(value, str) else f"{axis.split('.')[-1]} = {value}" for axis, value in arm.items()
    )


def _section(document: dict[str, Any], over_page: dict[int, float]) -> str:
    made = f"Commit {', '.join(document['commits'])}. {'; '.join(document['hardware'])}."
    text = [
        f"## {_heading(document)}", "",
        f"{document['question']} Endpoint: {document['endpoint']}", "",
        f"{title(document)}.", "",
        *_pipes(*table(document, over_page)), "",
    ]  # fmt: skip
    if document["trends"]:
        text += [f"{trend_title(document)}.", "", *_pipes(*trend_table(document, over_page)), ""]
    if document["primary"]["limits"]:
        text += [f"Not established: {document['primary']['limits']}", ""]
    text += [f"Budget: {document['budget']}. {made}", "", *_runs(document)]
    return "\n".join(text) + "\n"


def _pipes(heads: list[str], lines: list[list[str]]) -> list[str]:
    """A table's lines in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines)]


def _runs(document: dict[str, Any]) -> list[str]:
    """A line for each arm: its seeds, their scores, where it is judged when they solved the task, and identities."""
    timed = document["primary"]["measure"] == "tokens_to_level"
    arms: dict[str, list[str]] = {}
    for run in document["runs"]:
        told = f"{100 * run['score']:.1f}" + (f" ({_millions(run['tokens_to'], None)})" if timed else "")
        arms.setdefault(named(run["arm"]), []).append(f"{run['seed']}: {told} `{run['identity']}`")
    return [f"- {arm}: {'; '.join(seeds)}" for arm, seeds in arms.items()]


def _arms(row: ScoreRow) -> list[str]:
    """A comparison's values on the sweep's axes; where the other arm has another, less that."""
    return [
        str(value) if value == row["less"][axis] else f"{value} − {row['less'][axis]}"
        for axis, value in row["arm"].items()
    ]


def _tests(over_page: dict[int, float] | None) -> dict[str, Callable[[ScoreRow], str]]:
    """The columns of p values."""
    columns: dict[str, Callable[[ScoreRow], str]] = {"p": lambda row: _p(row["p"]), "Holm": lambda row: _p(row["holm"])}
    if over_page is not None:
        columns["page"] = lambda row: _p(over_page.get(id(row)))
    return columns


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _millions(tokens: float | None, first: float | None) -> str:
    if tokens is None:
        return "–"
    if math.isnan(tokens):
        return "never"
    return f"{'≤ ' if first is not None and tokens <= first else ''}{tokens / 1e6:.2f}"


def _minutes(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"


def _seeds(number: int | None) -> str:
    return "–" if number is None else str(number)
