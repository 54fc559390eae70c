"""How the lab's pictures look: one style, one colour for each n, everywhere."""

from pathlib import Path

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

_COLOURS = dict(zip((1, 2, 4, 8, 3, 6, 5, 7), sns.color_palette("colorblind"), strict=False))
"""n = 1, 2, 4, 8 keep their colours whatever else a figure shows."""


def colour_of(n: int) -> tuple[float, float, float]:
    """The colour that stands for n in every figure."""
    red, green, blue = _COLOURS[n] if n in _COLOURS else sns.color_palette("husl", 64)[n % 64]
    return red, green, blue


def use_style() -> None:
    """Set the lab's style. Pictures are drawn without a screen, and the same data gives the same bytes."""
    mpl.use("Agg")
    sns.set_theme(context="notebook", style="ticks", rc={"axes.spines.top": False, "axes.spines.right": False})
    mpl.rcParams.update({"svg.hashsalt": "lab", "savefig.dpi": 150, "figure.dpi": 100, "svg.fonttype": "path"})


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write NAME.png and NAME.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, bbox_inches="tight", metadata=metadata)
    return paths
