"""Stories from files, with renamed characters: the evaluation of Section 4.1 on your own texts.

    text      Tom saw a ball . Then Anna met Tom and ...
    tokens    Mi ra saw a ball . Then So la met Mi ra and ...
    scored                                         ^

Rules select the words that are names, and the places where long stories are split (`lab.tasks.text.reading`). Every
occurrence of a name is replaced.

The hash of a story's text puts it into test, validation or training, so no text is in two splits. Test and validation
each are 5 % of the different stories, or more if the configured number of examples needs more. Stories without a name
that occurs twice, and second copies, are left out of them.

The shards are built in one pass over the files, which cuts text into `pieces` and numbers them. All further steps are
array arithmetic on these numbers, about a million at a time. Shards are cached (`lab.tasks.shards`).
"""

import importlib.metadata
import json
import logging
import shutil
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from lab.config import Config, Location, Neutral, canonical
from lab.errors import BadInput, Failure
from lab.tasks.base import SPLITS, Split
from lab.tasks.draws import below, draws, draws32, stream
from lab.tasks.shards import Appending, folder, mapped
from lab.tasks.stories.induction import StoryTask, StoryTemplates
from lab.tasks.stories.names import Names
from lab.tasks.text import corpus
from lab.tasks.text.reading import CHARACTERS, I64, U8, Kinds, characters, kinds, parts, ragged, rank
from lab.tasks.tokenizers import (
    Bpe,
    BpeTokens,
    Bytes,
    ByteTokens,
    Tokenizer,
    Tokens,
    Words,
    WordTokens,
    made_up,
    pieces,
    train_bpe,
)

log = logging.getLogger(__name__)

SHARE = 0.05
"""The smallest share of different stories in test, and in validation."""
_CHUNK = 1 << 20
"""The number of pieces that are processed at once."""
_SAMPLE = 1 << 22
"""The number of pieces that BPE is trained on (about 16 MB), from the training stories with the smallest hashes."""
_WORD = 5
"""New names do not spell words that occur at least this often in small letters."""


class Text(Config):
    """Stories from .txt, .jsonl and .parquet files, with renamed characters."""

    name: Literal["text"] = "text"
    version: ClassVar[int] = 2
    files: Annotated[list[str], Location(), Field(min_length=1)]
    """Paths or glob patterns of .txt, .jsonl (both UTF-8) and .parquet files, relative to the current folder."""
    column: str = "text"
    """The column with the stories of a .parquet file, one in each row, or the field in each line of a .jsonl file."""
    separator: str = Field(default="<|endoftext|>", min_length=1)
    """The separator between two stories of a .txt file, which must not occur elsewhere."""
    layout: Annotated[corpus.Layout, Neutral("own_line")] = "own_line"
    """The way stories are separated in a .txt file: by the separator on a line of its own, by the separator at the end
    of a story's last line, by blank lines, or by every end of a line."""
    fingerprint: str | None = None
    """SHA-256 of the files' SHA-256s, which identifies the files. Null: it is computed; else the files must match."""
    tokens: Tokens = Bpe()
    """The kind of tokens; its name selects it."""
    names: Names = Names()
    """The names of characters."""
    length: int = Field(default=256, ge=16, le=30_000)
    """The largest number of tokens of a story, end token included. A longer story is split at ends of sentences; a
    sentence that is too long is cut."""
    replace: Literal["all", "evaluation"] = "all"
    """The stories with renamed characters: all, or validation and test only, as in the paper."""
    validation_examples: int = Field(default=100, ge=1, le=1_000_000)
    """Validation stories; each occurs with fresh names, and with names of the pool."""
    test_examples: int = Field(default=100, ge=1, le=1_000_000)
    """Test stories (paper: 100); each occurs with fresh names, and with names of the pool."""

    @field_validator("separator")
    @classmethod
    def _one_line(cls, separator: str) -> str:
        if not separator.strip() or separator.splitlines() != [separator]:
            raise ValueError("should be one line that shows something; `layout` says whether blank lines part stories")
        return separator

    @model_validator(mode="after")
    def _separator_is_used(self) -> "Text":
        default = type(self).model_fields["separator"].default
        if self.layout in ("blank_line", "every_line") and self.separator != default:
            raise ValueError(f"separator: '{self.separator}' is not allowed with layout {self.layout}, which has none")
        return self

    @model_validator(mode="after")
    def _known_by_fingerprint(self) -> "Text":
        try:
            found = corpus.fingerprint(corpus.matched(self.files))
        except (ValueError, BadInput) as error:
            if self.fingerprint is not None:  # a run's record can be read where its files are not
                return self
            said = str(error).removeprefix("task.files: ")  # of paths that are no UTF-8 pydantic takes no errors
            raise ValueError(f"files: {said.encode(errors='backslashreplace').decode()}") from None
        if self.fingerprint not in (None, found):
            raise ValueError(
                f"fingerprint: '{self.fingerprint}' is not allowed: the files have the fingerprint {found}; "
                "null takes any"
            )
        object.__setattr__(self, "fingerprint", found)
        return self

    def build(self) -> StoryTask:
        """Return the task of this config; the files are read when they are first needed.

        Raises:
            BadInput: such tokens cannot have such names.
        """
        self.names.check(self.tokens)
        return StoryTask(TextSource(self), self.names, self.tokens)


