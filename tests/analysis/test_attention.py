"""Attention heads: patterns against the layers' own outputs, scores by hand, hand-built weights, TransformerLens."""

import importlib
import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lab.analysis import attention as heads
from lab.analysis.attention import Looking
from lab.analysis.finished_run import FinishedRun
from lab.cli.heads import heads as command
from lab.experiments.run import execute
from lab.experiments.store import RunDirectory
from lab.home import home
from lab.models.decoder import Block, Decoder
from lab.models.sizes import Model
from lab.objectives import LanguageModel, ObjectiveConfig, build_model
from lab.objectives.anticausal import Anticausal
from lab.objectives.causal import Causal
from lab.objectives.linear import Linear
from lab.objectives.next_token import NextToken
from lab.objectives.parallel import Parallel
from lab.objectives.sequential import Sequential
from lab.report.style import use_style
from tests.conftest import tiny

VOCABULARY = 11
SHAPE = Model(layers=4, width=24, heads=2)


def random_tokens(rows: int, positions: int, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randint(vocabulary, (rows, positions), generator=torch.Generator().manual_seed(positions))


def random_model(objective: ObjectiveConfig, shape: Model = SHAPE) -> LanguageModel:
    """A model whose norms' weights are no ones and whose attention is far from uniform."""
    model = build_model(shape, objective, VOCABULARY, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 4)
            elif name.endswith("attention.inputs.weight"):
                parameter.mul_(2)
    return model


# Patterns


@pytest.mark.parametrize("positions", [1, 63, 256, 257])
@pytest.mark.parametrize("packed", [False, True])
def test_patterns_times_values_are_what_attention_writes(positions: int, packed: bool) -> None:
    model, tokens = random_model(Parallel(n=2)), random_tokens(3, positions)
    documents = torch.arange(positions).div(40, rounding_mode="floor").expand(3, -1).clone() if packed else None
    if documents is not None:
        documents[1, positions // 2 :] = -1  # padding
    caught: dict[str, tuple[Tensor, Tensor]] = {}
    for name, block in heads.layers(model).items():
        block.attention.register_forward_hook(
            lambda _, inputs, output, name=name: caught.update({name: (inputs[0], output)})
        )
    found = heads.patterns(model, tokens, documents)
    assert list(found) == ["trunk.0", "trunk.1", "head 1", "head 2"] == list(caught)
    for name, pattern in found.items():
        x, written = caught[name]
        attention = heads.layers(model)[name].attention
        values = (x @ attention.inputs.weight[48:].T).reshape(3, positions, 2, 12).transpose(1, 2)
        mixed = (pattern @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(mixed @ attention.output.weight.T, written, rtol=1e-4, atol=1e-5)
        assert pattern.shape == (3, 2, positions, positions)
        assert (pattern.triu(1) == 0).all()
        torch.testing.assert_close(pattern.sum(-1), torch.ones(3, 2, positions))
        if documents is not None:
            assert (pattern[(documents[:, :, None] != documents[:, None, :])[:, None].expand_as(pattern)] == 0).all()


def test_looking_leaves_nothing_behind() -> None:
    model, tokens = random_model(Parallel(n=2)), random_tokens(2, 20)
    before = heads.next_token_logits(model, tokens)
    heads.patterns(model, tokens)
    with pytest.raises(IndexError):
        heads.patterns(model, tokens + VOCABULARY)
    assert not any(block.attention._forward_pre_hooks for block in heads.layers(model).values())
    assert torch.equal(heads.next_token_logits(model, tokens), before)


@pytest.mark.parametrize(
    ("objective", "every", "path"),
    [
        (NextToken(), ["trunk.0", "trunk.1", "trunk.2", "head 1"], 4),
        (Parallel(n=3), ["trunk.0", "head 1", "head 2", "head 3"], 2),
        (Causal(n=2), ["trunk.0", "trunk.1", "head 1", "head 2"], 3),
        (Anticausal(n=2), ["trunk.0", "trunk.1", "head 2", "head 1"], 4),
        (Linear(n=3), ["trunk.0", "trunk.1", "trunk.2", "head 1"], 4),
        (Sequential(n=2), ["trunk.0", "trunk.1", "head 1", "head 2"], 3),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_every_layer_is_seen_and_those_of_the_next_token_are_known(
    objective: ObjectiveConfig, every: list[str], path: int
) -> None:
    model = random_model(objective)
    assert list(heads.patterns(model, random_tokens(2, 9))) == every
    assert heads.next_token_path(model) == every[:path]
    assert set(heads.layers(model)) == set(every)


# Scores of hand-built attention


def causal(rows: int, positions: int, seed: int) -> Tensor:
    """Attention [rows, 1, T, T] at random."""
    scores = 3 * torch.randn(rows, 1, positions, positions, generator=torch.Generator().manual_seed(seed))
    return scores.masked_fill(torch.ones(positions, positions).triu(1) > 0, -torch.inf).softmax(-1)


def score(attention: Tensor, looking: Looking) -> list[float]:
    paid, count = heads.paid(attention, looking)
    return (paid / count).tolist()


def to_places(places: list[int]) -> Tensor:
    """A head [1, 1, T, T] that attends to one place for each query."""
    return torch.eye(len(places))[torch.tensor(places)][None, None]


def test_scores_of_heads_that_look_at_one_place() -> None:
    tokens = torch.tensor([[3, 5, 4, 3, 5, 4]])
    inside, everywhere = tokens >= 0, torch.ones(1, 6, dtype=torch.bool)
    before, after = to_places([0, 0, 1, 2, 3, 4]), to_places([0, 1, 2, 1, 2, 3])
    both = torch.cat((before, after, (before + after) / 2), dim=1)
    assert score(both, heads.previous_token(inside)) == pytest.approx([1, 0, 0.5])
    assert score(both, heads.repetition(tokens)) == pytest.approx([0, 1, 0.5])
    assert score(both, heads.prefix_matching(tokens, everywhere)) == pytest.approx([0, 1, 0.5])


def test_scores_of_a_uniform_head() -> None:
    tokens = torch.tensor([[7, 8, 7, 8, 7, 9]])
    uniform = torch.ones(1, 1, 6, 6).tril() / torch.arange(1, 7)[:, None]
    everywhere = tokens >= 0
    previous = [1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]
    assert score(uniform, heads.previous_token(everywhere)) == pytest.approx([sum(previous) / 5])
    matching = [1 / 3, 1 / 4, 2 / 5]  # the second 7 and 8, and the third 7; 9 and the first ones are not asked
    assert score(uniform, heads.prefix_matching(tokens, everywhere)) == pytest.approx([sum(matching) / 3])
    assert score(uniform, heads.prefix_matching(tokens, torch.arange(6)[None] == 4)) == pytest.approx([2 / 5])
    assert score(uniform, heads.repetition(tokens)) == pytest.approx([(1 / 4 + 1 / 5 + 1 / 6) / 3])
    # The last 7 finds the places of the first and the second 8, the second 8 that of the second 7.
    found = heads.needed(heads.prefix_matching(tokens, torch.tensor([[0, 0, 0, 1, 1, 1]]) > 0))
    assert score(uniform, found) == pytest.approx([(1 / 2 + 1 / 3 + 1 / 4) / 3])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=3), st.data())
def test_scores_are_what_loops_over_queries_and_keys_find(rows: list[list[int]], data: st.DataObject) -> None:
    tokens = torch.tensor(rows)
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=len(rows), max_size=len(rows)))
    asked = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=8, max_size=8),
                                            min_size=len(rows), max_size=len(rows))))  # fmt: skip
    attention = causal(len(rows), 8, seed=sum(map(sum, rows)))
    inside = torch.arange(8) < torch.tensor(lengths)[:, None]
    previous, matching, repeats = [], [], []
    for row, length, wanted, paid in zip(rows, lengths, asked.tolist(), attention[:, 0].tolist(), strict=True):
        previous += [paid[t][t - 1] for t in range(1, length)]
        repeats += [paid[t][t - 3] for t in range(4, 8)]
        for t in range(length):
            places = [s + 1 for s in range(t) if row[s] == row[t]]
            if places and wanted[t]:
                matching.append(sum(paid[t][place] for place in places))
    for looking, expected in (
        (heads.previous_token(inside), previous),
        (heads.prefix_matching(tokens, asked & inside), matching),
        (heads.repetition(tokens), repeats),
    ):
        total, count = heads.paid(attention, looking)
        assert count == len(expected)
        assert total.item() == pytest.approx(sum(expected), abs=1e-5)
        assert -1e-6 <= total.item() <= count + 1e-6


