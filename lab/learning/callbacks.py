"""Callbacks between steps: logging, evaluation, checkpoints, stopping."""

import copy
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.errors import Failure
from lab.files import atomic_write
from lab.learning.data import by_set, select
from lab.learning.evaluation import evaluate, head_losses
from lab.learning.module import LearningModule, rate
from lab.learning.progress import Progress
from lab.learning.settings import Evaluation
from lab.learning.trainer import L, Logger, TorchCheckpointIO
from lab.tasks.base import Examples, ScoreRow, Task


class JsonLines(Logger):
    """`metrics.jsonl`: one JSON object a row."""

    name = "metrics"
    version = ""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`, as a run does that resumes there; a half-written row goes too."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, TypeError, KeyError):
                break
        with atomic_write(self.path) as fresh:
            fresh.write_text("".join(kept), encoding="utf-8")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row; numbers that are not finite are null."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: the run's config.yaml has them."""


def _step_is_over(trainer: L.Trainer, outputs: Any, batch: Any, index: int) -> bool:
    """Return True if the pass that has just ended was the last of its optimiser step."""
    return (index + 1) % trainer.accumulate_grad_batches == 0


class Record(L.Callback):
    """Logs the meter every `every` steps, and tells `listen` how far the run is."""

    def __init__(self, every: int, listen: Callable[[Progress], None]) -> None:
        self.every = every
        self.listen = listen
        self.seconds = 0.0  # of training and evaluation, over all of the run's lives

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = state["seconds"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LearningModule)
        self.clock = self.before = time.perf_counter()
        self.tokens = int(module.tokens)
        self.first = trainer.global_step
        self.started = self.clock

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *batch: Any) -> None:
        assert isinstance(module, LearningModule)
        if not _step_is_over(trainer, *batch):
            return
        now = time.perf_counter()
        self.seconds += now - self.clock
        self.clock = now
        step, steps = trainer.global_step, int(trainer.max_steps)
        if step % self.every and step != steps:
            return
        means, tokens = module.read_meter(), int(module.tokens)
        if not math.isfinite(means["loss"]):
            raise Failure(f"the loss is {means['loss']} at step {step}: training diverged")
        speed = (tokens - self.tokens) / (now - self.before)
        self.before, self.tokens = now, tokens
        row = {"tokens": tokens, **means, "lr": module.train_settings.lr * rate(step - 1, module.train_settings)}
        for logger in trainer.loggers:
            logger.log_metrics({**row, "tokens_per_second": speed, "seconds": self.seconds}, step)
        left = (now - self.started) / (step - self.first) * (steps - step)
        losses = tuple(value for name, value in means.items() if name.startswith("loss_"))
        self.listen(Progress(step, steps, speed, left, losses))


_JUDGES = {"best": "validation", "epoch_oracle": "test"}
"""The split on which each checkpoint did best."""


class Validate(L.Callback):
    """Evaluates while training, and keeps the learning curve and the weights that did best.

    Evaluated is a part of the validation set; for the epoch oracle, which looks where one must not, the whole test set
    as well.
    """

    def __init__(self, task: Task, evaluation: Evaluation, sets: dict[str, Examples]) -> None:
        self.task = task
        self.every = evaluation.every
        self.sets = sets
        validation = sets["validation"]
        number = min(evaluation.examples, len(validation.lengths))
        self.rows = {"validation": np.arange(number) * len(validation.lengths) // number}
        if evaluation.epoch_oracle:
            self.rows["test"] = np.arange(len(sets["test"].lengths))
        self.examples = {split: select(sets[split], rows) for split, rows in self.rows.items()}
        self.curve: list[ScoreRow] = []
        """A row for each evaluation: `step`, `tokens`, and what was measured, as it is logged."""
        self.best: dict[str, dict[str, Any]] = {
            name: {"step": 0, "score": -math.inf, "weights": {}, "seen": None}
            for name, split in _JUDGES.items()
            if split in self.rows
        }

    def state_dict(self) -> dict[str, Any]:
        return {"curve": self.curve, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curve, self.best = state["curve"], state["best"]

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *batch: Any) -> None:
        assert isinstance(module, LearningModule)
        step = trainer.global_step
        if not _step_is_over(trainer, *batch) or (step % self.every and step != trainer.max_steps):
            return
        module.eval()
        row: ScoreRow = {"tokens": int(module.tokens)}
        losses = head_losses(module.model, self.examples["validation"])
        row |= {f"validation/loss_{i}": loss for i, loss in enumerate(losses, start=1)}
        seen = by_set(module.seen, self.sets)
        for name, best in self.best.items():
            split = _JUDGES[name]
            table = evaluate(module.model, self.task, self.examples[split], seen[split][self.rows[split]])
            summary = self.task.summary(table)
            row |= {f"{split}/{measure}": value for measure, value in summary.items()}
            score = summary[self.task.metric]
            if score >= best["score"]:  # of equals the later, which has trained longer
                weights = copy.deepcopy(module.model.state_dict())
                best |= {"step": step, "score": score, "weights": weights, "seen": module.seen.clone()}
        module.train()
        self.curve.append({"step": step, **row})
        for logger in trainer.loggers:
            logger.log_metrics(row, step)


class Snapshots(L.Callback):
    """Saves the weights before the first step and every `every` steps; the last are the run's final ones."""

    def __init__(self, every: int, save: Callable[[int], None]) -> None:
        self.every = every
        self.save = save

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self.save(0)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *batch: Any) -> None:
        step = trainer.global_step
        if _step_is_over(trainer, *batch) and step % self.every == 0 and step != trainer.max_steps:
            self.save(step)


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints where they are to be; Lightning's own go through memory and the folder of temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)


class Checkpoint(L.Callback):
    """Saves all that resuming needs, every `every` steps and when the run is told to stop; never half-written."""

    def __init__(self, path: Path, every: int, stop: Callable[[], bool]) -> None:
        self.path = path
        self.every = every
        self.stop = stop

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *batch: Any) -> None:
        if not _step_is_over(trainer, *batch):
            return
        stopping = self.stop()
        if stopping:
            trainer.should_stop = True
        if stopping or trainer.global_step % self.every == 0:
            with atomic_write(self.path) as fresh:
                trainer.save_checkpoint(fresh)
