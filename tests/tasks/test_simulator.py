"""The simulator: every story makes sense, is a pure function of its index, keeps to its length, and is its own."""

import hashlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lab.errors import BadInput
from lab.tasks.base import SPLITS, Split
from lab.tasks.stories import phrases
from lab.tasks.stories.induction import StoryTask
from lab.tasks.stories.simulation import MOST_CHARACTERS
from lab.tasks.stories.simulator import Simulator
from lab.tasks.stories.task import Stories
from lab.tasks.tokenizers import Bpe, Bytes, pieces
from tests.tasks.retelling import Wrong, retold

TASK = Stories().build()
GOLDEN = Path(__file__).parent / "data" / "stories.golden.txt"


def records(task: StoryTask, split: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    examples = task.examples(split, np.arange(count), seed)
    return [task.record(examples, row) for row in range(count)]


# --- phrases ---


def test_phrases_fit_their_slots() -> None:
    words = [*phrases.KINDS, *phrases.TOYS, *phrases.FOODS, *phrases.LOOKS, *phrases.TASTES, *phrases.MOODS]
    words += [*phrases.WEATHERS, *phrases.DREAMS, *phrases.TRAITS]
    assert all(re.fullmatch("[b-df-hj-np-tv-z][a-z]+", word) for word in words)  # "a", never "an"
    assert all(place.isalpha() and place.islower() for place in phrases.PLACES)
    for group in (phrases.TOYS + phrases.FOODS, phrases.LOOKS, phrases.TASTES, phrases.MOODS, phrases.DREAMS):
        assert len(set(group)) == len(group)
    assert not set(phrases.DREAMS) & {*phrases.KINDS, *phrases.TOYS, *phrases.FOODS, *phrases.PLACES}
    assert not set(phrases.KINDS) & {*phrases.TOYS, *phrases.FOODS}
    assert len([text for text in TASK.vocabulary if text.isalpha()]) - 225 <= 600


@pytest.mark.parametrize("event", phrases.EVENTS)
def test_sentences_are_well_formed(event: str) -> None:
    weight, told = phrases.EVENTS[event]
    assert weight > 0
    assert len(set(told)) == len(told) >= 3
    for text in told:
        assert re.search(r"[.!?]\"?$", text)
        assert text.count('"') % 2 == 0
        assert "  " not in text
        assert not re.search(r"\ban? [aeiou]|\ban \{", text)
        assert not re.search(r"\{[ABDSN]\} ?\{(?:[ABDSN]|magic)\}", text)  # two names in a row would read as one run
        assert not re.search(r".\{[SN]\}", text)
        for slot, preposition in (("p", "in"), ("q", "inq"), ("q", "Inq")):
            for found in re.finditer(rf"\{{{preposition}\}}", text):
                assert text[found.end() :].startswith(f" the {{{slot}}}")


# --- sense ---


@pytest.mark.parametrize(
    ("recipe", "count"),
    [
        (Stories(), 300),
        (Stories(pronouns=1.0, characters=(2, 4), length=(100, 250)), 200),
        (Stories(pronouns=0.0, refrains=1.0), 100),
        (Stories(characters=(3, 4), length=(200, 300)), 100),
        (Stories(characters=(4, 4), length=(1000, 1500), pronouns=0.6, refrains=0.0), 60),
        (Stories(characters=(1, 1), length=(64, 64), refrains=1.0), 50),
    ],
    ids=["default", "pronouns", "names", "many", "long", "alone"],
)
def test_every_sentence_follows_from_those_before(recipe: Stories, count: int) -> None:
    task, events, again = recipe.build(), Counter[str](), set[str]()
    for record in records(task, "train", count, seed=1):
        reader = retold(record["text"], set(record["names"]))
        told, again = reader.told, again | reader.again
        events.update(sentence.event for sentence in told)
        assert recipe.characters[0] == 1 or len(record["names"]) <= recipe.characters[1]
        if recipe.pronouns == 0.0:
            assert not re.search(r"\b(?:He|She)\b", record["text"])
        if recipe.refrains == 0.0:
            assert all(sentence.event != "magic" for sentence in told)
        if recipe.length[0] >= 1000:
            assert len(record["names"]) == recipe.characters[1]
    if recipe.length[0] >= 1000:
        assert len(events) >= len(phrases.EVENTS) - 3  # all of them happen, but for the rare
        assert again >= {"wish comes true", "ask", "grant"}  # a wish that came true is over


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('Do you know Mira? Mira was a shy fox who lived in the barn. "What a day!" said Mira, and went to bed.', ""),
        ("Do you know Mira? Mira was a shy fox who lived on the barn. Good night, Mira!", "prepositions"),
        ("Do you know Mira? Mira was a shy fox who lived in the barn. Mira saw a ball.", "no event"),
        ("Do you know Mira? Mira was a shy fox who lived in the barn. Mira was proud of the red ball.", "has it"),
        (
            "Do you know Mira? Mira was a shy fox who lived in the barn. One day she hugged Sola in the barn.",
            "introduced",
        ),
        (
            "Do you know Mira? Mira was a shy girl who lived in the barn. One day Mira met a merry princess called "
            "Sola in the barn. Mira hugged Sola in the barn. She went slowly to the lake. Good night, Mira!",
            "could mean",
        ),
    ],
)
def test_the_reader_notices(text: str, reason: str) -> None:
    names = {"Mira", "Sola"} if "Sola" in text else {"Mira"}
    if not reason:
        retold(text, names)
    else:
        with pytest.raises(Wrong, match=reason):
            retold(text, names)


