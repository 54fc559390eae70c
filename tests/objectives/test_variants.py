"""Every way of predicting n tokens: against loops in float64, what it sees, what it drops, what it costs, a run."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lab.config import configs_in, validated
from lab.errors import BadInput
from lab.experiments.run import execute
from lab.models.sizes import SIZES, Model, Size
from lab.objectives import LanguageModel, ObjectiveConfig, build_model
from lab.objectives.backward import losses
from lab.objectives.base import Batch
from lab.objectives.flops import (
    embedding_parameters,
    instantiate,
    non_embedding_parameters,
    training_flops_per_token,
)
from lab.objectives.linear import Linear
from lab.objectives.next_token import NextToken
from lab.objectives.parallel import Parallel
from lab.objectives.replicated import Replicated
from lab.objectives.sequential import Sequential
from tests.conftest import tiny
from tests.objectives.test_objectives import random_batch, training_loss

LAYERS, WIDTH, HEADS = 5, 16, 2
MODEL = Model(layers=LAYERS, width=WIDTH, heads=HEADS)
VOCABULARY = 7
VARIANTS = {str(each.model_fields["name"].default): each for each in configs_in(ObjectiveConfig)}
del VARIANTS["next_token"]
NAMES = list(VARIANTS)
ONE_HEAD = {"shallow", "reweighted"}
"""Controls that predict the next token alone; their n is that of the objective they are compared with."""
each_variant = pytest.mark.parametrize("name", NAMES)
each_of_many_heads = pytest.mark.parametrize("name", [name for name in NAMES if name not in ONE_HEAD])


def objective(name: str, n: int, **fields: Any) -> ObjectiveConfig:
    return validated(VARIANTS[name], {"n": n, **fields})  # type: ignore[return-value]


def heads_of(name: str, n: int) -> int:
    return 1 if name in ONE_HEAD else n


def has(name: str, field: str) -> bool:
    return field in VARIANTS[name].model_fields


def built(name: str, n: int, **fields: Any) -> LanguageModel:
    """A model whose norms do something, so that a wrong one is seen."""
    model = build_model(MODEL, objective(name, n, **fields), VOCABULARY, seed=n)
    assert model.objective.n == heads_of(name, n)
    generator = torch.Generator().manual_seed(n)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = 1 + 0.5 * torch.rand(parameter.shape, generator=generator)
    return model


def all_logits(model: LanguageModel, tokens: Tensor, documents: Tensor | None, heads: int) -> list[Tensor]:
    """The heads' logits at all but the last n-1 tokens, which only heads that read tokens ahead may look at."""
    positions = tokens.shape[1] - model.objective.n + 1
    inputs = tokens[:, :positions]
    context = model.decoder.context(inputs, None if documents is None else documents[:, :positions])
    trunk = model.decoder(inputs, context)
    ahead = tokens[:, : positions + heads - 1]
    with torch.no_grad():
        return list(model.objective.logits(model.decoder, trunk, context, heads, ahead))


def test_all_are_here() -> None:
    assert set(NAMES) == {
        "parallel", "linear", "replicated", "causal", "anticausal", "sequential", "shallow", "detached", "reweighted",
    }  # fmt: skip


# Against loops: one document, one position, one attention head at a time, nothing but the weights taken over

Weights = Mapping[str, Tensor]
Vectors = list[Tensor]


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum() / len(x) + 1e-5) * weight


def turned(x: Tensor, place: int) -> Tensor:
    """Rotary positions, channel by channel; sines and cosines are rounded to float32, as the model holds them."""
    out = []
    for i in range(0, len(x), 2):
        angle = place * 10_000.0 ** -(i / len(x))
        cosine, sine = float(np.float32(math.cos(angle))), float(np.float32(math.sin(angle)))
        out += [x[i] * cosine - x[i + 1] * sine, x[i] * sine + x[i + 1] * cosine]
    return torch.stack(out)


