"""Profiles of training steps: what is counted, to which part it goes, and that parts add up to the step."""

import json
import sys
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from lab.bench.loops import profiles
from lab.bench.profiling import ELSE, PARTS, PRODUCTS, WARMUP, Profile, lineage, part_of, profiled
from lab.bench.speed import Setting, adamw, take_step
from lab.cli.main import cli
from lab.models import kernels
from lab.models.sizes import Model
from lab.objectives.cross_entropy import cross_entropy

needs_compiler = pytest.mark.skipif(kernels.library() is None, reason="no C compiler on this machine")
CPU = torch.device("cpu")
LAYERS, V, T = 3, 20, 16


def setting() -> Setting:
    return Setting(Model(layers=LAYERS, width=16, heads=2), "next_token", 2 * T, T, CPU, "fp32")


def calls(found: Profile, name: str, part: str | None = None) -> float:
    """Calls of an operation in a step, in one part or in all."""
    return sum(entry.calls for entry in found.operations if entry.name == name and part in (None, entry.part))


def test_calls_are_those_of_one_step() -> None:
    a, steps = torch.ones(4, 4), []

    def step() -> None:
        steps.append(a @ a @ a + a)

    found = profiled(step, 5)
    assert len(steps) == WARMUP + 5
    assert calls(found, "aten::mm") == pytest.approx(2)
    assert calls(found, "aten::add", ELSE) == pytest.approx(1)
    assert [part.calls for part in found.parts if part.name == PRODUCTS] == pytest.approx([2])


def test_shares_add_up() -> None:
    found = profiles(setting(), V, ("nanogpt",), 2)
    assert [*found] == ["masks", "nanogpt"]
    for each in found.values():
        assert tuple(part.name for part in each.parts) == PARTS
        for entries in (each.parts, each.operations):
            assert sum(entry.share for entry in entries) == pytest.approx(1)
            assert sum(entry.seconds for entry in entries) == pytest.approx(each.seconds)
            assert sum(entry.calls for entry in entries) == pytest.approx(each.calls)
        times = [entry.seconds for entry in each.operations]
        assert times == sorted(times, reverse=True)
        assert all(entry.seconds >= 0 for entry in each.operations)
        assert all(entry.calls == 0 for entry in each.operations if not entry.name.startswith(("aten::", "lab::")))


def test_both_models_have_as_many_matrix_products_as_their_formulas() -> None:
    """Four a layer and one unembedding, and two more each for its gradients."""
    for each in profiles(setting(), V, ("nanogpt",), 2).values():
        assert {part.name: part.calls for part in each.parts}[PRODUCTS] == pytest.approx(3 * (4 * LAYERS + 1))


@needs_compiler
def test_compiled_loops_are_counted() -> None:
    found = profiles(setting(), V, (), 2)["masks"]
    norms = 2 * LAYERS + 1
    once_more = 2 * LAYERS  # norms are computed again in the backward pass
    assert calls(found, "lab::rms_norm_forward", "norms") == pytest.approx(norms + once_more)
    assert calls(found, "lab::rms_norm_backward", "norms") == pytest.approx(norms)
    for name, part in (("attention", "attention"), ("swiglu", "SwiGLU or GELU")):
        for direction in ("forward", "backward"):
            assert calls(found, f"lab::{name}_{direction}", part) == pytest.approx(LAYERS)


def test_a_peers_operators_have_their_parts() -> None:
    found = profiles(setting(), V, ("nanogpt",), 2)["nanogpt"]
    assert calls(found, "aten::gelu", "SwiGLU or GELU") == calls(found, "aten::gelu") == LAYERS
    assert calls(found, "aten::native_layer_norm_backward", "norms") == 2 * LAYERS + 1
    assert {part.name: part.seconds for part in found.parts}["attention"] > 0
    assert calls(found, "aten::_log_softmax", "loss") == 1


