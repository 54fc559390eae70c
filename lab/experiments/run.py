"""One training run, from experiment to result, top to bottom."""

import logging
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from lab.errors import BadInput, Failure, one_line
from lab.experiments import provenance
from lab.experiments.experiment import Experiment
from lab.experiments.inheritance import final_weights, load_matching, seen_in_training
from lab.experiments.result import checked
from lab.experiments.store import Result, RunDirectory, find_run, read_json_lines, write_json
from lab.files import atomic_write
from lab.learning.callbacks import Checkpoint, CheckpointFiles, JsonLines, Record, Snapshots, Validate
from lab.learning.data import RowLayout, StepsDataModule, by_set, questions
from lab.learning.evaluation import evaluate
from lab.learning.module import LearningModule
from lab.learning.progress import Progress
from lab.learning.trainer import L, LightningEnvironment, Logger, SIGTERMException, TensorBoardLogger, alone
from lab.models import kernels
from lab.models.decoder import recompute
from lab.objectives import LanguageModel, build_model
from lab.objectives.backward import Order, backward_order
from lab.objectives.flops import non_embedding_parameters, training_flops_per_token
from lab.tasks.base import Examples, ScoreRow, Split, Task

# Lightning announces devices and tips, and warns of what we mean: few data workers, a stream without an end that
# is resumed where it was (see lab.learning.data).
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="lightning.*")


def execute(
    experiment: Experiment,
    store: Path,
    threads: int | None = None,
    listen: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    resumed: Callable[[int], None] = lambda _: None,
    judge: Callable[[list[ScoreRow]], bool] = lambda _: False,
) -> Result | None:
    """Carry out a run, or go on with it, or find it done.

    Args:
        experiment: what to run.
        store: the folder of run directories.
        threads: CPU threads, where the experiment does not say; all cores when null.
        listen: told now and then how far the run is.
        stop: asked after every step; true makes the run stop at a checkpoint.
        resumed: told the step of the checkpoint that the run goes on from, if there is one.
        judge: shown the learning curve after every step; true makes the run stop as well.

    Returns:
        The result; None when the run was stopped. The same call goes on with it.

    Raises:
        Busy: another process works on the run.
        Failure: training diverged, or the store cannot be used.
        BadInput: the experiment cannot be built, or what it begins from is not there.
    """
    directory = RunDirectory(store, experiment)
    result = directory.read_result()
    if result is not None:
        return result
    device = choose_device(experiment.execution.device)
    torch.set_num_threads(experiment.execution.threads or threads or provenance.threads())
    torch.set_float32_matmul_precision("highest")  # whatever TORCH_ALLOW_TF32_CUBLAS_OVERRIDE says
    with directory.claimed():
        result = directory.read_result()
        if result is not None:  # finished by another process since we looked
            return result
        provenance.reset_peak_memory(device)

        # Data: validation serves choices while training; test is read at the end, and by the epoch oracle.
        task = experiment.task.build()
        held_out: tuple[Split, ...] = ("validation", "test")
        sets: dict[str, Examples] = {
            split: task.examples(split, np.arange(task.size(split) or 0), 0) for split in held_out
        }
        asked = questions(sets)
        model = build_model(experiment.model, experiment.objective, len(task.vocabulary), experiment.seed)
        n, workers = model.objective.n, experiment.execution.data_workers  # a control's own n may be another's heads
        where = model.objective.where
        layout = chosen_layout(experiment, model, task)
        data = StepsDataModule(task, experiment.train, n, experiment.seed, asked, workers, where, layout)

        # Training, from the last checkpoint if there is one (it is loaded in `fit`, over any other weights).
        source = find_run(experiment.init_from, store) if experiment.init_from else None
        inherited = load_matching(model, final_weights(source)) if source else None
        order = chosen_order(experiment, model)
        if experiment.execution.recompute:
            recompute(model)
        module = LearningModule(model, experiment.train, len(asked), order)
        record = Record(experiment.execution.log_every, listen)
        validate = Validate(task, experiment.evaluation, sets)
        checkpoint = Checkpoint(
            directory.checkpoint, experiment.execution.checkpoint_every, lambda: judge(validate.curve) or stop()
        )
        saved = directory.checkpoint if directory.checkpoint.exists() else None
        step = saved_step(saved) if saved else 0
        if saved:
            resumed(step)
        elif source:
            module.seen |= torch.from_numpy(seen_in_training(source.experiment, store, asked))
        callbacks: list[L.Callback] = [record, validate, checkpoint]
        if experiment.execution.snapshots:

            def save(step: int) -> None:
                save_weights(directory.snapshot(step), model.state_dict())

            # Before the checkpoint: a run that is killed after that one does not come to this step again.
            callbacks.insert(0, Snapshots(experiment.execution.snapshots, save))
        with alone():
            trainer = build_trainer(experiment, directory, device, step, callbacks)
            try:
                trainer.fit(module, data, ckpt_path=saved, weights_only=True)
            except SIGTERMException:  # Lightning's own end of a run that was told to stop
                return None
            except SystemExit as error:  # Lightning's answer to Ctrl-C
                raise KeyboardInterrupt from error
        if trainer.global_step < experiment.train.steps:
            return None

        # Evaluation, in float32: the master weights' own format, also after bf16 training.
        started = time.perf_counter()
        module.to(device).eval()
        final = {"step": experiment.train.steps, "weights": model.state_dict(), "seen": module.seen}
        scores = score(model, task, sets, {"final": final, **validate.best}, directory)

        # Result.
        tokens = int(module.tokens)
        finished: Result = {
            "identity": experiment.identity,
            "experiment": experiment.model_dump(mode="json"),
            "steps": experiment.train.steps,
            "tokens": tokens,
            "parameters": sum(each.numel() for each in model.parameters()),
            "non_embedding_parameters": non_embedding_parameters(model),
            "flops": tokens * training_flops_per_token(model, experiment.train.context),
            "seconds": record.seconds,
            "evaluation_seconds": time.perf_counter() - started,
            "tokens_per_second": tokens / record.seconds,
            "peak_memory_bytes": provenance.peak_memory(device),
            "backward": order,
            "layout": layout,
            "clip_share": clip_share(directory),
            "hardware": provenance.hardware(device),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "curve": validate.curve,
            "scores": scores,
        }
        if inherited:
            finished["inherited"] = inherited
        finished = checked(finished)  # in the record's order
        write_json(directory.result, finished)
        directory.checkpoint.unlink(missing_ok=True)  # only resuming needs it
        return finished


