"""Real text: what is read, which words are names, how stories are parted and split; and the cache they are kept in."""

import logging
import multiprocessing
import os
import pickle
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lab.config import canonical, validated
from lab.errors import BadInput, Failure
from lab.experiments.experiment import experiment_from
from lab.experiments.run import execute
from lab.tasks import shards
from lab.tasks.base import Split
from lab.tasks.draws import draws
from lab.tasks.text import corpus, reading
from lab.tasks.text import task as text
from lab.tasks.text.task import Text, TextSource
from lab.tasks.tokenizers import pieces
from tests.conftest import TINY, tiny

SPLITS: tuple[Split, ...] = get_args(Split)
SEPARATOR = "\n<|endoftext|>\n"
KINDS = ("words", "bytes", "bpe")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mtp-lab"


def tale(number: int) -> str:
    """A short story of two characters, or, every fifth, of none."""
    random = draws(np.uint64(5), np.array([number]), 4)[0].tolist()
    names = ["Lily", "Tom", "Anna", "Ben", "Sue", "Max", "Zoë", "Nora", "Jack", "Mia"]
    a = names.pop(random[0] % 10)
    b = names.pop(random[1] % 9)
    thing = ["ball", "kite", "drum", "hat"][random[2] % 4]
    place = ["park", "farm", "lake"][random[3] % 3]
    if number % 5 == 0:
        return f"Story {number}. It rained at the {place}. The {thing} got wet, and that was all."
    return (
        f"Story {number}. One day, {a} went to the {place} with a {thing}. “Who are you?” {a} asked. "
        f'"I am {b}," said {b}. "Don\'t touch {a}\'s {thing}!"\nThen {b} sat down, and so did {a}. The end.'
    )


def corpus_file(folder: Path, count: int = 120) -> Path:
    path = folder / "tales.txt"
    path.write_text(SEPARATOR.join(map(tale, range(count))), encoding="utf-8")
    return path


def config(path: Path | str, **fields: Any) -> Text:
    few = {"validation_examples": 8, "test_examples": 10}
    return validated(Text, {"files": [str(path)], "tokens": {"name": "bytes"}, **few, **fields})


def told(source: TextSource, split: Split, all_of_it: bool = False) -> list[str]:
    """The stories of a split; a name's tokens as ⟨1⟩⟨2⟩ for the first character, and so on."""
    count = len(source._shards[split].characters) if all_of_it else source.stories(split)
    templates = source.templates(split, np.arange(count), 0)
    texts = []
    for tokens, slots, length in zip(templates.tokens, templates.slots, templates.lengths, strict=True):
        story = ""
        run: list[int] = []
        assert tokens[length - 1] == source.tokenizer.end
        for token, slot in [*zip(tokens[:length].tolist(), slots[:length].tolist(), strict=True), (0, 99)]:
            if slot:
                story += source.tokenizer.decode(run)
                run = []
                story += f"⟨{slot}⟩" if slot < 99 else ""
            else:
                run.append(token)
        assert not tokens[length:].any()
        assert not slots[length:].any()
        texts.append(story)
    return texts


def unnamed(story: str, names: list[str]) -> str:
    """A story with the names of its characters as `told` shows them, numbered as they come."""
    if not names:
        return story
    found: dict[str, int] = {}

    def slot(match: re.Match[str]) -> str:
        number = found.setdefault(match[0], len(found))
        return f"⟨{2 * number + 1}⟩⟨{2 * number + 2}⟩"

    return re.sub("|".join(rf"(?<![^\W\d_]){name}(?![^\W\d_])" for name in names), slot, story)


# --- which words are names ---


def names_by_hand(stories: list[str]) -> list[list[str]]:
    """The rule, story by story and letter by letter."""
    capitals = Counter(word for story in stories for word in re.findall("[A-Z][a-z]*", story))
    small = Counter(word for story in stories for word in re.findall(r"(?<![A-Za-z])[a-z]+", story))
    found = []
    for story in stories:
        times: Counter[str] = Counter()
        inside = set()
        for match in re.finditer("(?<![A-Za-z])[A-Z][a-z]+(?![A-Za-z])", story):
            times[match[0]] += 1
            if re.search(r"([a-zA-Z] |, |,)\Z", story[: match.start()]):
                inside.add(match[0])
        names = [
            name
            for name in times  # in order of first occurrence
            if times[name] >= 2
            and name in inside
            and name not in reading.NOT_NAMES
            and 100 * small[name.lower()] <= small[name.lower()] + capitals[name]
        ]
        found.append(sorted(names, key=lambda name: -times[name])[:8])
    return found