def layer(weights: Weights, name: str, xs: Vectors, places: list[int]) -> Vectors:
    size = WIDTH // HEADS
    projected = [
        weights[f"{name}.attention.inputs.weight"] @ norm(x, weights[f"{name}.attention_norm.weight"]) for x in xs
    ]
    mixed: list[Vectors] = [[] for _ in xs]
    for h in range(HEADS):
        query, key, value = (slice(k * WIDTH + h * size, k * WIDTH + (h + 1) * size) for k in range(3))
        queries, keys = ([turned(p[part], t) for p, t in zip(projected, places, strict=True)] for part in (query, key))
        for t in range(len(xs)):
            likeness = torch.stack([torch.exp(queries[t] @ keys[s] / math.sqrt(size)) for s in range(t + 1)])
            values = torch.stack([projected[s][value] for s in range(t + 1)])
            mixed[t].append((likeness / likeness.sum()) @ values)
    out = []
    for x, parts in zip(xs, mixed, strict=True):
        middle = x + weights[f"{name}.attention.output.weight"] @ torch.cat(parts)
        inner = weights[f"{name}.feedforward.inputs.weight"] @ norm(middle, weights[f"{name}.feedforward_norm.weight"])
        gate, value_of = inner[: len(inner) // 2], inner[len(inner) // 2 :]
        out.append(middle + weights[f"{name}.feedforward.output.weight"] @ (gate / (1 + torch.exp(-gate)) * value_of))
    return out


def hidden_states(
    name: str, n: int, weights: Weights, tokens: list[int], z: Vectors, places: list[int]
) -> list[Vectors]:
    """What each head's unembedding gets, for one document; `z` are the trunk's outputs."""

    def head(i: int, xs: Vectors) -> Vectors:
        return layer(weights, f"objective.heads.{i - 1}", xs, places[: len(xs)])

    if name in ("parallel", "replicated", "shallow", "detached", "reweighted"):
        return [head(i, z) for i in range(1, n + 1)]
    if name == "linear":
        last = head(1, z)
        return [last, *([weights[f"objective.heads.{i}.weight"] @ x for x in last] for i in range(1, n))]
    if name == "causal":
        chain = [z]
        for i in range(1, n + 1):
            chain.append(head(i, chain[-1]))
        return chain[1:]
    if name == "anticausal":
        chain = [z]
        for i in range(n, 0, -1):
            chain.insert(0, head(i, chain[0]))
        return chain[:-1]
    assert name == "sequential"
    out = [head(1, z)]
    for i in range(2, n + 1):
        inputs, join = [], f"objective.joins.{i - 2}"
        for t, h in enumerate(out[-1]):
            if t + i - 1 < len(
                tokens
            ):  # tokens[t + i - 1] stands i - 1 ahead of the head's position, 1 before its target
                read = norm(
                    weights["decoder.embedding.weight"][tokens[t + i - 1]], weights[f"{join}.token_norm.weight"]
                )
                below = norm(h, weights[f"{join}.latent_norm.weight"])
                inputs.append(weights[f"{join}.projection.weight"] @ torch.cat([below, read]))
        out.append(head(i, inputs))
    return out


class Naive(NamedTuple):
    """What a head's loss and its gradients should be."""

    loss: Tensor
    """What is trained on: the mean over targets, by importance where they have one."""
    nats: float
    """The sum of the cross-entropies."""
    targets: int
    gradients: dict[str, Tensor]
    """The loss's, by parameter."""


def naive(name: str, n: int, weights: Weights, trunk_layers: int, batch: Batch) -> list[Naive]:
    """Each head's loss. `reweighted`: one head whose targets count as often as the first n heads' losses hear of them.

    Its n is that of the config, all others' that of the batch.
    """
    heads = heads_of(name, n)
    found: list[Vectors] = [[] for _ in range(heads)]
    nats = [0.0] * heads
    positions = batch.tokens.shape[1] - heads
    assert batch.horizons is not None
    everything = (each.tolist() for each in (batch.tokens, batch.document_ids, batch.loss_mask, batch.horizons))
    for row, owners, trained, spans in zip(*everything, strict=True):
        for document in sorted({owner for owner in owners if owner >= 0}):
            columns = [column for column, owner in enumerate(owners) if owner == document]
            places, tokens = [column for column in columns if column < positions], [row[column] for column in columns]
            xs = [weights["decoder.embedding.weight"][row[place]] for place in places]
            for k in range(trunk_layers):
                xs = layer(weights, f"decoder.trunk.{k}", xs, places)
            if not xs:
                continue
            for i, ends in enumerate(hidden_states(name, heads, weights, tokens, xs, places), start=1):
                own = name == "replicated" and i > 1
                unembedding = weights[f"objective.replicas.{i - 2}.weight" if own else "decoder.unembedding.weight"]
                for t, x in enumerate(ends):
                    if t + i < len(tokens) and trained[columns[t + i]]:
                        scores = unembedding @ norm(x, weights["decoder.norm.weight"])
                        loss = torch.log(torch.exp(scores).sum()) - scores[tokens[t + i]]
                        nats[i - 1] += loss.item()
                        counts = 1
                        if name == "reweighted":
                            counts = sum(min(ahead, spans[columns[t + i]]) for ahead in range(1, n + 1))
                        found[i - 1].append(counts * loss)
    out = []
    for i, each in enumerate(found):
        mean = torch.stack(each).mean() if each else 0 * weights["decoder.unembedding.weight"].sum()
        gradients = torch.autograd.grad(mean, list(weights.values()), retain_graph=True, allow_unused=True)
        cut = ("decoder.trunk.", "decoder.embedding.") if name == "detached" and i > 0 else ()
        out.append(Naive(mean.detach(), nats[i], len(each), {
            key: torch.zeros_like(weights[key]) if gradient is None or key.startswith(cut) else gradient
            for key, gradient in zip(weights, gradients, strict=True)
        }))  # fmt: skip
    return out


@pytest.mark.parametrize(
    ("n", "fields"),
    [(1, {}), (2, {"reduction": "mean"}), (4, {}), (2, {"extra_layers": 1})],
    ids=["1", "2-mean", "4", "2-extra"],
)
@each_variant
def test_losses_and_gradients_are_what_loops_compute(name: str, n: int, fields: dict[str, Any]) -> None:
    if not all(has(name, field) for field in fields):
        pytest.skip("it has no such field")
    heads = heads_of(name, n)
    model, batch = built(name, n, **fields).double(), random_batch(seed=18, n=heads, rows=2)
    trunk = LAYERS - (1 if name in ("linear", "reweighted") else n) + fields.get("extra_layers", 0)
    assert len(model.decoder.trunk) == trunk
    lengths = [
        (row == document).sum().item() for row in batch.document_ids for document in row.unique() if document >= 0
    ]
    assert min(lengths) == 1  # too short for any target
    assert max(lengths) > heads
    assert (batch.document_ids == -1).any()

    weights = dict(model.named_parameters())
    found = losses(model.objective, model.decoder, batch, model.config.head_weights(done=0))
    expected = naive(name, n, weights, trunk, batch)
    assert found.targets.tolist() == [each.targets for each in expected]
    assert min(found.targets.tolist()) > 0
    assert found.nats.tolist() == pytest.approx([each.nats for each in expected], rel=1e-10)
    weight = 1 / n if fields.get("reduction") == "mean" else 1.0
    assert found.total.item() == pytest.approx(sum(weight * each.loss.item() for each in expected), rel=1e-10)
    gradients = torch.autograd.grad(training_loss(model, batch), list(weights.values()))
    for parameter, gradient in zip(weights, gradients, strict=True):
        wanted = torch.stack([weight * each.gradients[parameter] for each in expected]).sum(dim=0)
        assert (wanted != 0).any(), parameter
        assert (gradient - wanted).abs().max() <= 1e-10 * wanted.abs().max(), parameter


@pytest.mark.parametrize("n", [2, 3, 5])
def test_implicit_weights_are_those_of_the_paper(n: int) -> None:
    """n if nothing follows from a token, n (n + 1) / 2 if n tokens and more do (arXiv 2404.19737, Section 5.1)."""
    model = build_model(Model(layers=6, width=WIDTH, heads=HEADS), objective("reweighted", n), VOCABULARY, seed=0)
    spans = torch.tensor([[9, 1, 2, n - 1, n, n + 1, 60]])
    grid = torch.zeros_like(spans)
    batch = Batch(grid, grid, grid.bool(), spans)
    importance = model.objective.token_weights(batch)
    assert importance is not None
    most = n * (n + 1) // 2
    assert importance.tolist() == [[n, 2 * n - 1, most - 1, most, most, most]]  # of targets: the first token is none
    without = model.objective.token_weights(batch._replace(horizons=None))
    assert without is not None
    assert without.tolist() == [[n] * 6]


@each_variant
def test_of_one_is_next_token_bit_for_bit(name: str) -> None:
    """Up to rounding, where each target's loss is multiplied by its weight, 1."""
    batch, results = random_batch(seed=0, n=1), []
    for config in (NextToken(), objective(name, 1)):
        model = build_model(MODEL, config, VOCABULARY, seed=3)
        loss = training_loss(model, batch)
        torch.autograd.backward(loss)
        results.append({"loss": loss.detach(), **{key: each.grad for key, each in model.named_parameters()}})
    assert results[0].keys() == results[1].keys()
    tolerance = 1e-6 if name == "reweighted" else 0
    for key, each in results[0].items():
        torch.testing.assert_close(each, results[1][key], rtol=tolerance, atol=tolerance)


@each_variant
def test_bfloat16_is_near(name: str) -> None:
    """Autocast on the CPU: each head's loss within 0.01 nats of float32's, which is about 2.7; 0.004 measured."""
    model, batch = built(name, 4), random_batch(seed=1, n=heads_of(name, 4), rows=20)
    exact = losses(model.objective, model.decoder, batch, [1.0] * model.objective.n)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(model.objective, model.decoder, batch, [1.0] * model.objective.n)
    assert found.nats.dtype == torch.float32
    means, expected = ((each.nats / each.targets).tolist() for each in (found, exact))
    assert means == pytest.approx(expected, abs=0.01)
    assert means != expected


# What a head sees


@each_variant
def test_a_head_sees_every_earlier_token_and_none_that_it_should_not(name: str) -> None:
    """Sequential heads read the i-1 true tokens before their target, all others the tokens up to their position."""
    n, positions = heads_of(name, 3), 8
    model = built(name, 3).double()
    tokens = torch.randint(VOCABULARY, (1, positions + n - 1), generator=torch.Generator().manual_seed(0))
    before = all_logits(model, tokens, None, n)
    for place in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % VOCABULARY
        for i, (one, other) in enumerate(zip(before, all_logits(model, changed, None, n), strict=True), start=1):
            reads = i - 1 if name == "sequential" else 0
            assert (one != other).any(dim=-1)[0].tolist() == [t + reads >= place for t in range(positions)]


@each_variant
def test_packed_documents_are_as_if_alone(name: str) -> None:
    """As far as there are targets: beyond them a sequential head reads the next document's tokens."""
    n, model = heads_of(name, 3), built(name, 3).double()
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 2, -1, -1]])
    tokens = torch.randint(VOCABULARY, documents.shape, generator=torch.Generator().manual_seed(0))
    packed = all_logits(model, tokens, documents, n)
    for document in (0, 1, 2):
        alone = torch.where(documents == document, tokens, 0)  # other tokens around it
        for i, (one, other) in enumerate(zip(packed, all_logits(model, alone, documents, n), strict=True), start=1):
            [places] = torch.nonzero(documents[0, :10] == document, as_tuple=True)
            places = places[: len(places) - i + 1]
            assert torch.equal(one[0, places], other[0, places])


