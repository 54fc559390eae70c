"""Verdicts: rules, power, and what is read off a sweep's results."""

import dataclasses
import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from lab.cli.main import cli
from lab.errors import BadInput
from lab.experiments.sweep import Primary
from lab.report.page import percent
from lab.report.tables import Interval, interval
from lab.report.verdicts import at_most, judge, pairing_gain, power, seeds_needed, sign_flip, tokens_to, verdict
from tests import made_up

FRESH = Primary(where={"names": "fresh"}, margin=0.1)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.001, 0.2, "reproduced"),
        (0.001, 0.01, "reproduced"),  # small, but there
        (-0.2, -0.001, "reversed"),
        (-0.1, 0.1, "no difference"),
        (-0.1, 0.101, "inconclusive"),
        (-0.101, 0.0, "inconclusive"),
        (0.0, 0.0, "no difference"),
        (math.nan, math.nan, "inconclusive"),
    ],
)
def test_a_verdict_follows_from_the_interval(low: float, high: float, says: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high), 0.1) == says


@pytest.mark.parametrize(
    ("effect", "seeds"),
    [(0.2, 199), (0.5, 34), (0.8, 15), (1.5, 6), (5.3, 3), (9.7, 3), (14.0, 2)],  # the last three by integration
)
def test_seeds_needed_are_those_of_the_tables(effect: float, seeds: int) -> None:
    # G*Power 3.1, difference of two dependent means, two-sided, alpha 0.05, power 0.8.
    assert seeds_needed(effect, 1.0) == seeds
    assert seeds_needed(-3 * effect, 3.0) == seeds
    assert power(effect, 1.0, seeds) >= 0.8
    assert seeds == 2 or power(effect, 1.0, seeds - 1) < 0.8


def test_seeds_needed_at_the_ends() -> None:
    assert seeds_needed(0.1, 0.0) == 2
    assert seeds_needed(0.1, math.nan) is None
    assert seeds_needed(1e-6, 1.0) is None


def test_power_is_how_often_a_t_test_finds_the_effect() -> None:
    draws = np.random.default_rng(0).normal(0.6, 1.3, (40_000, 9))
    found = np.asarray(stats.ttest_1samp(draws, 0, axis=1).pvalue) < 0.05
    assert power(0.6, 1.3, 9) == pytest.approx(found.mean(), abs=4 * math.sqrt(0.25 / 40_000))
    assert power(0.0, 1.3, 9) == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize(("shift", "seeds"), [(0.7, 2), (4.9, 3), (6.0, 2), (11.0, 2), (2.5, 40)])
def test_power_is_a_number_where_scipys_distribution_has_none(shift: float, seeds: int) -> None:
    z, chi = np.random.default_rng(3).standard_normal(200_000), np.random.default_rng(4).chisquare(seeds - 1, 200_000)
    t = (z + shift * math.sqrt(seeds)) / np.sqrt(chi / (seeds - 1))
    found = np.abs(t) > stats.t.ppf(0.975, seeds - 1)
    assert power(shift, 1.0, seeds) == pytest.approx(found.mean(), abs=4 * math.sqrt(0.25 / 200_000))


def test_the_upper_limit_of_a_deviation_covers_it_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(0, 2.0, (20_000, 4)).std(axis=1, ddof=1)
    assert np.mean([at_most(each, 4) >= 2.0 for each in draws]) == pytest.approx(0.8, abs=0.012)
    assert math.isnan(at_most(1.0, 1))


def test_pairing_gains_what_seeds_share() -> None:
    rng = np.random.default_rng(2)
    common, noise = rng.normal(0, 3, 5000), rng.normal(0, 1, (2, 5000))
    assert pairing_gain(common + noise[0], common + noise[1]) == pytest.approx(10, rel=0.1)
    assert pairing_gain(noise[0], noise[1]) == pytest.approx(1, rel=0.1)
    assert math.isnan(pairing_gain(common[:2], common[:2] + 1))
    assert math.isnan(pairing_gain(common, common))  # nothing to compare: no deviation at all


