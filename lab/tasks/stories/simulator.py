"""A simulator of children's stories, many at once.

One to four characters wish for things, find them, ask for them, give them away, eat them, go from place to place, meet
and talk. Each sentence is an event that the state allows: only who is there can be spoken to, only what is held can be
given, and people know what they saw or were told. State is arrays over stories, so an event is chosen, told and carried
out in all of them by a few array operations; the words are in `lab.tasks.phrases`.

A story is a pure function of (seed, split, i), the arguments of `Simulator`, and how many tokens its words have.
Stories share phrases, no long text: of 100,000 default training stories, 3.4 % share 24 words in a row with another,
names as one symbol and marks left out; 0.04 % share 32, two of them 36, and none 40.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lab.errors import BadInput
from lab.tasks.base import Split
from lab.tasks.draws import below, draws32, stream
from lab.tasks.stories.induction import StoryTemplates
from lab.tasks.stories.names import REFRAIN
from lab.tasks.stories.phrases import (
    DREAMS,
    EVENTS,
    FOODS,
    KINDS,
    LOOKS,
    MANNERS,
    MOODS,
    OPENINGS,
    PACES,
    PLACES,
    TASTES,
    TOYS,
    TRAITS,
    WEATHERS,
)
from lab.tasks.tokenizers import Tokenizer, pieces

MOST_CHARACTERS = 4

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_PLACES_EACH, _TOYS_EACH, _THINGS_EACH = 3, 3, 4
"""Places and things of one story; the last thing is food."""
_FOOD = _THINGS_EACH - 1
_NOBODY, _GONE = -1, -2
"""Who holds a thing that lies somewhere, and one that was eaten; where what is eaten lies."""

_ATTEMPTS = 3
"""How often another sentence is tried before a story ends for want of room."""
_MEANWHILE = list(OPENINGS).index("Meanwhile")
_EVENTS = {name: event for event, name in enumerate(EVENTS)}
_WORD_SLOTS = {
    "trait": "trait", "traitB": "trait", "kind": "kind", "kindB": "kind", "t": "thing", "adj": "look",
    "p": "place", "in": "in", "q": "place", "inq": "in", "Inq": "In",
    "mood": "mood", "weather": "weather", "how": "how", "pace": "pace", "dream": "dream",
    "he": "he", "his": "his", "him": "him", "heB": "he", "himB": "him", "himD": "him",
}  # fmt: skip
"""The slots of one word, and the list that each is from."""
_SLOT_WIDTHS = {"X": 4, "S": 3, "N": 3, "A": 2, "B": 2, "D": 2, "magic": 2 * REFRAIN} | dict.fromkeys(_WORD_SLOTS, 1)
_SLOTS = {name: sum(list(_SLOT_WIDTHS.values())[:place]) for place, name in enumerate(_SLOT_WIDTHS)}
"""The first of each slot's places in a sentence's row of values."""


@dataclass(frozen=True)
class _Book:
    """The phrases, compiled. A piece is a word with the space before it, or punctuation; piece 0 is empty."""

    pieces: tuple[str, ...]
    sentences: NDArray[np.int32]
    """[P, L]: a piece, or -1 - the place of a slot's value; 0 beyond the end."""
    first: Ints
    """[events] the first sentence of each event; the others follow."""
    count: Ints
    weight: NDArray[np.uint32]
    has: dict[str, Bools]
    """[P] for S, N, A, B and D: whether a sentence has it."""
    hours: Ints
    """[openings, 2] from when to when each is said, and"""
    becomes: Ints
    """[openings] when it is then; -1 for no change."""
    words: dict[str, NDArray[np.int32]]
    """The pieces of each kind of word, in order; "X" is [openings, 4]."""