def test_sequential_heads_say_that_they_need_tokens() -> None:
    model = built("sequential", 2)
    tokens = random_batch(seed=0, n=2).tokens
    context = model.decoder.context(tokens, None)
    logits = model.objective.logits(model.decoder, model.decoder(tokens, context), context, heads=2)
    next(logits)
    with pytest.raises(ValueError, match="need `tokens`"):
        next(logits)


# What inference drops, and when what is computed


def next_token_logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    context = model.decoder.context(tokens, None)
    [logits] = model.objective.logits(model.decoder, model.decoder(tokens, context), context, heads=1)
    return logits


@pytest.mark.parametrize("n", [1, 2, 4])
@each_variant
def test_next_token_logits_need_what_is_not_dropped_and_nothing_else(name: str, n: int) -> None:
    model, tokens = built(name, n), random_batch(seed=0, n=n).tokens
    before = next_token_logits(model, tokens)
    torch.autograd.backward(before.square().sum())
    unused = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {f"objective.{key}" for key in model.objective.training_only()}
    parameters = dict(model.objective.named_parameters())
    for key in model.objective.training_only():
        parameters[key].data.fill_(torch.nan)
    assert torch.equal(next_token_logits(model, tokens), before)
    per_head = {"parallel": 6, "linear": 1, "replicated": 7, "causal": 6, "sequential": 9, "detached": 6}
    assert len(unused) == per_head.get(name, 0) * (n - 1)


