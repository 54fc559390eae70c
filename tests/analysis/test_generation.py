"""pass@k against enumeration, choices and calibration against definitions, and all of it on runs."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lab.analysis import generation
from lab.analysis.finished_run import FinishedRun
from lab.analysis.generation import calibration_error, near_misses, pass_at_k, questions
from lab.cli.main import cli
from lab.experiments.run import execute
from lab.experiments.store import RunDirectory
from lab.report.answers import MEASURES, over_seeds
from lab.tasks.choices import Choices, Station
from lab.tasks.polynomials.task import Polynomials
from lab.tasks.stories.task import Stories
from tests.conftest import tiny


@given(st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_pass_at_k_is_that_of_drawing_k_of_the_samples(samples: int, data: Any) -> None:
    """Of all ways of picking k of the samples, the share that holds a right one."""
    right, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    marks = [True] * right + [False] * (samples - right)
    picked = [any(each) for each in itertools.combinations(marks, k)]
    [found] = pass_at_k(samples, np.array([right]), k)
    assert found == pytest.approx(sum(picked) / len(picked))
    assert found == pytest.approx(1 - math.comb(samples - right, k) / math.comb(samples, k))


def test_pass_at_k_is_unbiased_and_the_plain_estimate_is_not() -> None:
    """Against p known: 1 - (1 - p)^k, where 1 - (1 - c/s)^k is too low."""
    random, p, samples, k = np.random.default_rng(0), 0.15, 10, 5
    right = random.binomial(samples, p, 200_000)
    truth = 1 - (1 - p) ** k
    estimates = pass_at_k(samples, right, k)
    error = 4 * estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - truth) < error
    assert (1 - (1 - right / samples) ** k).mean() < truth - error


@pytest.mark.parametrize("k", [0, 11])
def test_k_beyond_the_samples(k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(10, np.array([3]), k)


@pytest.mark.parametrize("task", [Polynomials(prime=3, degree=2), Stories()], ids=["polynomials", "stories"])
def test_answers_are_runs_of_scored_tokens(task: Any) -> None:
    built = task.build()
    asked = questions(built.examples("test", np.arange(40), 0))
    answers = asked.answers()
    for row, (start, end) in enumerate(zip(asked.starts, asked.ends, strict=True)):
        scored = asked.examples.score_mask[row]
        assert scored[start:end].all()
        assert not scored[start - 1]
        assert end == asked.examples.lengths[row] or not scored[end]
        assert answers[row, : end - start].tolist() == asked.examples.tokens[row, start:end].tolist()
        assert (answers[row, end - start :] == -1).all()
    if isinstance(task, Polynomials):
        assert (asked.ends - asked.starts == 3).all()  # two coefficients and the end token
        assert (asked.starts == asked.examples.lengths - 3).all()


def test_near_misses_have_one_token_wrong_that_stands_there_elsewhere() -> None:
    task = Polynomials(prime=3, degree=2).build()
    asked = questions(task.examples("test", np.arange(200), 0))
    (answers, *misses), counts = near_misses(asked, task.token_type(asked.examples))
    assert len(misses) == generation.MISSES
    assert (counts == generation.MISSES).all()
    for row, answer in enumerate(answers):
        others = {tuple(miss[row]) for miss in misses}
        assert len(others) == len(misses)
        for other in others:
            [place] = np.flatnonzero(np.array(other) != answer)
            assert other[place] in answers[:, place]
    assert not any((miss[:, -1] != answers[:, -1]).any() for miss in misses)  # no other token ends an answer


def test_misses_are_of_the_answers_kind() -> None:
    """On a circuit of choices a miss is another branch of the same station; with two branches there is but one."""
    config = Choices(stations=[Station(branches=2, span=1), Station(branches=6, span=1)], road=2)
    task = config.build()
    asked = questions(task.examples("test", np.arange(100), 0))
    (answers, *misses), counts = near_misses(asked, task.token_type(asked.examples))
    for row, [token] in enumerate(answers.tolist()):
        name = task.vocabulary[token][0]
        assert counts[row] == (1 if name == "A" else generation.MISSES)
        others = {task.vocabulary[miss[row, 0]] for miss in misses[: counts[row]]}
        assert len(others) == counts[row]
        assert all(other[0] == name for other in others)
        assert all((miss[row] == answers[row]).all() for miss in misses[counts[row] :])


def test_calibration_error() -> None:
    random = np.random.default_rng(1)
    confidence = random.uniform(0.2, 1, 30_000)
    assert calibration_error(confidence, random.uniform(size=30_000) < confidence) < 0.02
    assert calibration_error(confidence, random.uniform(size=30_000) < confidence - 0.2) == pytest.approx(0.2, abs=0.02)
    assert calibration_error(np.ones(40), np.arange(40) < 30) >= 0.25 - 1e-9  # of its bins, at least that of the whole
    for tokens in (30, 300):  # few tokens look off when they are not, by as much as is told
        drawn = random.uniform(0.3, 0.9, (300, tokens))
        off = [calibration_error(each, random.uniform(size=tokens) < each) for each in drawn]
        assert generation.calibrated_error(drawn[0]) == pytest.approx(np.mean(off), rel=0.1)
        assert np.mean(off) > 0.05
    two = np.repeat([0.5, 1.0], generation.BINS * 4)
    half = np.concatenate([np.arange(generation.BINS * 4) % 2 == 0, np.ones(generation.BINS * 4, bool)])
    assert calibration_error(two, half) == pytest.approx(0.0, abs=0.02)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run that has learned something of polynomials."""
    store = tmp_path_factory.mktemp("store")
    experiment = tiny("train.steps=150", "train.lr=1e-2", "evaluation.every=150", "model.width=32")
    execute(experiment, store)
    return FinishedRun(RunDirectory(store, experiment))