@lru_cache(maxsize=1)
def _book() -> _Book:
    known: dict[str, int] = {"": 0}

    def piece(text: str) -> int:
        return known.setdefault(text, len(known))

    def compiled(event: str, sentence: str) -> list[int]:
        codes: list[int] = []
        text = sentence if event == "begin" or sentence.startswith(("{S}", "{N}")) else " " + sentence
        parts = re.split(r"\{(\w+)\}", text)
        for literal, slot in zip(parts[::2], [*parts[1::2], ""], strict=True):
            spaced = slot in _WORD_SLOTS and slot != "Inq"  # their pieces begin with the space
            assert not spaced or literal.endswith(" "), sentence
            codes += [piece(each) for each in pieces(literal[:-1] if spaced else literal)]
            filled = ("X", "S") if slot == "S" else (slot,) if slot else ()
            codes += [-1 - (_SLOTS[name] + place) for name in filled for place in range(_SLOT_WIDTHS[name])]
        return codes

    def table(texts: list[str]) -> NDArray[np.int32]:
        return np.array([piece(text) for text in texts], np.int32)

    sentences = [(event, sentence) for event, (_, all_of_it) in EVENTS.items() for sentence in all_of_it]
    rows = [compiled(event, sentence) for event, sentence in sentences]
    width = max(map(len, rows))
    counts = np.array([len(told) for _, told in EVENTS.values()])
    openings = [[piece(each) for each in pieces(" " + text if text else "")] for text in OPENINGS]
    he = ["he", "she"]
    words = {
        "X": np.array([row + [0] * (_SLOT_WIDTHS["X"] - len(row)) for row in openings], np.int32),
        "space": table([" "]),
        "kind": table([f" {kind}" for kind in KINDS]),
        "trait": table([f" {trait}" for trait in TRAITS]),
        "thing": table([f" {thing}" for thing in (*TOYS, *FOODS)]),
        "look": table([f" {look}" for look in (*LOOKS, *TASTES)]),
        "mood": table([f" {mood}" for mood in MOODS]),
        "how": table([f" {manner}" for manner in MANNERS]),
        "pace": table([f" {pace}" for pace in PACES]),
        "dream": table([f" {dream}" for dream in DREAMS]),
        "weather": table([f" {weather}" for weather in WEATHERS]),
        "place": table([f" {place}" for place in PLACES]),
        "in": table([f" {preposition}" for preposition in PLACES.values()]),
        "In": table([preposition.capitalize() for preposition in PLACES.values()]),
        "he": table([f" {word}" for word in he]),
        "He": table([word.capitalize() for word in he]),
        "his": table([" his", " her"]),
        "him": table([" him", " her"]),
    }
    return _Book(
        pieces=tuple(known),
        sentences=np.array([row + [0] * (width - len(row)) for row in rows], np.int32),
        first=np.cumsum(counts) - counts,
        count=counts,
        weight=np.array([weight for weight, _ in EVENTS.values()], np.uint32),
        has={slot: np.array([f"{{{slot}}}" in told for _, told in sentences]) for slot in "SNABD"},
        hours=np.array([hours[:2] for hours in OPENINGS.values()]),
        becomes=np.array([-1 if hour is None else hour for _, _, hour in OPENINGS.values()]),
        words=words,
    )


def lexicon() -> tuple[str, ...]:
    """Return every piece that a story is made of, names aside."""
    return _book().pieces[1:]


