"""Training FLOPs against torch's own counter on a real forward and backward pass."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from lab.models.sizes import Model
from lab.objectives import ObjectiveConfig, backward, build_model
from lab.objectives.backward import Order, losses
from lab.objectives.base import Batch
from lab.objectives.causal import Causal
from lab.objectives.flops import instantiate, training_flops_per_token
from lab.objectives.parallel import Parallel

MODEL = Model(layers=5, width=32, heads=4)


@pytest.mark.usefixtures("plain_formulas")
@pytest.mark.parametrize(("rows", "context"), [(1, 16), (3, 40)])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_flops_are_those_that_torch_counts(n: int, rows: int, context: int) -> None:
    """Exactly: the plain kernel multiplies the whole T×T, backward costs twice forward, and both leave out the rest."""
    model = build_model(MODEL, Parallel(n=n), 17, 0)
    tokens = torch.randint(17, (rows, context + n), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(losses(model.objective, model.decoder, batch, [1.0] * n).total)
    assert training_flops_per_token(model, context) * rows * context == counter.get_total_flops()


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of what runs; torch's own counter follows modules, which `autograd.grad` keeps it from."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


@pytest.mark.usefixtures("plain_formulas")
@pytest.mark.parametrize("order", ["joint", "sequential", "fused"])
@pytest.mark.parametrize("config", [Parallel(n=3), Causal(n=3)], ids=["parallel", "causal"])
def test_every_backward_order_costs_the_same(
    order: Order, config: ObjectiveConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backward, "CHUNK_BYTES", 4 * 17 * 20)
    model, rows, context = build_model(MODEL, config, 17, 0), 2, 24
    tokens = torch.randint(17, (rows, context + 3), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool))
    with sdpa_kernel(SDPBackend.MATH), Products() as counter:
        torch.autograd.backward(losses(model.objective, model.decoder, batch, [1.0] * 3, order).total)
    assert training_flops_per_token(model, context) * rows * context == counter.flops


def test_flops_need_no_weights() -> None:
    full, meta = build_model(MODEL, Parallel(n=2), 17, 0), instantiate(MODEL, Parallel(n=2), 17)
    assert training_flops_per_token(full, 64) == training_flops_per_token(meta, 64)
    assert all(parameter.is_meta for parameter in meta.parameters())


def test_each_head_costs_one_more_unembedding() -> None:
    one, four = (training_flops_per_token(instantiate(MODEL, Parallel(n=n), 1000), 64) for n in (1, 4))
    assert four - one == 3 * 6 * 32 * 1000
