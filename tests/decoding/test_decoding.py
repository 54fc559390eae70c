"""Decoding against the model read anew for every token, against enumeration, and with heads whose drafts are known."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor, nn

from lab.decoding import sampling as sampling_module
from lab.decoding.decode import Decoded, decode, greedy
from lab.decoding.sampling import Sampling
from lab.decoding.tree import chain, draft_tree
from lab.errors import BadInput
from lab.experiments.inheritance import final_weights
from lab.experiments.run import execute
from lab.experiments.store import RunDirectory
from lab.models.decoder import Context, Decoder
from lab.models.sizes import Model
from lab.objectives import (
    Anticausal,
    Causal,
    Detached,
    LanguageModel,
    Linear,
    NextToken,
    Parallel,
    Replicated,
    Reweighted,
    Sequential,
    Shallow,
    build_model,
)
from lab.objectives.base import Objective
from tests.conftest import tiny

HEADS = (Parallel, Linear, Replicated, Causal, Anticausal, Sequential, Detached)
VOCABULARY, N = 7, 4
TREES = ((3, 2), (1, 3), (2, 2, 2), (VOCABULARY,))
CPU = torch.device("cpu")


def random_model(objective: Callable[..., Any], seed: int = 0, vocabulary: int = VOCABULARY) -> LanguageModel:
    """Of four heads, in float64 so that argmaxes have no ties."""
    return build_model(Model(layers=5, width=16, heads=2), objective(n=N), vocabulary, seed).double().eval()


def random_prompts(rows: int, seed: int, longest: int = 9, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    """Prompts of unequal length and these lengths; what is past the end of one is no token at all."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    width = int(lengths.max()) + 1
    prompts = torch.randint(vocabulary, (rows, width), generator=generator)
    return prompts, lengths


def heads_at_end(model: LanguageModel, tokens: Sequence[int], heads: int, ahead: Sequence[int] = ()) -> list[Tensor]:
    """What the heads say [V] at the end of `tokens`, everything read anew; sequential ones read `ahead` beyond it."""
    read = torch.tensor([list(tokens)])
    more = torch.tensor([[*tokens, *ahead, *[0] * (heads - 1 - len(ahead))]])
    with torch.inference_mode():
        context = model.decoder.context(read, None)
        logits = model.objective.logits(model.decoder, model.decoder(read, context), context, heads, more)
        return [each[0, -1] for each in logits]


