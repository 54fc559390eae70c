"""The Lightning module: loss, optimiser, schedule, and the meter that logging reads."""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from lab.learning.data import StepData
from lab.learning.settings import Train
from lab.learning.trainer import L
from lab.objectives import LanguageModel
from lab.objectives.backward import Order, gradient_norms, losses
from lab.objectives.weights import Balanced


def rate(step: int, train: Train) -> float:
    """The learning rate at a step (from 0), as a share of the peak.

    Linear warmup, then a cosine from the peak, at the first step after it, to `decay_ratio`, at the last.
    """
    if step < train.warmup:
        return (step + 1) / train.warmup
    progress = (step - train.warmup) / max(1, train.steps - 1 - train.warmup)
    return train.decay_ratio + (1 - train.decay_ratio) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


class LearningModule(L.LightningModule):
    """Trains a language model on its objective.

    What must survive an interruption is in buffers, so that a checkpoint holds it: the meter (sums since the last log,
    float64), the tokens trained on so far, which evaluation questions were among them, and what balances the heads.
    """

    meter: Tensor
    tokens: Tensor
    seen: Tensor
    norms: Tensor

    def __init__(self, model: LanguageModel, train: Train, questions: int, order: Order = "joint") -> None:
        super().__init__()
        self.model = model
        self.train_settings = train
        self.order = order
        n = model.objective.n
        # sums over steps: n × nats, n × targets, n × weight, training loss, steps, gradient norm, clipped steps
        self.register_buffer("meter", torch.zeros(3 * n + 4, dtype=torch.float64))
        self._ddp_params_and_buffers_to_ignore = ["meter"]  # each process has its own: not to be made the first's
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(questions, dtype=torch.bool))
        # of balanced weights: discounted sums of the heads' gradient norms and, last, of ones
        self.register_buffer("norms", torch.zeros(n + 1))

    def training_step(self, step: StepData, index: int) -> Tensor:
        """The training loss, in nats."""
        passes = self.trainer.accumulate_grad_batches
        weights = self._weights(step, first=index % passes == 0)
        found = losses(
            self.model.objective, self.model.decoder, step.batch, weights, self.order, step.loss_denominators
        )
        counts = torch.stack((found.total.detach(), torch.ones_like(found.total))) / passes
        self.meter[:-2] += torch.cat((found.nats, found.targets, weights / passes, counts))
        self.tokens += step.tokens
        self.seen[step.occurring] = True
        return found.total

    def _weights(self, step: StepData, first: bool) -> Tensor:
        """The heads' weights [n] at this step."""
        config = self.model.config
        weights = torch.tensor(config.head_weights(self.trainer.global_step / self.train_settings.steps))
        weights = weights.to(self.device, non_blocking=True)
        balanced = getattr(config, "weights", None)
        if not isinstance(balanced, Balanced):
            return weights
        if first and self.trainer.global_step % balanced.every == 0:
            norms = gradient_norms(self.model.objective, self.model.decoder, step.batch)
            new = torch.cat((self.trainer.strategy.reduce(norms, reduce_op="mean"), torch.ones_like(norms[:1])))
            self.norms.mul_(balanced.decay).add_(new)
        inverse = self.norms[-1] / self.norms[:-1].clamp(min=1e-12)
        return weights * inverse * len(inverse) / inverse.sum()

    def configure_optimizers(self) -> Any:
        """AdamW with weight decay on matrices, and the schedule by step."""
        train = self.train_settings
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": train.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=train.lr,
            betas=train.betas,
            eps=train.eps,
            fused=True,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, train))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """A step, after which no gradients are kept: Lightning would hold them through the next forward pass."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip the gradient's norm, and record it: a sum over n heads meets the clip norm n times sooner.

        With `clip_apart` what next-token inference drops is clipped by itself, and the norm is that of the rest.
        """
        clip, (kept, apart) = self.train_settings.clip, self._clipped
        if apart:
            torch.nn.utils.clip_grad_norm_(apart, clip, foreach=True)
        norm = torch.nn.utils.clip_grad_norm_(kept, clip, foreach=True)
        self.meter[-2] += norm
        self.meter[-1] += norm > clip

    @functools.cached_property
    def _clipped(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The parameters whose gradient's norm is clipped and recorded, and those that are clipped by themselves."""
        parameters = dict(self.model.named_parameters())
        dropped = sorted(self.model.objective.training_only()) if self.train_settings.clip_apart else []
        apart = [parameters.pop(f"objective.{name}") for name in dropped]
        return [*parameters.values()], apart

    def read_meter(self) -> dict[str, float]:
        """Means since the last reading, over all processes, and the meter back to zero.

        `loss` is what was minimised; by head, `loss_i` is in nats a target, `targets_i` counted a step, and `weight_i`
        the head's weight in the loss.
        """
        n = self.model.objective.n
        sums = self.trainer.strategy.reduce(self.meter.clone(), reduce_op="mean").tolist()
        self.meter.zero_()
        nats, targets, weights = sums[:n], sums[n : 2 * n], sums[2 * n : 3 * n]
        loss, steps, norm, clipped = sums[3 * n :]
        return {
            "loss": loss / steps,
            **{f"loss_{i + 1}": nats[i] / max(1.0, targets[i]) for i in range(n)},
            **{f"targets_{i + 1}": targets[i] * self.trainer.world_size / steps for i in range(n)},
            **{f"weight_{i + 1}": weights[i] / steps for i in range(n)},
            "gradient_norm": norm / steps,
            "clip_share": clipped / steps,
        }
