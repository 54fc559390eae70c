"""Greedy evaluation without a decoding loop.

Greedy decoding gives the true answer if and only if every teacher-forced argmax on it is right, so one forward pass
scores a test set exactly. (`decoding.greedy` is the loop; a test holds the two together.)
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from lab.learning.data import packed_batch, select
from lab.objectives import LanguageModel
from lab.objectives.backward import losses
from lab.tasks.base import Examples, Row, Task

_TOKENS = 16_384  # tokens of a forward pass, padding included: large enough to be fast, small enough for any device


def batches(examples: Examples) -> Iterator[NDArray[np.int64]]:
    """Rows of examples for one forward pass each, of like length, so that little is padding."""
    order = np.argsort(examples.lengths, kind="stable")
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and (last + 1 - first) * examples.lengths[order[last]] <= _TOKENS:
            last += 1
        yield order[first:last]
        first = last


@torch.inference_mode()
def predict(model: LanguageModel, examples: Examples) -> NDArray[np.uint16]:
    """The most likely token at each place, given the true tokens before it: [N, L], 0 at place 0 and past the end."""
    device = next(model.parameters()).device
    predicted = np.zeros_like(examples.tokens)
    for rows in batches(examples):
        width = int(examples.lengths[rows].max())
        tokens = torch.from_numpy(examples.tokens[rows, :width].astype(np.int64)).to(device)
        context = model.decoder.context(tokens, None)
        logits = next(model.objective.logits(model.decoder, model.decoder(tokens, context), context, heads=1))
        inside = np.arange(1, width) < examples.lengths[rows, None]
        predicted[rows, 1:width] = logits[:, :-1].argmax(dim=-1).cpu().numpy() * inside
    return predicted


@torch.inference_mode()
def head_losses(model: LanguageModel, examples: Examples) -> list[float]:
    """Mean loss of each head over the examples, in nats per target; targets are all tokens that are trained on.

    So it is also of heads that were trained on some of them alone (`objective.where`): arms are measured alike.
    """
    device = next(model.parameters()).device
    nats, targets = np.zeros(model.objective.n), np.zeros(model.objective.n, np.int64)
    for rows in batches(examples):
        part = select(examples, rows)
        batch = packed_batch(part, part.tokens.shape[1], model.objective.n)
        found = losses(model.objective, model.decoder, batch.to(device), [1.0] * model.objective.n)
        nats += found.nats.cpu().numpy()
        targets += found.targets.cpu().numpy()
    return (nats / np.maximum(1, targets)).tolist()  # type: ignore[no-any-return]


def evaluate(model: LanguageModel, task: Task, examples: Examples, seen: NDArray[np.bool_]) -> list[Row]:
    """The task's score table of the model's greedy predictions; `seen` [N, K] as in `Task.score`."""
    return task.score(examples, predict(model, examples), seen)
