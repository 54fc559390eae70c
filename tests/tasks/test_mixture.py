"""Mixtures: whose turn it is, what tokens mean, and what is scored."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.config import validated
from lab.errors import BadInput
from lab.learning.data import packed_batch
from lab.tasks.base import Task
from lab.tasks.mixture import Mixture, MixtureTask, Part
from lab.tasks.polynomials.task import Polynomials
from lab.tasks.stories.names import Names
from lab.tasks.stories.task import Stories

SCARCE = Stories(names=Names(fresh=0.0, unseen=0.2), test_examples=1000)
NOVELS = Stories(names=Names(fresh=1.0, syllables=225), length=(192, 256), refrains=1.0)
SUMS = Polynomials(prime=3, degree=2, train_operations=(1, 3), test_operations=(1, 3))


def mixed(**parts: tuple[float, Stories | Polynomials]) -> MixtureTask:
    named = {name: Part(weight=weight, task=task) for name, (weight, task) in parts.items()}
    return Mixture(parts=named, scored=next(iter(parts))).build()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=4), st.integers(0, 10**8))
def test_every_part_goes_through_its_own_stream_one_by_one(weights: list[float], first: int) -> None:
    task = mixed(**{f"p{k}": (weight, SUMS) for k, weight in enumerate(weights)})
    part, place = task.turns(first + np.arange(500))
    for k in range(len(weights)):
        mine = place[part == k]
        assert (np.diff(mine) == 1).all()
        if len(mine):  # as many came before as the share says, to one
            before = first * weights[k] / sum(weights)  # all parts are as long
            assert abs(mine[0] - before) < len(weights) + first * 2**-22


def test_random_access_is_sequence() -> None:
    task = mixed(a=(1, SUMS), b=(2, SUMS), c=(4, SUMS))
    counted = [0, 0, 0]
    part, place = task.turns(np.arange(300))
    for k, index in zip(part.tolist(), place.tolist(), strict=True):
        assert index == counted[k]
        counted[k] += 1
    shuffled = np.random.default_rng(0).permutation(300)
    assert (task.turns(shuffled)[0] == part[shuffled]).all()
    assert (task.turns(shuffled)[1] == place[shuffled]).all()


def test_weights_are_shares_of_tokens() -> None:
    task = mixed(stories=(1, SCARCE), novels=(9, NOVELS))
    examples = task.examples("train", np.arange(20_000), 3)
    novels = examples.lengths[examples.slices["part"] == "novels"].sum()
    assert novels / examples.lengths.sum() == pytest.approx(0.9, abs=0.003)


def test_an_example_is_its_part_s_own_whatever_the_token_ids() -> None:
    task = mixed(sums=(1, SUMS), stories=(1, SCARCE))
    own: dict[str, Task] = {"sums": SUMS.build(), "stories": SCARCE.build()}
    indices = np.arange(50, 250)
    examples = task.examples("train", indices, 5)
    _, place = task.turns(indices)
    assert set(examples.slices["part"].tolist()) == {"sums", "stories"}
    for row in range(len(indices)):
        name = str(examples.slices["part"][row])
        alone = own[name].examples("train", place[row : row + 1], 5)
        record = task.record(examples, row)
        assert record["text"] == own[name].record(alone, 0)["text"]
        assert examples.lengths[row] == alone.lengths[0]
        assert [task.vocabulary[token] for token in record["tokens"]] == [
            own[name].vocabulary[token] for token in alone.tokens[0, : alone.lengths[0]].tolist()
        ]
        assert set(examples.fingerprints[row].tolist()) - {0} == set(alone.fingerprints[0].tolist()) - {0}
        assert (examples.loss_mask[row].nonzero()[0] == alone.loss_mask[0].nonzero()[0]).all()
        assert examples.horizons is not None
        spans = [1] * examples.tokens.shape[1] if alone.horizons is None else alone.horizons[0].tolist()
        assert examples.horizons[row].tolist() == spans + [1] * (examples.tokens.shape[1] - len(spans))
        assert (max(spans) > 1) is (name == "sums")
    assert len(set(task.vocabulary)) == len(task.vocabulary)


def test_what_follows_from_a_token_reaches_the_batch() -> None:
    examples = mixed(sums=(1, SUMS), stories=(1, SCARCE)).examples("train", np.arange(120), 0)
    batch = packed_batch(examples, 300, 2)
    assert batch.horizons is not None
    for i, (length, part) in enumerate(zip(examples.lengths, examples.slices["part"], strict=True)):
        answer = [2, 1, 1] if part == "sums" else []  # two digits, and the end
        expected = [1] * (length - len(answer)) + answer
        assert batch.horizons[batch.document_ids == i].tolist() == expected
    assert (batch.horizons[batch.document_ids < 0] == 1).all()


def test_where_no_part_says_what_follows_a_mixture_does_not() -> None:
    assert mixed(stories=(1, SCARCE), novels=(9, NOVELS)).examples("train", np.arange(20), 0).horizons is None


def test_evaluation_is_the_scored_part_s() -> None:
    task, alone = mixed(stories=(1, SCARCE), sums=(1, SUMS)), SCARCE.build()
    assert task.size("test") == alone.size("test")
    ours, theirs = (each.examples("test", np.arange(150), 0) for each in (task, alone))
    assert (ours.tokens == theirs.tokens).all()
    assert task.vocabulary[: len(alone.vocabulary)] == alone.vocabulary
    assert task.record(ours, 3) == alone.record(theirs, 3)
    seen = np.zeros(ours.fingerprints.shape, bool)
    assert task.score(ours, ours.tokens, seen) == alone.score(theirs, theirs.tokens, seen)
    assert (task.baselines, task.slices, task.main_slice, task.metric) == (
        alone.baselines, alone.slices, alone.main_slice, alone.metric,
    )  # fmt: skip


def test_a_richer_part_shows_the_tokens_that_stories_lack() -> None:
    def reached(task: Task) -> float:
        known = np.unique(task.examples("train", np.arange(3000), 0).fingerprints)
        test = task.examples("test", np.arange(2000), 0)
        rows = task.score(test, test.tokens, np.isin(test.fingerprints, known[known > 0]))
        return float(next(row["oracle"] for row in rows if row["names"] == "fresh"))

    assert reached(SCARCE.build()) == pytest.approx(0.8, abs=0.04)
    assert reached(mixed(stories=(1, SCARCE), novels=(9, NOVELS))) > 0.99


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"parts": {"a": {"weight": 1, "task": {"name": "stories"}}}, "scored": "a"}, "parts: .* at least 2 items"),
        (
            {"parts": {k: {"weight": 1, "task": {"name": "stories"}} for k in "ab"}, "scored": "c"},
            'scored: "c" is not allowed: should be one of a, b',
        ),
        (
            {"parts": {"a": {"weight": 0, "task": {"name": "stories"}}, "b": {"weight": 1}}, "scored": "a"},
            r"parts\.(a\.weight: 0 is not allowed: should be greater than 0|b\.task: missing)",
        ),
        (
            {"parts": {k: {"weight": 1, "task": {"name": "story"}} for k in "ab"}, "scored": "a"},
            r"parts\.a\.task: 'story' is not allowed: should be one of .*; did you mean 'stories'\?",
        ),
        (
            {"parts": {k: {"weight": 1, "task": {"name": "stories", "lenght": 1}} for k in "ab"}, "scored": "a"},
            r"parts\.a\.task\.lenght: unknown field; .*; did you mean 'length'\?",
        ),
    ],
)
def test_bad_mixtures_get_one_line(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        validated(Mixture, {"name": "mixture", **mapping})


def test_an_error_within_a_part_names_the_part() -> None:
    pool = {name: Part(weight=1, task=Stories(names=Names(pool=9000))) for name in "ab"}
    with pytest.raises(BadInput, match=r"task\.parts\.a\.task\.names\.pool: 9000 is not allowed"):
        Mixture(parts=pool, scored="a").build()


def test_text_of_what_only_another_part_says() -> None:
    """A model of a mixture may say any of its words; those of the scored part alone read as they do there."""
    parts = {name: {"weight": 1, "task": {"name": name}} for name in ("polynomials", "stories")}
    task = validated(Mixture, {"parts": parts, "scored": "polynomials"}).build()
    assert task.text(range(3)) == "0 1 2"
    assert task.text(range(len(task.vocabulary))) == " ".join(task.vocabulary)
