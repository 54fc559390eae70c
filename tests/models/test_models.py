"""The decoder: parameters, who sees whom, positions, layers against loops over positions, initial weights."""

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from lab.models.decoder import Block, Context, rotary, rotate
from lab.models.sizes import SIZES, Model, Size
from lab.objectives import LanguageModel, build_model
from lab.objectives.flops import instantiate, non_embedding_parameters
from lab.objectives.parallel import Parallel, ParallelHeads

Vector = NDArray[np.float64]

NOMINAL = {"1M": 1e6, "3M": 3e6, "10M": 1e7, "30M": 3e7, "100M": 1e8, "300M": 3e8, "1B": 1e9}
INNER = {128: 344, 256: 680, 384: 1024, 512: 1368, 768: 2048, 1024: 2728, 1536: 4096}
"""The multiple of 8 nearest to 8d/3, worked out by hand."""
TINY = Model(layers=4, width=16, heads=2)
VOCABULARY = 11
ROW = torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3, -1, -1]])
"""The documents of a packed row: 3, 1, 5 and 2 tokens, and padding."""


def tokens_like(documents: Tensor, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, documents.shape, generator=torch.Generator().manual_seed(seed))


def head_logits(model: LanguageModel, tokens: Tensor, context: Context) -> Tensor:
    """All heads' logits [n, B, T, V]."""
    trunk = model.decoder(tokens, context)
    with torch.no_grad():
        return torch.stack(list(model.objective.logits(model.decoder, trunk, context, model.objective.n)))


def packed_logits(model: LanguageModel, tokens: Tensor, documents: Tensor | None) -> Tensor:
    return head_logits(model, tokens, model.decoder.context(tokens, documents))


# Parameters


@pytest.mark.parametrize("size", get_args(Size))
def test_parameters_are_equal_across_n_and_as_derived(size: Size) -> None:
    layers, width, _ = SIZES[size]
    # Attention d×3d and d×d, SwiGLU d×2f and f×d, two norms; and the final norm.
    layer = 4 * width**2 + 3 * width * INNER[width] + 2 * width
    assert abs(layer / (12 * width**2) - 1) < 0.01
    assert abs(layers * layer / NOMINAL[size] - 1) < 0.07
    for n in (1, 2, 4, 8):
        if n >= layers:
            continue
        model = instantiate(Model(size=size), Parallel(n=n), 100)
        assert isinstance(model.objective, ParallelHeads)
        blocks = [*model.decoder.trunk, *model.objective.heads]
        assert (len(blocks), len(model.objective.heads)) == (layers, n)
        assert {sum(p.numel() for p in block.parameters()) for block in blocks} == {layer}
        assert non_embedding_parameters(model) == layers * layer + width
        # parameters() names shared tensors once: two full embedding matrices mean that they are not tied.
        assert sum(p.numel() for p in model.parameters()) == layers * layer + width + 2 * 100 * width


@pytest.mark.parametrize("n", [4, 5])
def test_no_trunk_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="no trunk"):
        build_model(TINY, Parallel(n=n), VOCABULARY, 0)
    assert len(build_model(TINY, Parallel(n=3), VOCABULARY, 0).decoder.trunk) == 1


# Who sees whom


@pytest.mark.parametrize("documents", [None, ROW], ids=["causal", "packed"])
def test_no_output_depends_on_a_later_token(documents: Tensor | None) -> None:
    model = build_model(TINY, Parallel(n=2), VOCABULARY, 0)
    tokens = tokens_like(ROW)
    before = packed_logits(model, tokens, documents)
    for t in range(tokens.shape[1] - 1):
        changed = tokens.clone()
        changed[:, t + 1 :] = (changed[:, t + 1 :] + 1) % VOCABULARY
        after = packed_logits(model, changed, documents)
        assert torch.equal(after[:, :, : t + 1], before[:, :, : t + 1])
        assert (after[:, :, t + 1] != before[:, :, t + 1]).any()


def test_every_earlier_token_of_the_document_and_no_other_is_seen() -> None:
    model = build_model(TINY, Parallel(n=2), VOCABULARY, 0)
    tokens = tokens_like(ROW)
    before = packed_logits(model, tokens, ROW)
    for place in range(11):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % VOCABULARY
        differs = (packed_logits(model, changed, ROW) != before).any(dim=-1)[:, 0]
        sees = [t >= place and bool(ROW[0, t] == ROW[0, place]) for t in range(ROW.shape[1])]
        assert differs.tolist() == [sees, sees]


