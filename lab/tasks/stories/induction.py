"""Induction on two-token names (arXiv 2404.19737, Section 4.1): names for stories, whatever tells the stories.

A source gives stories whose names are open; here they are named, and answers are scored. A name is two tokens. What is
scored is the second token of a name wherever the name was mentioned before: "AB ... A" asks for B (Olsson et al. 2022).

Training names come from a pool with fixed frequencies or, with a stated share, are fresh: a random pair of tokens.
Evaluation stories are told twice: with fresh names, and with names of the pool. Names in a story differ in their first
token, which is in no refrain there, so that nothing but an unknown second token keeps induction on names from being
always right. (With shared tokens, a first token may be another name's second one.)

With hints (`Hint`) two more tokens stand behind each name, both of which say its first token over again, in an alphabet
of their own; or both are fillers, which say nothing:

    a fox named Mi ra [mi] [mi] . Soon Mi ra [mi] [mi] went        a fox named Mi ra [] [] .

The loss leaves out the first of the two. So next-token prediction, which learns the second, finds it written right
before. A head that looks two tokens ahead has to say it at the name's second token, and for that to look at the token
before: the first half of induction, as "AB ... A" can be matched once B's place holds A. What is scored is the same
with and without. Later names are read with the hints before them, which say at each name's place what it begins with; a
model that tells by itself has to write them, too.

Hold-out: where all fresh test names together are at most 1 % of the pairs that can be a name, no name in training or
validation is one of them (in a refrain two neighbouring tokens may happen to be). A larger part, as with bytes and BPE,
is not held out: that would be a rule worth learning. Validation names may occur in training. Scores are split into
pairs that occurred in training and pairs that did not, as counted.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lab.config import Config
from lab.errors import BadInput
from lab.tasks.base import Examples, Split, Task, check_indices
from lab.tasks.draws import below, draws32, epoch_indices, mixed, stream
from lab.tasks.scoring import Answers, Curve, Group, Metrics
from lab.tasks.tokenizers import Bpe, Tokenizer, Tokens, Words

REFRAIN = 3
"""The name-like pairs of tokens in a story's refrain."""
SYLLABLES = 180
MOST_SYLLABLES = 2000
"""Syllables of a word vocabulary; few enough that all differ from words."""
HELD_OUT = 0.01
"""The largest share of all pairs that test names may be and still be held out."""
_PATIENCE = 16
"""Times that names which do not fit are drawn again by their frequencies."""

Share = Annotated[float, Field(ge=0, le=1)]
Hint = Literal["none", "filler", "name"]
"""The two tokens behind each name: none, two that say nothing, or two that say its first token."""


