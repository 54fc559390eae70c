"""The dial between further heads and none: their gradient's share, and the exact control."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lab.config import canonical
from lab.errors import BadInput
from lab.experiments.run import execute
from lab.experiments.store import RunDirectory
from lab.learning.data import Steps, parts
from lab.learning.module import LearningModule
from lab.learning.settings import Train
from lab.models.decoder import Context, Decoder, recompute
from lab.objectives import LanguageModel, backward, build_model
from lab.objectives.backward import Order, losses
from lab.objectives.base import Batch
from lab.objectives.flops import training_flops_per_token
from lab.objectives.gradients import scale_gradient
from lab.objectives.parallel import Parallel, ParallelHeads
from lab.tasks.polynomials.task import Polynomials
from tests.conftest import tiny
from tests.objectives.test_backward import (  # noqa: F401
    ORDERS,
    _small_chunks,
    apart,
    each_order,
    gradients_of,
    packed,
    small_chunks,
)
from tests.objectives.test_variants import MODEL, NAMES, ONE_HEAD, VOCABULARY, WIDTH, Naive, built, naive, objective

MANY = [name for name in NAMES if name not in ONE_HEAD]
DIALLED = [name for name in MANY if name != "detached"]
N, WEIGHTS = 3, [1.0, 0.3, 2.5]
each_of_many = pytest.mark.parametrize("name", MANY)
each_dialled = pytest.mark.parametrize("name", DIALLED)


def loss_of(model: LanguageModel, batch: Batch, order: Order = "joint") -> backward.Losses:
    return losses(model.objective, model.decoder, batch, WEIGHTS, order)


# Gradients


@cache
def expected_of(name: str) -> tuple[Batch, list[Naive]]:
    """Each head's loss alone, by loops, as if nothing were scaled."""
    model, batch = built(name, N).double(), packed(N)
    return batch, naive(name, N, dict(model.named_parameters()), len(model.decoder.trunk), batch)


def share_of(name: str, parameter: str, trunk: float, readout: float) -> float:
    """Of further heads' gradient, what should reach a parameter; see the objectives' documentation."""
    if parameter in ("decoder.norm.weight", "decoder.unembedding.weight"):
        return readout
    path = ("decoder.", "objective.heads.") if name == "anticausal" else ("decoder.", "objective.heads.0.")
    return trunk if parameter.startswith(path) else 1.0


@pytest.mark.parametrize(("trunk", "readout"), [(0.0, 1.0), (0.3, 1.0), (1.0, 0.0), (0.25, 0.5), (0.0, 0.0)])
@each_of_many
@small_chunks
def test_further_heads_gradients_are_scaled_where_they_meet_the_next_token_s_path(
    name: str, trunk: float, readout: float
) -> None:
    """Against each head's gradient alone: of the path, head 1's and a share of the others'; of the rest, all."""
    if name == "detached":
        trunk, fields = 0.0, {"readout_gradient": readout}
    else:
        fields = {"trunk_gradient": trunk, "readout_gradient": readout}
    model = built(name, N, **fields).double()
    batch, expected = expected_of(name)
    total = sum(w * each.loss.item() for w, each in zip(WEIGHTS, expected, strict=True))
    for order in ORDERS:
        found = loss_of(model, batch, order)
        assert found.total.item() == pytest.approx(total, rel=1e-12)
        assert found.nats.tolist() == pytest.approx([each.nats for each in expected], rel=1e-12)
        for key, gradient in gradients_of(model, found.total).items():
            share = share_of(name, key, trunk, readout)
            scales = [WEIGHTS[0], *(share * weight for weight in WEIGHTS[1:])]
            wanted = torch.stack([s * each.gradients[key] for s, each in zip(scales, expected, strict=True)]).sum(dim=0)
            assert (gradient - wanted).abs().max() <= 1e-10, (order, key)


@cache
def ends(name: str) -> list[dict[str, Tensor]]:
    """The gradients at trunk_gradient 0 and 1."""
    batch, _ = expected_of(name)
    models = (built(name, N, trunk_gradient=end).double() for end in (0.0, 1.0))
    return [gradients_of(model, loss_of(model, batch).total) for model in models]


