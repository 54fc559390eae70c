"""What has to hold on a GPU before anything is measured there. Skipped without one; tried on the CPU by `DEVICE`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lab.decoding.decode import decode
from lab.decoding.sampling import Sampling
from lab.decoding.tree import chain
from lab.experiments.experiment import load_experiment
from lab.experiments.run import execute
from lab.experiments.store import RunDirectory, read_json_lines
from lab.models.sizes import Model
from lab.objectives import LanguageModel, Sequential, build_model
from lab.objectives.backward import Order, losses
from tests.decoding.test_decoding import HEADS, N, random_model, random_prompts
from tests.objectives.test_backward import ORDERS, WEIGHTS, gradients_of, packed
from tests.objectives.test_variants import NAMES, built, heads_of

DEVICE = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def losses_and_gradients(
    model: LanguageModel, n: int, order: Order, device: torch.device, precision: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    wide = torch.float64 if precision == torch.float64 else torch.float32
    model, batch = model.to(device, wide), packed(model.objective.n).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        found = losses(model.objective, model.decoder, batch, WEIGHTS[model.objective.n], order)
    gradients = gradients_of(model, found.total)
    nats = found.nats / found.targets.clamp(min=1)
    return nats.double().cpu(), {name: each.double().cpu() for name, each in gradients.items()}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_cpu(name: str, order: Order) -> None:
    """In float64 to rounding, for every variant and backward order."""
    on_cpu, there = (
        losses_and_gradients(built(name, 4), 4, order, device, torch.float64)
        for device in (torch.device("cpu"), DEVICE)
    )
    assert len(there[0]) == heads_of(name, 4)
    torch.testing.assert_close(there[0], on_cpu[0], rtol=1e-10, atol=1e-12)
    for parameter, gradient in on_cpu[1].items():
        torch.testing.assert_close(there[1][parameter], gradient, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", NAMES)
def test_autocast_takes_the_same_step(name: str, order: Order) -> None:
    """bf16 products, as GPU runs have: losses within 2 %, and gradients that point the same way."""
    exact, there = (
        losses_and_gradients(built(name, 4), 4, order, DEVICE, precision)
        for precision in (torch.float64, torch.bfloat16)
    )
    torch.testing.assert_close(there[0], exact[0], rtol=0.02, atol=0.01)
    one, other = (torch.cat([each.flatten() for each in gradients.values()]) for gradients in (exact[1], there[1]))
    assert torch.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.parametrize("objective", HEADS)
def test_decoding_is_that_of_the_cpu(objective: type) -> None:
    """In float64, so that no argmax is a tie: plain, and with every number of drafts."""
    model, (prompts, lengths) = random_model(objective), random_prompts(9, seed=3)
    expected = decode(model, prompts, lengths, 11).tokens
    model = model.to(DEVICE)
    trees = [chain(k) for k in range(1, N + 1)] + ([] if objective is Sequential else [(3, 2)])
    for drafts in trees:
        assert decode(model, prompts.to(DEVICE), lengths.to(DEVICE), 11, drafts).tokens == expected


def test_sampling_on_the_device() -> None:
    model = build_model(Model(layers=5, width=16, heads=2), HEADS[0](n=N), 7, 0).eval().to(DEVICE)
    prompts, lengths = (each.to(DEVICE) for each in random_prompts(9, seed=3))
    one, other = (decode(model, prompts, lengths, 11, (1, 1), Sampling(1.0, 0.9, seed=5)).tokens for _ in range(2))
    assert one == other
    assert {len(row) for row in one} == {11}


def test_bf16_follows_fp32_for_200_steps_of_10m(tmp_path: Path) -> None:
    fields = ["model.size=10M", "objective=parallel", "objective.n=4", "train.steps=200", "train.batch_tokens=16384"]
    fields += ["train.context=256", "train.lr=1e-3", "evaluation.every=200", f"execution.device={DEVICE.type}"]
    told = []
    for precision in ("bf16", "fp32"):
        experiment = load_experiment("datasets/polynomials.yaml", [*fields, f"precision={precision}"])
        assert execute(experiment, tmp_path) is not None
        rows = read_json_lines(RunDirectory(tmp_path, experiment).metrics)
        told.append(np.array([row["loss"] for row in rows if "loss" in row]))
    assert len(told[0]) == len(told[1]) > 3
    np.testing.assert_allclose(told[0], told[1], rtol=0.03)
