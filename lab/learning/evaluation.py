"""Greedy evaluation, where an answer is unique without a decoding loop.

Greedy decoding gives the true answer if and only if every teacher-forced argmax on it is right, so one forward pass
scores a test set exactly. (`decoding.greedy` is the loop; a test holds the two together.) That says nothing of other
answers: where a question has several right ones (`GeneratedAnswers`), the loop is run.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from lab.decoding.decode import decode
from lab.learning.data import packed_batch, select
from lab.objectives import LanguageModel
from lab.objectives.backward import losses
from lab.tasks.base import Examples, GeneratedAnswers, ScoreRow, Task

_TOKENS = 16_384  # tokens of a forward pass, padding included: large enough to be fast, small enough for any device
_PROMPTS = 1024  # decoded at once


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


def generate(model: LanguageModel, task: GeneratedAnswers, examples: Examples) -> NDArray[np.uint16]:
    """The greedy answer to each example's question, [N, `longest_answer`]; see `GeneratedAnswers`."""
    device = next(model.parameters()).device
    answers = np.full((len(examples.tokens), task.longest_answer), task.end, np.uint16)
    lengths = task.prompts(examples)
    for first in range(0, len(lengths), _PROMPTS):
        part = slice(first, first + _PROMPTS)
        width = int(lengths[part].max())
        prompts = torch.from_numpy(examples.tokens[part, :width].astype(np.int64)).to(device)
        found = decode(model, prompts, torch.from_numpy(lengths[part]).to(device), task.longest_answer, end=task.end)
        for row, written in enumerate(found.tokens, start=first):
            answers[row, : len(written)] = written
    return answers


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


def answered(model: LanguageModel, task: Task, examples: Examples) -> NDArray[np.uint16]:
    """Return the predictions to score: generated answers, or teacher-forced predictions where these are enough."""
    return generate(model, task, examples) if isinstance(task, GeneratedAnswers) else predict(model, examples)


def evaluate(model: LanguageModel, task: Task, examples: Examples, seen: NDArray[np.bool_]) -> list[ScoreRow]:
    """The task's score table of the model's greedy predictions; `seen` [N, K] as in `Task.score`."""
    return task.score(examples, answered(model, task, examples), seen)
