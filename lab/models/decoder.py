"""The pre-norm decoder: RMSNorm, rotary positions, SwiGLU, untied embeddings.

Shape suffixes: B rows, T positions, D width, H attention heads, K width of one attention head, F inner width, V tokens.
"""

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lab.models import kernels
from lab.models.cache import Cache, Slots
from lab.models.sizes import Model

EPS = 1e-5
"""Added to the mean square in RMSNorm."""


def inner_width(width: int) -> int:
    """SwiGLU's inner width: 8d/3 to the nearest multiple of 8. From d = 128 on a layer is within 1 % of 12 d²."""
    return max(8, round(8 * width / 3 / 8) * 8)


def rotary(length: int, head_width: int, base: float, device: torch.device) -> Tensor:
    """Rotary positions (arXiv 2104.09864) as unit complex numbers, complex64 [T, 1, K/2]; angles in float64."""
    exponents = torch.arange(0, head_width, 2, device=device, dtype=torch.float64) / head_width
    angles_TK = torch.arange(length, device=device, dtype=torch.float64)[:, None] * base**-exponents
    return torch.polar(torch.ones_like(angles_TK), angles_TK)[:, None].to(torch.complex64)


def rotate(x_BTHK: Tensor, rotary_TK: Tensor) -> Tensor:
    """Turn queries and keys to their positions, neighbouring channels as one complex number; the dtype stays.

    One complex product, forward and backward: on CPU about five times faster than sines and cosines of halves.
    """
    wide = x_BTHK if x_BTHK.dtype == torch.float64 else x_BTHK.float()
    turned = torch.view_as_complex(wide.reshape(*wide.shape[:-1], -1, 2)) * rotary_TK
    return torch.view_as_real(turned).flatten(-2).to(x_BTHK.dtype)


@dataclass(frozen=True, eq=False)
class Context:
    """Data that all layers of one forward pass share: the positions' rotations, and the attention mask."""

    rotary: Tensor
    """complex64 [T, 1, K/2], or [B, T, 1, K/2] where rows stand at different positions."""
    document_ids: Tensor | None = None
    """int64 [B, T], the document of each token within its row, documents lying one after another; attention is causal
    within them. None: every row is one document."""
    seen: Tensor | None = None
    """In decoding: bool [B, S, C], the columns of the cache that each new token sees. None: plain causal."""
    slots: Slots | None = None
    """In decoding: the columns of the cache that the S new tokens take."""
    dtype: torch.dtype = torch.float32
    """The mask's dtype."""

    @functools.cached_property
    def mask(self) -> Tensor | None:
        """[B, 1, T, T], 0 where a query (third axis) sees a key (last axis), else -inf; None for plain causal."""
        seen = self.seen
        if self.document_ids is not None:
            seen = (self.document_ids[:, :, None] == self.document_ids[:, None, :]).tril()
        if seen is None:
            return None
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device)
        return mask.masked_fill_(~seen, -torch.inf)[:, None]

    @functools.cached_property
    def turn(self) -> Tensor:
        """float32 [T, K], cosines, then sines of all pairs of channels."""
        return torch.cat((self.rotary[:, 0].real, self.rotary[:, 0].imag), dim=1)

    def suits_kernels(self, x_BTD: Tensor) -> bool:
        """Return whether the CPU's kernels compute attention on x [B, T, ...]: no decoding, no very long documents."""
        return self.slots is None and kernels.serve(x_BTD) and self._longest(x_BTD.shape[1]) <= kernels.LONGEST

    def starts(self, rows: int, positions: int) -> Tensor:
        """Return the first position of each position's document, int32 [B, T]."""
        return self._starts if self.document_ids is not None else torch.zeros(rows, positions, dtype=torch.int32)

    def _longest(self, positions: int) -> int:
        """Return the positions of the longest document, where it matters: of rows that may be too long for kernels."""
        return positions if self.document_ids is None or positions <= kernels.LONGEST else self._longest_document

    @functools.cached_property
    def _longest_document(self) -> int:
        places = torch.arange(self._starts.shape[1], dtype=torch.int32, device=self._starts.device)
        return int((places - self._starts).max()) + 1

    @functools.cached_property
    def _starts(self) -> Tensor:
        assert self.document_ids is not None
        places = torch.arange(self.document_ids.shape[1], dtype=torch.int32, device=self.document_ids.device)
        begins = torch.zeros_like(self.document_ids, dtype=torch.bool)
        torch.ne(self.document_ids[:, 1:], self.document_ids[:, :-1], out=begins[:, 1:])
        return (places * begins).cummax(dim=1).values.contiguous()


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x²) + 1e-5), times a weight (arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPS)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if kernels.serve(x_BTD):
            return kernels.rms_norm(x_BTD, self.weight, EPS)
        return super().forward(x_BTD)