def test_generative_accuracy_is_exact_match(run: FinishedRun) -> None:
    """Greedy answers are right as often as every teacher-forced token of the answer is: what the run's result says."""
    result = run.directory.read_result()
    assert result
    rows = [row for row in result["scores"] if (row["split"], row["checkpoint"]) == ("test", "final")]
    whole = [row for row in rows if row["operator"] == row["seen"] == "all"]
    told = generation.answering(run, 90)
    by_operations = {f"operations {row['operations']}": row for row in whole}
    assert [row["slice"] for row in told] == list(by_operations)
    for row in told:
        assert row["questions"] == by_operations[row["slice"]]["count"]
        assert row["generative_accuracy"] == pytest.approx(by_operations[row["slice"]]["exact_match"])
    given, chosen = (sum(row[f"{way}_accuracy"] * row["questions"] for row in told) for way in ("generative", "choice"))
    assert 0 < given < chosen


def test_likelihoods_are_those_of_reading_each_answer(run: FinishedRun) -> None:
    model, asked = run.model(run.steps[-1]), questions(run.test_examples(12))
    for answers in near_misses(asked, run.task.token_type(asked.examples))[0][:2]:
        found = generation._likelihoods(model, asked, answers)
        for row, start in enumerate(asked.starts):
            text = torch.from_numpy(np.append(asked.examples.tokens[row, :start].astype(np.int64), answers[row]))[None]
            context = model.decoder.context(text, None)
            logits = next(model.objective.logits(model.decoder, model.decoder(text, context), context, 1))
            said = logits[0, start - 1 : -1].log_softmax(-1).gather(1, text[0, start:, None])
            assert found[row] == pytest.approx(float(said.detach().mean()), abs=1e-5)