def test_scores_are_means_over_all_rows_of_all_batches() -> None:
    model = random_model(Parallel(n=2))
    tokens = random_tokens(4, 12)
    inside = torch.arange(12) < torch.tensor([12, 12, 5, 1])[:, None]
    whole = heads.scores(model, [(tokens, {"one": heads.previous_token(inside)})])
    parts = [
        (tokens[rows], {"one": heads.previous_token(inside[rows])}) for rows in (slice(1), slice(1, 3), slice(3, 4))
    ]
    for layer, found in heads.scores(model, parts).items():
        assert found["one"] == pytest.approx(whole[layer]["one"], abs=1e-6)
    nothing = heads.scores(model, [(tokens, {"none": heads.previous_token(torch.zeros_like(inside))})])
    assert all(math.isnan(value) for found in nothing.values() for value in found["none"])


def test_repeated_random_tokens() -> None:
    tokens = heads.repeated(50, 25, rows=64, seed=0)
    assert torch.equal(tokens[:, :25], tokens[:, 25:])
    assert torch.equal(tokens, heads.repeated(50, 25, rows=64, seed=0))
    assert set(tokens.flatten().tolist()) == set(range(50))
    assert len({tuple(row) for row in tokens.tolist()}) == 64


# Hand-built weights: induction