def test_packed_documents_are_as_if_alone() -> None:
    model = build_model(TINY, Parallel(n=2), VOCABULARY, 0).double()
    tokens = tokens_like(ROW)
    packed, rotations = packed_logits(model, tokens, ROW), model.decoder.context(tokens, None).rotary
    for first, last in ((0, 3), (3, 4), (4, 9), (9, 11)):
        alone = tokens[:, first:last]
        same_place = head_logits(model, alone, Context(rotations[first:last]))
        torch.testing.assert_close(packed[:, :, first:last], same_place, rtol=0, atol=1e-13)
        # Counted from 0, the rotations are other float32 numbers, which is what this tolerance is for.
        torch.testing.assert_close(packed[:, :, first:last], packed_logits(model, alone, None), rtol=0, atol=1e-6)


# Positions


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 100))
def test_attention_depends_on_differences_of_positions(shift: int) -> None:
    model = build_model(TINY, Parallel(n=2), VOCABULARY, 0).double()
    documents = torch.tensor([[0] * shift + [1] * 7])
    tokens = tokens_like(documents, seed=shift)
    shifted = packed_logits(model, tokens, documents)[:, :, shift:]
    torch.testing.assert_close(shifted, packed_logits(model, tokens[:, shift:], None), rtol=0, atol=1e-5)


