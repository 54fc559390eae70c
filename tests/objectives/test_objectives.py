"""Objectives: targets by brute force, losses and gradients against loops in float64, laziness, what is dropped."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lab.models.sizes import Model
from lab.objectives import LanguageModel, ObjectiveConfig, build_model
from lab.objectives.backward import Order, losses
from lab.objectives.base import Batch, targets
from lab.objectives.cross_entropy import cross_entropy
from lab.objectives.next_token import NextToken
from lab.objectives.parallel import Parallel, ParallelHeads

TINY = Model(layers=5, width=16, heads=2)
VOCABULARY = 7


def random_batch(seed: int, n: int, rows: int = 3, positions: int = 12) -> Batch:
    """Rows of documents of 1 to 6 tokens, padding behind, a fifth of the tokens not trained on, spans at random."""
    random = np.random.default_rng(seed)
    documents = np.full((rows, positions + n), -1)
    for row in documents:
        place = 0
        for document, length in enumerate(random.integers(1, 7, size=random.integers(1, 6))):
            row[place : place + length] = document
            place += length
    tokens, trained = random.integers(0, VOCABULARY, documents.shape), random.random(documents.shape) < 0.8
    spans = random.integers(1, 6, documents.shape)
    return Batch(*map(torch.from_numpy, (tokens, documents, trained, spans)))


def parallel(n: int, objective: ObjectiveConfig | None = None) -> LanguageModel:
    return build_model(TINY, objective or Parallel(n=n), VOCABULARY, seed=n)


def heads_of(model: LanguageModel) -> nn.ModuleList:
    assert isinstance(model.objective, ParallelHeads)
    return model.objective.heads


def training_loss(model: LanguageModel, batch: Batch, order: Order = "joint") -> Tensor:
    return losses(model.objective, model.decoder, batch, model.config.head_weights(done=0), order).total


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
                here, there = int(batch.document_ids[b, t]), int(batch.document_ids[b, t + offset])
                if here != -1 and here == there and batch.loss_mask[b, t + offset]:
                    expected[b, t] = batch.tokens[b, t + offset]
        assert torch.equal(targets(batch, offset, width - n), expected)


# Losses


def naive_loss(logits: Tensor, wanted: Tensor) -> tuple[Tensor, int]:
    """The mean of -log p over the targets, one by one, in float64."""
    losses = []
    for place in np.ndindex(*wanted.shape):
        if wanted[place] != -100:
            scores = logits[place].double()
            losses.append(torch.log(torch.exp(scores).sum()) - scores[wanted[place]])
    return torch.stack(losses).mean() if losses else logits.double().sum() * 0, len(losses)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_cross_entropy(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(10, VOCABULARY, generator=generator)
    wanted = torch.randint(VOCABULARY, (10,), generator=generator)
    wanted[torch.rand(10, generator=generator) < share] = -100
    logits[0] *= 30  # in float32 most probabilities are then 0
    mean, number = naive_loss(logits, wanted)
    each = cross_entropy(logits.clone(), wanted)
    torch.testing.assert_close(each.sum().double(), mean * number, rtol=1e-6, atol=1e-6)
    assert each.shape == (10,)
    for loss, target, scores in zip(each, wanted, logits, strict=True):
        expected = naive_loss(scores[None], target[None])[0]
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
        assert target != -100 or loss == 0


def test_cross_entropy_of_bfloat16_is_computed_in_float32() -> None:
    logits = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = torch.zeros(50, dtype=torch.int64)
    loss = cross_entropy(logits, wanted).sum()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double() / 50, naive_loss(logits, wanted)[0], rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_gradients_of_cross_entropy_are_torchs(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, VOCABULARY, generator=generator, dtype=dtype).requires_grad_()
    x, scales = torch.randn(9, 7, generator=generator, dtype=dtype), torch.rand(9, generator=generator)
    wanted = torch.randint(VOCABULARY, (9,), generator=generator)
    wanted[torch.rand(9, generator=generator) < 0.3] = -100
    (ours,) = torch.autograd.grad((cross_entropy(x @ weight, wanted) * scales).sum(), weight)
    wide = (x @ weight) if dtype == torch.float64 else (x @ weight).float()
    theirs = F.cross_entropy(wide, wanted, reduction="none")
    (expected,) = torch.autograd.grad((theirs * scales).sum(), weight)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("form", ["slice", "transposed", "expanded"])
def test_cross_entropy_of_logits_that_are_a_view(form: str) -> None:
    whole = torch.randn(100, 300, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = torch.arange(100) % 64

    def logits() -> Tensor:
        views = {"slice": whole[:, 5:], "transposed": whole[:, :100].t(), "expanded": whole[:1].expand(100, -1)}
        return 2 * views[form] if form != "slice" else (2 * whole)[:, 5:]

    ours = cross_entropy(logits(), wanted)
    theirs = F.cross_entropy(logits(), wanted, reduction="none")
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(each.sum(), whole, retain_graph=True)[0] for each in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(ours.sum(), whole)


def test_logits_that_their_maker_needs_are_not_overwritten_unnoticed() -> None:
    x = torch.randn(3, VOCABULARY, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(cross_entropy(x.exp(), torch.zeros(3, dtype=torch.int64)).sum(), x)


def test_no_targets_mean_no_loss_and_no_gradient() -> None:
    logits = torch.randn(3, VOCABULARY, requires_grad=True)
    loss = cross_entropy(logits, torch.full((3,), -100)).sum()
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


# Parallel heads


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_losses_and_gradients_equal_a_naive_reference(n: int, reduction: Literal["sum", "mean"]) -> None:
    model = parallel(n, Parallel(n=n, reduction=reduction)).double()
    batch = random_batch(seed=n, n=n)
    found = losses(model.objective, model.decoder, batch, model.config.head_weights(done=0))
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(found.total, parameters)

    # A forward and a backward pass of its own for each head.
    inputs, documents = batch.tokens[:, :12], batch.document_ids[:, :12]
    sums, total = [torch.zeros_like(parameter) for parameter in parameters], 0.0
    for i, head in enumerate(heads_of(model), start=1):
        context = model.decoder.context(inputs, documents)
        logits = model.decoder.logits(head(model.decoder(inputs, context), context))
        wanted = torch.full((3, 12), -100)
        for b, t in np.ndindex(3, 12):
            if documents[b, t] >= 0 and documents[b, t] == batch.document_ids[b, t + i] and batch.loss_mask[b, t + i]:
                wanted[b, t] = batch.tokens[b, t + i]
        loss, number = naive_loss(logits, wanted)
        assert number > 0
        assert int(found.targets[i - 1]) == number
        assert found.nats[i - 1].item() == pytest.approx(loss.item() * number, rel=1e-12)
        total += loss.item() if reduction == "sum" else loss.item() / n
        for whole, part in zip(sums, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            if part is not None:
                whole += part if reduction == "sum" else part / n
    assert found.total.item() == pytest.approx(total, rel=1e-12)
    for name, gradient, expected in zip(names, gradients, sums, strict=True):
        assert (expected != 0).any(), name
        assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-10), name


@pytest.mark.parametrize("order", ["joint", "sequential", "fused"])
def test_a_head_beyond_every_document_has_no_targets(order: Order) -> None:
    model = parallel(2)
    alone = torch.arange(8)[None]  # documents of two tokens
    batch = Batch(torch.zeros(1, 8, dtype=torch.int64), alone // 2, torch.ones(1, 8, dtype=torch.bool))
    found = losses(model.objective, model.decoder, batch, [1.0, 1.0], order)
    assert found.targets.tolist() == [3, 0]
    assert (found.nats > 0).tolist() == [True, False]
    assert found.total.item() == pytest.approx(found.nats[0].item() / 3)
    torch.autograd.backward(found.total)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any().item() is not name.startswith("objective.heads.1."), name


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
    dropped = model.objective.training_only()
    del heads_of(model)[1:]
    assert torch.equal(next_token_logits(model, tokens), before)
    assert dropped == names - {name for name, _ in model.objective.named_parameters()}
    assert len(dropped) == 3 * 6


def test_next_token_logits_need_every_parameter_that_is_not_dropped() -> None:
    model = parallel(4)
    torch.autograd.backward(next_token_logits(model, random_batch(seed=0, n=4).tokens).square().sum())
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {f"objective.{name}" for name in model.objective.training_only()}


def test_nothing_is_dropped_of_next_token() -> None:
    assert parallel(1, NextToken()).objective.training_only() == frozenset()


class Counted(nn.Module):
    """Counts its calls."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *inputs: object) -> Tensor:
        self.calls += 1
        return self.module(*inputs)  # type: ignore[no-any-return]