def test_samples_are_counted_question_by_question(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """One who gives the right answer to question q every (q % 4)-th time."""
    asked = questions(run.test_examples(30))
    answers = {
        tuple(asked.examples.tokens[row, :start].tolist()): asked.answers()[row].tolist()
        for row, start in enumerate(asked.starts)
    }
    numbers = {question: number for number, question in enumerate(answers)}
    seen = dict.fromkeys(answers, 0)

    def decode(model: Any, prompts: torch.Tensor, lengths: torch.Tensor, tokens: int, **_: Any) -> Any:
        said = []
        for prompt, length in zip(prompts.tolist(), lengths.tolist(), strict=True):
            question = tuple(prompt[:length])
            seen[question] += 1
            right = seen[question] % (1 + numbers[question] % 4) == 0
            said.append(answers[question] if right else [0] * tokens)
        return type("Said", (), {"tokens": said})

    monkeypatch.setattr(generation, "decode", decode)
    counts = generation.right_samples(run.model(run.steps[-1]), asked, 12, 1.0)
    texts = [tuple(asked.examples.tokens[row, :start].tolist()) for row, start in enumerate(asked.starts)]
    wrong_is_right = [asked.answers()[row].tolist() == [0] * asked.longest for row in range(len(texts))]
    assert not any(wrong_is_right)
    for text, count in zip(texts, counts.tolist(), strict=True):
        assert count == 12 // (1 + numbers[text] % 4)


def test_the_oracle_is_the_best_temperature_of_each_k(run: FinishedRun) -> None:
    rows = list(generation.passing(run, 60, 8, (1, 4, 8), (0.3, 1.0)))
    slices = list(dict.fromkeys(row["slice"] for row in rows))
    assert slices == [words for words, _ in generation.by_slice(run, 60)]
    for words in slices:
        mine = [row for row in rows if row["slice"] == words]
        for k in (1, 4, 8):
            of_k = {row["temperature"]: row["pass_at_k"] for row in mine if row["k"] == k}
            assert of_k["oracle"] == max(of_k[0.3], of_k[1.0])
        by_k = [row["pass_at_k"] for row in mine if row["temperature"] == 1.0]
        assert by_k == sorted(by_k)
    again = list(generation.passing(run, 60, 8, (1, 4, 8), (0.3, 1.0)))
    assert rows == again


def test_the_command(run: FinishedRun) -> None:
    arguments = ["analyze", "generation", str(run.directory.path), "--examples", "40", "--samples", "5"]
    told = CliRunner().invoke(cli, [*arguments, "--temperature", "0.5", "--json"])
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout.splitlines()[-1])
    slices = [f"operations {m}" for m in (1, 2, 3)]
    assert [(row["slice"], row["k"], row["temperature"]) for row in document["passing"]] == [
        (words, k, temperature) for temperature in (0.5, "oracle") for words in slices for k in (1, 2, 5)
    ]
    assert [row["slice"] for row in document["answering"]] == slices
    assert [row["seeds"] for row in document["over_seeds"]["passing"]] == [1] * 18
    twice = CliRunner().invoke(cli, [*arguments, "--temperature", "0.5", "--temperature", "0.5", "--json"])
    assert json.loads(twice.stdout.splitlines()[-1])["passing"] == document["passing"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert "oracle" in shown.stdout


def answers(seeds: int) -> dict[str, Any]:
    """A document of a sweep over what runs begin from and n, its numbers made up."""
    random = np.random.default_rng(0)
    runs = [
        {"identity": f"{source}-{n}-{seed}", "arm": {"init_from": source, "objective.n": n}, "seed": seed}
        for source in ("n1", "n4") for n in (1, 4) for seed in range(seeds)
    ]  # fmt: skip
    passing = [
        {
            "identity": run["identity"], "slice": f"operations {m}", "k": k, "temperature": temperature,
            "pass_at_k": float(random.random()),
        }
        for run in runs for temperature in (0.5, "oracle") for m in (1, 2) for k in (1, 10)
    ]  # fmt: skip
    answering = [
        {"identity": run["identity"], "slice": "all", **dict.fromkeys(MEASURES["answering"], i / 100)}
        for i, run in enumerate(runs)
    ]
    return {"runs": runs, "passing": passing, "answering": answering}


def test_answers_over_seeds() -> None:
    document = answers(3)
    summary = over_seeds(document)
    assert len(summary["passing"]) == 4 * 2 * 2 * 2
    assert len(summary["answering"]) == 4 * len(MEASURES["answering"])
    for row in summary["passing"]:
        values = [
            each["pass_at_k"]
            for each in document["passing"]
            if each["identity"].startswith(row["arm"].replace(", n = ", "-") + "-")
            and all(each[name] == row[name] for name in ("slice", "k", "temperature"))
        ]
        expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
        assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(values), *expected))
        assert row["seeds"] == 3
    assert np.isnan(over_seeds(answers(1))["answering"][0]["low"])


def test_slices_stand_apart() -> None:
    """Fresh and pool names tell the same test stories: asked together, questions would not be independent."""
    stories = tiny("task={name: stories}", "train.context=256", "evaluation.examples=4")
    run = FinishedRun(RunDirectory(Path("nowhere"), stories))
    parts = dict(generation.by_slice(run, 40))
    assert list(parts) == ["names fresh", "names pool"]
    assert {len(part.lengths) for part in parts.values()} == {20}
    for words, part in parts.items():
        assert (part.slices["names"] == words.removeprefix("names ")).all()
    choices = tiny("task={name: choices, stations: [{branches: 2, span: 1}]}", "evaluation.examples=4")
    assert [words for words, _ in generation.by_slice(FinishedRun(RunDirectory(Path("nowhere"), choices)), 5)] == [
        "all"
    ]
