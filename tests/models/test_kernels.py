"""The CPU's compiled kernels against the decoder's plain formulas, which other devices use, and against differences."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lab.models import kernels
from lab.models.decoder import Block, Context, RMSNorm, recompute, rotary
from lab.models.sizes import Model
from lab.objectives import build_model
from lab.objectives.parallel import Parallel

needs_compiler = pytest.mark.skipif(kernels.library() is None, reason="no C compiler on this machine")
pytestmark = needs_compiler


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(rows: int, positions: int, head_width: int, documents: int) -> Context:
    """Rows of so many documents of about equal length; 0 for plain causal attention."""
    rotations = rotary(positions, head_width, 10_000.0, torch.device("cpu")).to(torch.complex128)
    marks = (torch.arange(positions) * documents // positions).expand(rows, -1) if documents else None
    return Context(rotations, marks, dtype=torch.float64)


def block(width: int, heads: int) -> Block:
    made = Block(width, heads).double()
    for index, parameter in enumerate(made.parameters()):
        parameter.data = randn(*parameter.shape, seed=index) / 2
    return made


def both(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """The results with the kernels, and without."""
    ours = compute()
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "serve", lambda _: False)
        return ours, compute()


def nodes(out: Tensor) -> set[str]:
    """The names of the nodes of the autograd graph."""
    names, waiting = set(), [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.add(node.name())
            waiting += [each for each, _ in node.next_functions]
    return names


@pytest.mark.parametrize("documents", [0, 1, 5])
@pytest.mark.parametrize("positions", [1, 3, 16, 17, 63, 64, 130])
@pytest.mark.parametrize(("width", "heads"), [(12, 2), (32, 1), (40, 2)])
def test_a_layer_and_its_gradients_are_those_of_the_plain_formulas(
    positions: int, documents: int, width: int, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, shared = block(width, heads), context(2, positions, width // heads, documents)
    x, upstream = randn(2, positions, width).requires_grad_(), randn(2, positions, width, seed=1)

    def compute() -> list[Tensor]:
        out = layer(x, shared)
        assert ("_LayerBackward" in nodes(out)) == kernels.serve(x)
        with torch.no_grad():
            alone = layer(x, shared)
        return [out, alone, *torch.autograd.grad(out, (x, *layer.parameters()), upstream)]

    for ours, plain in zip(*both(monkeypatch, compute), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=30), min_size=1, max_size=3), st.integers(1, 3))
def test_documents_of_any_lengths_in_a_long_row_are_each_computed_alone(lengths: list[list[int]], heads: int) -> None:
    """Rows of documents one after another give what each document gives in a row of its own."""
    width, positions = 4 * heads, max(map(sum, lengths))
    layer = block(width, heads)
    x, documents = randn(len(lengths), positions, width), torch.full((len(lengths), positions), -1)
    for row, several in enumerate(lengths):
        documents[row, : sum(several)] = torch.repeat_interleave(torch.arange(len(several)), torch.tensor(several))
    angles = torch.arange(positions, dtype=torch.float64)[:, None, None] * torch.tensor([1.0, 0.1], dtype=torch.float64)
    rotations = torch.polar(torch.ones_like(angles), angles)  # `rotary` rounds to float32
    x.requires_grad_()
    together = layer(x, Context(rotations, documents, dtype=torch.float64))
    [gradient] = torch.autograd.grad(together, x, randn(*together.shape, seed=1))
    for row, several in enumerate(lengths):
        for first, length in zip(np.cumsum([0, *several]), several, strict=False):
            part = slice(int(first), int(first) + length)
            leaf = x[row : row + 1, part].detach().requires_grad_()
            alone = layer(leaf, Context(rotations[:length]))
            torch.testing.assert_close(together[row : row + 1, part], alone, rtol=1e-10, atol=1e-10)
            upstream = randn(*together.shape, seed=1)[row : row + 1, part]
            [wanted] = torch.autograd.grad(alone, leaf, upstream)
            torch.testing.assert_close(gradient[row : row + 1, part], wanted, rtol=1e-10, atol=1e-10)


def test_a_row_may_be_long_where_its_documents_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LONGEST", 8)
    x = randn(2, 24, 4)
    for length, served in ((8, True), (9, False)):
        shared = Context(rotary(24, 4, 100.0, torch.device("cpu")), (torch.arange(24) // length).expand(2, -1))
        assert shared.suits_kernels(x) == served
    assert not Context(rotary(24, 4, 100.0, torch.device("cpu"))).suits_kernels(x)


def test_float32_is_as_near_to_float64_as_the_plain_formulas_are(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shared = block(64, 4), context(4, 64, 16, 4)
    x, upstream = randn(4, 64, 64), randn(4, 64, 64, seed=1)

    def compute(dtype: torch.dtype) -> list[Tensor]:
        leaf = x.to(dtype).requires_grad_()
        out = layer.to(dtype)(leaf, Context(shared.rotary.to(torch.complex64), shared.document_ids, dtype=dtype))
        return [out, *torch.autograd.grad(out, (leaf, *layer.parameters()), upstream.to(dtype))]

    exact = compute(torch.float64)
    ours, plain = both(monkeypatch, lambda: compute(torch.float32))
    for wanted, one, other in zip(exact, ours, plain, strict=True):
        assert (one - wanted).norm() <= 2 * (other - wanted).norm() + 1e-7 * wanted.norm()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 4))
def test_gradients_are_what_differences_say(rows: int, positions: int, heads: int, half: int, documents: int) -> None:
    width = 2 * half * heads
    layer, shared = block(width, heads), context(rows, positions, 2 * half, documents)
    x = randn(rows, positions, width).requires_grad_()
    check = partial(torch.autograd.gradcheck, fast_mode=True)  # along one direction of all inputs at once
    weights = [each.detach().requires_grad_() for each in layer._weights()]
    starts = shared.starts(rows, positions)
    check(lambda x, *each: kernels.layer(x, shared.turn, starts, heads, 1e-5, kernels.Weights(*each)), (x, *weights))
    weight = randn(width, seed=2).requires_grad_()
    check(lambda x, weight: kernels.rms_norm(x, weight, 1e-5), (x, weight))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=12))
def test_a_position_starts_where_its_document_does(lengths: list[int]) -> None:
    documents = torch.cat([torch.full((length,), index % 3) for index, length in enumerate(lengths)])[None]
    wanted = [sum(lengths[:index]) for index, length in enumerate(lengths) for _ in range(length)]
    shared = Context(rotary(documents.shape[1], 4, 1e4, torch.device("cpu")), documents)
    assert shared.starts(1, documents.shape[1])[0].tolist() == wanted


def test_large_numbers_do_not_overflow() -> None:
    x = torch.tensor([[-200.0, 200.0, 1e4, 3.0, 3.0, 3.0]])
    torch.testing.assert_close(kernels.swiglu(x), F.silu(x[..., :3]) * x[..., 3:])
    scores = 200 * torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(0))
    shared = Context(rotary(8, 4, 1e4, torch.device("cpu")))
    mixed = kernels.attention(scores, shared.turn, shared.starts(1, 8), 1)
    q, k, v = (scores.double().view(1, 8, 3, 4)[0, :, part] for part in range(3))
    turned = [torch.view_as_real(torch.view_as_complex(each.reshape(8, 2, 2)) * shared.rotary[:, 0]) for each in (q, k)]
    products = turned[0].flatten(1) @ turned[1].flatten(1).T / 2
    wanted = products.masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(mixed[0].double(), wanted, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    for place in (0, 5):
        layer = Block(8, 2)
        x = torch.ones(1, 6, 8)
        x[0, place, 3] = bad
        out = layer(x, Context(rotary(6, 4, 1e4, torch.device("cpu"))))
        assert not out[0, place:].isfinite().any()
        for parameter in torch.autograd.grad(out.sum(), tuple(layer.parameters())):
            assert not parameter.isfinite().all()


def test_threads_change_sums_of_the_norms_weights_alone() -> None:
    layer, shared = block(16, 2), context(8, 32, 8, 3)
    x, upstream = randn(8, 32, 16).requires_grad_(), randn(8, 32, 16, seed=1)
    threads = torch.get_num_threads()
    found = {}
    for number in (1, 2):
        torch.set_num_threads(number)
        out = layer(x, shared)
        found[number] = [out, *torch.autograd.grad(out, (x, *layer.parameters()), upstream)]
    torch.set_num_threads(threads)
    for one, two in zip(found[1], found[2], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_rows_that_are_longer_are_left_to_torch() -> None:
    model = build_model(Model(layers=2, width=8, heads=2), Parallel(n=1), 11, seed=0)
    for positions, served in ((kernels.LONGEST, True), (kernels.LONGEST + 1, False)):
        tokens = torch.zeros(1, positions, dtype=torch.int64)
        names = nodes(model.decoder(tokens, model.decoder.context(tokens, None)))
        assert ("_LayerBackward" in names) == served
        assert any("ScaledDotProduct" in name for name in names) != served


def hooks(layer: Block) -> Iterator[nn.Module]:
    yield from (layer.attention, layer.attention.inputs, layer.attention.output, layer.attention_norm)
    yield from (layer.feedforward, layer.feedforward.inputs, layer.feedforward.output, layer.feedforward_norm)


def test_a_hook_on_any_part_is_called() -> None:
    layer, shared = Block(8, 2), Context(rotary(4, 4, 1e4, torch.device("cpu")))
    x = torch.randn(1, 4, 8)
    for part in hooks(layer):
        called: list[nn.Module] = []
        handles = [
            part.register_forward_hook(lambda module, *_: called.append(module)),  # noqa: B023
            part.register_full_backward_hook(lambda module, *_: called.append(module)),  # noqa: B023
        ]
        layer(x.requires_grad_(), shared).sum().backward()
        assert called == [part, part]
        for handle in handles:
            handle.remove()


def test_a_recomputed_layer_has_the_same_gradients() -> None:
    plain, again = block(8, 2), block(8, 2)
    recompute(again)
    shared, x = context(2, 20, 4, 3), randn(2, 20, 8).requires_grad_()
    found = [torch.autograd.grad(each(x, shared).sum(), (x, *each.parameters())) for each in (plain, again)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_autocast_uses_the_plain_formulas() -> None:
    x = torch.zeros(1)
    assert kernels.serve(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not kernels.serve(x)
    assert not kernels.serve(x.to("meta"))
    assert not kernels.serve(x.bfloat16())


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_compiler_the_plain_formulas_serve(compiler: str, tmp_path: Path) -> None:
    if compiler == "broken":
        tmp_path.joinpath("cc").write_text("#!/bin/sh\nexit 1\n")
        tmp_path.joinpath("cc").chmod(0o755)
    code = "import torch; from lab.models import kernels; print(kernels.serve(torch.zeros(1)), kernels.library())"
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    root = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["False", "None"]


def test_a_cache_folder_that_cannot_be_written_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert kernels.library.__wrapped__() is not None
    assert len(list(tmp_path.glob("mtp-lab-*/kernels-*.so"))) == 1


def test_the_final_norm_is_torchs() -> None:
    norm, x = RMSNorm(12).double(), randn(3, 5, 12).requires_grad_()
    norm.weight.data = randn(12, seed=3)
    ours = norm(x)
    plain = F.rms_norm(x, (12,), norm.weight, 1e-5)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