@each_of_many_heads
def test_the_first_heads_are_the_same_however_many_are_asked_for(name: str) -> None:
    model, tokens = built(name, 4), random_batch(seed=0, n=4).tokens
    every = all_logits(model, tokens, None, 4)
    for heads in (1, 2, 3):
        some = all_logits(model, tokens, None, heads)
        assert len(some) == heads
        assert all(torch.equal(one, other) for one, other in zip(some, every, strict=False))


def counting(calls: list[int]) -> Callable[[nn.Module, Any, Any], None]:
    def count(*_: Any) -> None:
        calls[0] += 1

    return count


@each_of_many_heads
def test_hidden_states_and_logits_are_computed_when_asked_for(name: str) -> None:
    """Logits are what is large; of the layers, only anticausal heads need all for the first hidden_states."""
    model, trunk, heads, unembeddings = built(name, 3), [0], [0], [0]
    model.decoder.trunk[0].register_forward_hook(counting(trunk))
    assert isinstance(model.objective.heads, nn.ModuleList)
    for head in model.objective.heads:
        head.register_forward_hook(counting(heads))
    for unembedding in (model.decoder.unembedding, *model.objective.unembeddings()):
        unembedding.register_forward_hook(counting(unembeddings))
    tokens = random_batch(seed=0, n=3).tokens
    inputs = tokens[:, :-3]
    context = model.decoder.context(inputs, None)
    output = model.decoder(inputs, context)
    for reads, asking in enumerate((model.objective.hidden_states, model.objective.logits)):
        heads[0] = unembeddings[0] = 0
        made = asking(model.decoder, output, context, 3, tokens[:, :-1])
        assert trunk + heads + unembeddings == [1, 0, 0]
        for asked in (1, 2, 3):
            assert next(made).shape == (*inputs.shape, VOCABULARY if reads else WIDTH)
            assert trunk + heads + unembeddings == [1, 3 if name == "anticausal" else asked, reads * asked]
        assert next(made, None) is None


