"""Figures of made-up results: what is drawn is what the results say, and labels can be read."""

import dataclasses
import itertools
import runpy
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Primary, load_sweep
from lab.home import home
from lab.report.answers import over_seeds
from lab.report.drawing import label_at_right, side_by_side
from lab.report.figures import complete
from lab.report.style import colour_of, use_style
from lab.report.verdicts import judge
from tests.analysis.test_generation import answers
from tests.made_up import LEVELS, WHOLE, stories

SIZES = {"model.size": ["1M", "10M"]}
SHAPES = {"model": [{"layers": 4, "width": 64, "heads": 4}, {"layers": 6, "width": 96, "heads": 4}]}
FURTHER = {"train.warmup": [0, 9]}


@pytest.fixture(autouse=True)
def _style() -> Any:
    use_style()
    yield
    plt.close("all")


def drawn(name: str, *made_up: Any) -> Figure:
    figure = runpy.run_path(str(home() / "figures" / f"{name}.py"))["draw"](*made_up)
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    return figure


def scores_of(finished: list[tuple[Cell, Result]], split: str, **axes: Any) -> list[float]:
    """In percent, of fresh names at the end, of the runs at these axes."""
    wanted = {**WHOLE, "names": "fresh", "checkpoint": "final", "split": split}
    return [
        100 * row["second_token_accuracy"]
        for cell, result in finished
        if axes.items() <= cell.axes.items()
        for row in result["scores"]
        if wanted.items() <= row.items()
    ]


def labels_of(axes: Axes) -> dict[str, Annotation]:
    return {each.get_text(): each for each in axes.texts if isinstance(each, Annotation)}


def readable(figure: Figure) -> None:
    """No two texts overlap."""
    outside = {
        id(label)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not axis.get_view_interval()[0] <= tick.get_loc() <= axis.get_view_interval()[1]
        for label in (tick.label1, tick.label2)
    }
    texts = [each for each in figure.findobj() if isinstance(each, Text) and id(each) not in outside]
    boxes = [(each.get_text(), each.get_window_extent()) for each in texts if each.get_text() and each.get_visible()]
    assert len(boxes) > 10
    for (one, box), (other, its) in itertools.combinations(boxes, 2):
        assert not box.shrunk(0.98, 0.9).overlaps(its.shrunk(0.98, 0.9)), f"'{one}' and '{other}'"


@pytest.mark.parametrize("further", [{}, SIZES, SHAPES, {**SIZES, **FURTHER}], ids=["one", "sizes", "shapes", "panels"])
def test_induction_by_size_shows_every_seed_and_their_means(further: dict[str, list[Any]]) -> None:
    sweep, finished = stories(ns=(1, 2, 4, 8), seeds=4, further=further)
    figure = drawn("induction_by_size", sweep, finished)
    readable(figure)
    assert len(figure.axes) == (2 if "train.warmup" in further else 1)
    for axes, warmup in zip(figure.axes, further.get("train.warmup", [None]), strict=True):
        point = {} if warmup is None else {"train.warmup": warmup}
        assert axes.get_title(loc="left") == ("" if warmup is None else f"train.warmup = {warmup}")
        for n in (1, 2, 4, 8):
            expected = scores_of(finished, "test", **point, **{"objective.n": n})
            dots = [each for each in axes.collections if isinstance(each, PathCollection)]
            (own,) = [each for each in dots if np.allclose(np.asarray(each.get_facecolor())[0, :3], colour_of(n))]
            assert sorted(np.asarray(own.get_offsets())[:, 1]) == pytest.approx(sorted(expected))
            (line,) = [
                each
                for each in axes.lines
                if (each.get_marker(), each.get_linestyle()) == ("_", "-")
                and np.allclose(to_rgb(each.get_color()), colour_of(n))
            ]
            names = next((axis for axis in further if axis.startswith("model")), None)
            values = further[names] if names else [None]
            each_size = [{names: value} if names else {} for value in values]
            means = [np.mean(scores_of(finished, "test", **point, **size, **{"objective.n": n})) for size in each_size]
            assert line.get_ydata() == pytest.approx(means)
        assert {"oracle", "class copying", "chance", "n = 1", "n = 2", "n = 4", "n = 8"} == labels_of(axes).keys()
        heights = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]  # type: ignore[index]
        assert heights == pytest.approx([100 * level for level in LEVELS.values()])
        ticks = [each.get_text() for each in axes.get_xticklabels()]
        assert ticks == ["0.2M", "0.66M"] if "model" in further else further.get("model.size", ["1M"])
        assert axes.get_xscale() == "log"


