"""Cross-entropy in the memory of its logits.

With a large vocabulary the passes over logits, and still more the fresh memory of each, are what a head costs beyond
its matrix products. So the logits are overwritten with log-probabilities, and those with their gradient: no other
tensor of their size is made.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropies [M] in nats, 0 where the target is -100; in float32 or wider.

    Args:
        logits: [M, V]. They are overwritten (if they are float32 or wider, and on a CPU), so nobody else may need them:
            autograd refuses where what they were made by does.
        targets: [M] int64: tokens, or -100.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    # Contiguous, since what writes over its own input is right for nothing else.
    return _CrossEntropy.apply(wide.contiguous(), targets)  # type: ignore[no-any-return,no-untyped-call]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        if logits.is_cpu:
            torch.ops.aten._log_softmax.out(logits, -1, False, out=logits)
        else:  # fresh memory is cheap there, and whether the kernels may write over what they read is untried
            logits = logits.log_softmax(-1)
        ctx.log_probabilities, ctx.targets = logits, targets
        nats = -logits.gather(1, targets.clamp(min=0)[:, None])[:, 0]
        return nats.masked_fill_(targets == -100, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        if ctx.log_probabilities is None:
            raise RuntimeError("cross_entropy can be differentiated once: its memory holds the gradient then")
        gradient, ctx.log_probabilities = ctx.log_probabilities, None
        scale = upstream.masked_fill(ctx.targets == -100, 0.0)[:, None]
        gradient.exp_().mul_(scale)
        gradient.scatter_add_(1, ctx.targets.clamp(min=0)[:, None], -scale)
        return gradient, None
