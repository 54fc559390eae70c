"""Agreement with later tokens: words whose form a later word determines (arXiv 2404.19737, Appendix L.4).

The appendix's example is German. The verb, at the end of its clause, determines the case, and the noun the gender; the
article and the adjectives, which come first, show both. A document is a list of clauses with the same slots:

    slots      article  adjective  noun  adverb  verb   stop
    tokens     den      alten      Hund  gern    sieht  .
               dem      neuen      Kind  nie     hilft  .
    scored              ^          ^             ^

Gender (three values) and case (four) are uniform and independent. Nouns are uniform given the gender, verbs given the
case; stems of adjectives, and adverbs, are uniform. Forms coincide as they do in German: "der" is masculine nominative,
or feminine dative or genitive; "dem" is dative, masculine or neuter; "den" is unambiguous. So articles differ in the
information that they give about noun and verb. Nouns are not inflected ("des Hund", where German has "des Hundes"),
because their form would show the case too.

Entropies. The tokens of a clause depend on each other only through the pair of gender and case, one of twelve. At any
position a set of pairs is possible, all equally likely; every entropy follows from this set.
"""

import itertools
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lab.config import Config
from lab.tasks.base import Examples, Split, Task, check_indices
from lab.tasks.draws import below, draws32, stream
from lab.tasks.scoring import Answers, Curve, Group, Metrics

_ARTICLES = ("der", "die", "das", "den", "dem", "des")
_DECLENSION = ("der die das", "den die das", "dem der dem", "des der des")
"""The article by case (nominative, accusative, dative, genitive) and gender (masculine, feminine, neuter)."""
_WEAK = ("e e e", "en e e", "en en en", "en en en")
"""The ending of an adjective after such an article."""
_ENDINGS = ("e", "en")
_STEMS = ("alt", "neu", "klein", "groß", "jung", "schön", "leis", "bunt")
_NOUNS = (
    ("Hund", "Mann", "Baum", "Fisch", "Stein", "König", "Vogel", "Tisch"),
    ("Frau", "Katze", "Blume", "Stadt", "Maus", "Tür", "Uhr", "Hand"),
    ("Kind", "Haus", "Buch", "Pferd", "Bild", "Dorf", "Schiff", "Feld"),
)
_ADVERBS = ("heute", "gern", "oft", "nie", "bald", "immer", "dort", "wieder")
_VERBS = (
    ("ist", "bleibt", "wird", "heißt"),
    ("sieht", "kennt", "liebt", "sucht"),
    ("hilft", "dankt", "folgt", "traut"),
    ("gedenkt", "bedarf", "harrt", "entbehrt"),
)
_SLOTS = ("article", "adjective", "noun", "adverb", "verb", "stop")
_ARTICLE, _ADJECTIVE, _NOUN, _ADVERB, _VERB, _STOP = range(6)

# Pair number 3 · case + gender: the form of each kind of word.
_PAIRS = np.arange(12)
_GENDER, _CASE = _PAIRS % 3, _PAIRS // 3
_ARTICLE_OF = np.array([_ARTICLES.index(form) for row in _DECLENSION for form in row.split()])
_ENDING_OF = np.array([_ENDINGS.index(form) for row in _WEAK for form in row.split()])
_SHOWN = (_ARTICLE_OF, _ENDING_OF, _GENDER, None, _CASE, None)
"""The property of the pair that a token in each slot shows; None: none."""
_CHOICES = np.array([1, len(_STEMS), len(_NOUNS[0]), len(_ADVERBS), len(_VERBS[0]), 1])
"""The number of tokens in each slot that show the same property of the pair; one of them is drawn."""


