"""The backward orders: gradients against loops in float64, which logits exist when, the rule, recomputation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from lab.experiments.run import chosen_order, execute
from lab.learning import module as learning
from lab.models.decoder import Block, inner_width, recompute
from lab.objectives import LanguageModel, backward, build_model
from lab.objectives.backward import Losses, Order, backward_order, gradient_norms, losses
from lab.objectives.base import Batch
from lab.objectives.next_token import NextToken
from tests.conftest import tiny
from tests.objectives.test_objectives import random_batch
from tests.objectives.test_variants import MODEL, NAMES, ONE_HEAD, VOCABULARY, WIDTH, built, heads_of, naive, objective

ORDERS: tuple[Order, ...] = get_args(Order)
WEIGHTS = {1: [0.7], 2: [1.0, 0.3], 4: [1.0, 0.3, 0.0, 2.5]}
CHAINED = {"linear", "causal", "anticausal", "sequential"}
each_variant = pytest.mark.parametrize("name", NAMES)
each_order = pytest.mark.parametrize("order", ORDERS)


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five positions a chunk, so that the last of 36 is smaller."""
    monkeypatch.setattr(backward, "CHUNK_BYTES", 4 * VOCABULARY * 5 + 3)


small_chunks = pytest.mark.usefixtures("_small_chunks")


