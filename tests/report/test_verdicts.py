"""Verdicts: rules, families of claims, endpoints, and what is read off a sweep's results."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from scipy import stats

from lab.cli.main import cli
from lab.errors import BadInput
from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Primary, Sweep, load_sweep
from lab.objectives import Anticausal, Detached, NextToken, Parallel, Reweighted, Shallow
from lab.report.endpoints import taught_further, tokens_to
from lab.report.page import markdown, percent, table, trend_table
from lab.report.statistics import difference_of_shares, holm, page_trend, pairing_gain, seeds_needed, sign_flip
from lab.report.tables import Interval, interval
from lab.report.verdicts import CONTROL, Verdict, document, judge, verdict
from tests import made_up

FRESH = Primary(where={"names": "fresh"}, margin=0.1)
Finished = list[tuple[Cell, Result]]


@pytest.mark.parametrize(
    ("low", "high", "p", "says"),
    [
        (0.001, 0.2, 0.05, "reproduced"),
        (0.001, 0.01, 0.002, "reproduced"),  # small, but there
        (-0.2, -0.001, 0.03, "reversed"),
        (0.001, 0.2, 0.051, "inconclusive"),  # the interval alone is not enough
        (-0.2, -0.001, 0.12, "inconclusive"),
        (-0.001, 0.3, 0.01, "inconclusive"),  # nor is p
        (0.001, 0.09, 0.06, "no difference"),  # too small to matter, if it is there
        (-0.1, 0.1, 0.7, "no difference"),
        (-0.1, 0.101, 0.7, "inconclusive"),
        (-0.101, 0.0, 0.7, "inconclusive"),
        (0.0, 0.0, 1.0, "no difference"),
    ],
)
def test_a_verdict_needs_the_interval_and_p(low: float, high: float, p: float, says: str) -> None:
    spread = Interval((low + high) / 2, low, high)
    assert verdict(spread, p, 0.1, seeds=6) == says
    assert verdict(spread, p, 0.1, seeds=5) == "screen"
    control = {"reproduced": "above", "reversed": "below"}.get(says, says)
    assert verdict(spread, p, 0.1, seeds=6, words=CONTROL) == control
    assert verdict(spread, p, None, seeds=6) == ("inconclusive" if says == "no difference" else says)


def test_a_single_seed_is_a_screen() -> None:
    assert verdict(Interval(0.3, math.nan, math.nan), math.nan, 0.1, seeds=1) == "screen"


def test_a_sweep_without_effects_has_a_false_verdict_in_one_case_of_twenty_at_most() -> None:
    # Four arms and what they are compared with, ten seeds, scores in two heaps, all alike.
    rng, false = np.random.default_rng(0), 0
    for _ in range(500):
        scores = np.where(rng.random((5, 10)) < 0.3, 0.9, 0.4) + rng.normal(0, 0.02, (5, 10))
        differences = scores[1:] - scores[0]
        corrected = holm([sign_flip(each) for each in differences])
        said = [verdict(interval(each), p, 0.1, 10) for each, p in zip(differences, corrected, strict=True)]
        false += bool({"reproduced", "reversed"} & {*said})
    assert false / 500 < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 500)


def test_tokens_to_a_level_are_those_after_which_the_curve_stays_above() -> None:
    def reached(*scores: float) -> float:
        steps = range(1, len(scores) + 1)
        above = [score > 0.5 for score in scores]
        return tokens_to(pd.DataFrame({"step": steps, "tokens": [10 * s for s in steps], "above": above}))

    assert reached(0.1, 0.6, 0.4, 0.7, 0.9) == 40
    assert reached(0.6, 0.7) == 10
    assert math.isnan(reached(0.9, 0.5))


def test_a_sweep_is_judged_by_its_endpoint() -> None:
    sweep, finished = made_up.stories(seeds=4, further={"model": [{"layers": 2, "width": 64, "heads": 4}]})
    for cell, result in finished:
        result["seconds"] = 60.0 * cell.experiment.objective.n * (1 + cell.experiment.seed)  # others ran beside most
    rows = judge(dataclasses.replace(sweep, primary=FRESH), finished)
    assert [(row.arm["objective.n"], row.less["objective.n"], row.seeds) for row in rows] == [
        (2, 1, 4),
        (4, 1, 4),
    ]

    def scores(n: int) -> list[float]:
        return [
            score["second_token_accuracy"]
            for cell, result in finished
            for score in result["scores"]
            if cell.experiment.objective.n == n
            and {**made_up.WHOLE, "names": "fresh", "split": "test", "checkpoint": "final"}.items() <= score.items()
        ]

    one, two = np.array(scores(1)), np.array(scores(2))
    first = rows[0]
    assert (first.difference.mean, first.difference.low, first.difference.high) == pytest.approx(interval(two - one))
    assert (first.score.arm, first.score.other) == pytest.approx((two.mean(), one.mean()))
    assert (first.verdict, first.holm) == ("screen", None)  # of four seeds
    assert first.pairing_gain == pytest.approx(pairing_gain(two, one))
    assert first.deviation == pytest.approx(np.std(two - one, ddof=1))
    assert first.plan.seeds == max(6, seeds_needed(0.1, first.deviation) or 0)
    assert first.plan.seeds is not None
    assert first.plan.seeds_safe is not None
    assert first.plan.seeds_safe >= first.plan.seeds
    assert first.plan.minutes_safe == pytest.approx(3 * first.plan.seeds_safe)  # one and two a seed
    assert first.p == sign_flip(two - one)
    assert 0 <= first.past.arm <= 4
    assert json.dumps([row.to_json() for row in rows])


def test_arms_and_conditions_keep_their_names() -> None:
    sweep, finished = made_up.stories(ns=(1, 2), seeds=3, further={"model.size": ["1M", "3M"]})
    named = {"objective.n": "arm", "model.size": "condition"}
    cells = [
        (dataclasses.replace(cell, axes={named.get(axis, axis): value for axis, value in cell.axes.items()}), result)
        for cell, result in finished
    ]
    renamed = dataclasses.replace(sweep, primary=FRESH, axes=("seed", "condition", "arm"))
    rows, plain = judge(renamed, cells), judge(dataclasses.replace(sweep, primary=FRESH), finished)
    assert [row.arm for row in rows] == [{"condition": size, "arm": 2} for size in ("1M", "3M")]
    assert [row.less for row in rows] == [{"condition": size, "arm": 1} for size in ("1M", "3M")]
    assert [row.change for row in rows] == [row.change for row in plain]
    assert rows[1].change is not None


def test_tokens_to_the_level_of_the_endpoint_are_read_off_the_curves() -> None:
    sweep, finished = made_up.stories(ns=(1, 2), seeds=3)
    primary = dataclasses.replace(sweep, primary=FRESH)
    assert judge(primary, finished)[0].tokens_to.arm is None  # the level is not in these curves
    for _, result in finished:
        for row in result["curve"]:
            row["validation/class_copying"] = 0.3
            row["validation/second_token_accuracy_names_fresh"] = 0.1 * row["step"] / 500
            row["validation/class_copying_names_fresh"] = 0.65
    (compared,) = judge(primary, finished)
    assert (compared.tokens_to.arm, compared.tokens_to.other) == (1024 * 3500, 1024 * 3500)
    curve = finished[0][1]["curve"]
    del curve[0]["validation/class_copying_names_fresh"]  # a slice that was empty then
    assert judge(primary, finished)[0].tokens_to.arm == 1024 * 3500
    for row in curve[1:]:
        del row["validation/class_copying_names_fresh"]
    assert judge(primary, finished)[0].tokens_to.arm is None


def test_changes_are_against_the_first_condition() -> None:
    sweep, finished = made_up.stories(ns=(1, 2), seeds=4, further={"model.size": ["1M", "3M"]})
    one, other = judge(dataclasses.replace(sweep, primary=FRESH), finished)
    assert (one.arm["model.size"], other.arm["model.size"]) == ("1M", "3M")
    assert one.change is None
    change = interval([other.differences[seed] - one.differences[seed] for seed in range(4)])
    assert other.change == pytest.approx(change)


def test_a_screen_has_no_verdicts() -> None:
    sweep, finished = made_up.stories(seeds=8)
    screen = FRESH.model_copy(update={"screen": True})
    rows, plain = (judge(dataclasses.replace(sweep, primary=each), finished) for each in (screen, FRESH))
    assert {(row.verdict, row.holm) for row in rows} == {("screen", None)}
    assert "screen" not in {row.verdict for row in plain}
    assert rows == [dataclasses.replace(row, verdict=Verdict.SCREEN, holm=None) for row in plain]


def test_a_family_is_what_can_be_a_claim_in_its_sweep() -> None:
    sweep, finished = made_up.stories(ns=(1, 2, 3, 4), seeds=8)
    few = [(cell, result) for cell, result in finished if cell.axes["objective.n"] != 4 or cell.experiment.seed < 5]
    rows = judge(dataclasses.replace(sweep, primary=FRESH), few)
    assert [row.seeds for row in rows] == [8, 8, 5]
    assert [row.holm for row in rows] == [*holm([row.p for row in rows[:2]]), None]
    assert rows[2].verdict == "screen"


OBJECTIVES: dict[str, Any] = {
    "next": NextToken(),
    "one head": Parallel(n=1),
    "shallow": Shallow(n=2),
    "reweighted": Reweighted(n=2),
    "detached": Detached(n=2),
    "two heads": Parallel(n=2),
    "anticausal": Anticausal(n=2),
    "a hundredth": Parallel(n=2, trunk_gradient=0.01),
    "none": Parallel(n=2, trunk_gradient=0.0),
}


def test_controls_are_known_by_their_objective() -> None:
    def run(name: str, source: str | None = None) -> Any:
        return SimpleNamespace(objective=OBJECTIVES[name], source=source)

    others: Any = {name: run(name) for name in OBJECTIVES}
    taught = [name for name in OBJECTIVES if taught_further(run(name), others)]
    assert taught == ["two heads", "anticausal", "a hundredth"]
    # Finetuned to one head, what further heads taught it is what is asked about.
    assert taught_further(run("next", "two heads"), others)
    assert not taught_further(run("next", "detached"), others)
    assert not taught_further(run("next", "elsewhere"), others)


def arms(
    names: list[str], seeds: int, score: Callable[[str, int], float], tokens: Callable[[str, int], float] | None = None
) -> tuple[Sweep, Finished]:
    """A finished sweep over arms with these objectives.

    Args:
        names: keys of `OBJECTIVES`, or any others, which have two heads.
        seeds: how many.
        score: on fresh names, at the end.
        tokens: from which on validation is at 0.97; before and without it is at 0.3.
    """
    sweep, finished = made_up.stories(ns=tuple(range(1, len(names) + 1)), seeds=seeds)
    made: Finished = []
    for cell, result in finished:
        name, seed = names[cell.axes["objective.n"] - 1], cell.experiment.seed
        for row in result["scores"]:
            if {**made_up.WHOLE, "names": "fresh"}.items() <= row.items():
                row["second_token_accuracy"] = score(name, seed)
        for row in result["curve"]:
            row["validation/second_token_accuracy"] = 0.97 if tokens and row["tokens"] >= tokens(name, seed) else 0.3
        experiment: Any = SimpleNamespace(**{**vars(cell.experiment), "objective": OBJECTIVES.get(name, Parallel(n=2))})
        made.append((Cell(experiment, {"seed": seed, "arm": name}), result))
    cells = tuple(cell for cell, _ in made)
    return dataclasses.replace(sweep, axes=("seed", "arm"), cells=cells), made


def test_controls_are_above_or_below_and_claims_reproduced_or_reversed() -> None:
    lead = {"next": 0.0, "two heads": 0.2, "anticausal": -0.2, "shallow": 0.2, "detached": -0.2, "halved": 0.2}
    sweep, finished = arms([*lead], 10, lambda name, seed: 0.4 + lead[name] + 0.001 * (seed % 3) * (name != "next"))
    expected = ["reproduced", "reversed", "above", "below", "reproduced"]
    assert [row.verdict for row in judge(dataclasses.replace(sweep, primary=FRESH), finished)] == expected
    named = FRESH.model_copy(update={"controls": ("halved",)})
    rows = judge(dataclasses.replace(sweep, primary=named), finished)
    assert [row.verdict for row in rows] == [*expected[:-1], "above"]
    assert [row.claim for row in rows] == [True, True, False, False, False]

    # A dose of 0 is a float in a table of doses, and "0" in the file.
    assert Primary(margin=0.1, controls=("0",)).is_control({"dose": 0.0})
    assert not Primary(margin=0.1, controls=("0",)).is_control({"dose": 0.01})

    # Two arms with further heads: none of them stands for next-token prediction.
    sweep, finished = arms(["two heads", "anticausal", "next"], 10, lambda name, seed: lead[name] + 0.4 + seed / 1e3)
    rows = judge(dataclasses.replace(sweep, primary=FRESH), finished)
    assert [row.verdict for row in rows] == ["below", "below"]


SOLVED = FRESH.model_copy(update={"measure": "solved", "level": 0.95, "margin": 0.2})


def test_shares_of_seeds_solved_are_compared_by_pairs() -> None:
    solvers = {"next": 2, "two heads": 20, "shallow": 2, "detached": 0}
    sweep, finished = arms([*solvers], 20, lambda name, seed: 0.95 if seed < solvers[name] else 0.9499)
    rows = judge(dataclasses.replace(sweep, primary=SOLVED), finished)
    assert [(row.past.arm, row.past.other) for row in rows] == [(20, 2), (2, 2), (0, 2)]
    assert [row.difference.mean for row in rows] == pytest.approx([0.9, 0.0, -0.1])
    for row, solved in zip(rows, (20, 2, 0), strict=True):
        spread = difference_of_shares(np.arange(20) < solved, np.arange(20) < 2)
        assert (row.difference.low, row.difference.high) == pytest.approx((spread.low, spread.high))
        discordant = abs(solved - 2)
        assert row.p == pytest.approx(stats.binomtest(discordant, discordant).pvalue if discordant else 1)
        fisher = stats.fisher_exact(np.array([[solved, 20 - solved], [2, 18]]))
        assert row.fisher == pytest.approx(fisher.pvalue)
    assert (rows[0].holm or 1) < 1e-4
    assert [row.verdict for row in rows] == ["reproduced", "no difference", "inconclusive"]
    assert rows[0].plan.seeds is None

    sweep = dataclasses.replace(sweep, primary=SOLVED)
    heads, (first, *_) = table(_told(sweep, finished))
    cells = dict(zip(heads, first, strict=True))
    both = f"+90.0 ({100 * rows[0].difference.low:+.1f} to {100 * rows[0].difference.high:+.1f})"
    assert (cells["solved"], cells["difference"]) == ("20, 2", both)
    assert (cells["p"], cells["Holm"]) == ("8e-06", "2e-05")


def test_learning_sooner_is_told_by_the_budget_that_was_left() -> None:
    ends = {"next": math.inf, "two heads": 1024 * 2500, "anticausal": 1024 * 500, "shallow": math.inf}
    sweep, finished = arms(
        [*ends], 8, lambda *_: 0.6, lambda name, seed: ends[name] if seed or name != "next" else 1024 * 5000
    )
    timed = FRESH.model_copy(update={"measure": "tokens_to_level", "level": 0.95})
    rows = judge(dataclasses.replace(sweep, primary=timed), finished)
    # Of 5,000 steps the two heads leave half, the anticausal ones nine tenths, next token none, though one comes to it.
    assert [row.difference.mean for row in rows] == pytest.approx([0.5, 0.9, 0.0])
    assert [row.verdict for row in rows] == ["reproduced", "reproduced", "no difference"]
    assert [row.tokens_to.arm for row in rows] == pytest.approx([1024 * 2500, 1024 * 500, math.nan], nan_ok=True)
    assert math.isnan(rows[0].tokens_to.other or 0), "one seed of eight is no median"
    times = [np.full(8, 2500.0), np.full(8, 5000.0)]
    theirs = stats.logrank(times[0], stats.CensoredData(uncensored=times[1][:1], right=times[1][1:]))
    assert rows[0].log_rank == pytest.approx(theirs.pvalue)
    assert {row.past.arm for row in rows} == {0}  # the final score is on test

    told = _told(dataclasses.replace(sweep, primary=timed), finished)
    heads, lines = table(told)
    tokens = [dict(zip(heads, line, strict=True))["tokens"] for line in lines]
    assert tokens == ["2.56, never", "≤ 0.51, never", "never, never"]
    assert "- two heads: 0: 60.0 (2.56) `0-2`" in markdown([told])


def test_learning_is_timed_on_a_curve_of_the_endpoint_or_not_at_all() -> None:
    sweep, finished = arms(["next", "two heads"], 6, lambda *_: 0.6, lambda *_: 1024 * 2500)
    timed = Primary(where={"names": "pool"}, margin=0.1, measure="tokens_to_level", level=0.95)
    with pytest.raises(BadInput, match=r"primary\.measure: 'tokens_to_level'.*second_token_accuracy on names pool"):
        judge(dataclasses.replace(sweep, primary=timed), finished)  # the curve is of fresh names
    score = timed.model_copy(update={"measure": "score"})
    assert judge(dataclasses.replace(sweep, primary=score), finished)[0].tokens_to.arm is None


def test_a_dose_is_tested_along_its_order() -> None:
    doses = ["none", "little", "some", "all"]
    rng = np.random.default_rng(0)
    scores = {(dose, seed): 0.4 + 0.05 * k + rng.normal(0, 0.03) for k, dose in enumerate(doses) for seed in range(9)}
    sweep, finished = arms(doses, 9, lambda name, seed: scores[name, seed])
    rising = FRESH.model_copy(update={"trend": "arm"})
    told = _told(dataclasses.replace(sweep, primary=rising), finished)
    (trend,), rows = told["trends"], told["verdicts"]
    spread, p = page_trend(np.array([[scores[dose, seed] for dose in doses] for seed in range(9)]))
    assert (trend["mean"], trend["low"], trend["high"], trend["p"]) == pytest.approx((*spread, p))
    assert (trend["values"], trend["seeds"], trend["verdict"]) == (doses, 9, "rising")
    assert [*(row["holm"] for row in rows), trend["holm"]] == holm([*(row["p"] for row in rows), p])
    assert trend["means"] == pytest.approx([np.mean([scores[dose, seed] for seed in range(9)]) for dose in doses])
    assert trend_table(told)[1][0][-1] == "rising"
    assert "Trend along arm: none, little, some, all" in markdown([told])

    falling = _told(dataclasses.replace(sweep, primary=rising), [*reversed(finished)])["trends"][0]
    assert (falling["values"], falling["verdict"]) == (doses[::-1], "falling")
    few = [(cell, result) for cell, result in finished if cell.experiment.seed < 5]
    assert _told(dataclasses.replace(sweep, primary=rising), few)["trends"][0]["verdict"] == "screen"


def test_a_page_says_how_many_of_its_claims_may_be_false() -> None:
    several = [
        _told(dataclasses.replace(sweep, primary=FRESH), finished)
        for sweep, finished in (made_up.stories(seeds=8), made_up.stories(ns=(1, 2), seeds=9), made_up.stories(seeds=3))
    ]
    lines = [line.split(" | ") for line in markdown(several).splitlines() if line.startswith("| ")]
    place = lines[0].index("page")
    shown = [line[place] for line in lines if line[place] not in ("page", "---")]
    rates = stats.false_discovery_control([row["p"] for each in several[:2] for row in each["verdicts"]])
    assert shown == [*(f"{rate:.3f}" for rate in rates), "–", "–"]


def _told(sweep: Sweep, finished: Finished) -> dict[str, Any]:
    """`document` of made-up runs."""
    file: Any = SimpleNamespace(question="?", endpoint="!", scales={"cpu": SimpleNamespace(budget="none")})
    for _, result in finished:
        result |= {"commit": "c", "hardware": {"host": "h", "cpu": "x", "cores": 1, "threads": 1, "device": "cpu"}}
    return document(dataclasses.replace(sweep, file=file), finished)


def test_seeds_that_one_arm_lacks_are_left_out_and_curves_may_be_missing() -> None:
    sweep, finished = made_up.stories(ns=(1, 2), seeds=3, curve=False)
    rows = judge(dataclasses.replace(sweep, primary=FRESH), finished[1:])  # no n = 1 of the first seed
    assert [(row.seeds, row.tokens_to.arm) for row in rows] == [(2, None)]


@pytest.mark.parametrize(
    ("primary", "said"),
    [
        (None, "primary: is missing"),
        (Primary(where={"nams": "fresh"}, margin=0.1), "primary.where.nams: no slice.*did you mean 'names'"),
        (
            Primary(where={"names": "new"}, margin=0.1),
            "primary.where.names: 'new' is not allowed: not every run has it; there are: 'fresh', 'pool'",
        ),
    ],
)
def test_an_endpoint_that_cannot_be_read_is_refused(primary: Primary | None, said: str) -> None:
    sweep, finished = made_up.stories(ns=(1, 2), seeds=2)
    with pytest.raises(BadInput, match=said):
        judge(dataclasses.replace(sweep, primary=primary), finished)


def test_the_labs_own_results_are_judged() -> None:
    told = CliRunner().invoke(cli, ["report", "sweeps/polynomials_n.yaml", "--json"])
    assert told.exit_code == 0, told.output
    (document,) = json.loads(told.stdout)
    rows = document["verdicts"]
    assert [(row["arm"]["objective.n"], row["seeds"], row["verdict"]) for row in rows] == [
        (2, 5, "screen"),  # of five pairs no exact p can be 0.05
        (4, 5, "screen"),
    ]
    assert {run["seed"] for run in document["runs"]} == {0, 1, 2, 3, 4}
    mean = np.mean([run["score"] for run in document["runs"] if run["arm"]["objective.n"] == 4])
    assert mean == pytest.approx(rows[1]["score"])
    table = CliRunner().invoke(cli, ["report", "sweeps/polynomials_n.yaml"])
    assert "4 − 1" in table.output
    assert "-9.1 ± 7.1" in table.output


def test_the_page_has_every_run_and_verdict(tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.md"
    told = CliRunner().invoke(cli, ["report", "sweeps/induction.yaml", "--page", str(page), "--json"])
    assert told.exit_code == 0, told.output
    (document,) = json.loads(told.stdout)
    text = page.read_text()
    for run in document["runs"]:
        assert f"{run['seed']}: {100 * run['score']:.1f} `{run['identity']}`" in text
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| 2 − 1 | ")]
    assert [line[-1].removesuffix(" |") for line in lines] == [row["verdict"] for row in document["verdicts"]]
    assert document["commits"][0] in text


def test_ten_seeds_confirm_what_both_tests_say() -> None:
    told = CliRunner().invoke(cli, ["report", "sweeps/pilot_polynomials_seeds.yaml", "--json"])
    assert told.exit_code == 0, told.output
    (document,) = json.loads(told.stdout)
    rows = {row["arm"]["arm"]: row for row in document["verdicts"]}
    assert rows["four heads"]["verdict"] == "reversed"
    whole = rows["four heads, whole trunk"]  # above 0 by its interval and by p, but not after the others' correction
    assert whole["low"] > 0
    assert whole["p"] < 0.05 < whole["holm"]
    assert whole["verdict"] == "inconclusive"
    signs = np.sign(np.array(np.meshgrid(*[[-1, 1]] * 10)).reshape(10, -1))
    for row in rows.values():
        differences = np.array([*row["differences"].values()])
        as_far = np.abs(differences @ signs) >= abs(differences.sum()) - 1e-12
        assert row["p"] == pytest.approx(as_far.mean())


@pytest.mark.parametrize(
    ("primary", "said"),
    [
        ({"measure": "solved"}, "primary.level: missing, which measure 'solved' needs"),
        ({"measure": "solvd", "level": 0.9}, "primary.measure: \"solvd\" is not allowed.*did you mean 'solved'"),
        ({"measure": "solved", "level": 1.5}, "primary.level: 1.5 is not allowed"),
        ({"controls": ["n = 3"]}, "primary.controls: 'n = 3' is no arm; allowed: .*; did you mean 'n = [12]'"),
        ({"trend": "arms"}, "primary.trend: 'arms' is no axis of three values or more; allowed: train.lr$"),
        ({"trend": "seed"}, "primary.trend: 'seed' is no axis of three values or more"),
    ],
)
def test_an_endpoint_that_a_sweep_cannot_have_is_refused(tmp_path: Path, primary: dict[str, Any], said: str) -> None:
    arms = {"n = 1": {"objective": {"n": 1}}, "n = 2": {"objective": {"n": 2}}}
    file = {
        "question": "?", "endpoint": "!", "recipe": "datasets/polynomials.yaml",
        "baseline": {"objective": {"name": "parallel"}},
        "axes": {"seed": [0], "train.lr": [1e-3, 2e-3, 3e-3], "arm": arms},
        "primary": {"margin": 0.1, **primary}, "scales": {"cpu": {"budget": "none"}},
    }  # fmt: skip
    path = tmp_path / "it.yaml"
    path.write_text(yaml.safe_dump(file))
    with pytest.raises(BadInput, match=said):
        load_sweep(str(path), "cpu")


def test_an_interval_wider_than_what_can_be_is_not_spelt_out() -> None:
    assert percent({"mean": -0.214, "low": -2.342, "high": 1.914}, "+") == "-21.4 ± >100"
    assert percent({"mean": -0.214, "low": -1.204, "high": 0.776}, "+") == "-21.4 ± 99.0"


def test_what_is_unfinished_is_said() -> None:
    missing = CliRunner().invoke(cli, ["report", "sweeps/polynomials_n.yaml", "--scale", "paper"])
    assert missing.exit_code == 1
    assert "lab sweep run sweeps/polynomials_n.yaml --scale paper" in str(missing.exception)
