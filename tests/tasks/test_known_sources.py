"""Choice points and agreement: what they draw, against plain retellings; entropies, against enumeration and samples."""

import hashlib
import itertools
import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lab.config import validated
from lab.errors import BadInput
from lab.tasks.agreement import Agreement
from lab.tasks.base import HasEntropies
from lab.tasks.choices import Choices, Station

Document = tuple[str, ...]


def steps(branches: int, entropy: float | None) -> list[float]:
    """P(D = j) by a search over a grid, without the task's."""
    if entropy is None:
        return [1 / branches] * branches

    def distribution(beta: float) -> Any:
        weights = np.exp(-beta * np.arange(branches))
        return weights / weights.sum()

    def nats(beta: float) -> float:
        return float(-sum(p * math.log(p) for p in distribution(beta) if p > 0))

    low, high = 0.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if nats(middle) > entropy else (low, middle)
    return list(distribution(low))


def circuits(task: Choices) -> dict[Document, float]:
    """Every document of a small circuit with its probability, told station by station."""
    names = "ABC"
    found: dict[Document, float] = defaultdict(float)
    ways = [list(itertools.product(range(station.branches), repeat=task.laps)) for station in task.stations]
    laws = [steps(station.branches, station.entropy) for station in task.stations]
    for start in range(len(task.stations)):
        for taken in itertools.product(*ways):
            probability = 1 / len(task.stations)
            for branches, distribution in zip(taken, laws, strict=True):
                probability /= len(distribution)
                for last, now in itertools.pairwise(branches):
                    probability *= distribution[(now - last - 1) % len(distribution)]
            words: list[str] = []
            for place in range(task.laps * len(task.stations)):
                number = (start + place) % len(task.stations)
                station, name = task.stations[number], names[number]
                branch = taken[number][place // len(task.stations)]
                words += [f"{name.lower()}{step + 1}" for step in range(task.road)]
                parts = [""] if station.span == 1 else [f".{part + 1}" for part in range(station.span)]
                words += [f"{name}{branch}{part}" for part in parts]
            found[tuple(words)] += probability
    return dict(found)


_FORMS = {
    "nominative": {"masculine": ("der", "e"), "feminine": ("die", "e"), "neuter": ("das", "e")},
    "accusative": {"masculine": ("den", "en"), "feminine": ("die", "e"), "neuter": ("das", "e")},
    "dative": {"masculine": ("dem", "en"), "feminine": ("der", "en"), "neuter": ("dem", "en")},
    "genitive": {"masculine": ("des", "en"), "feminine": ("der", "en"), "neuter": ("des", "en")},
}
"""Article and ending of the adjective, as a grammar has them."""


def clauses(task: Agreement, words: Any) -> dict[Document, float]:
    """Every clause with its probability; `words` has stems, nouns by gender, adverbs, verbs by case."""
    found: dict[Document, float] = {}
    for case, gender in itertools.product(_FORMS, ("masculine", "feminine", "neuter")):
        article, ending = _FORMS[case][gender]
        slots = [
            [article], *[[stem + ending for stem in words["stems"]]] * task.adjectives, words["nouns"][gender],
            *[words["adverbs"]] * task.adverbs, words["verbs"][case], ["."],
        ]  # fmt: skip
        share = 1 / (12 * math.prod(map(len, slots)))
        for told in itertools.product(*slots):
            found[told] = share
    return found


def lexicon() -> dict[str, Any]:
    """The words of the task, by what documents show of them."""
    task = Agreement(clauses=1).build()
    examples = task.examples("train", np.arange(4000), 0)
    words: dict[str, Any] = {"stems": set(), "nouns": defaultdict(set), "adverbs": set(), "verbs": defaultdict(set)}
    for row in range(4000):
        record = task.record(examples, row)
        _, adjective, noun, adverb, verb, _ = record["text"].split()
        [clause] = record["clauses"]
        words["stems"].add(adjective.removesuffix(_FORMS[clause["case"]][clause["gender"]][1]))
        words["nouns"][clause["gender"]].add(noun)
        words["adverbs"].add(adverb)
        words["verbs"][clause["case"]].add(verb)
    return words


def conditional(documents: dict[Document, float], ahead: int) -> dict[Document, float]:
    """H(x_{t+ahead} | x_1..x_t) for every beginning x_1..x_t, by adding up."""
    counts: dict[Document, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for document, probability in documents.items():
        for end in range(1, len(document) - ahead + 1):
            counts[document[:end]][document[end + ahead - 1]] += probability
    found = {}
    for beginning, parts in counts.items():
        total = sum(parts.values())
        found[beginning] = -sum(p / total * math.log(p / total) for p in parts.values() if p > 0)
    return found


CIRCUITS = [
    Choices(stations=[Station(branches=2, span=1, entropy=0.3), Station(branches=3, span=2)], road=1, laps=2),
    Choices(stations=[Station(branches=3, span=3, entropy=0.7)], road=2, laps=4),
    Choices(stations=[Station(branches=2, span=2, entropy=0.0), Station(branches=2, entropy=0.6)], road=1, laps=3),
]


@pytest.mark.parametrize("config", CIRCUITS, ids=["two stations", "one station", "a certain one"])
def test_entropies_of_choices_are_those_of_enumeration(config: Choices) -> None:
    task, documents, n = config.build(), circuits(config), 9
    examples = task.examples("train", np.arange(60), 0)
    assert isinstance(task, HasEntropies)
    found = task.entropies(examples, n)
    texts = [tuple(task.text(row.tolist()).split()) for row in examples.tokens]
    for ahead in range(1, n + 1):
        true = conditional(documents, ahead)
        for row, text in enumerate(texts):
            for end in range(1, len(text) - ahead + 1):
                assert found[row, end - 1, ahead - 1] == pytest.approx(true[text[:end]], abs=1e-6)
        assert np.isnan(found[:, len(texts[0]) - ahead :, ahead - 1]).all()


@pytest.mark.parametrize("config", CIRCUITS[:2], ids=["two stations", "one station"])
def test_choices_are_drawn_as_often_as_they_should(config: Choices) -> None:
    task, documents = config.build(), circuits(config)
    examples = task.examples("train", np.arange(40_000), 3)
    counts = Counter(tuple(task.text(row.tolist()).split()) for row in examples.tokens)
    assert counts.keys() <= documents.keys()
    order = sorted(documents)
    expected = np.array([documents[each] for each in order]) * 40_000
    keep = expected > 5
    seen = np.array([counts[each] for each in order])
    observed, wanted = (np.append(each[keep], each[~keep].sum() + 1e-9) for each in (seen, expected))
    assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("config", [*CIRCUITS[:2], Agreement(clauses=1)], ids=["two stations", "one", "agreement"])
def test_entropies_are_what_long_samples_have(config: Choices | Agreement, ahead: int) -> None:
    """What tokens of many documents say to one who knows the distribution, on average: within four standard errors."""
    task, count = config.build(), 20_000
    distribution = circuits(config) if isinstance(config, Choices) else clauses(config, lexicon())
    both: dict[tuple[Document, str], float] = defaultdict(float)
    total: dict[Document, float] = defaultdict(float)
    for document, probability in distribution.items():
        for end in range(1, len(document) - ahead + 1):
            both[document[:end], document[end + ahead - 1]] += probability
            total[document[:end]] += probability
    examples = task.examples("train", np.arange(count), 1)
    floors = task.entropies(examples, ahead)[:, :-ahead, ahead - 1].sum(axis=1)
    nats = np.zeros(count)
    for row, tokens in enumerate(examples.tokens):
        text = tuple(task.vocabulary[token] for token in tokens)
        for end in range(1, len(text) - ahead + 1):
            nats[row] -= math.log(both[text[:end], text[end + ahead - 1]] / total[text[:end]])
    off = nats - floors
    assert abs(off.mean()) < 4 * off.std() / math.sqrt(count) + 1e-9


@pytest.mark.parametrize(("adjectives", "adverbs"), [(1, 1), (0, 2), (2, 0)])
def test_entropies_of_agreement_are_those_of_enumeration(adjectives: int, adverbs: int) -> None:
    config = Agreement(adjectives=adjectives, adverbs=adverbs, clauses=2)
    task, words, length = config.build(), lexicon(), 3 + adjectives + adverbs
    # of words that show the same, one stands for all: its entropy is the logarithm of their number more
    few = {
        "stems": sorted(words["stems"])[:2], "adverbs": sorted(words["adverbs"])[:2],
        "nouns": {gender: sorted(nouns)[:2] for gender, nouns in words["nouns"].items()},
        "verbs": {case: sorted(verbs)[:2] for case, verbs in words["verbs"].items()},
    }  # fmt: skip
    more = {"stem": math.log(8 / 2), "noun": math.log(8 / 2), "adverb": math.log(8 / 2), "verb": math.log(4 / 2)}
    plan = ["", *["stem"] * adjectives, "noun", *["adverb"] * adverbs, "verb", ""]
    one = clauses(config, few)
    kept = set(itertools.chain.from_iterable(one))
    examples = task.examples("train", np.arange(8000), 0)
    texts = [task.text(row.tolist()).split() for row in examples.tokens]
    rows = [row for row, text in enumerate(texts) if set(text[: length + 1]) <= kept][:20]
    assert len(rows) >= 5
    found = task.entropies(examples, length)
    for ahead in range(1, length + 1):
        true = conditional(one, ahead)
        for row in rows:
            for end in range(1, length + 2 - ahead):
                expected = true[tuple(texts[row][:end])] + more.get(plan[end + ahead - 1], 0.0)
                assert found[row, end - 1, ahead - 1] == pytest.approx(expected, abs=1e-9)
    # Of the next clause nothing is known: its article is one of six, as often as the grammar has it.
    forms = Counter(form for row in _FORMS.values() for form, _ in row.values())
    first = -sum(count / 12 * math.log(count / 12) for count in forms.values())
    assert found[0, length, 0] == pytest.approx(first)


def test_agreement_is_german() -> None:
    task = Agreement(adjectives=1, clauses=4).build()
    examples = task.examples("train", np.arange(500), 1)
    pairs: Counter[tuple[str, str]] = Counter()
    for row in range(500):
        record = task.record(examples, row)
        words = record["text"].split()
        for number, clause in enumerate(record["clauses"]):
            article, adjective, *_ = words[6 * number :]
            form, ending = _FORMS[clause["case"]][clause["gender"]]
            assert article == form
            assert adjective.endswith("en") == (ending == "en")
            pairs[clause["case"], clause["gender"]] += 1
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-4
    assert len(pairs) == 12


@pytest.mark.parametrize("config", [Choices(), Agreement()], ids=["choices", "agreement"])
def test_examples_are_a_function_of_their_index(config: Choices | Agreement) -> None:
    task = config.build()
    whole = task.examples("train", np.arange(50), 4)
    some = task.examples("train", np.array([41, 3]), 4)
    assert (some.tokens == whole.tokens[[41, 3]]).all()
    assert (task.examples("train", np.arange(50), 5).tokens != whole.tokens).any()
    assert (task.examples("test", np.arange(9), 4).tokens == task.examples("test", np.arange(9), 5).tokens).all()
    assert task.token_type(whole).max() < len(task.token_types)
    with pytest.raises(IndexError):
        task.examples("test", np.array([500]), 0)


def test_golden_documents() -> None:
    """A change here is a new meaning of the same recipe: raise the config's version."""
    choices, agreement = Choices().build(), Agreement().build()
    told = choices.examples("train", np.arange(2), 0).tokens.astype("<u2").tobytes()
    said = agreement.examples("train", np.arange(2), 0).tokens.astype("<u2").tobytes()
    assert [hashlib.sha256(each).hexdigest()[:16] for each in (told, said)] == GOLDEN


GOLDEN = ["b3a498ccc8bc426d", "ee79056db438589a"]


def test_records_name_the_choices() -> None:
    task = CIRCUITS[0].build()
    examples = task.examples("train", np.arange(20), 0)
    for row in range(20):
        record = task.record(examples, row)
        words = record["text"].split()
        for choice in record["choices"]:
            word = words[choice["position"]]
            assert word.startswith("AB"[choice["station"]] + str(choice["branch"]))
            assert examples.horizons is not None
            assert examples.horizons[row, choice["position"]] == choice["span"]
        assert len(record["choices"]) == 4
        assert examples.horizons is not None
        assert (examples.horizons[row] > 1).sum() == 2


@pytest.mark.parametrize("config", [CIRCUITS[1], Agreement(clauses=2)], ids=["choices", "agreement"])
def test_scores(config: Choices | Agreement) -> None:
    """Those who know the answer score 1, those who never say a word of the slot 0, and the oracle its level."""
    task = config.build()
    examples = task.examples("test", np.arange(200), 0)
    seen = np.zeros((200, 0), np.bool_)
    right, wrong = (task.score(examples, each, seen) for each in (examples.tokens, np.zeros_like(examples.tokens)))
    assert {row[task.metric] for row in right} == {1.0}
    assert {row[task.metric] for row in wrong} == {0.0}
    assert task.summary(right)[task.metric] == 1.0
    if isinstance(config, Choices):
        guess = examples.tokens.copy()
        for row, place in zip(*np.nonzero(examples.score_mask), strict=True):
            before = task.vocabulary[examples.tokens[row, place - 5]]  # a lap of 2 + 3 tokens
            guess[row, place] = task.vocabulary.index(f"A{(int(before[1]) + 1) % 3}.1")
        [row] = [row for row in task.score(examples, guess, seen) if row["station"] == "all"]
        assert row["choice_accuracy"] == pytest.approx(row["oracle"], abs=0.06)
        assert row["oracle"] == pytest.approx(max(steps(3, 0.7)), abs=1e-6)
        assert row["chance"] == pytest.approx(1 / 3)


@given(st.integers(2, 64), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_entropy_of_a_choice_is_the_one_asked_for(branches: int, share: float) -> None:
    asked = share * math.log(branches)
    distribution = Station(branches=branches, entropy=asked).steps()
    assert distribution.sum() == 1
    assert (np.diff(distribution) <= 2**-31).all()  # each step further is at most as likely, but for rounding
    assert -sum(p * math.log(p) for p in distribution if p > 0) == pytest.approx(asked, abs=1e-6)


@pytest.mark.parametrize(
    ("config", "fields", "line"),
    [
        (Choices, {"stations": []}, "stations: [] is not allowed: should have at least 1 item"),
        (
            Choices, {"stations": [{"branches": 4, "entropy": 2.0}]},
            "stations.0.entropy: 2.0 is not allowed with 4 branches: at most 1.3862 nats",
        ),
        (Choices, {"stations": [{"branches": 1}]}, "stations.0.branches: 1 is not allowed"),
        (Choices, {"stations": [{"spam": 2}]}, "stations.0.spam: unknown field"),
        (Choices, {"laps": 1}, "laps: 1 is not allowed"),
        (Agreement, {"adjectives": -1}, "adjectives: -1 is not allowed"),
    ],
)  # fmt: skip
def test_bad_fields(config: Any, fields: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput) as error:
        validated(config, fields)
    assert str(error.value).startswith(line)