def gradients_of(model: LanguageModel, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    return dict(zip(names, found, strict=True))


def loss_of(model: LanguageModel, batch: Batch, order: Order, weights: list[float] | None = None) -> Losses:
    weights = weights or WEIGHTS[model.objective.n]
    return losses(model.objective, model.decoder, batch, weights, order)


# Gradients


def packed(n: int) -> Batch:
    """Documents of 1 to 6 tokens side by side, padding behind, not every token trained on; a row of padding."""
    batch = random_batch(seed=18, n=n)
    return batch._replace(document_ids=batch.document_ids.index_fill(0, torch.tensor(2), -1))


def short(n: int) -> Batch:
    """Documents of up to 3 tokens, so that a third head has no target."""
    documents = torch.full((2, 8 + n), -1)
    documents[0, :6] = torch.tensor([0, 0, 0, 1, 2, 2])
    documents[1] = torch.arange(8 + n) // 2
    return random_batch(seed=3, n=n, rows=2, positions=8)._replace(document_ids=documents)


@pytest.mark.parametrize("n", [1, 2, 4])
@each_variant
@small_chunks
def test_gradients_are_those_of_loops_in_every_order(name: str, n: int) -> None:
    compare_with_loops(name, n, packed(heads_of(name, n)))


@pytest.mark.parametrize("name", ["parallel", "causal", "detached"])
@small_chunks
def test_gradients_where_heads_have_no_targets(name: str) -> None:
    found = compare_with_loops(name, 4, short(4))
    assert [number > 0 for number in found.targets.tolist()] == [True, True, False, False]


def compare_with_loops(name: str, n: int, batch: Batch) -> Losses:
    heads, model = heads_of(name, n), built(name, n).double()
    parameters = dict(model.named_parameters())
    expected = naive(name, n, parameters, len(model.decoder.trunk), batch)
    weighed = list(zip(WEIGHTS[heads], expected, strict=True))
    for order in ORDERS:
        found = loss_of(model, batch, order)
        assert found.total.item() == pytest.approx(sum(w * each.loss.item() for w, each in weighed), rel=1e-12)
        assert found.nats.tolist() == pytest.approx([each.nats for each in expected], rel=1e-12)
        assert found.targets.tolist() == [each.targets for each in expected]
        assert found.total.requires_grad
        assert not found.nats.requires_grad
        scaled = gradients_of(model, 3 * loss_of(model, batch, order).total)
        for key, gradient in gradients_of(model, found.total).items():
            wanted = torch.stack([w * each.gradients[key] for w, each in weighed]).sum(dim=0)
            assert (gradient - wanted).abs().max() <= 1e-10, (order, key)
            assert (scaled[key] - 3 * wanted).abs().max() <= 1e-10, (order, key)
    return found


@each_order
def test_next_token_in_every_order(order: Order) -> None:
    model, batch = build_model(MODEL, NextToken(), VOCABULARY, 1).double(), packed(1)
    [expected] = naive("parallel", 1, dict(model.named_parameters()), 4, batch)
    for key, gradient in gradients_of(model, loss_of(model, batch, order, [1.0]).total).items():
        assert (gradient - expected.gradients[key]).abs().max() <= 1e-10, key


@each_order
@pytest.mark.parametrize("name", ["parallel", "causal", "detached", "reweighted"])
@small_chunks
def test_a_part_of_a_step_is_divided_by_the_numbers_given(name: str, order: Order) -> None:
    heads = heads_of(name, 2)
    model, batch = built(name, 2).double(), packed(heads)
    expected = naive(name, 2, dict(model.named_parameters()), len(model.decoder.trunk), batch)
    numbers = torch.tensor([50.0, 4.5])[:heads]
    shares = [
        weight * each.targets / number
        for weight, each, number in zip(WEIGHTS[heads], expected, numbers.tolist(), strict=True)
    ]
    found = losses(model.objective, model.decoder, batch, WEIGHTS[heads], order, numbers)
    each_loss = [share * each.loss.item() for share, each in zip(shares, expected, strict=True)]
    assert found.total.item() == pytest.approx(sum(each_loss), rel=1e-12)
    assert found.nats.tolist() == pytest.approx([each.nats for each in expected], rel=1e-12)
    for key, gradient in gradients_of(model, found.total).items():
        wanted = sum(share * each.gradients[key] for share, each in zip(shares, expected, strict=True))
        assert (gradient - wanted).abs().max() <= 1e-10, key


@pytest.mark.parametrize("size", [0, 1, 4 * VOCABULARY, 4 * VOCABULARY * 36, 2**40])
def test_chunks_of_any_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = built("causal", 2).double(), packed(2)
    expected = gradients_of(model, loss_of(model, batch, "joint").total)
    monkeypatch.setattr(backward, "CHUNK_BYTES", size)
    for key, gradient in gradients_of(model, loss_of(model, batch, "fused").total).items():
        assert (gradient - expected[key]).abs().max() <= 1e-12, key


@each_order
def test_backward_passes_add_up(order: Order) -> None:
    """As accumulation over passes needs it, and whatever else uses the trunk's parameters."""
    model, one, other = built("causal", 2).double(), packed(2), short(2)
    parts = [gradients_of(model, loss_of(model, batch, order).total) for batch in (one, other)]
    for batch in (one, other):
        torch.autograd.backward(loss_of(model, batch, order).total)
    decay = torch.stack([each.square().sum() for each in model.parameters()]).sum()
    torch.autograd.backward(loss_of(model, one, order).total + decay)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        wanted = 2 * parts[0][key] + parts[1][key] + 2 * parameter
        assert (parameter.grad - wanted).abs().max() <= 1e-12, key


@pytest.mark.parametrize("order", ["sequential", "fused"])
def test_what_was_differentiated_cannot_be_again(order: Order) -> None:
    model = built("parallel", 2)
    total = loss_of(model, packed(2), order).total
    torch.autograd.backward(total, retain_graph=True)
    before = [None if each.grad is None else each.grad.clone() for each in model.parameters()]
    with pytest.raises(Exception, match=r".+"):
        torch.autograd.backward(total)
    for each, grad in zip(model.parameters(), before, strict=True):
        assert each.grad is not None
        assert grad is not None
        assert torch.equal(each.grad, grad)


def apart(gradients: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The norm of the difference of two gradients, as a share of the latter's."""
    squares = [((each - others[key]).square().sum(), others[key].square().sum()) for key, each in gradients.items()]
    difference, size = torch.tensor(squares, dtype=torch.float64).sum(dim=0).sqrt().tolist()
    return float(difference / size)


@each_variant
@small_chunks
def test_bfloat16_in_every_order(name: str) -> None:
    """Autocast on the CPU. Gradients: 0.0008 between orders and 0.044 from float32's measured; losses: 0.0009."""
    model, batch = built(name, 4), random_batch(seed=1, n=heads_of(name, 4), rows=20)
    joint: dict[str, Tensor] | None = None
    for order in ORDERS:
        plain = loss_of(model, batch, order).total
        with torch.autocast("cpu", torch.bfloat16):
            total = loss_of(model, batch, order).total
        assert total.item() == pytest.approx(plain.item(), rel=0.002)
        assert total.item() != plain.item()
        gradients = gradients_of(model, total)
        assert {each.dtype for each in gradients.values()} == {torch.float32}
        assert 0 < apart(gradients, gradients_of(model, plain)) < 0.1
        joint = joint or gradients
        assert apart(gradients, joint) < 0.002


# Which logits exist when


class Large(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows which tensors of at least `size` elements exist, and the largest with `last` in their last axis."""

    def __init__(self, size: int, last: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size, self.last = size, last
        self.storages: dict[int, StorageWeakRef] = {}
        self.most = self.widest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor) and each.dim() and each.shape[-1] == self.last:
                self.widest = max(self.widest, each.numel())
            if isinstance(each, Tensor) and each.numel() >= self.size:
                storage = StorageWeakRef(each.untyped_storage())  # type: ignore[no-untyped-call]
                self.storages[storage.cdata] = storage
        self.most = max(self.most, self.alive())
        return out

    def alive(self) -> int:
        self.storages = {
            key: each
            for key, each in self.storages.items()
            if not each.expired()  # type: ignore[no-untyped-call]
        }
        return len(self.storages)


class Watched:
    """Loss and gradients of a model whose logits are larger than anything else."""

    ROWS, POSITIONS, VOCABULARY = 3, 12, 150

    def __init__(self, name: str, n: int, order: Order) -> None:
        model = build_model(MODEL, objective(name, n), self.VOCABULARY, 0)
        batch = random_batch(seed=0, n=model.objective.n, rows=self.ROWS, positions=self.POSITIONS)
        self.large = Large(self.ROWS * self.POSITIONS * self.VOCABULARY, self.VOCABULARY)
        self.before: list[int] = []
        """For each read of hidden_states, how many tensors of the size of a head's logits there were."""
        for unembedding in (model.decoder.unembedding, *model.objective.unembeddings()):
            unembedding.register_forward_pre_hook(lambda *_: self.before.append(self.large.alive()))
        with self.large:
            total = losses(model.objective, model.decoder, batch, [1.0] * model.objective.n, order).total
            self.between = self.large.alive()
            torch.autograd.backward(total)
        self.after = self.large.alive()


@each_variant
def test_joint_keeps_all_heads_logits_until_the_backward_pass(name: str) -> None:
    seen, heads = Watched(name, 4, "joint"), heads_of(name, 4)
    assert seen.before == list(range(heads))  # of each head one: what differentiating its softmax needs
    assert (seen.between, seen.after) == (heads, 0)


@each_variant
def test_sequential_has_one_head_s_logits_at_a_time(name: str) -> None:
    seen = Watched(name, 4, "sequential")
    assert seen.before == [0] * heads_of(name, 4)
    assert (seen.between, seen.after) == (0, 0)
    assert (
        seen.large.most == Watched(name, 1, "sequential").large.most <= 3
    )  # logits, log-probabilities, their gradient


@each_variant
def test_fused_never_has_a_head_s_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward, "CHUNK_BYTES", 4 * Watched.VOCABULARY * 17)
    seen, chunks = Watched(name, 4, "fused"), 3  # of 36 positions, the last smaller
    assert len(seen.before) == chunks * heads_of(name, 4)
    assert seen.large.most == 0
    assert seen.large.widest == 17 * Watched.VOCABULARY


@pytest.mark.parametrize("name", NAMES)
def test_sequential_is_done_with_a_head_s_layers_where_heads_share_none(name: str) -> None:
    if name in ONE_HEAD:
        pytest.skip("one head has no other")
    model, batch = built(name, 4), random_batch(seed=0, n=4)
    large = Large(batch.tokens[:, :-4].numel() * 2 * inner_width(WIDTH), 0)  # the largest that a layer keeps
    kept: dict[Order, list[int]] = {"joint": [], "sequential": []}
    for order, numbers in kept.items():
        hook = model.decoder.norm.register_forward_pre_hook(lambda *_: numbers.append(large.alive()))  # noqa: B023
        with large:
            torch.autograd.backward(loss_of(model, batch, order).total)
        hook.remove()
    if name == "linear":  # further heads are matrices
        assert len(set(kept["joint"])) == len(set(kept["sequential"])) == 1
    elif name in CHAINED:
        assert kept["sequential"] == kept["joint"]
    else:
        assert len(set(kept["sequential"])) == 1 < len(set(kept["joint"]))


def test_the_watch_sees_what_it_should() -> None:
    """What gives the tests above their power."""
    assert Watched("parallel", 4, "joint").large.most > Watched("parallel", 4, "sequential").large.most > 0


# The rule


def test_the_order_at_the_thresholds_of_the_rule() -> None:
    positions, vocabulary = 2**10, 2**14  # logits of 64 MiB
    assert backward_order(1, positions, vocabulary) == "joint"
    assert backward_order(1, positions, vocabulary + 1) == "sequential"
    assert backward_order(2, positions, vocabulary) == "sequential"
    assert backward_order(2, positions // 2, vocabulary) == "joint"
    assert backward_order(4, 2**12, 2**12) == "sequential"
    assert backward_order(1, 2**14, 2**14) == "sequential"  # 1 GiB
    assert backward_order(64, 2**14, 2**14) == "sequential"  # of one head, however many there are
    assert backward_order(1, 2**14 + 1, 2**14) == "fused"


@pytest.mark.parametrize(
    ("overrides", "least", "most", "expected"),
    [
        ((), 24_576, 1, "joint"),  # two heads, 256 positions, 12 tokens, 4 bytes
        ((), 24_575, 12_288, "sequential"),
        ((), 24_575, 12_287, "fused"),
        (("execution.passes=2",), 12_288, 1, "joint"),
        (("execution.passes=2",), 12_287, 6_144, "sequential"),
        (("objective={name: shallow, n: 2}",), 12_288, 1, "joint"),  # of the heads that there are
        (("execution.backward=fused",), 2**40, 2**40, "fused"),
        (("execution.backward=joint",), 0, 0, "joint"),
    ],
)
def test_auto_is_resolved_by_sizes(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], least: int, most: int, expected: str
) -> None:
    monkeypatch.setattr(backward, "JOINT_BYTES", least)
    monkeypatch.setattr(backward, "SEQUENTIAL_BYTES", most)
    experiment = tiny(*overrides)
    vocabulary = len(experiment.task.build().vocabulary)
    assert vocabulary == 12
    model = build_model(experiment.model, experiment.objective, vocabulary, 0)
    assert chosen_order(experiment, model) == expected


@pytest.mark.parametrize(
    ("named", "used"), [("auto", "joint"), ("joint", "joint"), ("sequential", "sequential"), ("fused", "fused")]
)
def test_a_run_uses_its_order_and_records_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, used: str
) -> None:
    orders = set()

    def spy(*arguments: Any) -> Losses:
        orders.add(arguments[4])
        return losses(*arguments)

    monkeypatch.setattr(learning, "losses", spy)
    result = execute(tiny(f"execution.backward={named}", "train.steps=6"), tmp_path)
    assert result is not None
    assert (result["backward"], orders) == (used, {used})
    assert result["experiment"]["execution"]["backward"] == named


# The norms that balancing goes by


@pytest.mark.parametrize("n", [1, 2, 4])
@each_variant
def test_gradient_norms_are_those_of_each_mean_loss_alone(name: str, n: int) -> None:
    heads = heads_of(name, n)
    model, batch = built(name, n).double(), packed(heads)
    trunk: list[Tensor] = []
    handle = model.decoder.register_forward_hook(lambda *arguments: trunk.append(arguments[2]))
    expected = []
    for head in range(heads):
        alone = loss_of(model, batch, "joint", [float(i == head) for i in range(heads)]).total
        # The others' losses times 0: of detached heads only the first's reaches the trunk.
        [gradient] = torch.autograd.grad(alone, trunk[-1])
        expected.append(gradient.norm().item())
    handle.remove()
    found = gradient_norms(model.objective, model.decoder, batch)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)  # numbers of targets are divided by in float32
    assert not found.requires_grad
    assert [norm > 0 for norm in found.tolist()] == [i == 0 or name != "detached" for i in range(heads)]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradient_norms_of_a_head_without_targets() -> None:
    found = gradient_norms(built("parallel", 4).objective, built("parallel", 4).decoder, short(4))
    assert [norm > 0 for norm in found.tolist()] == [True, True, False, False]


