"""The decoder's parts on a CPU, each as one node of the autograd graph whose backward pass is written out.

What is left out is traffic: copies of gradients that chunks and transposes would be put together from, buffers for what
can be overwritten, sigmoids and rotations computed twice, and of attention what lies beyond the diagonal. Values and
gradients are those of the plain formulas in `lab.models.decoder`, which serve on GPUs, but for rounding. What that is
worth is in BENCHMARKS.md.

Shape suffixes: B rows, T positions, D width, H attention heads, K width of one attention head, N = B·H, F inner width.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 256
"""Positions up to which `attend` serves; in longer rows torch's own kernel, which keeps no probabilities, is faster."""
ROWS = 64
"""Queries of a block of attention."""


def serve(x: Tensor) -> bool:
    """Whether these kernels are to be used on x: on a CPU, in float32 or wider."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")


def keys_kept(positions: int) -> float:
    """Keys whose probabilities `attend` keeps for a query and head until the backward pass, the mean over a row."""
    if positions > LONGEST:
        return 0.0
    starts = range(0, positions, ROWS)
    return sum((min(start + ROWS, positions) - start) * min(start + ROWS, positions) for start in starts) / positions


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight, the mean over the last axis."""
    return _RMSNorm.apply(x_BTD, weight_D, eps)  # type: ignore[no-any-return,no-untyped-call]


def swiglu(x_BTF: Tensor) -> Tensor:
    """silu(gate) · value, [B, T, F], of gate and value side by side, [B, T, 2F]."""
    return _SwiGLU.apply(x_BTF)  # type: ignore[no-any-return,no-untyped-call]


def attend(x_BTX: Tensor, rotary: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Causal attention [B, T, D] of queries, keys and values side by side, [B, T, 3D], the first two yet to be turned.

    Args:
        x_BTX: what attends; each third holds all heads, one after another.
        rotary: complex [T, 1, K/2], the positions' rotations.
        mask: [B, 1, T, T], added to the scores of queries (third axis) with keys up to theirs; None for none.
        heads: attention heads.
    """
    return _Attend.apply(x_BTX, rotary[:, 0], mask, heads)  # type: ignore[no-any-return,no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return torch.mul(x, inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """LayerNorm's, with 0 for the mean, and without what it takes off since its mean moves with x."""
        x, weight, inverse = ctx.saved_tensors
        of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, x, weight.shape, torch.zeros_like(inverse), inverse, weight, None, [True, True, False]
        )
        taken_off = (gradient @ weight).unsqueeze(-1).mul_(inverse).div_(x.shape[-1])
        return of_x.add_(taken_off), of_weight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        sigmoid = gate.sigmoid()
        ctx.save_for_backward(x, sigmoid)
        return (gate * sigmoid).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, sigmoid = ctx.saved_tensors
        gate, value = x.chunk(2, dim=-1)
        of_x = torch.empty_like(x)
        of_gate, of_value = of_x.chunk(2, dim=-1)
        silu = gate * sigmoid
        torch.mul(gradient, silu, out=of_value)
        slope = silu.addcmul_(silu, sigmoid, value=-1).add_(sigmoid)  # silu' = σ + silu (1 - σ)
        torch.mul(slope.mul_(gradient), value, out=of_gate)
        return of_x


class _Attend(torch.autograd.Function):
    """A block's queries see the keys up to the block's end; probabilities are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotary_TK: Tensor, mask: Tensor | None, heads: int) -> Tensor:
        rows, positions, _ = x.shape
        parts = x.view(rows, positions, 3, heads, -1).permute(2, 0, 3, 1, 4)
        qkv = parts.clone(memory_format=torch.contiguous_format)  # always a copy: what follows overwrites it
        _turn(qkv[:2], rotary_TK)
        q, k, v = qkv.flatten(1, 2)
        q.mul_(1 / math.sqrt(q.shape[-1]))
        future = torch.full((ROWS, ROWS), -torch.inf, dtype=x.dtype).triu_(1)
        mixed, kept = torch.empty_like(q), []
        for start in range(0, positions, ROWS):
            end = min(start + ROWS, positions)
            scores = q[:, start:end] @ k[:, :end].mT
            if mask is None:
                scores[..., start:].add_(future[: end - start, : end - start])
            else:
                scores.view(rows, heads, end - start, end).add_(mask[:, :, start:end, :end])
            kept.append(torch.softmax(scores, dim=-1))
            mixed[:, start:end] = kept[-1] @ v[:, :end]
        ctx.save_for_backward(qkv, rotary_TK, *kept)
        return mixed.view(rows, heads, positions, -1).transpose(1, 2).flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        qkv, rotary_TK, *kept = ctx.saved_tensors
        _, rows, heads, positions, width = qkv.shape
        q, k, v = qkv.flatten(1, 2)
        g = gradient.view(rows, positions, heads, width).transpose(1, 2).flatten(0, 1)
        of_qkv = torch.empty_like(qkv)
        of_q, of_k, of_v = of_qkv.flatten(1, 2)
        start = (len(kept) - 1) * ROWS
        for probabilities in reversed(kept):  # the last block first: its keys are all keys
            end = min(start + ROWS, positions)
            of_probabilities = g[:, start:end] @ v[:, :end].mT
            of_scores = torch.ops.aten._softmax_backward_data.out(
                of_probabilities, probabilities, -1, q.dtype, grad_input=of_probabilities
            )
            of_q[:, start:end] = of_scores @ k[:, :end]
            for of_each, each in (
                (of_k, of_scores.mT @ q[:, start:end]),
                (of_v, probabilities.mT @ g[:, start:end]),
            ):
                if end == positions:
                    of_each.copy_(each)
                else:
                    of_each[:, :end] += each
            start -= ROWS
        of_q.mul_(1 / math.sqrt(width))
        _turn(of_qkv[:2], rotary_TK.conj())
        return of_qkv.permute(1, 3, 0, 2, 4).reshape(rows, positions, -1), None, None, None


def _turn(x: Tensor, rotary_TK: Tensor) -> None:
    """Turn [..., T, K] to its positions, in place."""
    torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(rotary_TK)
