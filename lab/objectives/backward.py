"""The training loss of n heads, and in which order they are differentiated: how many heads' logits are there at once.

- `joint`: all losses, then one backward pass; n heads' logits are kept, as in a plain training loop.
- `sequential`: the order of the paper's Fig. 2, and of its Fig. S11 where heads share layers: a head's logits and their
  gradient are done with before the next head's are made, and one backward pass through the trunk follows.
- `fused`: the same, with a head's positions in chunks: not even one head's logits are ever whole.

The last two work inside of one node of the autograd graph. Its forward pass also computes the gradients of all that
stands above the trunk; its backward pass scales them and hands them on. So for whatever is around it (Lightning's
automatic optimisation, accumulation, DistributedDataParallel) there is one loss and one backward pass, and processes
reduce gradients once, not once a head, to which the paper lost 7 to 22 % (Table S5).
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lab.models.decoder import Decoder
from lab.objectives.base import Batch, Objective, targets
from lab.objectives.cross_entropy import cross_entropy

Order = Literal["joint", "sequential", "fused"]

JOINT_BYTES = 2**26
"""Up to this size of all heads' logits the order is joint: there is nothing worth saving."""
SEQUENTIAL_BYTES = 2**30
"""Up to this size of one head's logits the order is sequential."""
CHUNK_BYTES = 2**26
"""The size of a chunk's logits."""


def backward_order(n: int, positions: int, vocabulary: int) -> Order:
    """The rule by which the order is chosen, by the size of logits in float32.

    Args:
        n: heads.
        positions: those of a forward pass, over all rows.
        vocabulary: tokens.
    """
    logits = 4 * positions * vocabulary
    if n * logits <= JOINT_BYTES:
        return "joint"
    return "sequential" if logits <= SEQUENTIAL_BYTES else "fused"


class Losses(NamedTuple):
    """The losses of a batch."""

    total: Tensor
    """The training loss: the heads' losses, weighted and summed."""
    nats: Tensor
    """[n] the sum of each head's cross-entropies over its valid targets, in nats; no gradient."""
    targets: Tensor
    """[n] int64, the valid targets of each head."""


def losses(
    objective: Objective,
    decoder: Decoder,
    batch: Batch,
    weights: Sequence[float] | Tensor,
    order: Order = "joint",
    numbers: Tensor | None = None,
) -> Losses:
    """The loss of a batch.

    Args:
        objective: the heads.
        decoder: what they stand on.
        batch: what is read and predicted.
        weights: [n] the weight of each head's loss.
        order: the backward order. The loss and its gradients are the same in each, but for rounding.
        numbers: [n] what the sum of each head's cross-entropies is divided by. None: its number of targets in the
            batch; another number where the batch is a part of what an optimiser step reads.
    """
    heads = _Heads(objective, decoder, batch)
    found = torch.stack([(wanted != -100).sum() for wanted in heads.targets])
    divisors = found.clamp(min=1) if numbers is None else numbers
    scales = torch.as_tensor(weights, dtype=torch.float64, device=found.device) / divisors
    trunk_BTD = decoder(heads.inputs, heads.context)
    if order == "joint":
        sums = [heads.loss(head, hidden.flatten(0, 1)) for head, hidden in enumerate(heads.hidden_states(trunk_BTD))]
        total = torch.stack([weighed * scale for (weighed, _), scale in zip(sums, scales, strict=True)]).sum()
        nats = torch.stack([plain for _, plain in sums])
    else:
        chunk = CHUNK_BYTES // (4 * decoder.unembedding.out_features) if order == "fused" else heads.inputs.numel()
        total, nats = _Above.apply(heads, scales, max(1, chunk), trunk_BTD, *heads.parameters)  # type: ignore[no-untyped-call]
    return Losses(total, nats, found)


def gradient_norms(objective: Objective, decoder: Decoder, batch: Batch) -> Tensor:
    """The norm [n] of the gradient of each head's loss, unweighted, with respect to the trunk's output."""
    heads = _Heads(objective, decoder, batch)
    with torch.no_grad():
        trunk_BTD = decoder(heads.inputs, heads.context)
    trunk_BTD.requires_grad_()
    norms = []
    for head, hidden_BTD in enumerate(heads.hidden_states(trunk_BTD)):
        scale = 1 / (heads.targets[head] != -100).sum().clamp(min=1)
        readout = heads.differentiate(head, hidden_BTD, scale, heads.inputs.numel(), ())
        gradient = None
        if hidden_BTD.requires_grad:
            [gradient] = torch.autograd.grad(
                hidden_BTD, trunk_BTD, readout.hidden, retain_graph=objective.heads_share_layers, allow_unused=True
            )
        norms.append(torch.zeros_like(scale) if gradient is None else gradient.norm())
    return torch.stack(norms)