@each_of_many_heads
def test_logits_are_read_off_hidden_states(name: str) -> None:
    model, tokens = built(name, 3), random_batch(seed=0, n=3).tokens
    inputs = tokens[:, :-3]
    context = model.decoder.context(inputs, None)
    made = model.objective.hidden_states(model.decoder, model.decoder(inputs, context), context, 3, tokens[:, :-1])
    logits = model.objective.logits(model.decoder, model.decoder(inputs, context), context, 3, tokens[:, :-1])
    for head, (hidden, expected) in enumerate(zip(made, logits, strict=True), start=1):
        assert torch.equal(model.objective.logits_of(model.decoder, head, hidden), expected)
        some = model.objective.logits_of(model.decoder, head, hidden.flatten(0, 1)[3:7])  # of any positions
        torch.testing.assert_close(some, expected.flatten(0, 1)[3:7])


# Parameters, initial weights, cost


@pytest.mark.parametrize("size", ["1M", "30M"])
@each_variant
def test_parameters_are_those_of_next_token_and_what_is_stated(name: str, size: Size) -> None:
    layers, d, _ = SIZES[size]
    vocabulary = 100
    base = instantiate(Model(size=size), NextToken(), vocabulary)
    layer = sum(parameter.numel() for parameter in base.decoder.trunk[0].parameters())
    stated = {"linear": d * d, "sequential": 2 * d * d + 2 * d}
    for n in (1, 2, 4, 8):
        if n >= layers:
            continue
        model = instantiate(Model(size=size), objective(name, n), vocabulary)
        more = (n - 1) * (-layer if name == "shallow" else stated.get(name, 0))
        assert non_embedding_parameters(model) == non_embedding_parameters(base) + more
        replicas = (n - 1) * d * vocabulary if name == "replicated" else 0
        assert embedding_parameters(model) == 2 * d * vocabulary + replicas
        assert sum(each.numel() for each in model.parameters()) == (
            non_embedding_parameters(model) + embedding_parameters(model)
        )
        if has(name, "extra_layers"):
            longer = instantiate(Model(size=size), objective(name, n, extra_layers=n - 1), vocabulary)
            assert non_embedding_parameters(longer) == non_embedding_parameters(model) + (n - 1) * layer
            assert len(longer.decoder.trunk) == len(base.decoder.trunk) == layers - 1


