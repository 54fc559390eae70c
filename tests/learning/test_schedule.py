"""The learning rate, the optimiser, clipping and the meter: every option of training reaches what it names."""

import math
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lab.learning.data import StepData, Steps, StepsDataModule
from lab.learning.module import LearningModule, rate
from lab.learning.settings import Train
from lab.models.sizes import Model
from lab.objectives import ObjectiveConfig, build_model
from lab.objectives.backward import losses
from lab.objectives.parallel import Parallel
from lab.objectives.weights import Geometric
from lab.tasks.polynomials.task import Polynomials

TASK = Polynomials(
    prime=3, degree=2, train_operations=(1, 2), test_operations=(1, 2), test_examples=20, validation_examples=20
).build()
QUESTIONS = TASK.examples("test", np.arange(40), seed=0).fingerprints[:, 0]
TRAIN = Train(
    steps=12, batch_tokens=200, context=32, lr=2e-3, warmup=3, decay_ratio=0.1,
    betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3, clip=0.5,
)  # fmt: skip


def learner(train: Train = TRAIN, objective: ObjectiveConfig | None = None) -> LearningModule:
    """A module that has a trainer, as it has while it is trained."""
    shape = Model(layers=4, width=16, heads=2)
    model = build_model(shape, objective or Parallel(n=2), len(TASK.vocabulary), seed=0)
    module = LearningModule(model, train, len(QUESTIONS))
    module.trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    return module


def steps(train: Train = TRAIN, n: int = 2) -> list[StepData]:
    return list(islice(Steps(TASK, train, n, 0, 0, QUESTIONS), train.steps))


# Learning rate


@st.composite
def schedules(draw: st.DrawFn) -> Train:
    warmup = draw(st.integers(0, 50))
    return Train(warmup=warmup, steps=warmup + draw(st.integers(2, 200)), decay_ratio=draw(st.floats(0, 1)))


@settings(deadline=None)
@given(schedules())
def test_rate_warms_up_in_a_line_then_falls_to_the_ratio(train: Train) -> None:
    rates = [rate(step, train) for step in range(train.steps)]
    warm, falling = rates[: train.warmup], rates[train.warmup :]
    assert warm == pytest.approx([(k + 1) / max(1, train.warmup) for k in range(train.warmup)])
    assert falling[0] == 1.0
    assert all(one >= other for one, other in pairwise(falling))
    assert falling[-1] == pytest.approx(train.decay_ratio, rel=1e-12)
    # A cosine is point-symmetric about its middle.
    assert [a + b for a, b in zip(falling, falling[::-1], strict=True)] == pytest.approx(
        [1 + train.decay_ratio] * len(falling)
    )
    assert rate(train.steps + 5, train) == falling[-1]


def test_rate_at_known_points() -> None:
    train = Train(steps=105, warmup=4, decay_ratio=0.2)  # from step 4 to step 104
    expected = {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 54: 0.6, 104: 0.2}
    expected |= {29: 0.6 + 0.4 / math.sqrt(2), 79: 0.6 - 0.4 / math.sqrt(2)}  # cos 45°, cos 135°
    assert {step: rate(step, train) for step in expected} == pytest.approx(expected)


def test_rate_of_the_shortest_schedules() -> None:
    assert rate(0, Train(steps=1, warmup=0)) == 1.0
    assert [rate(step, Train(steps=2, warmup=0, decay_ratio=0.25)) for step in (0, 1)] == [1.0, 0.25]


# Optimiser


def test_the_optimiser_gets_every_setting() -> None:
    module = learner()
    optimizer = module.configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    groups = optimizer.param_groups
    for group in groups:
        assert (group["initial_lr"], group["betas"], group["eps"]) == (2e-3, (0.8, 0.9), 1e-6)
        assert {parameter.dim() for parameter in group["params"]} == ({2} if group["weight_decay"] else {1})
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(given) == sorted(id(parameter) for parameter in module.model.parameters())


def bare_loop(train: Train) -> tuple[dict[str, torch.Tensor], list[float]]:
    """AdamW, clipping and schedule written out, in a loop without Lightning: the weights and the gradient norms."""
    model, norms = learner(train).model, []
    names = dict(model.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in names.items()}
    second = {name: torch.zeros_like(p) for name, p in names.items()}
    for k, step in enumerate(steps(train)):
        model.zero_grad()
        torch.autograd.backward(losses(model.objective, model.decoder, step.batch, [1.0, 1.0]).total)
        gradients = {name: p.grad for name, p in names.items() if p.grad is not None}
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values())))
        lr, (beta1, beta2) = train.lr * rate(k, train), train.betas
        with torch.no_grad():
            for name, p in names.items():
                g = gradients[name] * min(1.0, train.clip / norms[-1])
                first[name] = beta1 * first[name] + (1 - beta1) * g
                second[name] = beta2 * second[name] + (1 - beta2) * g**2
                if p.dim() == 2:
                    p.sub_(lr * train.weight_decay * p)
                spread = (second[name] / (1 - beta2 ** (k + 1))).sqrt() + train.eps
                p.sub_(lr * first[name] / (1 - beta1 ** (k + 1)) / spread)
    return {name: p.detach() for name, p in names.items()}, norms