def names_found(stories: list[str]) -> list[list[str]]:
    ids: dict[str, int] = {"": 0}
    numbers = []
    for story in stories:
        numbers += [ids.setdefault(piece, len(ids)) for piece in pieces(story)] + [0]
    flat = np.array(numbers, np.uint32)
    kind = reading.kinds(list(ids), np.bincount(flat, minlength=len(ids)))
    who = reading.characters(flat, kind)
    texts, names, begin = list(ids), [], 0
    for end in np.flatnonzero(flat == 0).tolist():
        of_story: dict[int, str] = {}
        for piece, number in zip(flat[begin:end].tolist(), who[begin:end].tolist(), strict=True):
            if number:
                assert of_story.setdefault(number, texts[piece]) == texts[piece]
        names.append([of_story[number] for number in range(1, len(of_story) + 1)])
        begin = end + 1
    return names


PARTS = [
    "Lily",
    "Tom",
    "Zed",
    "Monday",
    "The",
    "the",
    "lily",
    "I",
    "Mc",
    "Mom",
    ",",
    ".",
    '"',
    " ",
    "-",
    "'s ",
    "\n",
    "4",
]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=40).map("".join), min_size=1, max_size=6),
    st.sampled_from([1, 200]),
)
@example([" ".join(f"and {a}{b}" for a in "ABCDE" for b in ("al", "bo") for _ in range(2))], 1)
@example(["a Lily Tom Tom Lily", "Lily Lily", "a Lily"], 1)
def test_names_are_those_of_the_rule(stories: list[str], often: int) -> None:
    stories += ["So Lily saw Zed. Lily, Zed."] * often  # at 200, one "lily" is within 1 %
    assert names_found(stories) == names_by_hand(stories)


@pytest.mark.parametrize(
    ("story", "names"),
    [
        ("Lily sat. Then Lily ran.", ["Lily"]),
        ("Lily sat. Lily ran.", []),  # only where sentences begin
        ("And Lily sat. The end.", []),  # once
        ('"Hi," Lily said to Lily.', ["Lily"]),
        ("It was Monday. On Monday, Mom and Mom sat.", []),
        ("I saw Lily's hat and McLily, Lily.", ["Lily"]),
        ("a Tom b Tom a Lily b Lily c Lily", ["Lily", "Tom"]),
        ("Don't go, Don't!", []),
    ],
)
def test_names(story: str, names: list[str]) -> None:
    assert names_found([story]) == [names]


def test_words_that_are_often_small_are_no_names() -> None:
    story = "A Rose and a Rose."
    assert names_found([story] * 50 + ["One rose"]) == [["Rose"]] * 50 + [[]]
    assert names_found([story] * 49 + ["One rose"]) == [[]] * 50


# --- how long stories are parted ---


def parts_by_hand(story: list[str], sizes: list[int], limit: int) -> list[tuple[int, int]]:
    """The rule, piece by piece; ranges of tokens."""
    at = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    ranges: list[tuple[int, int]] = []
    begin = 0
    while True:
        if at[-1] - at[0] - begin <= limit:
            return [*ranges, (begin, at[-1])]
        sentence: tuple[int, int] | None = None
        between: tuple[int, int] | None = None
        for k in range(1, len(story)):
            rest = "".join(story[k:])
            before = "".join(story[:k])
            stop = at[len(pieces(before.rstrip()))]
            if story[k].isspace() or not begin < stop <= begin + limit:
                continue
            between = stop, at[k]
            closed = re.search(r"[.!?…][\"'”’)\]»]{0,2}\s*$", before)
            goes_on = re.match(r"[.!?…]| ?[a-z]", rest)
            if not before[-1:].isspace():
                goes_on = goes_on or (re.match(r"[\"'”’)\]»]", rest) and re.search(r"[.!?…][\"'”’)\]»]?$", before))
            if closed and not goes_on:
                sentence = stop, at[k]
        stop, after = sentence or between or (begin + limit, begin + limit)
        ranges.append((begin, stop))
        begin = after


