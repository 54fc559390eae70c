"""Objectives: targets by brute force, losses and gradients against loops in float64, laziness, what is dropped."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lab.models.sizes import Model
from lab.objectives import LanguageModel, ObjectiveConfig, build_model
from lab.objectives.base import Batch, cross_entropy, targets
from lab.objectives.next_token import NextToken
from lab.objectives.parallel import Parallel, ParallelHeads

TINY = Model(layers=5, width=16, heads=2)
VOCABULARY = 7


def random_batch(seed: int, n: int, rows: int = 3, positions: int = 12) -> Batch:
    """Rows of documents of 1 to 6 tokens, padding behind, a fifth of the tokens not trained on."""
    random = np.random.default_rng(seed)
    documents = np.full((rows, positions + n), -1)
    for row in documents:
        place = 0
        for document, length in enumerate(random.integers(1, 7, size=random.integers(1, 6))):
            row[place : place + length] = document
            place += length
    tokens, trained = random.integers(0, VOCABULARY, documents.shape), random.random(documents.shape) < 0.8
    return Batch(torch.from_numpy(tokens), torch.from_numpy(documents), torch.from_numpy(trained))


def parallel(n: int, objective: ObjectiveConfig | None = None) -> LanguageModel:
    return build_model(TINY, objective or Parallel(n=n), VOCABULARY, seed=n)


def heads_of(model: LanguageModel) -> nn.ModuleList:
    assert isinstance(model.objective, ParallelHeads)
    return model.objective.heads


def training_loss(model: LanguageModel, batch: Batch) -> Tensor:
    return torch.stack([term.weight * term.loss for term in model.objective.terms(model.decoder, batch)]).sum()


# Targets


@st.composite
def any_batch(draw: st.DrawFn) -> tuple[Batch, int]:
    """A batch of which nothing is known but its shape, and n."""
    rows, positions, n = draw(st.integers(1, 3)), draw(st.integers(1, 10)), draw(st.integers(1, 4))

    def grid(values: st.SearchStrategy[int]) -> Tensor:
        row = st.lists(values, min_size=positions + n, max_size=positions + n)
        return torch.tensor(draw(st.lists(row, min_size=rows, max_size=rows)))

    tokens, documents = grid(st.integers(0, 9)), grid(st.sampled_from([-1, 0, 0, 0, 1]))
    return Batch(tokens, documents, grid(st.integers(0, 1)).bool()), n


@settings(deadline=None)
@given(any_batch() | st.tuples(st.integers(0, 10**6).map(lambda seed: random_batch(seed, n=4)), st.just(4)))
def test_targets_by_brute_force(case: tuple[Batch, int]) -> None:
    batch, n = case
    rows, width = batch.tokens.shape
    for offset in range(1, n + 1):
        expected = torch.full((rows, width - n), -100)
        for b in range(rows):
            for t in range(width - n):
                here, there = int(batch.documents[b, t]), int(batch.documents[b, t + offset])
                if here != -1 and here == there and batch.trained[b, t + offset]:
                    expected[b, t] = batch.tokens[b, t + offset]
        assert torch.equal(targets(batch, offset, width - n), expected)


# Losses


def naive_loss(logits: Tensor, wanted: Tensor) -> tuple[Tensor, int]:
    """The mean of -log p over the targets, one by one, in float64."""
    losses = []
    for b, t in np.ndindex(*wanted.shape):
        if wanted[b, t] != -100:
            scores = logits[b, t].double()
            losses.append(torch.log(torch.exp(scores).sum()) - scores[wanted[b, t]])
    return torch.stack(losses).mean() if losses else logits.double().sum() * 0, len(losses)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_cross_entropy(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 5, VOCABULARY, generator=generator)
    wanted = torch.randint(VOCABULARY, (2, 5), generator=generator)
    wanted[torch.rand(2, 5, generator=generator) < share] = -100
    loss, number = cross_entropy(logits, wanted)
    expected, count = naive_loss(logits, wanted)
    assert int(number) == count
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


def test_cross_entropy_of_bfloat16_is_computed_in_float32() -> None:
    logits = torch.randn(1, 50, VOCABULARY, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = torch.zeros(1, 50, dtype=torch.int64)
    loss, _ = cross_entropy(logits, wanted)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), naive_loss(logits, wanted)[0], rtol=1e-6, atol=1e-6)


def test_no_targets_mean_no_loss_and_no_gradient() -> None:
    logits = torch.randn(1, 3, VOCABULARY, requires_grad=True)
    loss, number = cross_entropy(logits, torch.full((1, 3), -100))
    torch.autograd.backward(loss)
    assert (loss.item(), int(number)) == (0.0, 0)
    assert logits.grad is not None
    assert (logits.grad == 0).all()


# Parallel heads


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_terms_and_gradients_equal_a_naive_reference(n: int, reduction: Literal["sum", "mean"]) -> None:
    model = parallel(n, Parallel(n=n, reduction=reduction)).double()
    batch = random_batch(seed=n, n=n)
    terms = list(model.objective.terms(model.decoder, batch))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(training_loss(model, batch), parameters)

    # A forward and a backward pass of its own for each head.
    inputs, documents = batch.tokens[:, :12], batch.documents[:, :12]
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    for i, (head, term) in enumerate(zip(heads_of(model), terms, strict=True), start=1):
        context = model.decoder.context(inputs, documents)
        logits = model.decoder.logits(head(model.decoder(inputs, context), context))
        wanted = torch.full((3, 12), -100)
        for b, t in np.ndindex(3, 12):
            if documents[b, t] >= 0 and documents[b, t] == batch.documents[b, t + i] and batch.trained[b, t + i]:
                wanted[b, t] = batch.tokens[b, t + i]
        loss, number = naive_loss(logits, wanted)
        assert number > 0
        assert (term.head, int(term.targets), term.weight) == (i, number, 1 if reduction == "sum" else 1 / n)
        assert term.loss.item() == pytest.approx(loss.item(), rel=1e-12)
        for total, part in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if part is not None:
                total += part if reduction == "sum" else part / n
    for name, gradient, expected in zip(names, gradients, sums, strict=True):
        assert (expected != 0).any(), name
        assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-10), name


def test_a_head_beyond_every_document_has_no_targets() -> None:
    model = parallel(2)
    alone = torch.arange(8)[None]  # documents of one token
    batch = Batch(torch.zeros(1, 8, dtype=torch.int64), alone // 2, torch.ones(1, 8, dtype=torch.bool))
    first, second = model.objective.terms(model.decoder, batch)
    assert (int(first.targets), int(second.targets), second.loss.item()) == (3, 0, 0.0)
    assert first.loss.item() > 0


def test_next_token_is_parallel_of_one_bit_for_bit() -> None:
    batch = random_batch(seed=0, n=1)
    results = []
    for objective in (NextToken(), Parallel(n=1)):
        model = build_model(TINY, objective, VOCABULARY, seed=3)
        loss = training_loss(model, batch)
        torch.autograd.backward(loss)
        results.append((loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}))
    (one, gradients), (other, expected) = results
    assert torch.equal(one, other)
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)  # type: ignore[arg-type]


# What inference drops


def next_token_logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    context = model.decoder.context(tokens, None)
    [logits] = model.objective.logits(model.decoder, model.decoder(tokens, context), context, heads=1)
    return logits


def test_next_token_logits_do_without_the_other_heads() -> None:
    model = parallel(4)
    tokens = random_batch(seed=0, n=4).tokens
    before, names = next_token_logits(model, tokens), {name for name, _ in model.objective.named_parameters()}
    dropped = model.objective.dropped()
    del heads_of(model)[1:]
    assert torch.equal(next_token_logits(model, tokens), before)
    assert dropped == names - {name for name, _ in model.objective.named_parameters()}
    assert len(dropped) == 3 * 6


def test_next_token_logits_need_every_parameter_that_is_not_dropped() -> None:
    model = parallel(4)
    torch.autograd.backward(next_token_logits(model, random_batch(seed=0, n=4).tokens).square().sum())
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {f"objective.{name}" for name in model.objective.dropped()}


def test_nothing_is_dropped_of_next_token() -> None:
    assert parallel(1, NextToken()).objective.dropped() == frozenset()


class Counted(nn.Module):
    """Counts its calls."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *inputs: object) -> Tensor:
        self.calls += 1
        return self.module(*inputs)  # type: ignore[no-any-return]


def test_terms_are_computed_when_asked_for() -> None:
    model = parallel(3)
    heads = heads_of(model)
    counted = [Counted(head) for head in heads]
    for i, each in enumerate(counted):
        heads[i] = each
    model.decoder.trunk[0] = trunk = Counted(model.decoder.trunk[0])
    terms = model.objective.terms(model.decoder, random_batch(seed=0, n=3))
    for asked in range(3):
        assert [each.calls for each in counted] == [1] * asked + [0] * (3 - asked)
        assert next(terms).head == asked + 1
    assert ([each.calls for each in counted], trunk.calls) == ([1, 1, 1], 1)  # the trunk once for all heads