LETTERS = 8
TOKEN, BEFORE, COPIED, ONE = slice(0, 8), slice(8, 16), slice(16, 24), 24  # channels of the residual stream


@pytest.fixture
def induction() -> LanguageModel:
    """Two layers that copy what came after the token's first occurrence; the second head of each does nothing.

    Layer 1, head 0 attends to the previous token by its rotations alone, and notes which token that was. Head 1's
    layer, head 0 looks for the note that names its own token, and copies the token there.
    """
    # Rotations by 10^-i: the first channels tell places apart, from the third pair on hardly anything is turned.
    model = build_model(Model(layers=2, width=32, heads=2, rotary_base=1e8), NextToken(), LETTERS, seed=0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.zero_()
    decoder, eye = model.decoder, torch.eye(LETTERS)
    decoder.embedding.weight.data[:, TOKEN] = eye
    decoder.embedding.weight.data[:, ONE] = 1
    first, second = (heads.layers(model)[name].attention for name in ("trunk.0", "head 1"))
    queries, keys, values = (first.inputs.weight.data[start : start + 16] for start in (0, 32, 64))  # of head 0
    for pair, angle in enumerate((1.0, 0.1)):
        queries[2 * pair, ONE] = 20
        keys[2 * pair, ONE] = 20 * math.cos(angle)  # a key is turned one place further, so it meets the next query
        keys[2 * pair + 1, ONE] = 20 * math.sin(angle)
    values[:LETTERS, TOKEN] = eye
    first.output.weight.data[BEFORE, :LETTERS] = eye
    queries, keys, values = (second.inputs.weight.data[start : start + 16] for start in (0, 32, 64))
    queries[8:, TOKEN] = keys[8:, BEFORE] = 10 * eye
    values[:LETTERS, TOKEN] = eye
    second.output.weight.data[COPIED, :LETTERS] = eye
    decoder.unembedding.weight.data[:, COPIED] = eye
    decoder.unembedding.weight.data[:, TOKEN] = -0.1 * eye  # the query's own token, should two notes name it
    return model.eval()


@pytest.fixture
def letters() -> Tensor:
    """Rows that say all letters in some order, twice."""
    generator = torch.Generator().manual_seed(0)
    once = torch.stack([torch.randperm(LETTERS, generator=generator) for _ in range(5)])
    return torch.cat((once, once), dim=1)


def test_scores_of_hand_built_induction(induction: LanguageModel, letters: Tensor) -> None:
    found = heads.scores(induction, heads.on_repeated(letters))
    uniform = [1 / (t + 1) for t in range(16)]
    # The first token has none before, attends to itself, and so notes itself: it and the second have the same note, and
    # the query for it, one of eight, attends to both alike.
    assert found["trunk.0"]["previous_token_random"] == pytest.approx([1, sum(uniform[1:]) / 15], abs=1e-3)
    assert found["head 1"]["prefix_matching_random"] == pytest.approx([7.5 / 8, sum(uniform[8:]) / 8], abs=1e-3)
    assert found["trunk.0"]["prefix_matching_random"][0] == pytest.approx(0, abs=1e-3)
    assert heads.repeat_accuracy(induction, letters) == 1


def test_copying_of_hand_built_induction(induction: LanguageModel) -> None:
    decoder, block = induction.decoder, heads.layers(induction)["head 1"]
    assert heads.copying(decoder, block).tolist() == pytest.approx([1, 0])
    decoder.norm.weight.data[COPIED] = -2  # the norms' weights count
    assert heads.copying(decoder, block).tolist() == pytest.approx([-1, 0])
    decoder.norm.weight.data[16:20] = 2
    assert heads.copying(decoder, block).tolist() == pytest.approx([0, 0], abs=1e-6)
    block.attention_norm.weight.data[:4] = 3
    assert heads.copying(decoder, block).tolist() == pytest.approx([(3 - 1) / (3 + 1), 0])


def test_copying_is_of_the_whole_circuit() -> None:
    model = random_model(Parallel(n=2)).double()
    decoder, block = model.decoder, heads.layers(model)["trunk.1"]
    for head, found in enumerate(heads.copying(decoder, block).tolist()):
        rows = slice(12 * head, 12 * head + 12)
        values = (block.attention.inputs.weight[48:][rows] * block.attention_norm.weight).T
        outputs = block.attention.output.weight[:, rows].T
        circuit = decoder.embedding.weight @ values @ outputs @ (decoder.unembedding.weight * decoder.norm.weight).T
        eigenvalues = np.linalg.eigvals(circuit.detach().numpy())
        assert circuit.shape == (VOCABULARY, VOCABULARY)
        assert found == pytest.approx(eigenvalues.sum().real / np.abs(eigenvalues).sum(), abs=1e-9)


# Ablation


def test_without_the_previous_token_head_there_is_no_induction(induction: LanguageModel, letters: Tensor) -> None:
    for layer in ("trunk.0", "head 1"):
        attention = heads.layers(induction)[layer].attention
        with heads.ablated(attention, 0):
            assert heads.repeat_accuracy(induction, letters) < 0.5
        with heads.ablated(attention, 1):
            assert heads.repeat_accuracy(induction, letters) == 1
    assert heads.repeat_accuracy(induction, letters) == 1


@pytest.mark.parametrize("head", [0, 1])
def test_ablation_takes_a_heads_part_off_and_gives_it_back(head: int) -> None:
    model, tokens = random_model(Parallel(n=2)), random_tokens(2, 30)
    attention = heads.layers(model)["trunk.1"].attention
    before = {name: each.clone() for name, each in model.state_dict().items()}
    caught: list[tuple[Tensor, Tensor]] = []
    attention.register_forward_hook(lambda _, inputs, output: caught.append((inputs[0], output)))
    pattern = heads.patterns(model, tokens)["trunk.1"]
    with pytest.raises(RuntimeError, match="stop"), heads.ablated(attention, head):  # noqa: PT012
        heads.patterns(model, tokens)
        raise RuntimeError("stop")
    (x, whole), (same, without) = caught
    assert torch.equal(x, same)
    columns = slice(12 * head, 12 * head + 12)
    part = pattern[:, head] @ (x @ attention.inputs.weight[48:][columns].T) @ attention.output.weight[:, columns].T
    torch.testing.assert_close(without, whole - part, rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert all(torch.equal(after[name], each) for name, each in before.items())


# When scores come about


def test_half_way() -> None:
    models = [
        {"step": step, "hits": hits, "rises": rises, "nothing": math.nan}
        for step, hits, rises in ((0, 0.3, 0.2), (10, 0.32, 0.1), (20, 0.39, 0.6), (30, 0.3, 0.5), (40, 0.3, 0.9))
    ]
    found = heads.half_way(models, ("hits", "rises", "nothing"))
    assert found == {"hits": None, "rises": 20, "nothing": None}
    assert heads.half_way(models[:1], ("hits", "rises")) == {"hits": None, "rises": None}


def test_the_best_head_is_on_the_next_tokens_path_and_where_a_later_layer_can_read_it() -> None:
    rows = [
        {"layer": layer, "head": head, "next_token_path": layer != "head 2", **dict.fromkeys(heads.RISING, value)}
        for layer, head, value in (
            ("trunk.0", 0, 0.3), ("trunk.0", 1, 0.4), ("head 1", 0, 0.7), ("head 1", 1, 0.6), ("head 2", 0, 0.9),
        )
    ]  # fmt: skip
    found = {name: heads.best(rows, name) for name in heads.RISING}
    places = {name: (row["layer"], row["head"]) for name, row in found.items() if row}
    assert places == {
        "previous_token_task": ("head 1", 0),
        "previous_token_needed": ("trunk.0", 1),
        "prefix_matching_task": ("head 1", 0),
    }
    assert heads.best([{**row, "prefix_matching_task": math.nan} for row in rows], "prefix_matching_task") is None


# Runs and the command


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for n in (1, 2):
        execute(tiny(f"objective.n={n}", "execution.snapshots=20", "train.steps=40"), folder)
    return folder


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


@pytest.fixture(scope="module")
def told(store: Path) -> dict[str, Any]:
    runs = [
        FinishedRun(RunDirectory(store, tiny(f"objective.n={n}", "train.steps=40")), {"objective.n": n}) for n in (1, 2)
    ]
    done: list[None] = []
    table = heads.analyse(runs, 20, lambda: done.append(None))
    assert len(done) == heads.turns(runs) == 2 * 3 + 2 * 4 + 2 * 3  # three models each; two heads in 4 layers, and in 3
    return json.loads(json.dumps(table))  # type: ignore[no-any-return]


def test_rows_of_runs(store: Path, told: dict[str, Any]) -> None:
    steps = [0, 20, 40]
    assert [run["steps"] for run in told["runs"]] == [steps, steps]
    assert [(row["n"], row["step"]) for row in told["models"]] == [(n, step) for n in (1, 2) for step in steps]
    assert len(told["heads"]) == 2 * 3 * 4 * 2  # runs, steps, layers, heads
    run = RunDirectory(store, tiny("objective.n=2", "train.steps=40"))
    loaded = FinishedRun(run)
    model, examples = loaded.model(40), loaded.test_examples(20)
    last = [row for row in told["heads"] if row["identity"] == run.experiment.identity and row["step"] == 40]
    assert [row["layer"] for row in last] == ["trunk.0"] * 2 + ["trunk.1"] * 2 + ["head 1"] * 2 + ["head 2"] * 2
    assert [row["next_token_path"] for row in last] == [True] * 6 + [False] * 2
    [whole] = [row for row in told["models"] if row["n"] == 2 and row["step"] == 40]
    for row in last:
        assert ("lost" in row) == row["next_token_path"]
        assert all(0 <= row[name] <= 1 for name in row if name.startswith(("previous", "prefix")))
        assert -1 <= row["copying"] <= 1
        if "lost" in row:
            with heads.ablated(heads.layers(model)[row["layer"]].attention, row["head"]):
                without = heads.performance(model, loaded.task, examples)
            assert row["ablated_exact_match"] == pytest.approx(without["exact_match"], abs=1e-3)
            assert row["lost"] == pytest.approx(whole["exact_match"] - row["ablated_exact_match"], abs=2e-3)
            assert row["lost_nats"] == pytest.approx(without["loss"] - whole["loss"], abs=2e-3)
    first = [row for row in told["heads"] if row["step"] == 0]
    assert not any("lost" in row for row in first)


def test_scores_inside_examples_are_what_a_loop_finds(store: Path, told: dict[str, Any]) -> None:
    run = FinishedRun(RunDirectory(store, tiny("objective.n=1", "train.steps=40")))
    model, examples = run.model(20), run.test_examples(20)
    sums, counts = np.zeros((2, 2)), np.zeros(2)
    for row, length in enumerate(examples.lengths):
        tokens = examples.tokens[row, :length].astype(np.int64)
        attention = heads.patterns(model, torch.from_numpy(tokens)[None])["trunk.1"][0].double().numpy()
        for t in range(1, length):
            sums[0] += attention[:, t, t - 1]
            counts[0] += 1
            places = [s + 1 for s in range(t - 1) if tokens[s] == tokens[t - 1]]
            if examples.score_mask[row, t] and places:
                sums[1] += attention[:, t - 1, places].sum(axis=1)
                counts[1] += 1
    place = (run.experiment.identity, 20, "trunk.1")
    found = [row for row in told["heads"] if (row["identity"], row["step"], row["layer"]) == place]
    for head, row in enumerate(found):
        previous, prefix = sums[:, head] / counts
        assert row["previous_token_task"] == pytest.approx(previous, abs=1e-3)
        assert row["prefix_matching_task"] == pytest.approx(prefix, abs=1e-3)


def test_pictures(store: Path, told: dict[str, Any]) -> None:
    assert [picture["n"] for picture in told["pictures"]] == [1, 2]
    for picture in told["pictures"]:
        run = FinishedRun(RunDirectory(store, tiny(f"objective.n={picture['n']}", "train.steps=40")))
        examples = run.test_examples(20)
        tokens = [run.task.vocabulary[token] for token in examples.tokens[picture["example"]]]
        assert picture["tokens"] == tokens[: len(picture["tokens"])]
        assert all(examples.score_mask[picture["example"], picture["scored"]])
        assert [shown["score"] for shown in picture["heads"]] == list(heads.DRAWN)
        for shown in picture["heads"]:
            rows = [row for row in told["heads"] if row["identity"] == picture["identity"] and row["step"] == 40]
            chosen = heads.best(rows, shown["score"])
            assert chosen
            assert [shown[name] for name in ("value", "layer", "head")] == [
                chosen[name] for name in (shown["score"], "layer", "head")
            ]
            assert [len(row) for row in shown["attention"]] == list(range(1, len(picture["tokens"]) + 1))
            assert [sum(row) for row in shown["attention"]] == pytest.approx([1] * len(picture["tokens"]), abs=0.05)


def test_the_command(store: Path, told: dict[str, Any]) -> None:
    run = RunDirectory(store, tiny("objective.n=2", "train.steps=40"))
    ran = invoke(run.path, "--store", store, "--examples", 20, "--json")
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout.splitlines()[-1])
    assert document["analysis"] == "heads"
    for row, same in zip(document["heads"], told["heads"][len(document["heads"]) :], strict=True):
        assert row == same
    shown = invoke(run.path, "--store", store, "--examples", 20)
    assert shown.exit_code == 0, shown.output
    assert "step      40: exact_match" in shown.stdout
    assert "half way up: exact_match" in shown.stdout
    refused = invoke("nothing", "--store", store)
    assert refused.exit_code != 0
    assert "RUN: 'nothing' is not allowed" in str(refused.exception)


# Figures


@pytest.mark.parametrize("name", ["heads_over_training", "attention_pictures"])
def test_figures_are_drawn_from_the_table(name: str, told: dict[str, Any]) -> None:
    use_style()
    script = runpy.run_path(str(home() / "figures" / f"{name}.py"))
    assert (script["TABLE"], script["COMMAND"]) == ("heads", "lab analyze heads sweeps/heads.yaml")
    figure = script["draw"]({"examples": 20, **told})
    figure.canvas.draw()
    assert len([axes for axes in figure.axes if axes.get_title(loc="left")]) >= 2


# TransformerLens


def in_their_hands(model: LanguageModel) -> Any:
    """The next-token path of a model as a Llama of Hugging Face's, in TransformerLens' hooks, norms' weights folded."""
    transformers = importlib.import_module("transformers")
    decoder: Decoder = model.decoder
    blocks: list[Block] = [heads.layers(model)[name] for name in heads.next_token_path(model)]
    count, width = blocks[0].attention.heads, decoder.embedding.weight.shape[1]
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=blocks[0].feedforward.output.in_features,
        num_hidden_layers=len(blocks), num_attention_heads=count, num_key_value_heads=count,
        max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=decoder.rotary_base, tie_word_embeddings=False,
        attn_implementation="eager", bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    llama = transformers.LlamaForCausalLM(config)
    state = {
        "model.embed_tokens": decoder.embedding.weight,
        "lm_head": decoder.unembedding.weight,
        "model.norm": decoder.norm.weight,
    }
    for index, block in enumerate(blocks):
        q, k, v = block.attention.inputs.weight.chunk(3)
        gate, up = block.feedforward.inputs.weight.chunk(2)
        parts = {
            "input_layernorm": block.attention_norm.weight,
            # A complex number is neighbouring channels here, a channel of each half there.
            "self_attn.q_proj": q.reshape(count, -1, 2, width).transpose(1, 2).reshape(width, width),
            "self_attn.k_proj": k.reshape(count, -1, 2, width).transpose(1, 2).reshape(width, width),
            "self_attn.v_proj": v,
            "self_attn.o_proj": block.attention.output.weight,
            "post_attention_layernorm": block.feedforward_norm.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": block.feedforward.output.weight,
        }
        state |= {f"model.layers.{index}.{name}": part for name, part in parts.items()}
    llama.load_state_dict({f"{name}.weight": each.detach().clone() for name, each in state.items()})
    lens = importlib.import_module("transformer_lens.model_bridge.sources")
    theirs = lens.build_bridge_from_module(llama.eval(), "LlamaForCausalLM", hf_config=config)
    theirs.enable_compatibility_mode(
        disable_warnings=True, fold_ln=True, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    theirs.to_tokens = lambda tokens: tokens  # their detector asks for text, which takes a tokenizer
    return theirs


@pytest.mark.parametrize("objective", [NextToken(), Parallel(n=2)], ids=["next_token", "parallel"])
def test_scores_are_those_of_transformer_lens(objective: ObjectiveConfig) -> None:
    pytest.importorskip("transformer_lens", reason="pip install 'mtp-lab[lens]'")
    detect_head = importlib.import_module("transformer_lens.head_detector").detect_head
    model = random_model(objective)
    path, theirs = heads.next_token_path(model), in_their_hands(model)
    tokens = heads.repeated(VOCABULARY, 20, rows=3, seed=4)
    with torch.no_grad():
        logits, cache = theirs.run_with_cache(tokens)
    torch.testing.assert_close(logits, heads.next_token_logits(model, tokens), rtol=1e-4, atol=1e-4)
    ours = heads.patterns(model, tokens)
    for index, layer in enumerate(path):
        torch.testing.assert_close(cache["pattern", index], ours[layer], rtol=1e-4, atol=1e-5)

    everywhere = torch.ones(1, 40, dtype=torch.bool)
    for row in tokens[:, None]:
        for kind, looking in (
            ("previous_token_head", heads.previous_token(everywhere)),
            ("induction_head", heads.prefix_matching(row, everywhere)),
        ):
            found = detect_head(theirs, row, kind, error_measure="mul")
            mine = heads.scores(model, [(row, {"score": looking})])
            queries = int(looking.queries.sum())  # they divide by all positions
            for index, layer in enumerate(path):
                assert (found[index] * 40 / queries).tolist() == pytest.approx(mine[layer]["score"], abs=1e-5)

    eigenvalues = (theirs.W_E @ theirs.OV @ theirs.W_U).eigenvalues
    copying = (eigenvalues.sum(-1) / eigenvalues.abs().sum(-1)).real
    for index, layer in enumerate(path):
        expected = heads.copying(model.decoder, heads.layers(model)[layer]).tolist()
        assert copying[index].tolist() == pytest.approx(expected, abs=1e-5)