SPOKEN = ["Lily", " sat", " in", ".", "!", '"', " ", "\n", "aaaaaaaaaaaaaaaaaaaa", ")", "B"]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(SPOKEN), min_size=1, max_size=60), min_size=1, max_size=4),
    st.integers(5, 30),
)
def test_parts_are_those_of_the_rule(told: list[list[str]], limit: int) -> None:
    stories = [cut for cut in (pieces("".join(story).strip()) for story in told) if cut]
    ids: dict[str, int] = {"": 0}
    flat = np.array([ids.setdefault(piece, len(ids)) for story in stories for piece in (*story, "")], np.uint32)
    if not stories:
        return
    sizes = np.array([max(len(piece), 1) for piece in ids])  # letters, and one for the end
    at = np.concatenate([[0], np.cumsum(sizes[flat])])
    kind = reading.kinds(list(ids), np.bincount(flat, minlength=len(ids)))
    found = list(zip(*(each.tolist() for each in reading.parts(flat, kind, at, limit)), strict=True))
    expected, first = [], 0
    for number, story in enumerate(stories):
        for begin, end in parts_by_hand(story, [len(piece) for piece in story], limit):
            expected.append((first + begin, first + end, number))
        first += sum(map(len, story)) + 1
    assert found == expected


def test_parts_end_with_sentences(tmp_path: Path) -> None:
    source = TextSource(config(corpus_file(tmp_path), length=100))
    stories = told(source, "train")
    assert max(source.templates("train", np.arange(len(stories)), 0).lengths) <= source.max_length("train") == 100
    ends = Counter(story[-1] for story in stories)
    assert ends.keys() <= set('.?”!"')


# --- what a source tells ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_comes_back(tmp_path: Path, kind: str) -> None:
    source = TextSource(config(corpus_file(tmp_path), tokens={"name": kind}, length=1000))
    originals = [tale(number) for number in range(120)]
    names = names_found(originals)
    assert names[1]
    expected = {unnamed(story, who) for story, who in zip(originals, names, strict=True)}
    if kind == "words":  # where spaces were is not known beside a name, as `told` cuts there
        expected = {re.sub(r"\s", "", story) for story in expected}
    for split in SPLITS:
        stories = told(source, split)
        if kind == "words":
            stories = [re.sub(r"\s", "", story) for story in stories]
        assert set(stories) <= expected


def test_words(tmp_path: Path) -> None:
    source = TextSource(config(corpus_file(tmp_path), tokens={"name": "words", "vocabulary": 30}, length=1000))
    vocabulary = source.tokenizer.vocabulary
    assert vocabulary[:2] == ("<end>", "<unk>")
    training = set(told(TextSource(config(corpus_file(tmp_path), length=1000)), "train"))
    counts: Counter[str] = Counter()
    for story in training:
        counts.update(piece.strip(" ") for piece in pieces(re.sub(r"⟨\d+⟩", "", story)))
    del counts[""]
    kept = [counts[word.replace("\\n", "\n")] for word in vocabulary[2:32]]
    assert kept == sorted(counts.values(), reverse=True)[:30]
    assert not {"Lily", "Tom"} & set(vocabulary)
    assert len(vocabulary) == 32 + source.config.names.syllable_tokens()


