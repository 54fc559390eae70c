"""A training loop in Lightning, as a run trains, on one batch: what is compared with bare loops."""

import tempfile
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lab.bench.speed import BETAS, CLIP, DOCUMENTS, LEARNING_RATE, Setting
from lab.experiments.experiment import Execution, Experiment
from lab.experiments.run import build_trainer
from lab.experiments.store import RunDirectory
from lab.learning.callbacks import Checkpoint, Record
from lab.learning.data import StepData
from lab.learning.module import LearningModule
from lab.learning.settings import Train
from lab.learning.trainer import L, alone
from lab.tasks.polynomials.task import Polynomials


class _Between(L.Callback):
    """Lets the others take their turns before each of Lightning's steps."""

    def __init__(self, turns: Iterator[None]) -> None:
        self.turns = turns

    def on_train_batch_start(self, *_: Any) -> None:
        next(self.turns, None)


class _Same(IterableDataset[StepData]):
    """The same step, over and over."""

    def __init__(self, step: StepData) -> None:
        self.step = step

    def __iter__(self) -> Iterator[StepData]:
        return repeat(self.step)


def in_lightning(setting: Setting, vocabulary: int, steps: int, turns: Iterator[None]) -> nn.Module:
    """Train in Lightning as a run does, from the weights and on the batch that the bare loop with masks has.

    One fit with a run's module, trainer, loggers and callbacks (no evaluation; logging and checkpoints as seldom as a
    run's). `turns` goes on once before each step: between two of them lies all that the loop does for one step. One
    step more than `steps` is taken, so that the last of these ends like the others.

    Returns:
        The model, trained for `steps` + 1 steps.

    Raises:
        KeyboardInterrupt: the process was told to stop.
    """
    train = Train(
        steps=steps + 1, lr=LEARNING_RATE, betas=BETAS, clip=CLIP, weight_decay=0.0, warmup=0, decay_ratio=1.0
    )
    experiment = Experiment(
        task=Polynomials(),  # stands for any: the batch is given
        model=setting.model,
        train=train,
        precision=setting.precision,
        execution=Execution(device="cuda" if setting.device.type == "cuda" else "cpu"),
    )
    model = setting.trainer(1, vocabulary).model
    batch = setting.batch(1, vocabulary, DOCUMENTS)
    step = StepData(batch, torch.empty(0, dtype=torch.int64), setting.tokens)
    with tempfile.TemporaryDirectory() as store:
        directory = RunDirectory(Path(store), experiment)
        directory.checkpoint.parent.mkdir(parents=True)
        callbacks = [
            _Between(turns),
            Record(experiment.execution.log_every, lambda _: None),
            Checkpoint(directory.checkpoint, experiment.execution.checkpoint_every, lambda: False),
        ]
        with alone():
            trainer = build_trainer(experiment, directory, setting.device, 0, callbacks)
            try:
                trainer.fit(LearningModule(model, train, questions=0), DataLoader(_Same(step), batch_size=None))
            except SystemExit as error:  # Lightning's answer to Ctrl-C
                raise KeyboardInterrupt from error
    return model
