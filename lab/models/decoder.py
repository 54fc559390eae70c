"""The pre-norm decoder: RMSNorm, rotary positions, SwiGLU, untied embeddings.

Shape suffixes: B rows, T positions, D width, H attention heads, K width of one attention head, F inner width, V tokens.
"""

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lab.models.sizes import Model


def inner_width(width: int) -> int:
    """SwiGLU's inner width: 8d/3 to the nearest multiple of 8, which keeps a layer within 1 % of 12 d² parameters."""
    return max(8, round(8 * width / 3 / 8) * 8)


class Rotary(nn.Module):
    """Rotary positions (arXiv 2104.09864), halves rotated against each other."""

    def __init__(self, head_width: int, base: float) -> None:
        super().__init__()
        self.head_width = head_width
        self.base = base

    def forward(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, K/2], float32."""
        exponents = torch.arange(0, self.head_width, 2, device=device, dtype=torch.float32) / self.head_width
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * self.base**-exponents
        return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn queries or keys to their positions; the dtype stays."""
    left, right = x_BHTK.chunk(2, dim=-1)
    turned = torch.cat((left * cos_TK - right * sin_TK, right * cos_TK + left * sin_TK), dim=-1)
    return turned.to(x_BHTK.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention; queries, keys and values in one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.inputs(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        mixed_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.output(mixed_BHTK.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU; gate and value in one product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 2 * inner_width(width), bias=False)
        self.output = nn.Linear(inner_width(width), width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, value = self.inputs(x_BTD).chunk(2, dim=-1)
        return self.output(F.silu(gate) * value)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.attention = Attention(width, heads)
        self.feedforward_norm = nn.RMSNorm(width, eps=1e-5)
        self.feedforward = FeedForward(width)

    def forward(self, x_BTD: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, mask)
        return x_BTD + self.feedforward(self.feedforward_norm(x_BTD))  # type: ignore[no-any-return]


class Context:
    """What every layer of one forward pass shares: rotary angles, and which positions see which.

    Args:
        rotary: cosines and sines [T, K/2].
        mask: bool [B, 1, T, T], true where a query (third axis) may look at a key (last axis); None for plain causal.
    """

    def __init__(self, rotary: tuple[Tensor, Tensor], mask: Tensor | None) -> None:
        self.rotary = rotary
        self.mask = mask


class Decoder(nn.Module):
    """Embedding, trunk, final norm and unembedding; what stands between trunk and norm is the objective's."""

    def __init__(self, model: Model, trunk_layers: int, vocabulary: int) -> None:
        super().__init__()
        _, width, heads = model.shape
        self.embedding = nn.Embedding(vocabulary, width)
        self.rotary = Rotary(width // heads, model.rotary_base)
        self.trunk = nn.ModuleList(Block(width, heads) for _ in range(trunk_layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
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
            mask = (documents_BT[:, :, None] == documents_BT[:, None, :]).tril()[:, None]
        return Context(self.rotary(tokens_BT.shape[1], tokens_BT.device), mask)

    def forward(self, tokens_BT: Tensor, context: Context) -> Tensor:
        """The trunk's output z [B, T, D]."""
        x_BTD = self.embedding(tokens_BT)
        for block in self.trunk:
            x_BTD = block(x_BTD, context.rotary, context.mask)
        return x_BTD  # type: ignore[no-any-return]

    def logits(self, x_BTD: Tensor) -> Tensor:
        """The shared final norm and unembedding: [B, T, V]."""
        return self.unembedding(self.norm(x_BTD))  # type: ignore[no-any-return]


@torch.no_grad()
def initialise(module: nn.Module, seed: int, layers: int) -> None:
    """Draw every parameter from a generator of its own, named by (seed, parameter name).

    Parameters that two arms share by name and shape then start equal, however many heads either has: seeds are paired.
    Matrices: normal, deviation 1/sqrt(inputs); those that write to the residual stream divided by sqrt(2 N) for N
    layers (GPT-2); embedding and unembedding 0.02; norms 1. (The paper states no initialisation.)
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0)
            continue
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        deviation = 0.02 if "embedding" in name else 1 / math.sqrt(parameter.shape[1])
        if name.endswith("output.weight"):
            deviation /= math.sqrt(2 * layers)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