class Attention(nn.Module):
    """Causal multi-head self-attention; queries, keys and values in one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        inputs = self.inputs(x_BTD)
        if not torch.is_grad_enabled() and context.suits_kernels(inputs):
            turn_TK, starts_BT = context.turn.to(inputs.dtype), context.starts(*inputs.shape[:2])
            return self.output(kernels.attention(inputs, turn_TK, starts_BT, self.heads))  # type: ignore[no-any-return]
        heads = inputs.unflatten(-1, (3 * self.heads, -1))
        qk, v_BTHK = heads.split((2 * self.heads, self.heads), dim=2)
        q_BTHK, k_BTHK = rotate(qk, context.rotary).chunk(2, dim=2)
        if context.slots is not None:
            k_BTHK, v_BTHK = context.slots.extended(self, k_BTHK, v_BTHK)
        q, k, v = q_BTHK.transpose(1, 2), k_BTHK.transpose(1, 2), v_BTHK.transpose(1, 2)
        mixed_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=context.mask, is_causal=context.mask is None)
        return self.output(mixed_BHTK.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU; gate and value in one product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 2 * inner_width(width), bias=False)
        self.output = nn.Linear(inner_width(width), width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        inputs = self.inputs(x_BTD)
        if not torch.is_grad_enabled() and kernels.serve(inputs):
            return self.output(kernels.swiglu(inputs))  # type: ignore[no-any-return]
        gate, value = inputs.chunk(2, dim=-1)
        return self.output(F.silu(gate) * value)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.recomputed = False  # whether the backward pass computes the layer again, from its input
        self.attention_norm = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.feedforward_norm = RMSNorm(width)
        self.feedforward = FeedForward(width)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(self._layer, x_BTD, context, use_reentrant=False)  # type: ignore[no-any-return]
        return self._layer(x_BTD, context)

    def _layer(self, x_BTD: Tensor, context: Context) -> Tensor:
        if torch.is_grad_enabled() and context.suits_kernels(x_BTD) and not self._observed():
            turn_TK, starts_BT = context.turn.to(x_BTD.dtype), context.starts(*x_BTD.shape[:2])
            return kernels.layer(x_BTD, turn_TK, starts_BT, self.attention.heads, EPS, self._weights())
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), context)
        return x_BTD + self.feedforward(self.feedforward_norm(x_BTD))  # type: ignore[no-any-return]

    def _weights(self) -> kernels.Weights:
        attention, feedforward = self.attention, self.feedforward
        return kernels.Weights(
            self.attention_norm.weight, attention.inputs.weight, attention.output.weight,
            self.feedforward_norm.weight, feedforward.inputs.weight, feedforward.output.weight,
        )  # fmt: skip

    def _observed(self) -> bool:
        """Return whether a hook on a part of the layer waits to be called: then parts are called one by one."""
        attention, feedforward = self.attention, self.feedforward
        parts = (
            self.attention_norm, attention, attention.inputs, attention.output,
            self.feedforward_norm, feedforward, feedforward.inputs, feedforward.output,
        )  # fmt: skip
        return any(
            each._forward_hooks or each._forward_pre_hooks or each._backward_hooks or each._backward_pre_hooks
            for each in parts
        )


class Decoder(nn.Module):
    """Embedding, trunk, final norm and unembedding; what stands between trunk and norm is the objective's."""

    def __init__(self, model: Model, trunk_layers: int, vocabulary: int) -> None:
        super().__init__()
        _, width, heads = model.shape
        self.embedding = nn.Embedding(vocabulary, width)
        self.head_width, self.rotary_base = width // heads, model.rotary_base
        self.trunk = nn.ModuleList(Block(width, heads) for _ in range(trunk_layers))
        self.norm = RMSNorm(width)
        self.unembedding = nn.Linear(width, vocabulary, bias=False)

    def context(self, tokens_BT: Tensor, documents_BT: Tensor | None) -> Context:
        """Return the context of plain or packed rows: attention is causal within a document.

        Args:
            tokens_BT: token ids.
            documents_BT: the document of each token within its row; None where every row is one document, padded on
                the right (then plain causal attention is exact and the faster kernel serves).
        """
        rotations = rotary(tokens_BT.shape[1], self.head_width, self.rotary_base, tokens_BT.device)
        return Context(rotations, documents_BT, dtype=self._mask_dtype(tokens_BT.device.type))

    def cache(self, columns: int) -> Cache:
        """An empty cache for rows of so many tokens at most."""
        return Cache(rotary(columns, self.head_width, self.rotary_base, self.embedding.weight.device))

    def continuation(self, cache: Cache, columns_BS: Tensor, positions_BS: Tensor, seen_BSC: Tensor | None) -> Context:
        """Return the context of tokens that are read after those in a cache.

        Args:
            cache: what layers keep; the pass writes to it.
            columns_BS: int64, the cache's columns that the new tokens take.
            positions_BS: int64, their positions in the text.
            seen_BSC: bool, the columns that each of them sees, of the first C; its own is one. None where columns are
                0 to S-1 of an empty cache: then plain causal.
        """
        end = columns_BS.shape[1] if seen_BSC is None else seen_BSC.shape[2]
        slots = Slots(cache, cache.places(columns_BS), end)
        dtype = self._mask_dtype(columns_BS.device.type)
        return Context(cache.rotary[positions_BS], seen=seen_BSC, slots=slots, dtype=dtype)

    def _mask_dtype(self, kind: str) -> torch.dtype:
        # Not the weights' own under autocast: attention would cast it in every layer, and keep every copy.
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.embedding.weight.dtype

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """The trunk's output z [B, T, D]."""
        x_BTD = self.embedding(tokens_BT)
        for block in self.trunk:
            x_BTD = block(x_BTD, context)
        return x_BTD  # type: ignore[no-any-return]

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The shared final norm and unembedding: [B, T, V]."""
        return self.unembedding(self.norm(x_BTD))  # type: ignore[no-any-return]


def recompute(module: nn.Module) -> None:
    """Let every layer be computed again in the backward pass: its input is all that is kept until then."""
    for each in module.modules():
        if isinstance(each, Block):
            each.recomputed = True


class Unset(TorchFunctionMode):
    """Inside, modules are made without drawing their parameters, for `initialise` to set, or for nobody (meta device).

    torch would draw them first by its own rules: seconds at 1B; and on the meta device, where there is nothing to draw,
    that imports its compiler, for which every command would wait.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return function(*args, **named)


@torch.no_grad()
def initialise(module: nn.Module, seed: int, layers: int) -> None:
    """Draw every parameter from a generator of its own, named by (seed, parameter name).

    Parameters that two arms share by name and shape then start equal, however many heads either has: seeds are paired.
    Matrices are normal with deviation 1/sqrt(inputs), embeddings with 1/sqrt(width), and what writes to the residual
    stream is divided by sqrt(2 N) for N layers. Norms are 1, biases 0. The paper states no initialisation; this is
    lingua's, from the paper's lab. Embeddings of deviation 0.02 drown in the first layers' outputs: with them a model
    of width 64 was still at 41 % for m = 1 in F_3[X]/(X^2) when with these it was at 100 % (1.5M tokens, one seed).
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        deviation = 1 / math.sqrt(parameter.shape[1])  # an embedding's second axis is the width
        if name.endswith("output.weight"):
            deviation /= math.sqrt(2 * layers)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
