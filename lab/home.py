"""The folder of the lab's own files: recipes, sweeps, figure scripts and committed results."""

from pathlib import Path


def home() -> Path:
    """The folder that holds datasets/, sweeps/, figures/ and results/: the checkout, or what a wheel installed."""
    package = Path(__file__).parent
    return package.parent if (package.parent / "pyproject.toml").is_file() else package / "_home"
