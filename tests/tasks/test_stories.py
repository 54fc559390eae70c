"""Names and scores of stories: frequencies, hold-out, mentions, and what oracles score through the evaluation code."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from lab.learning.data import packed_batch
from lab.learning.evaluation import evaluate
from lab.objectives import LanguageModel
from lab.objectives.base import targets
from lab.tasks.base import Examples, ScoreRow
from lab.tasks.stories.induction import StoryTask
from lab.tasks.stories.names import REFRAIN, Names, NameSampler
from lab.tasks.stories.task import Stories
from lab.tasks.tokenizers import Bpe, Bytes
from tests.cli.test_cli import lab

Predictor = Callable[[list[int]], list[int]]
"""From a story's tokens to the token predicted after each of them."""


def drawn(
    sampler: NameSampler, count: int, fresh: float = 0.0, unseen: float = 0.0, free: bool = True
) -> NDArray[np.int64]:
    """Characters' names of `count` stories, [count, characters]."""
    return sampler.draw(("a test's",), np.arange(count), fresh, unseen, free)[:, : sampler.characters]


def sampler_of(**names: Any) -> NameSampler:
    return Stories(names=Names(**names)).build().name_sampler


def pairs(task: StoryTask, examples: Examples) -> list[list[tuple[str, str]]]:
    """The names of each story as texts, in order of appearance, found by mentions alone."""
    found = []
    for row in range(len(examples.tokens)):
        places = np.flatnonzero(examples.token_features["mention"][row] == 1)
        found.append(
            [
                (task.vocabulary[t[0]], task.vocabulary[t[1]])
                for t in (examples.tokens[row, p - 1 : p + 1] for p in places)
            ]
        )
    return found


# --- how names are drawn ---


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_fresh_names(share: float) -> None:
    sampler = sampler_of(fresh=share, pool=50, syllables=180)
    new = ~np.isin(sampler.draw(("train", 0), np.arange(4000), share, 0.0, True)[:, 0], sampler.pool)
    expected = share * (1 - 50 / sampler.usual)
    low, high = stats.binom.interval(1 - 1e-6, 4000, expected) if share > 0 else (0, 0)
    assert low <= new.sum() <= high


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_pool_frequencies_follow_zipf(power: float) -> None:
    sampler = sampler_of(zipf=power, pool=40)
    first = drawn(sampler, 20_000)[:, 0]  # later names of a story depend on the earlier ones: their first tokens differ
    counts = np.array([(first == name).sum() for name in sampler.pool])
    expected = np.arange(1, 41) ** -power
    assert counts.sum() == 20_000
    assert stats.chisquare(counts, expected / expected.sum() * 20_000).pvalue > 1e-4


@pytest.mark.parametrize("ambiguity", [1, 2, 4, 10])
def test_names_of_the_pool_share_first_tokens(ambiguity: int) -> None:
    sampler = sampler_of(ambiguity=ambiguity, pool=80)
    names = sampler.tokens[sampler.pool]
    assert len(np.unique(names, axis=0)) == 80
    assert set(Counter(names[:, 0].tolist()).values()) == {ambiguity}


@pytest.mark.parametrize(
    ("recipe", "shared"),
    [
        (Stories(), True),
        (Stories(names=Names(shared=False)), False),
        (Stories(tokens=Bytes(), length=(400, 600)), True),
        (Stories(tokens=Bytes(), length=(400, 600), names=Names(shared=False)), False),
        (Stories(tokens=Bpe(), length=(150, 250)), False),
    ],
    ids=["words", "words apart", "bytes", "bytes apart", "bpe"],
)
def test_shared_and_separate_tokens(recipe: Stories, shared: bool) -> None:
    task = recipe.build()
    firsts, seconds = (set(each.tolist()) for each in task.name_sampler.tokens.T)
    assert (firsts == seconds) if shared else not firsts & seconds
    if isinstance(recipe.tokens, Bpe | Bytes) and not shared:
        assert all(task.vocabulary[token][0].isupper() for token in firsts)
        assert all(task.vocabulary[token].islower() for token in seconds)


def test_first_tokens_of_a_story_differ() -> None:
    for fresh in (0.0, 0.5, 1.0):
        sampler = sampler_of(fresh=fresh, syllables=12, pool=40, ambiguity=8)
        first = np.sort(sampler.tokens[drawn(sampler, 3000, fresh)][:, :, 0], axis=1)
        assert (first[:, 1:] != first[:, :-1]).all()


