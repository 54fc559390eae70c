"""Figures: each is a script under figures/ that draws from stored results.

A script states its sweep in `SWEEP` and draws in `draw(sweep, finished) -> Figure`, where `finished` is a list of the
sweep's cells with their results; `lab.report.tables` makes tables of it (`tidy`, `curves`).
"""

import importlib.util
from pathlib import Path
from types import ModuleType

from lab.config import did_you_mean
from lab.errors import BadInput, Failure
from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Sweep, load_sweep, states
from lab.home import home
from lab.report.style import save, use_style


def names() -> list[str]:
    """All figures that can be drawn."""
    return sorted(path.stem for path in (home() / "figures").glob("*.py"))


def draw(name: str, sweep: str | None, scale: str, store: Path, output: Path) -> list[Path]:
    """Draw one figure from stored results.

    Args:
        name: the script's name under figures/.
        sweep: a sweep file to draw; the script's own when None.
        scale: the sweep's scale.
        store: the folder of run directories; results/ is looked into as well.
        output: where the pictures go.

    Returns:
        The files written.

    Raises:
        BadInput: no such figure, sweep or scale.
        Failure: a cell of the sweep has no result; names the command that fills it.
    """
    if name not in names():
        raise BadInput(f"'{name}' is not a figure; there are: {', '.join(names())}{did_you_mean(name, names())}")
    script = _load(home() / "figures" / f"{name}.py")
    loaded = load_sweep(sweep or script.SWEEP, scale)
    finished = complete(loaded, store)
    use_style()
    try:
        figure = script.draw(loaded, finished)
    except Failure:
        raise
    except Exception as error:
        raise Failure(f"{script.__file__}: {type(error).__name__}: {error}") from error
    return save(figure, output, name if sweep is None else f"{name}.{loaded.name}")


def complete(sweep: Sweep, store: Path) -> list[tuple[Cell, Result]]:
    """All of a sweep's results.

    Raises:
        Failure: some are missing; names the command that fills them.
    """
    found = states(sweep, store)
    missing = [cell for cell, state in zip(sweep.cells, found, strict=True) if state.result is None]
    if missing:
        first = ", ".join(f"{axis}={value}" for axis, value in missing[0].axes.items())
        raise Failure(
            f"{sweep.path}, scale {sweep.scale}: {len(missing)} of {len(found)} results are missing (first: {first}); "
            f"fill them with: {sweep.command(store)}"
        )
    return [(cell, state.result) for cell, state in zip(sweep.cells, found, strict=True) if state.result is not None]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"figure_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        _ = module.SWEEP, module.draw
    except Exception as error:
        raise Failure(f"{path}: not a figure script: {type(error).__name__}: {error}") from error
    return module
