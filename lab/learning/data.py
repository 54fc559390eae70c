"""From a task's examples to the batches of training steps.

A step's batch is a pure function of (task, seed, step): a resumed run continues with the step it had not done, and data
workers share the steps between them. Examples are packed into short rows with document masks: measured against padding
and against length buckets, `lab bench batches`, it trains the most useful tokens per second. Where attention never
computes pairs of different documents (the CPU's kernels), they are joined into one row instead, without padding.
"""

import signal
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lab.learning.settings import Train
from lab.learning.trainer import L
from lab.objectives.base import Batch, targets
from lab.tasks.base import Examples, Task
from lab.tasks.targets import limit_targets

CHUNK = 2048
"""Examples generated at once: enough for NumPy's cost a call to vanish."""


RowLayout = Literal["packed", "joined"]
"""Layout of a step's examples: packed into rows of `train.context` tokens, or joined end to end in one row."""


class StepData(NamedTuple):
    """Data of one optimiser step."""

    batch: Batch
    """Its rows; where the step is read in parts, a part of them."""
    occurring: Tensor
    """[A] int64: which of the evaluation questions are among those of the whole step's examples; none but in the first
    part."""
    tokens: int
    """The tokens of the whole step, padding not counted; 0 but in the first part."""
    loss_denominators: Tensor | None = None
    """[n] what the sum of each head's cross-entropies in a part is divided by, for the mean of the parts' losses to be
    the step's; None where the step is whole."""


