"""The simulation of N stories at once: a cast, a state that events change, and the choices of one turn.

A turn of one story:

    choices     Mira acts; Tobin is with her; she holds a kite that Tobin never had
    weights     give 60, chat 40, go 90, ...; events that the state does not allow have weight 0
    event       give
    sentence    Soon Mira gave the kite to Tobin.
    change      Tobin holds the kite; everyone there knows

Characters, places and things are numbers within a story; -1 is none.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.tasks.draws import below, draws32, stream
from lab.tasks.stories.names import REFRAIN
from lab.tasks.stories.phrasebook import EVENT_NUMBERS, SLOT_WIDTHS, SLOTS, WORD_SLOTS, phrasebook
from lab.tasks.stories.phrases import (
    EVENTS,
    FOODS,
    KINDS,
    LOOKS,
    OPENINGS,
    PLACES,
    TASTES,
    TOYS,
    TRAITS,
    WEATHERS,
)

MOST_CHARACTERS = 4

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Bits = NDArray[np.uint32]

_PLACES_EACH, _TOYS_EACH, _THINGS_EACH = 3, 3, 4
"""Numbers of places, toys and things of one story; the last thing is food."""
_FOOD = _THINGS_EACH - 1
_NOBODY, _GONE = -1, -2
"""Holders of a thing that lies somewhere, and of one that was eaten. `_GONE` is also the location of the latter."""

_ATTEMPTS = 3
"""The number of further sentences that are tried when one is too long, before a story ends."""
_MEANWHILE = list(OPENINGS).index("Meanwhile")


@dataclass(frozen=True)
class Plot:
    """The settings of stories."""

    characters: tuple[int, int]
    """The fewest and the most characters."""
    length: tuple[int, int]
    """The least and the greatest bound in tokens."""
    pronouns: float
    """The share of pronouns among the subjects that could be one."""
    refrains: float
    """The share of stories with a refrain."""
    reserve: int
    """The largest number of tokens of an ending."""
    piece_lengths: Ints
    """[pieces] the number of tokens of each piece."""


@dataclass(frozen=True)
class _Cast:
    """The constants of N stories, drawn before they begin."""

    count: Ints
    """[N] the number of characters that may appear."""
    kind: Ints
    """[N, characters]"""
    trait: Ints
    """[N, characters]"""
    gender: Ints
    """[N, characters] 0 for "he", 1 for "she"."""
    place: Ints
    """[N, places]"""
    thing: Ints
    """[N, things]"""
    look: Ints
    """[N, things]"""
    weather: Ints
    """[N]"""
    refrain: Bools
    """[N] True if the story has a refrain."""
    first_sentence: Ints
    """[N, events] the sentence of an event that is used first; the others follow in order."""


@dataclass
class _State:
    """The facts of N stories that events change."""

    room: Ints
    """[N] tokens left."""
    introduced: Ints
    """[N] the number of characters introduced."""
    location: Ints
    """[N, characters] the place of each character; -1 before they are introduced."""
    wish: Ints
    """[N, characters] the thing that each character wishes for."""
    holder: Ints
    """[N, things] the character that holds each thing, `_NOBODY` or `_GONE`."""
    lies: Ints
    """[N, things] the place of each thing that nobody holds."""
    left_by: Ints
    """[N, things] the character that put down a thing; -1 if nobody has found it yet."""
    kept: Bools
    """[N, things] True if the thing was wished for and is kept."""
    has_held: Bools
    """[N, characters, things] True if the character ever held the thing."""
    knows_wish: Bools
    """[N, c, d] True if c knows the wish of d."""
    believed_location: NDArray[np.int8]
    """[N, c, d] the place where c believes d to be."""
    believed_holder: NDArray[np.int8]
    """[N, characters, things] the character that is believed to hold the thing."""
    event: Ints
    """[N] the last event."""
    actor: Ints
    """[N] the character that acted in it."""
    subject: Ints
    """[N] the character that "he" or "she" refers to; -1 if that is not clear."""
    hour: Ints
    """[N] the time; see `OPENINGS`."""
    opening: Ints
    """[N] the last opening."""
    uses: Ints
    """[N, events] the number of times that each event took place."""
    staleness: Bits
    """[events, N] each 1 halves the weight: an event whose sentences were all used becomes rare."""


@dataclass
class _Turn:
    """The options of N stories in one turn, then the choices for the event; each [N]."""

    last_location: Ints
    """The place of the last event."""
    location: Ints
    """The actor's place."""
    near: Ints
    """Another character at that place."""
    far: Ints
    """A character elsewhere."""
    wished: Ints
    """The thing that the actor wishes for."""
    near_wish: Ints
    """The thing that `near` wishes for."""
    thing_location: Ints
    """[N, things] the place of each thing, also of held ones; `_GONE` if it was eaten."""
    toy: Ints
    """A toy that the actor holds."""
    spare: Ints
    """A toy to put down."""
    gift: Ints
    """A thing to give to `near`."""
    unfound: Ints
    """A thing here that nobody has found yet."""
    left_behind: Ints
    """A thing here that another character put down."""
    wanted: Ints
    """A thing to wish for."""
    news: Ints
    """A thing that `far` holds, as `near` knows and the actor does not."""

    # The choices for the event, and its consequences for the next sentence.
    thing: Ints
    """The thing of the event."""
    third: Ints
    """The third character of the event."""
    destination: Ints
    """The other place of the event."""
    next_subject: Ints
    """`_State.subject` after the event."""
    opening: Ints
    """The sentence's opening."""


