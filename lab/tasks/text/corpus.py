"""Reads stories from .txt, .jsonl and .parquet files, one after another, in bounded memory."""

import codecs
import glob
import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lab.config import did_you_mean
from lab.errors import BadInput
from lab.files import located
from lab.tasks import shards
from lab.tasks.letters import canonical_text

ENDINGS = (".txt", ".parquet", ".jsonl")
Layout = Literal["own_line", "line_end", "blank_line", "every_line"]
_BLOCK = 1 << 24
"""The number of bytes of text that are read at once."""
_LONGEST = 1 << 26
"""The largest number of characters of a story."""
_ROWS = 4096
"""The number of rows of a parquet file that are read at once."""
_SMALL = 1 << 20
"""The largest number of bytes of a file whose hash is not cached."""
_HEAD = 1 << 10
"""The number of bytes at a file's beginning that show its kind."""

_KINDS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs\.github\.com/", "a Git LFS pointer in place of the file; `git lfs pull` fetches that"),
    (
        rb"(\.\./)*\.git/annex/|/annex/objects/",
        "a git-annex pointer in place of the file; `git annex get` fetches that",
    ),
    (rb"(?i)\s*<(!doctype\s+html|html|head|body)\b", "an HTML page, perhaps of a download that failed"),
    (rb"(?i)\s*<(\?xml|error)\b", "an XML document, perhaps of a download that failed"),
    (rb"\x1f\x8b", "compressed by gzip; unpack it"),
    (rb"BZh[1-9]", "compressed by bzip2; unpack it"),
    (rb"\xfd7zXZ", "compressed by xz; unpack it"),
    (rb"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive; unpack it"),
    (rb"[\s\S]{257}ustar", "a tar archive; unpack it"),
    (rb"ARROW1|\xff\xff\xff\xff[\s\S]{2}\0\0", "an Arrow file; write it as parquet"),
    (rb"%PDF-", "a PDF document; take its text"),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32; `iconv -f UTF-32 -t UTF-8` makes it UTF-8"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16; `iconv -f UTF-16 -t UTF-8` makes it UTF-8"),
)
"""Beginnings of files that are not plain stories, and the kinds of such files."""
_PARQUET, _JSON = re.compile(rb"PAR1"), re.compile(rb'(\xef\xbb\xbf)?\s*\{\s*"[^"\n]*"\s*:')
_BLANKS = r"(?:[^\S\n]|[\u200b\u2060\ufeff])*"
"""White space within a line, visible or not."""
_STANDS: dict[Layout, str] = {
    "own_line": "on a line of its own; the others are line_end, blank_line and every_line",
    "line_end": "at the end of a line",
    "blank_line": "nowhere",
    "every_line": "nowhere",
}
"""The position of a separator between stories."""


def matched(patterns: Sequence[str]) -> list[Path]:
    """Return the files of paths and glob patterns, each once; those of one pattern are sorted by name.

    The path of an existing file is not a pattern, and neither is an existing folder at the beginning of a pattern, even
    with characters like `*`. A leading `~` is the home folder.

    Raises:
        ValueError: a pattern matches nothing, or a file that is neither text nor JSON lines nor parquet.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = _named(pattern)
        if not found:
            raise ValueError(f"no file matches '{pattern}' in {Path.cwd()}")
        for file in found:
            if file.suffix.lower() not in ENDINGS or file.is_dir():
                raise ValueError(f"'{file}' should be a file that ends in {' or '.join(ENDINGS)}")
        files |= dict.fromkeys(found)
    return list(files)


def _named(pattern: str) -> list[Path]:
    """Return the path itself if it exists, else the matches of the pattern below its existing folders."""
    path = located(pattern)
    if not pattern or os.path.exists(path):
        return [path] if pattern else []
    there = next((each for each in path.parents if os.path.exists(each)), Path())
    below = os.path.join(glob.escape(str(there)), path.relative_to(there))
    return [Path(each) for each in sorted(glob.glob(below, recursive=True))]


def fingerprint(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the files' own SHA-256s in order, as lines of hexadecimal digits.

    Large files are not read again while their path, size and time of change are the same.

    Raises:
        BadInput: a file cannot be read, or its kind does not match its name.
    """
    return hashlib.sha256("".join(f"{_digest(file)}\n" for file in files).encode()).hexdigest()


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            _check_kind(file, stream.read(_HEAD))
        stat = file.stat()
        if stat.st_size <= _SMALL:
            return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise _refused(file, error.strerror) from None

    def build(place: Path) -> None:
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise _refused(file, error.strerror) from None
        (place / "sha256").write_text(digest, encoding="utf-8")

    place = shards.folder(f"sha256 of {file.resolve()}, {stat.st_size} bytes, of {stat.st_mtime_ns} ns", build)
    return (place / "sha256").read_text(encoding="utf-8")


