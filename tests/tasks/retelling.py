"""Stories read back: a plain reader of the simulator's texts that keeps its own account of what happened.

It knows the phrases, nothing else of the simulator: each sentence is found by its words, names are names, and what it
claims is held against all that was said before.
"""

import re
from collections import defaultdict
from typing import NamedTuple

from lab.tasks.stories import phrases

Groups = dict[str, str]

_PLACES = phrases.PLACES
_PAST = re.compile(r"\{(\w+)\}")
_GENDERS = {"he": "he", "his": "he", "him": "he", "she": "she", "her": "she"}


def _any(words: object) -> str:
    assert isinstance(words, dict | tuple | list)
    return "|".join(sorted(words, key=len, reverse=True))


_NAME = "(?!(?:He|She) )[A-Z][a-z]+"
_OPENING = _any([opening for opening in phrases.OPENINGS if opening])
_SLOTS = {
    "A": _NAME,
    "B": _NAME,
    "D": _NAME,
    "trait": _any(phrases.TRAITS),
    "traitB": _any(phrases.TRAITS),
    "kind": _any(phrases.KINDS),
    "kindB": _any(phrases.KINDS),
    "t": _any((*phrases.TOYS, *phrases.FOODS)),
    "adj": _any((*phrases.LOOKS, *phrases.TASTES)),
    "p": _any(_PLACES),
    "in": "in|by|on",
    "q": _any(_PLACES),
    "inq": "in|by|on",
    "Inq": "In|By|On",
    "mood": _any(phrases.MOODS),
    "weather": _any(phrases.WEATHERS),
    "how": _any(phrases.MANNERS),
    "pace": _any(phrases.PACES),
    "dream": _any(phrases.DREAMS),
    "magic": "(?:[A-Z][a-z]+){3}",
    "he": "he|she",
    "heB": "he|she",
    "his": "his|her",
    "him": "him|her",
    "himB": "him|her",
    "himD": "him|her",
}


def _pattern(sentence: str) -> re.Pattern[str]:
    """A regular expression with a group for each slot."""
    parts, seen = _PAST.split(sentence), set[str]()
    pattern = ""
    for literal, slot in zip(parts[::2], [*parts[1::2], ""], strict=True):
        pattern += re.escape(literal)
        if slot in seen:
            pattern += f"(?P={slot})"
        elif slot == "S":
            pattern += f"(?:(?P<X>{_OPENING}) (?P<S>{_NAME}|he|she)|(?P<T>{_NAME}|He|She))"
        elif slot == "N":
            pattern += f"(?P<N>{_NAME}|He|She)"
        elif slot:
            pattern += f"(?P<{slot}>{_SLOTS[slot]})"
        seen.add(slot)
    return re.compile(pattern + "(?: |$)")


_PATTERNS = [(event, _pattern(text)) for event, (_, texts) in phrases.EVENTS.items() for text in texts]


class Wrong(AssertionError):
    """A story says what cannot be."""


class Sentence(NamedTuple):
    """What one sentence says."""

    event: str
    words: Groups
    text: str


def sentences(text: str, names: set[str]) -> list[list[Sentence]]:
    """The sentences of a story, each with all the ways to read it that are as long as can be."""
    told, place = [], 0
    while place < len(text):
        ways: list[tuple[int, Sentence]] = []
        for event, pattern in _PATTERNS:
            found = pattern.match(text, place)
            if not found:
                continue
            words = {slot: word for slot, word in found.groupdict().items() if word}
            people = {words[slot] for slot in "ABDSTN" if slot in words} - {"he", "she", "He", "She"}
            if people <= names:
                ways.append((found.end(), Sentence(event, words, found[0].strip())))
        if not ways:
            raise Wrong(f"no event is told so: {text[place:]}")
        end = max(end for end, _ in ways)
        told.append([way for at, way in ways if at == end])
        place = end
    return told


def _check(holds: object, claim: str) -> None:
    if not holds:
        raise Wrong(claim)