@settings(deadline=None, max_examples=10)
@given(st.floats(0, 1), st.sampled_from(ORDERS))
@each_dialled
def test_the_gradient_is_linear_in_the_dial(name: str, dial: float, order: Order) -> None:
    model = built(name, N, trunk_gradient=dial).double()
    none, all_of_it = ends(name)
    assert any(not torch.equal(none[key], all_of_it[key]) for key in none)
    for key, gradient in gradients_of(model, loss_of(model, expected_of(name)[0], order).total).items():
        between = (1 - dial) * none[key] + dial * all_of_it[key]
        assert (gradient - between).abs().max() <= 1e-10, key


class Cut(ParallelHeads):
    """`detached` as it was written before there was a dial."""

    def hidden_states(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        for index, head in enumerate(self.heads[:heads]):
            yield head(trunk_BTD if index == 0 else trunk_BTD.detach(), context)


@each_order
@small_chunks
def test_detached_is_the_dial_at_its_end_bit_for_bit(order: Order) -> None:
    batch, found = packed(N), []
    before, detached, dialled = built("parallel", N), built("detached", N), built("parallel", N, trunk_gradient=0.0)
    before.objective.__class__ = Cut
    for model in (before, detached, dialled):
        result = loss_of(model, batch, order)
        found.append({"total": result.total.detach(), **gradients_of(model, result.total)})
    for other in found[1:]:
        assert all(torch.equal(each, other[key]) for key, each in found[0].items())


@each_order
@each_dialled
@small_chunks
def test_recomputed_layers_and_bfloat16_are_scaled_alike(name: str, order: Order) -> None:
    fields, batch, found = {"trunk_gradient": 0.3, "readout_gradient": 0.6}, packed(N), []
    plain, again = built(name, N, **fields), built(name, N, **fields)
    recompute(again)
    for model in (plain, again):
        with torch.autocast("cpu", torch.bfloat16):
            total = loss_of(model, batch, order).total
        found.append(gradients_of(model, total))
    exact = gradients_of(plain, loss_of(plain, batch).total)
    undialled = built(name, N)
    whole = gradients_of(undialled, loss_of(undialled, batch).total)
    assert all(torch.equal(each, found[1][key]) for key, each in found[0].items())
    # Rounding moves the gradient far less than the dial does.
    assert 0 < 5 * apart(found[0], exact) < apart(whole, exact)


@each_order
@pytest.mark.parametrize("name", ["parallel", "anticausal", "sequential"])
def test_passes_add_up_to_a_step(name: str, order: Order) -> None:
    """With the dial between its ends and targets left out, by parts of a step that have none at all."""
    task = Polynomials(prime=3, degree=2, train_operations=(1, 2), test_examples=10, validation_examples=10).build()
    train = Train(steps=5, warmup=0, batch_tokens=150, context=32)
    step = next(iter(Steps(task, train, N, 0, 0, np.empty(0, np.uint64), [-1])))
    model = build_model(MODEL, objective(name, N, trunk_gradient=0.4), len(task.vocabulary), 0).double()
    whole = gradients_of(model, loss_of(model, step.batch, order).total)
    shares = 4
    for part in parts(step, N, shares, range(shares)):
        total = losses(model.objective, model.decoder, part.batch, WEIGHTS, order, part.loss_denominators).total
        torch.autograd.backward(total / shares)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (parameter.grad - whole[key]).abs().max() <= 1e-10, key


def test_scaling_leaves_values_and_memory_as_they_are() -> None:
    x = torch.randn(5, requires_grad=True)
    assert scale_gradient(x, 1.0) is x
    for scale in (0.0, 0.5):
        scaled = scale_gradient(x, scale)
        assert torch.equal(scaled, x)
        assert scaled.data_ptr() == x.data_ptr()
    assert not scale_gradient(x, 0.0).requires_grad


# Configuration


def test_at_their_neutral_values_the_fields_are_as_if_there_were_none() -> None:
    assert canonical(Parallel(n=2)) == {"version": 1, "name": "parallel", "n": 2, "reduction": "sum"}
    assert canonical(objective("detached", 2)) == {"version": 1, "name": "detached", "n": 2, "reduction": "sum"}
    changes = ("objective.trunk_gradient=1", "objective.readout_gradient=1.0", "objective.where=null")
    assert tiny(*changes, "train.clip_apart=false").identity == "45ba1cffdafad15a"
    others = {
        tiny(change).identity
        for change in ("objective.trunk_gradient=0.5", "objective.readout_gradient=0.5", "objective.where=[1]",
                       "objective.where=[2]", "train.clip_apart=true")
    }  # fmt: skip
    assert len(others - {"45ba1cffdafad15a"}) == 5


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("trunk_gradient: 1.5", ["objective.trunk_gradient: 1.5 is not allowed", "less than or equal to 1"]),
        ("trunk_gradient: -0.1", ["objective.trunk_gradient: -0.1 is not allowed", "greater than or equal to 0"]),
        ("trunk_gradient: .nan", ["objective.trunk_gradient: NaN is not allowed"]),
        ("readout_gradient: 2", ["objective.readout_gradient: 2 is not allowed", "less than or equal to 1"]),
        ("trunk_gradint: 0", ["objective.trunk_gradint: unknown field", "did you mean 'trunk_gradient'?"]),
        ("name: detached, trunk_gradient: 0.5", ["objective.trunk_gradient: 0.5 is not allowed", "equal to 0"]),
        ("name: shallow, trunk_gradient: 0.5", ["objective.trunk_gradient: unknown field"]),
        ("trunk_gradient: 0.5, weights: {name: balanced}", ["objective.weights: balanced", "trunk_gradient=0.5"]),
        ("name: detached, weights: {name: balanced}", ["objective.weights: balanced", "trunk_gradient=0:"]),
        ("where: []", ["objective.where: []", "at least 1 item"]),
        ("where: 1", ["objective.where: 1", "list"]),
        ("where: [1.5]", ["objective.where.0: 1.5", "a place in an answer", "the name of a kind"]),
        ("where: [true]", ["objective.where.0: true", "a place in an answer"]),
        ("where: [1, 0]", ["objective.where: 0 is not allowed", "1, 2, … or -1, -2, …", "'question', 'answer'"]),
        ("where: [anwser]", ["objective.where: 'anwser'", "did you mean 'answer'?"]),
        ("where: [4]", ["objective.where: 4 is not allowed", "its longest answer has 3 tokens"]),
        ("where: [-4]", ["objective.where: -4 is not allowed", "its longest answer has 3 tokens"]),
    ],
)
def test_what_is_not_allowed_gets_one_clear_line(change: str, parts: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        tiny(f"objective={{n: 2, {change}}}")
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


# The exact control


EXACT = ("objective.readout_gradient=0", "train.clip_apart=true")
CONTROLS = {
    "detached": "shallow", "parallel": "shallow", "replicated": "shallow", "causal": "shallow",
    "sequential": "shallow", "linear": "next_token",
}  # fmt: skip


def path_after(tmp_path: Path, control: str, arm: str, *changes: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of a control of one head and of an arm, the final weights that the control has; clipped at every step."""
    found = []
    for objective_of in (control, arm):
        experiment = tiny("train.steps=30", "train.clip=0.05", *changes, *objective_of.split(" & "))
        result = execute(experiment, tmp_path)
        assert result is not None
        assert result["clip_share"] == 1.0
        found.append(load_file(RunDirectory(tmp_path, experiment).final))
    only, more = found
    assert only.keys() < more.keys()
    return only, {name: more[name] for name in only}


def arm_of(name: str, *more: str, n: int = 3) -> str:
    dial = "" if name == "detached" else ", trunk_gradient: 0"
    return " & ".join([f"objective={{name: {name}, n: {n}{dial}}}", *more])


def control_of(name: str) -> str:
    return "objective={name: shallow, n: 3}" if CONTROLS[name] == "shallow" else "objective=next_token"


@pytest.mark.parametrize("name", CONTROLS)
def test_the_control_trains_the_next_token_s_path_bit_for_bit(tmp_path: Path, name: str) -> None:
    """AdamW, a norm that is clipped at every step, weight decay: nothing of further heads reaches the path."""
    only, path = path_after(tmp_path, control_of(name), arm_of(name, *EXACT))
    assert all(torch.equal(each, path[key]) for key, each in only.items())


@pytest.mark.parametrize(
    "changes",
    [
        ("precision=bf16", "execution.backward=fused"),
        ("execution.backward=sequential", "execution.passes=2", "execution.recompute=true"),
        ("objective.where=[1]",),
    ],
    ids=["bf16-fused", "sequential-passes-recompute", "where"],
)
def test_the_control_is_exact_however_it_is_computed(tmp_path: Path, changes: tuple[str, ...]) -> None:
    both = tuple(change for change in changes if not change.startswith("objective"))
    own = tuple(change for change in changes if change.startswith("objective"))
    only, path = path_after(tmp_path, control_of("detached"), arm_of("detached", *EXACT, *own), *both)
    assert all(torch.equal(each, path[key]) for key, each in only.items())


@pytest.mark.parametrize("left_out", [*EXACT, "dial"])
def test_the_control_needs_all_three(tmp_path: Path, left_out: str) -> None:
    """What gives the test above its power: without any of them the path is trained otherwise."""
    kept = [each for each in EXACT if each != left_out]
    arm = " & ".join(["objective={name: parallel, n: 3}", *kept]) if left_out == "dial" else arm_of("detached", *kept)
    only, path = path_after(tmp_path, control_of("detached"), arm)
    # Not only in last bits: Adam's first steps are of the size of the rate, whatever the gradient's.
    assert max(float((each - path[key]).abs().max()) for key, each in only.items()) > 1e-4


def test_anticausal_at_the_end_of_the_dial_has_the_gradient_of_the_next_token_alone() -> None:
    batch, expected = expected_of("anticausal")
    model = built("anticausal", N, trunk_gradient=0.0, readout_gradient=0.0).double()
    for order in ORDERS:
        for key, gradient in gradients_of(model, loss_of(model, batch, order).total).items():
            assert (gradient - expected[0].gradients[key]).abs().max() <= 1e-10, (order, key)


def test_clipping_apart() -> None:
    model = build_model(MODEL, Parallel(n=3), VOCABULARY, 0)
    module = LearningModule(model, Train(clip=1.5, clip_apart=True), 0)
    module.trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    named_ones = dict(model.named_parameters())

    def first(name: str) -> Tensor:
        gradient = named_ones[name].grad
        assert gradient is not None
        return gradient.view(-1)[:1]

    names = ("decoder.embedding.weight", "objective.heads.0.feedforward.output.weight",
             "objective.heads.1.attention.inputs.weight", "objective.heads.2.attention_norm.weight")  # fmt: skip
    for name, size in zip(names, (3.0, -4.0, 30.0, 40.0), strict=True):
        first(name).fill_(size)
    module.configure_gradient_clipping(None, None, None)
    found = [first(name).item() for name in names]
    assert found == pytest.approx([3 * 0.3, -4 * 0.3, 30 * 0.03, 40 * 0.03], rel=1e-5)  # norms of 5 and of 50
    module.meter[3 * 3 + 1] = 1  # one step
    means = module.read_meter()
    assert means["gradient_norm"] == pytest.approx(5.0)
    assert means["clip_share"] == 1.0


# Cost


@pytest.mark.usefixtures("plain_formulas")
@pytest.mark.parametrize(
    ("name", "fields", "saved"),
    [
        *((name, {"trunk_gradient": 0.3, "readout_gradient": 0.5}, 0) for name in DIALLED),
        *((name, {"trunk_gradient": 0.0}, WIDTH * WIDTH if name == "linear" else 0) for name in DIALLED),
        ("detached", {"readout_gradient": 0.0}, WIDTH * 17),
        ("replicated", {"readout_gradient": 0.0}, 0),
    ],
)
def test_flops_are_those_that_torch_counts_but_for_gradients_that_are_cut_off(
    name: str, fields: dict[str, float], saved: int
) -> None:
    """`saved` are the multiply-adds of a position that each further head is spared: its matrix, or its unembedding."""
    model, rows, context = build_model(MODEL, objective(name, N, **fields), 17, 0), 2, 24
    tokens = torch.randint(17, (rows, context + N), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens).bool(), None, tokens % 3 == 0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(loss_of(model, batch).total)
    counted = training_flops_per_token(model, context) * rows * context
    assert counted - counter.get_total_flops() == (N - 1) * 2 * saved * rows * context