def _check_kind(file: Path, head: bytes) -> None:
    """Raise for a file whose beginning does not match the kind in its name.

    Raises:
        BadInput: the message names the kind.
    """
    for beginning, kind in _KINDS:
        if re.match(beginning, head):
            raise _refused(file, f"it is {kind}")
    ending = file.suffix.lower()
    if _PARQUET.match(head) and ending != ".parquet":
        raise _refused(file, "it is a parquet file; its name should end in .parquet")
    if _JSON.match(head) and ending != ".jsonl":
        raise _refused(file, "it holds JSON; of JSON lines the name should end in .jsonl")


def stories(
    files: Sequence[Path], column: str, separator: str, layout: Layout = "own_line"
) -> Iterator[tuple[str, float]]:
    """Yield every story, and the share of all files that has been read.

    Stories are in `canonical_text` form; empty ones are left out.

    Args:
        files: .txt in UTF-8, .jsonl and .parquet.
        column: the column of a .jsonl or .parquet file; each row is a story.
        separator: the separator between two stories of a .txt file.
        layout: the way stories are separated in a .txt file.

    Raises:
        BadInput: a file cannot be read in this way, or has the separator where the layout does not allow it.
    """
    separator, sizes = separator.strip(), [_size(file) for file in files]
    # With the layout line_end, a separator at the end of a line may also be part of a longer word.
    doubt = f"|{re.escape(separator)}{_BLANKS}$" if layout == "line_end" else ""
    stray = re.compile(_whole(separator) + doubt, re.MULTILINE)
    done = itertools.accumulate(sizes, initial=0)
    for file, size, before in zip(files, sizes, done, strict=False):
        ending, unit = file.suffix.lower(), "line"
        if ending == ".parquet":
            texts, unit = _of_parquet(file, column), "row"
        elif ending == ".jsonl":
            texts = _of_json(file, size, column)
        else:
            texts = _of_text(file, size, separator, layout)
        empty = True
        for text, place, share in texts:
            if separator in text and (found := stray.search(text)):
                below = text.count("\n", 0, found.start()) if ending == ".txt" else 0
                right = (
                    f"with layout {layout} it stands {_STANDS[layout]}" if ending == ".txt" else f"a {unit} is a story"
                )
                raise _refused(file, f"{unit} {place + below} has the separator '{separator}' beside text; {right}")
            story = canonical_text(text)
            if story:
                empty = False
                yield story, (before + share * size) / sum(sizes)
        if empty:
            raise _refused(file, "it holds no story")


def _refused(file: Path, reason: object) -> BadInput:
    return BadInput(f"task.files: {file} is not allowed: {reason}")


def _size(file: Path) -> int:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise _refused(file, error.strerror) from None
    if size == 0:
        raise _refused(file, "it is empty")
    return size


def _whole(separator: str) -> str:
    """Return a pattern for a separator that is not part of a longer word, as END in FRIEND or *** in *****."""
    if not separator:
        return "(?!)"
    run = re.escape(separator[0]) if len({*separator}) == 1 else "(?!)"
    first, last = (r"\w" if re.match(r"\w", each) else run for each in (separator[0], separator[-1]))
    text = re.escape(separator)  # first, since what begins with plain text is found fast
    return f"{text}(?<!{first}{text})(?!{last})"