def one_at_a_time(model: LanguageModel, prompt: Sequence[int], count: int) -> list[int]:
    """The likeliest continuation, everything read anew for every token."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(heads_at_end(model, text, 1)[0].argmax()))
    return text[len(prompt) :]


def rows_of(prompts: Tensor, lengths: Tensor) -> list[list[int]]:
    return [row[:length] for row, length in zip(prompts.tolist(), lengths.tolist(), strict=True)]


# Exactness


@pytest.mark.parametrize("objective", HEADS)
@pytest.mark.parametrize("seed", [0, 1])
def test_drafts_change_no_token(objective: Callable[..., Any], seed: int) -> None:
    model = random_model(objective, seed)
    prompts, lengths = random_prompts(8, seed)
    wanted = [one_at_a_time(model, prompt, 12) for prompt in rows_of(prompts, lengths)]
    accepted = 0
    for rows in (slice(0, 1), slice(1, 4), slice(0, 8)):
        assert greedy(model, prompts[rows], lengths[rows], 12).tolist() == wanted[rows]
        for drafts in (*map(chain, range(2, N + 1)), *TREES) if len(wanted[rows]) == 8 else (chain(N), TREES[0]):
            found = decode(model, prompts[rows], lengths[rows], 12, drafts)
            assert found.tokens == wanted[rows], drafts
            accepted += int(found.accepted.sum())
    assert accepted > 30  # not that no draft was ever good


@pytest.mark.parametrize("objective", [Parallel, Sequential])
def test_more_heads_than_there_is_text(objective: Callable[..., Any]) -> None:
    """Sequential heads read again from 2k-2 positions back, which is before the start of so short a text."""
    model = build_model(Model(layers=9, width=16, heads=2), objective(n=8), VOCABULARY, 0).double().eval()
    for count in (1, 2, 3, 6):
        for prompts in ([[1]], [[1, 2], [3, 0]]):
            lengths = torch.tensor([len(row) - (row[-1] == 0) for row in prompts])
            found = decode(model, torch.tensor(prompts), lengths, count, chain(8))
            asked = rows_of(torch.tensor(prompts), lengths)
            assert found.tokens == [one_at_a_time(model, prompt, count) for prompt in asked]


@pytest.mark.parametrize("objective", [NextToken(), Shallow(n=3), Reweighted(n=3)], ids=lambda each: each.name)
def test_objectives_without_further_heads_decode_plainly(objective: Any) -> None:
    model = build_model(Model(layers=4, width=16, heads=2), objective, VOCABULARY, 0).double()
    prompts, lengths = random_prompts(3, 0)
    assert decode(model, prompts, lengths, 9).tokens == [
        one_at_a_time(model, each, 9) for each in rows_of(prompts, lengths)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LanguageModel]:
    """Models of tiny runs, fp32, as they end; each is trained when first asked for."""
    store, models = tmp_path_factory.mktemp("runs"), dict[str, LanguageModel]()

    def model(objective: str) -> LanguageModel:
        if objective not in models:
            experiment = tiny(f"objective={{name: {objective}, n: 3}}", "train.steps=80", "train.lr=3e-3")
            execute(experiment, store)
            vocabulary = len(experiment.task.build().vocabulary)
            models[objective] = build_model(experiment.model, experiment.objective, vocabulary, 0).eval()
            models[objective].load_state_dict(final_weights(RunDirectory(store, experiment), "RUN"))
        return models[objective]

    return model


@pytest.mark.parametrize("objective", ["parallel", "sequential"])
def test_drafts_change_no_token_of_trained_models_in_fp32(
    trained: Callable[[str], LanguageModel], objective: str
) -> None:
    model = trained(objective)
    examples = tiny().task.build().examples("test", np.arange(0, 90, 7), 0)
    lengths = torch.from_numpy(examples.score_mask.argmax(axis=1))
    prompts = torch.from_numpy(examples.tokens.astype(np.int64))[:, : int(lengths.max())]
    assert next(model.parameters()).dtype == torch.float32
    wanted = [one_at_a_time(model, prompt, 12) for prompt in rows_of(prompts, lengths)]
    for drafts in ((), (1,), (1, 1), (3, 2)):
        for batch in (4, len(prompts)):
            pairs = zip(torch.split(prompts, batch), torch.split(lengths, batch), strict=True)
            parts = [decode(model, *pair, 12, drafts) for pair in pairs]
            assert [row for part in parts for row in part.tokens] == wanted
        assert not drafts or sum(part.accepted[0] for part in parts) > 10


# What the cache holds


@pytest.mark.parametrize("objective", HEADS)
@settings(deadline=None, max_examples=10)
@given(st.data())
def test_a_pass_over_a_tree_says_what_reading_each_branch_anew_does(
    objective: Callable[..., Any], data: st.DataObject
) -> None:
    model = random_model(objective)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    parents = [0, *(data.draw(st.integers(0, node - 1)) for node in range(1, data.draw(st.integers(1, 7))))]
    paths: list[list[int]] = [[0]]
    for node, parent in enumerate(parents[1:], start=1):
        paths.append([*paths[parent], node])
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    texts = torch.from_numpy(random.integers(0, VOCABULARY, (len(lengths), 6)))
    nodes = torch.from_numpy(random.integers(0, VOCABULARY, (len(lengths), len(parents))))
    heads = 1 if objective is Sequential else N

    def said(tokens: Tensor, context: Context) -> Tensor:
        trunk = model.decoder(tokens, context)
        return torch.stack(list(model.objective.logits(model.decoder, trunk, context, heads)))

    with torch.inference_mode():
        cache = model.decoder.cache(20)
        columns = torch.arange(6).expand(len(lengths), -1)
        said(texts, model.decoder.continuation(cache, columns, columns[:1], None))
        columns = lengths[:, None] + torch.arange(len(parents))
        positions = lengths[:, None] + torch.tensor([len(path) - 1 for path in paths])
        seen = torch.zeros(len(lengths), len(parents), 6 + len(parents), dtype=torch.bool)
        for row, node in np.ndindex(len(lengths), len(parents)):
            seen[row, node, : lengths[row]] = True
            seen[row, node, lengths[row] + torch.tensor(paths[node])] = True
        found = said(nodes, model.decoder.continuation(cache, columns, positions, seen))
    for row, node in np.ndindex(len(lengths), len(parents)):
        text = [*texts[row, : lengths[row]].tolist(), *nodes[row, paths[node]].tolist()]
        wanted = torch.stack(heads_at_end(model, text, heads))
        torch.testing.assert_close(found[:, row, node], wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("objective", HEADS)
def test_drafts_are_what_the_heads_say_when_all_is_read_anew(objective: Callable[..., Any]) -> None:
    """Of sequential heads too, which at every settled position have to have read the true tokens."""
    model = random_model(objective, seed=5)
    prompts, lengths = random_prompts(4, 7)
    for drafts in (chain(N), (3, 1, 2), (2, 4)):
        found = decode(model, prompts, lengths, 14, drafts, record=True)
        compared = 0
        for prompt, steps in zip(rows_of(prompts, lengths), found.steps, strict=True):
            text = [*prompt]
            for step, after in pairwise(steps):
                text += step.accepted
                proposed: list[int] = []
                for _ in drafts:  # sequential heads see what has been proposed; of the others one reading tells all
                    said = heads_at_end(model, text, len(drafts) + 1, [step.own or 0, *proposed])
                    proposed = [int(each.argmax()) for each in said[1:]]
                    if objective is not Sequential:
                        break
                assert after.rejected == proposed[len(after.accepted) :][: len(after.rejected)]
                if max(drafts) == 1:
                    assert after.accepted == proposed[: len(after.accepted)]
                compared += len(after.rejected)
                text.append(step.own or 0)
        assert compared > 10
        made = [[token for step in row for token in (*step.accepted, step.own)] for row in found.steps]
        assert [[token for token in row if token is not None] for row in made] == found.tokens


def test_layers_that_take_part() -> None:
    prompts, lengths = random_prompts(2, 0)
    layers = {
        objective: [decode(random_model(objective), prompts, lengths, 3, chain(k)).layers for k in range(1, N + 1)]
        for objective in HEADS
    }
    for objective in (Parallel, Replicated, Causal, Sequential, Detached):
        assert layers[objective] == [2, 3, 4, 5]
    assert layers[Linear] == layers[Anticausal] == [5] * 4


# Rows and their ends


@pytest.mark.parametrize(
    ("objective", "drafts"), [(Parallel, ()), (Parallel, (1, 1)), (Sequential, (1, 1)), (Sequential, (3, 2))]
)
def test_rows_end_with_the_end_token_or_when_they_are_full(
    objective: Callable[..., Any], drafts: tuple[int, ...]
) -> None:
    model = random_model(objective, seed=3)
    prompts, lengths = random_prompts(10, 3)
    whole = decode(model, prompts, lengths, 15).tokens
    lengths_found = set()
    for end in (0, 2):
        wanted = [row[: row.index(end) + 1] if end in row else row for row in whole]
        found = decode(model, prompts, lengths, 15, drafts, end=end)
        assert found.tokens == wanted
        alone = [decode(model, p[None], n[None], 15, drafts, end=end) for p, n in zip(prompts, lengths, strict=True)]
        assert [each.tokens[0] for each in alone] == wanted
        assert [int(each.forward_passes[0]) for each in alone] == found.forward_passes.tolist()
        assert sum(each.proposed for each in alone).tolist() == found.proposed.tolist()  # type: ignore[union-attr]
        assert sum(each.accepted for each in alone).tolist() == found.accepted.tolist()  # type: ignore[union-attr]
        lengths_found |= set(map(len, wanted))
    assert len(lengths_found) > 3


def test_rows_that_are_done_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(Parallel, seed=3)
    prompts, lengths = random_prompts(20, 3)
    sizes: list[int] = []
    forward = Decoder.forward

    def counted(decoder: Decoder, tokens: Tensor, context: Context) -> Tensor:
        sizes.append(len(tokens))
        return forward(decoder, tokens, context)

    monkeypatch.setattr(Decoder, "forward", counted)
    found = decode(model, prompts, lengths, 15, (1, 1), end=2)
    assert len(set(found.forward_passes.tolist())) > 3
    assert sizes == [20, *(int((found.forward_passes > each).sum()) for each in range(found.forward_passes.max()))]


# Heads whose drafts are known


class Counting(Objective):
    """Token t+1 is token t and 1, modulo V; head i adds i, or, where it is wrong, i + 1."""

    heads_share_layers = False

    def __init__(self, n: int, wrong: Callable[[int, int], bool]) -> None:
        super().__init__()
        self.n, self.wrong = n, wrong

    def hidden_states(
        self, decoder: Decoder, trunk_BTD: Tensor, context: Context, heads: int, tokens: Tensor | None = None
    ) -> Iterator[Tensor]:
        here = trunk_BTD.argmax(dim=-1)
        for head in range(1, heads + 1):
            wrong = torch.tensor([head > 1 and self.wrong(token, head) for token in range(trunk_BTD.shape[-1])])
            yield nn.functional.one_hot((here + head + wrong[here]) % trunk_BTD.shape[-1], trunk_BTD.shape[-1]).double()

    def logits_of(self, decoder: Decoder, head: int, hidden: Tensor) -> Tensor:
        return hidden

    def training_only(self) -> frozenset[str]:
        return frozenset()


def counting(n: int, wrong: Callable[[int, int], bool], vocabulary: int = 12) -> LanguageModel:
    model = build_model(Model(layers=2, width=vocabulary, heads=2), Parallel(n=1), vocabulary, 0)
    model.decoder.trunk = nn.ModuleList()
    model.decoder.embedding = nn.Embedding(vocabulary, vocabulary, _weight=torch.eye(vocabulary))
    model.objective = Counting(n, wrong)
    return model


def expected(
    start: int, new_tokens: int, k: int, wrong: Callable[[int, int], bool], end: int | None
) -> tuple[list[int], int, list[int], list[int]]:
    """A row's tokens, passes, and drafts proposed and accepted by depth, counted one draft at a time."""
    answer = [(start + 1 + each) % 12 for each in range(new_tokens)]
    if end in answer:
        answer = answer[: answer.index(end) + 1]
    passes, proposed, accepted = 0, [0] * (k - 1), [0] * (k - 1)
    at = 0  # the place of the newest token
    while at < len(answer) - 1:
        passes, good = passes + 1, True
        newest = answer[at]
        before = (newest - 1) % 12  # the drafts were made where this was read
        gained = 0
        for depth in range(1, k):
            place, right = at + depth, not wrong(before, depth + 1)
            good = good and right
            in_answer = place < len(answer)
            if good and in_answer:
                accepted[depth - 1] += 1
                gained += 1
        ends = at + gained + 1 >= len(answer) - 1 and answer[-1] == end
        last = len(answer) if ends else new_tokens
        for depth in range(1, k):
            proposed[depth - 1] += at + depth < last
        at = min(at + gained + 1, len(answer) - 1)
    return answer, passes, proposed, accepted


