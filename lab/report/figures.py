"""Figures: each is a script under figures/ that draws from stored results.

A script states its sweep in `SWEEP` and draws in `draw(sweep, finished) -> Figure`, where `finished` is a list of the
sweep's cells with their results; `lab.report.tables` makes tables of it (`tidy`, `curves`). One that draws several
states them in `SWEEPS`, a mapping from files to what to call them, and draws in `draw(several) -> Figure`, where
`several` is a list of triples: what it is called, sweep, finished. A script that draws what
another command measured or worked out states it in `COMMAND` instead, and the name of its table in `TABLE`: what the
command printed as JSON lies in results/TABLE.SCALE.json, and is drawn in `draw(table) -> Figure`. One that draws a
study states it in `STUDY`, and draws in `draw(study, rows) -> Figure`; `lab.report.studies` makes a table of the rows.
"""

import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

from lab.config import did_you_mean
from lab.environment import unheard
from lab.errors import BadInput, Failure, Missing
from lab.experiments.store import Result
from lab.experiments.study import load_study
from lab.experiments.sweep import Cell, Sweep, load_sweep, states
from lab.home import home
from lab.report import studies


def names() -> list[str]:
    """All figures that can be drawn."""
    return sorted(path.stem for path in (home() / "figures").glob("*.py"))


def check(name: str) -> None:
    """Refuse what is no figure.

    Raises:
        BadInput: no such figure.
    """
    if name not in names():
        raise BadInput(f"'{name}' is not a figure; there are: {', '.join(names())}{did_you_mean(name, names())}")


def draw(name: str, sweep: str | None, scale: str, store: Path, output: Path) -> list[Path]:
    """Draw one figure from stored results.

    Args:
        name: the script's name under figures/.
        sweep: a sweep (or study) file to draw; the script's own when None.
        scale: its scale.
        store: the folder of run directories; results/ is looked into as well.
        output: where the pictures go.

    Returns:
        The files written.

    Raises:
        BadInput: no such figure, sweep or scale.
        Failure: a cell or trial has no result, or there is no such table; names the command that fills it.
    """
    check(name)
    with unheard("MPLBACKEND"):  # a notebook's, say; pictures are drawn without any screen
        from lab.report.style import save, use_style

        script = _load(home() / "figures" / f"{name}.py")
    if hasattr(script, "TABLE"):
        if sweep is not None:
            raise BadInput(f"--sweep: '{sweep}' is not allowed: {name} draws what `{script.COMMAND}` measured")
        drawn: tuple[Any, ...] = (measured(script.TABLE, scale, script.COMMAND),)
    elif hasattr(script, "STUDY"):
        study = load_study(sweep or script.STUDY, scale)
        drawn = (study, studies.complete(study, store))
    elif hasattr(script, "SWEEPS"):
        called = {sweep: Path(sweep).stem} if sweep else script.SWEEPS
        several = [(words, load_sweep(path, scale)) for path, words in called.items()]
        drawn = ([(words, each, complete(each, store)) for words, each in several],)
    else:
        loaded = load_sweep(sweep or script.SWEEP, scale)
        drawn = (loaded, complete(loaded, store))
    use_style()
    try:
        figure = script.draw(*drawn)
    except Failure:
        raise
    except Exception as error:
        raise Failure(f"{script.__file__}: {type(error).__name__}: {error}") from error
    file = ".".join([name, *([Path(sweep).stem] if sweep else []), *([scale] if scale != "cpu" else [])])
    return save(figure, output, file, *_source(name, sweep, scale))


def _source(name: str, sweep: str | None, scale: str) -> tuple[str, bool]:
    """The command that draws a figure, in the same words wherever it is given; whether it draws the lab's own sweep."""
    if sweep is None:
        return f"lab figures {name} --scale {scale}", True
    file, ours = next(each for each in (Path(sweep), home() / sweep) if each.is_file()).resolve(), home().resolve()
    alone = file.parent == ours / "sweeps"
    shown = file.relative_to(ours) if alone else file
    return f"lab figures {name} --sweep {shown} --scale {scale}", alone


def measured(table: str, scale: str, command: str) -> dict[str, Any]:
    """Return the JSON document that a command printed at a scale, from results/.

    Raises:
        Missing: it is not there; names the command that fills it.
    """
    path = home() / "results" / f"{table}.{scale}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8").splitlines()[-1])  # type: ignore[no-any-return]
    except (OSError, ValueError, IndexError):
        of_scale = f" --scale {shlex.quote(scale)}" if ".yaml" in command else ""
        where = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        fill = f"{command}{of_scale} --json > {shlex.quote(str(where))}"
        raise Missing(f"results/{path.name} is missing or no table; fill it with: {fill}") from None


def complete(sweep: Sweep, store: Path) -> list[tuple[Cell, Result]]:
    """All of a sweep's results.

    Raises:
        Missing: some are missing; names the command that fills them.
    """
    found = states(sweep, store)
    missing = [cell for cell, state in zip(sweep.cells, found, strict=True) if state.result is None]
    if missing:
        first = ", ".join(f"{axis}={value}" for axis, value in missing[0].axes.items())
        raise Missing(
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
        _ = module.draw
        if not hasattr(module, "STUDY"):
            _ = (
                (module.TABLE, module.COMMAND)
                if hasattr(module, "TABLE")
                else hasattr(module, "SWEEPS") or module.SWEEP
            )
    except Exception as error:
        raise Failure(f"{path}: not a figure script: {type(error).__name__}: {error}") from error
    return module
