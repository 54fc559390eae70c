"""Sampling with temperature and top-p, and speculative sampling.

Speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318). A draft x, drawn from a
head's distribution q, is accepted with probability min(1, p(x) / q(x)), where p is head 1's distribution. If it is
rejected, a token is drawn from the positive part of p - q instead. The tokens are then distributed according to p.

Shape suffixes: B active rows, k heads, V tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MIN_TEMPERATURE = 1e-3
"""Lowest temperature allowed; below it sampling differs from greedy decoding by rounding errors only."""


class Sampling(NamedTuple):
    """Parameters of sampling."""

    temperature: float
    """Divisor of the logits, at least `MIN_TEMPERATURE`."""
    top_p: float = 1.0
    """Probability mass of the likeliest tokens that are sampled from (nucleus sampling, arXiv 1904.09751), in (0, 1].
    """
    seed: int = 0
    """Seed of the generator. The same batch with the same seed gives the same tokens."""


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the probabilities [..., V], float64, that tokens are sampled with."""
    probabilities = (logits.double() / sampling.temperature).softmax(dim=-1)
    if sampling.top_p == 1:
        return probabilities

    # Drop every token for which the likelier ones already have probability top_p, and renormalise.
    ordered, order = probabilities.sort(dim=-1, descending=True)
    dropped = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
    kept = ordered.masked_fill(dropped, 0.0)
    return torch.zeros_like(kept).scatter(-1, order, kept / kept.sum(dim=-1, keepdim=True))


def sample(weights_BV: Tensor, generator: torch.Generator) -> Tensor:
    """Return one token [B] per row, drawn in proportion to the weights."""
    return weights_BV.multinomial(1, generator=generator)[:, 0]


def is_accepted(p: Tensor, q: Tensor, uniform: Tensor) -> Tensor:
    """Return True for each draft that is accepted, which has probability min(1, p / q).

    Args:
        p: probability of the draft under head 1.
        q: probability of the draft under the head that proposed it.
        uniform: random number in [0, 1).
    """
    return uniform * q < p


def speculative_sample(
    drafts_Bk: Tensor, p_BkV: Tensor, q_BkV: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the number of accepted drafts [B] and the token [B] after them, all distributed according to head 1.

    Args:
        drafts_Bk: int64 [B, k-1] drafts, sampled from q.
        p_BkV: [B, k, V] head 1's distributions at the place of each draft, and at the place after the last.
        q_BkV: [B, k-1, V] distributions that the drafts were sampled from.
        generator: source of randomness.
    """
    # Accept each draft at random; the first rejection ends the row's accepted drafts.
    drafts_Bk1 = drafts_Bk[..., None]
    uniform = torch.rand(drafts_Bk.shape, dtype=p_BkV.dtype, device=p_BkV.device, generator=generator)
    accept = is_accepted(p_BkV[:, :-1].gather(-1, drafts_Bk1)[..., 0], q_BkV.gather(-1, drafts_Bk1)[..., 0], uniform)
    accepted_B = accept.long().cumprod(dim=1).sum(dim=1)

    # Take p and q at the first place without an accepted draft; after the last draft there is no q.
    batch_B = torch.arange(len(accepted_B), device=accepted_B.device)
    p_BV = p_BkV[batch_B, accepted_B]
    q_BV = torch.cat((q_BkV, torch.zeros_like(p_BkV[:, :1])), dim=1)[batch_B, accepted_B]

    # Sample the next token from the positive part of p - q, which is empty only if p = q within rounding.
    residual_BV = (p_BV - q_BV).clamp(min=0)
    empty = residual_BV.sum(dim=-1, keepdim=True) <= 0
    return accepted_B, sample(torch.where(empty, p_BV, residual_BV), generator)