def test_golden_stories() -> None:
    assert [record["text"] for record in records(TASK, "test", 20)] == GOLDEN.read_text().splitlines()


# --- variety ---


def masked(task: StoryTask, count: int) -> list[list[int]]:
    """The words of training stories without marks, names as one symbol."""
    templates = task.source.templates("train", np.arange(count), 0)
    marks = {token for token, text in enumerate(task.vocabulary) if not text.isalpha()}
    return [
        [
            -1 if slot else token
            for token, slot in zip(tokens[: n - 1], slots[: n - 1], strict=True)
            if token not in marks or slot
        ]
        for tokens, slots, n in zip(
            templates.tokens.tolist(), templates.slots.tolist(), templates.lengths.tolist(), strict=True
        )
    ]


def test_stories_share_no_long_text() -> None:
    stories = [
        [word for word, before in zip(story, [0, *story], strict=False) if word != -1 or before != -1]
        for story in masked(TASK, 5000)
    ]
    for words, share in ((24, 0.01), (36, 0.0)):
        owners: dict[tuple[int, ...], set[int]] = {}
        for story, told in enumerate(stories):
            for start in range(len(told) - words + 1):
                owners.setdefault(tuple(told[start : start + words]), set()).add(story)
        sharing = set[int]().union(*(each for each in owners.values() if len(each) > 1))
        assert len(sharing) <= share * len(stories)


def test_characters_come_early_and_are_named_often() -> None:
    examples = TASK.examples("train", np.arange(3000), 0)
    later, characters = examples.score_mask.sum(axis=1), examples.slices["characters"]
    assert later.mean() >= 4
    assert TASK.examples("test", np.arange(100), 0).score_mask.sum() >= 300
    shares = np.bincount(characters, minlength=5)[1:] / len(characters)
    assert (shares > [0.1, 0.1, 0.1, 0.05]).all()
    for cast in (3, 4):
        task = Stories(characters=(cast, cast)).build()
        met = task.source.templates("train", np.arange(1000), 0).characters
        assert met.max() == cast
        assert met.mean() > 0.7 * cast


def test_refrains_come_back() -> None:
    def sung(refrains: float) -> NDArray[np.int64]:
        slots = Stories(refrains=refrains).build().source.templates("train", np.arange(2000), 0).slots
        return np.asarray((slots == 1 + 2 * MOST_CHARACTERS).sum(axis=1))

    assert (sung(1.0) >= 2).mean() > 0.6  # short stories may end before
    assert (sung(1.0) >= 1).mean() > 0.85
    assert (sung(0.3) >= 1).mean() == pytest.approx(0.3 * (sung(1.0) >= 1).mean(), abs=0.04)
    assert not sung(0.0).any()


# --- tokens ---


def bpe() -> Stories:
    return Stories(tokens=Bpe(), length=(150, 250))


@pytest.mark.parametrize("recipe", [Stories(tokens=Bytes(), length=(400, 600)), bpe()], ids=["bytes", "bpe"])
def test_text_and_tokens_say_the_same(recipe: Stories) -> None:
    task = recipe.build()
    for record in records(task, "train", 100) + records(task, "test", 20):
        encoded = task.source.tokenizer.encode(pieces(record["text"]))
        assert [token for each in encoded for token in each] + [task.source.tokenizer.end] == record["tokens"]


