"""The typed settings of learning: training and evaluation."""

from typing import Annotated

from pydantic import Field, model_validator

from lab.config import Config, InPlaceOf, Neutral


class Train(Config):
    """AdamW with linear warmup and cosine decay (Table S13). Defaults fit a laptop; the paper's values are named."""

    steps: int = Field(default=2000, ge=1, le=10**9)
    """Optimiser steps (paper: 100,000)."""
    flops: Annotated[float | None, Neutral(None), InPlaceOf("steps"), Field(gt=0, le=1e27)] = None
    """Training FLOPs in all, to compare objectives that cost unlike much a token; in place of `steps`, which are then
    what they last for."""
    batch_tokens: int = Field(default=4096, ge=1, le=2**30)
    """Tokens a step, on average, padding not counted (paper: 262,144)."""
    context: int = Field(default=128, ge=2, le=2**20)
    """Length of a packed row in tokens; attention stays within a document, so it moves speed, hardly learning."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate (paper: 1e-4)."""
    warmup: int = Field(default=100, ge=0)
    """Steps of linear warmup (paper: 2000)."""
    decay_ratio: float = Field(default=0.03, ge=0, le=1)
    """The learning rate at the last step, as a share of the peak (paper: 0.03)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to Adam's denominator (paper: not stated)."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay, on matrices alone (paper: 0.1, on what is not stated)."""
    clip: float = Field(default=1.0, gt=0)
    """Norm to which the gradient is clipped (paper: 1.0)."""
    clip_apart: Annotated[bool, Neutral(False)] = False
    """Clip the gradient of what only further heads need by a norm of its own, so that it does not shrink that of the
    next token's path; what is logged is then the latter's."""

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        if self.warmup >= self.steps and self.flops is None:  # whose steps an experiment counts
            raise ValueError(f"warmup {self.warmup} must be below steps {self.steps}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must be at least 0 and below 1")
        return self


class Evaluation(Config):
    """Measurements while training; the full validation and test sets are always scored at the end."""

    every: int = Field(default=500, ge=1)
    """Steps between evaluations on a part of the validation set; the best of them is kept."""
    examples: int = Field(default=512, ge=1)
    """Validation examples in that part, spread evenly over the set (all of it when it is smaller)."""
    epoch_oracle: Annotated[bool, Neutral(False)] = False
    """Also score the test set at each evaluation and report the weights that did best *there* as checkpoint
    `epoch_oracle`: the paper's early stopping (Section 4.1), which looks at the test set, so an upper bound."""