class TextSource:
    """Stories of files as a source; see the module's documentation. Shards are made when they are first needed."""

    characters = CHARACTERS

    def __init__(self, config: Text) -> None:
        self.config = config

    def __reduce__(self) -> tuple[type["TextSource"], tuple[Text]]:
        return TextSource, (self.config,)  # a data worker maps the shards itself

    @cached_property
    def _place(self) -> Path:
        return folder(_key(self.config), lambda place: _build(self.config, place))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; BPE and the vocabulary of words are learned from training stories."""
        file = self._place / _TOKENIZER
        try:
            return _tokenizer(self.config, json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            raise Failure(f"{file}: vanished or damaged; delete {self._place} and run again") from None

    @cached_property
    def _shards(self) -> dict[Split, "_Shard"]:
        shards: dict[Split, _Shard] = {}
        for split in SPLITS:
            shards[split] = _Shard(**{name: mapped(file) for name, file in _files(self._place, split)})
        return shards

    def stories(self, split: Split) -> int:
        """Return the number of stories in a split."""
        if split == "train":
            return len(self._shards[split].characters)
        return self.config.test_examples if split == "test" else self.config.validation_examples

    def max_length(self, split: Split) -> int:
        """Return an upper bound on the tokens of a story."""
        return self.config.length

    @cached_property
    def _orders(self) -> dict[Split, I64]:
        """The order of the evaluation stories: random, so that examples are from all parts of the files."""
        every = {split: np.arange(len(shard.characters)) for split, shard in self._shards.items() if split != "train"}
        return {
            split: np.argsort(draws(stream("text", split), stories, 1)[:, 0], kind="stable")
            for split, stories in every.items()
        }

    def templates(self, split: Split, indices: I64, seed: int) -> StoryTemplates:
        """Return the stories of a split at `indices` [N]; they do not depend on `seed`."""
        shard, chosen = self._shards[split], indices if split == "train" else self._orders[split][indices]
        starts = shard.offsets[chosen]
        lengths = shard.offsets[chosen + 1] - starts
        columns = np.arange(lengths.max(initial=0))
        inside = columns < lengths[:, None]
        places = np.where(inside, starts[:, None] + columns, 0)
        return StoryTemplates(
            tokens=shard.tokens[places] * inside,
            slots=shard.slots[places] * inside,
            lengths=lengths,
            characters=shard.characters[chosen].astype(np.int64),
        )


@dataclass(frozen=True)
class _Shard:
    """The stories of a split, concatenated: T tokens of S stories."""

    tokens: NDArray[np.uint16]
    """[T] token ids, the end token included; 0 where a name's token goes."""
    slots: U8
    """[T] as in `StoryTemplates`."""
    offsets: I64
    """[S + 1] the position at which each story begins."""
    characters: U8
    """[S] the number of names, which are numbered from 0 on."""


_TOKENIZER = "tokenizer.json"


def _files(place: Path, split: Split) -> Iterator[tuple[str, Path]]:
    return ((name, place / f"{split}_{name}.npy") for name in _Shard.__dataclass_fields__)


def _key(config: Text) -> str:
    """Return everything that the shards depend on; of the files their content, not their paths."""
    shaping = {**canonical(config), "names": None}
    if isinstance(config.tokens, Words):
        shaping["names"] = config.names.syllable_tokens()
    if isinstance(config.tokens, Bpe):
        shaping["tokenizers"] = importlib.metadata.version("tokenizers")
    return json.dumps(shaping)


def _tokenizer(config: Text, learned: dict[str, Any]) -> Tokenizer:
    match config.tokens:
        case Words():
            return WordTokens(learned["words"], config.names.syllable_tokens(), unknown=True)
        case Bytes():
            return ByteTokens(learned["lexicon"])
        case Bpe():
            return BpeTokens(learned["trained"], learned["lexicon"])