def test_splits(tmp_path: Path) -> None:
    path = tmp_path / "tales.txt"
    originals = [tale(number) for number in range(400)]
    path.write_text(SEPARATOR.join(originals + originals[:200]), encoding="utf-8")
    source = TextSource(config(path, length=1000))
    names = dict(zip(originals, names_found(originals + originals[:200]), strict=False))
    as_told = {unnamed(story, names[story]): story for story in originals}
    stories = {split: [as_told[story] for story in told(source, split, all_of_it=True)] for split in SPLITS}
    sets = {split: set(stories[split]) for split in SPLITS}
    assert not sets["train"] & sets["test"] and not sets["train"] & sets["validation"]  # noqa: PT018
    assert not sets["validation"] & sets["test"]
    for split in ("test", "validation"):
        assert len(stories[split]) == len(sets[split])  # no second copies
        assert 10 <= len(sets[split]) <= 20 + 10
        assert all(names[story] for story in sets[split])
    assert any(not names[story] for story in sets["train"])
    assert len(stories["train"]) > 1.3 * len(sets["train"])
    assert source.stories("test") == 10
    assert source.stories("validation") == 8
    kinds = {kind: TextSource(config(path, length=1000, tokens={"name": kind})) for kind in KINDS}
    assert told(kinds["bpe"], "test") == told(kinds["bytes"], "test") == told(source, "test")


def test_training_text_can_stay_as_it_is(tmp_path: Path) -> None:
    source = TextSource(config(corpus_file(tmp_path), length=1000, replace="evaluation"))
    assert set(told(source, "train")) <= {tale(number) for number in range(120)}
    assert not source.templates("train", np.arange(50), 0).characters.any()
    renamed = TextSource(config(corpus_file(tmp_path), length=1000))
    assert told(source, "test") == told(renamed, "test")
    assert source.templates("test", np.arange(10), 0).characters.tolist() == [2] * 10


def test_a_source_is_a_pure_function_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus_file(tmp_path)
    one = TextSource(config(path, tokens={"name": "bpe", "vocabulary": 400}, length=64))
    whole = one.templates("train", np.arange(one.stories("train")), 0)
    (tmp_path / "elsewhere").mkdir()
    parquet.write_table(
        pyarrow.table({"story": [f" {tale(number)}\r\n" for number in range(120)]}),
        tmp_path / "elsewhere" / "t.parquet",
    )
    monkeypatch.setattr(text, "_CHUNK", 50)
    monkeypatch.setattr(corpus, "_BLOCK", 7)
    monkeypatch.setattr(corpus, "_ROWS", 3)
    for other_path, fields in ((path, {}), (tmp_path / "elsewhere" / "*.parquet", {"column": "story"})):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache {other_path.name}"))
        other = TextSource(config(other_path, tokens={"name": "bpe", "vocabulary": 400}, length=64, **fields))
        assert other.tokenizer.vocabulary == one.tokenizer.vocabulary
        again = pickle.loads(pickle.dumps(other)).templates("train", np.arange(one.stories("train")), 3)
        for name in ("tokens", "slots", "lengths", "characters"):
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
        assert told(other, "test") == told(one, "test")


def test_shards_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus_file(tmp_path)
    expected = told(TextSource(config(path)), "test")
    assert told(TextSource(config(path, names={"fresh": 0.7})), "test") == expected
    (path.parent / "moved").mkdir()
    moved = path.rename(path.parent / "moved" / "other.txt")
    monkeypatch.setattr(text, "_build", None)
    assert told(TextSource(config(moved)), "test") == expected
    with pytest.raises(TypeError):
        TextSource(config(moved, length=77)).stories("train")


def test_parts_number_their_characters_anew(tmp_path: Path) -> None:
    source = TextSource(config(corpus_file(tmp_path), length=90))
    for split in SPLITS:
        templates = source.templates(split, np.arange(source.stories(split)), 0)
        for slots, count in zip(templates.slots, templates.characters, strict=True):
            used = slots[slots > 0]
            assert sorted(set(used.tolist())) == list(range(1, 2 * count + 1))
            assert used[0::2].tolist() == (used[1::2] - 1).tolist()
            if split != "train":
                assert max(Counter(used.tolist()).values()) >= 2


# --- what is given ---


