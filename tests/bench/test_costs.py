"""Costs in closed form against instantiated models, torch's counters, measured peaks, and published numbers."""

import json
import math
import runpy
import sys
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lab.bench.costs import (
    NAMED,
    ORDERS,
    Architecture,
    Chip,
    against_paper,
    architecture,
    decoding,
    forward_pass,
    kept_per_layer,
    named_chips,
    net_bytes,
    training,
    two_heads,
)
from lab.bench.devices import BANDWIDTHS, PEAKS
from lab.bench.memory import estimate
from lab.cli.cost import BATCHES, cost
from lab.cli.main import cli, main
from lab.errors import BadInput
from lab.home import home
from lab.models.decoder import Block, Context, inner_width, rotary
from lab.models.sizes import SIZES, Model
from lab.objectives import LanguageModel, build_model
from lab.objectives.backward import Order, losses
from lab.objectives.base import Batch
from lab.objectives.flops import instantiate, non_embedding_parameters, training_flops_per_token
from lab.objectives.parallel import Parallel
from lab.paper import REAL_DATA_SIZES, SPEED_UPS, SPEED_UPS_CONTEXT, TRAINING_TIMES
from lab.report.style import colour_of, use_style
from tests.report.test_figures import readable


def named(name: str, vocabulary: int = 32_000) -> Architecture:
    return architecture(name, {}, None, vocabulary)


def of(layers: int, width: int, heads: int, vocabulary: int, inner: int | None = None) -> Architecture:
    return architecture(None, {"layers": layers, "width": width, "heads": heads}, inner, vocabulary)


LLAMA, PAPER_7B = named("llama-2-7b"), named("6.7B")


def count(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def agree(shape: Architecture, n: int, added: int, context: int) -> None:
    """The closed form and an instantiated model say the same."""
    model = Model(layers=shape.layers, width=shape.width, heads=shape.heads)
    built = instantiate(model, Parallel(n=n, extra_layers=added), shape.vocabulary)
    whole = shape._replace(layers=shape.layers + added)
    assert whole.parameters == count(built)
    assert whole.non_embedding_parameters == non_embedding_parameters(built)
    assert whole.training_flops(n, context) == training_flops_per_token(built, context)


# Parameters and FLOPs


@pytest.mark.parametrize("name", [*SIZES, *REAL_DATA_SIZES])
def test_named_shapes_are_those_of_instantiated_models(name: str) -> None:
    for n in (1, 2, 4):
        for added in {0, n - 1}:
            if n < NAMED[name][0].layers + added:
                agree(named(name), n, added, 2048)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 40), st.integers(1, 300), st.integers(1, 8), st.integers(1, 10**6), st.integers(1, 9000), st.data()
)
def test_any_shape_is_that_of_an_instantiated_model(
    layers: int, part: int, heads: int, vocabulary: int, context: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, layers - 1))
    agree(of(layers, 2 * part * heads, heads, vocabulary), n, data.draw(st.sampled_from((0, n - 1))), context)


def test_llama_2_7b_has_its_published_number_of_parameters() -> None:
    assert LLAMA.parameters == 6_738_415_616


@pytest.mark.parametrize(
    ("name", "millions", "in_all"),
    [
        ("1M", 0.98, None),
        ("3M", 3.1, None),
        ("10M", 10.6, None),
        ("30M", 31.5, None),
        ("100M", 99.1, None),
        ("300M", 314.6, None),
        ("1B", 1020, None),
        ("0.3B", 226, 292),
        ("0.6B", 531, 613),
        ("1.3B", 1210, 1340),
        ("3B", 2830, 3000),
        ("6.7B", 6440, 6700),
        ("13B", 12_600, 12_900),
    ],
)
def test_sizes_are_those_of_table_s14(name: str, millions: float, in_all: float | None) -> None:
    """To the digits printed; and 12 d² a layer within 1 %, norms and the inner width's rounding included."""
    shape = named(name)
    assert shape.non_embedding_parameters / 1e6 == pytest.approx(millions, rel=0.013)
    assert shape.non_embedding_parameters == pytest.approx(12 * shape.width**2 * shape.layers, rel=0.01)
    if in_all is not None:
        assert shape.parameters / 1e6 == pytest.approx(in_all, rel=0.002)