NEVER: Callable[[int, int], bool] = lambda token, head: True  # noqa: E731
ALWAYS: Callable[[int, int], bool] = lambda token, head: False  # noqa: E731
SOMETIMES: Callable[[int, int], bool] = lambda token, head: (token * head) % 5 > 2  # noqa: E731


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("wrong", [NEVER, ALWAYS, SOMETIMES], ids=["never", "always", "sometimes"])
@pytest.mark.parametrize("end", [None, 4])
def test_counts_are_those_of_known_drafts(wrong: Callable[[int, int], bool], k: int, end: int | None) -> None:
    prompts, lengths = random_prompts(9, 1, vocabulary=12)
    starts = [row[-1] for row in rows_of(prompts, lengths)]
    for new_tokens in (1, 2, 13, 24):
        found = decode(counting(4, wrong), prompts, lengths, new_tokens, chain(k), end=end)
        wanted = [expected(start, new_tokens, k, wrong, end) for start in starts]
        assert found.tokens == [row[0] for row in wanted]
        assert found.forward_passes.tolist() == [row[1] for row in wanted]
        assert found.proposed.tolist() == [sum(row[2][depth] for row in wanted) for depth in range(k - 1)]
        assert found.accepted.tolist() == [sum(row[3][depth] for row in wanted) for depth in range(k - 1)]


