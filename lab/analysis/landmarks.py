"""Attention to what decides an answer: when it came about in training, what teaches it, and what is lost without it.

Of a task that knows its `Landmarks`: each attention head's attention to them at every step of which weights were kept,
beside the gradient that each prediction head's loss sends into each layer; at the last step, the accuracy of the
deciding token without each attention head, and with a layer's attention to a landmark cut.

Shape suffixes as in `lab.analysis.attention`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lab.analysis.attention import (
    Asked,
    Looking,
    ablated,
    layers,
    next_token_logits,
    next_token_path,
    probabilities,
    rounded,
    scores,
)
from lab.analysis.finished_run import FinishedRun, rows_of
from lab.analysis.terms import terms, valid
from lab.errors import BadInput
from lab.learning.data import select
from lab.learning.evaluation import batches
from lab.models.decoder import Attention, Context
from lab.objectives import LanguageModel
from lab.tasks.base import Examples, Landmarks


def turns(runs: Sequence[FinishedRun]) -> int:
    """Return how often `analyse` tells that a model is done."""
    return sum(len(run.steps) for run in runs)


def analyse(runs: Sequence[FinishedRun], count: int, listen: Callable[[], None]) -> dict[str, Any]:
    """Return where finished runs look, at every step of which weights were kept, in JSON types.

    Args:
        runs: the runs.
        count: test examples to measure on; they are spread evenly over the test set.
        listen: called after each of `turns` models.

    Returns:
        `runs`, of each what it is, its identity included, which the other rows have; `models`, a row for each run and
        step, with the `accuracy` of the deciding token; `attention`, a row for each of these, each layer and attention
        head, with the mean attention to each landmark; `gradients`, a row for each run, step, layer and prediction
        head, with the `norm` of the gradient of its mean loss; `ablations`, a row for each run and attention head, with
        the `accuracy` without it; and `cuts`, a row for each run, layer and landmark, with the `accuracy` where that
        layer cannot look there.

    Raises:
        BadInput: a task does not know its landmarks.
    """
    told: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("runs", "models", "attention", "gradients", "ablations", "cuts")
    }
    for run in runs:
        if not isinstance(run.task, Landmarks):
            raise BadInput(f"RUN: task '{run.experiment.task.name}' is not allowed: it has no landmarks; allowed: star")
        examples, about, own = run.test_examples(count), run.about, {"identity": run.experiment.identity}
        told["runs"].append({**about, "label": run.experiment.label, "steps": run.steps})
        for step, model in run.models(every=True):
            at = {**own, "step": step}
            path = next_token_path(model)
            told["models"].append({**about, "step": step, "accuracy": accuracy(model, run.task, examples)})
            for layer, by_name in scores(model, looking(model, run.task, examples)).items():
                for head, values in enumerate(zip(*by_name.values(), strict=True)):
                    place = {"layer": layer, "head": head, "next_token_path": layer in path}
                    told["attention"].append({**at, **place, **dict(zip(by_name, values, strict=True))})
            told["gradients"] += [{**at, **row} for row in gradients(model, examples)]
            listen()
        told["ablations"] += [{**own, **row} for row in ablations(model, run.task, examples)]
        told["cuts"] += [{**own, **row} for row in cuts(model, run.task, examples)]
    return rounded(told)  # type: ignore[no-any-return]


def looking(model: LanguageModel, task: Landmarks, examples: Examples) -> Asked:
    """Yield rows of tokens, and the landmarks that are asked for in them."""
    marks = task.landmarks(examples)
    for rows in batches(examples):
        tokens_BT = rows_of(model, examples, rows)
        width, device = tokens_BT.shape[1], tokens_BT.device
        asked = {}
        for name, mark in marks.items():
            queries = torch.from_numpy(mark.queries[rows, :width]).to(device)
            keys = torch.from_numpy(mark.keys[rows, :width]).to(device)
            asked[name] = Looking(queries, keys[:, None].expand(-1, width, -1))
        yield tokens_BT, asked


@torch.no_grad()
def accuracy(model: LanguageModel, task: Landmarks, examples: Examples) -> float:
    """Return the share of examples whose deciding token is the likeliest."""
    deciding, right = task.deciding(examples), 0
    for rows in batches(examples):
        tokens_BT = rows_of(model, examples, rows)
        here = torch.from_numpy(deciding[rows, : tokens_BT.shape[1]]).to(tokens_BT.device)
        guessed = next_token_logits(model, tokens_BT)[:, :-1].argmax(dim=-1)
        right += int((guessed == tokens_BT[:, 1:])[here[:, :-1]].sum())
    return right / len(deciding)


def gradients(model: LanguageModel, examples: Examples) -> Iterator[dict[str, Any]]:
    """Yield the norm of the gradient of each prediction head's mean loss, unweighted, in each layer's parameters."""
    _, nats_BTn, _ = terms(model, examples)
    targets_n = valid(examples, model.objective.n).sum(axis=(0, 1))
    for head, targets in enumerate(targets_n.tolist()):
        loss = nats_BTn[..., head].sum() / max(1, targets)
        for layer, block in layers(model).items():
            found = torch.autograd.grad(loss, [*block.parameters()], retain_graph=True, allow_unused=True)
            squares = [each.double().square().sum() for each in found if each is not None]
            norm = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
            yield {"layer": layer, "predicts": head + 1, "norm": norm}


def ablations(model: LanguageModel, task: Landmarks, examples: Examples) -> Iterator[dict[str, Any]]:
    """Yield the accuracy without each attention head of the next token's path."""
    for layer in next_token_path(model):
        attention = layers(model)[layer].attention
        for head in range(attention.heads):
            with ablated(attention, head):
                yield {"layer": layer, "head": head, "accuracy": accuracy(model, task, examples)}


def cuts(model: LanguageModel, task: Landmarks, examples: Examples) -> Iterator[dict[str, Any]]:
    """Yield the accuracy where a layer of the next token's path cannot attend from a landmark's queries to its keys."""
    for layer in next_token_path(model):
        for name in task.landmarks(examples):
            right, count = 0.0, 0
            for rows in batches(examples):
                part = select(examples, rows)
                ((_, asked),) = looking(model, task, part)
                with cut(layers(model)[layer].attention, asked[name]):
                    right += accuracy(model, task, part) * len(rows)
                count += len(rows)
            yield {"layer": layer, "landmark": name, "accuracy": right / count}


@contextmanager
def cut(attention: Attention, looking: Looking) -> Iterator[None]:
    """Inside, a layer's attention from queries to their keys is 0, and what it pays to others is scaled up to 1."""

    def forward(x_BTD: Tensor, context: Context) -> Tensor:
        paid_BHTT = probabilities(attention, x_BTD, context)
        barred_BTT = looking.keys & looking.queries[:, :, None]
        paid_BHTT = paid_BHTT.masked_fill(barred_BTT[:, None], 0.0)
        paid_BHTT = paid_BHTT / paid_BHTT.sum(dim=-1, keepdim=True).clamp(min=1e-12)
        values_BTHK = attention.inputs(x_BTD).unflatten(-1, (3 * attention.heads, -1))[:, :, 2 * attention.heads :]
        return attention.output((paid_BHTT @ values_BTHK.transpose(1, 2)).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    attention.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del attention.forward
