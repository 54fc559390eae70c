"""Functions of attention heads: previous-token, prefix-matching and copying scores, and the loss without a head.

A head that attends to the previous token, and in a later layer one that attends to what came after an earlier
occurrence of a token and copies it, are together induction: "AB ... A" gives B (Elhage et al. 2021, A Mathematical
Framework for Transformer Circuits; Olsson et al. 2022, arXiv 2209.11895). Scores are means over queries of the
attention that a head pays to the keys in question, between 0 and 1, on repeated random tokens and inside a task's test
examples. They are TransformerLens' (`detect_head` with `error_measure="mul"`) but for what is divided by: there all
positions, here the queries that have such a key.

Shape suffixes as in `lab.models.decoder`; of two T the first are queries, the second keys.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lab.analysis.finished_run import FinishedRun, rows_of
from lab.learning.evaluation import batches, generate
from lab.models.decoder import Attention, Block, Context, Decoder, rotate
from lab.objectives import LanguageModel
from lab.tasks.base import Examples, GeneratedAnswers, Task

REPEATED = 25
"""Random tokens of a row that are then repeated (25 in Olsson et al. 2022); half of a training row, if that is less."""
ROWS, SEED = 64, 0
"""Such rows, and what they are drawn from: the same for all runs of a vocabulary."""
PICTURED = 60
"""Tokens of a story whose attention is drawn."""
FORMED = 0.1
"""The least rise of a score for which it is said when it came about."""
RISING = ("previous_token_task", "previous_token_needed", "prefix_matching_task")
"""Scores whose best head is followed through training."""
DRAWN = ("previous_token_needed", "prefix_matching_task")
"""Scores whose best head's attention is drawn."""

Visit = Callable[[str, Tensor], None]
"""Told a layer's name and its attention [B, H, T, T]."""


class Looking(NamedTuple):
    """Pairs of queries and keys whose attention is measured."""

    queries: Tensor
    """bool [B, T]."""
    keys: Tensor
    """bool [B, T, T]."""


def layers(model: LanguageModel) -> dict[str, Block]:
    """Every transformer layer by name: `trunk.0`, `trunk.1`, …, and `head i` of each head that has one."""
    named = {}
    for path, module in model.named_modules():
        if isinstance(module, Block):
            *_, room, place = path.split(".")
            named[f"head {int(place) + 1}" if room == "heads" else f"{room}.{place}"] = module
    return named


def probabilities(attention: Attention, x_BTD: Tensor, context: Context) -> Tensor:
    """Return the attention probabilities [B, H, T, T] of a layer, given its inputs; each query's sum to 1.

    By the plain formula, whichever kernel computes the layer itself: none of them hands its probabilities out.
    """
    qk_BTHK = attention.inputs(x_BTD).unflatten(-1, (3 * attention.heads, -1))[:, :, : 2 * attention.heads]
    q_BHTK, k_BHTK = (each.transpose(1, 2) for each in rotate(qk_BTHK, context.rotary).chunk(2, dim=2))
    scores_BHTT = q_BHTK @ k_BHTK.mT / math.sqrt(q_BHTK.shape[-1])
    if context.mask is None:
        positions = scores_BHTT.shape[-1]
        future_TT = torch.ones(positions, positions, dtype=torch.bool, device=scores_BHTT.device).triu(1)
        return scores_BHTT.masked_fill_(future_TT, -torch.inf).softmax(dim=-1)
    return (scores_BHTT + context.mask).softmax(dim=-1)