class Simulator:
    """A source of stories; see the module's documentation."""

    characters = MOST_CHARACTERS

    def __init__(
        self,
        tokenizer: Tokenizer,
        characters: tuple[int, int],
        length: tuple[int, int],
        pronouns: float,
        refrains: float,
        counts: dict[Split, int | None],
    ) -> None:
        """Compile the phrases to tokens.

        Args:
            tokenizer: gives the tokens of words.
            characters: the fewest and the most characters of a story.
            length: a story's bound in tokens is drawn from this range; it ends with the last sentence that fits.
            pronouns: the share of pronouns among the subjects that could be one.
            refrains: the share of stories with a refrain.
            counts: the number of stories in each split; None is no end.

        Raises:
            BadInput: stories are too short for a beginning and an end.
        """
        self.tokenizer = tokenizer
        self._range, self._length, self._pronouns, self._refrains = characters, length, pronouns, refrains
        self._counts = counts
        book = _book()
        encoded = tokenizer.encode(book.pieces)
        self._lengths = np.array([len(each) for each in encoded] + [1] * 2 * (MOST_CHARACTERS + REFRAIN))
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._tokens = np.array([token for each in encoded for token in each] + [0] * 2 * (MOST_CHARACTERS + REFRAIN))
        self._slots = np.zeros(len(self._tokens), np.uint8)
        self._slots[-2 * (MOST_CHARACTERS + REFRAIN) :] = np.arange(1, 2 * (MOST_CHARACTERS + REFRAIN) + 1)
        self._reserve = max(self._longest(event) for event in EVENTS if event.startswith("end"))
        shortest = self._longest("begin") + self._reserve + 1
        if length[0] < shortest:
            raise BadInput(
                f"task.length: {list(length)} is not allowed: "
                f"a beginning and an end take up to {shortest} of these tokens"
            )

    def stories(self, split: Split) -> int | None:
        """Return the number of stories in a split; None when it is unlimited."""
        return self._counts[split]

    def max_length(self, split: Split) -> int:
        """Return an upper bound on the tokens of a story."""
        return self._length[1]

    def templates(self, split: Split, indices: Ints, seed: int) -> StoryTemplates:
        """Return the stories of a split at `indices` [N]. `seed` moves the training split alone."""
        names = ("stories", "plot", split, *((seed,) if split == "train" else ()))
        told, characters = _Telling(self, names, indices).whole()
        return self._tokenised(told, characters)

    def _longest(self, event: str) -> int:
        """Return an upper bound on the tokens of a sentence that tells `event`."""
        book, words = _book(), {name: int(self._lengths[table].max()) for name, table in _book().words.items()}
        costs = dict.fromkeys(_SLOT_WIDTHS, 1) | {slot: words[name] for slot, name in _WORD_SLOTS.items()}
        costs |= {"X": 3 * words["X"], "S": words["he"], "N": words["he"]}
        cost = np.array([costs[slot] for slot, width in _SLOT_WIDTHS.items() for _ in range(width)])
        first = book.first[_EVENTS[event]]
        told = book.sentences[first : first + book.count[_EVENTS[event]]]
        lengths = np.where(told < 0, cost[np.maximum(-1 - told, 0)], self._lengths[np.maximum(told, 0)])
        return int(lengths.sum(axis=1).max())

    def _tokenised(self, told: NDArray[np.int32], characters: Ints) -> StoryTemplates:
        """Pieces [N, W] as tokens, the end token after them."""
        lengths = self._lengths[told]
        totals = lengths.sum(axis=1)
        row, column = np.nonzero(lengths)
        spoken = told[row, column]
        times = lengths[row, column]
        offsets = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        where = np.repeat(self._starts[spoken], times) + offsets
        shape = (len(told), int(totals.max(initial=0)) + 1)
        inside = np.arange(shape[1]) < totals[:, None]
        tokens, slots = np.zeros(shape, np.uint16), np.zeros(shape, np.uint8)
        tokens[inside], slots[inside] = self._tokens[where], self._slots[where]
        tokens[np.arange(len(told)), totals] = self.tokenizer.end
        return StoryTemplates(tokens, slots, totals + 1, characters)