def test_tokens_per_forward_of_known_drafts() -> None:
    prompts, lengths = torch.tensor([[3, 5], [7, 0]]), torch.tensor([2, 1])
    for k in (1, 2, 3, 4):
        assert decode(counting(4, ALWAYS), prompts, lengths, 1 + 5 * k, chain(k)).tokens_per_forward == k
        assert decode(counting(4, NEVER), prompts, lengths, 1 + 5 * k, chain(k)).tokens_per_forward == 1
    assert math.isnan(decode(counting(4, ALWAYS), prompts, lengths, 1, (1,)).tokens_per_forward)
    # Head 2's second candidate is what it is not wrong in: with one more it is always accepted.
    second: Callable[[int, int], bool] = lambda token, head: head == 2  # noqa: E731

    class Second(Counting):
        def logits_of(self, decoder: Decoder, head: int, hidden: Tensor) -> Tensor:
            return hidden + (hidden.roll(-1, dims=-1) / 2 if head == 2 else 0)

    model = counting(4, second)
    model.objective = Second(4, second)
    assert decode(model, prompts, lengths, 13, (1, 1, 1)).tokens_per_forward == 1
    assert decode(model, prompts, lengths, 13, (2, 1, 1)).tokens_per_forward == 4


# Sampling


def exact(model: LanguageModel, prompt: list[int], count: int, temperature: float, top_p: float) -> Tensor:
    """The probability of every continuation of `count` tokens, [V, ..., V], token by token."""
    vocabulary = model.decoder.unembedding.out_features
    joint = torch.ones((), dtype=torch.float64)
    for before in range(count):
        nexts = torch.zeros([vocabulary] * (before + 1), dtype=torch.float64)
        for tokens in product(range(vocabulary), repeat=before):
            logits = heads_at_end(model, [*prompt, *tokens], 1)[0].tolist()
            weights = [math.exp(each / temperature) for each in logits]
            nucleus: list[int] = []
            for token in sorted(range(vocabulary), key=lambda each: -weights[each]):
                if sum(weights[each] for each in nucleus) < top_p * sum(weights) * (1 - 1e-12):
                    nucleus.append(token)
            for token in nucleus:
                nexts[(*tokens, token)] = weights[token] / sum(weights[each] for each in nucleus)
        joint = joint[..., None] * nexts
    return joint


