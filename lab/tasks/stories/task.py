"""Simulated children's stories about characters with two-token names (arXiv 2404.19737, Section 4.1).

tokens    Once upon a time there was a fox named Mi ra . Soon Mi ra went to the pond . ... <end>
scored                                                             ^
"""

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from lab.config import Config, Neutral
from lab.tasks.base import Split
from lab.tasks.stories.induction import Hint, StoryTask
from lab.tasks.stories.names import Names, NameSampler, Share
from lab.tasks.stories.phrasebook import lexicon
from lab.tasks.stories.simulation import MOST_CHARACTERS
from lab.tasks.stories.simulator import Simulator
from lab.tasks.tokenizers import Bpe, BpeTokens, Bytes, ByteTokens, Tokenizer, Tokens, Words, WordTokens, train_bpe

_BPE_STORIES = 4096
"""The number of stories that BPE is trained on; they are the same in all recipes, so that recipes can be mixed."""


class Stories(Config):
    """Children's stories with two-token names."""

    name: Literal["stories"] = "stories"
    tokens: Tokens = Words()
    """The kind of tokens; its name selects it."""
    names: Names = Names()
    """The names of characters."""
    characters: tuple[int, int] = (1, 4)
    """The fewest and the most characters of a story; uniform between. (Short stories end before all are introduced.)"""
    length: tuple[int, int] = (96, 160)
    """The range of a story's bound in tokens, uniform between; a story ends with the last sentence that fits. Bytes
    need about five times as many tokens as words, BPE about twice as many."""
    pronouns: Share = 0.3
    """The share of pronouns among the subjects that could be "he" or "she"; the others are mentions of names."""
    refrains: Share = 0.3
    """The share of stories with a refrain: six random name tokens, repeated as often as the length allows."""
    validation_examples: int = Field(default=100, ge=1, le=1_000_000)
    """Validation stories; each occurs with fresh names, and with names of the pool."""
    test_examples: int = Field(default=100, ge=1, le=1_000_000)
    """Test stories (paper: 100); each occurs with fresh names, and with names of the pool."""
    unique_examples: int | None = Field(default=None, ge=1, le=100_000_000)
    """The size of a finite training corpus, seen in a new order every epoch (paper: up to 90); unlimited when null."""
    hint: Annotated[Hint, Neutral("none")] = "none"
    """Two tokens behind each name, not counted in `length`: repetitions of its first token, which a head that predicts
    two tokens ahead has to predict (`lab.tasks.stories.induction`); fillers as a control, with the same vocabulary; or
    none. They are not scored. Later names are predicted from the hints before them, which contain their first tokens,
    in all arms alike: compare within a condition. A model that generates stories also has to generate the hints."""

    @field_validator("characters")
    @classmethod
    def _characters(cls, characters: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= characters[0] <= characters[1] <= MOST_CHARACTERS:
            raise ValueError(f"should be the fewest and the most characters, from 1 to {MOST_CHARACTERS}")
        return characters

    @field_validator("length")
    @classmethod
    def _length(cls, length: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= length[0] <= length[1] <= 30_000:
            raise ValueError("should be the least and the greatest bound in tokens, at most 30000")
        return length

    def build(self) -> StoryTask:
        """Return the task of this config.

        Raises:
            BadInput: stories are too short, or the tokens allow no such names.
        """
        tokenizer = _tokenizer(self.tokens, self.names.syllable_tokens())
        NameSampler(self.names, self.tokens, tokenizer, MOST_CHARACTERS)  # raises early; the task makes its own later
        counts: dict[Split, int | None] = {
            "train": self.unique_examples,
            "validation": self.validation_examples,
            "test": self.test_examples,
        }
        simulator = Simulator(tokenizer, self.characters, self.length, self.pronouns, self.refrains, counts)
        return StoryTask(simulator, self.names, self.tokens, self.hint)


@lru_cache(maxsize=8)
def _tokenizer(tokens: Words | Bytes | Bpe, syllables: int) -> Tokenizer:
    words = [piece.strip() for piece in lexicon()]
    match tokens:
        case Words():
            return WordTokens(dict.fromkeys(word for word in words if word), syllables)
        case Bytes():
            return ByteTokens({word.lower() for word in words})
        case Bpe():
            task = Stories(names=Names(fresh=1.0), test_examples=1).build()
            examples = task.examples("train", np.arange(_BPE_STORIES), 0)
            rows = zip(examples.tokens, examples.lengths, strict=True)
            texts = (task.source.tokenizer.decode(row[:length].tolist()) for row, length in rows)
            return BpeTokens(train_bpe(texts, tokens.vocabulary), {word.lower() for word in words})