class Names(Config):
    """How characters are named."""

    fresh: Share = 0.1
    """The share p of training names that are fresh pairs; the others are from the pool."""
    pool: int = Field(default=100, ge=8, le=10_000)
    """The number of names in the pool."""
    zipf: float = Field(default=1.0, ge=0, le=10)
    """The pool's k-th name has a frequency proportional to 1 / k to this power; 0 makes all as frequent."""
    ambiguity: int = Field(default=4, ge=1, le=100)
    """How many names of the pool share a first token; at 1 the first token determines the second."""
    shared: bool | None = None
    """Whether the same tokens are first and second ones. Null: yes with words and bytes; BPE cannot."""
    syllables: int | None = Field(default=None, ge=8, le=1600)
    """The number of tokens that training names use in each place. Null: 180, or what bytes and BPE have."""
    unseen: Share = 0.0
    """The share of tokens in fresh validation and test names that no training name has; only with words, whose
    vocabulary holds a quarter more syllables for it."""

    def syllable_tokens(self) -> int:
        """How many syllables the word vocabulary holds."""
        each = self.syllables or SYLLABLES
        return (each + each // 4) * (2 if self.shared is False else 1)

    @model_validator(mode="after")
    def _enough(self) -> "Names":
        if self.syllable_tokens() > MOST_SYLLABLES:
            raise ValueError(
                f"syllables: {self.syllables} is not allowed with shared false: at most {MOST_SYLLABLES * 2 // 5}"
            )
        return self

    def check(self, tokens: Tokens) -> None:
        """Refuse what a kind of tokens cannot have.

        Raises:
            BadInput: tokens to spare, or tokens shared between the two places, where there are none.
        """
        if self.unseen and not isinstance(tokens, Words):
            raise BadInput(f"task.names.unseen: {self.unseen} is not allowed: only word tokens have some to spare")
        if self.shared and isinstance(tokens, Bpe):
            raise BadInput("task.names.shared: true is not allowed: a BPE name's first token has a capital")


@dataclass(frozen=True)
class Skeletons:
    """N stories whose names are open."""

    tokens: NDArray[np.uint16]
    """[N, L] token ids, the end token included; 0 where a name's token goes, and past the end."""
    slots: NDArray[np.uint8]
    """[N, L] 1 + 2c where the first token of name c goes, 2 + 2c for its second, else 0. Characters are numbered in
    any order; after the most characters that the source tells of come the `REFRAIN` pairs."""
    lengths: NDArray[np.int64]
    """[N]"""
    characters: NDArray[np.int64]
    """[N] how many of the names occur."""


class Source(Protocol):
    """What tells stories."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes and reads the tokens."""

    @property
    def characters(self) -> int:
        """The most characters of a story."""

    def stories(self, split: Split) -> int | None:
        """The number of stories in a split; None when training is unlimited."""

    def max_length(self, split: Split) -> int:
        """An upper bound on the tokens of a story."""

    def skeletons(self, split: Split, indices: NDArray[np.int64], seed: int) -> Skeletons:
        """The stories of a split at `indices` [N], below `stories(split)`; `seed` moves training alone."""


class NameLaw:
    """Draws names. A name is a number: an index into `tokens` [names, 2].

    The first `usual` of them are those that training may use.
    """

    def __init__(self, config: Names, tokens: Tokens, tokenizer: Tokenizer, characters: int) -> None:
        """Collect the pairs that can be a name, and draw the pool.

        Args:
            config: how characters are named.
            tokens: the kind of tokens.
            tokenizer: has the candidates.
            characters: names of a story, the refrain's not counted.

        Raises:
            BadInput: there are not so many tokens or names.
        """
        config.check(tokens)
        self.config, self.characters = config, characters
        shared = config.shared if config.shared is not None else not isinstance(tokens, Bpe)
        firsts, seconds = tokenizer.name_tokens(shared)
        each, fewest = config.syllables or SYLLABLES, min(len(firsts), len(seconds))
        if config.syllables and each > fewest:
            raise BadInput(f"task.names.syllables: {each} is not allowed: {tokens.name} tokens have {fewest}")
        spare = each // 4 if isinstance(tokens, Words) else 0
        allowed = tokenizer.allowed(firsts[: each + spare], seconds[: each + spare])
        if shared:
            np.fill_diagonal(allowed, False)
        first, second = np.nonzero(allowed)
        token_type = (first >= each) + 2 * (second >= each)  # which of the two tokens training does without
        order = np.argsort(token_type, kind="stable")
        self.tokens = np.stack([firsts[first], seconds[second]], axis=1)[order]
        self._sizes = np.bincount(token_type, minlength=4)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self.usual = int(self._sizes[0])
        self.seconds = len(np.unique(self.tokens[: self.usual, 1]))
        """Different second tokens of training names."""
        self.held_out = np.zeros(len(self.tokens), np.bool_)
        self._keep_to(first[order][: self.usual])

    def _keep_to(self, first: NDArray[np.int64]) -> None:
        """Draw the pool: groups of `ambiguity` names that share a first token, frequencies given in random order."""
        config = self.config
        random = draws32(stream("names", "pool"), np.arange(self.usual), 2)
        rank = np.argsort(draws32(stream("names", "firsts"), np.arange(first.max() + 1), 1)[:, 0], kind="stable")
        order = np.lexsort((random[:, 0], rank[first]))  # by first token, then at random
        ordered = rank[first][order]
        place = np.arange(len(order)) - np.searchsorted(ordered, ordered)  # within the names of a first token
        chosen = order[place < config.ambiguity][: config.pool]
        if len(chosen) < config.pool:
            raise BadInput(
                f"task.names.pool: {config.pool} is not allowed: with ambiguity {config.ambiguity} "
                f"these tokens give {len(chosen)} names"
            )
        if len(np.unique(first[chosen])) < self.characters:
            raise BadInput(
                f"task.names.pool: {config.pool} is not allowed: with ambiguity {config.ambiguity} it has "
                f"{len(np.unique(first[chosen]))} first tokens, and a story can need {self.characters}"
            )
        self.pool = chosen[np.argsort(random[chosen, 1], kind="stable")]
        weights = np.arange(1, len(chosen) + 1) ** -float(config.zipf)
        self._reached = (np.cumsum(weights) / weights.sum() * 2**32)[:-1]

    def draw(
        self, names: tuple[str | int, ...], indices: NDArray[np.int64], fresh: float, unseen: float, free: bool
    ) -> NDArray[np.int64]:
        """The names of the stories `indices` [N]: [N, characters + REFRAIN].

        Characters differ in their first tokens, and none of these is in the refrain.

        Args:
            names: the stream's.
            indices: of stories.
            fresh: the share of fresh names; the refrain's pairs are all fresh.
            unseen: the share of tokens in fresh names that training does without.
            free: whether names that are held out may occur.
        """
        drawn = self._drawn(names, 0, indices, fresh, unseen)
        attempt, rows = 0, np.arange(len(indices))
        while True:
            tokens = self.tokens[drawn[rows]]
            first, wrong = tokens[:, : self.characters, 0], np.zeros((len(rows), drawn.shape[1]), np.bool_)
            for place in range(1, self.characters):
                wrong[:, place] = (first[:, :place] == first[:, place, None]).any(axis=1)
            for place in range(self.characters, drawn.shape[1]):
                wrong[:, place] = (first[:, None] == tokens[:, place, :, None]).any(axis=(1, 2))
            if not free:
                wrong |= self.held_out[drawn[rows]]
            again = np.flatnonzero(wrong.any(axis=1))
            if not len(again):
                return drawn
            attempt += 1
            rows, wrong = rows[again], wrong[again]
            drawn[rows] = np.where(wrong, self._drawn(names, attempt, indices[rows], fresh, unseen), drawn[rows])

    def _drawn(
        self, names: tuple[str | int, ...], attempt: int, indices: NDArray[np.int64], fresh: float, unseen: float
    ) -> NDArray[np.int64]:
        width = self.characters + REFRAIN
        random = draws32(stream(*names, attempt), indices, 3 * width)
        share, which, rare = (random[:, k * width : (k + 1) * width] for k in range(3))
        kind = (rare % 2**16 < unseen * 2**16).astype(np.int64) + 2 * (rare >> np.uint32(16) < unseen * 2**16)
        kind[:, self.characters :] = 0
        new = self._starts[kind] + below(self._sizes[kind], which).astype(np.int64)
        # A pool of which a few names take nearly all gives no others that fit; then each is as likely.
        rank = (
            np.searchsorted(self._reached, which, side="right") if attempt < _PATIENCE else below(len(self.pool), which)
        )
        old = self.pool[rank.astype(np.int64)]
        is_new = share < fresh * 2**32
        is_new[:, self.characters :] = True
        return np.where(is_new, new, old)


class StoryTask(Task):
    """Stories of a source, named and scored; see the module's documentation."""

    def __init__(self, source: Source, names: Names, tokens: Tokens, hint: Hint = "none") -> None:
        """Stories that `source` tells, in the kind of tokens that it has, with `names` and a `hint` behind each."""
        self.source, self.names, self.tokens, self.hint = source, names, tokens, hint
        token_types = ("other", "first token", "second token, introduced", "second token, later")
        self.metrics = Metrics(
            metric="second_token_accuracy",
            baselines=("class_copying", "oracle", "chance"),
            groups=(
                Group("names", values=("fresh", "pool"), margin=False),
                Group("mention", values=(2, 3, 4, "5+")),
                Group("characters", values=tuple(range(1, source.characters + 1))),
                Group("tokens", values=("seen", "unseen")),
            ),
            curves=(
                Curve(("second_token_accuracy", "any_character", "class_copying"), {"names": "fresh"}),
                Curve(("second_token_accuracy",), {"names": "pool"}, name="pool_accuracy"),
            ),
            token_types=token_types if hint == "none" else (*token_types, "hint"),
            crossed=False,
        )

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:  # type: ignore[override]  # known when it is first needed
        """The text of each token id; with hints `[]` and all of them come last, whether they or fillers are written."""
        known = self.source.tokenizer.vocabulary
        return known if self.hint == "none" else (*known, "[]", *(f"[{known[first]}]" for first in self._firsts))

    @cached_property
    def _firsts(self) -> list[int]:
        """The tokens that names begin with."""
        found: list[int] = np.unique(self.law.tokens[:, 0]).tolist()
        return found

    @cached_property
    def law(self) -> NameLaw:
        """What draws names; test names are held out of it if they are few.

        Raises:
            BadInput: the tokens do not have such names.
        """
        law = NameLaw(self.names, self.tokens, self.source.tokenizer, self.source.characters)
        stories = np.arange(self.source.stories("test") or 0)
        count = self.source.skeletons("test", stories, 0).characters
        drawn = law.draw(("names", "test", "fresh"), stories, 1.0, self.names.unseen, free=True)[:, : law.characters]
        used = np.unique(drawn[np.arange(law.characters) < count[:, None]])
        if np.count_nonzero(used < law.usual) <= HELD_OUT * law.usual:
            law.held_out[used] = True
        return law

    def size(self, split: Split) -> int | None:
        """The number of examples; each validation and test story is told with fresh names, then all with pool names."""
        return None if split == "train" else 2 * (self.source.stories(split) or 0)

    def max_length(self, split: Split) -> int:
        """An upper bound on the tokens of one example of a split: a name has two, and another token after it."""
        told = self.source.max_length(split)
        return told if self.hint == "none" else told + 2 * (told // 3)

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """The stories of a split at `indices` [N]; see `Task.examples`.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """
        check_indices(split, indices, self.size(split))
        stories, count = indices, self.source.stories(split)
        pooled = np.zeros(len(indices), np.bool_)
        if split == "train":
            stories = indices if count is None else epoch_indices("stories", indices, count, seed)
            drawn = self.law.draw(("names", split, seed), stories, self.names.fresh, 0.0, free=False)
        else:
            stories, pooled = indices % (count or 1), indices >= (count or 0)
            free, unseen = split == "test", self.names.unseen
            drawn = self.law.draw(("names", split, "fresh"), stories, 1.0, unseen, free)
            drawn[pooled] = self.law.draw(("names", split, "pool"), stories[pooled], 0.0, 0.0, free=False)
        skeletons = self.source.skeletons(split, stories, seed)
        told = self._named(skeletons, drawn, np.where(pooled, "pool", "fresh"))
        return told if self.hint == "none" else self._hinted(told)

    def _named(self, skeletons: Skeletons, drawn: NDArray[np.int64], kind: NDArray[np.str_]) -> Examples:
        """The stories with their names filled in."""
        slots, lengths = skeletons.slots, skeletons.lengths
        rows, places = np.nonzero(slots)
        slot = slots[rows, places] - 1
        names = self.law.tokens[drawn]
        tokens = skeletons.tokens.copy()
        tokens[rows, places] = names[rows, slot // 2, slot % 2]
        character, mention = np.zeros_like(slots), np.zeros_like(slots)
        ours = slot // 2 < self.law.characters
        character[rows[ours], places[ours]] = 1 + slot[ours] // 2
        for name in range(self.law.characters):
            second = slots == 2 + 2 * name
            mention += np.minimum(np.cumsum(second, axis=1), 255).astype(np.uint8) * second
        refrain = np.any(slots > 2 * self.law.characters, axis=1)
        used = np.where(
            np.arange(drawn.shape[1]) < self.law.characters,
            np.arange(drawn.shape[1]) < skeletons.characters[:, None],
            refrain[:, None],
        )
        keys = np.concatenate([self._pair_keys[drawn], *self._token_keys[names].transpose(2, 0, 1)], axis=1)
        document = np.arange(tokens.shape[1]) < lengths[:, None]
        return Examples(
            tokens=tokens,
            lengths=lengths,
            loss_mask=document,
            score_mask=mention > 1,
            slices={"names": kind, "characters": skeletons.characters},
            fingerprints=keys * np.tile(used, 3),
            token_features={"character": character, "mention": mention},
        )

    def _hinted(self, told: Examples) -> Examples:
        """The examples with hints, or fillers, behind their names."""
        second = told.token_features["mention"] > 0
        lengths = told.lengths + 2 * second.sum(axis=1)
        rows, places = np.nonzero(np.arange(second.shape[1]) < told.lengths[:, None])
        moved = places + 2 * (np.cumsum(second, axis=1) - second)[rows, places]
        shape = (len(second), int(lengths.max(initial=0)))

        def spread(values: NDArray[Any]) -> NDArray[Any]:
            result = np.zeros(shape, values.dtype)
            result[rows, moved] = values[rows, places]
            return result

        tokens, trained, hints = spread(told.tokens), spread(told.loss_mask), np.zeros(shape, np.uint8)
        row, place = np.nonzero(spread(second))
        filler = len(self.source.tokenizer.vocabulary)
        said = filler + 1 + np.searchsorted(self._firsts, tokens[row, place - 1]) if self.hint == "name" else filler
        for behind in (1, 2):
            tokens[row, place + behind], hints[row, place + behind] = said, 1
        trained[row, place + 2] = True
        marks = {name: spread(values) for name, values in told.token_features.items()} | {"hint": hints}
        return replace(
            told,
            tokens=tokens,
            lengths=lengths,
            loss_mask=trained,
            score_mask=spread(told.score_mask),
            token_features=marks,
        )

    @cached_property
    def _token_keys(self) -> NDArray[np.uint64]:
        """[vocabulary] a hash of each token that names have, of its text: another task's same token has the same."""
        known = self.source.tokenizer.vocabulary
        keys = np.zeros(len(known), np.uint64)
        for token in np.unique(self.law.tokens).tolist():
            keys[token] = stream("token", known[token])
        return keys

    @cached_property
    def _pair_keys(self) -> NDArray[np.uint64]:
        first, second = self._token_keys[self.law.tokens].T
        return mixed(mixed(first.copy()) + second)

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Tokens of names, by place and mention, hints, and others; see `Task.token_type`."""
        mention = examples.token_features["mention"]
        kind = (examples.token_features["character"] > 0).astype(np.uint8) + (mention > 0) + (mention > 1)
        return kind if self.hint == "none" else kind + 4 * examples.token_features["hint"]

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as people read them, hints in brackets."""
        decode, known = self.source.tokenizer.decode, len(self.source.tokenizer.vocabulary)
        hints = [place for place, token in enumerate(tokens) if token >= known]
        told: list[int] = []
        text, written = "", 0
        for begin, end in itertools.pairwise([-1, *hints, len(tokens)]):
            told += tokens[begin + 1 : end]
            whole = decode(told)  # what comes before matters to it, as to a quotation mark
            text += whole[written:] + (self.vocabulary[tokens[end]] if end < len(tokens) else "")
            written = len(whole)
        return text

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Example `row`: `text`, `tokens`, `names` and `mentions`.

        `names` maps each character's name to its two token ids. `mentions` lists, in order, the `position` of each
        second token, the name's `character` and which `mention` of it this is, from 1 on.
        """
        tokens = examples.tokens[row, : examples.lengths[row]].tolist()
        mention = examples.token_features["mention"][row]
        names = {place: tokens[place - 1 : place + 1] for place in np.flatnonzero(mention).tolist()}
        return {
            "text": self.text(tokens),
            "names": {self.text(name): name for place, name in names.items() if mention[place] == 1},
            "mentions": [
                {"position": place, "character": self.text(name), "mention": int(mention[place])}
                for place, name in names.items()
            ],
            "tokens": tokens,
        }

    def answers(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> Answers:
        """Return a row for each mention of a name after its first; see `Task.answers`.

        - `names`: "fresh" or "pool".
        - `mention`: its number for this name: 2, 3, 4 or "5+".
        - `characters`: the number of characters introduced so far.
        - `tokens`: "seen" if both tokens of the name were in training names, else "unseen".
        - `seen`: True if the pair was a training name.
        - `second_token_accuracy`: True if the predicted second token is right.
        - `any_character`: True if it is the second token of any character so far, the right one or another.
        - `oracle`: the accuracy of perfect induction, which fails if no training name had the second token.
        - `class_copying`: the accuracy of the second token of a random character so far, among those that training had.
        - `chance`: the accuracy of a random second token.
        """
        # The true and the predicted token, and the character, of each mention.
        rows, places = np.nonzero(examples.score_mask)
        true, answer = examples.tokens[rows, places], predicted[rows, places]
        characters, mention = examples.token_features["character"], examples.token_features["mention"]
        character = characters[rows, places].astype(np.int64) - 1

        # Of each story's characters: the place of the first mention, and the second token.
        width = self.source.characters
        begins = np.full((len(characters), width), characters.shape[1])
        second = np.zeros((len(characters), width), np.uint16)
        row, place = np.nonzero(mention == 1)
        begins[row, characters[row, place] - 1] = place
        second[row, characters[row, place] - 1] = examples.tokens[row, place]
        introduced = begins[rows] < places[:, None]

        # The names and tokens that training had.
        pair_seen, first_seen, second_seen = np.split(seen, 3, axis=1)
        reachable = introduced & second_seen[rows, :width]
        both_seen = first_seen[rows, character] & second_seen[rows, character]
        copied = (reachable & (second[rows] == true[:, None])).sum(axis=1) / np.maximum(reachable.sum(axis=1), 1)
        return {
            "names": examples.slices["names"][rows],
            "mention": np.array([0, 1, 2, 3, 4, "5+"], object)[np.minimum(mention[rows, places], 5)],
            "characters": introduced.sum(axis=1),
            "tokens": np.where(both_seen, "seen", "unseen"),
            "seen": pair_seen[rows, character],
            "second_token_accuracy": answer == true,
            "any_character": (introduced & (second[rows] == answer[:, None])).any(axis=1),
            "oracle": second_seen[rows, character],
            "class_copying": copied,
            "chance": np.full(len(rows), 1 / self.law.seconds),
        }
