"""Weights of the heads' losses, and their schedules over training.

Every law gives relative weights w_1..w_n for a share of training done. The losses then become one by `reduction`: their
weighted sum (every weight 1: the paper, which states no other), or that divided by the weights' sum.
"""

from typing import Annotated, Literal

from pydantic import Field

from lab.config import Config

Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class Listed(Config):
    """Any weights."""

    name: Literal["listed"] = "listed"
    values: list[Weight] = Field(min_length=1)
    """One weight for each head, nearest first; the first above 0."""

    def at(self, n: int, done: float) -> list[float]:
        """The weights of n heads when a share `done` of training is over."""
        return self.values


class Geometric(Config):
    """Weights that fall with the distance: 1, r, r², …"""

    name: Literal["geometric"] = "geometric"
    ratio: Annotated[float, Field(gt=0, le=2)] = 0.5
    """r, the weight of a head as a share of the head's before it."""

    def at(self, n: int, done: float) -> list[float]:
        """The weights of n heads when a share `done` of training is over."""
        return [self.ratio**i for i in range(n)]


class Auxiliary(Config):
    """The next token's loss, and λ times the mean of the others' (DeepSeek-V3, arXiv 2412.19437, Section 2.2)."""

    name: Literal["auxiliary"] = "auxiliary"
    first: Weight = 0.3
    """λ at first (DeepSeek-V3: 0.3)."""
    last: Weight = 0.1
    """λ at last (DeepSeek-V3: 0.1)."""
    change: Share = 0.675
    """The share of training after which it changes (DeepSeek-V3: 10T of 14.8T tokens)."""

    def at(self, n: int, done: float) -> list[float]:
        """The weights of n heads when a share `done` of training is over."""
        return [1.0] + [(self.first if done < self.change else self.last) / max(1, n - 1)] * (n - 1)


class Curriculum(Config):
    """Heads that come (forward) or go (reverse) one after another, the furthest last or first (arXiv 2505.22757).

    The n numbers of active heads take equal parts of training. A head that is not active has the weight 0, and is
    computed all the same: step time and FLOPs are those of n heads throughout.
    """

    name: Literal["curriculum"] = "curriculum"
    order: Literal["forward", "reverse"]
    """forward: from the next token alone to all n heads; reverse: from all n to the next token alone."""
    share: Share = 1.0
    """The share of training in which the number changes; after it stay all heads (forward) or one (reverse)."""

    def at(self, n: int, done: float) -> list[float]:
        """The weights of n heads when a share `done` of training is over."""
        stage = min(n, 1 + int(n * done / self.share))
        active = stage if self.order == "forward" else n + 1 - stage
        return [float(i < active) for i in range(n)]


class Balanced(Config):
    """Weights by which every head sends a gradient of the same norm, on average, into the trunk's output.

    After the loss balancer of Défossez et al. 2022 (arXiv 2210.13438, Section 3.4), which the paper names as future
    work: a head's weight is its share, divided by the moving average of its gradient's norm. Here the weights are then
    scaled to the sum n, that of the paper's, where the balancer fixes the gradient's norm: with Adam only the clip norm
    would notice.
    """

    name: Literal["balanced"] = "balanced"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """β, the moving average's decay from one measurement to the next (the balancer's: 0.999, measured every step)."""
    every: int = Field(default=10, ge=1)
    """Steps between measurements, each of which costs about another forward and backward pass through the heads."""

    def at(self, n: int, done: float) -> list[float]:
        """The heads' shares, which the norms divide: equal."""
        return [1.0] * n


HeadWeights = Annotated[Listed | Geometric | Auxiliary | Curriculum | Balanced, Field(discriminator="name")]
