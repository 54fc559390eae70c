"""Induction on two-token names (arXiv 2404.19737, Section 4.1): names for stories, and scores of their second tokens.

A source gives story templates, whose names are open; here the names are filled in, and predictions are scored. A name
is two tokens. Scored is the second token of a name at every mention after the first: "A B ... A" asks for B, the
induction of Olsson et al. (2022).

    tokens    a fox named Mi ra . Soon Mi ra went to the pond . " Hello , Mi ra ! "
    mention                   1            2                               3
    scored                                 ^                               ^

Training names are from a pool with fixed frequencies or, with a stated share, fresh: a random pair of tokens.
Evaluation has each story twice: with fresh names, and with names of the pool. The names of a story differ in their
first tokens, and no refrain contains one of these. So perfect induction fails only for a second token that is unknown.
(With shared tokens, a first token may be the second token of another name.)

With hints (`Hint`) two more tokens stand behind each name. Both repeat its first token, in an alphabet of their own; or
both are fillers, which carry no information:

    hint: name      a fox named Mi ra [mi] [mi] . Soon Mi ra [mi] [mi] went
    hint: filler    a fox named Mi ra [] [] . Soon Mi ra [] [] went

The loss covers the second hint token only, so next-token prediction finds it in its last input. A head that predicts
two tokens ahead has to predict it at the name's second token, and for that attend to the token before. This is the
first half of induction: "A B ... A" can be matched once the position of B holds A. The same tokens are scored with and
without hints. Later names are predicted from the hints before them, which contain their first tokens; a model that
generates stories also has to generate the hints.

Hold-out: if all fresh test names together are at most 1 % of the pairs that can be a name, no training or validation
name is one of them (two neighbouring tokens of a refrain may be). A larger part, as with bytes and BPE, is not held
out, because a model could learn the gap. Validation names may occur in training. Scores are split into pairs seen and
unseen in training.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lab.tasks.base import Examples, Split, Task, check_indices
from lab.tasks.draws import epoch_indices, mixed, stream
from lab.tasks.scoring import Answers, Curve, Group, Metrics
from lab.tasks.stories.names import Names, NameSampler
from lab.tasks.tokenizers import Tokenizer, Tokens

HELD_OUT = 0.01
"""The largest share of all pairs that test names may be and still be held out."""

Hint = Literal["none", "filler", "name"]
"""The two tokens behind each name: none, two fillers, or two that repeat its first token."""


@dataclass(frozen=True)
class StoryTemplates:
    """N stories with open names."""

    tokens: NDArray[np.uint16]
    """[N, L] token ids, the end token included; 0 in place of a name's token, and beyond the end."""
    slots: NDArray[np.uint8]
    """[N, L] 1 + 2c in place of the first token of name c, 2 + 2c in place of the second, else 0. Characters have
    numbers below the source's largest number of characters, in any order; then come the `REFRAIN` pairs."""
    lengths: NDArray[np.int64]
    """[N]"""
    characters: NDArray[np.int64]
    """[N] the number of names that occur."""


class Source(Protocol):
    """A generator of stories."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the stories."""

    @property
    def characters(self) -> int:
        """The largest number of characters of a story."""

    def stories(self, split: Split) -> int | None:
        """Return the number of stories in a split; None when training is unlimited."""

    def max_length(self, split: Split) -> int:
        """Return an upper bound on the tokens of a story."""

    def templates(self, split: Split, indices: NDArray[np.int64], seed: int) -> StoryTemplates:
        """Return the stories of a split at `indices` [N], below `stories(split)`; `seed` changes training only."""