def p_value(found: Decoded, joint: Tensor) -> float:
    """Pearson's test that the continuations are drawn from `joint`; cells that expect less than 5 count as one."""
    counts = torch.zeros_like(joint)
    for row in found.tokens:
        counts[tuple(row)] += 1
    if (counts[joint == 0] > 0).any():
        return 0.0
    wanted = joint * len(found.tokens)
    few = wanted < 5
    observed, ideal = ([*each[~few].tolist(), float(each[few].sum())] for each in (counts, wanted))
    if ideal[-1] == 0:
        observed, ideal = observed[:-1], ideal[:-1]
    return float(chisquare(observed, ideal).pvalue)


def sampled(model: LanguageModel, prompt: list[int], k: int, sampling: Sampling) -> Decoded:
    rows = 1500
    return decode(model, torch.tensor([prompt] * rows), torch.full((rows,), len(prompt)), 4, chain(k), sampling)


@pytest.mark.parametrize("objective", HEADS)
def test_sampled_tokens_are_distributed_as_head_1_says(objective: Callable[..., Any]) -> None:
    model = random_model(objective, seed=2, vocabulary=3)
    for number, (temperature, top_p) in enumerate(((1.0, 1.0), (0.6, 0.9))):
        joint = exact(model, [2, 0], 4, temperature, top_p)
        assert joint.sum() == pytest.approx(1)
        for k in (1, 2, 4) if objective is Parallel else (4,):
            found = sampled(model, [2, 0], k, Sampling(temperature, top_p, seed=10 * k + number))
            assert p_value(found, joint) > 1e-3
            if k > 1:
                assert 0.2 < found.accepted[0] / found.proposed[0] < 0.999


WRONG = {
    "keep all drafts": lambda p, q, uniform: torch.ones_like(p, dtype=torch.bool),
    "keep none": lambda p, q, uniform: torch.zeros_like(p, dtype=torch.bool),
    "keep with probability p": lambda p, q, uniform: uniform < p,
    "keep what p makes likelier": lambda p, q, uniform: q <= p,
}