class Simulation:
    """N stories in progress. A story is a pure function of the stream `names` and its index."""

    def __init__(self, plot: Plot, names: tuple[str | int, ...], indices: Ints) -> None:
        self._plot, self._names, self._indices = plot, names, indices
        self._rows = np.arange(len(indices))
        self._book = phrasebook()
        self._cast, self._state = self._begin()

    def _begin(self) -> tuple[_Cast, _State]:
        """Draw the cast, and return it with the state before the first event."""
        count, plot = len(self._indices), self._plot
        columns = iter(draws32(stream(*self._names, "cast"), self._indices, 36 + len(EVENTS)).T)

        def drawn(bound: int, each: int = 1) -> Ints:
            return np.stack([below(bound, next(columns)) for _ in range(each)], axis=1).astype(np.int64)

        def different(bound: int, each: int) -> Ints:
            return _distinct(bound, np.stack([next(columns) for _ in range(each)], axis=1))

        # The order of the draws decides the stories.
        low, high = plot.characters
        characters = low + drawn(high - low + 1)[:, 0]
        low, high = plot.length
        room = low + drawn(high - low + 1)[:, 0] - 1
        refrain = next(columns) < np.uint64(plot.refrains * 2**32)
        weather = drawn(len(WEATHERS))[:, 0]
        kind = different(len(KINDS), MOST_CHARACTERS)
        trait = different(len(TRAITS), MOST_CHARACTERS)
        both = np.array([len(pronouns) for pronouns in KINDS.values()]) == 2
        female = np.array([pronouns[0] == "she" for pronouns in KINDS.values()])
        gender = np.where(both[kind], drawn(2, MOST_CHARACTERS), female[kind])
        place = different(len(PLACES), _PLACES_EACH)
        thing = np.concatenate([different(len(TOYS), _TOYS_EACH), len(TOYS) + drawn(len(FOODS))], axis=1)
        look = np.concatenate([drawn(len(LOOKS), _TOYS_EACH), len(LOOKS) + drawn(len(TASTES))], axis=1)
        lies = drawn(_PLACES_EACH, _THINGS_EACH)
        first_sentence = drawn(2**16, len(EVENTS)) % self._book.count
        cast = _Cast(characters, kind, trait, gender, place, thing, look, weather, refrain, first_sentence)

        # The first character is at the first place; nothing has happened.
        people = (count, MOST_CHARACTERS)
        location = np.full(people, -1)
        location[:, 0] = 0
        state = _State(
            room=room,
            introduced=np.ones(count, np.int64),
            location=location,
            wish=np.full(people, -1),
            holder=np.full((count, _THINGS_EACH), _NOBODY),
            lies=lies,
            left_by=np.full((count, _THINGS_EACH), -1),
            kept=np.zeros((count, _THINGS_EACH), bool),
            has_held=np.zeros((*people, _THINGS_EACH), bool),
            knows_wish=np.zeros((*people, MOST_CHARACTERS), bool),
            believed_location=np.full((*people, MOST_CHARACTERS), -1, np.int8),
            believed_holder=np.full((*people, _THINGS_EACH), -1, np.int8),
            event=np.full(count, EVENT_NUMBERS["end wishing"]),
            actor=np.zeros(count, np.int64),
            subject=np.full(count, -1),
            hour=np.zeros(count, np.int64),
            opening=np.zeros(count, np.int64),
            uses=np.zeros_like(first_sentence),
            staleness=np.zeros((len(EVENTS), count), np.uint32),
        )
        return cast, state

    def run(self) -> tuple[NDArray[np.int32], Ints]:
        """Return all stories as pieces [N, W], and the number of characters introduced [N]."""
        sentences, active = [np.zeros((len(self._indices), 1), np.int32)], np.ones(len(self._indices), bool)
        while active.any():
            step = len(sentences) - 1
            random = draws32(stream(*self._names, "step", step), self._indices, 18 + _ATTEMPTS)
            sentences.append(self._sentence(random, active, "begin" if step == 0 else ""))
        return np.concatenate(sentences, axis=1), self._state.introduced

    def _sentence(self, random: Bits, active: Bools, part: str) -> NDArray[np.int32]:
        """Return the next sentence [N, L] of each active story. Stories without room get their last one."""
        turn = self._options(random)
        weights = self._weights(turn)
        event = self._chosen(weights, part, random[:, 8])
        sentence = self._worded(turn, self._rows, event, random)

        # Try again where the sentence is too long.
        room, lengths = self._state.room - self._plot.reserve, self._plot.piece_lengths
        for attempt in () if part else range(_ATTEMPTS):
            rows = np.flatnonzero(active & (lengths[sentence].sum(axis=1) > room))
            event[rows] = self._chosen(weights[:, rows], part, random[rows, 18 + attempt])
            sentence[rows] = self._worded(turn, rows, event[rows], random)

        # End the stories in which no sentence fits.
        full = lengths[sentence].sum(axis=1) > room
        rows = np.flatnonzero(full & active)
        event[rows] = self._chosen(weights[:, rows], "end", random[rows, 8])
        sentence[rows] = self._worded(turn, rows, event[rows], random)
        event[~active], sentence[~active] = EVENT_NUMBERS["end alone"], 0
        self._state.room -= lengths[sentence].sum(axis=1)
        active &= ~full
        self._carry_out(turn, event)
        return sentence

    def _options(self, random: Bits) -> _Turn:
        """Choose the actor of each story, other characters, and a thing for each kind of event."""
        # The actor: often the last one, else preferably a character at the same place.
        rows, state = self._rows, self._state
        last_location = state.location[rows, state.actor]
        others = np.arange(MOST_CHARACTERS) < state.introduced[:, None]
        likely = others & ((state.location == last_location[:, None]) | (random[:, 0] < 2**29)[:, None])
        actor = np.where(random[:, 0] < 2**31, _picked(likely, random[:, 1]), state.actor)
        state.actor = actor

        # A character at the same place, and one elsewhere.
        location = state.location[rows, actor]
        others[rows, actor] = False
        together = state.location == location[:, None]
        near = _picked(others & together, random[:, 2])
        far = _picked(others & ~together, random[:, 3])
        wished = state.wish[rows, actor]
        near_wish = np.where(near >= 0, state.wish[rows, near], -1)

        # The place of each thing, and the things that the actor could do something with.
        held_at = np.take_along_axis(state.location, np.maximum(state.holder, 0), 1)
        thing_location = np.where(state.holder >= 0, held_at, state.lies)
        thing_location[state.holder == _GONE] = _GONE
        held = state.holder == actor[:, None]
        spare = held & ~state.kept
        lying = (state.holder == _NOBODY) & (thing_location == location[:, None])
        unfound, things = state.left_by < 0, np.arange(_THINGS_EACH)
        suitable = things != wished[:, None]
        has_held = state.has_held[rows, actor]
        near_knows = state.believed_holder[rows, near] == far[:, None]
        actor_knows = state.believed_holder[rows, actor] == far[:, None]
        far_holds = (state.holder == far[:, None]) & (far >= 0)[:, None]
        none = np.full_like(actor, -1)
        return _Turn(
            last_location=last_location,
            location=location,
            near=near,
            far=far,
            wished=wished,
            near_wish=near_wish,
            thing_location=thing_location,
            toy=_picked(held & (things != _FOOD), random[:, 4]),
            spare=_picked(spare & (things != _FOOD), random[:, 4]),
            gift=_picked(spare & ~state.has_held[rows, near] & (things != near_wish[:, None]), random[:, 5]),
            unfound=_picked(lying & unfound & suitable, random[:, 6]),
            left_behind=_picked(lying & ~unfound & suitable & (state.left_by != actor[:, None]), random[:, 7]),
            wanted=_picked(~has_held & (state.holder != _GONE) & ~state.kept & ~lying, random[:, 10]),
            news=_picked(near_knows & ~actor_knows & far_holds, random[:, 11]),
            thing=none,
            third=none.copy(),
            destination=none.copy(),
            next_subject=none.copy(),
            opening=np.zeros_like(actor),
        )

    def _weights(self, turn: _Turn) -> Bits:
        """Return the weight [events, N] of each event: 0 if the state does not allow it, less if it is stale."""
        rows, state, actor = self._rows, self._state, self._state.actor
        near, far, wished = turn.near >= 0, turn.far >= 0, turn.wished >= 0

        # The thing that the actor wishes for, and the one that the character nearby wishes for.
        owner = state.holder[rows, turn.wished]
        wished_here = wished & (turn.thing_location[rows, turn.wished] == turn.location)
        lies = wished_here & (owner == _NOBODY)
        unfound = state.left_by[rows, turn.wished] < 0
        knows_wish = near & state.knows_wish[rows, actor, turn.near]
        near_wishes = near & (turn.near_wish >= 0)
        granted = near_wishes & (state.holder[rows, turn.near_wish] == actor) & ~state.kept[rows, turn.near_wish]
        food = (state.holder[:, _FOOD] == actor) & ~(state.wish == _FOOD).any(axis=1)

        # The knowledge about the character elsewhere, and about the thing's holder.
        far_location = state.location[rows, turn.far]
        remembers = far & (state.believed_location[rows, actor, turn.far] >= 0)
        knows = far & (state.believed_location[rows, actor, turn.far] == far_location)
        near_knows = far & (state.believed_location[rows, turn.near, turn.far] == far_location)
        near_knows_holder = (owner >= 0) & (state.believed_holder[rows, turn.near, turn.wished] == owner)
        possible = {
            "begin": np.True_,
            "meet": state.introduced < self._cast.count,
            "wish": ~wished & (turn.wanted >= 0),
            "tell wish": wished & near & ~wished_here & ~state.knows_wish[rows, turn.near, actor],
            "recall wish": near_wishes & knows_wish & (turn.thing_location[rows, turn.near_wish] != turn.location),
            "go": np.True_,
            "go together": near,
            "join": knows,
            "surprise": remembers & ~knows,
            "find": turn.unfound >= 0,
            "pick up": turn.left_behind >= 0,
            "wish comes true": lies & unfound,
            "wish was left": lies & ~unfound,
            "give": near & (turn.gift >= 0),
            "grant": granted & ~knows_wish,
            "grant told wish": granted & knows_wish,
            "ask": near & wished_here & (owner == turn.near) & ~state.kept[rows, turn.wished],
            "put down": turn.spare >= 0,
            "play": near & (turn.toy >= 0),
            "use": turn.toy >= 0,
            "eat": food,
            "share": near & food,
            "chat": near,
            "where": near & near_knows & remembers & ~knows,
            "who has it": near & wished & ~wished_here & near_knows_holder,
            "news": near & remembers & (turn.news >= 0),
            "think": knows,
            "wonder": remembers & ~knows,
            "glad": ~wished,
            "sad": wished & ~wished_here,
            "scene": np.True_,
            "rest": np.True_,
            "magic": self._cast.refrain,
            "end alone": ~near & ~remembers,
            "end together": near,
            "end apart": remembers,
            "end wishing": wished & ~wished_here,
        }

        # Possible events have their weight, less if their sentences were used.
        weights = np.empty((len(EVENTS), len(rows)), np.uint32)
        for name, mask in possible.items():
            weights[EVENT_NUMBERS[name]] = mask
        weights *= self._book.weight[:, None] << np.uint32(6)
        weights >>= state.staleness

        # A refrain comes back; no other event except "meet" takes place twice in a row.
        magic = EVENT_NUMBERS["magic"]
        weights[magic] <<= np.uint32(2) * (state.uses[:, magic] == 1).astype(np.uint32)
        weights[state.event, rows] *= state.event == EVENT_NUMBERS["meet"]
        return weights

    def _chosen(self, weights: Bits, part: str, random: Bits) -> Ints:
        """Draw an event for each story of `weights` [events, n]: of the `part` "begin" or "end", or another ("")."""
        of_part = [[_part(name) == part] for name in EVENTS]
        reached = (weights * np.array(of_part)).cumsum(axis=0, dtype=np.uint32)
        chosen: Ints = (reached <= below(reached[-1], random)).sum(axis=0)
        return chosen

    def _decide(self, turn: _Turn, rows: Ints, event: Ints, random: Bits) -> None:
        """Set the thing, the third character and the other place of the `event` in the stories `rows`."""

        def by_event(usual: Ints, special: dict[str, Ints]) -> Ints:
            """Return `usual`, or the value of the key that lists the event."""
            which = np.zeros(len(EVENTS), np.int64)
            for number, names in enumerate(special, start=1):
                which[[EVENT_NUMBERS[name] for name in names.split(", ")]] = number
            chosen: Ints = np.stack([usual, *special.values()])[which[event], rows]
            return chosen

        state, every = self._state, self._rows
        things = {
            "wish": turn.wanted,
            "find": turn.unfound,
            "pick up": turn.left_behind,
            "give": turn.gift,
            "put down": turn.spare,
            "grant, grant told wish, recall wish": turn.near_wish,
            "play, use": turn.toy,
            "news": turn.news,
            "eat, share": np.full_like(turn.wished, _FOOD),
        }
        turn.thing[rows] = by_event(turn.wished, things)
        left_by, owner = state.left_by[every, turn.thing], state.holder[every, turn.thing]
        turn.third[rows] = by_event(turn.far, {"pick up, wish was left": left_by, "who has it": owner})
        elsewhere = turn.location + 1 + below(_PLACES_EACH - 1, random[:, 12]).astype(np.int64)
        known = state.location[every, turn.third]
        turn.destination[rows] = by_event(elsewhere % _PLACES_EACH, {"join, surprise, where, think": known})

    def _worded(self, turn: _Turn, rows: Ints, event: Ints, random: Bits) -> NDArray[np.int32]:
        """Return the sentences [n, L], in pieces, for `event` in the stories `rows`; `random` is of all stories."""
        self._decide(turn, rows, event, random)
        book, state = self._book, self._state
        uses = state.uses[rows, event]
        sentence = book.first[event] + (self._cast.first_sentence[rows, event] + uses) % book.count[event]
        has = {slot: table[sentence] for slot, table in book.has.items()}

        # The characters, the opening and the pronoun.
        every, meeting = np.arange(len(rows)), event == EVENT_NUMBERS["meet"]
        actor, third = state.actor[rows], turn.third[rows]
        near = np.where(meeting, state.introduced[rows], turn.near[rows])
        opening = self._opening(turn, rows, has["S"], random)
        pronoun = (state.subject[rows] == actor) & (random[rows, 15] < np.uint64(self._plot.pronouns * 2**32))

        # Fill in the slots.
        values = np.zeros((sum(SLOT_WIDTHS.values()), len(rows)), np.int32)
        self._put_names(values, actor, near, third)
        self._put_subject(values, rows, opening, pronoun)
        self._put_words(values, turn, rows, near, random)
        codes = book.sentences[sentence]
        worded = np.where(codes < 0, values[np.maximum(-1 - codes, 0), every[:, None]], codes)

        # A pronoun is clear after the sentence unless another character in it could be meant, too. At a meeting the
        # gender of the new character is still unknown.
        gender = self._cast.gender[rows]
        he = gender[every, actor]
        ambiguous = (has["B"] & (meeting | (gender[every, near] == he))) | (has["D"] & (gender[every, third] == he))
        without_actor = np.where(has["B"] | has["D"], -1, state.subject[rows])
        with_actor = np.where(ambiguous, -1, actor)
        turn.next_subject[rows] = np.where(has["A"] | has["S"] | has["N"], with_actor, without_actor)
        turn.opening[rows] = opening
        return worded

    def _opening(self, turn: _Turn, rows: Ints, has_subject: Bools, random: Bits) -> Ints:
        """Draw the opening of each sentence: none, one that fits the hour, or "Meanwhile" after a change of place."""
        hour, last = self._state.hour[rows], self._state.opening[rows]
        fits = (self._book.hours[:, 0] <= hour[:, None]) & (hour[:, None] <= self._book.hours[:, 1])
        fits[np.arange(len(rows)), last] = False
        plain = (random[rows, 13] < 2**31) & (hour > 0)
        opening = np.where(plain, 0, _picked(fits, random[rows, 14]))
        moved = turn.last_location[rows] != turn.location[rows]
        opening = np.where(moved, _MEANWHILE * (last != _MEANWHILE), opening)
        return opening * has_subject

    def _put_names(self, values: NDArray[np.int32], actor: Ints, near: Ints, third: Ints) -> None:
        """Fill in the tokens of names, and the refrain."""
        first = len(self._book.pieces)
        for slot, character in (("A", actor), ("B", near), ("D", third)):
            _put(values, slot, first + 2 * character, first + 2 * character + 1)
        _put(values, "magic", *range(first + 2 * MOST_CHARACTERS, first + 2 * (MOST_CHARACTERS + REFRAIN)))

    def _put_subject(self, values: NDArray[np.int32], rows: Ints, opening: Ints, pronoun: Bools) -> None:
        """Fill in the opening, and the subject: a pronoun or the actor's name."""
        words, first, actor = self._book.words, len(self._book.pieces), self._state.actor[rows]
        he = self._cast.gender[rows, actor]
        _put(values, "X", *words["X"][opening].T)
        for slot, opened in (("S", opening > 0), ("N", np.zeros(len(rows), bool))):
            _put(
                values,
                slot,
                np.where(pronoun & opened, words["he"][he], words["space"][0]),
                np.where(pronoun, np.where(opened, 0, words["He"][he]), first + 2 * actor),
                np.where(pronoun, 0, first + 2 * actor + 1),
            )

    def _put_words(self, values: NDArray[np.int32], turn: _Turn, rows: Ints, near: Ints, random: Bits) -> None:
        """Fill in the slots of one word."""
        cast, words, every = self._cast, self._book.words, np.arange(len(rows))
        actor, third, thing = self._state.actor[rows], turn.third[rows], turn.thing[rows]
        gender, place = cast.gender[rows], cast.place[rows]
        here, there = place[every, turn.location[rows]], place[every, turn.destination[rows]]
        he, near_he, third_he = gender[every, actor], gender[every, near], gender[every, third]
        chosen = {
            "trait": cast.trait[rows, actor], "traitB": cast.trait[rows, near],
            "kind": cast.kind[rows, actor], "kindB": cast.kind[rows, near],
            "t": cast.thing[rows, thing], "adj": cast.look[rows, thing],
            "p": here, "in": here, "q": there, "inq": there, "Inq": there, "weather": cast.weather[rows],
            "he": he, "his": he, "him": he, "heB": near_he, "himB": near_he, "himD": third_he,
        }  # fmt: skip
        for slot, column in (("mood", 9), ("how", 16), ("pace", 16), ("dream", 17)):
            chosen[slot] = below(len(words[slot]), random[rows, column]).astype(np.int64)
        for slot, number in chosen.items():
            _put(values, slot, words[WORD_SLOTS[slot]][number])

    def _carry_out(self, turn: _Turn, event: Ints) -> None:
        """Change the state by the events of a turn."""
        # The time, and the use of sentences.
        state, every = self._state, self._rows
        state.event, state.subject = event, turn.next_subject.copy()
        later, begun = self._book.becomes[turn.opening], event != EVENT_NUMBERS["begin"]
        state.hour = np.where(later < 0, np.maximum(state.hour, begun), later)
        state.opening = np.where(turn.opening > 0, turn.opening, state.opening)
        state.uses[every, event] += 1
        rounds = state.uses[every, event] // self._book.count[event]
        state.staleness[event, every] = np.minimum(3 * rounds, 6)

        def of(*names: str) -> tuple[Ints, Ints, Ints, Ints]:
            """Return the stories with one of these events, and the actor, the character nearby and the thing."""
            rows = np.flatnonzero(np.isin(event, [EVENT_NUMBERS[name] for name in names]))
            return rows, state.actor[rows], turn.near[rows], turn.thing[rows]

        # Meetings, wishes and news.
        rows, *_ = of("meet")
        state.location[rows, state.introduced[rows]] = turn.location[rows]
        state.introduced[rows] += 1
        rows, actor, _, thing = of("wish")
        state.wish[rows, actor] = thing
        state.knows_wish[rows, :, actor] = False
        rows, actor, near, _ = of("tell wish")
        state.knows_wish[rows, near, actor] = True
        rows, actor, *_ = of("where")
        state.believed_location[rows, actor, turn.far[rows]] = turn.destination[rows]
        rows, actor, _, thing = of("who has it", "news")
        state.believed_holder[rows, actor, thing] = turn.third[rows]

        # Moves, which the characters at the old place see.
        rows, actor, *_ = of("go", "go together", "join", "surprise")
        self._move(turn, rows, actor)
        rows, _, near, _ = of("go together")
        self._move(turn, rows, near)

        # Things that are taken, given, put down and eaten.
        rows, actor, _, thing = of("find", "pick up", "wish comes true", "wish was left", "ask")
        state.holder[rows, thing] = actor
        rows, actor, _, thing = of("wish comes true", "wish was left", "ask")
        state.wish[rows, actor] = -1
        state.kept[rows, thing] = True
        rows, _, near, thing = of("give", "grant", "grant told wish")
        state.holder[rows, thing] = near
        rows, _, near, thing = of("grant", "grant told wish")
        state.wish[rows, near] = -1
        state.kept[rows, thing] = True
        rows, actor, _, thing = of("put down")
        state.holder[rows, thing], state.left_by[rows, thing] = _NOBODY, actor
        state.lies[rows, thing] = turn.location[rows]
        rows, *_, thing = of("eat", "share")
        state.holder[rows, thing] = _GONE
        self._update_beliefs()

    def _move(self, turn: _Turn, rows: Ints, character: Ints) -> None:
        """Move a character of the stories `rows` to the event's other place; those at the actor's old place see it."""
        state, destination = self._state, turn.destination[rows]
        sees = state.location[rows] == turn.location[rows, None]
        believed = state.believed_location[rows, :, character]
        state.believed_location[rows, :, character] = np.where(sees, destination[:, None], believed)
        state.location[rows, character] = destination

    def _update_beliefs(self) -> None:
        """Let all characters see the others at their place, and the things that these hold."""
        state = self._state
        together = state.location[:, :, None] == state.location[:, None, :]
        np.copyto(state.believed_location, state.location[:, None, :].astype(np.int8), where=together)
        held = state.holder >= 0
        holder = np.maximum(state.holder, 0)
        beside = np.take_along_axis(together, holder[:, None, :], axis=2) & held[:, None, :]
        np.copyto(state.believed_holder, holder[:, None, :].astype(np.int8), where=beside)
        state.has_held |= held[:, None, :] & (np.arange(MOST_CHARACTERS)[:, None] == holder[:, None, :])


def _part(event: str) -> str:
    """Return the part of a story to which an event belongs: "begin", "end" or, between them, ""."""
    return next((part for part in ("begin", "end") if event.startswith(part)), "")


def _put(values: NDArray[np.int32], slot: str, *pieces: NDArray[np.int32] | Ints | int) -> None:
    """Set the values of a slot's places, in order."""
    for place, piece in enumerate(pieces, start=SLOTS[slot]):
        values[place] = piece


def _picked(options: Bools, random: Bits) -> Ints:
    """Return one of the true columns of each row, uniformly drawn; -1 if there is none."""
    counts = options.cumsum(axis=1)
    wanted = below(np.maximum(counts[:, -1], 1), random).astype(np.int64)
    return np.where(counts[:, -1] > 0, (counts <= wanted[:, None]).sum(axis=1), -1)


def _distinct(count: int, random: Bits) -> Ints:
    """Return k different numbers below `count` for each row of `random` [N, k], uniform over all ordered choices."""
    chosen = np.empty(random.shape, np.int64)
    for place in range(random.shape[1]):
        value = below(count - place, random[:, place]).astype(np.int64)
        for earlier in np.sort(chosen[:, :place], axis=1).T:
            value += value >= earlier
        chosen[:, place] = value
    return chosen