@pytest.mark.parametrize("further", [{}, SIZES, {**SIZES, **FURTHER}], ids=["one", "sizes", "panels"])
def test_induction_curves_show_every_run_and_their_means(further: dict[str, list[Any]]) -> None:
    sweep, finished = stories(ns=(1, 4), seeds=3, further=further)
    figure = drawn("induction_curves", sweep, finished)
    readable(figure)
    panels = [
        (size, warmup) for warmup in further.get("train.warmup", [None]) for size in further.get("model.size", ["1M"])
    ]
    for axes, (size, warmup) in zip(figure.axes, panels, strict=True):
        assert axes.get_title(loc="left").startswith(f"{size} parameters")
        for n in (1, 4):
            runs = [
                [100 * row["validation/second_token_accuracy"] for row in result["curve"]]
                for cell, result in finished
                if cell.axes["objective.n"] == n
                and (cell.axes.get("model.size", size), cell.axes.get("train.warmup")) == (size, warmup)
            ]
            lines = [each for each in axes.lines if np.allclose(to_rgb(each.get_color()), colour_of(n))]
            np.testing.assert_allclose(
                sorted(runs), sorted(np.asarray(line.get_ydata()).tolist() for line in lines[:-1])
            )
            assert lines[-1].get_ydata() == pytest.approx(np.mean(runs, axis=0))
        assert labels_of(axes).keys() == {"class copying", "n = 1", "n = 4"}
        assert axes.lines[0].get_ydata()[0] == pytest.approx(100 * LEVELS["class_copying"])  # type: ignore[index]


ARMS: dict[str, list[Any]] = {"arm": ["as it is", "another"]}


@pytest.mark.parametrize("further", [{}, ARMS], ids=["one panel", "two"])
def test_learning_curves_show_every_run_and_how_many_solved_the_task(further: dict[str, list[Any]]) -> None:
    plain, finished = stories(ns=(1, 2), seeds=4, further=further)
    level = float(np.median(scores_of(finished, "test")) / 100)
    primary = Primary(measure="solved", level=level, margin=0.1, where={"names": "fresh"})
    figure = drawn("learning_curves", dataclasses.replace(plain, primary=primary), finished)
    readable(figure)
    counts = []
    for axes, arm in zip(figure.axes, further.get("arm", [None]), strict=True):
        assert axes.get_title(loc="left") == ("" if arm is None else arm)
        point = {} if arm is None else {"arm": arm}
        for n in (1, 2):
            own = {**point, "objective.n": n}
            runs = [
                [100 * row["validation/second_token_accuracy"] for row in result["curve"]]
                for cell, result in finished
                if own.items() <= cell.axes.items()
            ]
            lines = [each for each in axes.lines if np.allclose(to_rgb(each.get_color()), colour_of(n))]
            np.testing.assert_allclose(sorted(runs), sorted(np.asarray(line.get_ydata()).tolist() for line in lines))
            solved = sum(score >= 100 * level for score in scores_of(finished, "test", **own))
            assert f"n = {n}: {solved} of 4" in labels_of(axes)
            counts.append(solved)
    assert 0 < sum(counts) < 4 * len(counts), "some solve it, and some do not"
    assert {text for axes in drawn("learning_curves", plain, finished).axes for text in labels_of(axes)} == {
        *("n = 1", "n = 2")
    }  # fmt: skip