def test_hidden_states_and_logits_are_computed_when_asked_for() -> None:
    model = parallel(3)
    heads = heads_of(model)
    counted = [Counted(head) for head in heads]
    for i, each in enumerate(counted):
        heads[i] = each
    model.decoder.unembedding = unembedding = Counted(model.decoder.unembedding)  # type: ignore[assignment]
    batch = random_batch(seed=0, n=3)
    context = model.decoder.context(batch.tokens, batch.document_ids)
    trunk = model.decoder(batch.tokens, context)
    for reads, asking in enumerate((model.objective.hidden_states, model.objective.logits)):
        for each in (*counted, unembedding):
            each.calls = 0
        made = asking(model.decoder, trunk, context, 3)
        for asked in range(4):
            assert [each.calls for each in counted] == [1] * asked + [0] * (3 - asked)
            assert unembedding.calls == reads * asked
            assert (next(made, None) is None) is (asked == 3)


@pytest.mark.parametrize("order", ["joint", "sequential", "fused"])
def test_a_loss_computes_the_trunk_and_each_head_once(order: Order) -> None:
    model = parallel(3)
    heads = heads_of(model)
    counted = [Counted(head) for head in heads]
    for i, each in enumerate(counted):
        heads[i] = each
    model.decoder.trunk[0] = trunk = Counted(model.decoder.trunk[0])
    torch.autograd.backward(training_loss(model, random_batch(seed=0, n=3), order))
    assert [each.calls for each in (trunk, *counted)] == [1, 1, 1, 1]
