"""Children's stories from a simulator, told about characters whose names are two tokens: the task of Section 4.1."""

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from lab.config import Config, Neutral
from lab.tasks.base import Split
from lab.tasks.stories.induction import Hint, StoryTask
from lab.tasks.stories.names import Names, NameSampler, Share
from lab.tasks.stories.simulator import MOST_CHARACTERS, Simulator, lexicon
from lab.tasks.tokenizers import Bpe, BpeTokens, Bytes, ByteTokens, Tokenizer, Tokens, Words, WordTokens, train_bpe

_BPE_STORIES = 4096
"""Stories that BPE is trained on: the same for every recipe, so that recipes can be mixed."""


class Stories(Config):
    """Children's stories with two-token names."""

    name: Literal["stories"] = "stories"
    tokens: Tokens = Words()
    """What a token is; its name selects it."""
    names: Names = Names()
    """How characters are named."""
    characters: tuple[int, int] = (1, 4)
    """The fewest and the most characters of a story; uniform between. (Short stories end before all are met.)"""
    length: tuple[int, int] = (96, 160)
    """Where stories end: each has a bound in tokens, uniform between these, and ends with the last sentence that fits.
    Bytes need about five times as many as words, BPE about twice."""
    pronouns: Share = 0.3
    """The share of "he" and "she" where a sentence's subject could be one; fewer pronouns, more mentions."""
    refrains: Share = 0.3
    """The share of stories with a refrain: six random name tokens, sung again and again (as far as length allows)."""
    validation_examples: int = Field(default=100, ge=1, le=1_000_000)
    """Validation stories; each is told with fresh and with pool names."""
    test_examples: int = Field(default=100, ge=1, le=1_000_000)
    """Test stories (paper: 100); each is told with fresh and with pool names."""
    unique_examples: int | None = Field(default=None, ge=1, le=100_000_000)
    """The size of a finite training corpus, seen in a new order every epoch (paper: up to 90); unlimited when null."""
    hint: Annotated[Hint, Neutral("none")] = "none"
    """Two tokens behind each name, beyond `length`: that say its first token again, for a head that looks two tokens
    ahead to predict (`lab.tasks.induction`); their control, fillers, with the same vocabulary; or none. They are not
    scored. Names that come later are read with the hints before them, which say at a name's place what it begins with,
    to each arm alike: compare within a condition. A model that tells stories by itself has to write them, too."""

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
            BadInput: stories are too short, or the tokens do not have such names.
        """
        tokenizer = _tokenizer(self.tokens, self.names.syllable_tokens())
        NameSampler(self.names, self.tokens, tokenizer, MOST_CHARACTERS)  # the task draws them late; refuse early
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
            told = Stories(names=Names(fresh=1.0), test_examples=1).build()
            examples = told.examples("train", np.arange(_BPE_STORIES), 0)
            decode = told.source.tokenizer.decode
            texts = (
                decode(row[:length].tolist()) for row, length in zip(examples.tokens, examples.lengths, strict=True)
            )
            return BpeTokens(train_bpe(texts, tokens.vocabulary), {word.lower() for word in words})