class Rates(L.Callback):
    """Remembers the learning rate that each step was made with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


class Trained(NamedTuple):
    module: LearningModule
    rates: list[float]


def trained(train: Train, path: Path) -> Trained:
    module, rates = learner(train), Rates()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=train.steps, max_epochs=-1, callbacks=[rates], default_root_dir=path,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, StepsDataModule(TASK, train, 2, 0, QUESTIONS, workers=0))
    return Trained(module, rates.rates)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_as_a_bare_loop_does(tmp_path: Path) -> None:
    module, rates = trained(TRAIN, tmp_path)
    weights, norms = bare_loop(TRAIN)
    assert rates == pytest.approx([TRAIN.lr * rate(k, TRAIN) for k in range(12)])
    for name, parameter in module.model.named_parameters():
        assert (parameter - weights[name]).abs().max() < 2e-5, name
    means = module.read_meter()
    assert means["gradient_norm"] == pytest.approx(np.mean(norms), rel=1e-4)
    assert means["clip_share"] == np.mean(np.array(norms) > TRAIN.clip)


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-3}, {"warmup": 0}, {"decay_ratio": 0.9}, {"betas": (0.5, 0.9)}, {"betas": (0.8, 0.99)},
        {"eps": 1e-2}, {"weight_decay": 0.0}, {"clip": 0.01}, {"batch_tokens": 100},
    ],
)  # fmt: skip
def test_the_bare_loop_tells_settings_apart(change: dict[str, Any]) -> None:
    # What gives the test above its power: each setting moves the weights by more than its tolerance.
    weights, _ = bare_loop(TRAIN)
    others, _ = bare_loop(TRAIN.model_copy(update=change))
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) > 2e-4


@pytest.mark.parametrize(
    "fields",
    [{"warmup": 2000}, {"betas": (0.9, 1.0)}, {"clip": 0.0}, {"lr": 0.0}, {"decay_ratio": 1.5}, {"weightdecay": 0.1}],
)
def test_settings_that_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Train(**fields)


# Clipping and the meter


@pytest.mark.parametrize(("size", "clipped"), [(10.0, True), (0.1, False)])
def test_clipping(size: float, clipped: bool) -> None:
    module = learner(Train(clip=1.5))
    parameters = list(module.model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    first, *_, last = (parameter for parameter in parameters if parameter.dim() == 2)
    assert first.grad is not None
    assert last.grad is not None
    first.grad[0, 0], last.grad[0, 0] = 3 * size, -4 * size  # a norm of 5
    module.configure_gradient_clipping(None, None, None)
    scale = 1.5 / (5 * size) if clipped else 1.0
    assert (first.grad[0, 0].item(), last.grad[0, 0].item()) == pytest.approx(
        (3 * size * scale, -4 * size * scale), rel=1e-5
    )
    module.meter[3 * 2 + 1] = 1  # one step
    means = module.read_meter()
    assert means["gradient_norm"] == pytest.approx(5 * size)
    assert means["clip_share"] == (1.0 if clipped else 0.0)


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        (Parallel(n=2), [1.0, 1.0]),
        (Parallel(n=2, reduction="mean"), [0.5, 0.5]),
        (Parallel(n=2, weights=Geometric(ratio=0.25)), [1.0, 0.25]),
        (Parallel(n=2, reduction="mean", weights=Geometric(ratio=0.25)), [0.8, 0.2]),
    ],
)
def test_the_meter_by_hand(objective: Parallel, weights: list[float]) -> None:
    module = learner(objective=objective)
    model = module.model
    batches = steps()[:3]
    nats, numbers, totals = [], [], []
    for step in batches:
        found = losses(model.objective, model.decoder, step.batch, weights)
        nats.append(found.nats.tolist())
        numbers.append(found.targets.tolist())
        per_target = [each / number for each, number in zip(nats[-1], numbers[-1], strict=True)]
        totals.append(sum(weight * loss for weight, loss in zip(weights, per_target, strict=True)))
        assert module.training_step(step, 0).item() == pytest.approx(totals[-1])
    means = module.read_meter()
    for i in (0, 1):
        number = sum(each[i] for each in numbers)
        assert means[f"loss_{i + 1}"] == pytest.approx(sum(each[i] for each in nats) / number)
        assert means[f"targets_{i + 1}"] == pytest.approx(number / 3)
        assert means[f"weight_{i + 1}"] == pytest.approx(weights[i])
    assert means["loss"] == pytest.approx(np.mean(totals))
    assert int(module.tokens) == sum(int((step.batch.document_ids >= 0).sum()) for step in batches)
    asked = sorted({question for step in batches for question in step.occurring.tolist()})
    assert 0 < len(asked) < len(QUESTIONS)
    assert module.seen.nonzero().flatten().tolist() == asked

    assert not module.meter.any()
    again = module.training_step(batches[1], 0).item()
    assert module.read_meter()["loss"] == pytest.approx(again)


def test_what_must_survive_an_interruption_is_in_a_checkpoint() -> None:
    module = learner()
    module.training_step(steps()[0], 0)
    fresh = learner()
    fresh.load_state_dict(module.state_dict())
    assert int(fresh.tokens) == int(module.tokens) > 0
    assert torch.equal(fresh.seen, module.seen)
    assert fresh.read_meter() == module.read_meter()
