"""Further heads' targets by name, places in answers and kinds of tokens: by brute force, and as tasks say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lab.analysis.terms import terms, valid
from lab.errors import BadInput
from lab.experiments.run import execute
from lab.experiments.store import RunDirectory, read_json_lines
from lab.learning.data import packed_batch, select
from lab.objectives import build_model
from lab.objectives.backward import losses
from lab.objectives.base import Batch, targets
from lab.objectives.parallel import Parallel
from lab.tasks.agreement import Agreement
from lab.tasks.base import Examples
from lab.tasks.choices import Choices
from lab.tasks.mixture import Mixture, Part
from lab.tasks.polynomials.task import Polynomials
from lab.tasks.stories.task import Stories
from lab.tasks.targets import answer_places, limit_targets, token_mask
from tests.conftest import tiny
from tests.learning.test_packing import LENGTHS, random_examples
from tests.objectives.test_backward import ORDERS, _small_chunks, gradients_of, packed, small_chunks  # noqa: F401
from tests.objectives.test_dial import WEIGHTS, N, loss_of
from tests.objectives.test_objectives import any_batch
from tests.objectives.test_variants import MODEL, built, naive


def runs_of(scored: list[bool]) -> list[list[int]]:
    """The columns of each run."""
    runs: list[list[int]] = []
    for column, here in enumerate(scored):
        if here and column and scored[column - 1]:
            runs[-1].append(column)
        elif here:
            runs.append([column])
    return runs


@settings(deadline=None)
@given(
    st.integers(1, 9).flatmap(
        lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1)
    )
)
def test_places_in_answers_by_brute_force(rows: list[list[bool]]) -> None:
    first, last = answer_places(np.array(rows))
    for row, columns in enumerate(rows):
        forwards, backwards = [0] * len(columns), [0] * len(columns)
        for run in runs_of(columns):
            for place, column in enumerate(run):
                forwards[column], backwards[column] = place + 1, place - len(run)
        assert first[row].tolist() == forwards
        assert last[row].tolist() == backwards


class Labelled:
    """A task of which nothing is known but the kinds of its tokens, by its examples' marks."""

    token_types = tuple("abcdefghi")

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        return examples.token_features["kind"]


NAMED = st.lists(st.integers(-4, 4).filter(bool) | st.sampled_from(Labelled.token_types), min_size=1, max_size=4)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(0, 1000), NAMED)
def test_targets_of_further_heads_by_brute_force(
    lengths: NDArray[np.int64], n: int, seed: int, where: list[int | str]
) -> None:
    """Packed: a target t+i of head i > 1 is of the document of t, trained on, and named; head 1 has all."""
    task: Any = Labelled()
    examples = limit_targets(task, random_examples(lengths, seed), where)
    batch, context = packed_batch(examples, 20, n), 20
    chosen = []
    for row, length in enumerate(lengths.tolist()):
        names: list[set[Any]] = [{Labelled.token_types[kind]} for kind in examples.token_features["kind"][row, :length]]
        for run in runs_of(examples.score_mask[row, :length].tolist()):
            for place, column in enumerate(run):
                names[column] |= {place + 1, place - len(run)}
        chosen.append([bool(each & set(where)) for each in names])
    for head in range(1, n + 1):
        expected = torch.full((len(batch.tokens), context), -100)
        for b, t in np.ndindex(*expected.shape):
            document, there = int(batch.document_ids[b, t]), int(batch.document_ids[b, t + head])
            if document == -1 or document != there or not batch.loss_mask[b, t + head]:
                continue
            begin = int(torch.nonzero(batch.document_ids[b] == document)[0])
            if head == 1 or chosen[document][t + head - begin]:
                expected[b, t] = batch.tokens[b, t + head]
        assert torch.equal(targets(batch, head, context), expected)


@settings(deadline=None)
@given(any_batch(), st.integers(0, 2**31))
def test_a_batch_keeps_the_named_targets_by_rows(case: tuple[Batch, int], seed: int) -> None:
    batch, n = case
    generator = torch.Generator().manual_seed(seed)
    batch = batch._replace(further_loss_mask=torch.randint(2, batch.tokens.shape, generator=generator).bool())
    for rows in (slice(None, None, 2), slice(1, None, 2)):
        for head in range(1, n + 1):
            positions = batch.tokens.shape[1] - n
            part = targets(batch.rows(rows).to(torch.device("cpu")), head, positions)
            assert torch.equal(part, targets(batch, head, positions)[rows])


