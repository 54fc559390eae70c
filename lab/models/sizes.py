"""Model shapes: the sizes of Table S14 (arXiv 2404.19737), or an explicit one."""

from typing import Literal, NamedTuple, get_args

from pydantic import Field, model_validator

from lab.config import Config
from lab.paper import SYNTHETIC_SIZES


class Shape(NamedTuple):
    """Layers in all (trunk and heads), width of the residual stream, attention heads a layer."""

    layers: int
    width: int
    attention_heads: int


Size = Literal["1M", "3M", "10M", "30M", "100M", "300M", "1B"]
"""The synthetic tasks' sizes, named by non-embedding parameters."""

SIZES: dict[Size, Shape] = {name: Shape(*SYNTHETIC_SIZES[name]) for name in get_args(Size)}
"""Table S14's shapes of the synthetic experiments, by size."""


class Model(Config):
    """The decoder's shape: `size`, or `layers`, `width` and `heads` together."""

    size: Size | None = None
    """A size of Table S14, named by non-embedding parameters; 1M when nothing else is given."""
    layers: int | None = Field(default=None, ge=2, le=1000)
    """Layers in all, N: the trunk's and one for each head that has its own."""
    width: int | None = Field(default=None, ge=2, le=65536)
    """Width of the residual stream."""
    heads: int | None = Field(default=None, ge=1, le=1024)
    """Attention heads a layer; they divide the width into even parts."""
    rotary_base: float = Field(default=10_000.0, gt=1.0)
    """Base of the rotary positions' wavelengths."""

    @model_validator(mode="after")
    def _complete(self) -> "Model":
        explicit = (self.layers, self.width, self.heads)
        if self.size is None and explicit == (None, None, None):
            object.__setattr__(self, "size", "1M")
        elif self.size is not None and explicit != (None, None, None):
            raise ValueError("takes size, or layers, width and heads, not both (size: null drops a size set before)")
        elif self.size is None and None in explicit:
            raise ValueError("needs all of layers, width and heads, or a size")
        _, width, heads = self.shape
        if width % (2 * heads):
            raise ValueError(f"width {width} does not divide into {heads} heads of even width (rotary positions)")
        return self

    @property
    def shape(self) -> Shape:
        """Layers, width and heads, looked up if given by size."""
        if self.size is not None:
            return SIZES[self.size]
        return Shape(self.layers or 0, self.width or 0, self.heads or 0)  # all three are given: see _complete

    @property
    def label(self) -> str:
        """The size, or the shape as L6-D64-H4."""
        return self.size or "L{}-D{}-H{}".format(*self.shape)
