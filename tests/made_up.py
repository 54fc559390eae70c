"""Results of a sweep over n on stories, made up: rows as the task gives them, learning curves, several seeds."""

import itertools
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from lab.experiments.store import Result
from lab.experiments.sweep import Cell, Sweep
from lab.models.sizes import Model
from lab.objectives.parallel import Parallel
from lab.tasks.base import ScoreRow

WHOLE: dict[str, Any] = {"mention": "all", "characters": "all", "tokens": "all", "seen": "all"}
TASK = SimpleNamespace(
    metric="second_token_accuracy",
    baselines=("class_copying", "oracle", "chance"),
    slices=("names", "mention", "characters", "tokens", "seen"),
    main_slice="names",
    summary=lambda rows: {  # as of stories
        "second_token_accuracy": next(
            row["second_token_accuracy"] for row in rows if row.items() >= {**WHOLE, "names": "fresh"}.items()
        )
    },
)
LEVELS = {"oracle": 0.985, "class_copying": 0.52, "chance": 0.021}


def stories(
    ns: tuple[int, ...] = (1, 2, 4),
    seeds: int = 3,
    further: dict[str, list[Any]] | None = None,
    curve: bool = True,
) -> tuple[Sweep, list[tuple[Cell, Result]]]:
    """A sweep that is finished: axes seed, objective.n and `further` ones."""
    axes = {"seed": list(range(seeds)), "objective.n": list(ns), **(further or {})}
    cells = [Cell(_experiment(point), point) for point in (
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    )]  # fmt: skip
    file: Any = None
    sweep = Sweep("induction", "sweeps/induction.yaml", "cpu", file, tuple(axes), tuple(cells))
    return sweep, [(cell, _result(cell, curve)) for cell in cells]


def _experiment(point: dict[str, Any]) -> Any:
    size = point.get("model.size")
    model = Model(size=size) if size or "model" not in point else Model(**point["model"])
    return SimpleNamespace(
        seed=point["seed"],
        source=None,
        objective=Parallel(n=point["objective.n"]),
        model=model,
        identity="-".join(map(str, point.values())),
        task=SimpleNamespace(build=lambda: TASK),
    )


def _result(cell: Cell, curve: bool) -> Result:
    n, seed, shape = cell.experiment.objective.n, cell.experiment.seed, cell.experiment.model.shape
    noise = np.random.default_rng([n, seed, shape.width])
    size = 12 * shape.layers * shape.width**2
    gain = 0.12 * (np.log2(size) - 18) + 0.03 * n + 0.05 * noise.standard_normal()
    end = float(np.clip(0.55 + 0.2 * gain + 0.03 * noise.standard_normal(), 0, 1))
    steps = range(500, 5001, 500)

    def accuracy(step: int) -> float:
        middle = 2200 - 250 * np.log2(n) + 400 * noise.standard_normal()
        return float(0.05 + (end - 0.05) / (1 + np.exp(-(step - middle) / 350)))

    result: Any = {"non_embedding_parameters": size, "seconds": 60.0, "scores": list(_scores(end, seed))}
    if curve:
        result["curve"] = [
            {"step": s, "tokens": 1024 * s, "validation/loss_1": 2.0 - s / 5000, "validation/second_token_accuracy": a}
            for s in steps
            for a in [accuracy(s)]
        ]
    return cast(Result, result)


def _scores(end: float, seed: int) -> list[ScoreRow]:
    rows: list[ScoreRow] = []
    for checkpoint, split, names in itertools.product(("final", "best"), ("validation", "test"), ("fresh", "pool")):
        slices: list[dict[str, Any]] = [{}, {"mention": 2}, {"mention": 3}, {"mention": "10+"}, {"characters": 2}]
        if names == "pool":
            slices += [{"seen": "seen"}] + [{"seen": "unseen"}] * (seed == 0)  # rows that one seed alone has
        for part in slices:
            score = min(1.0, end + 0.1 * (names == "pool") - 0.02 * (split == "test"))
            rows.append({
                "names": names, **WHOLE, **part, "count": 600 if not part else 100 + seed,
                "second_token_accuracy": score, **LEVELS, "checkpoint": checkpoint, "split": split, "step": 5000,
            })  # fmt: skip
    return rows
