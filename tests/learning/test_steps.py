"""The training stream: step k is the same however it is reached; which questions it asks; how large it is."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lab.learning.data import StepData, Steps, by_set, examples_per_step, questions
from lab.learning.settings import Train
from lab.tasks.base import Examples, Split
from lab.tasks.polynomials.task import Polynomials, PolynomialTask

TASK = Polynomials(
    prime=3, degree=2, train_operations=(1, 2), test_operations=(1, 3), test_examples=40, validation_examples=20
).build()
QUESTIONS = TASK.examples("test", np.arange(120), seed=0).fingerprints[:, 0]
SMALL = Train(batch_tokens=256, context=32)
LARGE = Train(batch_tokens=8192, context=32)
"""Few steps make a chunk of what is generated at once, so that a dozen steps cross several."""


def steps(train: Train = LARGE, seed: int = 0, first: int = 0) -> Steps:
    return Steps(TASK, train, 2, seed, first, QUESTIONS, where=[1])


def same(one: StepData, other: StepData) -> bool:
    pairs = list(zip((one.occurring, *one.batch), (other.occurring, *other.batch), strict=True))
    assert all((a is None) == (b is None) for a, b in pairs)
    equal = (torch.equal(a, b) for a, b in pairs if a is not None and b is not None)
    return one.tokens == other.tokens and all(equal)


@pytest.mark.parametrize("train", [SMALL, LARGE], ids=["small", "large"])
def test_steps_from_k_continue_the_uninterrupted_stream(train: Train) -> None:
    whole = list(islice(steps(train), 14))
    assert not any(same(one, other) for one, other in pairwise(whole))
    for first in (1, 2, 3, 5, 8):
        for one, other in zip(islice(steps(train, first=first), 14 - first), whole[first:], strict=True):
            assert same(one, other)


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("train", [SMALL, LARGE], ids=["small", "large"])
def test_data_workers_change_nothing(train: Train, first: int) -> None:
    loader: DataLoader[StepData] = DataLoader(steps(train, first=first), batch_size=None, num_workers=2)
    shared = iter(loader)
    for one, other in zip(islice(shared, 9), islice(steps(train, first=first), 9), strict=True):
        assert same(one, other)


def test_seeds_differ() -> None:
    one, other = (next(iter(steps(seed=seed))) for seed in (0, 1))
    assert not same(one, other)


def test_a_step_holds_its_examples() -> None:
    number = examples_per_step(TASK, LARGE)
    for k, step in zip(range(4), steps(), strict=False):
        examples = TASK.examples("train", np.arange(k * number, (k + 1) * number), seed=0)
        expected = sorted(examples.tokens[i, :length].tolist() for i, length in enumerate(examples.lengths))
        tokens, documents = step.batch.tokens, step.batch.document_ids
        assert sorted(tokens[documents == i].tolist() for i in range(number)) == expected
        assert tokens.shape[1] == LARGE.context + 2
        assert step.tokens == sum(map(len, expected))
        assert step.loss_denominators is None


def test_asked_questions_by_brute_force() -> None:
    random = np.random.default_rng(0)
    never = random.integers(0, 2**63, 50).astype(np.uint64)
    questions = random.permutation(np.concatenate((QUESTIONS, QUESTIONS[:30], never)))
    assert len(set(QUESTIONS.tolist())) < len(QUESTIONS)
    number, found = examples_per_step(TASK, SMALL), 0
    stream = Steps(TASK, SMALL, 2, 0, 0, questions)
    for k, step in zip(range(20), stream, strict=False):
        keys = set(TASK.examples("train", np.arange(k * number, (k + 1) * number), seed=0).fingerprints[:, 0].tolist())
        expected = [i for i, question in enumerate(questions.tolist()) if question in keys]
        assert sorted(step.occurring.tolist()) == expected
        found += len(expected)
    assert found > 100


class TwoThings(PolynomialTask):
    """Asks, besides the expression, every third time for its length, and otherwise for nothing more."""

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        examples = super().examples(split, indices, seed)
        keys = np.where(indices % 3 == 0, examples.lengths, 0).astype(np.uint64)
        return replace(examples, fingerprints=np.column_stack((keys, examples.fingerprints)))


def test_what_a_run_has_seen_of_several_things_an_example_asks() -> None:
    """Training asks two things, validation one and a blank, test three: each is found by its key alone."""
    task = TwoThings(TASK.config)
    validation, test = (TASK.examples(split, np.arange(40), seed=0) for split in ("validation", "test"))
    blank = np.zeros((40, 1), np.uint64)
    lengths = test.lengths[:, None].astype(np.uint64)
    sets = {
        "validation": replace(validation, fingerprints=np.hstack((validation.fingerprints, blank))),
        "test": replace(test, fingerprints=np.hstack((lengths, test.fingerprints, lengths + np.uint64(1)))),
    }
    asked = questions(sets)
    met_by_training = torch.zeros(len(asked), dtype=torch.bool)
    met: set[int] = set()
    number = examples_per_step(task, SMALL)
    for k, step in zip(range(5), Steps(task, SMALL, 2, 0, 0, asked), strict=False):
        met_by_training[step.occurring] = True
        met |= set(task.examples("train", np.arange(k * number, (k + 1) * number), 0).fingerprints.ravel().tolist()) - {
            0
        }
    seen = by_set(met_by_training, sets)
    for name, examples in sets.items():
        assert seen[name].tolist() == [[key in met for key in row] for row in examples.fingerprints.tolist()]
        assert 0 < seen[name].sum() < seen[name].size


@pytest.mark.parametrize("questions", [QUESTIONS[:0], np.array([1, 2], np.uint64)], ids=["none", "other"])
def test_nothing_is_asked(questions: NDArray[np.uint64]) -> None:
    step = next(iter(Steps(TASK, SMALL, 2, 0, 0, questions)))
    assert (step.occurring.tolist(), step.occurring.dtype) == ([], torch.int64)


@pytest.mark.parametrize("batch_tokens", [256, 8192])
def test_a_step_has_about_batch_tokens(batch_tokens: int) -> None:
    train = Train(batch_tokens=batch_tokens, context=32)
    sizes = [int((step.batch.document_ids >= 0).sum()) for step in islice(steps(train), 30)]
    assert np.mean(sizes) == pytest.approx(batch_tokens, rel=0.03)


def test_a_step_has_at_least_one_example() -> None:
    assert examples_per_step(TASK, Train(batch_tokens=1)) == 1