@pytest.mark.parametrize("unseen", [0.0, 0.3, 1.0])
def test_tokens_that_training_names_never_have(unseen: float) -> None:
    task = Stories(names=Names(fresh=0.5, unseen=unseen), test_examples=1000, validation_examples=1000).build()
    used = {
        syllable
        for names in pairs(task, task.examples("train", np.arange(3000), 0))
        for name in names
        for syllable in name
    }
    for split in ("test", "validation"):
        names = pairs(task, task.examples(split, np.arange(1000), 0))
        new = [syllable not in used for each in names for name in each for syllable in name]
        low, high = stats.binom.interval(1 - 1e-6, len(new), unseen) if 0 < unseen < 1 else (unseen * len(new),) * 2
        assert low <= sum(new) <= high
        pool = pairs(task, task.examples(split, np.arange(1000, 2000), 0))
        assert all(syllable in used for each in pool for name in each for syllable in name)


def test_no_test_name_occurs_in_training() -> None:
    task = Stories().build()
    asked = {name for names in pairs(task, task.examples("test", np.arange(100), 0)) for name in names}
    tokens = {(task.vocabulary.index(a), task.vocabulary.index(b)) for a, b in asked}
    syllables = set(np.unique(task.name_sampler.tokens).tolist())
    for start in range(0, 20_000, 4000):
        for row in task.examples("train", np.arange(start, start + 4000), 0).tokens.tolist():
            run: list[int] = []
            for token in row:
                if token in syllables:
                    run.append(token)
                else:  # a name is a run of two, a refrain a run of three pairs
                    assert not tokens & set(zip(run[::2], run[1::2], strict=True))
                    run = []
    examples = task.examples("test", np.arange(100), 0)
    training = task.examples("train", np.arange(20_000), 0).fingerprints
    pair_keys = np.split(examples.fingerprints, 3, axis=1)[0][:, : task.name_sampler.characters]
    assert not np.isin(pair_keys[pair_keys > 0], training).any()


def test_a_finite_corpus_is_told_again_in_a_new_order() -> None:
    task = Stories(unique_examples=30).build()
    epochs = [
        [task.record(examples, row)["text"] for row in range(30)]
        for examples in (task.examples("train", np.arange(30 * k, 30 * (k + 1)), 0) for k in range(3))
    ]
    assert len(set(epochs[0])) == 30
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_keys_are_equal_exactly_when_names_are() -> None:
    task = Stories(names=Names(syllables=20, pool=40, ambiguity=4), refrains=0.0).build()
    width = task.name_sampler.characters + REFRAIN
    by_key: dict[int, set[Any]] = defaultdict(set)
    by_name: dict[Any, set[int]] = defaultdict(set)
    for split in ("train", "validation", "test"):
        examples = task.examples(split, np.arange(200), 0)
        for row, names in enumerate(pairs(task, examples)):
            keys = np.split(examples.fingerprints[row], 3)
            assert [np.count_nonzero(each) for each in keys] == [len(names)] * 3
            assert len(keys[0]) == width
            places = np.flatnonzero(examples.token_features["mention"][row] == 1)
            for name, who in zip(names, examples.token_features["character"][row, places] - 1, strict=True):
                for key, meant in zip((each[who] for each in keys), (name, name[0], name[1]), strict=True):
                    by_key[int(key)].add(meant)
                    by_name[meant].add(int(key))
    assert all(len(each) == 1 for each in [*by_key.values(), *by_name.values()])


# --- mentions ---


@pytest.mark.parametrize(
    "recipe",
    [Stories(), Stories(tokens=Bytes(), length=(400, 600)), Stories(tokens=Bpe(), length=(150, 250))],
    ids=["words", "bytes", "bpe"],
)
def test_mentions_are_where_names_stand(recipe: Stories) -> None:
    task = recipe.build()
    for split in ("train", "test"):
        examples = task.examples(split, np.arange(150), 0)
        for row in range(150):
            record = task.record(examples, row)
            assert record["tokens"] == examples.tokens[row, : examples.lengths[row]].tolist()
            counts = Counter[str]()
            for mention in record["mentions"]:
                counts[mention["character"]] += 1
                assert mention["mention"] == counts[mention["character"]]
                place = mention["position"]
                assert record["tokens"][place - 1 : place + 1] == record["names"][mention["character"]]
                assert bool(examples.score_mask[row, place]) == (mention["mention"] > 1)
            assert examples.score_mask[row].sum() == sum(counts.values()) - len(counts)
            assert len(record["names"]) == examples.slices["characters"][row]
            for name, times in counts.items():  # names are words of their own, refrains are not
                assert len(re.findall(rf"(?<![A-Za-z]){name}(?![A-Za-z])", record["text"])) == times


