"""Speed of the lab's own parts, each against its alternative, side by side in one run."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import sympy
import torch
from numpy.typing import NDArray
from torch import nn

from lab.config import configs_in, did_you_mean, validated
from lab.errors import BadInput
from lab.experiments.experiment import Experiment
from lab.learning.data import CHUNK, Steps, examples_per_step, packed_batch, select
from lab.models.sizes import SIZES, Model
from lab.objectives import LanguageModel, ObjectiveConfig, build_model
from lab.objectives.backward import Order, losses
from lab.objectives.base import Batch, targets
from lab.objectives.cross_entropy import cross_entropy
from lab.objectives.flops import instantiate, training_flops_per_token
from lab.tasks.base import Examples
from lab.tasks.polynomials.expressions import Expression
from lab.tasks.polynomials.task import Polynomials

_X = sympy.Symbol("X")

TIME_BOUND = 1.03
"""Largest allowed time of a step with n = 4 relative to n = 1, beyond the ratio of their FLOPs."""


def generator(task: Polynomials, operations: int, count: int, chunk: int = 2048) -> dict[str, Any]:
    """Expressions a second, drawn, evaluated, kept apart and written, against sympy's evaluation of the same ones.

    Args:
        task: the recipe; its ring is used.
        operations: m of every expression.
        count: expressions that sympy evaluates; ours are 64 times as many, on one thread.
        chunk: expressions generated at once, as training does.
    """
    built = task.model_copy(update={"train_operations": (operations, operations)}).build()
    built.examples("train", np.arange(chunk), 0)  # builds the evaluation sets
    started = time.perf_counter()
    for first in range(0, 64 * count, chunk):
        examples = built.examples("train", np.arange(first, first + chunk), 0)
    ours = -(-64 * count // chunk) * chunk / (time.perf_counter() - started)
    expressions = [built.record(examples, row)["expression"] for row in range(min(count, chunk))]
    started = time.perf_counter()
    for expression in expressions:
        _by_sympy(expression, task.prime, task.degree)
    theirs = len(expressions) / (time.perf_counter() - started)
    return {"operations": operations, "per_second": ours, "sympy_per_second": theirs, "ratio": ours / theirs}


def _by_sympy(expression: Expression, prime: int, degree: int) -> Any:
    if not isinstance(expression[0], str):
        return sympy.Poly(expression[::-1], _X, modulus=prime)
    name, *operands = expression[0], *(_by_sympy(each, prime, degree) for each in expression[1:])
    value = {
        "neg": lambda: -operands[0],
        "add": lambda: operands[0] + operands[1],
        "mul": lambda: operands[0] * operands[1],
        "compose": lambda: operands[0].compose(operands[1]),
    }[name]()
    return value.rem(sympy.Poly(_X**degree, _X, modulus=prime))


def preparation(experiment: Experiment, steps: int) -> dict[str, Any]:
    """Tokens a second of preparing batches (generated, named, packed), against training on them; both on one thread.

    Prepared is all that training generates at once; trained are `steps` steps of it, of which the median counts.
    """
    task = experiment.task.build()
    model = build_model(experiment.model, experiment.objective, len(task.vocabulary), experiment.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    nothing, where = np.empty(0, np.uint64), model.objective.where
    steps_of_training = Steps(task, experiment.train, model.objective.n, 0, 0, nothing, where)
    next(iter(steps_of_training))  # builds what the task needs once
    stream = iter(steps_of_training)
    started = time.perf_counter()
    batches = [next(stream).batch for _ in range(CHUNK // steps_of_training.per_step)]
    prepared = (time.perf_counter() - started) / len(batches)
    seconds = []
    for batch in batches[: steps + 1]:
        started = time.perf_counter()
        _loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    trained = float(np.median(seconds[1:]))  # the first warms up
    tokens = float(np.mean([int((batch.document_ids >= 0).sum()) for batch in batches]))
    return {
        "task": experiment.task.name,
        "tokens_per_second": tokens / prepared,
        "training_tokens_per_second": tokens / trained,
        "share_of_step": prepared / trained,
    }


def _loss(model: LanguageModel, batch: Batch) -> torch.Tensor:
    """The training loss of a batch."""
    return losses(model.objective, model.decoder, batch, model.config.head_weights(done=0)).total


def layouts(
    experiment: Experiment,
    contexts: tuple[int, ...],
    buckets: tuple[int, ...],
    steps: int,
    listen: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Useful tokens a second of training steps, by how examples become rows; layouts take turns by step.

    Packed into rows of a context with document masks, or one example a row, padded, in length buckets (one bucket is
    plain padding; on the next token alone), where causal attention needs no mask. `listen` is told each step done.
    """
    task = experiment.task.build()
    model = build_model(experiment.model, experiment.objective, len(task.vocabulary), experiment.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    per_step = examples_per_step(task, experiment.train)
    longest = task.max_length("train")
    shapes: dict[str, Callable[[Examples], Iterator[torch.Tensor]]] = {
        **{f"packed, rows of {each}": partial(_packed, model, each) for each in contexts if each >= longest},
        **{f"padded, {number} length buckets": partial(_padded, model, number) for number in buckets},
    }
    seconds: dict[str, list[float]] = {name: [] for name in shapes}
    for step in range(steps + 1):
        examples = task.examples("train", step * per_step + np.arange(per_step), experiment.seed)
        for name, parts in shapes.items():
            started = time.perf_counter()
            for loss in parts(examples):
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if step:  # the first warms up
                seconds[name].append((time.perf_counter() - started) / int(examples.lengths.sum()))
        listen(step)
    speeds = {name: 1 / float(np.median(each)) for name, each in seconds.items()}
    best = max(speeds.values())
    return [{"layout": name, "tokens_per_second": speed, "of_best": speed / best} for name, speed in speeds.items()]


def _packed(model: LanguageModel, context: int, examples: Examples) -> Iterator[torch.Tensor]:
    yield _loss(model, packed_batch(examples, context, model.objective.n))


def _padded(model: LanguageModel, buckets: int, examples: Examples) -> Iterator[torch.Tensor]:
    order: NDArray[np.int64] = np.argsort(examples.lengths)
    for rows in np.array_split(order, min(buckets, len(order))):
        part = select(examples, rows)
        yield causal_loss(model, packed_batch(part, part.tokens.shape[1], 1)) / buckets


def causal_loss(model: LanguageModel, batch: Batch) -> torch.Tensor:
    """The loss of a batch whose rows are one document each, padded on the right: attention takes no mask.

    Args:
        model: its first head alone is trained.
        batch: rows with one token beyond the positions to predict from.
    """
    inputs = batch.tokens[:, :-1]
    context = model.decoder.context(inputs, None)
    logits = next(model.objective.logits(model.decoder, model.decoder(inputs, context), context, 1))
    wanted = targets(batch, 1, inputs.shape[1]).flatten()
    return cross_entropy(logits.flatten(0, 1), wanted).sum() / (wanted != -100).sum()


class Preset(NamedTuple):
    """A model's shape, and what it is measured on unless options say otherwise."""

    model: Model
    tokens: int = 1024
    """Positions of a step."""
    context: int = 256
    """Positions of a row."""
    vocabulary: int = 256
    heads_vocabulary: int = 32_000
    """Vocabulary of the setting that measures further heads."""
    threads: int | None = None
    """CPU threads; None for all cores."""
    steps: int = 20
    """Steps of each training loop that count."""
    ahead: float = 1.0
    """The bound on a CPU: our training speed with documents' masks, as a multiple of the fastest peer's."""


PRESETS: dict[str, Preset] = {
    # What most of sweeps/*.yaml train, often two runs at a time.
    "sweeps": Preset(
        Model(layers=6, width=64, heads=4), context=64, vocabulary=32, heads_vocabulary=32, threads=1, steps=100,
        ahead=1.2,
    ),
    **{size: Preset(Model(size=size)) for size in SIZES},
    "1M": Preset(Model(size="1M"), tokens=4096, ahead=1.1),
    "30M": Preset(Model(size="30M"), ahead=1.05),
}  # fmt: skip
"""By name: the sweeps' shape, and the sizes of `lab models`."""


class Setting(NamedTuple):
    """Model and batch of measured training steps: random tokens, all of them trained on."""

    model: Model
    objective: str
    """The objective's name."""
    tokens: int
    """Positions of a step."""
    context: int
    """Positions of a row."""
    device: torch.device
    precision: Literal["fp32", "bf16"]
    """bf16: autocast, as in training."""

    def instantiated(self, n: int, vocabulary: int) -> LanguageModel:
        """A cell's model, without memory for its parameters.

        Raises:
            BadInput: there is no such objective, or it cannot have n heads on this model.
        """
        return instantiate(self.model, self._objective(n), vocabulary)

    def batch(self, n: int, vocabulary: int, documents: int = 1) -> Batch:
        """Return the batch of a step: rows of so many documents, of equal length except the last."""
        tokens_BT = torch.randint(
            vocabulary, (self.tokens // self.context, self.context + n), generator=torch.Generator().manual_seed(0)
        )
        trained = torch.ones_like(tokens_BT, dtype=torch.bool)
        columns = torch.arange(tokens_BT.shape[1]) * documents // self.context
        owner_BT = columns.clamp(max=documents - 1).expand_as(tokens_BT)
        return Batch(tokens_BT, owner_BT.contiguous(), trained).to(self.device)

    def trainer(self, n: int, vocabulary: int) -> "Trainer":
        """A model to take steps with."""
        model = build_model(self.model, self._objective(n), vocabulary, seed=0).to(self.device)
        return Trainer(model, adamw(model), self.precision)

    def _objective(self, n: int) -> ObjectiveConfig:
        known = {each.model_fields["name"].default: each for each in configs_in(ObjectiveConfig)}
        if self.objective not in known:
            allowed = f"should be one of {', '.join(known)}{did_you_mean(self.objective, known)}"
            raise BadInput(f"--objective: '{self.objective}' is not allowed: {allowed}")
        objective: Any = validated(known[self.objective], {"n": n})
        layers, taken = self.model.shape.layers, objective.head_layers()
        if taken >= layers:
            raise BadInput(
                f"--n: {n} is not allowed: the heads' {taken} layers leave no trunk in a model of {layers}; "
                f"allowed: at most {layers - 1 + n - taken}, or a larger --size"
            )
        return objective  # type: ignore[no-any-return]


class Trainer(NamedTuple):
    """A model that is trained."""

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    precision: Literal["fp32", "bf16"]

    def step(self, batch: Batch, order: Order) -> None:
        """One step as a run takes it."""
        model, weights = self.model, self.model.config.head_weights(done=0)
        take_step(
            model,
            self.optimizer,
            self.precision,
            lambda: losses(model.objective, model.decoder, batch, weights, order).total,
        )


DOCUMENTS = 4
"""Documents in a row, where there are masks."""
LEARNING_RATE, BETAS, CLIP = 1e-4, (0.9, 0.95), 1.0


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of measured models: without weight decay, so that all parameters are one group."""
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, fused=True)


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Literal["fp32", "bf16"],
    loss: Callable[[], torch.Tensor],
) -> None:
    """A step of a plain training loop: forward, backward, clip, optimiser."""
    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        value = loss()
    value.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
    optimizer.step()
    optimizer.zero_grad()


def step_times(
    setting: Setting,
    ns: Sequence[int],
    vocabulary: int,
    orders: Sequence[Order],
    steps: int,
    listen: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Seconds of a training step by n and backward order; cells take turns by step, and the median counts.

    `processor_seconds` are those of all threads together. Beside the time, what it should be by FLOPs alone:
    `beyond_flops` is (t_n / t_1) / (FLOPs_n / FLOPs_1), both of the same order; null where n = 1 is not among `ns`.
    Orders share the model of their n. `listen` is told each round done.
    """
    trainers = {n: setting.trainer(n, vocabulary) for n in ns}
    batches = {n: setting.batch(n, vocabulary) for n in ns}
    times: dict[tuple[int, Order], list[Taken]] = {(n, order): [] for order in orders for n in ns}
    for step in range(steps + 1):
        for (n, order), measured in times.items():
            started = now(setting.device)
            trainers[n].step(batches[n], order)
            measured.append(now(setting.device) - started)
        listen(step)
    seconds = {cell: medians(measured[1:]) for cell, measured in times.items()}  # the first step warms up
    flops = {n: training_flops_per_token(trainer.model, setting.context) for n, trainer in trainers.items()}
    rows = []
    for (n, order), (median, processor) in seconds.items():
        first = seconds.get((1, order))
        relative = median / first.wall if first else None
        rows.append(
            {
                "order": order,
                "n": n,
                "seconds": median,
                "processor_seconds": processor,
                "tokens_per_second": setting.tokens / median,
                "flops_per_token": flops[n],
                "flops_per_second": flops[n] * setting.tokens / median,
                "relative_to_n1": relative,
                "beyond_flops": relative / (flops[n] / flops[1]) if relative else None,
            }
        )
    return rows


class Taken(NamedTuple):
    """Seconds that something took."""

    wall: float
    processor: float
    """Of all threads of the process together, those that wait for others by spinning included. On a shared machine
    other processes add nothing to it but what they do to the caches."""

    def __sub__(self, other: "Taken") -> "Taken":
        return Taken(self.wall - other.wall, self.processor - other.processor)


def now(device: torch.device) -> Taken:
    """Read both clocks, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Taken(time.perf_counter(), time.process_time())


def medians(taken: Sequence[Taken]) -> Taken:
    """Return the medians of both times."""
    wall, processor = np.median(np.array(taken), axis=0)
    return Taken(float(wall), float(processor))
