"""Tables of a task whose slices are of mixed kinds, and that has several levels."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lab.cli.console import print_json
from lab.cli.scores import print_scores
from lab.errors import Failure
from lab.report.tables import curves, past, score_tables, summarise, tidy
from tests.made_up import LEVELS, TASK, WHOLE, stories

STORIES: Any = TASK


def test_a_tidy_table_of_slices_of_mixed_kinds() -> None:
    _, finished = stories()
    frame = tidy(finished)
    given = sum(row["seen"] != "unseen" for _, result in finished for row in result["scores"])
    assert (frame.seen != "unseen").sum() == given
    assert set(frame.mention) == {"all", 2, 3, "10+"}
    assert set(frame.non_embedding_parameters) == {12 * 5 * 128**2}
    # Of a part without seen questions, all count as unseen; of pool names all are seen, but for one seed's.
    unseen = frame[(frame.seen == "unseen") & (frame.mention == "all") & (frame.characters == "all")]
    assert len(unseen[unseen.names == "fresh"]) == 9 * 4
    assert set(unseen[unseen.names == "pool"].seed) == {0}


def test_score_tables_of_several_levels_and_slices(capsys: pytest.CaptureFixture[str]) -> None:
    _, finished = stories()
    frame = tidy(finished)
    chosen = frame[(frame.checkpoint == "final") & (frame.split == "test")]
    tables = score_tables(chosen, ["objective.n"], STORIES)
    assert [table["seen"] for table in tables] == ["all", "unseen", "seen"]
    whole, unseen, seen = tables
    for row in whole["rows"]:
        values = [
            score["second_token_accuracy"]
            for cell, result in finished
            for score in result["scores"]
            if cell.axes["objective.n"] == row["objective.n"]
            and {"names": row["names"], **WHOLE, "checkpoint": "final", "split": "test"}.items() <= score.items()
        ]
        assert (row["seeds"], row["examples"], len(values)) == (3, 600, 3)
        assert row["mean"] == pytest.approx(np.mean(values))
    assert {(row["level"], row["names"]): row["mean"] for row in whole["levels"]} == pytest.approx(
        {(level, names): value for level, value in LEVELS.items() for names in ("fresh", "pool")}
    )
    assert {(row["names"], row["seeds"]) for row in unseen["rows"]} == {("fresh", 3), ("pool", 1)}
    assert {(row["names"], row["seeds"]) for row in seen["rows"]} == {("pool", 3)}

    print_json(tables)
    assert json.loads(capsys.readouterr().out)[0]["levels"][0]["level"] == STORIES.baselines[0]
    print_scores(tables, "test, final weights")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("second token accuracy (%) by names") for line in lines) == 2
    assert [line.split() for line in lines if line.split()[:2] == ["class", "copying"]] == [
        ["class", "copying", "52.0", "52.0"]
    ] * 2
    assert any("(1)" in line for line in lines), "a value of fewer seeds than its line says so"


def test_tasks_that_an_axis_tells_apart_have_levels_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    _, finished = stories(ns=(1,), seeds=2, further={"task": ["as it is", "two names"]})
    for cell, result in finished:
        for row in result["scores"]:
            row["class_copying"] = {"as it is": 0.5, "two names": 0.25}[cell.axes["task"]]
    frame = tidy(finished)
    chosen = frame[(frame.checkpoint == "final") & (frame.split == "test")]
    print_scores(score_tables(chosen, ["objective.n", "task"], STORIES), "test, final weights")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for task, level in (("as it is", "50.0"), ("two names", "25.0")):
        assert ["class", "copying", *task.split(), level, level] in lines


def test_a_seed_is_past_a_level_if_its_interval_is() -> None:
    right, count = np.array([50, 60, 61, 100]), 100
    low = [stats.binomtest(int(k), count).proportion_ci(0.95, "wilson").low for k in right]
    frame = pd.DataFrame({"accuracy": right / count, "count": count})
    for level in (0.4, 0.5, 0.513, 0.96, 0.97):
        expected = [each > level for each in low]
        assert past(frame.accuracy, frame["count"], pd.Series([level] * 4)).tolist() == expected

    _, finished = stories()
    frame = tidy(finished)
    chosen = frame[(frame.checkpoint == "final") & (frame.split == "test")]
    whole, *_ = score_tables(chosen, ["objective.n"], STORIES)
    for row in whole["rows"]:
        mine = chosen[
            (chosen["objective.n"] == row["objective.n"]) & (chosen.names == row["names"]) & (chosen.seen == "all")
        ]
        mine = mine[(mine[list(WHOLE)] == "all").all(axis=1)]
        lows = [
            stats.binomtest(round(each.second_token_accuracy * each["count"]), each["count"]).proportion_ci(
                0.95, "wilson"
            )
            for _, each in mine.iterrows()
        ]
        levels = mine[STORIES.baselines[0]]
        assert row["past"] == sum(each.low > level for each, level in zip(lows, levels, strict=True))


def test_tables_along_a_slice_of_mixed_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    _, finished = stories(seeds=2)
    frame = tidy(finished)
    chosen = frame[(frame.checkpoint == "final") & (frame.split == "test") & (frame.names == "fresh")]
    (row, *_) = summarise(chosen[chosen.seen == "all"], ["n"], "mention", TASK.metric).to_dict("records")
    assert row["mention"] == 2
    by_mention: Any = type("ByMention", (), {**vars(TASK), "main_slice": "mention", "slices": ("mention", "seen")})
    tables = score_tables(chosen[chosen.characters == "all"], ["n"], by_mention)
    print_scores(tables, "")
    heading = next(line for line in capsys.readouterr().out.splitlines() if "seeds" in line)
    assert heading.split() == ["n", "seeds", "2", "3", "10+", "all"]


def test_curves_hold_every_evaluation_of_every_run() -> None:
    _, finished = stories(ns=(1, 2), seeds=2, further={"model": [{"layers": 4, "width": 64, "heads": 4}]})
    frame = curves(finished)
    assert list(frame) == [
        *("n", "seed", "identity", "non_embedding_parameters", "objective.n", "model"),
        *("step", "tokens", "validation/loss_1", "validation/second_token_accuracy"),
    ]
    for cell, result in finished:
        own = frame[frame.identity == cell.experiment.identity]
        assert set(own.n) == {cell.axes["objective.n"]}
        assert own.tokens.tolist() == [row["tokens"] for row in result["curve"]]
        assert own["validation/second_token_accuracy"].tolist() == [
            row["validation/second_token_accuracy"] for row in result["curve"]
        ]
    with pytest.raises(Failure, match="has no learning curve"):
        curves(stories(curve=False)[1])