class _Telling:
    """N stories while they are told. Characters, places and things are numbers within a story, -1 is none."""

    def __init__(self, simulator: Simulator, names: tuple[str | int, ...], indices: Ints) -> None:
        self.simulator, self.names, self.indices = simulator, names, indices
        self.rows, count = np.arange(len(indices)), len(indices)
        columns = iter(draws32(stream(*names, "cast"), indices, 36 + len(EVENTS)).T)

        def drawn(bound: int, each: int = 1) -> Ints:
            return np.stack([below(bound, next(columns)) for _ in range(each)], axis=1).astype(np.int64)

        def different(bound: int, each: int) -> Ints:
            return _distinct(bound, np.stack([next(columns) for _ in range(each)], axis=1))

        low, high = simulator._range
        self.cast = low + drawn(high - low + 1)[:, 0]
        low, high = simulator._length
        self.left = low + drawn(high - low + 1)[:, 0] - 1
        self.refrain = next(columns) < np.uint64(simulator._refrains * 2**32)
        self.weather = drawn(len(WEATHERS))[:, 0]
        self.kind = different(len(KINDS), MOST_CHARACTERS)
        self.trait = different(len(TRAITS), MOST_CHARACTERS)
        both = np.array([len(each) for each in KINDS.values()]) == 2
        female = np.array([each[0] == "she" for each in KINDS.values()])
        self.gender = np.where(both[self.kind], drawn(2, MOST_CHARACTERS), female[self.kind])
        self.place = different(len(PLACES), _PLACES_EACH)
        self.thing = np.concatenate([different(len(TOYS), _TOYS_EACH), len(TOYS) + drawn(len(FOODS))], axis=1)
        self.look = np.concatenate([drawn(len(LOOKS), _TOYS_EACH), len(LOOKS) + drawn(len(TASTES))], axis=1)
        self.lies = drawn(_PLACES_EACH, _THINGS_EACH)
        self.turn = drawn(2**16, len(EVENTS)) % _book().count
        """[N, events] which sentence of an event is told first; the others follow in turn."""
        self.times = np.zeros_like(self.turn)
        """[N, events] how often each was told."""
        self.stale = np.zeros((len(EVENTS), count), np.uint32)
        """[events, N] each 1 halves the weight: an event whose sentences were all told becomes rare."""

        people = (count, MOST_CHARACTERS)
        self.met = np.ones(count, np.int64)
        self.at = np.full(people, -1)
        self.at[:, 0] = 0
        self.wish = np.full(people, -1)
        self.holder = np.full((count, _THINGS_EACH), _NOBODY)
        self.left_by = np.full((count, _THINGS_EACH), -1)
        """Who put down what lies somewhere; -1 for what nobody has found yet."""
        self.dear = np.zeros((count, _THINGS_EACH), bool)
        """What was wished for and is kept."""
        self.had = np.zeros((*people, _THINGS_EACH), bool)
        """Whether character c ever held thing t."""
        self.heard = np.zeros((*people, MOST_CHARACTERS), bool)
        """Whether c was told what d wishes for."""
        self.saw = np.full((*people, MOST_CHARACTERS), -1, np.int8)
        """Where c believes that d is."""
        self.thinks = np.full((*people, _THINGS_EACH), -1, np.int8)
        """Who c believes has t."""
        self.event, self.actor, self.subject = (np.full(count, start) for start in (_EVENTS["end wishing"], 0, -1))
        """The last event, who acted in it, and whom "he" or "she" would mean; -1 if that is not clear."""
        self.scene, self.hour, self.opening = (np.zeros(count, np.int64) for _ in range(3))
        """Where the last event took place, the time (see `OPENINGS`), the last opening."""
        self.about, self.third, self.there = (np.full(count, -1) for _ in range(3))
        """The thing, the third character and the other place of an event."""
        self.after, self.opened = (np.zeros(count, np.int64) for _ in range(2))
        """What `subject` will be once the event is told, and its opening."""

    def whole(self) -> tuple[NDArray[np.int32], Ints]:
        """Tell all stories: their pieces [N, W], and the number of characters met [N]."""
        told, going = [np.zeros((len(self.indices), 1), np.int32)], np.ones(len(self.indices), bool)
        while going.any():
            random = draws32(stream(*self.names, "step", len(told) - 1), self.indices, 18 + _ATTEMPTS)
            told.append(self._sentence(random, going, "begin" if len(told) == 1 else ""))
        return np.concatenate(told, axis=1), self.met

    def _sentence(self, random: NDArray[np.uint32], going: Bools, part: str) -> NDArray[np.int32]:
        """Return the next sentence of each story that is `going`; those that have no room left end, and go no more."""
        self._look_around(random)
        weights = self._weights()
        event = self._chosen(weights, part, random[:, 8])
        sentence = self._worded(self.rows, event, random)
        room, lengths = self.left - self.simulator._reserve, self.simulator._lengths
        for attempt in () if part else range(_ATTEMPTS):  # to find something short
            rows = np.flatnonzero(going & (lengths[sentence].sum(axis=1) > room))
            event[rows] = self._chosen(weights[:, rows], part, random[rows, 18 + attempt])
            sentence[rows] = self._worded(rows, event[rows], random)
        full = lengths[sentence].sum(axis=1) > room
        rows = np.flatnonzero(full & going)
        event[rows] = self._chosen(weights[:, rows], "end", random[rows, 8])
        sentence[rows] = self._worded(rows, event[rows], random)
        event[~going], sentence[~going] = _EVENTS["end alone"], 0
        self.left -= lengths[sentence].sum(axis=1)
        going &= ~full
        self._carry_out(event)
        return sentence

    def _look_around(self, random: NDArray[np.uint32]) -> None:
        """Who acts, who is near and far, and which things they could do something with."""
        rows = self.rows
        self.scene = self.at[rows, self.actor]
        others = np.arange(MOST_CHARACTERS) < self.met[:, None]
        likely = others & ((self.at == self.scene[:, None]) | (random[:, 0] < 2**29)[:, None])
        self.actor = np.where(random[:, 0] < 2**31, _picked(likely, random[:, 1]), self.actor)
        self.here = self.at[rows, self.actor]
        others[rows, self.actor] = False
        together = self.at == self.here[:, None]
        self.near = _picked(others & together, random[:, 2])
        self.far = _picked(others & ~together, random[:, 3])
        self.wished = self.wish[rows, self.actor]
        self.near_wish = np.where(self.near >= 0, self.wish[rows, self.near], -1)
        self.where = np.where(self.holder >= 0, np.take_along_axis(self.at, np.maximum(self.holder, 0), 1), self.lies)
        self.where[self.holder == _GONE] = _GONE
        mine = (self.holder == self.actor[:, None]) & ~self.dear
        lying = (self.holder == _NOBODY) & (self.where == self.here[:, None])
        new, things = self.left_by < 0, np.arange(_THINGS_EACH)
        fits = things != self.wished[:, None]
        had = self.had[rows, self.actor]
        held = self.holder == self.actor[:, None]
        self.toy = _picked(held & (things != _FOOD), random[:, 4])
        self.spare = _picked(mine & (things != _FOOD), random[:, 4])
        self.gift = _picked(mine & ~self.had[rows, self.near] & (things != self.near_wish[:, None]), random[:, 5])
        self.new = _picked(lying & new & fits, random[:, 6])
        self.old = _picked(lying & ~new & fits & (self.left_by != self.actor[:, None]), random[:, 7])
        self.wanted = _picked(~had & (self.holder != _GONE) & ~self.dear & ~lying, random[:, 10])
        known = (self.thinks[rows, self.near] == self.far[:, None]) & (
            self.thinks[rows, self.actor] != self.far[:, None]
        )
        self.news = _picked(known & (self.holder == self.far[:, None]) & (self.far >= 0)[:, None], random[:, 11])

    def _weights(self) -> NDArray[np.uint32]:
        """How likely each event is [events, N]: 0 if the state does not allow it, less once its sentences are told."""
        rows, actor = self.rows, self.actor
        near, far, wished = self.near >= 0, self.far >= 0, self.wished >= 0
        owner = self.holder[rows, self.wished]
        here = wished & (self.where[rows, self.wished] == self.here)
        lies = here & (owner == _NOBODY)
        new = self.left_by[rows, self.wished] < 0
        told = near & self.heard[rows, actor, self.near]
        theirs = near & (self.near_wish >= 0)
        granted = theirs & (self.holder[rows, self.near_wish] == actor) & ~self.dear[rows, self.near_wish]
        food = (self.holder[:, _FOOD] == actor) & ~(self.wish == _FOOD).any(axis=1)
        where = self.at[rows, self.far]
        friend = far & (self.saw[rows, actor, self.far] >= 0)
        knows, near_knows = (far & (self.saw[rows, who, self.far] == where) for who in (actor, self.near))
        has = (owner >= 0) & (self.thinks[rows, self.near, self.wished] == owner)
        can = {
            "begin": np.True_,
            "meet": self.met < self.cast,
            "wish": ~wished & (self.wanted >= 0),
            "tell wish": wished & near & ~here & ~self.heard[rows, self.near, actor],
            "recall wish": theirs & told & (self.where[rows, self.near_wish] != self.here),
            "go": np.True_,
            "go together": near,
            "join": knows,
            "surprise": friend & ~knows,
            "find": self.new >= 0,
            "pick up": self.old >= 0,
            "wish comes true": lies & new,
            "wish was left": lies & ~new,
            "give": near & (self.gift >= 0),
            "grant": granted & ~told,
            "grant told wish": granted & told,
            "ask": near & here & (owner == self.near) & ~self.dear[rows, self.wished],
            "put down": self.spare >= 0,
            "play": near & (self.toy >= 0),
            "use": self.toy >= 0,
            "eat": food,
            "share": near & food,
            "chat": near,
            "where": near & near_knows & friend & ~knows,
            "who has it": near & wished & ~here & has,
            "news": near & friend & (self.news >= 0),
            "think": knows,
            "wonder": friend & ~knows,
            "glad": ~wished,
            "sad": wished & ~here,
            "scene": np.True_,
            "rest": np.True_,
            "magic": self.refrain,
            "end alone": ~near & ~friend,
            "end together": near,
            "end apart": friend,
            "end wishing": wished & ~here,
        }
        weights = np.empty((len(_EVENTS), len(rows)), np.uint32)
        for name, possible in can.items():
            weights[_EVENTS[name]] = possible
        weights *= _book().weight[:, None] << np.uint32(6)
        weights >>= self.stale
        magic = _EVENTS["magic"]
        weights[magic] <<= np.uint32(2) * (self.times[:, magic] == 1).astype(np.uint32)  # a refrain comes back
        weights[self.event, rows] *= self.event == _EVENTS["meet"]  # nothing else twice in a row
        return weights

    def _chosen(self, weights: NDArray[np.uint32], part: str, random: NDArray[np.uint32]) -> Ints:
        """An event for each story of `weights` [events, n]: a beginning or end if `part` says so, else one between."""
        of = [next((each for each in ("begin", "end") if name.startswith(each)), "") for name in _EVENTS]
        reached = (weights * np.array([[each == part] for each in of])).cumsum(axis=0, dtype=np.uint32)
        chosen: Ints = (reached <= below(reached[-1], random)).sum(axis=0)
        return chosen

    def _decide(self, rows: Ints, event: Ints, random: NDArray[np.uint32]) -> None:
        """Which thing, third character and other place the `event` in the stories `rows` is about."""

        def by_event(usual: Ints, special: dict[str, Ints]) -> Ints:
            which = np.zeros(len(_EVENTS), np.int64)
            for place, names in enumerate(special, start=1):
                which[[_EVENTS[name] for name in names.split(", ")]] = place
            chosen: Ints = np.stack([usual, *special.values()])[which[event], rows]
            return chosen

        about = {"wish": self.wanted, "find": self.new, "pick up": self.old, "give": self.gift, "put down": self.spare}
        about |= {"grant, grant told wish, recall wish": self.near_wish, "play, use": self.toy, "news": self.news}
        self.about[rows] = by_event(self.wished, about | {"eat, share": np.full_like(self.wished, _FOOD)})
        left_by, owner = (each[self.rows, self.about] for each in (self.left_by, self.holder))
        self.third[rows] = by_event(self.far, {"pick up, wish was left": left_by, "who has it": owner})
        elsewhere = (self.here + 1 + below(_PLACES_EACH - 1, random[:, 12]).astype(np.int64)) % _PLACES_EACH
        self.there[rows] = by_event(elsewhere, {"join, surprise, where, think": self.at[self.rows, self.third]})

    def _worded(self, rows: Ints, event: Ints, random: NDArray[np.uint32]) -> NDArray[np.int32]:
        """The sentences [n, L], in pieces, that tell `event` in the stories `rows`; `random` is of all stories."""
        self._decide(rows, event, random)
        book, words, every = _book(), _book().words, np.arange(len(rows))
        sentence = book.first[event] + (self.turn[rows, event] + self.times[rows, event]) % book.count[event]
        has = {slot: table[sentence] for slot, table in book.has.items()}
        actor, third, thing, here, there = (
            each[rows] for each in (self.actor, self.third, self.about, self.here, self.there)
        )
        near = np.where(event == _EVENTS["meet"], self.met[rows], self.near[rows])
        gender, place = self.gender[rows], self.place[rows]
        he, heB, himD = (gender[every, who] for who in (actor, near, third))

        late = self.hour[rows]
        fits = (book.hours[:, 0] <= late[:, None]) & (late[:, None] <= book.hours[:, 1])
        fits[every, self.opening[rows]] = False
        elsewhere = self.scene[rows] != here
        plain = (random[rows, 13] < 2**31) & (late > 0)
        opening = np.where(plain, 0, _picked(fits, random[rows, 14]))
        opening = np.where(elsewhere, _MEANWHILE * (self.opening[rows] != _MEANWHILE), opening) * has["S"]
        pronoun = (self.subject[rows] == actor) & (random[rows, 15] < np.uint64(self.simulator._pronouns * 2**32))

        values = np.zeros((sum(_SLOT_WIDTHS.values()), len(rows)), np.int32)
        first, space = len(book.pieces), words["space"][0]

        def put(slot: str, *pieces: NDArray[np.int32] | NDArray[np.int64] | int) -> None:
            for place, piece in enumerate(pieces, start=_SLOTS[slot]):
                values[place] = piece

        put("X", *words["X"][opening].T)
        for slot, opened in (("S", opening > 0), ("N", np.zeros(len(rows), bool))):
            put(
                slot,
                np.where(pronoun & opened, words["he"][he], space),
                np.where(pronoun, np.where(opened, 0, words["He"][he]), first + 2 * actor),
                np.where(pronoun, 0, first + 2 * actor + 1),
            )
        for slot, who in (("A", actor), ("B", near), ("D", third)):
            put(slot, first + 2 * who, first + 2 * who + 1)
        put("magic", *range(first + 2 * MOST_CHARACTERS, first + 2 * (MOST_CHARACTERS + REFRAIN)))
        chances = {
            slot: below(len(words[slot]), random[rows, column]).astype(np.int64)
            for slot, column in (("mood", 9), ("how", 16), ("pace", 16), ("dream", 17))
        }
        chosen = chances | {
            "trait": self.trait[rows, actor], "traitB": self.trait[rows, near],
            "kind": self.kind[rows, actor], "kindB": self.kind[rows, near],
            "t": self.thing[rows, thing], "adj": self.look[rows, thing],
            "p": place[every, here], "in": place[every, here],
            "q": place[every, there], "inq": place[every, there], "Inq": place[every, there],
            "weather": self.weather[rows],
            "he": he, "his": he, "him": he, "heB": heB, "himB": heB, "himD": himD,
        }  # fmt: skip
        for slot, which in chosen.items():
            put(slot, words[_WORD_SLOTS[slot]][which])
        codes = book.sentences[sentence]
        told = np.where(codes < 0, values[np.maximum(-1 - codes, 0), every[:, None]], codes)

        new = event == _EVENTS["meet"]  # nobody knows yet whether B is a he or a she
        others = (has["B"] & (new | (heB == he))) | (has["D"] & (himD == he))
        unnamed = np.where(has["B"] | has["D"], -1, self.subject[rows])
        self.after[rows] = np.where(has["A"] | has["S"] | has["N"], np.where(others, -1, actor), unnamed)
        self.opened[rows] = opening
        return told

    def _carry_out(self, event: Ints) -> None:
        """What the events change."""
        self.event, self.subject = event, self.after.copy()
        later, begun = _book().becomes[self.opened], event != _EVENTS["begin"]
        self.hour = np.where(later < 0, np.maximum(self.hour, begun), later)
        self.opening = np.where(self.opened > 0, self.opened, self.opening)
        self.times[self.rows, event] += 1
        rounds = self.times[self.rows, event] // _book().count[event]
        self.stale[event, self.rows] = np.minimum(3 * rounds, 6)

        def of(*names: str) -> tuple[Ints, Ints, Ints, Ints]:
            """Return the stories in which one of these events took place; A, B and the thing there."""
            rows = np.flatnonzero(np.isin(event, [_EVENTS[name] for name in names]))
            return rows, self.actor[rows], self.near[rows], self.about[rows]

        rows, *_ = of("meet")
        self.at[rows, self.met[rows]] = self.here[rows]
        self.met[rows] += 1
        rows, actor, _, thing = of("wish")
        self.wish[rows, actor] = thing
        self.heard[rows, :, actor] = False
        rows, actor, near, _ = of("tell wish")
        self.heard[rows, near, actor] = True
        rows, actor, *_ = of("where")
        self.saw[rows, actor, self.far[rows]] = self.there[rows]
        rows, actor, _, thing = of("who has it", "news")
        self.thinks[rows, actor, thing] = self.third[rows]
        rows, actor, *_ = of("go", "go together", "join", "surprise")
        seen = self.at[rows] == self.here[rows, None]
        self.saw[rows, :, actor] = np.where(seen, self.there[rows, None], self.saw[rows, :, actor])
        self.at[rows, actor] = self.there[rows]
        rows, _, near, _ = of("go together")
        self.saw[rows, :, near] = np.where(
            self.at[rows] == self.here[rows, None], self.there[rows, None], self.saw[rows, :, near]
        )
        self.at[rows, near] = self.there[rows]
        rows, actor, _, thing = of("find", "pick up", "wish comes true", "wish was left", "ask")
        self.holder[rows, thing] = actor
        rows, actor, _, thing = of("wish comes true", "wish was left", "ask")
        self.wish[rows, actor] = -1
        self.dear[rows, thing] = True
        rows, _, near, thing = of("give", "grant", "grant told wish")
        self.holder[rows, thing] = near
        rows, _, near, thing = of("grant", "grant told wish")
        self.wish[rows, near] = -1
        self.dear[rows, thing] = True
        rows, actor, _, thing = of("put down")
        self.holder[rows, thing], self.left_by[rows, thing], self.lies[rows, thing] = _NOBODY, actor, self.here[rows]
        rows, *_, thing = of("eat", "share")
        self.holder[rows, thing] = _GONE
        self._look_at_each_other()

    def _look_at_each_other(self) -> None:
        """Everyone sees who is where they are, and what those have."""
        together = self.at[:, :, None] == self.at[:, None, :]
        np.copyto(self.saw, self.at[:, None, :].astype(np.int8), where=together)
        held = self.holder >= 0
        holder = np.maximum(self.holder, 0)
        beside = (np.take_along_axis(together, holder[:, None, :], axis=2)) & held[:, None, :]
        np.copyto(self.thinks, holder[:, None, :].astype(np.int8), where=beside)
        self.had |= held[:, None, :] & (np.arange(MOST_CHARACTERS)[:, None] == holder[:, None, :])


def _picked(options: Bools, random: NDArray[np.uint32]) -> Ints:
    """Return one of the true columns of each row, each as likely; -1 where there is none."""
    counts = options.cumsum(axis=1)
    wanted = below(np.maximum(counts[:, -1], 1), random).astype(np.int64)
    return np.where(counts[:, -1] > 0, (counts <= wanted[:, None]).sum(axis=1), -1)


def _distinct(count: int, random: NDArray[np.uint32]) -> Ints:
    """For each row of `random` [N, k], k different numbers below `count`, every choice and order as likely."""
    chosen = np.empty(random.shape, np.int64)
    for place in range(random.shape[1]):
        value = below(count - place, random[:, place]).astype(np.int64)
        for earlier in np.sort(chosen[:, :place], axis=1).T:
            value += value >= earlier
        chosen[:, place] = value
    return chosen