@pytest.mark.usefixtures("plain_formulas")
def test_an_inner_width_of_its_own() -> None:
    """Against torch: parameters counted, and the FLOPs of a training step, of a model whose layers are replaced."""
    shape, context, rows, n = of(5, 32, 4, 17, inner=52), 24, 2, 3
    model = build_model(Model(layers=5, width=32, heads=4), Parallel(n=n), 17, 0)
    for each in model.modules():
        if isinstance(each, Block):
            each.feedforward.inputs = nn.Linear(32, 2 * 52, bias=False)
            each.feedforward.output = nn.Linear(52, 32, bias=False)
    assert shape.parameters == count(model)
    tokens = torch.randint(17, (rows, context + n), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(losses(model.objective, model.decoder, batch, [1.0] * n).total)
    assert shape.training_flops(n, context) * rows * context == counter.get_total_flops()


# Memory of training


def test_fp32_memory_is_within_five_percent_of_what_was_measured() -> None:
    table = json.loads((home() / "results" / "bench_memory.cpu.json").read_text())
    measured = [cell for cell in table["cells"] if cell["ran"]]
    assert len(measured) >= 24
    for cell in measured:
        shape = named(table["size"], cell["vocabulary"])
        net = net_bytes(shape, cell["n"], table["tokens"], table["context"], cell["order"], "fp32")
        assert net == pytest.approx(cell["net_bytes"], rel=0.05), cell
        assert 12 * shape.parameters + net == pytest.approx(cell["peak_bytes"], rel=0.05), cell
        assert 4 * shape.parameters == cell["parameter_bytes"]


@pytest.mark.parametrize("context", [64, 200, 512])
def test_what_an_fp32_layer_keeps_is_that_of_the_estimate(context: int) -> None:
    def net(layers: int) -> int:
        model = instantiate(Model(layers=layers, width=64, heads=4), Parallel(n=1), 50)
        return estimate(model, 2 * context, context, "joint")

    kept = kept_per_layer(of(5, 64, 4, 50), context, "fp32")
    assert net(6) - net(5) == pytest.approx(2 * context * kept, abs=1)


def test_what_a_bf16_layer_keeps_is_what_autograd_saves() -> None:
    """Under autocast, weights' copies apart; on a CPU the norms are put together from parts that keep more."""
    width, heads, rows, positions = 256, 4, 2, 128
    blocks = [Block(width, heads) for _ in range(2)]
    weights = {each.untyped_storage().data_ptr() for block in blocks for each in block.parameters()}
    context = Context(rotary(positions, width // heads, 1e4, torch.device("cpu")))

    def saved(part: list[Block]) -> int:
        found: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        x_BTD = torch.randn(rows, positions, width, requires_grad=True)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            for block in part:
                x_BTD = block(x_BTD, context)
        return sum(each.untyped_storage().nbytes() for place, each in found.items() if place not in weights)

    shape = of(2, width, heads, 50)
    norms = 2 * (4 * width + 4)  # a normed copy, and the inverse length
    kept = saved(blocks) - saved(blocks[:1]) - 2 * shape.layer_products
    assert kept == rows * positions * (kept_per_layer(shape, positions, "bf16") + norms)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_by_order(precision: Any) -> None:
    """Each further head's logits wait in the joint order alone; the state is that of AdamW."""
    shape, tokens = named("30M"), 8192
    rows = {row["n"]: row for row in training(shape, (1, 2, 4), 1024, tokens, precision) if not row["added_layers"]}
    logits = 4 * tokens * shape.vocabulary
    nets = {n: {order: row["memory"][order]["net_bytes"] for order in ORDERS} for n, row in rows.items()}
    more = nets[4]["joint"] - nets[1]["joint"]
    assert more == pytest.approx(3 * (logits + 4 * tokens * 2 * shape.width), rel=1e-6)
    assert nets[4]["fused"] < nets[4]["sequential"] < nets[1]["sequential"]
    for row in rows.values():
        assert row["weight_bytes"] + row["optimizer_bytes"] == 12 * shape.parameters
        for order in ORDERS:
            memory = row["memory"][order]
            assert memory["peak_bytes"] == 12 * shape.parameters + memory["net_bytes"]
            assert memory["net_to_n1"] == nets[row["n"]][order] / nets[1][order]


@settings(deadline=None)
@given(st.sampled_from((1, 2, 4)), st.sampled_from(ORDERS), st.integers(1, 2**18), st.sampled_from(sorted(NAMED)))
def test_all_gradients_are_there_at_the_end(n: int, order: Order, tokens: int, name: str) -> None:
    shape = named(name)
    if n < shape.layers:
        assert net_bytes(shape, n, tokens, 1024, order, "bf16") >= 4 * shape.parameters
        assert net_bytes(shape, n, 1, 1024, order, "bf16") < 7 * shape.parameters + 2**28


# Decoding


@pytest.mark.usefixtures("plain_formulas")
@pytest.mark.parametrize(("heads", "cached", "rows"), [(1, 0, 1), (1, 30, 3), (2, 7, 2), (3, 30, 2)])
def test_a_pass_costs_what_torch_counts(heads: int, cached: int, rows: int) -> None:
    """A reference with caches: every layer's queries of k positions look at C + k keys; k heads read all positions."""
    n, width, attention_heads, vocabulary = 3, 32, 4, 17
    model = build_model(Model(layers=5, width=width, heads=attention_heads), Parallel(n=n), vocabulary, 0)
    parts: Any = next(iter(model.objective.children()))

    def layer(block: Any, x_BTD: Tensor) -> Tensor:
        q, k, v = block.attention.inputs(block.attention_norm(x_BTD)).unflatten(-1, (3, attention_heads, -1)).unbind(2)
        past = torch.randn(rows, cached, attention_heads, width // attention_heads)
        k, v = torch.cat((past, k), 1), torch.cat((past, v), 1)
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x_BTD = x_BTD + block.attention.output(mixed.transpose(1, 2).flatten(2))
        return x_BTD + block.feedforward(block.feedforward_norm(x_BTD))  # type: ignore[no-any-return]

    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        x_BTD = model.decoder.embedding(torch.zeros(rows, heads, dtype=torch.int64))
        for block in model.decoder.trunk:
            x_BTD = layer(block, x_BTD)
        for head in parts[:heads]:
            model.decoder.logits(layer(head, x_BTD))
    mine = forward_pass(of(5, width, attention_heads, vocabulary), n, heads, cached)
    assert mine.row_flops * rows == counter.get_total_flops()


@pytest.mark.parametrize(("n", "heads"), [(1, 1), (4, 1), (4, 3), (4, 4)])
def test_a_pass_moves_the_weights_that_it_uses_and_the_cache(n: int, heads: int) -> None:
    built: LanguageModel = instantiate(Model(size="1B"), Parallel(n=n), 32_000)
    parts: Any = next(iter(built.objective.children()))
    dropped = sum(count(head) for head in parts[heads:])
    mine = forward_pass(named("1B"), n, heads, 100)
    assert mine.weight_bytes == 2 * (count(built) - dropped - built.decoder.embedding.weight.numel())
    layers = len(built.decoder.trunk) + heads
    assert mine.layers == layers
    keys = torch.empty(layers, 100 + heads, 24, 64, dtype=torch.bfloat16, device="meta")
    assert mine.row_bytes == 2 * keys.numel() * keys.element_size()
    assert mine.bytes(3) == mine.weight_bytes + 3 * mine.row_bytes


TOKENS = (1.94, 2.78, 3.5)
numbers = st.floats(1e9, 1e15)


@settings(deadline=None)
@given(st.sampled_from(["1M", "1B", "6.7B"]), st.integers(0, 4000), st.integers(1, 4096), numbers)
def test_the_limits_of_the_roofline(name: str, cached: int, batch: int, speed: float) -> None:
    """A chip without bound on compute is as fast as its bytes allow; one without bound on bandwidth, as its FLOPs."""
    shape = named(name)
    chips = (Chip("bytes", speed, None), Chip("flops", 1e40, speed))
    told = decoding(shape, 4, (cached,), (batch,), TOKENS, chips)
    first = forward_pass(shape, 4, 1, cached)
    for row in told["rows"]:
        mine, tokens = forward_pass(shape, 4, row["k"], cached), (1.0, *TOKENS)[row["k"] - 1]
        moved, computed = mine.weight_bytes + batch * mine.row_bytes, batch * mine.row_flops
        of_first = first.weight_bytes + batch * first.row_bytes, batch * first.row_flops
        work, before = (moved, of_first[0]) if row["chip"] == "bytes" else (computed, of_first[1])
        assert row["seconds"] == pytest.approx([work / speed])
        assert row["speed_up"] == pytest.approx([tokens * before / work])
        assert row["tokens_per_second"] == pytest.approx([batch * tokens * speed / work])
        assert row["break_even_tokens_per_forward"] == pytest.approx([work / before])
        assert row["compute_bound_from"] is None or row["compute_bound_from"] < 1


@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(1, 4), numbers, st.floats(1, 1000))
def test_passes_are_bound_by_compute_from_the_batch_that_is_told(
    cached: int, heads: int, bandwidth: float, ridge: float
) -> None:
    mine, chip = forward_pass(PAPER_7B, 4, heads, cached), Chip("some", bandwidth, bandwidth * ridge)
    batch = mine.compute_bound_from(chip)
    if batch is None:
        assert mine.row_flops / mine.row_bytes <= ridge * (1 + 1e-9)
        assert mine.seconds(chip, 10**9) == pytest.approx(mine.bytes(10**9) / bandwidth)
    elif batch < 10**9:
        after, before = math.ceil(batch * 1.001), math.floor(batch / 1.001)
        assert mine.seconds(chip, after) == pytest.approx(after * mine.row_flops / chip.peak)  # type: ignore[operator]
        assert mine.seconds(chip, before) == pytest.approx(mine.bytes(before) / bandwidth)


@settings(deadline=None)
@given(st.integers(0, 3000), st.sampled_from(sorted(BANDWIDTHS)), st.integers(1, 1000))
def test_the_roofline_holds_everywhere(cached: int, name: str, batch: int) -> None:
    (chip,) = named_chips([name])
    for row in decoding(PAPER_7B, 4, (cached,), (batch,), TOKENS, [chip])["rows"]:
        (flops,), (intensity,) = row["flops_per_second"], row["flops_per_byte"]
        assert flops == pytest.approx(min(PEAKS[name], intensity * chip.bandwidth))
        tokens = (1.0, *TOKENS)[row["k"] - 1]
        assert row["speed_up"][0] == pytest.approx(tokens / row["break_even_tokens_per_forward"][0])
        assert row["speed_up"][0] <= tokens * (1 + 1e-12)  # a further head is never for nothing


def test_what_a_device_holds() -> None:
    """80 GB less 13.15 GB of weights are 165 rows of 404.8 MB, at k = 4."""
    table = decoding(PAPER_7B, 4, (768,), (165, 166), TOKENS, named_chips(["A100"]))
    assert table["rows"][3]["fits"] == [True, False]


def test_devices_are_those_whose_peak_is_known() -> None:
    assert set(BANDWIDTHS) <= set(PEAKS)
    assert all(name in printed("decoding", "--help") for name in BANDWIDTHS)
    chip, other = named_chips(["h100", "rtx 4090", "H100"])
    assert (chip.name, other.name) == ("H100", "RTX 4090")
    assert (chip.bandwidth, chip.peak) == (3.35e12, 989e12)
    assert chip.ridge == pytest.approx(295.2, abs=0.05)


# The two estimates


def test_four_tokens_cost_llama_2_7b_five_percent_of_compute_and_no_memory_of_note() -> None:
    rows = {(row["n"], row["added_layers"]): row for row in training(LLAMA, (4,), 4096, 4096, "bf16")}
    matched, deeper = rows[4, 0], rows[4, 3]
    width, vocabulary, products = 4096, 32_000, 4 * 4096**2 + 3 * 4096 * 11008
    before = 6 * (32 * products + vocabulary * width) + 12 * 32 * 4096 * width
    assert matched["flops_to_n1"] == pytest.approx(1 + 18 * vocabulary * width / before)
    assert deeper["flops_to_n1"] - matched["flops_to_n1"] == pytest.approx(
        3 * (6 * products + 12 * 4096 * width) / before
    )
    assert (round(matched["flops_to_n1"], 3), round(deeper["flops_to_n1"], 3)) == (1.051, 1.143)
    assert matched["parameters_to_n1"] == 1
    assert deeper["parameters_to_n1"] == pytest.approx(1.0901, abs=1e-4)
    for memory in matched["memory"].values():
        assert memory["peak_to_n1"] < 1.02
        assert memory["net_to_n1"] < 1.06


def test_two_heads_are_at_most_twice_as_fast() -> None:
    two = two_heads(PAPER_7B, 0, 2.0)
    layer, unembedding = PAPER_7B.layer_parameters, PAPER_7B.unembedding
    moved = 32 * layer + unembedding
    assert two["at_most_n1"] == pytest.approx(2, rel=1e-4)  # but for the cache of one position more
    assert two["at_most_own"] == pytest.approx(2 * (moved - layer) / moved, rel=1e-4)
    assert two["speed_up_own"] == two["at_most_own"]
    assert two_heads(PAPER_7B, 768, 1.94)["speed_up_own"] == pytest.approx(1.88, abs=0.005)
    assert two_heads(PAPER_7B, 768, 2.0)["at_most_compute"] < 1


def test_the_roofline_explains_table_s2_within_five_percent() -> None:
    rows = list(against_paper(PAPER_7B))
    assert len(rows) == 9
    for row in rows:
        assert 1.01 < row["unexplained"] < 1.05
        assert row["roofline_speed_up"] == pytest.approx(row["speed_up"] * row["unexplained"])
    assert SPEED_UPS["code"][4] == (3.5, 3.05)


def test_flops_alone_explain_table_s5_up_to_3b() -> None:
    """The paper names lost overlap of communication; the further unembeddings' FLOPs are as much as it timed."""
    for name, times in TRAINING_TIMES.items():
        rows = training(named(name), tuple(times), 4096, 4096, "bf16")
        flops = {row["n"]: row["flops_to_n1"] for row in rows if not row["added_layers"]}
        for n, time in times.items():
            assert abs(flops[n] - time) < (0.021 if name not in ("6.7B", "13B") else 0.06), (name, n)
            row = next(row for row in rows if row["n"] == n)
            assert row["paper_time_to_n1"] == time


# The command


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.commands, "cost", cost)


def printed(*arguments: str) -> str:
    ran = CliRunner().invoke(cost, arguments)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_training_in_json() -> None:
    told = json.loads(printed("training", "30M", "--n", "4", "--context", "256", "--json").splitlines()[-1])
    assert (told["shape"]["name"], told["precision"], told["tokens"], told["context"]) == ("30M", "bf16", 4096, 256)
    assert [(row["n"], row["added_layers"], row["trunk_layers"]) for row in told["rows"]] == [
        (1, 0, 9),
        (4, 0, 6),
        (4, 3, 9),
    ]
    model = instantiate(Model(size="30M"), Parallel(n=4), 32_000)
    assert told["rows"][1]["flops_per_token"] == training_flops_per_token(model, 256)


def test_training_for_people() -> None:
    said = " ".join(printed("training").split())
    assert "6,738,415,616" in said
    assert "cost +300 % compute and 4 × the memory, as is often said? No." in said
    assert "+5.1 %. With 3 layers added to N it is +14.3 %" in said
    assert "with layers added +9.0 %" in said
    assert "the paper timed +7.0 %" in " ".join(printed("training", "6.7B", "--n", "4").split())
    assert "Does training" not in printed("training", "6.7B", "--n", "1")


def test_n_defaults_to_what_leaves_a_trunk() -> None:
    told = json.loads(printed("training", "3M", "--precision", "fp32", "--json"))
    assert sorted({row["n"] for row in told["rows"]}) == [1, 2]


def test_decoding_in_json() -> None:
    told = json.loads(printed("decoding", "1B", "--device", "l4", "--bandwidth", "51.2", "--batch", "8", "--json"))
    assert [chip["name"] for chip in told["chips"]] == ["L4", "other"]
    assert told["chips"][1] == {"name": "other", "bandwidth": 51.2e9, "peak": None, "memory": None, "ridge": None}
    assert [(row["chip"], row["k"]) for row in told["rows"]] == [(c, k) for c in ("L4", "other") for k in (1, 2, 3, 4)]
    assert all(row["compute_bound_from"] is None for row in told["rows"][4:])
    assert told["table_s2"] == []


def test_decoding_for_people() -> None:
    said = " ".join(printed("decoding", "--bandwidth", "51.2", "--peak", "1").split())
    assert "decode 2 × faster with n = 2, as is often said? At most." in said
    assert "at most 2.00, and 1.94 at 1.94" in said
    assert "k = 4: 3.50 / 1.105 = 3.17, measured 3.05" in said
    assert "other 51.2 20 1 " in said
    assert "A100" in printed("decoding", "--n", "6", "--batch", "1")  # beyond what the paper has tokens for


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("cost trianing", ("trianing", "training")),
        ("cost training 7B", ("SHAPE: '7B'", "6.7B", "llama-2-7b", "--layers")),
        ("cost training llama2-7b", ("did you mean 'llama-2-7b'?",)),
        ("cost training 6.7B --layers 3", ("--layers", "'6.7B'")),
        ("cost decoding 6.7B --inner 3", ("--inner", "'6.7B'")),
        ("cost training --layers 3 --width 64", ("--heads: missing",)),
        ("cost training --layers 1 --width 64 --heads 4", ("--layers: 1", "2")),
        ("cost training --layers 4 --width 99999999 --heads 4", ("--width: 99999999", "65536")),
        ("cost training --layers 4 --width 100 --heads 3", ("width 100", "3 heads")),
        ("cost training --layers four", ("--layers", "'four'", "integer")),
        ("cost training --inner 0", ("--inner", "0", "1")),
        ("cost training 3M --n 4", ("--n: 4", "at most 3")),
        ("cost training --n 0", ("--n", "0", "1")),
        ("cost training --tokens 5000", ("--tokens: 5000", "multiple", "4096")),
        ("cost training --precision fp16", ("--precision", "'fp16'", "'bf16'")),
        ("cost training llama-2-7b --precision fp32", ("--precision: fp32", "11008", "10920", "bf16")),
        ("cost training --vocabulary 0", ("--vocabulary", "0", "1")),
        ("cost training --contxt 3", ("--contxt", "--context")),
        ("cost decoding 3M", ("--n: 4", "at most 3")),
        ("cost decoding --device A1000", ("--device: 'A1000'", "RTX 4090", "did you mean 'A100'?")),
        ("cost decoding --bandwidth 0", ("--bandwidth", "'0'", "above 0")),
        ("cost decoding --bandwidth nan", ("--bandwidth", "'nan'", "above 0")),
        ("cost decoding --bandwidth fast", ("--bandwidth", "'fast'", "number")),
        ("cost decoding --bandwidth 3 --peak inf", ("--peak", "'inf'", "million")),
        ("cost decoding --peak 3", ("--bandwidth: missing", "--peak")),
        ("cost decoding --batch 0", ("--batch", "0", "1")),
        ("cost decoding --context -1", ("--context", "-1", "0")),
        ("cost decoding --tokens-per-forward 2.5", ("--tokens-per-forward: 2.5", "k = 2", "1 to 2")),
        ("cost decoding --tokens-per-forward nan", ("--tokens-per-forward: nan", "1 to 2")),
        ("cost decoding --n 2 --tokens-per-forward 1 --tokens-per-forward 2", ("--tokens-per-forward: 2", "at most 1")),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    line: str, said: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lab", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert not out
    (only,) = err.splitlines()
    assert only.startswith("lab: ")
    for part in said:
        assert part in only


def test_a_shape_without_a_name_says_what_it_is() -> None:
    assert of(4, 64, 4, 50).name == "L4-D64-H4"
    assert of(4, 64, 4, 50).inner == inner_width(64)
    assert of(4, 64, 4, 50, inner=100).name == "L4-D64-H4-F100"
    nothing: dict[str, int | None] = {"layers": None, "width": None, "heads": None}
    with pytest.raises(BadInput, match="--layers: missing"):
        architecture(None, nothing, 3, 50)
    assert named("LLAMA-2-7B").name == "llama-2-7b"


# The figure


def table(n: int = 4, contexts: tuple[int, ...] = (128, 768)) -> dict[str, Any]:
    """What the figure's command prints."""
    told = decoding(PAPER_7B, n, contexts, BATCHES, TOKENS[: n - 1], named_chips([*BANDWIDTHS]))
    return {**json.loads(json.dumps(told)), "table_s2": list(against_paper(PAPER_7B)) if n == 4 else []}


@pytest.mark.parametrize(("n", "contexts"), [(4, (128, 768)), (2, (500,)), (6, (0, 64, 4000))])
def test_the_figure_shows_every_chip(n: int, contexts: tuple[int, ...]) -> None:
    use_style()
    made = table(n, contexts)
    figure = runpy.run_path(str(home() / "figures" / "roofline.py"))["draw"](made)
    figure.canvas.draw()
    readable(figure)
    rooflines, *others = figure.axes
    names = {each.get_text() for each in rooflines.texts}
    assert names == set(BANDWIDTHS)
    assert [axes.get_title(loc="left") for axes in others] == [f"{each:,} positions in the cache" for each in contexts]
    most = min(n, 4)
    for axes, context in zip(others, contexts, strict=True):
        drawn = [line for line in axes.lines if line.get_color() == colour_of(most) and line.get_alpha() is not None]
        rows = [row for row in made["rows"] if (row["context"], row["k"]) == (context, most)]
        assert [[*map(float, line.get_ydata())] for line in drawn] == [row["speed_up"] for row in rows]
    plt.close("all")


def test_the_figure_draws_what_its_command_prints() -> None:
    script = runpy.run_path(str(home() / "figures" / "roofline.py"))
    assert script["COMMAND"].startswith("lab cost decoding ")
    told = json.loads(printed(*script["COMMAND"].split()[2:], "--json").splitlines()[-1])
    assert len(json.dumps(told)) < 2**17
    made = table()
    assert told["rows"] == made["rows"]
    assert told["table_s2"] == made["table_s2"]
    assert SPEED_UPS_CONTEXT in told["contexts"]
