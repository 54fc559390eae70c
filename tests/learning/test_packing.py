"""Packing: every document once and whole, little waste, and nothing lost on the way into a batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lab.learning.data import pack, packed_batch, select
from lab.models.sizes import Model
from lab.objectives import build_model
from lab.objectives.backward import losses
from lab.tasks.base import Examples
from lab.tasks.polynomials.task import Polynomials
from tests.objectives.test_variants import NAMES, objective

CONTEXT = 20
LENGTHS = st.lists(st.integers(1, CONTEXT), min_size=1, max_size=60).map(np.array)


def random_examples(lengths: NDArray[np.int64], seed: int, spans: bool = True) -> Examples:
    random = np.random.default_rng(seed)
    inside = np.arange(lengths.max()) < lengths[:, None]
    tokens = (random.integers(0, 50, inside.shape) * inside).astype(np.uint16)
    trained, scored = (inside & (random.random(inside.shape) < 0.7) for _ in range(2))
    names = {"number": np.arange(len(lengths))}
    keys = random.integers(0, 99, (len(lengths), 2)).astype(np.uint64)
    marks = {"kind": (random.integers(1, 9, inside.shape) * inside).astype(np.uint8)}
    reach = np.where(inside, random.integers(1, 9, inside.shape), 1).astype(np.uint8) if spans else None
    return Examples(tokens, lengths, trained, scored, names, keys, marks, reach)


def fewest_rows(lengths: list[int], room: tuple[int, ...] = ()) -> int:
    """The fewest rows that hold the documents, by trying everything."""
    if not lengths:
        return len(room)
    first, rest = lengths[0], lengths[1:]
    tries = [fewest_rows(rest, (*room, CONTEXT - first))]
    for i in range(len(room)):
        if room[i] >= first:
            tries.append(fewest_rows(rest, (*room[:i], room[i] - first, *room[i + 1 :])))
    return min(tries)


@settings(deadline=None)
@given(LENGTHS)
def test_every_document_has_a_place_of_its_own(lengths: NDArray[np.int64]) -> None:
    rows, columns = pack(lengths, CONTEXT)
    uses = np.zeros((rows.max() + 1, CONTEXT), np.int64)
    for row, column, length in zip(rows, columns, lengths, strict=True):
        assert 0 <= column <= column + length <= CONTEXT
        uses[row, column : column + length] += 1
    assert uses.max() == 1
    assert uses.any(axis=1).all()
    assert (np.diff(uses, axis=1) <= 0).all()  # padding is at the end alone


@settings(deadline=None)
@given(LENGTHS)
def test_no_row_is_opened_while_an_earlier_one_has_room(lengths: NDArray[np.int64]) -> None:
    # It follows that at most one row is less than half full.
    rows, _ = pack(lengths, CONTEXT)
    filled = np.bincount(rows, weights=lengths)
    for row in range(1, len(filled)):
        longest = lengths[rows == row].max()
        assert (filled[:row] + longest > CONTEXT).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, CONTEXT), min_size=1, max_size=7))
def test_rows_are_within_the_known_bound_of_the_fewest(lengths: list[int]) -> None:
    # Best fit decreasing: at most 11/9 of the optimum and 6/9 (Johnson 1974; Dósa 2007).
    rows, _ = pack(np.array(lengths), CONTEXT)
    assert rows.max() + 1 <= math.floor((11 * fewest_rows(lengths) + 6) / 9)


@pytest.mark.parametrize("seed", range(5))
def test_many_random_documents_leave_little_empty(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 41, 500)
    rows, _ = pack(lengths, 128)
    assert rows.max() + 1 <= math.ceil(lengths.sum() / 128) + 1


@settings(deadline=None)
@given(LENGTHS)
def test_packing_is_deterministic(lengths: NDArray[np.int64]) -> None:
    for one, other in zip(pack(lengths, CONTEXT), pack(lengths.copy(), CONTEXT), strict=True):
        assert np.array_equal(one, other)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(0, 1000))
def test_documents_are_recovered_from_a_batch(lengths: NDArray[np.int64], n: int, seed: int) -> None:
    examples = random_examples(lengths, seed)
    batch = packed_batch(examples, CONTEXT, n)
    assert examples.horizons is not None
    assert batch.horizons is not None
    tokens, documents, trained, spans = (each.numpy() for each in (*batch[:3], batch.horizons))
    assert tokens.shape == documents.shape == trained.shape == spans.shape == (documents.shape[0], CONTEXT + n)
    assert spans.dtype == np.int64
    for i, length in enumerate(lengths):
        [row] = np.unique(np.nonzero(documents == i)[0])  # of one row, and there side by side
        places = np.flatnonzero(documents[row] == i)
        assert places.tolist() == list(range(places[0], places[0] + length))
        assert tokens[row, places].tolist() == examples.tokens[i, :length].tolist()
        assert trained[row, places].tolist() == examples.loss_mask[i, :length].tolist()
        assert spans[row, places].tolist() == examples.horizons[i, :length].tolist()
    padding = documents == -1
    assert (~padding).sum() == lengths.sum()
    assert padding[:, CONTEXT:].all()
    assert not tokens[padding].any()
    assert not trained[padding].any()
    assert (spans[padding] == 1).all()


def test_where_no_spans_are_told_a_batch_has_none() -> None:
    examples = random_examples(np.array([3, 5, 20]), seed=0, spans=False)
    assert packed_batch(examples, CONTEXT, 2).horizons is None
    assert select(examples, slice(1, 3)).horizons is None


@settings(deadline=None)
@given(LENGTHS, st.booleans(), st.integers(0, 3), st.integers(1, 4))
def test_rows_of_a_batch(lengths: NDArray[np.int64], spans: bool, start: int, stride: int) -> None:
    batch = packed_batch(random_examples(lengths, 0, spans), CONTEXT, 2)
    for whole, part in zip(batch, batch.rows(slice(start, None, stride)), strict=True):
        assert (whole is None) == (part is None)
        if whole is not None and part is not None:
            assert part.tolist() == whole.tolist()[start::stride]


def test_a_real_batch_loses_nothing() -> None:
    task = Polynomials(loss="answer", test_examples=10, validation_examples=10).build()
    examples = task.examples("train", np.arange(300), seed=0)
    batch = packed_batch(examples, 128, 4)
    assert int((batch.document_ids >= 0).sum()) == examples.lengths.sum()
    assert int(batch.loss_mask.sum()) == 300 * 6  # five coefficients and the end
    assert len(batch.tokens) <= examples.lengths.sum() / 128 * 1.1 + 1
    assert batch.horizons is not None
    scored = batch.horizons[batch.loss_mask].view(300, 6)  # row by row, and so document by document
    assert (scored == torch.tensor([5, 4, 3, 2, 1, 1])).all()
    assert (batch.horizons[~batch.loss_mask] == 1).all()


@settings(deadline=None)
@given(LENGTHS)
def test_joined_examples_are_one_row_without_padding(lengths: NDArray[np.int64]) -> None:
    examples = random_examples(lengths, seed=2)
    batch = packed_batch(examples, None, 3)
    assert batch.tokens.shape == (1, lengths.sum() + 3)
    assert (batch.document_ids[0, :-3] >= 0).all()
    for document, length in enumerate(lengths):
        places = (batch.document_ids[0] == document).nonzero()[:, 0]
        assert places.tolist() == list(range(int(places[0]), int(places[0]) + length))
        assert batch.tokens[0, places].tolist() == examples.tokens[document, :length].tolist()
        assert batch.loss_mask[0, places].tolist() == examples.loss_mask[document, :length].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_joined_examples_teach_what_packed_ones_do(name: str) -> None:
    """Losses and gradients in float64 are the same in any rows, except that the angles of positions are rounded."""
    model = build_model(Model(layers=5, width=8, heads=2), objective(name, 3), 50, seed=0).double()
    model.objective.trunk_gradient = 0.5
    examples = random_examples(np.random.default_rng(0).integers(1, CONTEXT, 40), seed=3)
    found = []
    for context in (CONTEXT, None):
        batch = packed_batch(examples, context, model.objective.n)
        loss = losses(model.objective, model.decoder, batch, [1.0] * model.objective.n)
        found.append((loss, torch.autograd.grad(loss.total, list(model.parameters()), allow_unused=True)))
    (packed, ours), (joined, theirs) = found
    torch.testing.assert_close(packed.nats, joined.nats, rtol=1e-8, atol=0)
    assert packed.targets.tolist() == joined.targets.tolist()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)


@settings(deadline=None)
@given(LENGTHS, st.data())
def test_select_keeps_examples_whole(lengths: NDArray[np.int64], data: st.DataObject) -> None:
    examples = random_examples(lengths, seed=1)
    rows = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=9)))
    part = select(examples, rows)
    assert part.tokens.shape == (len(rows), lengths[rows].max())
    for k, i in enumerate(rows):
        for field in ("tokens", "loss_mask", "score_mask"):
            one, other = getattr(part, field)[k], getattr(examples, field)[i]
            assert one[: lengths[i]].tolist() == other[: lengths[i]].tolist()
            assert not one[lengths[i] :].any()
        assert part.horizons is not None
        assert examples.horizons is not None
        assert part.horizons[k].tolist() == examples.horizons[i, : part.tokens.shape[1]].tolist()
        assert (
            part.token_features["kind"][k].tolist()
            == examples.token_features["kind"][i, : part.tokens.shape[1]].tolist()
        )
        assert (part.lengths[k], part.slices["number"][k]) == (lengths[i], i)
        assert part.fingerprints[k].tolist() == examples.fingerprints[i].tolist()