def _of_text(file: Path, size: int, separator: str, layout: Layout) -> Iterator[tuple[str, int, float]]:
    """Yield the text between cuts, the line at which it begins, and the share of the file that has been read."""
    cut = re.compile(
        {
            "own_line": f"^{_BLANKS}{_whole(separator)}{_BLANKS}$",
            "line_end": f"{_whole(separator)}{_BLANKS}$",
            "blank_line": rf"\n(?:{_BLANKS}\n)+",
            "every_line": r"\n",
        }[layout],
        re.MULTILINE,
    )
    rest, line = "", 1  # what is read of stories that have not ended, and the line at which it begins
    for text, read, more in _blocks(file):
        rest += text
        begin, lines = 0, rest.rfind("\n") + 1 if more else len(rest)
        for match in cut.finditer(rest, 0, lines):
            yield rest[begin : match.start()], line, (read - (len(rest) - match.end())) / size
            line += rest.count("\n", begin, match.end())
            begin = match.end()
        rest = rest[begin:]
        if len(rest) > _LONGEST:
            offset = read - len(rest.encode())
            what = {"own_line": f"line '{separator}'", "line_end": f"line that ends in '{separator}'"}.get(
                layout, layout
            )
            reason = f"no {what} in the {_LONGEST >> 20} MiB from byte {offset} on; see `separator` and `layout`"
            raise _refused(file, reason)
    yield rest, line, 1.0


def _blocks(file: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield text of a UTF-8 file with "\\n" line ends, the bytes read so far, and True if there may be more.

    Raises:
        BadInput: the file cannot be read, or a byte of it is no text.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    read = 0
    try:
        with file.open("rb") as stream:
            while True:
                block = stream.read(_BLOCK)
                if b"\0" in block:
                    raise _refused(file, f"byte {read + block.index(0)} is NUL: it is no text, or UTF-16")
                text = decoder.decode(block, final=not block)
                read += len(block)
                yield text, read, bool(block)
                if not block:
                    return
    except UnicodeDecodeError as error:
        # What the decoder was given is what it had kept and the block; a byte-order mark is taken off.
        offset = read + len(block) - len(error.object) + error.start
        known = "; `iconv -f WINDOWS-1252 -t UTF-8` makes it so, if that is what it is"
        raise _refused(file, f"byte {offset} is not UTF-8{known}") from None
    except OSError as error:
        raise _refused(file, error.strerror) from None


def _of_json(file: Path, size: int, column: str) -> Iterator[tuple[str, int, float]]:
    """Yield the text of each line, its number, and the share of the file that has been read."""
    read = 0
    try:
        with file.open("rb") as stream:
            for line, content in enumerate(iter(lambda: stream.readline(_LONGEST + 1), b""), start=1):
                read += len(content)
                if len(content) > _LONGEST:
                    raise _refused(file, f"line {line} is longer than {_LONGEST >> 20} MiB")
                if content.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield _json_text(file, line, content, column), line, read / size
    except OSError as error:
        raise _refused(file, error.strerror) from None


def _json_text(file: Path, line: int, content: bytes, column: str) -> str:
    try:
        row: Any = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _refused(file, f"line {line} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _refused(file, f"line {line} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise _refused(file, f"line {line} is not a JSON object")
    if column not in row:
        raise _no_column(f"{file}, line {line}", column, [*row])
    text = "" if row[column] is None else row[column]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise BadInput(f"task.column: '{column}' is not allowed: in {file}, line {line} it holds {kind}, not text")
    if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
        raise _refused(file, f"line {line} has half of a character")
    return text


def _no_column(where: str, column: str, known: list[str]) -> BadInput:
    return BadInput(
        f"task.column: '{column}' is not allowed: {where} has {', '.join(known)}{did_you_mean(column, known)}"
    )


def _of_parquet(file: Path, column: str) -> Iterator[tuple[str, int, float]]:
    """Yield the text of each row, its number, and the share of the file that has been read."""
    import pyarrow
    from pyarrow import parquet, types

    try:
        with parquet.ParquetFile(file) as table:
            schema, rows = table.schema_arrow, table.metadata.num_rows
            if column not in schema.names:
                raise _no_column(str(file), column, schema.names)
            kind = schema.field(column).type
            coded = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if not any(is_text(coded) for is_text in (types.is_string, types.is_large_string, types.is_string_view)):
                raise BadInput(f"task.column: '{column}' is not allowed: in {file} it holds {kind}, not text")
            row = 0
            for batch in table.iter_batches(batch_size=_ROWS, columns=[column]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    yield text or "", row, row / rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _refused(file, f"it cannot be read as parquet: {str(error).partition(chr(10))[0]}") from None
    except UnicodeDecodeError:
        raise _refused(file, f"its column '{column}' is not UTF-8") from None