class Reader:
    """What a reader knows after some sentences."""

    def __init__(self) -> None:
        self.at: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.traits: set[str] = set()
        self.looks: dict[str, str] = {}
        self.holder: dict[str, str] = {}
        self.left: dict[str, tuple[str, str]] = {}
        """Where a thing was put down, and by whom."""
        self.absent: dict[str, set[str]] = defaultdict(set)
        """Where a thing that nobody has found cannot be."""
        self.found: set[str] = set()
        self.eaten: set[str] = set()
        self.dear: set[str] = set()
        self.had: set[tuple[str, str]] = set()
        self.wish: dict[str, str] = {}
        self.heard: set[tuple[str, str]] = set()
        self.saw: dict[tuple[str, str], str] = {}
        self.thinks: dict[tuple[str, str], str] = {}
        self.genders: dict[str, str] = {}
        self.unlike: list[tuple[str, str]] = []
        """Characters who must differ in gender, for a pronoun was clear between them."""
        self.constant: dict[str, str] = {}
        self.subject = ""
        self.others: set[str] = set()
        self.last = ""
        self.scene = ""
        self.hour = 0
        self.opening = ""
        self.told: list[Sentence] = []
        self.fulfilled: dict[str, str] = {}
        """By whose wish came true: the event."""
        self.again: set[str] = set()
        """Events that made a wish come true, after which the same character wished again."""

    # --- the whole ---

    def read(self, ways: list[Sentence]) -> None:
        """Take in a sentence in the first way that can be."""
        for count, way in enumerate(ways, start=1):
            try:
                self._sentence(way)
            except Wrong as wrong:
                if count == len(ways):
                    raise Wrong(f"{way.text!r} ({way.event}): {wrong}") from None
            else:
                return

    def finish(self) -> None:
        """What can be judged only at the end."""
        _check(self.last.startswith("end"), "a story ends")
        for someone, other in self.unlike:
            genders = {self.genders.get(someone), self.genders.get(other, "unknown")}
            _check(len(genders) == 2, f"a pronoun could mean {someone} or {other}")

    def _sentence(self, way: Sentence) -> None:
        event, words = way.event, way.words
        _check(event != self.last or event == "meet", "the same event twice in a row")
        _check((event == "begin") == (not self.last), "a story begins once")
        _check(not self.last.startswith("end"), "nothing follows the end")
        actor = self._actor(words)
        b, d, t, q = (words.get(slot, "") for slot in ("B", "D", "t", "q"))
        if event == "begin":
            self.at[actor] = words["p"]
            self._kind(actor, words["kind"], words["trait"])
        self._known(event, actor, words)
        here = self.at.get(actor) or words.get("p", "")
        time_of_day = self._opening(words, here)
        getattr(self, "_" + event.replace(" ", "_"))(actor, here, b, d, t, q)
        self.hour, self.opening = time_of_day, words.get("X", self.opening)
        self.scene = self.at[actor] if actor else here
        if actor:
            self.subject, self.others = actor, {each for each in (b, d) if each}
            if event == "meet":
                self.subject = ""
        self.last = event
        self.told.append(way)
        self._see()

    def _actor(self, words: Groups) -> str:
        """Who acts: named, or meant by a pronoun."""
        named = words.get("S") or words.get("T") or words.get("N") or ""
        if named.lower() in ("he", "she"):
            _check(self.subject, "a pronoun means somebody")
            self._gender(self.subject, named.lower())
            self.unlike += [(self.subject, other) for other in self.others]
            _check(words.get("A", self.subject) == self.subject, "one actor in a sentence")
            return self.subject
        _check(not named or words.get("A", named) == named, "one actor in a sentence")
        return named or words.get("A", "")

    def _gender(self, someone: str, pronoun: str) -> None:
        _check(pronoun in phrases.KINDS[self.kinds[someone]], f"a {self.kinds[someone]} is no {pronoun}")
        _check(self.genders.setdefault(someone, pronoun) == pronoun, f"{someone} is he or she")

    def _kind(self, someone: str, kind: str, trait: str) -> None:
        _check(kind not in self.kinds.values() and trait not in self.traits, "characters differ")
        self.traits.add(trait)
        self.kinds[someone] = kind
        if len(phrases.KINDS[kind]) == 1:
            self.genders[someone] = phrases.KINDS[kind][0]

    def _known(self, event: str, actor: str, words: Groups) -> None:
        """What sentences of all events have in common."""
        b, d = words.get("B", ""), words.get("D", "")
        if event == "meet":
            _check(b not in self.at, f"{b} is new")
            self._kind(b, words["kindB"], words["traitB"])
        for someone in {actor, b, d} - {""}:
            _check(someone in self.at or event == "meet", f"{someone} was introduced")
        _check(len({actor, b, d} - {""}) == sum(map(bool, (actor, b, d))), "characters of a sentence differ")
        if event not in ("meet", "begin") and b:
            _check(self.at[b] == self.at[actor], f"{b} is there")
        for slot, someone in (("he", actor), ("his", actor), ("him", actor), ("heB", b), ("himB", b), ("himD", d)):
            if slot in words:
                self._gender(someone, _GENDERS[words[slot]])
        for place, preposition in (("p", "in"), ("q", "inq"), ("q", "Inq")):
            if place in words and preposition in words:
                _check(_PLACES[words[place]] == words[preposition].lower(), "prepositions fit")
        if "p" in words:
            _check(words["p"] == self.at[actor] if actor else words["p"] in self.at.values(), "the place is where A is")
        if "q" in words:
            _check(words["q"] != self.at.get(actor, words.get("p")), "the other place is another")
        if "adj" in words:
            food = words["t"] in phrases.FOODS
            _check(words["adj"] in (phrases.TASTES if food else phrases.LOOKS), "the look fits")
            _check(self.looks.setdefault(words["t"], words["adj"]) == words["adj"], "looks stay")
        for slot in ("weather", "magic"):
            if slot in words:
                _check(self.constant.setdefault(slot, words[slot]) == words[slot], f"the {slot} stays")

    def _opening(self, words: Groups, here: str) -> int:
        """What time it is after the sentence's opening: 0 long ago, 1 on a day, 2 noon, 3 afternoon, 4 evening."""
        opening, hour = words.get("X", ""), self.hour
        if self.last == "begin":
            _check(not opening or opening.startswith("One"), "a day begins")
        if not opening:
            return max(hour, 1) if self.last else 0
        _check(opening != self.opening, "openings change")
        if opening == "Meanwhile":
            _check(here != self.scene, "somewhere else")
            return hour
        if "S" in words and self.scene:
            _check(here == self.scene, "the place has not changed")
        if opening.startswith("One"):
            _check(self.last == "begin", "one day is the first")
            return 3 if "afternoon" in opening else 1
        if opening.startswith("The next"):
            _check(hour >= 3, "a day is over")
            return 1 if "morning" in opening else 2
        _check(opening != "Later that day" or hour < 4, "a day is long")
        later = {"At noon": 2, "In the afternoon": 3, "In the evening": 4}.get(opening)
        _check(later is None or hour < later, "time does not go back")
        return later or hour

    def _see(self) -> None:
        """Everyone sees who is where they are, and what those have."""
        for someone, place in self.at.items():
            for other, where in self.at.items():
                if place == where:
                    self.saw[someone, other] = where
                    self.thinks.update({(someone, t): other for t, holder in self.holder.items() if holder == other})

    def _place_of(self, t: str) -> str:
        """Where a thing is, as far as is known."""
        return self.at[self.holder[t]] if t in self.holder else self.left.get(t, ("", ""))[0]

    def _not_here(self, t: str, here: str) -> None:
        _check(t not in self.eaten, f"the {t} was eaten")
        _check(self._place_of(t) != here, f"the {t} is here")
        if t not in self.found:
            self.absent[t].add(here)

    def _take(self, t: str, someone: str) -> None:
        self.holder[t] = someone
        self.left.pop(t, None)
        self.found.add(t)
        self.had.add((someone, t))

    def _come_true(self, t: str, someone: str, event: str) -> None:
        del self.wish[someone]
        self.fulfilled[someone] = event
        self.dear.add(t)

    def _leave(self, someone: str, here: str, q: str) -> None:
        for other, where in self.at.items():
            if where == here:
                self.saw[other, someone] = q
        self.at[someone] = q

    # --- the events ---

    def _begin(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        pass

    _chat = _scene = _rest = _magic = _begin

    def _meet(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        self.at[b] = here

    def _wish(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(a not in self.wish, "one wish at a time")
        _check((a, t) not in self.had and t not in self.eaten | self.dear, "it can be wished for")
        _check(self.left.get(t, ("", ""))[0] != here, "it lies there")
        if t not in self.found:
            self.absent[t].add(here)
        self.wish[a] = t
        if a in self.fulfilled:
            self.again.add(self.fulfilled.pop(a))
        self.heard = {(c, e) for c, e in self.heard if e != a}

    def _tell_wish(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.wish.get(a) == t and (b, a) not in self.heard, "the wish is news")
        self._not_here(t, here)
        self.heard.add((b, a))

    def _recall_wish(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.wish.get(b) == t and (a, b) in self.heard, "the wish is known")
        self._not_here(t, here)

    def _go(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        self._leave(a, here, q)

    def _go_together(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        self._leave(a, here, q)
        self._leave(b, here, q)

    def _join(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.at[d] == q == self.saw.get((a, d)), f"{a} knows where {d} is")
        self._leave(a, here, q)

    def _surprise(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.at[d] == q != self.saw[a, d], f"{a} does not know where {d} is")
        self._leave(a, here, q)

    def _find(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(t not in self.found and here not in self.absent[t], "nobody found it before")
        _check(self.wish.get(a) != t, "it was not wished for")
        self._take(t, a)

    def _pick_up(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.left.get(t) == (here, d), f"{d} left it there")
        _check(self.wish.get(a) != t, "it was not wished for")
        self._take(t, a)

    def _wish_comes_true(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.wish.get(a) == t, "it was wished for")
        _check(t not in self.found and here not in self.absent[t], "nobody found it before")
        self._take(t, a)
        self._come_true(t, a, "wish comes true")

    def _wish_was_left(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.wish.get(a) == t and self.left.get(t) == (here, d), f"{d} left what {a} wished for")
        self._take(t, a)
        self._come_true(t, a, "wish was left")

    def _give(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.holder.get(t) == a and t not in self.dear, f"{a} has it to give")
        _check((b, t) not in self.had and self.wish.get(b) != t, f"it is new to {b}")
        self._take(t, b)

    def _grant(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check((a, b) not in self.heard, f"{a} did not know")
        self._granted(a, b, t)

    def _grant_told_wish(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check((a, b) in self.heard, f"{a} knew")
        self._granted(a, b, t)

    def _granted(self, a: str, b: str, t: str) -> None:
        _check(self.holder.get(t) == a and t not in self.dear and self.wish.get(b) == t, "a wish can be granted")
        self._take(t, b)
        self._come_true(t, b, "grant")

    def _ask(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.wish.get(a) == t and self.holder.get(t) == b and t not in self.dear, f"{b} has what {a} wants")
        self._take(t, a)
        self._come_true(t, a, "ask")

    def _put_down(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.holder.get(t) == a and t not in self.dear and t in phrases.TOYS, f"{a} can put it down")
        del self.holder[t]
        self.left[t] = here, a

    def _use(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.holder.get(t) == a and t in phrases.TOYS, f"{a} has it")

    _play = _use

    def _eat(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.holder.get(t) == a and t in phrases.FOODS, f"{a} has something to eat")
        _check(t not in self.wish.values(), "nobody wishes for it")
        del self.holder[t]
        self.eaten.add(t)

    _share = _eat

    def _where(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.at[d] == q == self.saw.get((b, d)), f"{b} knows where {d} is")
        _check(self.saw[a, d] != q, f"{a} does not know where {d} is")
        self.saw[a, d] = q

    def _who_has_it(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.wish.get(a) == t and self.holder.get(t) == d == self.thinks.get((b, t)), f"{b} knows who has it")
        self._not_here(t, here)
        self.thinks[a, t] = d

    def _news(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.holder.get(t) == d == self.thinks.get((b, t)) != self.thinks.get((a, t)), "it is news")
        _check(self.at[d] != here and (a, d) in self.saw, f"{d} is a friend elsewhere")
        self.thinks[a, t] = d

    def _think(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.at[d] == q == self.saw.get((a, d)), f"{a} knows where {d} is")

    def _wonder(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(here != self.at[d] != self.saw[a, d], f"{a} does not know where {d} is")

    def _glad(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(a not in self.wish, "nothing is wished for")

    def _sad(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(self.wish.get(a) == t, "it is wished for")
        self._not_here(t, here)

    _end_wishing = _sad

    def _end_alone(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        _check(list(self.at.values()).count(here) == 1, f"{a} is alone")

    def _end_together(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        pass

    def _end_apart(self, a: str, here: str, b: str, d: str, t: str, q: str) -> None:
        d = d or b
        _check(self.at[d] != here and (a, d) in self.saw, f"{d} is a friend elsewhere")


def retold(text: str, names: set[str]) -> Reader:
    """The reader of a story, with its sentences, each as it was meant.

    Raises:
        Wrong: one cannot be, after what was said before.
    """
    reader = Reader()
    for ways in sentences(text, names):
        reader.read(ways)
    reader.finish()
    assert set(reader.at) == names
    return reader
