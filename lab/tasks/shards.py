"""A cache of folders with arrays, under `$XDG_CACHE_HOME/mtp-lab` or `~/.cache/mtp-lab`.

A folder is named by the hash of a key that contains everything its content depends on. It is either complete or absent:
a new folder is built under an exclusive lock, then renamed. Folders can be deleted at any time.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lab.errors import MachineFault

_CONTENT = "content.json"
"""The key and the size of every file, written last."""


def root() -> Path:
    """Return the folder of the cache.

    Raises:
        MachineFault: neither XDG_CACHE_HOME nor a home folder is known.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtp-lab"
    except RuntimeError:
        raise MachineFault("there is no home folder to keep a cache in; XDG_CACHE_HOME names another") from None


def folder(key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of `key`, after building it if it is absent or incomplete.

    Args:
        key: contains everything that the content depends on.
        build: fills an empty folder. Other processes that need it wait; if this one is killed, one of them builds it.

    Raises:
        MachineFault: the cache cannot be read or written.
    """
    place = root() / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
    if _is_whole(place):
        return place
    try:
        root().mkdir(parents=True, exist_ok=True)
        with place.with_suffix(".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(place):
                fresh = place.with_suffix(".new")
                for leftover in (fresh, place):
                    shutil.rmtree(leftover, ignore_errors=True)
                fresh.mkdir()
                try:
                    build(fresh)
                    content = {"key": key, "files": {file.name: file.stat().st_size for file in fresh.iterdir()}}
                    (fresh / _CONTENT).write_text(json.dumps(content), encoding="utf-8")
                    fresh.rename(place)
                except BaseException:
                    shutil.rmtree(fresh, ignore_errors=True)
                    raise
    except OSError as error:
        raise MachineFault(f"{error.filename or place}: the cache cannot be used: {error.strerror}") from None
    return place


def _is_whole(place: Path) -> bool:
    try:
        files = json.loads((place / _CONTENT).read_text(encoding="utf-8"))["files"]
        return all((place / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def mapped(file: Path) -> NDArray[Any]:
    """Return an array of a folder, memory-mapped.

    Raises:
        MachineFault: the file vanished or is damaged.
    """
    try:
        return np.asarray(np.load(file, mmap_mode="r"))
    except (OSError, ValueError):
        raise MachineFault(f"{file}: vanished or damaged; delete {file.parent} and run again") from None


class Appending:
    """A one-dimensional .npy file that is written in parts; a context manager."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self._dtype, self._count = np.dtype(dtype), 0
        self._file = path.open("wb")
        self._header()

    def _header(self) -> None:
        # The header has room for a longer first axis, so it can be overwritten at the end.
        kind = np.lib.format.dtype_to_descr(self._dtype)
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": kind, "fortran_order": False, "shape": (self._count,)}
        )

    def add(self, part: NDArray[Any]) -> None:
        """Write a part [N] at the end."""
        self._count += len(part)
        self._file.write(np.ascontiguousarray(part, self._dtype).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._header()
        self._file.close()