def test_test_stories_on_the_command_line() -> None:
    shown = lab("data", "show", "datasets/stories.yaml", "--split", "test", "--count", "100", "--json")
    assert shown.returncode == 0, shown.stderr
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(records) == 100
    later = 0
    for record in records:
        for mention in record["mentions"]:
            place = mention["position"]
            assert record["tokens"][place - 1 : place + 1] == record["names"][mention["character"]]
            later += mention["mention"] > 1
    assert later >= 300


# --- hints ---

KINDS = pytest.mark.parametrize(
    "recipe",
    [Stories(refrains=1.0), Stories(tokens=Bytes(), length=(400, 600)), Stories(tokens=Bpe(), length=(150, 250))],
    ids=["words", "bytes", "bpe"],
)


def written_by_hand(task: StoryTask, plain: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """A story with its hints, the places of the hints, and what its second tokens' places have become."""
    known = len(task.source.tokenizer.vocabulary)
    mentions = {mention["position"] for mention in plain["mentions"]}
    tokens: list[int] = []
    hints, places = [], []
    for place, token in enumerate(plain["tokens"]):
        tokens.append(token)
        if place in mentions:
            places.append(len(tokens) - 1)
            said = task.vocabulary.index(f"[{task.vocabulary[tokens[-2]]}]" if task.hint == "name" else "[]", known)
            hints += [len(tokens), len(tokens) + 1]
            tokens += [said, said]
    return tokens, hints, places


@KINDS
@pytest.mark.parametrize("hint", ["filler", "name"])
def test_hints_stand_behind_names_and_change_nothing_else(recipe: Stories, hint: Any) -> None:
    plain, task = recipe.build(), recipe.model_copy(update={"hint": hint}).build()
    assert task.vocabulary[: len(plain.vocabulary)] == plain.vocabulary
    assert len(set(task.vocabulary)) == len(task.vocabulary)
    assert task.token_types == (*plain.token_types, "hint")
    for split in ("train", "validation", "test"):
        indices = np.arange(0, 200, 3)
        without, examples = (each.examples(split, indices, 5) for each in (plain, task))
        np.testing.assert_array_equal(examples.fingerprints, without.fingerprints)
        assert examples.lengths.max() == examples.tokens.shape[1] <= task.max_length(split)
        for row in range(len(indices)):
            record, before = task.record(examples, row), plain.record(without, row)
            tokens, hints, places = written_by_hand(task, before)
            assert record["tokens"] == tokens
            assert [mention["position"] for mention in record["mentions"]] == places
            assert record["names"] == before["names"]
            assert re.sub(r"\[[^\[\]]*\]", "", record["text"]) == before["text"]
            untrained = set(hints[::2]) | set(range(len(tokens), examples.tokens.shape[1]))
            assert np.flatnonzero(~examples.loss_mask[row]).tolist() == sorted(untrained)
            later = [mention["mention"] > 1 for mention in before["mentions"]]
            assert np.flatnonzero(examples.score_mask[row]).tolist() == np.array(places)[later].tolist()
            kinds = np.delete(task.token_type(examples)[row], hints)[: len(before["tokens"])]
            np.testing.assert_array_equal(kinds, plain.token_type(without)[row, : len(before["tokens"])])
            assert (task.token_type(examples)[row, hints] == 4).all()


def test_a_hint_is_read_where_it_was_written() -> None:
    task = Stories(hint="name").build()
    record = task.record(task.examples("test", np.arange(1), 0), 0)
    for name, tokens in record["names"].items():
        first = f"[{task.vocabulary[tokens[0]]}]"
        times = sum(mention["character"] == name for mention in record["mentions"])
        assert record["text"].count(f"{name}{first}{first}") == times > 0


def test_who_has_to_say_a_hint() -> None:
    """The next token's head has just read it; the second head stands at the name's second token."""
    task = Stories(hint="name").build()
    examples = task.examples("train", np.arange(40), 0)
    batch = packed_batch(examples, 300, 2)
    hints = batch.tokens >= len(task.source.tokenizer.vocabulary)
    near, far = (targets(batch, offset, 300) for offset in (1, 2))
    rows, places = torch.nonzero(hints[:, :300] & hints[:, 1:301], as_tuple=True)  # the first of two
    assert len(rows) == (examples.token_features["mention"] > 0).sum()
    assert torch.equal(near[rows, places], batch.tokens[rows, places])
    assert torch.equal(far[rows, places - 1], batch.tokens[rows, places])
    assert (near[rows, places - 1] == -100).all()
    assert (far[rows, places - 2] == -100).all()
    said = [f"[{task.vocabulary[first]}]" for first in batch.tokens[rows, places - 2].tolist()]
    assert [task.vocabulary[token] for token in far[rows, places - 1].tolist()] == said


def test_names_are_never_neighbours() -> None:
    """The bound on a story with hints rests on it: each name is two tokens, and a third is behind it."""
    for recipe in (Stories(pronouns=0.0), Stories(tokens=Bytes(), length=(400, 600), pronouns=0.0)):
        examples = recipe.build().examples("train", np.arange(3000), 0)
        name = examples.token_features["character"] > 0
        rows, seconds = np.nonzero(examples.token_features["mention"])
        assert not name[rows, seconds + 1].any()
        assert (seconds + 1 < examples.lengths[rows]).all()


def test_hints_do_not_move_scores() -> None:
    for hint in ("filler", "name"):
        task = Stories(hint=hint, names=Names(fresh=0.5)).build()
        known = {
            task.vocabulary.index(name[1])
            for names in pairs(task, task.examples("train", np.arange(2000), 0))
            for name in names
        }
        plain = Stories(names=Names(fresh=0.5)).build()
        assert scores(task, induction(task, known)) == scores(plain, induction(plain, known))
    examples = task.examples("test", np.arange(200), 0)
    predicted = np.where(examples.token_features["hint"], 0, examples.tokens).astype(np.uint16)
    rows = task.score(examples, predicted, np.ones(examples.fingerprints.shape, np.bool_))
    assert {row["second_token_accuracy"] for row in rows} == {1.0}


def digest(recipe: Stories, split: Any) -> str:
    examples = recipe.build().examples(split, np.arange(64), 0)
    parts = [examples.tokens.astype("<u2"), examples.lengths.astype("<i8"), examples.loss_mask, examples.score_mask]
    return hashlib.sha256(
        b"".join(part.tobytes() for part in [*parts, examples.fingerprints.astype("<u8")])
    ).hexdigest()[:16]


@pytest.mark.parametrize(
    ("recipe", "split", "expected"),
    [
        (Stories(), "train", "2cda6f13f256ffba"),
        (Stories(), "test", "91b173e804d611de"),
        (Stories(hint="name"), "train", "06f00012e9577ea5"),
        (Stories(hint="filler"), "test", "3c6db91ad0541bc5"),
    ],
)
def test_golden_hashes(recipe: Stories, split: Any, expected: str) -> None:
    """Every result rests on these stories: if they must change, raise the config's `version`."""
    assert digest(recipe, split) == expected


# --- scores ---


class Stub:
    """A model that predicts by a rule; as much of one as evaluation asks for."""

    def __init__(self, rule: Predictor, vocabulary: int) -> None:
        self.rule, self.vocabulary = rule, vocabulary
        self.decoder = self
        self.objective = SimpleNamespace(logits=self.logits)

    def parameters(self) -> Iterator[torch.Tensor]:
        yield torch.zeros(1)

    def context(self, tokens: torch.Tensor, _: None) -> None:
        return None

    def __call__(self, tokens: torch.Tensor, _: None) -> torch.Tensor:
        return torch.tensor([self.rule(row) for row in tokens.tolist()])

    def logits(self, _: object, hidden: torch.Tensor, __: None, heads: int) -> Iterator[torch.Tensor]:
        assert heads == 1
        yield torch.nn.functional.one_hot(hidden, self.vocabulary).float()


def scores(task: StoryTask, rule: Predictor, trained: int = 3000) -> list[ScoreRow]:
    """The score table of a rule on all test stories; what is seen is what `trained` stories have."""
    examples = task.examples("test", np.arange(task.size("test") or 0), 0)
    seen = np.isin(examples.fingerprints, task.examples("train", np.arange(trained), 0).fingerprints)
    return evaluate(cast(LanguageModel, Stub(rule, len(task.vocabulary))), task, examples, seen)


def whole(rows: list[ScoreRow]) -> dict[str, ScoreRow]:
    """The rows of all fresh, and of all pool names."""
    return {
        row["names"]: row
        for row in rows
        if {row[each] for each in ("mention", "characters", "tokens", "seen")} == {"all"}
    }


def name_runs(task: StoryTask, tokens: list[int]) -> Iterator[tuple[int, int]]:
    """The first and the last place of each run of syllables."""
    syllables = set(np.unique(task.name_sampler.tokens).tolist())
    first = 0
    while first < len(tokens):
        last = first
        while last < len(tokens) and tokens[last] in syllables:
            last += 1
        if last > first:
            yield first, last - 1
        first = last + 1


def induction(task: StoryTask, known: set[int]) -> Predictor:
    """After a name's first token: what followed it when it last began a name, if it is among `known`."""

    def rule(tokens: list[int]) -> list[int]:
        predicted, followed = [0] * len(tokens), dict[int, int]()
        for first, last in name_runs(task, tokens):
            answer = followed.get(tokens[first], 0)
            predicted[first] = answer if answer in known else 0
            if last == first + 1:
                followed[tokens[first]] = tokens[last]
        return predicted

    return rule


@pytest.mark.parametrize("unseen", [0.0, 0.4])
def test_perfect_induction_scores_the_oracle(unseen: float) -> None:
    task = Stories(names=Names(unseen=unseen, fresh=0.5), test_examples=300).build()
    known = {
        task.vocabulary.index(name[1])
        for names in pairs(task, task.examples("train", np.arange(3000), 0))
        for name in names
    }
    rows = scores(task, induction(task, known))
    for row in rows:
        assert row["second_token_accuracy"] == row["oracle"]
    fresh, pool = whole(rows)["fresh"], whole(rows)["pool"]
    assert pool["oracle"] == 1
    assert fresh["oracle"] == 1 if not unseen else abs(fresh["oracle"] - 0.6) < 0.05
    assert fresh["count"] == task.examples("test", np.arange(300), 0).score_mask.sum()


def test_copying_any_character_scores_its_level() -> None:
    task, random = Stories(test_examples=300).build(), np.random.default_rng(0)

    def rule(tokens: list[int]) -> list[int]:
        predicted, seconds = [0] * len(tokens), dict[tuple[int, int], int]()
        for first, last in name_runs(task, tokens):
            if seconds:
                predicted[first] = int(random.choice(list(seconds.values())))
            if last == first + 1:
                seconds[tokens[first], tokens[last]] = tokens[last]
        return predicted

    for row in whole(scores(task, rule)).values():
        spread = 5 * np.sqrt(0.25 / row["count"])
        assert abs(row["second_token_accuracy"] - row["class_copying"]) < spread
        assert row["any_character"] == 1
        assert 0.3 < row["class_copying"] < 0.95


def test_a_bigram_table_knows_the_pool_alone() -> None:
    task = Stories(names=Names(ambiguity=1, fresh=0.05), refrains=0.1, test_examples=200).build()
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    training = task.examples("train", np.arange(4000), 0)
    for row, length in zip(training.tokens.tolist(), training.lengths.tolist(), strict=True):
        for token, following in pairwise(row[:length]):
            counts[token][following] += 1
    best = {token: following.most_common(1)[0][0] for token, following in counts.items()}
    found = whole(scores(task, lambda tokens: [best.get(token, 0) for token in tokens]))
    for kind, start in (("fresh", 0), ("pool", 200)):
        right = [
            best.get(record["tokens"][mention["position"] - 1], 0) == record["tokens"][mention["position"]]
            for record in (task.record(task.examples("test", np.array([start + k]), 0), 0) for k in range(200))
            for mention in record["mentions"]
            if mention["mention"] > 1
        ]
        assert found[kind]["count"] == len(right)
        assert found[kind]["second_token_accuracy"] == pytest.approx(np.mean(right))
    assert found["pool"]["second_token_accuracy"] > 0.95
    assert found["fresh"]["second_token_accuracy"] < 0.05
    assert found["fresh"]["chance"] == pytest.approx(1 / 180)


def test_a_pool_of_which_few_names_take_all_still_names_everyone() -> None:
    task = Stories(characters=(4, 4), names=Names(zipf=10.0, fresh=0.0, ambiguity=20)).build()
    examples = task.examples("train", np.arange(500), 0)
    assert task.examples("test", np.arange(200), 0).score_mask.any()
    for row in range(50):
        names = list(task.record(examples, row)["names"].values())
        assert len({first for first, _ in names}) == len(names)