class Agreement(Config):
    """Clauses whose first words agree with their last."""

    name: Literal["agreement"] = "agreement"
    adjectives: int = Field(default=1, ge=0, le=16)
    """Adjectives between article and noun."""
    adverbs: int = Field(default=1, ge=0, le=64)
    """Adverbs between noun and verb. They carry no information, and move the verb further away."""
    clauses: int = Field(default=8, ge=1, le=256)
    """Clauses of a document."""
    validation_examples: int = Field(default=200, ge=1, le=1_000_000)
    """Validation documents."""
    test_examples: int = Field(default=500, ge=1, le=1_000_000)
    """Test documents."""

    def build(self) -> "AgreementTask":
        """Return the task of this config."""
        return AgreementTask(self)


class AgreementTask(Task):
    """Agreement as a task; see the module's documentation."""

    metrics = Metrics(
        metric="agreement",
        baselines=("chance", "oracle"),
        groups=(Group("slot", values=("adjective", "noun", "verb")),),
        curves=(Curve(("agreement",)), Curve(("agreement",), {"slot": "verb"}, name="agreement_verb")),
        token_types=_SLOTS,
    )

    def __init__(self, config: Agreement) -> None:
        self.config = config
        nouns, verbs = itertools.chain(*_NOUNS), itertools.chain(*_VERBS)
        adjectives = [stem + ending for ending in _ENDINGS for stem in _STEMS]
        words = (list(_ARTICLES), adjectives, list(nouns), list(_ADVERBS), list(verbs), ["."])
        self.vocabulary = tuple(word for slot in words for word in slot)
        self._firsts = np.cumsum([0, *map(len, words)])
        """The first token of each slot, then the number of tokens."""
        self._plan = np.array(
            [_ARTICLE, *[_ADJECTIVE] * config.adjectives, _NOUN, *[_ADVERB] * config.adverbs, _VERB, _STOP]
        )

    def size(self, split: Split) -> int | None:
        """Return the number of examples in a split."""
        sizes = {"train": None, "validation": self.config.validation_examples, "test": self.config.test_examples}
        return sizes[split]

    def max_length(self, split: Split) -> int:
        """Return the number of tokens of every example."""
        return self.config.clauses * len(self._plan)

    def examples(self, split: Split, indices: NDArray[np.int64], seed: int) -> Examples:
        """Return the documents of a split at `indices` [N]; see `Task.examples`.

        Raises:
            IndexError: an index is negative, or beyond the split's size.
        """
        check_indices(split, indices, self.size(split))
        names = ("agreement", split, seed) if split == "train" else ("agreement", split)
        shape = (len(indices), self.config.clauses, 1 + len(self._plan))
        random = draws32(stream(*names), indices, shape[1] * shape[2]).reshape(shape)
        pair = below(len(_PAIRS), random[..., 0]).astype(np.int64)
        clauses = np.empty((*shape[:2], len(self._plan)), np.uint16)
        for place, slot in enumerate(self._plan.tolist()):
            among = below(int(_CHOICES[slot]), random[..., 1 + place]).astype(np.int64)
            shown = _SHOWN[slot]
            group = 0 if shown is None else shown[pair]
            clauses[..., place] = self._firsts[slot] + group * _CHOICES[slot] + among
        tokens = clauses.reshape(len(indices), -1)
        slots = np.broadcast_to(np.tile(self._plan, self.config.clauses), tokens.shape)
        return Examples(
            tokens=tokens,
            lengths=np.full(len(indices), tokens.shape[1]),
            loss_mask=np.ones(tokens.shape, np.bool_),
            score_mask=(slots == _ADJECTIVE) | (slots == _NOUN) | (slots == _VERB),
            slices={},
            fingerprints=np.zeros((len(indices), 0), np.uint64),  # no document is likely to occur twice
            token_features={"pair": np.repeat(pair, len(self._plan), axis=1).astype(np.uint8)},
        )

    def token_type(self, examples: Examples) -> NDArray[np.uint8]:
        """Return the slot of each token [N, L]; see `Task.token_type`."""
        return np.broadcast_to(np.tile(self._plan, self.config.clauses), examples.tokens.shape).astype(np.uint8)

    @cached_property
    def _known(self) -> NDArray[np.bool_]:
        """[12, P + 1, 12] True for pairs that are possible after p tokens of a clause of the first pair."""
        known = np.ones((len(_PAIRS), len(self._plan) + 1, len(_PAIRS)), np.bool_)
        for place, slot in enumerate(self._plan.tolist()):
            shown = _SHOWN[slot]
            consistent = True if shown is None else shown[:, None] == shown
            known[:, place + 1] = known[:, place] & consistent
        return known

    @cached_property
    def _floors(self) -> NDArray[np.float64]:
        """[12, P + 1, 6] the entropy in nats of the next token of each slot, given these possible pairs."""
        floors = np.broadcast_to(np.log(_CHOICES), (*self._known.shape[:2], len(_SLOTS))).copy()
        share = self._known / self._known.sum(axis=2, keepdims=True)
        for slot, shown in enumerate(_SHOWN):
            if shown is not None:
                groups = share @ (shown[:, None] == np.arange(shown.max() + 1))
                floors[..., slot] -= (groups * np.log(np.where(groups > 0, groups, 1.0))).sum(axis=2)
        return floors

    def entropies(self, examples: Examples, n: int) -> NDArray[np.float64]:
        """Return H(x_{t+i} | x_1..x_t) in nats, in closed form; see `HasEntropies.entropies`."""
        length, clause = examples.tokens.shape[1], len(self._plan)
        pair, here = examples.token_features["pair"], np.arange(length)
        found = np.full((*examples.tokens.shape, n), np.nan)
        for ahead in range(1, n + 1):
            there = here[: length - ahead] + ahead
            read = np.where(there // clause == here[: length - ahead] // clause, here[: length - ahead] % clause + 1, 0)
            found[:, : length - ahead, ahead - 1] = self._floors[pair[:, there], read, self._plan[there % clause]]
        return found

    def record(self, examples: Examples, row: int) -> dict[str, Any]:
        """Return example `row` as `text`, `clauses` (the `gender` and `case` of each) and `tokens`."""
        pairs = examples.token_features["pair"][row, :: len(self._plan)].astype(np.int64)
        genders, cases = ("masculine", "feminine", "neuter"), ("nominative", "accusative", "dative", "genitive")
        return {
            "text": self.text(examples.tokens[row].tolist()),
            "clauses": [
                {"gender": genders[gender], "case": cases[case]}
                for gender, case in zip(_GENDER[pairs].tolist(), _CASE[pairs].tolist(), strict=True)
            ],
            "tokens": examples.tokens[row].tolist(),
        }

    def answers(self, examples: Examples, predicted: NDArray[np.uint16], seen: NDArray[np.bool_]) -> Answers:
        """Return a row for each adjective, noun and verb; see `Task.answers`.

        - `slot`: "adjective", "noun" or "verb".
        - `agreement`: True if the predicted word is of this slot and agrees with the words before it in the clause.
        - `chance`: the probability that a random word of the slot agrees.
        - `oracle`: 1.
        """
        rows, places = np.nonzero(examples.score_mask)
        clause = len(self._plan)
        pair, slot = examples.token_features["pair"][rows, places], self._plan[places % clause]
        known = self._known[pair, places % clause]
        answer = predicted[rows, places].astype(np.int64)
        agrees, chance = np.zeros(len(rows), np.bool_), np.zeros(len(rows))
        for number in (_ADJECTIVE, _NOUN, _VERB):
            mine, shown = slot == number, _SHOWN[number]
            assert shown is not None
            possible = known[mine] @ (shown[:, None] == np.arange(shown.max() + 1)) > 0  # by what the word shows
            inside = (answer[mine] >= self._firsts[number]) & (answer[mine] < self._firsts[number + 1])
            group = np.clip((answer[mine] - self._firsts[number]) // _CHOICES[number], 0, possible.shape[1] - 1)
            agrees[mine] = inside & possible[np.arange(len(group)), group]
            chance[mine] = possible.mean(axis=1)
        return {
            "slot": np.array(_SLOTS)[slot],
            "agreement": agrees,
            "chance": chance,
            "oracle": np.ones(len(rows)),
        }
