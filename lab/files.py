"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def located(path: str | Path) -> Path:
    """The path that a user gave: where nothing is there, a leading `~` is the home folder, as in a shell."""
    return Path(path if os.path.exists(path) else os.path.expanduser(path))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file to; when the block ends it is moved to `path`, or removed if that failed.

    What is at `path` is the old content or the new one, also after a crash of the machine.

    Raises:
        OSError: the file cannot be written; it is named.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        yield fresh
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # some writers keep what they write to its owner
        os.replace(fresh, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        if isinstance(error, OSError) and error.filename is None:  # a write, unlike an open, does not say where
            error.filename = str(path)
        raise
