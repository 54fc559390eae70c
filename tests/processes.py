"""Trains tiny models, in one process or in several at once (`python -m tests.processes FOLDER`), for `test_parts`."""

import os
import socket
import sys
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future

from lab.experiments.experiment import Experiment
from lab.experiments.store import read_json_lines
from lab.learning.callbacks import JsonLines, Record
from lab.learning.data import StepsDataModule, questions
from lab.learning.module import LearningModule
from lab.models.decoder import recompute
from lab.objectives import build_model
from tests.conftest import tiny

PROCESSES = 2
BASE = ("train.steps=5", "train.warmup=1", "execution.log_every=3")
CASES: dict[str, tuple[str, ...]] = {
    "joint": ("execution.backward=joint",),
    "sequential": ("execution.backward=sequential",),
    "fused": ("execution.backward=fused",),
    "causal": ("objective={name: causal, n: 2}", "execution.backward=sequential"),
    "anticausal of 3": ("objective={name: anticausal, n: 3}", "execution.backward=joint"),
    "next token": ("objective={name: next_token}", "execution.backward=sequential"),
    "passes": ("execution.passes=2", "execution.backward=sequential"),
    "workers": ("execution.data_workers=2", "execution.backward=joint"),
    "one row": ("train.batch_tokens=16", "execution.backward=sequential"),
    "shallow": ("objective={name: shallow, n: 2}", "execution.backward=joint"),
    "reweighted": ("objective={name: reweighted, n: 2}", "execution.backward=fused"),
    "detached": ("objective={name: detached, n: 2}", "execution.backward=sequential"),
    "true tokens": ("objective={name: sequential, n: 3}", "execution.backward=sequential"),
    "weighted": ("objective.weights={name: auxiliary, change: 0.5}", "execution.backward=sequential"),
    "recomputed": ("execution.recompute=true", "execution.backward=sequential"),
    "balanced": ("objective.weights={name: balanced, every: 2, decay: 0.5}", "execution.backward=sequential"),
}


class Reductions(L.Callback):
    """Counts how often processes reduce gradients."""

    def __init__(self) -> None:
        self.number = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            trainer.strategy.model.register_comm_hook(None, lambda state, bucket: self._reduce(bucket))  # type: ignore[union-attr, operator]

    def _reduce(self, bucket: Any) -> Future[Tensor]:
        self.number += 1
        return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # None is all processes


def experiment_of(case: str, *more: str) -> Experiment:
    return tiny(*BASE, *CASES[case], *more)


def train(experiment: Experiment, path: Path, processes: int = 1) -> dict[str, Any]:
    """What training leaves: weights, counts, norms of balanced heads, metrics, how often gradients were reduced."""
    reductions = Reductions()
    task = experiment.task.build()
    asked = questions({"test": task.examples("test", np.arange(90), 0)})
    model = build_model(experiment.model, experiment.objective, len(task.vocabulary), experiment.seed)
    order = experiment.execution.backward
    assert order != "auto"
    if experiment.execution.recompute:
        recompute(model)
    module = LearningModule(model, experiment.train, len(asked), order)
    metrics = JsonLines(path)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=DDPStrategy(process_group_backend="gloo") if processes > 1 else "auto",
        plugins=[LightningEnvironment()],
        accumulate_grad_batches=experiment.execution.passes,
        max_steps=experiment.train.steps,
        max_epochs=-1,
        logger=[metrics],
        callbacks=[Record(experiment.execution.log_every, lambda _: None), reductions],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=path.parent,
    )
    n, workers = model.objective.n, experiment.execution.data_workers
    trainer.fit(module, StepsDataModule(task, experiment.train, n, experiment.seed, asked, workers))
    return {
        "weights": {name: each.detach().clone() for name, each in model.named_parameters()},
        "tokens": int(module.tokens),
        "seen": module.seen.clone(),
        "norms": module.norms.clone(),
        "rows": read_json_lines(path),
        "reductions": reductions.number,
    }


def _work(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    found = {case: train(experiment_of(case), folder / f"{case}-{rank}.jsonl", PROCESSES) for case in CASES}
    torch.save(found, folder / f"{rank}.pt")


def main(folder: Path) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = get_context("fork")  # what takes long is the imports, which are done
    workers = [fork.Process(target=_work, args=(rank, port, folder)) for rank in range(PROCESSES)]
    for each in workers:
        each.start()
    while alive := [each for each in workers if each.is_alive()]:
        wait([each.sentinel for each in alive])
        if any(each.exitcode for each in workers):  # the others would wait for it
            for each in workers:
                each.terminate()
    return max(abs(each.exitcode or 0) for each in workers)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