class _Readout(NamedTuple):
    """A head's loss and its gradients, from its hidden states on."""

    loss: Tensor
    nats: Tensor
    hidden: Tensor
    """[B, T, D] the gradient at the hidden states."""
    parameters: list[Tensor | None]
    """The gradients of parameters, None of those that have none."""


class _Heads:
    """The heads on one batch, numbered from 0: what all orders do."""

    def __init__(self, objective: Objective, decoder: Decoder, batch: Batch) -> None:
        positions = batch.tokens.shape[1] - objective.n
        self.objective, self.decoder, self.tokens = objective, decoder, batch.input_tokens[:, :-1]
        self.inputs = batch.input_tokens[:, :positions]
        self.context = decoder.context(self.inputs, batch.document_ids[:, :positions])
        self.targets = [targets(batch, head + 1, positions).flatten() for head in range(objective.n)]
        importance = objective.token_weights(batch)
        self.token_weights = None if importance is None else importance.flatten()

    @functools.cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the heads' losses train, without the trunk's."""
        above = (each for name, each in self.decoder.named_parameters() if not name.startswith("trunk."))
        return [*above, *self.objective.parameters()]

    def hidden_states(self, trunk_BTD: Tensor) -> Iterator[Tensor]:
        """Each head's hidden states [B, T, D]."""
        return self.objective.hidden_states(self.decoder, trunk_BTD, self.context, self.objective.n, self.tokens)

    def loss(self, head: int, hidden_MD: Tensor, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Sums of a head's cross-entropies over a part of all positions: by importance, and (detached) as they are."""
        logits = self.objective.logits_of(self.decoder, head + 1, hidden_MD)
        nats = cross_entropy(logits, self.targets[head][part])
        weighed = nats if self.token_weights is None else nats * self.token_weights[part]
        return weighed.sum(), nats.detach().sum()

    def differentiate(
        self, head: int, hidden_BTD: Tensor, scale: Tensor, chunk: int, parameters: Sequence[Tensor]
    ) -> _Readout:
        """A head's loss times `scale`, and its gradients; of what lies beyond the hidden states, nothing yet."""
        hidden_MD = hidden_BTD.detach().flatten(0, 1)
        loss, nats, gradient_MD = torch.zeros_like(scale), torch.zeros_like(scale), torch.empty_like(hidden_MD)
        gradients: list[Tensor | None] = [None] * len(parameters)
        for start in range(0, len(hidden_MD), chunk):
            part = slice(start, start + chunk)
            leaf = hidden_MD[part].requires_grad_()
            weighed, plain = self.loss(head, leaf, part)
            weighed = weighed * scale
            gradient_MD[part], *more = torch.autograd.grad(weighed, (leaf, *parameters), allow_unused=True)
            _add(gradients, more)
            loss += weighed.detach()
            nats += plain
        return _Readout(loss, nats, gradient_MD.view_as(hidden_BTD), gradients)

    @torch.enable_grad()
    def differentiate_all(
        self, trunk_BTD: Tensor, scales: Tensor, chunk: int, parameters: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """The training loss, each head's sum of nats [n], and the gradients of the trunk's output and `parameters`."""
        inputs = (trunk_BTD.detach().requires_grad_(), *parameters)
        gradients: list[Tensor | None] = [None] * len(inputs)
        loss, nats = scales.new_zeros(()), []
        hidden_states, through = [], []  # of the heads whose layers are still to be differentiated
        for head, hidden_BTD in enumerate(self.hidden_states(inputs[0])):
            readout = self.differentiate(head, hidden_BTD, scales[head], chunk, parameters)
            loss += readout.loss
            nats.append(readout.nats)
            _add(gradients, [None, *readout.parameters])
            if hidden_BTD.requires_grad:  # else the head teaches nothing below it (anticausal, `trunk_gradient` 0)
                hidden_states.append(hidden_BTD)
                through.append(readout.hidden)
            if not self.objective.heads_share_layers or head == self.objective.n - 1:
                _add(gradients, torch.autograd.grad(hidden_states, inputs, through, allow_unused=True))
                hidden_states, through = [], []
        return loss, torch.stack(nats), gradients


class _Above(torch.autograd.Function):
    """All that stands above the trunk, as one node whose gradients are known as soon as its value is."""

    @staticmethod
    def forward(ctx: Any, heads: _Heads, scales: Tensor, chunk: int, trunk_BTD: Tensor, *parameters: Tensor) -> Any:
        loss, nats, ctx.gradients = heads.differentiate_all(trunk_BTD, scales, chunk, parameters)
        ctx.mark_non_differentiable(nats)
        return loss, nats

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: there is no second time
        return None, None, None, *(None if each is None else each.mul_(upstream[0]) for each in gradients)


def _add(sums: list[Tensor | None], more: Sequence[Tensor | None]) -> None:
    """Add gradients up in place, None counting as 0."""
    for index, each in enumerate(more):
        if each is not None:
            before = sums[index]
            sums[index] = each if before is None else before.add_(each)
