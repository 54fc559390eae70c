"""Three tokenizers: words, bytes, and byte-level BPE; and the pairs of tokens that can be a name.

All three cut text into the same `pieces` first. A space belongs to the lower-case word after it (" the"), yet stands
alone before a capitalised word, so that a name is the same tokens wherever it stands: at a sentence's start, after a
quotation mark, after a space. A name of two tokens is a piece of its own, with words and BPE.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lab.config import Config
from lab.errors import BadInput
from lab.tasks.letters import APOSTROPHES, CASELESS, INNER, LOWER, MARKS, UPPER

END, UNKNOWN = "<end>", "<unk>"
"""The token after a story, and the one for words outside the vocabulary. No piece of a text reads so."""


class Words(Config):
    """Every word and mark is a token; names are two tokens out of a list of syllables made for them."""

    name: Literal["words"] = "words"
    vocabulary: int = Field(default=8192, ge=1, le=60_000)
    """The number of words of real text, the most frequent ones; others are `<unk>`. Simulated stories have no limit."""


class Bytes(Config):
    """Every byte of UTF-8 is a token; names are two letters."""

    name: Literal["bytes"] = "bytes"


class Bpe(Config):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019), trained on the task's own text."""

    name: Literal["bpe"] = "bpe"
    vocabulary: int = Field(default=1024, ge=300, le=60_000)
    """Tokens, the 256 bytes and the end token included; a small corpus may yield fewer."""


Tokens = Annotated[Words | Bytes | Bpe, Field(discriminator="name")]


# Only character ranges, no \w or \s: Python's `re` and the Oniguruma of `tokenizers` must agree on every character.
_SMALL = f"{LOWER}{MARKS}"
_CLITIC = f"[{APOSTROPHES}](?:s|d|ll|re|ve)(?![{_SMALL}])"
_WORD = f"(?: ?[{LOWER}]|[{UPPER}])[{_SMALL}]*(?:(?!{_CLITIC})[{INNER}][{LOWER}][{_SMALL}]*)*"
_PIECE = f"{_WORD}|{_CLITIC}| ?[{CASELESS}]+|[\\s\\S]"
_PIECES = re.compile(_PIECE)
CLITIC = re.compile(_CLITIC)
"""The 's, 'd, 'll, 're or 've that is a piece of its own."""
CAPITALISED = re.compile(f"[{UPPER}][{MARKS}]*[{LOWER}][{_SMALL}]*")
"""The pattern of a piece that may be a name."""


def pieces(text: str) -> list[str]:
    """Split a text into parts that no token crosses; concatenated, they are the text.

    A word, with the space before it if it begins with a small letter. A word ends before an inner capital, and before
    's, 'd, 'll, 're and 've, which are pieces of their own so that "Mira's" holds the piece "Mira"; "don't" is one
    piece. Letters are those of all alphabets with capitals; alphabets without (U+0100 to U+1FFF) come in runs. Every
    other character is a piece: digits, marks, newlines, spaces that precede no small letter.
    """
    return _PIECES.findall(text)