def pack(lengths: NDArray[np.int64], context: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place documents in rows of `context` tokens: longest first, each where it leaves the least room.

    Returns:
        The row and the first column of each document, [N] each.

    Raises:
        ValueError: a document is longer than a row.
    """
    if lengths.max(initial=0) > context:
        raise ValueError(f"a document of {lengths.max()} tokens does not fit a row of {context}")
    rows, columns = np.empty_like(lengths), np.empty_like(lengths)
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    opened = 0
    for document in np.argsort(-lengths, kind="stable"):
        length = int(lengths[document])
        fit = bisect_left(room, (length, 0))
        if fit < len(room):
            left, row = room.pop(fit)
        else:
            left, row, opened = context, opened, opened + 1
        rows[document], columns[document] = row, context - left
        if left > length:
            insort(room, (left - length, row))
    return rows, columns


def packed_batch(examples: Examples, context: int | None, n: int) -> Batch:
    """All the examples, in as few rows of `context` tokens as packing finds, with n tokens more to read.

    `context` None: one row without padding, the examples end to end.
    """
    lengths = examples.lengths
    context = int(lengths.sum()) if context is None else context
    rows, columns = pack(lengths, context)
    inside = np.arange(examples.tokens.shape[1]) < lengths[:, None]
    documents, places = np.nonzero(inside)
    where = (rows[documents], columns[documents] + places)
    shape = (int(rows.max()) + 1, context + n)
    tokens, owner, trained = np.zeros(shape, np.int64), np.full(shape, -1, np.int64), np.zeros(shape, np.bool_)
    tokens[where] = examples.tokens[inside]
    owner[where] = documents
    trained[where] = examples.loss_mask[inside]
    spans, further, inputs = None, None, None
    if examples.horizons is not None:
        spans = np.ones(shape, np.int64)
        spans[where] = examples.horizons[inside]
    if examples.further_loss_mask is not None:
        further = np.zeros(shape, np.bool_)
        further[where] = examples.further_loss_mask[inside]
    if examples.inputs is not None:
        inputs = np.zeros(shape, np.int64)
        inputs[where] = examples.inputs[inside]
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(owner),
        torch.from_numpy(trained),
        None if spans is None else torch.from_numpy(spans),
        None if further is None else torch.from_numpy(further),
        None if inputs is None else torch.from_numpy(inputs),
    )


def examples_per_step(task: Task, train: Train) -> int:
    """Return the number of examples with `batch_tokens` tokens on average, from the first 4096 of seed 0."""
    mean = float(task.examples("train", np.arange(4096), seed=0).lengths.mean())
    return max(1, round(train.batch_tokens / mean))


class Steps(IterableDataset[StepData]):
    """The endless training stream from step `first` on, watched for `questions` [Q].

    Further heads have the tokens as targets that `where` names (`lab.tasks.targets`).
    """

    def __init__(
        self,
        task: Task,
        train: Train,
        n: int,
        seed: int,
        first: int,
        evaluation_fingerprints: NDArray[np.uint64],
        where: Sequence[int | str] | None = None,
        layout: RowLayout = "packed",
    ) -> None:
        self.task, self.train, self.n, self.seed, self.first, self.where = task, train, n, seed, first, where
        self.context = train.context if layout == "packed" else None
        self.per_step = examples_per_step(task, train)
        self.order = np.argsort(evaluation_fingerprints, kind="stable")
        self.questions = evaluation_fingerprints[self.order]

    def __iter__(self) -> Iterator[StepData]:
        worker = get_worker_info()
        step, stride = (self.first + worker.id, worker.num_workers) if worker else (self.first, 1)
        ahead = max(1, CHUNK // self.per_step)
        while True:
            firsts = (step + stride * np.arange(ahead)) * self.per_step
            examples = self.task.examples("train", (firsts[:, None] + np.arange(self.per_step)).ravel(), self.seed)
            examples = limit_targets(self.task, examples, self.where)
            for k in range(ahead):
                part = slice(k * self.per_step, (k + 1) * self.per_step)
                yield StepData(
                    packed_batch(select(examples, part), self.context, self.n),
                    torch.from_numpy(self._asked(examples.fingerprints[part])),
                    int(examples.lengths[part].sum()),
                )
            step += stride * ahead

    def _asked(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return indices of evaluation questions that are among `keys` [E, K]; equal questions all count, 0 is none."""
        wanted = np.unique(keys)
        low, high = (np.searchsorted(self.questions, wanted[wanted > 0], side=side) for side in ("left", "right"))
        ranges = [np.arange(a, b) for a, b in zip(low, high, strict=True) if b > a]
        return self.order[np.concatenate(ranges)] if ranges else np.empty(0, np.int64)


def _leave_signals_to_the_run(_: int) -> None:
    """A data worker is forked with the run's handlers; it is the run that ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def select(examples: Examples, rows: slice | NDArray[np.int64]) -> Examples:
    """Some of the examples, no wider than the longest of them."""
    lengths = examples.lengths[rows]
    width = int(lengths.max(initial=0))
    return Examples(
        tokens=examples.tokens[rows, :width],
        lengths=lengths,
        loss_mask=examples.loss_mask[rows, :width],
        score_mask=examples.score_mask[rows, :width],
        slices={name: values[rows] for name, values in examples.slices.items()},
        fingerprints=examples.fingerprints[rows],
        token_features={name: values[rows, :width] for name, values in examples.token_features.items()},
        horizons=None if examples.horizons is None else examples.horizons[rows, :width],
        further_loss_mask=None if examples.further_loss_mask is None else examples.further_loss_mask[rows, :width],
        inputs=None if examples.inputs is None else examples.inputs[rows, :width],
    )


def questions(sets: dict[str, Examples]) -> NDArray[np.uint64]:
    """The keys of evaluation sets, [Q], set by set: what training is watched for."""
    return np.concatenate([examples.fingerprints.ravel() for examples in sets.values()])


def by_set(seen: Tensor, sets: dict[str, Examples]) -> dict[str, NDArray[np.bool_]]:
    """Return `seen` [Q], one entry for each of `questions`, in the shape of each set's fingerprints: [N, K]."""
    ends = np.cumsum([examples.fingerprints.size for examples in sets.values()])[:-1]
    micro_batches = np.split(seen.cpu().numpy(), ends)
    return {name: part.reshape(sets[name].fingerprints.shape) for name, part in zip(sets, micro_batches, strict=True)}


def parts(step: StepData, n: int, shares: int, taken: range) -> Iterator[StepData]:
    """Some of a step's `shares` shares of rows, `taken` of them, one at a time; without rows enough, of padding."""
    positions = step.batch.tokens.shape[1] - n
    found = [(targets(step.batch, head, positions) != -100).sum() for head in range(1, n + 1)]
    numbers = torch.stack(found).clamp(min=1).double() / shares
    for share in taken:
        first = share == taken[0]
        batch = step.batch.rows(slice(share, None, shares))
        if not len(batch.tokens):
            batch = step.batch.rows(slice(1))
            batch = batch._replace(document_ids=torch.full_like(batch.document_ids, -1))
        yield StepData(batch, step.occurring if first else step.occurring[:0], step.tokens if first else 0, numbers)


class StepsDataModule(L.LightningDataModule):
    """Feeds the trainer from the step it stands at, which after a resume is not the first.

    A step's rows are shared out between processes, and in each between as many forward passes as gradients are
    accumulated over: a step is the same step however it is computed.
    """

    def __init__(
        self,
        task: Task,
        train: Train,
        n: int,
        seed: int,
        questions: NDArray[np.uint64],
        workers: int,
        where: Sequence[int | str] | None = None,
        layout: RowLayout = "packed",
    ) -> None:
        super().__init__()
        self.task, self.train, self.n, self.seed = task, train, n, seed
        self.questions, self.workers, self.where, self.layout = questions, workers, where, layout

    def train_dataloader(self) -> Iterable[StepData]:
        assert self.trainer is not None
        first = self.trainer.global_step
        steps = Steps(self.task, self.train, self.n, self.seed, first, self.questions, self.where, self.layout)
        whole = DataLoader(
            steps,
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_leave_signals_to_the_run,
        )
        processes, passes = self.trainer.world_size, self.trainer.accumulate_grad_batches
        if processes * passes == 1:
            return whole
        mine = range(self.trainer.global_rank, processes * passes, processes)
        return _InParts(whole, self.n, processes * passes, mine)


class _InParts:
    """The `taken` of the `shares` shares of every step."""

    def __init__(self, steps: Iterable[StepData], n: int, shares: int, taken: range) -> None:
        self.steps, self.n, self.shares, self.taken = steps, n, shares, taken

    def __iter__(self) -> Iterator[StepData]:
        for step in self.steps:
            yield from parts(step, self.n, self.shares, self.taken)