def test_effects_show_every_pair_of_seeds_and_the_verdict() -> None:
    several = [
        (words, dataclasses.replace(sweep, primary=Primary(where={"names": "fresh"}, margin=0.02)), finished)
        for words, (sweep, finished) in {"one": stories(), "two": stories(ns=(1, 4), seeds=5, further=SIZES)}.items()
    ]
    figure = drawn("effects", several)
    readable(figure)
    (axes,) = figure.axes
    rows = [row for _, sweep, finished in several for row in judge(sweep, finished)]
    dots = [each for each in axes.collections if isinstance(each, PathCollection)]
    assert len(rows) == len(dots) == 4
    for row, own in zip(rows, dots, strict=True):
        assert sorted(np.asarray(own.get_offsets())[:, 0]) == pytest.approx(
            sorted(100 * each for each in row.differences.values())
        )
        assert np.allclose(np.asarray(own.get_facecolor())[0, :3], colour_of(row.n))
    means = [line.get_xdata() for line in axes.lines if line.get_marker() == "|" and line.get_markersize() == 10]
    assert np.ravel(means) == pytest.approx([100 * row.difference.mean for row in rows])  # type: ignore[arg-type]
    assert [each.get_text() for each in axes.get_yticklabels()] == [
        *("n = 2", "n = 4"), *("n = 4, 1M", "n = 4, 10M")
    ]  # fmt: skip
    told = [each.get_text() for each in axes.texts]
    assert told[:2] == ["one, less n = 1", f"{rows[0].verdict} (3)"]


def test_induction_by_fresh_shows_every_seed_and_their_means() -> None:
    shares = [0.0, 0.03, 1.0]
    sweep, finished = stories(ns=(1, 2), seeds=4, further={"task.names.fresh": shares})
    figure = drawn("induction_by_fresh", sweep, finished)
    readable(figure)
    (axes,) = figure.axes
    for n in (1, 2):
        dots = [each for each in axes.collections if isinstance(each, PathCollection)]
        (own,) = [each for each in dots if np.allclose(np.asarray(each.get_facecolor())[0, :3], colour_of(n))]
        points = np.asarray(own.get_offsets())
        for place, share in enumerate(shares):
            here = points[np.round(points[:, 0]) == place, 1]
            expected = scores_of(finished, "test", **{"objective.n": n, "task.names.fresh": share})
            assert sorted(here) == pytest.approx(sorted(expected))
    assert [each.get_text() for each in axes.get_xticklabels()] == ["0", "0.03", "1"]


def test_pass_at_k_shows_every_arm_at_its_oracle() -> None:
    table = answers(3)
    figure = drawn("pass_at_k", table)
    readable(figure)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["operations 1", "operations 2"]
    assert {"1 → 1", "1 → 4", "4 → 1", "4 → 4"} == labels_of(figure.axes[-1]).keys()
    for axes in figure.axes:
        means = [
            100 * row["mean"]
            for row in over_seeds(table)["passing"]
            if row["temperature"] == "oracle" and row["slice"] == axes.get_title(loc="left")
        ]
        lines = [each for each in axes.lines if len(np.ravel(each.get_ydata())) == 2 and each.get_marker() == "None"]
        assert [height for line in lines for height in np.ravel(line.get_ydata())] == pytest.approx(means)