def test_words_and_tokens_say_the_same() -> None:
    ids = {text: token for token, text in enumerate(TASK.vocabulary)}
    for record in records(TASK, "train", 200) + records(TASK, "test", 50):
        tokens = record["tokens"]
        place = 0
        for piece in map(str.strip, pieces(record["text"])):
            if piece in ids:
                assert tokens[place] == ids[piece]
                place += 1
            elif piece:  # a name: its two syllables
                assert "".join(TASK.vocabulary[token] for token in tokens[place : place + 2]).capitalize() == piece
                place += 2
        assert tokens[place:] == [TASK.source.tokenizer.end]


@pytest.mark.parametrize(
    "recipe",
    [Stories(), Stories(length=(70, 70)), Stories(tokens=Bytes(), length=(400, 600)), bpe()],
    ids=["words", "exact", "bytes", "bpe"],
)
def test_lengths_keep_to_their_bounds(recipe: Stories) -> None:
    task = recipe.build()
    examples = task.examples("train", np.arange(2000), 0)
    simulator = task.source
    assert isinstance(simulator, Simulator)
    sentence = max(simulator._longest(event) for event in phrases.EVENTS)
    assert examples.lengths.max() <= recipe.length[1] == task.max_length("train")
    # What did not fit was a sentence, and the end took less than the room kept for it.
    assert examples.lengths.min() >= recipe.length[0] - sentence - simulator._reserve
    assert np.quantile(examples.lengths, 0.02) >= recipe.length[0] - sentence
    assert np.array_equal(examples.loss_mask, np.arange(examples.tokens.shape[1]) < examples.lengths[:, None])
    assert (examples.tokens[~examples.loss_mask] == 0).all()
    ends = examples.tokens[np.arange(2000), examples.lengths - 1]
    assert (ends == task.source.tokenizer.end).all()


def test_too_short_for_a_story() -> None:
    with pytest.raises(BadInput, match=r"task\.length: \[20, 100\] is not allowed: .* up to \d+"):
        Stories(length=(20, 100)).build()


# --- purity ---


@given(st.lists(st.integers(0, 2**40), max_size=12), st.sampled_from(SPLITS), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_a_story_is_a_pure_function_of_its_index(indices: list[int], split: Split, seed: int) -> None:
    if split != "train":
        indices = [index % 200 for index in indices]
    together = TASK.examples(split, np.array(indices, np.int64), seed)
    assert len(together.tokens) == len(together.lengths) == len(together.fingerprints) == len(indices)
    for row, index in enumerate(indices):
        alone = TASK.examples(split, np.array([index]), seed)
        assert TASK.record(alone, 0) == TASK.record(together, row)
        assert np.array_equal(alone.fingerprints[0], together.fingerprints[row])
        assert all(alone.slices[name][0] == together.slices[name][row] for name in alone.slices)


@pytest.mark.parametrize("split", SPLITS)
def test_the_seed_moves_training_alone(split: Split) -> None:
    first, second = (records(TASK, split, 20, seed) for seed in (0, 1))
    assert (first == second) == (split != "train")
    if split == "train":
        assert not {each["text"] for each in first} & {each["text"] for each in second}


def test_splits_differ() -> None:
    texts = [{each["text"] for each in records(TASK, split, 100)} for split in SPLITS]
    assert len(set[str]().union(*texts)) == 300


def digest(recipe: Stories) -> str:
    """A hash of some stories of every split."""
    task, text = recipe.build(), hashlib.blake2b(digest_size=8)
    for split in SPLITS:
        examples = task.examples(split, np.arange(64), 7)
        for array in (
            examples.tokens.astype("<u2"),
            examples.lengths.astype("<i8"),
            examples.fingerprints.astype("<u8"),
        ):
            text.update(np.ascontiguousarray(array).tobytes())
    return text.hexdigest()


def test_golden_hashes() -> None:
    assert digest(Stories()) == "b355ee397738fce4"
    assert digest(Stories(tokens=Bytes(), length=(400, 600))) == "fa6438051cf4a7dc"


def test_bpe_is_the_same_in_another_process() -> None:
    code = "from tests.tasks.test_simulator import bpe, digest; print(digest(bpe()))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert ran.stdout.strip() == digest(bpe())