def test_optimiser_clipping_and_loss_take_in_what_they_call() -> None:
    weight = torch.nn.Linear(6, V, bias=False)
    optimizer, x, wanted = adamw(weight), torch.ones(5, 6), torch.zeros(5, dtype=torch.int64)
    found = profiled(lambda: take_step(weight, optimizer, "fp32", lambda: cross_entropy(weight(x), wanted).sum()), 2)
    assert calls(found, "aten::_fused_adamw_", "optimiser and clipping") == 1
    assert calls(found, "aten::linalg_vector_norm", "optimiser and clipping") > 0
    assert calls(found, "aten::exp_", "loss") == calls(found, "aten::exp_") == 1  # in our cross-entropy
    assert calls(found, "aten::mm", PRODUCTS) == calls(found, "aten::mm") == 2


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["aten::mm", "aten::matmul", "_Layer"], PRODUCTS),
        (["aten::matmul", "aten::linear"], ELSE),
        (["aten::resolve_conj", "aten::mm", "MmBackward0"], ELSE),
        (["aten::empty", "aten::empty_like", "Optimizer.step#AdamW.step"], "copies and allocation"),
        (["aten::_foreach_mul_"], "optimiser and clipping"),
        (["aten::mul_", "aten::_foreach_mul_"], "optimiser and clipping"),
        (["aten::transpose", "aten::_scaled_dot_product_flash_attention_for_cpu"], "attention"),
        (["aten::silu_backward", "SiluBackward0"], "SwiGLU or GELU"),
        (["aten::_fused_rms_norm"], "norms"),
        (["aten::sum", "_RMSNormBackward"], "norms"),
        (["aten::sum", "_LayerBackward"], ELSE),
        (["aten::nll_loss_backward"], "loss"),
        (["aten::mul", "aten::rotate_half"], ELSE),
    ],
)
def test_parts_of_operations(names: list[str], part: str) -> None:
    assert part_of(names) == part


def test_lineage() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as recorded, record_function("outer"):
        torch.zeros(3)
    found = [lineage(event) for event in recorded.events()]
    assert ["aten::empty", "aten::zeros", "outer"] in found


@needs_compiler
def test_compiled_loops_are_named_to_a_running_profiler_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.ones(2, 8), torch.ones(8)
    named: list[str] = []

    def record(name: str) -> Any:
        named.append(name)
        return record_function(name)

    monkeypatch.setattr("torch.autograd.profiler.record_function", record)
    without = kernels.rms_norm(x, weight, 1e-5)
    assert named == []
    with profile(activities=[ProfilerActivity.CPU]):
        within = kernels.rms_norm(x, weight, 1e-5)
    assert named == ["lab::rms_norm_forward"]
    assert torch.equal(without, within)


SMALL = ["--size", "sweeps", "--tokens", "32", "--context", "16", "--device", "cpu", "--steps", "1", "--n", "1"]


def test_the_first_peer_that_is_installed_stands_beside_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.bench.loops.matmuls", lambda _: {"product": (lambda: None, 1)})
    arguments = ["bench", "train", "--only", "loops", "--profile", *SMALL, "--threads", "1", "--peer", "nanogpt"]
    ran = CliRunner().invoke(cli, [*arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    [one] = json.loads(ran.stdout.splitlines()[-1])["loops"]
    assert [each["loop"] for each in one["profile"]] == ["masks", "nanogpt"]
    for each in one["profile"]:
        assert each.keys() == {"loop", "steps", "seconds", "calls", "parts", "operations"}
        assert each["steps"] == 1
        assert each["parts"][0].keys() == {"name", "part", "seconds", "share", "calls"}
    shown = CliRunner().invoke(cli, arguments).stdout
    assert all(part in shown for part in PARTS)
    assert "aten::mm" in shown


def test_without_peers_ours_is_profiled_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "x_transformers", None)
    assert [*profiles(setting(), V, ("x-transformers",), 1)] == ["masks"]
    assert [*profiles(setting(), V, ("x-transformers", "nanogpt"), 1)] == ["masks", "nanogpt"]