class _Progress:
    """Logs the progress of a long task every two seconds."""

    def __init__(self, task: str) -> None:
        self._task, self._began = task, time.monotonic()
        self._logged = self._began

    def __call__(self, share: float, done: str) -> None:
        now = time.monotonic()
        if now - self._logged > 2:
            self._logged, took = now, now - self._began
            log.info("%s: %s, %.0f %%, %.0f s left", self._task, done, 100 * share, took / share - took)


@dataclass(frozen=True)
class _Numbered:
    """All stories, as numbers of pieces."""

    texts: list[str]
    """[K] the texts of the pieces; piece 0 is a story's end."""
    counts: I64
    """[K] the number of occurrences of each piece."""
    text: NDArray[np.uint32]
    """[P] the stories, concatenated, each with a 0 at its end."""
    starts: I64
    """[S + 1] the position at which each story begins."""
    hashes: NDArray[np.uint64]
    """[S] hashes of the stories' texts."""

    def chunks(self) -> Iterator[tuple[slice, slice]]:
        """Yield slices of stories, and of their pieces."""
        first, stories = 0, len(self.hashes)
        while first < stories:
            last = int(np.searchsorted(self.starts, self.starts[first] + _CHUNK, side="right")) - 1
            last = max(last, first + 1)
            yield slice(first, last), slice(int(self.starts[first]), int(self.starts[last]))
            first = last

    def story(self, stories: slice) -> I64:
        """Return the story of each piece of a slice of stories, counted from its first."""
        lengths = np.diff(self.starts[stories.start : stories.stop + 1])
        return np.repeat(np.arange(len(lengths)), lengths)


def _build(config: Text, place: Path) -> None:
    """Write the shards of a config into an empty folder."""
    try:
        files = corpus.matched(config.files)
    except ValueError as error:
        raise BadInput(f"task.files: {error}") from None
    if corpus.fingerprint(files) != config.fingerprint:
        raise BadInput(
            f"task.fingerprint: '{config.fingerprint}' is not allowed: the files have another; null takes any"
        )

    # The pieces of all stories, and the character that each piece names.
    scratch = place / "scratch"
    scratch.mkdir()
    numbered = _numbered(config, files, scratch)
    kind = kinds(numbered.texts, numbered.counts)
    with Appending(scratch / "character_of.npy", np.uint8) as out:
        for _, here in numbered.chunks():
            out.add(characters(numbered.text[here], kind))
    character_of = mapped(scratch / "character_of.npy")

    # The splits, the tokenizer, and the shards.
    split = _splits(config, numbered, character_of)
    learned = _learned(config, numbered, character_of, split)
    (place / _TOKENIZER).write_text(json.dumps(learned), encoding="utf-8")
    _write(config, numbered, kind, character_of, split, _tokenizer(config, learned), place)
    shutil.rmtree(scratch)


def _numbered(config: Text, files: list[Path], scratch: Path) -> _Numbered:
    """Read the files, and number their pieces."""
    # Pieces are numbered in the order in which they first occur.
    ids: defaultdict[str, int] = defaultdict(lambda: len(ids))
    ids[""] = 0  # no piece is empty
    text, lengths, hashes = array("I"), array("Q"), array("Q")
    progress, characters_read = _Progress("reading"), 0
    with Appending(scratch / "text.npy", np.uint32) as out:
        for story, share in corpus.stories(files, config.column, config.separator, config.layout):
            before = len(text)
            text.extend(map(ids.__getitem__, pieces(story)))
            text.append(0)
            lengths.append(len(text) - before)
            hashes.append(int.from_bytes(blake2b(story.encode(), digest_size=8).digest(), "little"))
            characters_read += len(story)
            if len(text) > _CHUNK:
                out.add(np.frombuffer(text, np.uint32))
                text = array("I")
                progress(share, f"{len(hashes)} stories, {characters_read / 1e6:.0f} MB")
        out.add(np.frombuffer(text, np.uint32))

    # The number of occurrences of each piece.
    flat = mapped(scratch / "text.npy")
    counts = np.zeros(len(ids), np.int64)
    for first in range(0, len(flat), _CHUNK):
        counts += np.bincount(flat[first : first + _CHUNK], minlength=len(ids))
    starts = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, np.uint64).astype(np.int64))])
    return _Numbered(list(ids), counts, flat, starts, np.frombuffer(hashes, np.uint64))


