"""The pre-norm decoder: RMSNorm, rotary positions, SwiGLU, untied embeddings.

Shape suffixes: B rows, T positions, D width, H attention heads, K width of one attention head, F inner width, V tokens.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from lab.models import kernels
from lab.models.cache import Cache, Slots
from lab.models.sizes import Model


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


class Context(NamedTuple):
    """What every layer of one forward pass shares: the positions' rotations, and which positions see which."""

    rotary: Tensor
    """complex64 [T, 1, K/2], or [B, T, 1, K/2] where rows stand at different positions."""
    mask: Tensor | None
    """[B, 1, T, T], 0 where a query (third axis) may look at a key (last axis), else -inf; None for plain causal."""
    slots: Slots | None = None
    """In decoding: the columns of the cache that the T tokens take; keys (the mask's last axis) are then columns."""


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x²) + 1e-5), times a weight (arXiv 1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if torch.is_grad_enabled() and kernels.serve(x_BTD):  # without gradients torch's own is faster
            return kernels.rms_norm(x_BTD, self.weight, 1e-5)
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
        if context.slots is None and kernels.serve(inputs) and inputs.shape[1] <= kernels.LONGEST:
            return self.output(kernels.attend(inputs, context.rotary, context.mask, self.heads))  # type: ignore[no-any-return]
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
        if torch.is_grad_enabled() and kernels.serve(inputs):
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
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), context)
        return x_BTD + self.feedforward(self.feedforward_norm(x_BTD))  # type: ignore[no-any-return]


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
        """Who sees whom: causal within a document.

        Args:
            tokens_BT: token ids.
            documents_BT: the document of each token within its row; None where every row is one document, padded on
                the right (then plain causal attention is exact and the faster kernel serves).
        """
        mask = None
        if documents_BT is not None:
            mask = self._mask((documents_BT[:, :, None] == documents_BT[:, None, :]).tril())
        rotations = rotary(tokens_BT.shape[1], self.head_width, self.rotary_base, tokens_BT.device)
        return Context(rotations, mask)

    def cache(self, columns: int) -> Cache:
        """An empty cache for rows of so many tokens at most."""
        return Cache(rotary(columns, self.head_width, self.rotary_base, self.embedding.weight.device))

    def continuation(self, cache: Cache, columns_BS: Tensor, positions_BS: Tensor, seen_BSC: Tensor | None) -> Context:
        """Who sees whom where some tokens are read after those in a cache.

        Args:
            cache: what layers keep; the pass writes to it.
            columns_BS: int64, the cache's columns that the new tokens take.
            positions_BS: int64, their positions in the text.
            seen_BSC: bool, the columns that each of them sees, of the first C; its own is one. None where columns are
                0 to S-1 of an empty cache: then plain causal.
        """
        end, mask = (columns_BS.shape[1], None) if seen_BSC is None else (seen_BSC.shape[2], self._mask(seen_BSC))
        return Context(cache.rotary[positions_BS], mask, Slots(cache, cache.places(columns_BS), end))

    def _mask(self, seen_BTT: Tensor) -> Tensor:
        """[B, 1, T, T], 0 where a query sees a key, else -inf."""
        kind = seen_BTT.device.type
        # Not the weights' own under autocast: attention would cast it in every layer, and keep every copy.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.embedding.weight.dtype
        mask = torch.zeros(seen_BTT.shape, dtype=dtype, device=seen_BTT.device)
        return mask.masked_fill_(~seen_BTT, -torch.inf)[:, None]

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