def test_the_fingerprint(tmp_path: Path) -> None:
    path = corpus_file(tmp_path)
    one = config(path)
    assert one.fingerprint is not None
    assert canonical(one)["fingerprint"] == one.fingerprint
    assert config(path, fingerprint=one.fingerprint) == one
    source = TextSource(one)
    path.write_text("Other text.")
    with pytest.raises(BadInput, match=r"fingerprint.* is not allowed: the files have the fingerprint [0-9a-f]{64}"):
        config(path, fingerprint=one.fingerprint)
    with pytest.raises(BadInput, match="the files have another"):
        source.stories("train")
    path.unlink()
    assert config(path, fingerprint=one.fingerprint) == one  # a record can be read anywhere
    with pytest.raises(BadInput, match="no file matches"):
        TextSource(config(path, fingerprint=one.fingerprint)).stories("train")


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = corpus_file(tmp_path)
    small = corpus.fingerprint([path])
    monkeypatch.setattr(corpus, "_SMALL", 10)
    assert corpus.fingerprint([path]) == small
    stat = path.stat()
    path.write_bytes(bytes(stat.st_size))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert corpus.fingerprint([path]) == small  # it looks the same
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert corpus.fingerprint([path]) != small
    assert corpus.fingerprint([path, path]) != corpus.fingerprint([path])


def test_patterns_name_each_file_once_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.parquet"):
        (tmp_path / name).touch()
    found = corpus.matched([f"{tmp_path}/c.*", f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"])
    assert [each.name for each in found] == ["c.parquet", "a.txt", "b.txt"]


@given(
    st.lists(st.text(st.sampled_from("ab <|>\né日"), max_size=30), min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 40),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_stories_of_a_text_file(tmp_path: Path, stories: list[str], newline: str, block: int) -> None:
    path = tmp_path / "some.txt"
    with path.open("w", encoding="utf-8", newline=newline) as file:
        file.write("\n <|sep|>\n".join(stories))
    expected = [story.strip() for story in stories if story.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_BLOCK", block)
        if not expected:
            with pytest.raises(BadInput, match=r"it is empty|it holds no story"):
                list(corpus.stories([path], "text", "<|sep|>"))
            return
        found, shares = zip(*corpus.stories([path], "text", "<|sep|>"), strict=True)
    assert list(found) == expected
    assert list(shares) == sorted(shares)
    assert 0 < shares[-1] <= 1


def bad(folder: Path, case: str) -> dict[str, Any]:
    """Files and fields of which something is wrong."""
    path = corpus_file(folder)
    good = path.read_bytes()
    table = folder / "t.parquet"
    match case:
        case "nothing there":
            return {"files": ["nothing*.txt"]}
        case "ending":
            (folder / "tales.md").write_bytes(good)
            return {"files": [str(folder / "tales.md")]}
        case "folder":
            return {"files": [str(folder)]}
        case "empty":
            path.write_bytes(b"")
        case "white":
            path.write_bytes(b" \n\n")
        case "utf8":
            path.write_bytes(b"\xef\xbb\xbf" + good + b"\n<|endoftext|>\nab\xff")
            return {"files": [str(path)]}
        case "parquet":
            table.write_bytes(good)
            return {"files": [str(table)]}
        case "column":
            parquet.write_table(pyarrow.table({"story": ["a"], "id": [1]}), table)
            return {"files": [str(table)]}
        case "numbers":
            parquet.write_table(pyarrow.table({"text": [1, 2]}), table)
            return {"files": [str(table)]}
        case "no names":
            path.write_text("Once upon a time.\n<|endoftext|>\nThe end.")
        case "one":
            return {"files": [str(path)], "separator": "====="}
        case "few":
            return {"files": [str(path)], "test_examples": 60}
        case "short":
            return {"files": [str(path)], "length": 16}
    return {"files": [str(path)]}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("nothing there", "files: no file matches 'nothing*.txt' in "),
        ("ending", "tales.md' should be a file that ends in .txt or .parquet"),
        ("folder", "should be a file that ends in .txt or .parquet"),
        ("empty", "tales.txt is not allowed: it is empty"),
        ("white", "tales.txt is not allowed: it holds no story"),
        ("utf8", "tales.txt is not allowed: byte {size} is not UTF-8"),
        ("parquet", "t.parquet is not allowed: it cannot be read as parquet: "),
        ("column", "task.column: 'text' is not allowed: {folder}/t.parquet has story, id"),
        ("numbers", "task.column: 'text' is not allowed: in {folder}/t.parquet it holds int64, not text"),
        ("no names", "tales.txt are not allowed: no story names a character twice"),
        ("one", "task.separator: '=====' is not allowed: it leaves {folder}/tales.txt one story"),
        ("few", "task.test_examples: 60 and 8 validation_examples are not allowed: 96 of 120 different stories"),
        ("short", "in parts of 16 tokens, "),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, cache: Path, case: str, said: str) -> None:
    fields = bad(tmp_path, case)
    with pytest.raises(BadInput) as raised:
        TextSource(config("", **fields)).stories("train")
    size = Path(fields["files"][0]).stat().st_size - 1 if case == "utf8" else 0
    assert said.format(folder=tmp_path, size=size) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(cache.glob("*.new"))


def test_a_story_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_LONGEST", 1 << 10)
    monkeypatch.setattr(corpus, "_BLOCK", 1 << 9)
    with pytest.raises(BadInput, match=r"no line 'xyz' in the .* from byte 0 on; see `separator`"):
        TextSource(config(corpus_file(tmp_path), separator="xyz")).stories("train")


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"text": [tale(number) for number in range(99)]}), path, compression="snappy")
    content = bytearray(path.read_bytes())
    content[4:600] = bytes(596)
    path.write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read as parquet"):
        TextSource(config(path)).stories("train")