_LEFT_OUT = len(SPLITS)


def _splits(config: Text, numbered: _Numbered, character_of: U8) -> U8:
    """Return the number [S] of each story's split in `SPLITS`, or `_LEFT_OUT`."""
    # Refuse files without names, and those that are one story.
    named = np.maximum.reduceat(character_of, numbered.starts[:-1]) > 0
    if not named.any():
        raise BadInput(
            f"task.files: {', '.join(config.files)} are not allowed: no story names a character twice "
            "(see datasets/text.yaml for the rule)"
        )
    hashes, first, which = np.unique(numbered.hashes, return_index=True, return_inverse=True)
    if len(hashes) == 1:
        parted = config.layout in ("own_line", "line_end")
        field, value = ("separator", config.separator) if parted else ("layout", config.layout)
        raise BadInput(
            f"task.{field}: '{value}' is not allowed: it leaves {', '.join(config.files)} one story; "
            f"should be what stands between stories{f', with layout {config.layout}' if parted else ''}"
        )

    # Different stories in the order of their hashes: test, validation, then training.
    split = np.full(len(hashes), SPLITS.index("train"), np.uint8)
    begin = 0
    for name, examples in (("test", config.test_examples), ("validation", config.validation_examples)):
        enough = 1 + int(np.searchsorted(np.cumsum(named[first[begin:]]), examples))
        end = begin + max(enough, int(SHARE * len(hashes)))
        split[begin:end] = SPLITS.index(name)
        begin = end
    if begin > len(hashes) / 2:
        raise BadInput(
            f"task.test_examples: {config.test_examples} and {config.validation_examples} validation_examples are not "
            f"allowed: {int(named[first].sum())} of {len(hashes)} different stories name a character twice, and half "
            "of all are kept for training"
        )

    # Test and validation are without second copies, and without stories that name nobody twice.
    split = split[which]
    second = np.ones(len(which), np.bool_)
    second[first] = False
    split[(split != SPLITS.index("train")) & (second | ~named)] = _LEFT_OUT
    return split


def _learned(config: Text, numbered: _Numbered, character_of: U8, split: U8) -> dict[str, Any]:
    """Return the data of the tokenizer, in JSON types."""
    # Words: the most frequent ones of training, without those that are replaced by names.
    training = split == SPLITS.index("train")
    if isinstance(config.tokens, Words):
        counts = np.zeros(len(numbered.texts), np.int64)
        for stories, here in numbered.chunks():
            stay = training[stories][numbered.story(stories)]
            if config.replace == "all":
                stay &= character_of[here] == 0
            counts += np.bincount(numbered.text[here][stay], minlength=len(counts))
        words: Counter[str] = Counter()
        for text, count in zip(numbered.texts, counts.tolist(), strict=True):
            if count and text.strip(" "):
                words[text.strip(" ")] += count
        return {"words": sorted(words, key=lambda word: (-words[word], word))[: config.tokens.vocabulary]}

    # Bytes and BPE: the frequent words in small letters, which no name may spell.
    small = {
        text.strip(" ")
        for text, count in zip(numbered.texts, numbered.counts.tolist(), strict=True)
        if count >= _WORD and text.islower()
    }
    if isinstance(config.tokens, Bytes):
        return {"lexicon": sorted(small)}
    trained = train_bpe(_sample(numbered, character_of, np.flatnonzero(training)), config.tokens.vocabulary)
    return {"trained": trained, "lexicon": sorted(small)}


def _sample(numbered: _Numbered, character_of: U8, stories: I64) -> Iterator[str]:
    """Yield the training stories of BPE, with names of two syllables, so that it learns tokens for such names."""
    # The stories with the smallest hashes, up to `_SAMPLE` pieces.
    syllables = [syllable for syllable in made_up() if len(syllable) == 2]
    lengths = np.diff(numbered.starts)
    stories = stories[np.argsort(numbered.hashes[stories], kind="stable")]
    stories = stories[: 1 + int(np.searchsorted(np.cumsum(lengths[stories]), _SAMPLE))]

    # Their text with made-up names.
    random = draws32(stream("text", "sample"), stories, 2 * CHARACTERS)
    for story, pairs in zip(stories.tolist(), below(len(syllables), random).tolist(), strict=True):
        parts_of_names = [syllables[number] for number in pairs]
        names = [""]
        names += [
            (first + second).capitalize()
            for first, second in zip(parts_of_names[::2], parts_of_names[1::2], strict=True)
        ]
        here = slice(int(numbered.starts[story]), int(numbered.starts[story + 1]))
        yield "".join(
            names[name] or numbered.texts[piece]
            for piece, name in zip(numbered.text[here].tolist(), character_of[here].tolist(), strict=True)
        )


