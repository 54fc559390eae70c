"""A simulator of children's stories, many at once.

One to four characters wish for things, find them, ask for them, give them away, eat them, go from place to place, meet
and talk:

    Once upon a time there was a fox named {0} . Soon {0} met a bear named {1} . {0} gave the kite to {1} . ...

Here {0} and {1} stand for the two tokens of a name, which `lab.tasks.stories.induction` fills in.

Each sentence is an event that the state allows: only a character at the same place can be spoken to, only a held thing
can be given, and characters know what they saw or heard. The state is arrays over stories, so an event is chosen,
worded and carried out in all stories by a few array operations (`simulation`). The words are in `phrases`, and are
compiled in `phrasebook`.

A story is a pure function of (seed, split, i), the arguments of `Simulator`, and the number of tokens of its words.
Stories share phrases, but no long text: of 100,000 default training stories, 3.4 % share 24 consecutive words with
another one (a name counts as one word, marks do not count); 0.04 % share 32, two of them 36, and none 40.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from lab.errors import BadInput
from lab.tasks.base import Split
from lab.tasks.stories.induction import StoryTemplates
from lab.tasks.stories.names import REFRAIN
from lab.tasks.stories.phrasebook import EVENT_NUMBERS, SLOT_WIDTHS, WORD_SLOTS, phrasebook
from lab.tasks.stories.simulation import MOST_CHARACTERS, Plot, Simulation
from lab.tasks.tokenizers import Tokenizer

_NAME_PIECES = 2 * (MOST_CHARACTERS + REFRAIN)
"""The number of pieces that stand for tokens of names; they follow the pieces of the phrasebook."""


class Simulator:
    """A source of simulated stories; see the module's documentation."""

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
        """Encode the phrases.

        Args:
            tokenizer: encodes the phrases.
            characters: the fewest and the most characters of a story; uniform between them.
            length: the range of a story's bound in tokens; the story ends with the last sentence that fits.
            pronouns: the share of pronouns among the subjects that could be one.
            refrains: the share of stories with a refrain.
            counts: the number of stories in each split; None is unlimited.

        Raises:
            BadInput: a story of the least length has no room for a beginning and an end.
        """
        self.tokenizer, self._counts = tokenizer, counts
        book = phrasebook()

        # The tokens of all pieces, end to end, and of each piece the first one and the number.
        encoded = tokenizer.encode(book.pieces)
        names = np.arange(1, _NAME_PIECES + 1)
        self._lengths = np.array([len(tokens) for tokens in encoded] + [1] * _NAME_PIECES)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._tokens = np.array([*itertools.chain(*encoded), *np.zeros_like(names)])
        self._slots = np.zeros(len(self._tokens), np.uint8)
        self._slots[-_NAME_PIECES:] = names

        # Every story has room for an ending.
        self._reserve = max(self._longest(event) for event in EVENT_NUMBERS if event.startswith("end"))
        shortest = self._longest("begin") + self._reserve + 1
        if length[0] < shortest:
            raise BadInput(
                f"task.length: {list(length)} is not allowed: "
                f"a beginning and an end take up to {shortest} of these tokens"
            )
        self._plot = Plot(characters, length, pronouns, refrains, self._reserve, self._lengths)

    def stories(self, split: Split) -> int | None:
        """Return the number of stories in a split; None if it is unlimited."""
        return self._counts[split]

    def max_length(self, split: Split) -> int:
        """Return an upper bound on the tokens of a story."""
        return self._plot.length[1]

    def templates(self, split: Split, indices: NDArray[np.int64], seed: int) -> StoryTemplates:
        """Return the stories of a split at `indices` [N]. `seed` changes the training split only."""
        names = ("stories", "plot", split, *((seed,) if split == "train" else ()))
        pieces, characters = Simulation(self._plot, names, indices).run()
        return self._tokenised(pieces, characters)

    def _longest(self, event: str) -> int:
        """Return an upper bound on the tokens of a sentence for `event`."""
        # The most tokens at each place of each slot.
        book = phrasebook()
        words = {name: int(self._lengths[table].max()) for name, table in book.words.items()}
        costs = dict.fromkeys(SLOT_WIDTHS, 1) | {slot: words[name] for slot, name in WORD_SLOTS.items()}
        costs |= {"X": 3 * words["X"], "S": words["he"], "N": words["he"]}
        cost = np.repeat([costs[slot] for slot in SLOT_WIDTHS], list(SLOT_WIDTHS.values()))

        # The longest sentence of the event.
        first = book.first[EVENT_NUMBERS[event]]
        sentences = book.sentences[first : first + book.count[EVENT_NUMBERS[event]]]
        lengths = np.where(sentences < 0, cost[np.maximum(-1 - sentences, 0)], self._lengths[np.maximum(sentences, 0)])
        return int(lengths.sum(axis=1).max())

    def _tokenised(self, pieces: NDArray[np.int32], characters: NDArray[np.int64]) -> StoryTemplates:
        """Return the stories of pieces [N, W] as tokens, with the end token after them."""
        # The tokens of all pieces, end to end.
        lengths = self._lengths[pieces]
        row, column = np.nonzero(lengths)
        piece, count = pieces[row, column], lengths[row, column]
        offsets = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        places = np.repeat(self._starts[piece], count) + offsets

        # One row for each story.
        totals = lengths.sum(axis=1)
        shape = (len(pieces), int(totals.max(initial=0)) + 1)
        inside = np.arange(shape[1]) < totals[:, None]
        tokens, slots = np.zeros(shape, np.uint16), np.zeros(shape, np.uint8)
        tokens[inside], slots[inside] = self._tokens[places], self._slots[places]
        tokens[np.arange(len(pieces)), totals] = self.tokenizer.end
        return StoryTemplates(tokens, slots, totals + 1, characters)