def turned(vector: Vector, position: int, base: float) -> Vector:
    """Rotary positions by explicit 2x2 rotations, in float64."""
    out = np.empty_like(vector)
    for i in range(0, len(vector), 2):
        angle = position * base ** (-i / len(vector))
        matrix = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        out[i : i + 2] = np.array(matrix) @ vector[i : i + 2]
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_rotate_is_a_rotation_of_neighbouring_channels(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(2, 40, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = rotate(x, rotary(40, 8, 100.0, x.device))
    assert result.dtype == dtype
    for b, t, h in np.ndindex(2, 40, 3):
        expected = turned(x[b, t, h].double().numpy(), t, 100.0)
        np.testing.assert_allclose(result[b, t, h].double().numpy(), expected, rtol=tolerance, atol=tolerance)


# Layers against loops


def rms_norm(x: Vector, weight: Vector) -> Vector:
    return x / math.sqrt(sum(value * value for value in x) / len(x) + 1e-5) * weight


def naive_block(weights: dict[str, Vector], xs: list[Vector], documents: list[int], heads: int) -> list[Vector]:
    """One layer, a position, a head and a pair of positions at a time, in float64."""
    width = len(xs[0])
    size = width // heads
    queries, keys, values = [], [], []
    for x in xs:
        projected = weights["attention.inputs.weight"] @ rms_norm(x, weights["attention_norm.weight"])
        queries.append(projected[:width])
        keys.append(projected[width : 2 * width])
        values.append(projected[2 * width :])
    out = []
    for t, x in enumerate(xs):
        mixed = np.zeros(width)
        for head in (slice(h * size, (h + 1) * size) for h in range(heads)):
            seen = [s for s in range(t + 1) if documents[s] == documents[t]]
            query = turned(queries[t][head], t, 10_000.0)
            likeness = [math.exp(query @ turned(keys[s][head], s, 10_000.0) / math.sqrt(size)) for s in seen]
            for s, weight in zip(seen, likeness, strict=True):
                mixed[head] += weight / sum(likeness) * values[s][head]
        middle = x + weights["attention.output.weight"] @ mixed
        normed = rms_norm(middle, weights["feedforward_norm.weight"])
        gate, value = np.split(weights["feedforward.inputs.weight"] @ normed, 2)
        swish = np.array([g / (1 + math.exp(-g)) for g in gate])
        out.append(middle + weights["feedforward.output.weight"] @ (swish * value))
    return out


def arrays(module: torch.nn.Module) -> dict[str, Vector]:
    return {name: parameter.detach().double().numpy() for name, parameter in module.named_parameters()}


def scatter(module: torch.nn.Module) -> None:
    """Random parameters, norms included, so that none is without effect."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3


@pytest.mark.parametrize("documents", [[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, -1]])
def test_a_layer_is_what_loops_compute(documents: list[int]) -> None:
    block = Block(width=8, heads=2)
    scatter(block)
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    angles = torch.arange(6.0, dtype=torch.float64)[:, None] * 10_000.0 ** -torch.tensor([0.0, 0.5]).double()
    marks = torch.tensor(documents)
    context = Context(torch.polar(torch.ones_like(angles), angles)[:, None], marks[None], dtype=torch.float64)
    result = block(x, context)
    expected = naive_block(arrays(block), list(x[0].numpy()), documents, heads=2)
    np.testing.assert_allclose(result[0].detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_model_is_embedding_trunk_head_norm_unembedding() -> None:
    model = build_model(Model(layers=4, width=8, heads=2), Parallel(n=2), VOCABULARY, 0)
    scatter(model)
    assert isinstance(model.objective, ParallelHeads)
    tokens, documents = tokens_like(ROW), ROW[0].tolist()
    decoder = arrays(model.decoder)
    xs = [decoder["embedding.weight"][token] for token in tokens[0]]
    for block in model.decoder.trunk:
        xs = naive_block(arrays(block), xs, documents, heads=2)
    result = packed_logits(model, tokens, ROW)
    for logits, head in zip(result, model.objective.heads, strict=True):
        ends = naive_block(arrays(head), xs, documents, heads=2)
        expected = [decoder["unembedding.weight"] @ rms_norm(x, decoder["norm.weight"]) for x in ends]
        np.testing.assert_allclose(logits[0].numpy(), expected, atol=1e-5)  # for float32 rotations


# Initial weights


def initial(n: int, seed: int) -> dict[str, Tensor]:
    return dict(build_model(Model(layers=6, width=64, heads=4), Parallel(n=n), 300, seed).named_parameters())


def test_initial_parameters_are_shared_across_n() -> None:
    torch.manual_seed(1)
    one = initial(1, seed=5)
    torch.manual_seed(2)
    four = initial(4, seed=5)
    common = one.keys() & four.keys()
    assert {name.removesuffix(".attention.inputs.weight") for name in common if "attention.inputs" in name} == {
        "decoder.trunk.0", "decoder.trunk.1", "objective.heads.0",
    }  # fmt: skip
    assert all(torch.equal(one[name], four[name]) for name in common)


def test_initial_matrices_differ_by_seed_and_by_name() -> None:
    matrices = [p for seed in (0, 1) for p in initial(4, seed).values() if p.dim() == 2]
    assert len({tuple(matrix.flatten()[:8].tolist()) for matrix in matrices}) == len(matrices) == 2 * (6 * 4 + 2)


def test_initial_deviations() -> None:
    residual = math.sqrt(2 * 6)
    deviations = {
        "embedding.weight": 1 / math.sqrt(64),
        "unembedding.weight": 1 / math.sqrt(64),
        "attention.inputs.weight": 1 / math.sqrt(64),
        "attention.output.weight": 1 / math.sqrt(64) / residual,
        "feedforward.inputs.weight": 1 / math.sqrt(64),
        "feedforward.output.weight": 1 / math.sqrt(168) / residual,
    }
    for name, parameter in initial(2, seed=0).items():
        if parameter.dim() == 1:
            assert (parameter == 1).all()
            continue
        [deviation] = {value for end, value in deviations.items() if name.endswith(f".{end}")}
        error = deviation / math.sqrt(parameter.numel())
        assert abs(parameter.mean().item()) < 5 * error
        assert abs(parameter.std().item() - deviation) < 5 * error / math.sqrt(2)


# Shapes


@pytest.mark.parametrize(
    "fields",
    [
        {"size": "1M", "layers": 4},
        {"size": "1M", "layers": 4, "width": 16, "heads": 2},
        {"layers": 4},
        {"layers": 4, "width": 16},
        {"layers": 4, "width": 16, "heads": 3},
        {"layers": 4, "width": 18, "heads": 6},  # heads of odd width
        {"layers": 1, "width": 16, "heads": 2},
        {"size": "2M"},
        {"rotary_base": 1.0},
        {"depth": 4},
    ],
)
def test_shapes_that_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Model(**fields)


def test_shapes() -> None:
    assert Model() == Model(size="1M")
    assert (Model().shape, Model().label) == (SIZES["1M"], "1M")
    assert (tuple(TINY.shape), TINY.label) == ((4, 16, 2), "L4-D16-H2")


def test_shape_and_rotary_base_reach_the_model() -> None:
    model = build_model(Model(layers=3, width=24, heads=3, rotary_base=50.0), Parallel(n=1), VOCABULARY, 0)
    block = model.decoder.trunk[0]
    assert isinstance(block, Block)
    assert (len(model.decoder.trunk), block.attention.heads) == (2, 3)
    angles = model.decoder.context(torch.zeros(1, 2, dtype=torch.int64), None).rotary[1, 0].angle()
    np.testing.assert_allclose(angles.numpy(), [50.0 ** (-i / 8) for i in (0, 2, 4, 6)], rtol=1e-6)