@small_chunks
@pytest.mark.parametrize("name", ["parallel", "causal", "sequential"])
def test_losses_are_means_over_named_targets_by_loops(name: str) -> None:
    """Of further heads as if the other tokens were not trained on, of head 1 as if nothing were named."""
    batch, model = packed(N), built(name, N).double()
    further = torch.rand(batch.tokens.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    weights, trunk = dict(model.named_parameters()), len(model.decoder.trunk)
    expected = naive(name, N, weights, trunk, batch._replace(loss_mask=batch.loss_mask & further))
    expected[0] = naive(name, N, weights, trunk, batch)[0]
    assert min(each.targets for each in expected) > 0
    for order in ORDERS:
        found = loss_of(model, batch._replace(further_loss_mask=further), order)
        assert found.targets.tolist() == [each.targets for each in expected]
        assert found.nats.tolist() == pytest.approx([each.nats for each in expected], rel=1e-12)
        for key, gradient in gradients_of(model, found.total).items():
            wanted = torch.stack([w * each.gradients[key] for w, each in zip(WEIGHTS, expected, strict=True)]).sum(0)
            assert (gradient - wanted).abs().max() <= 1e-10, (order, key)


POLYNOMIALS = Polynomials(prime=3, degree=2, train_operations=(1, 3), test_examples=10, validation_examples=10)
STORIES = Stories(validation_examples=5, test_examples=5)


def words_of(task: Any, where: list[int | str], count: int = 40) -> list[list[str]]:
    """For each training example the texts of the tokens that are named."""
    examples = task.examples("train", np.arange(count), 0)
    chosen = token_mask(task, examples, where)
    return [
        [task.vocabulary[token] for token in tokens[here]] for tokens, here in zip(examples.tokens, chosen, strict=True)
    ]


def test_polynomials_name_the_digits_of_the_answer() -> None:
    task = POLYNOMIALS.build()
    examples = task.examples("train", np.arange(40), 0)
    for row, (first, second, end, every) in enumerate(
        zip(*(words_of(task, where) for where in ([1], [2], [-1], ["answer"])), strict=True)  # type: ignore[arg-type]
    ):
        answer = [str(digit) for digit in task.record(examples, row)["answer"]]
        assert [*first, *second] == answer
        assert every == [*answer, *end]
        assert len(end) == 1


@pytest.mark.parametrize(("place", "before"), [(1, "operand"), (2, "="), (-2, "="), (3, "digit"), (-1, "digit")])
def test_a_second_head_predicts_one_token_of_each_answer_from_one_position(place: int, before: str) -> None:
    """Of two digits and the end token: from the position two before it, as paths to a goal have it for theirs."""
    task = POLYNOMIALS.build()
    examples = limit_targets(task, task.examples("train", np.arange(40), 0), [place])
    batch = packed_batch(examples, 64, 2)
    rows, columns = torch.nonzero(targets(batch, 2, 64) != -100, as_tuple=True)
    assert sorted(batch.document_ids[rows, columns].tolist()) == list(range(40))
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        here, after = (task.vocabulary[token] for token in batch.tokens[row, column : column + 2].tolist())
        assert {"operand": here.isdigit() and after == "=", "=": here == "=", "digit": here.isdigit()}[before]


def test_choices_name_the_choice_and_what_follows_from_it() -> None:
    task = Choices().build()
    for chosen, branch, place in zip(
        words_of(task, ["B choice"]), words_of(task, ["B branch", "C branch"]), words_of(task, [1]), strict=True
    ):
        assert len(chosen) == task.config.laps
        assert all(word[0] == "B" and word.endswith(".1") for word in chosen)
        assert all(word[0] in "BC" and not word.endswith(".1") for word in branch)
        assert len(branch) == task.config.laps * (1 + 3)
        assert len(place) == (task.config.laps - 1) * 4  # the score looks at choices from the second lap on


def test_agreement_names_words_by_slot_and_place() -> None:
    config = Agreement()
    task = config.build()
    kind = task.token_type(task.examples("train", np.arange(40), 0))
    numbers = {name: int((kind == index).sum()) for index, name in enumerate(task.token_types)}
    count = {name: sum(map(len, words_of(task, [name]))) for name in task.token_types}
    assert count == numbers
    # Adjectives and noun are one run, the verb is another: the last of either is noun or verb.
    assert words_of(task, [-1]) == words_of(task, ["noun", "verb"])
    assert words_of(task, [1]) == words_of(task, ["adjective", "verb"])


def test_stories_name_second_tokens_of_names() -> None:
    task = STORIES.build()
    examples = task.examples("train", np.arange(20), 0)
    later = token_mask(task, examples, ["second token, later"])
    assert later.any()
    assert np.array_equal(later, examples.token_features["mention"] > 1)
    assert np.array_equal(later, token_mask(task, examples, [1]))
    assert np.array_equal(
        token_mask(task, examples, ["second token, introduced", "second token, later"]),
        examples.token_features["mention"] > 0,
    )


def test_a_mixture_names_tokens_of_its_scored_part() -> None:
    task = Mixture(parts={"a": Part(weight=1, task=POLYNOMIALS), "b": Part(weight=1, task=STORIES)}, scored="a")
    built, alone = task.build(), POLYNOMIALS.build()
    examples = built.examples("train", np.arange(60), 0)
    part, place = built.turns(np.arange(60))
    chosen = token_mask(built, examples, [1, "answer"])
    for row in range(60):
        found = np.flatnonzero(chosen[row]).tolist()
        if examples.slices["part"][row] == "b":
            assert found == []
        else:
            own = alone.examples("train", place[row : row + 1], 0)
            assert found == np.flatnonzero(own.score_mask[0]).tolist()
    assert set(part.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("where", "share"),
    [("null", 2), ("[-1]", 1), ("[2]", 1), ("[3]", 1), ("[1]", 1), ("[1, 2, 3]", 3), ("[answer]", 3)],
)
def test_a_run_counts_named_targets(tmp_path: Path, where: str, share: int) -> None:
    """Two digits and the end token an answer: of head 2 each is one target of a document."""
    experiment = tiny("task.loss=answer", "train.steps=10", "execution.log_every=10", f"objective.where={where}")
    assert execute(experiment, tmp_path) is not None
    [row] = [row for row in read_json_lines(RunDirectory(tmp_path, experiment).metrics) if "targets_1" in row]
    documents = row["targets_1"] / 3
    assert row["targets_2"] == documents * (3 if where == "null" else share)


@settings(deadline=None)
@given(LENGTHS, st.data())
def test_select_keeps_named_targets(lengths: NDArray[np.int64], data: st.DataObject) -> None:
    task: Any = Labelled()
    examples = limit_targets(task, random_examples(lengths, seed=1), ["b", 1])
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=9)))
    part = select(examples, rows)
    assert examples.further_loss_mask is not None
    assert part.further_loss_mask is not None
    assert part.further_loss_mask.tolist() == examples.further_loss_mask[rows, : lengths[rows].max()].tolist()


def test_analyses_know_which_targets_there_are() -> None:
    task = POLYNOMIALS.build()
    examples = limit_targets(task, task.examples("train", np.arange(12), 0), [2])
    model = build_model(MODEL, Parallel(n=3), len(task.vocabulary), 0)
    batch = packed_batch(examples, examples.tokens.shape[1], 3)
    whole = losses(model.objective, model.decoder, batch, [1.0] * 3)
    assert valid(examples, 3).sum(axis=(0, 1)).tolist() == whole.targets.tolist()
    assert whole.targets.tolist()[1:] == [12, 12]
    _, nats, _ = terms(model, examples)
    assert nats.detach().sum(dim=(0, 1)).tolist() == pytest.approx(whole.nats.tolist(), rel=1e-4)


def test_a_token_that_training_never_has_as_a_target_is_refused() -> None:
    assert tiny("objective.where=[question]").objective.n == 2
    with pytest.raises(BadInput, match=r"objective\.where: 'question' is not allowed: training has no such target"):
        tiny("task.loss=answer", "objective.where=[question]")