@given(st.lists(st.integers(-40, 40), min_size=2, max_size=9))
@example([18, 21, -21, -18])
def test_p_is_the_share_of_signs_that_say_as_much(points: list[int]) -> None:
    sums = [
        abs(sum(s * p for s, p in zip(signs, points, strict=True))) for signs in product((1, -1), repeat=len(points))
    ]
    expected = np.mean([each >= abs(sum(points)) for each in sums])
    assert sign_flip(np.array(points) / 100) == pytest.approx(expected)
    assert math.isnan(sign_flip(np.array([0.3])))


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
    assert [(row["arm"]["objective.n"], row["less"]["objective.n"], row["seeds"]) for row in rows] == [
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
    assert (first["mean"], first["low"], first["high"]) == pytest.approx(interval(two - one))
    assert (first["score"], first["other_score"]) == pytest.approx((two.mean(), one.mean()))
    assert first["verdict"] == verdict(interval(two - one), 0.1)
    assert first["pairing_gain"] == pytest.approx(pairing_gain(two, one))
    assert first["deviation"] == pytest.approx(np.std(two - one, ddof=1))
    assert first["seeds_for_margin"] == seeds_needed(0.1, first["deviation"])
    assert first["seeds_for_margin_safe"] >= first["seeds_for_margin"]
    assert first["minutes_for_margin_safe"] == pytest.approx(3 * first["seeds_for_margin_safe"])  # one and two a seed
    assert first["p"] == sign_flip(two - one)
    assert 0 <= first["past"] <= 4
    assert json.dumps(rows)


def test_arms_and_conditions_keep_their_names() -> None:
    sweep, finished = made_up.stories(ns=(1, 2), seeds=3, further={"model.size": ["1M", "3M"]})
    named = {"objective.n": "arm", "model.size": "condition"}
    cells = [
        (dataclasses.replace(cell, axes={named.get(axis, axis): value for axis, value in cell.axes.items()}), result)
        for cell, result in finished
    ]
    renamed = dataclasses.replace(sweep, primary=FRESH, axes=("seed", "condition", "arm"))
    rows, plain = judge(renamed, cells), judge(dataclasses.replace(sweep, primary=FRESH), finished)
    assert [row["arm"] for row in rows] == [{"condition": size, "arm": 2} for size in ("1M", "3M")]
    assert [row["less"] for row in rows] == [{"condition": size, "arm": 1} for size in ("1M", "3M")]
    assert [row["change"] for row in rows] == [row["change"] for row in plain]
    assert rows[1]["change"] is not None


def test_tokens_to_the_level_of_the_endpoint_are_read_off_the_curves() -> None:
    sweep, finished = made_up.stories(ns=(1, 2), seeds=3)
    primary = dataclasses.replace(sweep, primary=FRESH)
    assert judge(primary, finished)[0]["tokens_to"] is None  # the level is not in these curves
    for _, result in finished:
        for row in result["curve"]:
            row["validation/class_copying"] = 0.3
            row["validation/second_token_accuracy_names_fresh"] = 0.1 * row["step"] / 500
            row["validation/class_copying_names_fresh"] = 0.65
    (row,) = judge(primary, finished)
    assert (row["tokens_to"], row["other_tokens_to"]) == (1024 * 3500, 1024 * 3500)
    curve = finished[0][1]["curve"]
    del curve[0]["validation/class_copying_names_fresh"]  # a slice that was empty then
    assert judge(primary, finished)[0]["tokens_to"] == 1024 * 3500
    for row in curve[1:]:
        del row["validation/class_copying_names_fresh"]
    assert judge(primary, finished)[0]["tokens_to"] is None


def test_changes_are_against_the_first_condition() -> None:
    sweep, finished = made_up.stories(ns=(1, 2), seeds=4, further={"model.size": ["1M", "3M"]})
    one, other = judge(dataclasses.replace(sweep, primary=FRESH), finished)
    assert (one["arm"]["model.size"], other["arm"]["model.size"]) == ("1M", "3M")
    assert one["change"] is None
    change = interval([other["differences"][seed] - one["differences"][seed] for seed in range(4)])
    assert tuple(other["change"].values()) == pytest.approx(change)


def test_a_screen_has_no_verdicts() -> None:
    sweep, finished = made_up.stories()
    screen = FRESH.model_copy(update={"screen": True})
    rows, plain = (judge(dataclasses.replace(sweep, primary=each), finished) for each in (screen, FRESH))
    assert {row["verdict"] for row in rows} == {"screen"}
    assert [{**row, "verdict": None} for row in rows] == [{**row, "verdict": None} for row in plain]


def test_seeds_that_one_arm_lacks_are_left_out_and_curves_may_be_missing() -> None:
    sweep, finished = made_up.stories(ns=(1, 2), seeds=3, curve=False)
    rows = judge(dataclasses.replace(sweep, primary=FRESH), finished[1:])  # no n = 1 of the first seed
    assert [(row["seeds"], row["tokens_to"]) for row in rows] == [(2, None)]


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
        (2, 5, "inconclusive"),
        (4, 5, "reversed"),
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


def test_an_interval_wider_than_what_can_be_is_not_spelt_out() -> None:
    assert percent({"mean": -0.214, "low": -2.342, "high": 1.914}, "+") == "-21.4 ± >100"
    assert percent({"mean": -0.214, "low": -1.204, "high": 0.776}, "+") == "-21.4 ± 99.0"


def test_what_is_unfinished_is_said() -> None:
    missing = CliRunner().invoke(cli, ["report", "sweeps/polynomials_n.yaml", "--scale", "paper"])
    assert missing.exit_code == 1
    assert "lab sweep run sweeps/polynomials_n.yaml --scale paper" in str(missing.exception)