def test_decoding_speed_shows_every_run_batch_and_k() -> None:
    random = np.random.default_rng(0)
    rows = [
        {
            **{"run": run, "task": task, "n": n, "k": k, "seed": seed, "batch": batch, "layers_allow": 1 + k / 3},
            **{"speed_up": float(random.uniform(1, k)), "tokens_per_forward": k * 0.9},
            "characters_per_second": float(random.uniform(100, 200)),
        }
        for run, task, n in (("words", "stories", 1), ("bytes", "stories", 4), ("sums", "polynomials", 4))
        for seed in (0, 1)
        for batch in (1, 8)
        for k in range(1, n + 1)
    ]
    figure = drawn("decoding_speed", {"rows": rows, "hardware": {"device": "cpu"}, "precision": "fp32"})
    readable(figure)
    _, *speed_ups, characters = figure.axes
    for axes, batch in zip(speed_ups, (1, 8), strict=True):
        dots = np.concatenate([np.asarray(each.get_offsets()) for each in axes.collections])
        expected = [(row["k"], row["speed_up"]) for row in rows if row["batch"] == batch and row["n"] == 4]
        np.testing.assert_allclose(sorted(dots.tolist()), sorted(expected))
    assert [each.get_text() for each in characters.get_xticklabels()] == ["1", "8"]
    assert characters.get_title(loc="left").endswith("against words")
    assert sum(len(np.asarray(each.get_offsets())) for each in characters.collections) == 2 * 2 * 2  # not of sums


@pytest.mark.parametrize("name", ["induction_by_size", "induction_curves"])
def test_a_mean_over_what_the_figure_does_not_show_is_refused(name: str) -> None:
    sweep, finished = stories(ns=(1, 2), seeds=2, further={"train.lr": [1e-3, 1e-2]})
    with pytest.raises(ValueError, match="does not tell several runs apart"):
        drawn(name, sweep, finished)


def test_labels_stand_where_they_belong_unless_they_would_overlap() -> None:
    _, axes = plt.subplots()
    axes.set_ylim(0, 100)
    heights = [50.0, 50.0, 51.0, 10.0, 90.0, 93.0]
    label_at_right(axes, [(height, str(i), "0") for i, height in enumerate(heights)], gap=5)
    placed = {int(text): label.xy[1] for text, label in labels_of(axes).items()}
    assert [placed[i] for i in (3, 4, 5)] == pytest.approx([10, 89, 94])
    assert sorted(placed[i] for i in (0, 1, 2)) == pytest.approx([151 / 3 - 5, 151 / 3, 151 / 3 + 5])
    assert placed[2] > max(placed[0], placed[1])


def test_side_by_side() -> None:
    shifts = side_by_side([4, 1, 2, 1], 0.6)
    assert list(shifts) == [1, 2, 4]
    assert list(shifts.values()) == pytest.approx([-0.2, 0, 0.2])
    assert side_by_side([2], 0.6) == {2: 0}


def test_a_line_is_never_a_mean_over_what_is_not_shown() -> None:
    sweep = load_sweep("sweeps/pilot_answer.yaml", "cpu")
    finished = complete(sweep, home() / "none")
    assert {cell.axes["arm"] for cell, _ in finished} == {"next token", "four heads"}
    mixed = [(dataclasses.replace(cell, axes={**cell.axes, "arm": "both"}), result) for cell, result in finished]
    with pytest.raises(ValueError, match="does not tell several runs apart"):
        drawn("polynomials_by_operations", sweep, mixed)


def test_named_arms_are_lines_of_one_panel() -> None:
    sweep = load_sweep("sweeps/pilot_polynomials.yaml", "cpu")
    finished = complete(sweep, home() / "none")
    [axes] = drawn("polynomials_by_operations", sweep, finished).axes
    lines = [each for each in axes.containers if isinstance(each, ErrorbarContainer)]
    strokes = {(to_hex(line.get_color()), line.get_linestyle()) for line, *_ in lines}
    assert len(lines) == len(sweep.file.axes["arm"]) == 11
    assert len(strokes) == 1 + 4 + 4, "n = 1, and four strokes each of the arms about two and about four"
    for (line, *_), arm in zip(lines, sweep.file.axes["arm"], strict=True):
        [threes] = [y for x, y in zip(*line.get_data(), strict=True) if round(x) == 3]
        scores = [
            row["exact_match"]
            for cell, result in finished
            for row in result["scores"]
            if cell.axes["arm"] == arm
            and {"operations": 3, "operator": "all", "seen": "all", "split": "test", "checkpoint": "final"}.items()
            <= row.items()
        ]
        assert threes == pytest.approx(100 * np.mean(scores))
