"""Stories out of .txt and .parquet files, one after another, in bounded memory."""

import glob
import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.errors import BadInput
from lab.tasks import shards

ENDINGS = (".txt", ".parquet")
_BLOCK = 1 << 24
"""Bytes of text that are read at once."""
_LONGEST = 1 << 26
"""Bytes of the longest story."""
_ROWS = 4096
"""Rows of a parquet file that are read at once."""
_SMALL = 1 << 20
"""Bytes of a file that is hashed whenever it is asked for."""


def matched(patterns: Sequence[str]) -> list[Path]:
    """The files that paths and glob patterns name, each once, those of one pattern in order of their names.

    Raises:
        ValueError: a pattern matches nothing, or a file that is neither text nor parquet.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = [Path(each) for each in sorted(glob.glob(pattern, recursive=True))]
        if not found:
            raise ValueError(f"no file matches '{pattern}' in {Path.cwd()}")
        for file in found:
            if file.suffix not in ENDINGS:
                raise ValueError(f"'{file}' should be a file that ends in {' or '.join(ENDINGS)}")
        files |= dict.fromkeys(found)
    return list(files)


def fingerprint(files: Sequence[Path]) -> str:
    """The SHA-256 of the files' own SHA-256s in order, as lines of hexadecimal digits.

    Large files are not read again while their path, size and time of change are the same.

    Raises:
        BadInput: a file cannot be read.
    """
    return hashlib.sha256("".join(f"{_digest(file)}\n" for file in files).encode()).hexdigest()


def _digest(file: Path) -> str:
    try:
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
        (place / "sha256").write_text(digest)

    place = shards.folder(f"sha256 of {file.resolve()}, {stat.st_size} bytes, of {stat.st_mtime_ns} ns", build)
    return (place / "sha256").read_text()


def stories(files: Sequence[Path], column: str, separator: str) -> Iterator[tuple[str, float]]:
    """Every story, and the share of all files that is read with it.

    Stories come without white space around them and with "\\n" as the end of a line; empty ones are left out.

    Args:
        files: .txt in UTF-8, and .parquet.
        column: of a .parquet file; each row is a story.
        separator: the line between two stories of a .txt file.

    Raises:
        BadInput: a file cannot be read as that.
    """
    sizes = [_size(file) for file in files]
    for file, size, before in zip(files, sizes, (sum(sizes[:k]) for k in range(len(sizes))), strict=True):
        told = _of_parquet(file, column) if file.suffix == ".parquet" else _of_text(file, size, separator)
        empty = True
        for text, share in told:
            story = text.replace("\r\n", "\n").strip()
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


def _of_text(file: Path, size: int, separator: str) -> Iterator[tuple[str, float]]:
    between = re.compile(rb"^[ \t]*" + re.escape(separator.encode()) + rb"[ \t\r]*$", re.MULTILINE)
    rest, offset, more = b"", 0, True  # what is read of stories that have not ended, and where in the file it begins
    try:
        with file.open("rb") as stream:
            while more:
                block = stream.read(_BLOCK)
                more = bool(block)
                rest += block
                start, lines = 0, rest.rfind(b"\n") + 1 if more else len(rest)
                for match in between.finditer(rest, 0, lines):
                    yield _decoded(file, rest[start : match.start()], offset + start), (offset + match.end()) / size
                    start = match.end()
                rest, offset = rest[start:], offset + start
                if len(rest) > _LONGEST:
                    reason = f"no line '{separator}' in the {_LONGEST >> 20} MiB from byte {offset} on; see `separator`"
                    raise _refused(file, reason)
    except OSError as error:
        raise _refused(file, error.strerror) from None
    yield _decoded(file, rest, offset), 1.0


def _decoded(file: Path, text: bytes, offset: int) -> str:
    try:
        return text.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _refused(file, f"byte {offset + error.start} is not UTF-8") from None


def _of_parquet(file: Path, column: str) -> Iterator[tuple[str, float]]:
    import pyarrow
    from pyarrow import parquet, types

    try:
        with parquet.ParquetFile(file) as table:
            schema, rows = table.schema_arrow, table.metadata.num_rows
            if column not in schema.names:
                raise BadInput(f"task.column: '{column}' is not allowed: {file} has {', '.join(schema.names)}")
            kind = schema.field(column).type
            coded = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if not any(is_text(coded) for is_text in (types.is_string, types.is_large_string, types.is_string_view)):
                raise BadInput(f"task.column: '{column}' is not allowed: in {file} it holds {kind}, not text")
            read = 0
            for batch in table.iter_batches(batch_size=_ROWS, columns=[column]):
                read += len(batch)
                for text in batch.column(0).to_pylist():
                    yield text or "", read / rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _refused(file, f"it cannot be read as parquet: {str(error).partition(chr(10))[0]}") from None
    except UnicodeDecodeError:
        raise _refused(file, f"its column '{column}' is not UTF-8") from None