@each_variant
def test_initial_weights_are_paired_and_of_the_stated_deviation(name: str) -> None:
    shape = Model(layers=LAYERS, width=64, heads=2)
    own, others = (
        dict(build_model(shape, config, 300, seed=1).named_parameters())
        for config in (objective(name, 4), Parallel(n=4))
    )
    common = {key for key in own if key in others and own[key].shape == others[key].shape}
    assert all(torch.equal(own[key], others[key]) for key in common)
    layers = {key for key in common if key.endswith("attention.inputs.weight")}
    short = name in ("linear", "shallow", "reweighted")
    assert len(layers) == (2 if short else LAYERS)  # the first of the trunk, and head 1
    deviations = {"heads": 64**-0.5, "replicas": 64**-0.5, "joins": 128**-0.5}
    for key in own.keys() - common:
        kind = key.split(".")[1]
        if own[key].dim() == 2 and kind in deviations:
            assert own[key].std().item() == pytest.approx(deviations[kind], rel=0.05)
    new = {"linear": 3, "replicated": 3, "sequential": 9}
    assert len([key for key in own.keys() - common if key.startswith("objective.")]) == new.get(name, 0)


@pytest.mark.usefixtures("plain_formulas")
@pytest.mark.parametrize(("n", "extra"), [(1, 0), (2, 0), (4, 0), (4, 3)])
@each_variant
def test_flops_are_those_that_torch_counts(name: str, n: int, extra: int) -> None:
    fields = {"extra_layers": extra} if has(name, "extra_layers") else {}
    model, rows, context = build_model(MODEL, objective(name, n, **fields), 17, 0), 2, 24
    tokens = torch.randint(17, (rows, context + model.objective.n), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(training_loss(model, batch))
    assert training_flops_per_token(model, context) * rows * context == counter.get_total_flops()


# Experiments


@each_variant
def test_a_run(name: str, tmp_path: Path) -> None:
    experiment = tiny(f"objective={{name: {name}, n: 2}}", "train.steps=20", "evaluation.every=10")
    result = execute(experiment, tmp_path)
    assert result is not None
    first, last = result["curve"][0], result["curve"][-1]
    logged = [key for key in last if key.startswith("validation/loss_")]
    assert logged == [f"validation/loss_{i}" for i in range(1, heads_of(name, 2) + 1)]
    assert all(last[key] < first[key] for key in logged)
    model = instantiate(experiment.model, experiment.objective, 12)
    assert result["flops"] == result["tokens"] * training_flops_per_token(model, experiment.train.context)


def test_how_many_heads_a_model_has_layers_for() -> None:
    assert tiny("objective={name: linear, n: 9}").objective == Linear(n=9)
    assert tiny("objective={name: parallel, n: 4, extra_layers: 1}").objective.head_layers() == 3
    assert tiny("objective={name: replicated, n: 9, extra_layers: 8}").objective == Replicated(n=9, extra_layers=8)
    for text, most in (("name: causal, n: 4", 3), ("name: sequential, n: 6, extra_layers: 1", 4)):
        with pytest.raises(BadInput, match=rf"objective\.n: \d is not allowed.*at most {most}"):
            tiny(f"objective={{{text}}}")
    with pytest.raises(BadInput, match=r"objective\.extra_layers: unknown field"):
        tiny("objective={name: linear, n: 2, extra_layers: 1}")


def test_no_extra_layers_is_as_if_there_were_no_such_field() -> None:
    experiment = tiny("objective.extra_layers=0")
    assert experiment.identity == tiny().identity == "45ba1cffdafad15a"
    assert tiny("objective.extra_layers=1").identity != experiment.identity
    assert Sequential(n=2).extra_layers == 0


@each_variant
def test_every_parameter_is_set_by_the_seed_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, asked = Model(layers=6, width=16, heads=2), objective(name, 3)
    plain = dict(build_model(shape, asked, 11, 5).named_parameters())
    fresh = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, **about: fresh(*sizes, **about).fill_(math.nan))
    marked = dict(build_model(shape, asked, 11, 5).named_parameters())
    assert plain.keys() == marked.keys()
    assert all(torch.equal(plain[each], marked[each]) for each in plain)  # none is nan, which equals nothing
