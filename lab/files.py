"""Files that are there whole or not at all, and that one process at a time writes."""

import contextlib
import errno
import fcntl
import os
import stat
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
def atomic_write(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file to; when the block ends it is moved to `path`, or removed if that failed.

    What is at `path` is the old content or the new one, also after a crash of the machine.

    Raises:
        OSError: the file cannot be written, or is write-protected; it is named.
    """
    fresh = path.with_name(f".{path.name}.new")  # hidden: nobody else's
    try:
        if (
            path.exists() and not stat.S_IMODE(path.stat().st_mode) & 0o222
        ):  # a folder's right to replace it is no leave
            raise PermissionError(errno.EACCES, "is write-protected", str(path))
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process is inside for the same folder: they wait. One that is killed lets go at once.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = folder / ".lock"
    while True:
        lock = path.open("wb")
        fcntl.lockf(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break
        lock.close()  # the one who held it removed it: what was waited for is no longer there
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.close()
