"""Style of the lab's pictures: one style, one colour for each n, everywhere."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image  # matplotlib's own dependency

from lab.errors import BadInput
from lab.files import atomic_write

_COLOURS = dict(zip((1, 2, 4, 8, 3, 6, 5, 7), sns.color_palette("colorblind"), strict=False))
"""n = 1, 2, 4, 8 keep their colours whatever else a figure shows."""


def colour_of(n: int) -> tuple[float, float, float]:
    """The colour that stands for n in every figure."""
    red, green, blue = _COLOURS[n] if n in _COLOURS else sns.color_palette("husl", 64)[n % 64]
    return red, green, blue


def use_style() -> None:
    """Set the lab's style. Pictures are drawn without a screen, and the same data gives the same bytes."""
    mpl.rcdefaults()  # nothing of a matplotlibrc
    mpl.use("Agg")
    sns.set_theme(context="notebook", style="ticks", rc={"axes.spines.top": False, "axes.spines.right": False})
    mpl.rcParams.update({"svg.hashsalt": "lab", "savefig.dpi": 150, "figure.dpi": 100, "svg.fonttype": "path"})


def save(figure: Figure, folder: Path, name: str, source: str, alone: bool) -> list[Path]:
    """Write NAME.png and NAME.svg, which carry what they were drawn from, over earlier pictures of the same.

    Args:
        figure: what to write.
        folder: where.
        name: of the files.
        source: what they were drawn from, in words.
        alone: whether there is but one source that the name can stand for; then a picture that does not say what it was
            drawn from is an earlier one of it.

    Raises:
        BadInput: what is there is no picture, or of another source.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    for path in paths:
        if path.exists() and path.stat().st_size and _source(path) not in (source, *(("",) if alone else ())):
            raise BadInput(
                f"--output: '{folder}' is not allowed: {path} was not drawn by `{source}`, and would be lost; name "
                "another folder, or move it away"
            )
    for path in paths:
        unsaid: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        with atomic_write(path) as fresh:
            figure.savefig(fresh, format=path.suffix[1:], bbox_inches="tight", metadata={**unsaid, "Source": source})
    return paths


def _source(path: Path) -> str | None:
    """Return the source named in a picture, empty if it names none; None if the file is no picture."""
    content = path.read_bytes()
    if content.startswith(b"\x89PNG"):
        with Image.open(path) as picture:
            return str(picture.info.get("Source", ""))
    if b"<svg" in content:
        said = re.search("<dc:source>(.*?)</dc:source>", content.decode("utf-8", "replace"), re.DOTALL)
        return unescape(said[1]).strip() if said else ""
    return None