class StoryTask(Task):
    """The stories of a source with names, as a task; see the module's documentation."""

    def __init__(self, source: Source, names: Names, tokens: Tokens, hint: Hint = "none") -> None:
        """Give the stories of `source`, whose kind of tokens is `tokens`, names, and a `hint` behind each name."""
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
        """The text of each token id. With `hint`, the filler `[]` and all hints come last, also if not used."""
        known = self.source.tokenizer.vocabulary
        if self.hint == "none":
            return known
        return (*known, "[]", *(f"[{known[first]}]" for first in self._firsts))

    @cached_property
    def _firsts(self) -> list[int]:
        """The first tokens of names, in ascending order."""
        firsts: list[int] = np.unique(self.name_sampler.tokens[:, 0]).tolist()
        return firsts

    @cached_property
    def name_sampler(self) -> NameSampler:
        """The sampler of names; test names are held out if they are few.

        Raises:
            BadInput: the tokens do not have such names.
        """
        sampler = NameSampler(self.names, self.tokens, self.source.tokenizer, self.source.characters)
        stories = np.arange(self.source.stories("test") or 0)
        count = self.source.templates("test", stories, 0).characters
        drawn = sampler.draw(("names", "test", "fresh"), stories, 1.0, self.names.unseen, free=True)
        occurs = np.arange(sampler.characters) < count[:, None]
        used = np.unique(drawn[:, : sampler.characters][occurs])
        if np.count_nonzero(used < sampler.usual) <= HELD_OUT * sampler.usual:
            sampler.held_out[used] = True
        return sampler

    def size(self, split: Split) -> int | None:
        """Return the number of examples: each evaluation story occurs with fresh names, then with names of the pool."""
        return None if split == "train" else 2 * (self.source.stories(split) or 0)

    def max_length(self, split: Split) -> int:
        """Return an upper bound on the tokens of one example of a split: at most one token in three ends a name."""
        longest = self.source.max_length(split)
        return longest if self.hint == "none" else longest + 2 * (longest // 3)

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """Return the stories of a split at `indices` [N]; see `Task.examples`.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """
        check_indices(split, indices, self.size(split))

        # The stories, and their names.
        stories, count = indices, self.source.stories(split)
        pooled = np.zeros(len(indices), np.bool_)
        if split == "train":
            stories = indices if count is None else epoch_indices("stories", indices, count, seed)
            drawn = self.name_sampler.draw(("names", split, seed), stories, self.names.fresh, 0.0, free=False)
        else:
            stories, pooled = indices % (count or 1), indices >= (count or 0)
            free, unseen = split == "test", self.names.unseen
            drawn = self.name_sampler.draw(("names", split, "fresh"), stories, 1.0, unseen, free)
            drawn[pooled] = self.name_sampler.draw(("names", split, "pool"), stories[pooled], 0.0, 0.0, free=False)
        templates = self.source.templates(split, stories, seed)
        examples = self._named(templates, drawn, np.where(pooled, "pool", "fresh"))
        return examples if self.hint == "none" else self._hinted(examples)

    def _named(self, templates: StoryTemplates, drawn: NDArray[np.int64], kind: NDArray[np.str_]) -> Examples:
        """Return the stories with the names `drawn` [N, characters + REFRAIN] filled in; `kind` [N] is their slice."""
        # The tokens of names.
        slots, lengths = templates.slots, templates.lengths
        rows, places = np.nonzero(slots)
        slot = slots[rows, places] - 1
        names = self.name_sampler.tokens[drawn]
        tokens = templates.tokens.copy()
        tokens[rows, places] = names[rows, slot // 2, slot % 2]

        # Of each token of a name its character, and of each second token the number of the mention.
        character, mention = np.zeros_like(slots), np.zeros_like(slots)
        is_character = slot // 2 < self.name_sampler.characters  # the others are of the refrain
        character[rows[is_character], places[is_character]] = 1 + slot[is_character] // 2
        for name in range(self.name_sampler.characters):
            second = slots == 2 + 2 * name
            mention += np.minimum(np.cumsum(second, axis=1), 255).astype(np.uint8) * second

        # Fingerprints of the pairs that occur, and of their first and second tokens.
        refrain = np.any(slots > 2 * self.name_sampler.characters, axis=1)
        used = np.where(
            np.arange(drawn.shape[1]) < self.name_sampler.characters,
            np.arange(drawn.shape[1]) < templates.characters[:, None],
            refrain[:, None],
        )
        keys = np.concatenate([self._pair_keys[drawn], *self._token_keys[names].transpose(2, 0, 1)], axis=1)
        document = np.arange(tokens.shape[1]) < lengths[:, None]
        return Examples(
            tokens=tokens,
            lengths=lengths,
            loss_mask=document,
            score_mask=mention > 1,
            slices={"names": kind, "characters": templates.characters},
            fingerprints=keys * np.tile(used, 3),
            token_features={"character": character, "mention": mention},
        )

    def _hinted(self, plain: Examples) -> Examples:
        """Return the examples with hints, or fillers, behind their names."""
        # Every token moves by two for each name before it.
        second = plain.token_features["mention"] > 0
        lengths = plain.lengths + 2 * second.sum(axis=1)
        rows, places = np.nonzero(np.arange(second.shape[1]) < plain.lengths[:, None])
        moved = places + 2 * (np.cumsum(second, axis=1) - second)[rows, places]
        shape = (len(second), int(lengths.max(initial=0)))

        def with_gaps(values: NDArray[Any]) -> NDArray[Any]:
            result = np.zeros(shape, values.dtype)
            result[rows, moved] = values[rows, places]
            return result

        # The gaps have the hints; the loss covers the second one of each name.
        tokens, loss_mask, hints = with_gaps(plain.tokens), with_gaps(plain.loss_mask), np.zeros(shape, np.uint8)
        row, place = np.nonzero(with_gaps(second))
        filler = len(self.source.tokenizer.vocabulary)
        hint = filler + 1 + np.searchsorted(self._firsts, tokens[row, place - 1]) if self.hint == "name" else filler
        for behind in (1, 2):
            tokens[row, place + behind], hints[row, place + behind] = hint, 1
        loss_mask[row, place + 2] = True
        features = {name: with_gaps(values) for name, values in plain.token_features.items()}
        return replace(
            plain,
            tokens=tokens,
            lengths=lengths,
            loss_mask=loss_mask,
            score_mask=with_gaps(plain.score_mask),
            token_features={**features, "hint": hints},
        )

    @cached_property
    def _token_keys(self) -> NDArray[np.uint64]:
        """[vocabulary] a hash of each name token's text, equal in all tasks; 0 for other tokens."""
        known = self.source.tokenizer.vocabulary
        keys = np.zeros(len(known), np.uint64)
        for token in np.unique(self.name_sampler.tokens).tolist():
            keys[token] = stream("token", known[token])
        return keys

    @cached_property
    def _pair_keys(self) -> NDArray[np.uint64]:
        """[names] a hash of each name."""
        first, second = self._token_keys[self.name_sampler.tokens].T
        return mixed(mixed(first.copy()) + second)

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Return the type of each token [N, L]: of a name (by mention), hint, or other; see `Task.token_type`."""
        mention = examples.token_features["mention"]
        kind = (examples.token_features["character"] > 0).astype(np.uint8) + (mention > 0) + (mention > 1)
        return kind if self.hint == "none" else kind + 4 * examples.token_features["hint"]

    def text(self, tokens: Sequence[int]) -> str:
        """Return tokens as readable text, hints in brackets."""
        decode, known = self.source.tokenizer.decode, len(self.source.tokenizer.vocabulary)
        hints = [place for place, token in enumerate(tokens) if token >= known]
        before: list[int] = []
        text, written = "", 0
        for begin, end in itertools.pairwise([-1, *hints, len(tokens)]):
            before += tokens[begin + 1 : end]
            whole = decode(before)  # decoding depends on the tokens before, as for a quotation mark
            text += whole[written:]
            if end < len(tokens):
                text += self.vocabulary[tokens[end]]
            written = len(whole)
        return text

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Return example `row` as `text`, `tokens`, `names` and `mentions`.

        `names` maps each character's name to its two token ids. `mentions` lists, in order, the `position` of each
        second token, the `character` that it names, and the number of the `mention`, from 1 on.
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
            "chance": np.full(len(rows), 1 / self.name_sampler.seconds),
        }
