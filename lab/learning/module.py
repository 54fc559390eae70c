"""The Lightning module: loss, optimiser, schedule, and the meter that logging reads."""

import math
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from lab.learning.data import Step
from lab.learning.settings import Train
from lab.objectives import LanguageModel


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
    float64), the tokens trained on so far, and which evaluation questions were among them.
    """

    meter: Tensor
    tokens: Tensor
    seen: Tensor

    def __init__(self, model: LanguageModel, train: Train, questions: int) -> None:
        super().__init__()
        self.model = model
        self.train_settings = train
        n = model.objective.n
        # sums over steps: n × (loss × targets), n × targets, gradient norm, clipped steps, steps, training loss
        self.register_buffer("meter", torch.zeros(2 * n + 4, dtype=torch.float64))
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(questions, dtype=torch.bool))

    def training_step(self, step: Step, _: int) -> Tensor:
        """The weighted sum of the objective's terms, in nats."""
        n = self.model.objective.n
        total = torch.zeros((), device=self.device)
        for term in self.model.objective.terms(self.model.decoder, step.batch):
            total = total + term.weight * term.loss
            self.meter[term.head - 1] += term.loss.detach() * term.targets
            self.meter[n + term.head - 1] += term.targets
        self.meter[2 * n + 2] += 1
        self.meter[2 * n + 3] += total.detach()
        self.tokens += (step.batch.documents >= 0).sum()
        self.seen[step.asked] = True
        return total

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

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip the gradient's norm, and record it: a sum over n heads meets the clip norm n times sooner."""
        clip = self.train_settings.clip
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip, foreach=True)
        n = self.model.objective.n
        self.meter[2 * n] += norm
        self.meter[2 * n + 1] += norm > clip

    def read_meter(self) -> dict[str, float]:
        """Means since the last reading (losses in nats per target, by head), and the meter back to zero.

        `loss` is what was minimised: the weighted sum of the heads' losses.
        """
        n = self.model.objective.n
        sums = self.meter.tolist()
        self.meter.zero_()
        steps = sums[2 * n + 2]
        heads = {f"loss_{i + 1}": sums[i] / max(1.0, sums[n + i]) for i in range(n)}
        numbers = {f"targets_{i + 1}": sums[n + i] / steps for i in range(n)}
        return {
            "loss": sums[2 * n + 3] / steps,
            **heads,
            **numbers,
            "gradient_norm": sums[2 * n] / steps,
            "clip_share": sums[2 * n + 1] / steps,
        }