def _write(
    config: Text, numbered: _Numbered, kind: Kinds, character_of: U8, split: U8, tokenizer: Tokenizer, place: Path
) -> None:
    """Write every split's shard."""
    # The tokens of all pieces, end to end.
    encoded = [[tokenizer.end], *tokenizer.encode(numbered.texts[1:])]
    sizes = np.array([len(each) for each in encoded])
    starts = np.cumsum(sizes) - sizes
    table = np.array([token for each in encoded for token in each], np.uint16)

    # One file for each array of each split.
    tokens_written, stories_written = Counter[Split](), Counter[Split]()
    progress = _Progress("writing shards")
    with ExitStack() as stack:
        out = {
            (name, field): stack.enter_context(Appending(file, dtype))
            for name in SPLITS
            for (field, file), dtype in zip(_files(place, name), (np.uint16, np.uint8, np.int64, np.uint8), strict=True)
        }
        for name in SPLITS:
            out[name, "offsets"].add(np.zeros(1))
        for stories, here in numbered.chunks():
            # The tokens of the stories; those of names are open.
            text, named = numbered.text[here], character_of[here].copy()
            if config.replace == "evaluation":
                named[(split[stories] == SPLITS.index("train"))[numbered.story(stories)]] = 0
            size = np.where(named > 0, 2, sizes[text])
            at = np.concatenate([[0], np.cumsum(size)])
            within = ragged(np.zeros_like(size), size)
            name_of = np.repeat(named, size)
            places = np.where(name_of > 0, 0, np.repeat(starts[text], size) + within)
            tokens = np.where(name_of > 0, 0, table[places]).astype(np.uint16)
            slots = np.where(name_of > 0, 2 * name_of.astype(np.int64) - 1 + within, 0).astype(np.uint8)

            # Parts of at most the configured length, each in the shard of its split.
            begin, end, story = parts(text, kind, at, config.length - 1)
            for number, name in enumerate(SPLITS):
                chosen = split[stories][story] == number
                shard = _shard(tokens, slots, begin[chosen], end[chosen], tokenizer.end, name != "train")
                for field in ("tokens", "slots", "characters"):
                    out[name, field].add(getattr(shard, field))
                out[name, "offsets"].add(tokens_written[name] + shard.offsets[1:])
                tokens_written[name] += len(shard.tokens)
                stories_written[name] += len(shard.characters)
            progress(here.stop / len(numbered.text), f"{stories.stop} stories")
    for name, examples in (("test", config.test_examples), ("validation", config.validation_examples)):
        if stories_written[name] < examples:
            raise BadInput(
                f"task.{name}_examples: {examples} is not allowed: in parts of {config.length} tokens, "
                f"{stories_written[name]} of the {name} split name a character twice; more do with a greater length"
            )


def _shard(tokens: NDArray[np.uint16], slots: U8, begin: I64, end: I64, end_token: int, scored: bool) -> _Shard:
    """Return the parts of stories from `begin` to `end` [N], each with an end token and its own numbers of characters.

    With `scored`, parts in which no name occurs twice are left out.
    """
    lengths = end - begin + 1
    places = ragged(begin, lengths)  # the end token replaces a part's last token
    part = np.repeat(np.arange(len(lengths)), lengths)
    last = np.cumsum(lengths) - 1
    tokens, slots = tokens[places], slots[places]
    tokens[last], slots[last] = end_token, 0
    firsts = np.flatnonzero(slots % 2)
    name = part[firsts] * CHARACTERS + slots[firsts] // 2
    names, first, which, times = np.unique(name, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, names // CHARACTERS))
    number = np.empty(len(names), np.int64)
    number[order] = rank(names[order] // CHARACTERS)
    slots[firsts] = 1 + 2 * number[which]
    slots[firsts + 1] = slots[firsts] + 1
    count = np.bincount(names // CHARACTERS, minlength=len(lengths))
    if scored:
        kept = np.bincount(names // CHARACTERS, times > 1, minlength=len(lengths)) > 0
        tokens, slots, lengths, count = tokens[kept[part]], slots[kept[part]], lengths[kept], count[kept]
    return _Shard(tokens, slots, np.concatenate([[0], np.cumsum(lengths)]), count.astype(np.uint8))