def test_building_reads_nothing(tmp_path: Path, cache: Path) -> None:
    task = config(corpus_file(tmp_path)).build()
    assert task.max_length("train") == 256
    assert not cache.exists()


def test_text_columns_of_every_kind_are_read(tmp_path: Path) -> None:
    stories, table = [f"Mira {number}." for number in range(3)], tmp_path / "t.parquet"
    plain = pyarrow.array(stories)
    for column in (plain, plain.dictionary_encode(), plain.cast(pyarrow.large_string())):
        parquet.write_table(pyarrow.table({"text": column}), table)
        assert [story for story, _ in corpus.stories([table], "text", "")] == stories


@pytest.mark.parametrize("names", [{"shared": True}, {"unseen": 0.1}])
def test_names_that_tokens_cannot_have_are_refused_before_anything_is_read(
    tmp_path: Path, names: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match=rf"task\.names\.{next(iter(names))}: .* is not allowed"):
        config(corpus_file(tmp_path), tokens={"name": "bpe"}, names=names).build()


def test_a_run_that_is_refused_late_leaves_nothing(tmp_path: Path) -> None:
    mapping = tiny().model_dump(mode="json")
    mapping["task"] = {"name": "text", "files": [str(corpus_file(tmp_path))], "test_examples": 60, "length": 32}
    with pytest.raises(BadInput, match=r"task\.test_examples: 60"):
        execute(experiment_from(mapping, "text"), tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


def test_where_the_files_are_is_no_part_of_the_identity(tmp_path: Path) -> None:
    one = corpus_file(tmp_path)
    other = tmp_path / "other.txt"
    other.write_bytes(one.read_bytes())
    assert canonical(config(one)) == canonical(config(other))
    other.write_bytes(one.read_bytes() + b"More.\n")
    assert canonical(config(one)) != canonical(config(other))


# --- the whole way ---


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_text(tmp_path: Path, kind: str) -> None:
    experiment = experiment_from(
        {
            **TINY,
            "task": {
                "name": "text",
                "files": [str(corpus_file(tmp_path, 200))],
                "tokens": {"name": kind},
                "length": 128,
                "validation_examples": 5,
                "test_examples": 6,
            },
            "train": {"steps": 4, "batch_tokens": 512, "context": 128, "warmup": 1},
            "evaluation": {"every": 4, "examples": 5},
        },
        "text",
    )
    result = execute(experiment, tmp_path / "runs")
    assert result is not None
    assert experiment.task.name == "text"
    assert str(experiment.task.fingerprint) in (tmp_path / "runs" / experiment.label / "config.yaml").read_text()
    task = experiment.task.build()
    assert task.size("test") == 12
    examples = task.examples("test", np.arange(12), 0)
    for row in range(12):
        record = task.record(examples, row)
        assert record["mentions"]
        for name, tokens in record["names"].items():
            assert name in record["text"]
            assert len(tokens) == 2
        assert "\u27e8" not in record["text"]
        assert not {"Lily", "Tom", "Anna"} & set(record["names"])
    assert examples.score_mask.any(axis=1).all()


def test_what_takes_long_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 10**6, 3))
    monkeypatch.setattr("lab.tasks.text.task.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(text, "_CHUNK", 2000)
    with caplog.at_level(logging.INFO, "lab.tasks.text.task"):
        TextSource(config(corpus_file(tmp_path))).stories("train")
    assert re.fullmatch(r"reading: \d+ stories, \d+ MB, \d+ %, \d+ s left", caplog.messages[0])
    assert caplog.messages[-1].startswith("writing shards: 120 stories, 100 %, 0 s left")


# --- the cache ---


def build_slowly(place: Path) -> None:
    with (place / "built").open("w") as file:
        file.write(str(os.getpid()))
    time.sleep(0.2)
    with (place.parent / "log").open("a") as log:
        log.write(f"{os.getpid()}\n")


def use(_: int) -> str:
    return (shards.folder("some key", build_slowly) / "built").read_text()


def test_many_processes_build_once(cache: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.map(use, range(8), chunksize=1)
    assert len(set(found)) == 1
    assert (cache / "log").read_text().split() == [found[0]]


def build_for_ever(place: Path) -> None:
    (place / "half").touch()
    (place.parent / "begun").touch()
    time.sleep(60)


def test_after_a_kill_another_builds(cache: Path) -> None:
    cache.mkdir(parents=True)
    process = multiprocessing.get_context("fork").Process(target=shards.folder, args=("some key", build_for_ever))
    process.start()
    while not (cache / "begun").exists():
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    place = shards.folder("some key", lambda fresh: (fresh / "whole").touch())
    assert {each.name for each in place.iterdir()} == {"whole", "content.json"}
    assert not list(cache.glob("*.new"))


@pytest.mark.parametrize("harm", ["file", "cut", "content", "all"])
def test_what_is_missing_is_built_again(harm: str) -> None:
    def build(place: Path) -> None:
        with shards.Appending(place / "a.npy", np.int64) as out:
            out.add(np.arange(5))

    place = shards.folder("k", build)
    assert shards.folder("k", lambda _: pytest.fail("built again")) == place
    assert shards.folder("l", build) != place
    match harm:
        case "file":
            (place / "a.npy").unlink()
        case "cut":
            os.truncate(place / "a.npy", 130)
        case "content":
            (place / "content.json").write_text("[]")
        case "all":
            for file in place.iterdir():
                file.unlink()
            place.rmdir()
    assert shards.mapped(shards.folder("k", build) / "a.npy").tolist() == [0, 1, 2, 3, 4]


def test_a_build_that_fails_leaves_nothing(cache: Path) -> None:
    def build(place: Path) -> None:
        (place / "half").touch()
        raise BadInput("no")

    with pytest.raises(BadInput):
        shards.folder("k", build)
    assert [each.suffix for each in cache.iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(Failure, match="file/mtp-lab: the cache cannot be used: Not a directory"):
        shards.folder("k", lambda place: None)


def test_damage_is_one_line(tmp_path: Path) -> None:
    source = TextSource(config(corpus_file(tmp_path)))
    place = source._place
    (place / "tokenizer.json").write_text("{")
    (place / "test_slots.npy").write_bytes(b"damaged")
    with pytest.raises(Failure, match=r"tokenizer.json: vanished or damaged; delete .* and run again"):
        _ = source.tokenizer
    with pytest.raises(Failure, match=r"test_slots.npy: vanished or damaged; delete .* and run again"):
        source.templates("test", np.arange(1), 0)
    assert told(TextSource(source.config), "test")  # another process builds them again


@given(st.lists(st.lists(st.integers(0, 255), max_size=9), max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_appending(tmp_path: Path, appended: list[list[int]]) -> None:
    for dtype in (np.uint8, np.int64):
        with shards.Appending(tmp_path / "a.npy", dtype) as out:
            for part in appended:
                out.add(np.array(part))
        array = shards.mapped(tmp_path / "a.npy")
        assert array.dtype == dtype
        assert array.tolist() == [number for part in appended for number in part]