@pytest.mark.parametrize("rule", WRONG)
def test_wrong_rules_are_found_out(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    model = random_model(Parallel, seed=2, vocabulary=3)
    monkeypatch.setattr(sampling_module, "is_accepted", WRONG[rule])
    assert p_value(sampled(model, [2, 0], 4, Sampling(1.0, seed=1)), exact(model, [2, 0], 4, 1.0, 1.0)) < 1e-6


def test_samples_are_repeatable_and_differ_by_seed() -> None:
    model, (prompts, lengths) = random_model(Parallel), random_prompts(8, 0)
    one, again, other = (decode(model, prompts, lengths, 20, (1, 1), Sampling(1.0, 1.0, seed)) for seed in (1, 1, 2))
    assert one.tokens == again.tokens
    assert one.tokens != other.tokens


def test_hardly_any_temperature_is_greedy() -> None:
    model, (prompts, lengths) = random_model(Causal), random_prompts(8, 0)
    likeliest = decode(model, prompts, lengths, 20).tokens
    for sampling, k in product((Sampling(1e-3), Sampling(1.0, 1e-6)), (1, 4)):
        assert decode(model, prompts, lengths, 20, chain(k), sampling).tokens == likeliest


def test_sampled_rows_end_too() -> None:
    model, (prompts, lengths) = random_model(Sequential), random_prompts(8, 0)
    found = decode(model, prompts, lengths, 30, (1, 1), Sampling(1.0), end=3)
    assert {len(row) for row in found.tokens} > {30} or len({len(row) for row in found.tokens}) > 2
    assert all(3 not in row[:-1] and (row[-1] == 3 or len(row) == 30) for row in found.tokens)


# The draft tree


def test_trees() -> None:
    tree = draft_tree((2, 2), CPU)
    assert tree.candidates.tolist() == [0, 1, 2, 3, 2, 3]  # of head 2: 0 and 1, of head 3: 2 and 3
    assert tree.depths.tolist() == [0, 1, 1, 2, 2, 2, 2]
    assert tree.parents.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert tree.paths.tolist() == [[0, 0, 0], [0, 1, 1], [0, 2, 2], [0, 1, 3], [0, 1, 4], [0, 2, 5], [0, 2, 6]]
    assert (tree.likeliest.tolist(), tree.branches) == ([1, 3], True)
    assert tree.sees[5].tolist() == [True, False, True, False, False, True, False]
    line = draft_tree((1, 1, 1), CPU)
    assert (line.branches, line.sees.tolist()) == (False, torch.ones(4, 4).tril().bool().tolist())


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drafts": chain(5)}, r"^heads: 5 is not allowed: the model has n = 4$"),
        ({"drafts": (3, 0)}, r"^tree: \[3, 0\] is not allowed: should be from 1 to 7 candidates of each head$"),
        ({"drafts": (8,)}, r"^tree: \[8\] is not allowed: should be from 1 to 7 candidates of each head$"),
        ({"drafts": (2, 1), "sampling": Sampling(1.0)}, r"^tree: \[2, 1\] is not allowed with sampling: "),
        ({"sampling": Sampling(0.0)}, r"^temperature: 0.0 is not allowed: should be at least 0.001$"),
        ({"sampling": Sampling(math.nan)}, r"^temperature: nan is not allowed: should be at least 0.001$"),
        ({"sampling": Sampling(1.0, 0.0)}, r"^top_p: 0.0 is not allowed: should be above 0 and at most 1$"),
        ({"new_tokens": 0}, r"^new_tokens: 0 is not allowed: should be at least 1$"),
        ({"prompts": torch.tensor([[1, 7, 9]])}, r"^prompt: token 7 is not allowed: should be from 0 to 6$"),
        ({"prompts": torch.tensor([[1, -1, 9]])}, r"^prompt: token -1 is not allowed: should be from 0 to 6$"),
        ({"lengths": torch.tensor([0])}, r"^prompt: \[0\] tokens are not allowed: should be from 1 to 3$"),
        ({"lengths": torch.tensor([4])}, r"^prompt: \[4\] tokens are not allowed: should be from 1 to 3$"),
    ],
)  # fmt: skip
def test_bad_input(change: dict[str, Any], message: str) -> None:
    good = {"prompts": torch.tensor([[1, 2, 9]]), "lengths": torch.tensor([2]), "new_tokens": 4}
    decode(random_model(Parallel), **good, drafts=(2, 1))  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=message):
        decode(random_model(Parallel), **{**good, **change})


def test_too_large_a_tree() -> None:
    model = build_model(Model(layers=6, width=16, heads=2), Parallel(n=4), 100, 0)
    with pytest.raises(BadInput, match=r"^tree: \[40, 40\] is not allowed: 1641 nodes, at most 1024$"):
        decode(model, torch.tensor([[1]]), torch.tensor([1]), 4, (40, 40))


def test_drafts_without_heads() -> None:
    model = build_model(Model(layers=4, width=16, heads=2), NextToken(), 7, 0)
    with pytest.raises(BadInput, match=r"^heads: 2 is not allowed: the model has no heads beyond the first$"):
        decode(model, torch.tensor([[1]]), torch.tensor([1]), 4, (1,))