@each_order
@pytest.mark.parametrize("name", ["parallel", "causal"])
def test_measuring_leaves_the_gradient_alone(name: str, order: Order) -> None:
    """Autocast keeps the weights that it has cast: what was cast without a gradient must not be what a loss uses."""
    model, batch, found = built(name, 2), packed(2), []
    for measured in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            if measured:
                gradient_norms(model.objective, model.decoder, batch)
            found.append(gradients_of(model, loss_of(model, batch, order).total))
    assert all(torch.equal(each, found[1][key]) for key, each in found[0].items())


# Recomputation


def layers_called(model: LanguageModel) -> list[int]:
    """How often each layer is computed, by counts that go on counting."""
    blocks = [each for each in model.modules() if isinstance(each, Block)]
    calls = [0] * len(blocks)

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[index] += 1

        return hook

    for index, block in enumerate(blocks):
        block.feedforward.register_forward_pre_hook(count(index))
    return calls


@each_order
@pytest.mark.parametrize(
    ("name", "bfloat"), [*((name, False) for name in NAMES), ("causal", True), ("replicated", True)]
)
@small_chunks
def test_recomputed_layers_give_the_same_bits(name: str, order: Order, bfloat: bool) -> None:
    n = heads_of(name, 2)
    plain, again, batch = built(name, 2), built(name, 2), random_batch(seed=2, n=n)
    recompute(again)
    found = []
    for model, times in ((plain, 1), (again, 2)):
        calls = layers_called(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat):
            result = loss_of(model, batch, order)
        found.append((result.total, result.nats, gradients_of(model, result.total)))
        assert calls == [times] * len(calls)
    (total, nats, gradients), (other, others, recomputed) = found
    assert torch.equal(total, other)
    assert torch.equal(nats, others)
    assert all(torch.equal(each, recomputed[key]) for key, each in gradients.items())


def test_nothing_is_recomputed_without_gradients() -> None:
    model, batch = built("causal", 2), packed(2)
    recompute(model)
    calls = layers_called(model)
    with torch.no_grad():
        loss_of(model, batch, "joint")
    assert calls == [1] * len(calls)


def test_a_run_recomputes_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[int]] = []

    def watched(*arguments: Any) -> LanguageModel:
        model = build_model(*arguments)
        made.append(layers_called(model))
        return model

    monkeypatch.setattr("lab.experiments.run.build_model", watched)
    changes = ("train.steps=12", "objective={name: causal, n: 2}")
    plain, again = (execute(tiny(*changes, f"execution.recompute={on}"), tmp_path / on) for on in ("false", "true"))
    assert plain is not None
    assert again is not None
    assert (plain["curve"], plain["scores"]) == (again["curve"], again["scores"])
    assert [once + 12 for once in made[0]] == made[1]