@torch.no_grad()
def look(model: LanguageModel, tokens_BT: Tensor, visit: Visit, heads: int, documents_BT: Tensor | None = None) -> None:
    """Run a model's trunk and first `heads` heads, and show `visit` the attention of each layer that takes part.

    Layers are shown as they are computed, one at a time: a long text's attention is large. With one head these are the
    layers of the next-token path. Heads that read true tokens ahead read token 0 beyond the rows' end.
    """

    def show(name: str, attention: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(attention, Attention)
        visit(name, probabilities(attention, *inputs))

    with ExitStack() as hooks:
        for name, block in layers(model).items():
            hooks.callback(block.attention.register_forward_pre_hook(partial(show, name)).remove)
        context = model.decoder.context(tokens_BT, documents_BT)
        trunk_BTD = model.decoder(tokens_BT, context)
        ahead = F.pad(tokens_BT, (0, heads - 1))
        for _ in model.objective.hidden_states(model.decoder, trunk_BTD, context, heads, ahead):
            pass


def patterns(model: LanguageModel, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> dict[str, Tensor]:
    """The attention [B, H, T, T] of every layer, heads' beyond the next token's included, by name."""
    found: dict[str, Tensor] = {}
    look(model, tokens_BT, found.__setitem__, model.objective.n, documents_BT)
    return found


def next_token_path(model: LanguageModel) -> list[str]:
    """The names of the layers that the next token is computed by, in their order."""
    names: list[str] = []
    start = torch.zeros(1, 1, dtype=torch.int64, device=model.decoder.embedding.weight.device)
    look(model, start, lambda name, _: names.append(name), heads=1)
    return names


# What heads are asked


def previous_token(inside_BT: Tensor) -> Looking:
    """Every token but a document's first, and the one before it. Rows are one document each, from their first token.

    Args:
        inside_BT: bool, the tokens that are no padding.
    """
    queries = inside_BT.clone()
    queries[:, 0] = False
    positions = inside_BT.shape[1]
    before = torch.ones(positions, positions, dtype=torch.bool, device=inside_BT.device).tril(-1).triu(-1)
    return Looking(queries, before.expand(len(inside_BT), -1, -1))


def prefix_matching(tokens_BT: Tensor, asked_BT: Tensor) -> Looking:
    """Queries whose token occurred before, and all tokens right after one of its earlier occurrences.

    Such a token may be the query itself, where it stands twice in a row. Rows are one document each.

    Args:
        tokens_BT: int64.
        asked_BT: bool, the queries to ask, if they have such keys.
    """
    keys = torch.zeros(*tokens_BT.shape, tokens_BT.shape[1], dtype=torch.bool, device=tokens_BT.device)
    keys[:, :, 1:] = tokens_BT[:, :, None] == tokens_BT[:, None, :-1]
    keys = keys.tril()
    return Looking(asked_BT & keys.any(dim=-1), keys)


def needed(matching: Looking) -> Looking:
    """The keys that some query of `matching` asks for, and of each the token before it.

    What a prefix-matching head can find there, an earlier layer has to have noted there. A head that attends to the
    previous token nowhere else has a low score over all tokens, and may be all that induction needs.
    """
    queries_BT = (matching.keys & matching.queries[:, :, None]).any(dim=1)
    return Looking(queries_BT, previous_token(queries_BT).keys)


def repetition(tokens_BT: Tensor) -> Looking:
    """The second half of rows [B, 2 L] that say L tokens twice, and of each token what came after it: t - L + 1.

    What is asked is the place alone: a random token that happens to occur a third time has other keys as well, which
    do not count.
    """
    rows, positions = tokens_BT.shape
    half, device = positions // 2, tokens_BT.device
    queries = (torch.arange(positions, device=device) >= half).expand(rows, -1)
    after = torch.ones(positions, positions, dtype=torch.bool, device=device).tril(1 - half).triu(1 - half)
    return Looking(queries, after.expand(rows, -1, -1))


def paid(attention_BHTT: Tensor, looking: Looking) -> tuple[Tensor, int]:
    """The attention that queries pay to their keys, summed over queries, float64 [H]; and how many queries there are.

    Raises:
        RuntimeError: shapes differ.
    """
    asked_BTT = (looking.keys & looking.queries[:, :, None]).to(attention_BHTT.dtype)
    return torch.einsum("bhqk,bqk->bh", attention_BHTT, asked_BTT).double().sum(0), int(looking.queries.sum())


Asked = Iterable[tuple[Tensor, dict[str, Looking]]]
"""Rows of tokens [B, T], and what is asked of the heads there, by the score's name."""


def scores(model: LanguageModel, asked: Asked) -> dict[str, dict[str, list[float]]]:
    """The mean attention that queries pay to their keys, of each head, by layer and score; nan where nothing is asked.

    Layers are in the order in which they are computed.
    """
    sums: dict[str, dict[str, Tensor]] = defaultdict(dict)
    counts: dict[str, int] = defaultdict(int)

    def visit(looking: dict[str, Looking], layer: str, attention_BHTT: Tensor) -> None:
        for name, each in looking.items():
            attended_H = paid(attention_BHTT, each)[0]
            sums[layer][name] = attended_H + sums[layer].get(name, 0)

    for tokens_BT, looking in asked:
        for name, each in looking.items():
            counts[name] += int(each.queries.sum())
        look(model, tokens_BT, partial(visit, looking), model.objective.n)
    return {
        layer: {name: (total / counts[name]).tolist() if counts[name] else [math.nan] * len(total)
                for name, total in found.items()}
        for layer, found in sums.items()
    }  # fmt: skip


def repeated(vocabulary: int, half: int, rows: int, seed: int) -> Tensor:
    """Rows of `half` tokens drawn uniformly from the vocabulary, said twice: int64 [rows, 2 half]."""
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(vocabulary, (rows, half), generator=generator)
    return torch.cat((once, once), dim=1)


def on_repeated(tokens_BT: Tensor) -> Asked:
    """Return the pairs that are measured on repeated random tokens."""
    everywhere = torch.ones_like(tokens_BT, dtype=torch.bool)
    looking = {"previous_token": previous_token(everywhere), "prefix_matching": repetition(tokens_BT)}
    return [(tokens_BT, {f"{name}_random": each for name, each in looking.items()})]


def on_examples(model: LanguageModel, examples: Examples) -> Asked:
    """Return the pairs that are measured in a task's examples.

    Of every token the one before it; where a scored token is predicted, what came after earlier occurrences of the
    token that stands there; and of what came after them the token before it.
    """
    for rows in batches(examples):
        tokens_BT = rows_of(model, examples, rows)
        width, device = tokens_BT.shape[1], tokens_BT.device
        inside_BT = torch.from_numpy(np.arange(width) < examples.lengths[rows, None]).to(device)
        predicting = np.zeros((len(rows), width), np.bool_)
        predicting[:, :-1] = examples.score_mask[rows, 1:width]
        matching = prefix_matching(tokens_BT, torch.from_numpy(predicting).to(device))
        looking = {"previous_token": previous_token(inside_BT), "prefix_matching": matching}
        asked = {f"{name}_task": each for name, each in looking.items()}
        yield tokens_BT, {**asked, "previous_token_needed": needed(matching)}


# What a head writes


@torch.no_grad()
def copying(decoder: Decoder, block: Block) -> Tensor:
    """Return how much heads raise the logits of tokens that they attend to: sum λ / sum |λ|, float64 [H], -1 to 1.

    λ are the eigenvalues of the head's circuit from tokens to logits, W_E W_V W_O W_U [V, V] (Elhage et al. 2021,
    "Summarizing OV/QK matrices"), without the layer's norm and the final one but for their weights, which are folded
    into W_V and W_U. Its rank is at most K, so the eigenvalues other than 0 are those of a [K, K] product. A circuit
    that is 0 has 0. W_U is the next token's, whichever head the layer belongs to.
    """
    attention = block.attention
    embedding_VD = decoder.embedding.weight.double()
    unembedding_VD = decoder.unembedding.weight.double() * decoder.norm.weight.double()
    width = embedding_VD.shape[1]
    values_DD = attention.inputs.weight[2 * width :].double() * block.attention_norm.weight.double()
    values_HKD = values_DD.reshape(attention.heads, -1, width)
    outputs_HDK = attention.output.weight.double().reshape(width, attention.heads, -1).transpose(0, 1)
    circuit_HKK = outputs_HDK.mT @ (unembedding_VD.T @ embedding_VD) @ values_HKD.mT
    eigenvalues_HK = torch.linalg.eigvals(circuit_HKK)
    sizes_H = eigenvalues_HK.abs().sum(-1)
    return torch.where(sizes_H > 0, eigenvalues_HK.sum(-1).real / sizes_H, 0.0)


@contextmanager
def ablated(attention: Attention, head: int) -> Iterator[None]:
    """Inside, one attention head (from 0) writes nothing: what `attention.output` reads of it counts 0."""
    size = attention.output.in_features // attention.heads
    columns = attention.output.weight.detach()[:, head * size : (head + 1) * size]
    kept = columns.clone()
    columns.zero_()
    try:
        yield
    finally:
        columns.copy_(kept)


# What a model does


@torch.no_grad()
def next_token_logits(model: LanguageModel, tokens_BT: Tensor) -> Tensor:
    """The next token's logits [B, T, V], of rows that are one document each."""
    context = model.decoder.context(tokens_BT, None)
    return next(model.objective.logits(model.decoder, model.decoder(tokens_BT, context), context, heads=1))


def repeat_accuracy(model: LanguageModel, tokens_BT: Tensor) -> float:
    """The share of tokens predicted in the second half of rows that say L tokens twice, from its second one on."""
    half = tokens_BT.shape[1] // 2
    guessed = next_token_logits(model, tokens_BT)[:, half:-1].argmax(dim=-1)
    return float((guessed == tokens_BT[:, half + 1 :]).double().mean())


def performance(model: LanguageModel, task: Task, examples: Examples) -> dict[str, float]:
    """The task's `choice` measure on the examples, and `loss`: nats for each scored token, given those before it."""
    predicted, nats, count = np.zeros_like(examples.tokens), 0.0, 0
    for rows in batches(examples):
        tokens_BT = rows_of(model, examples, rows)
        logits = next_token_logits(model, tokens_BT)[:, :-1]
        inside = np.arange(1, tokens_BT.shape[1]) < examples.lengths[rows, None]
        predicted[rows, 1 : tokens_BT.shape[1]] = logits.argmax(dim=-1).cpu().numpy() * inside
        scored = torch.from_numpy(examples.score_mask[rows, 1 : tokens_BT.shape[1]]).to(tokens_BT.device)
        nats += float(F.cross_entropy(logits[scored], tokens_BT[:, 1:][scored], reduction="sum"))
        count += int(scored.sum())
    if isinstance(task, GeneratedAnswers):
        predicted = generate(model, task, examples)
    seen = np.zeros(examples.fingerprints.shape, np.bool_)  # only splits the table, and `choice` is of all of it
    summary = task.summary(task.score(examples, predicted, seen))
    return {task.metric: summary[task.metric], "loss": nats / max(1, count)}


# Runs


def turns(runs: Sequence[FinishedRun]) -> int:
    """Return the number of parts that `analyse` reports as done: one for each model, and for each head left out."""
    models = [run.model(run.steps[-1]) for run in runs]
    heads = [layers(model)[layer].attention.heads for model in models for layer in next_token_path(model)]
    return sum(len(run.steps) for run in runs) + sum(heads)


def analyse(runs: Sequence[FinishedRun], count: int, listen: Callable[[], None]) -> dict[str, Any]:
    """The attention heads of finished runs, at every step of which weights were kept.

    Args:
        runs: the runs.
        count: test examples to measure on; they are spread evenly over the test set.
        listen: called after each of `turns` parts.

    Returns:
        In JSON types: `runs`, what they are and when scores came about; `heads`, a row for each run, step and head with
        its scores, at the last step also what is lost without it; `models`, a row for each run and step, with the best
        heads' scores; `pictures`, the attention of two heads on the start of one example, for the first run of each
        objective and n.
    """
    told: dict[str, list[dict[str, Any]]] = {"runs": [], "heads": [], "models": [], "pictures": []}
    pictured = set()
    for run in runs:
        examples = run.test_examples(count)
        heads, models = _through_training(run, examples, listen)
        last = [row for row in heads if row["step"] == run.steps[-1]]
        model = run.model(run.steps[-1])
        _ablate(model, run.task, examples, last, models[-1], listen)
        about = {**run.about, "label": run.experiment.label, "choice": run.task.metric, "steps": run.steps}
        names = (run.task.metric, *(f"best_{name}" for name in RISING))
        told["runs"].append({**about, "half_way": half_way(models, names)})
        told["heads"] += [{"identity": run.experiment.identity, **row} for row in heads]
        told["models"] += [{**run.about, **row} for row in models]
        kind = (run.experiment.objective.name, run.experiment.objective.n)
        if kind not in pictured:
            pictured.add(kind)
            told["pictures"].append({**run.about, "step": run.steps[-1], **picture(model, run.task, examples, last)})
    return rounded(told)  # type: ignore[no-any-return]


def _through_training(
    run: FinishedRun, examples: Examples, listen: Callable[[], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a run's heads, and of its models."""
    half = min(REPEATED, run.experiment.train.context // 2)
    random_BT = repeated(len(run.task.vocabulary), half, ROWS, SEED)
    heads: list[dict[str, Any]] = []
    models: list[dict[str, Any]] = []
    for step, model in run.models(every=True):
        path, blocks = next_token_path(model), layers(model)
        found = scores(model, on_repeated(random_BT))
        for layer, further in scores(model, on_examples(model, examples)).items():
            found[layer] |= further
        for layer, by_name in found.items():
            by_name["copying"] = copying(model.decoder, blocks[layer]).tolist()
            for head, values in enumerate(zip(*by_name.values(), strict=True)):
                place = {"step": step, "layer": layer, "head": head, "next_token_path": layer in path}
                heads.append({**place, **dict(zip(by_name, values, strict=True))})
        measures = performance(model, run.task, examples)
        row = {"step": step, **measures, "repeat_accuracy": repeat_accuracy(model, random_BT)}
        for name in RISING:
            chosen = best((each for each in heads if each["step"] == step), name)
            row[f"best_{name}"] = chosen[name] if chosen else math.nan
        models.append(row)
        listen()
    return heads, models


def _ablate(
    model: LanguageModel,
    task: Task,
    examples: Examples,
    rows: list[dict[str, Any]],
    whole: dict[str, Any],
    listen: Callable[[], None],
) -> None:
    """Add to the rows of the next-token path's heads what the model does without each, and what is lost.

    `lost` is of the task's measure, `lost_nats` is the loss that is gained.
    """
    for row in rows:
        if row["next_token_path"]:
            with ablated(layers(model)[row["layer"]].attention, row["head"]):
                without = performance(model, task, examples)
            row[f"ablated_{task.metric}"] = without[task.metric]
            row["lost"] = whole[task.metric] - without[task.metric]
            row["lost_nats"] = without["loss"] - whole["loss"]
            listen()


def best(heads: Iterable[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The row of the next-token path's head with the highest score, of a model's rows; None where none has one.

    What is noted for prefix matching is of use to a later layer, so of `previous_token_needed` the last has no say, and
    of prefix matching inside a task the first: nothing has been noted for it.
    """
    able = [row for row in heads if row["next_token_path"] and not math.isnan(row[name])]
    if name == "previous_token_needed":
        able = [row for row in able if row["layer"] != able[-1]["layer"]]
    if name == "prefix_matching_task":
        able = [row for row in able if row["layer"] != able[0]["layer"]]
    return max(able, key=lambda row: row[name], default=None)


def half_way(models: list[dict[str, Any]], names: Iterable[str]) -> dict[str, int | None]:
    """The first step at which a measure had risen by half of what it rose at most over its first value.

    Of each of `names` in the rows of a run's models; None where it never rose by `FORMED`.
    """
    found: dict[str, int | None] = {}
    for name in names:
        rise = np.array([row[name] for row in models]) - models[0][name]
        most = np.nanmax(rise, initial=0.0)
        found[name] = models[int(np.argmax(rise >= most / 2))]["step"] if most >= FORMED else None
    return found


def picture(model: LanguageModel, task: Task, examples: Examples, heads: list[dict[str, Any]]) -> dict[str, Any]:
    """The attention of the best head of each score in `DRAWN` on the start of one example, as it can be drawn.

    The example is the one with most different scored tokens among the first `PICTURED`, and of such the one with most
    of them; `scored` are their places. Each of `heads` has `attention`: of each query the keys up to itself.
    """
    starts = [
        row[scored]
        for row, scored in zip(examples.tokens[:, :PICTURED], examples.score_mask[:, :PICTURED], strict=True)
    ]
    row = max(range(len(starts)), key=lambda each: (len(np.unique(starts[each])), len(starts[each])))
    tokens: NDArray[np.uint16] = examples.tokens[row, : min(PICTURED, int(examples.lengths[row]))]
    found = patterns(model, rows_of(model, examples, np.array([row]))[:, : len(tokens)])
    shown = []
    for name in DRAWN:
        chosen = best(heads, name)
        if chosen:
            matrix = found[chosen["layer"]][0, chosen["head"]].tolist()
            about = {"score": name, "value": chosen[name], "layer": chosen["layer"], "head": chosen["head"]}
            shown.append({**about, "attention": [each[: place + 1] for place, each in enumerate(matrix)]})
    return {
        "example": row,
        "tokens": [task.vocabulary[token] for token in tokens],
        "scored": np.flatnonzero(examples.score_mask[row, : len(tokens)]).tolist(),
        "heads": shown,
    }


def rounded(content: Any) -> Any:
    """The same with three decimals: what is committed is small."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return round(content, 3) if isinstance(content, float) else content
