"""The CPU's kernels against the decoder's plain formulas, which other devices use, and against fp64 differences."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lab.models import kernels
from lab.models.decoder import Block, Context, rotary
from lab.models.sizes import Model
from lab.objectives import build_model
from lab.objectives.parallel import Parallel


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(rows: int, positions: int, head_width: int, documents: int) -> Context:
    """Rows of so many documents of about equal length; 0 for plain causal attention, without a mask."""
    rotations = rotary(positions, head_width, 10_000.0, torch.device("cpu")).to(torch.complex128)
    if not documents:
        return Context(rotations, None)
    marks = (torch.arange(positions) * documents // positions).expand(rows, -1)
    seen = (marks[:, :, None] == marks[:, None, :]).tril()[:, None]
    return Context(rotations, torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf))


def both(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """What is computed with the kernels, and without."""
    ours = compute()
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "serve", lambda _: False)
        return ours, compute()


@pytest.mark.parametrize("documents", [0, 1, 5])
@pytest.mark.parametrize("positions", [1, 63, 64, 65, 128, 200])
def test_a_layer_and_its_gradients_are_those_of_the_plain_formulas(
    positions: int, documents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Block(width=12, heads=2).double()
    for index, parameter in enumerate(block.parameters()):
        parameter.data = randn(*parameter.shape, seed=index) / 2
    x, upstream = randn(2, positions, 12).requires_grad_(), randn(2, positions, 12, seed=1)

    def compute() -> list[Tensor]:
        out = block(x, context(2, positions, 6, documents))
        return [out, *torch.autograd.grad(out, (x, *block.parameters()), upstream)]

    for ours, plain in zip(*both(monkeypatch, compute), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4))
def test_gradients_are_what_differences_say(rows: int, positions: int, heads: int, half: int, documents: int) -> None:
    shared = context(rows, positions, 2 * half, documents)
    x = randn(rows, positions, 6 * half * heads).requires_grad_()
    check = partial(torch.autograd.gradcheck, fast_mode=True)  # along one direction of all inputs at once
    check(lambda x: kernels.attend(x, shared.rotary, shared.mask, heads), (x,))
    check(kernels.swiglu, (x,))
    weight = randn(x.shape[-1], seed=2).requires_grad_()
    check(lambda x, weight: kernels.rms_norm(x, weight, 1e-5), (x, weight))


def test_gradients_across_blocks_are_what_differences_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ROWS", 3)
    for documents in (0, 2):
        shared = context(2, 8, 4, documents)
        x = randn(2, 8, 24).requires_grad_()
        torch.autograd.gradcheck(lambda x: kernels.attend(x, shared.rotary, shared.mask, 2), (x,))  # noqa: B023


def test_large_numbers_do_not_overflow() -> None:
    x = torch.tensor([[[-200.0, 200.0, 1e4, 3.0, 3.0, 3.0]]], requires_grad=True)
    out = kernels.swiglu(x)
    torch.testing.assert_close(out, F.silu(x[..., :3]) * x[..., 3:])
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient[0, 0], torch.tensor([0.0, 3.0, 3.0, 0.0, 200.0, 1e4]))


def test_rows_that_are_longer_are_left_to_torch() -> None:
    model = build_model(Model(layers=2, width=8, heads=2), Parallel(n=1), 11, seed=0)
    for positions, served in ((kernels.LONGEST, True), (kernels.LONGEST + 1, False)):
        tokens = torch.zeros(1, positions, dtype=torch.int64)
        out = model.decoder(tokens, model.decoder.context(tokens, None))
        names, nodes = set(), [out.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is not None:
                names.add(node.name())
                nodes += [each for each, _ in node.next_functions]
        assert ("_AttendBackward" in names) == served
        assert any("ScaledDotProduct" in name for name in names) != served


def test_autocast_uses_the_plain_formulas() -> None:
    x = torch.zeros(1)
    assert kernels.serve(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.serve(x)
    assert not kernels.serve(x.to("meta"))
    assert not kernels.serve(x.bfloat16())