def clip_share(directory: RunDirectory) -> float | None:
    """The share of a run's steps whose gradient was clipped, of those that are logged; None where none is."""
    logged = read_json_lines(directory.metrics) if directory.metrics.exists() else []
    rows = [row for row in logged if "clip_share" in row]
    steps = np.diff([0, *(row["step"] for row in rows)])
    return float(np.average([row["clip_share"] for row in rows], weights=steps)) if rows else None


def build_trainer(
    experiment: Experiment, directory: RunDirectory, device: torch.device, step: int, callbacks: list[L.Callback]
) -> L.Trainer:
    """A trainer that logs into the run's directory, what was logged after `step` dropped."""
    metrics = JsonLines(directory.metrics)
    metrics.rewind(step)
    loggers: list[Logger] = [metrics]
    if experiment.execution.tensorboard:
        loggers.append(TensorBoardLogger(directory.path, name="tensorboard", version="", purge_step=step))
    return L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        plugins=[LightningEnvironment(), CheckpointFiles()],  # one process, whatever a cluster's variables say
        precision="bf16-mixed" if experiment.precision == "bf16" else "32-true",
        accumulate_grad_batches=experiment.execution.passes,
        max_steps=experiment.train.steps,
        max_epochs=-1,
        logger=loggers,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=directory.path,
    )


def chosen_order(experiment: Experiment, model: LanguageModel) -> Order:
    """The backward order that the experiment names, or that its sizes call for."""
    named = experiment.execution.backward
    if named != "auto":
        return named
    positions = experiment.train.batch_tokens // experiment.execution.passes
    return backward_order(model.objective.n, positions, model.decoder.unembedding.out_features)


def chosen_layout(experiment: Experiment, model: LanguageModel, task: Task) -> RowLayout:
    """Return how training examples lie in rows: joined where the CPU's kernels compute all attention, else packed.

    The kernels compute only pairs of positions in one document, so that a row may be long and padding is not needed.
    Rows are also what gradient accumulation divides a step into: there they stay packed.
    """
    on_cpu = choose_device(experiment.execution.device).type == "cpu" and experiment.precision == "fp32"
    served = on_cpu and kernels.serve(model.decoder.embedding.weight) and task.max_length("train") <= kernels.LONGEST
    return "joined" if served and experiment.execution.passes == 1 else "packed"


def score(
    model: LanguageModel,
    task: Task,
    sets: dict[str, Examples],
    checkpoints: dict[str, dict[str, Any]],
    directory: RunDirectory,
) -> list[ScoreRow]:
    """The score table of each set at each checkpoint (its `step`, `weights` and questions `seen`); saves the weights.

    Checkpoints of the same step are evaluated once.
    """
    rows: list[ScoreRow] = []
    tables: dict[int, list[ScoreRow]] = {}
    for name, checkpoint in checkpoints.items():
        step = checkpoint["step"]
        save_weights(directory.weights / f"{name}.safetensors", checkpoint["weights"])
        if step not in tables:
            model.load_state_dict(checkpoint["weights"])
            seen = by_set(checkpoint["seen"], sets)
            tables[step] = [
                {**row, "split": split}
                for split, examples in sets.items()
                for row in evaluate(model, task, examples, seen[split])
            ]
        rows += [{**row, "checkpoint": name, "step": step} for row in tables[step]]
    return rows


def saved_step(checkpoint: Path) -> int:
    """The step of a checkpoint.

    Raises:
        Failure: it is damaged.
    """
    try:
        return int(torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"])
    except Exception as error:  # whatever unpickling damaged bytes may raise
        place = "/".join(checkpoint.parts[-2:])  # in the run's directory, which is said by who hears of it
        raise Failure(f"{place} cannot be read ({one_line(error)}); remove it to begin anew") from error


def save_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    for left in path.parent.glob(".tmp*"):  # safetensors' own, of a process that was killed while it wrote
        left.unlink()
    with atomic_write(path) as fresh:
        save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, fresh)


def choose_device(wanted: str) -> torch.device:
    """The device of a run.

    Raises:
        BadInput: a GPU is wanted and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadInput('execution.device: "cuda" is not allowed: this machine has no GPU that torch can use')
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
