"""Finished runs, opened to be looked into: their models at every step of which weights were kept."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.errors import Failure, Missing
from lab.experiments.experiment import Experiment
from lab.experiments.inheritance import final_weights, read_weights
from lab.experiments.store import RunDirectory, find_run, read_json_lines
from lab.experiments.sweep import load_sweep
from lab.files import located
from lab.objectives import LanguageModel, build_model
from lab.objectives.weights import Balanced
from lab.tasks.base import Examples, Task


@dataclass(frozen=True)
class FinishedRun:
    """A finished run."""

    directory: RunDirectory
    axes: dict[str, Any] = field(default_factory=dict)
    """The values by which it differs from others of its sweep."""

    @property
    def experiment(self) -> Experiment:
        """The experiment of the run."""
        return self.directory.experiment

    @cached_property
    def task(self) -> Task:
        """The task of the run."""
        return self.experiment.task.build()

    @property
    def steps(self) -> list[int]:
        """The steps of which there are weights, the last of training at the end."""
        return [*self.directory.snapshots(), self.experiment.train.steps]

    @property
    def arm(self) -> dict[str, Any]:
        """Its values on the axes of its sweep but the seed, in JSON types."""
        return {
            axis: each if isinstance(each, int | float | str) else str(each)
            for axis, each in self.axes.items()
            if axis != "seed"
        }

    @property
    def about(self) -> dict[str, Any]:
        """Return the columns that identify the run in a row, in JSON types."""
        experiment = self.experiment
        return {
            **self.arm,
            "identity": experiment.identity,
            "objective": experiment.objective.name,
            "n": experiment.objective.n,
            "seed": experiment.seed,
        }

    def model(self, step: int) -> LanguageModel:
        """The model after `step` steps, ready to be evaluated, on the CPU in float32.

        Raises:
            BadInput: its weights are damaged or gone.
        """
        experiment = self.experiment
        model = build_model(experiment.model, experiment.objective, len(self.task.vocabulary), experiment.seed)
        last = step == experiment.train.steps
        path = self.directory.snapshot(step)
        model.load_state_dict(
            final_weights(self.directory, "RUN") if last else read_weights(self.directory, path, "RUN")
        )
        return model.eval()

    def head_weights(self, step: int) -> list[float]:
        """Each head's weight in the training loss at a step; where gradients balance them, as it was logged.

        Raises:
            Failure: it was not.
        """
        objective = self.experiment.objective
        if not isinstance(getattr(objective, "weights", None), Balanced):
            return objective.head_weights(min(1.0, step / self.experiment.train.steps))
        try:
            rows = [row for row in read_json_lines(self.directory.metrics) if "weight_1" in row]
            row = next((row for row in rows if row["step"] >= step), rows[-1])
            return [row[f"weight_{head}"] for head in range(1, objective.n + 1)]
        except (OSError, ValueError, KeyError, IndexError):
            raise Failure(
                f"{self.directory.metrics}: does not tell the heads' weights, which gradients balanced"
            ) from None

    def models(self, every: bool) -> Iterator[tuple[int, LanguageModel]]:
        """The model at every step of which there are weights, or at the last alone."""
        for step in self.steps if every else self.steps[-1:]:
            yield step, self.model(step)

    def test_examples(self, count: int) -> Examples:
        """`count` examples of the test set, spread evenly over it; all of them when it has fewer."""
        size = self.task.size("test") or 0
        chosen = min(count, size)
        return self.task.examples("test", np.arange(chosen) * size // chosen, 0)


def open_runs(name: str, scale: str, store: Path) -> list[FinishedRun]:
    """The finished run that `name` stands for, or, of a sweep's YAML file, all of its runs.

    Raises:
        BadInput: there is no such run or sweep, or the run is not finished.
        Missing: a run of the sweep has no weights in the store; names the command that makes them.
    """
    if Path(name).suffix.lower() not in (".yaml", ".yml") and not located(name).is_file():
        run = find_run(name, store, "RUN")
        final_weights(run, "RUN")
        return [FinishedRun(run)]
    sweep = load_sweep(name, scale)
    runs = [FinishedRun(RunDirectory(store, cell.experiment), cell.axes) for cell in sweep.cells]
    missing = [run for run in runs if run.directory.read_result() is None or not run.directory.final.is_file()]
    if missing:
        raise Missing(
            f"{name}, scale {scale}: {len(missing)} of {len(runs)} runs have no weights in {store} (results/ holds "
            f"none); make them with: {sweep.command(store, options=['--weights'])}"
        )
    return runs


def rows_of(model: LanguageModel, examples: Examples, rows: np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
    """The tokens of some of the examples, int64 [B, T] on the model's device, no wider than the longest of them."""
    width = int(examples.lengths[rows].max())
    return torch.from_numpy(examples.tokens[rows, :width].astype(np.int64)).to(next(model.parameters()).device)
