"""Standard output and error that no character and no reader can make fail.

A character that a stream's encoding lacks is spelt in ASCII: ± as +-, ₃ as 3, others as `backslashreplace` has them. A
reader that leaves, as `head` does, ends the printing and not the work. A stream that is closed from the start leads
nowhere: were its number left free, the next file opened would get it, and with it what is meant for people.
"""

import codecs
import contextlib
import io
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, cast

_SPELT = {
    "±": "+-", "×": "x", "·": ".", "•": "*", "−": "-", "‐": "-", "–": "-", "—": "--", "→": "->", "←": "<-", "≤": "<=",
    "≥": ">=", "≠": "!=", "≈": "~", "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "‚": "'", "«": '"', "»": '"',
    "⁄": "/", "ß": "ss", "λ": "lambda", "σ": "sigma", "β": "beta", "␣": "_", "─": "-", "━": "-", "│": "|",
}  # fmt: skip


def spelt(text: str, encoding: str) -> str:
    """A text in the characters that an encoding has."""
    return text.encode(encoding, _spell.__name__).decode(encoding)


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Spell what cannot be encoded; an error handler of codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
    if character in _SPELT:
        return _SPELT[character]
    parts = unicodedata.normalize("NFKD", character)
    accents = "\u0300" <= parts[1:2] <= "\u0315"  # not those that strike a letter through
    plain = "".join(_SPELT.get(part, part) for part in (parts[:1] if accents else parts))
    return plain if plain.isascii() else character.encode("ascii", "backslashreplace").decode()


codecs.register_error(_spell.__name__, _spell)


class _Lenient:
    """A text stream that spells what it cannot encode and outlives its reader.

    It has no `buffer`: click would write UTF-8 to that where the encoding is ASCII.
    """

    def __init__(self, stream: TextIO, name: str, needed: bool) -> None:
        """The stream, its name for people, and whether what is written to it is what was asked for."""
        self._stream, self._name, self._needed = stream, name, needed

    def write(self, text: str) -> int:
        """Write, if there is still a reader."""
        if text != "":  # click writes none to see what a stream takes, and overhears errors
            self._tried(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, if there is still a reader."""
        self._tried(self._stream.flush)

    def _tried(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            with contextlib.suppress(OSError):  # from now on it leads nowhere, also when Python ends
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)
            if self._needed and not isinstance(error, BrokenPipeError):
                error.filename = error.filename or self._name
                raise

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Make standard output and error lenient for the time of a block."""
    for number, mode in enumerate("rww"):
        name = ("stdin", "stdout", "stderr")[number]
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    before = sys.stdout, sys.stderr
    errors = [stream.errors for stream in before]
    sys.stdout = cast(TextIO, _Lenient(before[0], "standard output", needed=True))
    sys.stderr = cast(TextIO, _Lenient(before[1], "standard error", needed=False))
    try:
        _set_errors(before, [_spell.__name__] * 2)
        yield
    finally:
        sys.stdout, sys.stderr = before
        _set_errors(before, errors)


def _set_errors(streams: Iterable[TextIO], errors: Iterable[str | None]) -> None:
    """Say what streams do with characters that they cannot encode."""
    for stream, handler in zip(streams, errors, strict=True):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=handler)