class Tokenizer(Protocol):
    """An encoder of pieces as tokens."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The text of each token id, in a printable form; all different, at most 2^16."""

    @property
    def end(self) -> int:
        """The token that ends a story."""

    def encode(self, pieces: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each piece; a piece's tokens do not depend on its neighbours.

        Raises:
            BadInput: a piece has no token.
        """

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; the end token has none."""

    def name_tokens(self, shared: bool) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Return candidates for the first [F] and the second [S] token of a name, in a fixed random order.

        Args:
            shared: True if the candidates for both are the same; False if their form shows which one they are.

        Raises:
            BadInput: no token can be both.
        """

    def allowed(self, firsts: NDArray[np.uint16], seconds: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Return the mask [F, S] of pairs that can be a name: their text has exactly these tokens and is no word."""


def _shuffled(texts: Iterable[str]) -> list[str]:
    """Return the texts in a random order that depends only on the texts."""
    return sorted(texts, key=lambda text: hashlib.blake2b(text.encode()).digest())


# --- words ---

_SIMPLE, _VOWELS, _CODAS = "bdfghjklmnprstvwz", "aeiou", "bdklmnprst"
_BLENDS = "bl br ch dr fl fr gl gr kl kr pl pr sh sk sl sm sn sp st sw tr tw y zh"


def made_up() -> Iterator[str]:
    """Yield the 2,255 syllables of names, first the 85 of one consonant and one vowel."""
    yield from _shuffled(onset + vowel for onset in _SIMPLE for vowel in _VOWELS)
    blends = _BLENDS.split()
    longer = ["".join(parts) for parts in itertools.product(blends, _VOWELS)]
    closed = ["".join(parts) for parts in itertools.product((*_SIMPLE, *blends), _VOWELS, _CODAS)]
    yield from _shuffled(longer + closed)


_CLOSING = frozenset(",.!?;:)]}…’”'%-\n")
_OPENING = frozenset("([{“‘-\n")


class WordTokens:
    """A tokenizer with a token for each word, mark and newline; a name is two syllables, tokens that only names have.

    Single spaces have no token. Case matters: "The" and "the" are two words. Decoding follows rules: marks are placed
    as in English, plain double quotes open and close in turn, and a run of syllables is a run of names: mi ra so la is
    "MiraSola".
    """

    def __init__(self, words: Iterable[str], syllables: int, *, unknown: bool = False) -> None:
        """Make a vocabulary of the end token, the words in their order, and syllables that are none of the words.

        Args:
            words: the words, marks and "\\n" that text is made of, as `pieces` without their space; all different.
            syllables: the number of syllable tokens. A name's first and second token both come from all of
                them (shared), or from one half each.
            unknown: True if other words are `<unk>`; False if they are an error.

        Raises:
            BadInput: there are fewer syllables.
        """
        words = list(words)
        taken = {word.lower() for word in words}
        free = [syllable for syllable in made_up() if syllable not in taken]
        if syllables > len(free):
            raise BadInput(f"{syllables} syllables for names are not allowed: there are {len(free)} that are no words")
        head = [END, UNKNOWN] if unknown else [END]
        self._texts = (*head, *words, *free[:syllables])
        self.vocabulary = tuple(text if text.isprintable() else repr(text)[1:-1] for text in self._texts)
        self.end = 0
        self._unknown = head.index(UNKNOWN) if unknown else None
        self._first_syllable = len(head) + len(words)
        self._ids = {word: token for token, word in enumerate(words, start=len(head))}

    def encode(self, pieces: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each piece. Text contains no syllables of names: these are inserted later."""
        return [self._encode(piece.strip(" ")) for piece in pieces]

    def _encode(self, word: str) -> list[int]:
        if not word:
            return []
        token = self._ids.get(word, self._unknown)
        if token is None:
            raise BadInput(f"{word!r} is not a word of this vocabulary")
        return [token]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        text, glued, quoted, syllables = "", True, False, 0
        for token in tokens:
            word = self._texts[token]
            syllables = syllables + 1 if token >= self._first_syllable else 0
            if token == self.end:
                continue
            if syllables:
                text += "" if glued or syllables > 1 else " "
                text += word.capitalize() if syllables % 2 else word
                glued = False
                continue
            closes = word in _CLOSING or CLITIC.fullmatch(word) or (word == '"' and quoted)
            number = word.isdigit() and text[-1:].isdigit()
            text += word if glued or closes or number else " " + word
            quoted = (word == '"') != quoted and word != "\n"  # a quotation that is left open ends with its line
            glued = word in _OPENING or (word == '"' and quoted)
        return text

    def name_tokens(self, shared: bool) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Return the syllables for first and second tokens."""
        syllables = np.arange(self._first_syllable, len(self.vocabulary), dtype=np.uint16)
        half = len(syllables) // 2
        return (syllables, syllables) if shared else (syllables[0 : 2 * half : 2], syllables[1::2])

    def allowed(self, firsts: NDArray[np.uint16], seconds: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Return a mask [F, S] that allows all pairs."""
        return np.ones((len(firsts), len(seconds)), np.bool_)


# --- bytes ---


def _byte_texts() -> list[str]:
    """Return GPT-2's printable character for each byte: its own in Latin-1 if printable, else one from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256))
    return [chr(byte if byte in printable else 256 + next(others)) for byte in range(256)]


_TWO_LETTERS = (
    "ah am an as at be by do dr eh ex go ha he hi hm ho id if in is it la lo ma me mm mr ms my no of oh ok on or ow ox "
    "pa pi so st to tv uh um up us we ya ye yo"
)


class ByteTokens:
    """A tokenizer whose tokens are the bytes of UTF-8; a name is two ASCII letters."""

    def __init__(self, lexicon: Collection[str] = ()) -> None:
        """Exclude from the names the lower-case words of `lexicon`, and common words of two letters."""
        self.vocabulary = (*_byte_texts(), END)
        self.end = 256
        self._words = frozenset(_TWO_LETTERS.split()).union(lexicon)

    def encode(self, pieces: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each piece; every piece has tokens."""
        return [list(piece.encode()) for piece in pieces]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; invalid UTF-8 becomes U+FFFD."""
        return bytes(token for token in tokens if token != self.end).decode(errors="replace")

    def name_tokens(self, shared: bool) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Return all letters as first and second tokens (shared), or capitals and small letters."""
        small = "abcdefghijklmnopqrstuvwxyz"
        if shared:
            both = _codes(small + small.upper())
            return both, both
        return _codes(small.upper()), _codes(small)

    def allowed(self, firsts: NDArray[np.uint16], seconds: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Return the mask [F, S] of pairs that are no word."""
        pairs = [chr(first) + chr(second) for first, second in itertools.product(firsts, seconds)]
        allowed = np.array([pair.lower() not in self._words for pair in pairs], np.bool_)
        return allowed.reshape(len(firsts), len(seconds))


def _codes(letters: str) -> NDArray[np.uint16]:
    """Return the codes of letters in a fixed random order."""
    return np.array([ord(letter) for letter in _shuffled(letters)], np.uint16)


# --- BPE ---


def train_bpe(texts: Iterable[str], vocabulary: int) -> str:
    """Train a byte-level BPE whose pre-tokens are the `pieces` of a text.

    Args:
        texts: the training text, in parts that do not split a piece.
        vocabulary: the number of tokens, the end token included.

    Returns:
        JSON for `BpeTokens`; the same texts give the same JSON.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,  # without the end token, which the text "<end>" must not become
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


_FIRST, _SECOND = re.compile("[A-Z][a-z]*"), re.compile("[a-z]+")
_REMEMBERED = 1 << 19
"""The number of pieces whose tokens are cached."""


class BpeTokens:
    """A trained byte-level BPE; a name is a capitalised token and a token that continues a word."""

    def __init__(self, trained: str, lexicon: Collection[str] = ()) -> None:
        """Load the result of `train_bpe`, and exclude the lower-case words of `lexicon` from the names.

        Raises:
            ValueError: `trained` is not such a result.
        """
        # Data workers may be forked later, which the library's own threads do not survive.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        import tokenizers

        try:
            self._trained = tokenizers.Tokenizer.from_str(trained)
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"not a tokenizer: {error}") from None
        texts: list[str] = sorted(ids := self._trained.get_vocab(), key=ids.__getitem__)
        self.vocabulary = (*texts, END)
        self.end = len(texts)
        self._words = frozenset(lexicon)
        self._known: dict[str, list[int]] = {}

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes of each token; none for the end token."""
        by_text = {text: byte for byte, text in enumerate(_byte_texts())}
        return [*(bytes(map(by_text.__getitem__, text)) for text in self.vocabulary[:-1]), b""]

    def encode(self, pieces: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each piece; every piece has tokens."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        fresh = list(set(pieces) - self._known.keys())
        self._known.update(zip(fresh, self._encode(fresh), strict=True))
        return [self._known[piece] for piece in pieces]

    def _encode(self, pieces: list[str]) -> Iterator[list[int]]:
        return (each.ids for each in self._trained.encode_batch_fast(pieces, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; invalid UTF-8 becomes U+FFFD."""
        return b"".join(self._bytes[token] for token in tokens).decode(errors="replace")

    def name_tokens(self, shared: bool) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Return tokens of a capital and small letters, and tokens of small letters without a space before them."""
        if shared:
            raise BadInput(
                "names with shared tokens are not allowed with BPE: a name is one capitalised word, "
                "so its first token has a capital and its second has none"
            )
        ids = {text: token for token, text in enumerate(self.vocabulary)}
        order = sorted(_shuffled(ids), key=lambda text: len(text) == 1)  # single letters, which make poor names, last
        first = [ids[text] for text in order if _FIRST.fullmatch(text)]
        second = [ids[text] for text in order if _SECOND.fullmatch(text)]
        return np.array(first, np.uint16), np.array(second, np.uint16)

    def allowed(self, firsts: NDArray[np.uint16], seconds: NDArray[np.uint16]) -> NDArray[np.bool_]:
        """Return the mask [F, S] of pairs that BPE does not split elsewhere, nor merge, and that are no word."""
        allowed = np.zeros((len(firsts), len(seconds)), np.bool_)
        for row, first in enumerate(firsts.tolist()):
            names = [self.vocabulary[first] + self.vocabulary[second] for second in seconds.tolist()]
            for column, (name, tokens) in enumerate(zip(names, self._encode(names), strict=True)):
                allowed[row, column] = tokens == [first, seconds[column]] and name.lower() not in self._words
        return allowed
