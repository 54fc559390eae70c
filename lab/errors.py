"""The ways a command can end badly, each message one line; and which of them are the machine's fault."""

import errno
import os
import re


class BadInput(Exception):
    """Input that cannot be used: the message names the field, its value and what is allowed. Exit status 2."""


class Failure(Exception):
    """A valid request that failed. Exit status 1."""


class Missing(Failure):
    """A result that is asked for has not been made yet."""


class MachineFault(Failure):
    """The machine stood in the way: a full disk, a store that is read-only, a library that cannot be imported.

    No fault of the run over which it came up, which is not recorded as failed.
    """


class ProcessDied(MachineFault):
    """A process that a run needs was killed; the run can go on from its checkpoint."""


_SAID = (
    *(os.strerror(getattr(errno, name)) for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "ESTALE")),
    *(os.strerror(getattr(errno, name)) for name in ("EMFILE", "ENFILE", "EAGAIN", "ENOLCK")),
    "shared memory object", "shared memory(shm)", "out of shared memory", "ancdata", "start new thread",
    "database or disk is full", "readonly database", "unable to open database file", "disk I/O error",
    "NVIDIA driver", "No CUDA GPUs are available", "CUDA-capable device", "uncorrectable ECC error",
)  # fmt: skip
"""Messages of libraries that do not pass the system's own errors on: safetensors, torch, SQLite, CUDA."""


def blamed(error: BaseException) -> tuple[type[Failure], str]:
    """Return an error's kind, a failure of the run or a fault of the machine, and its message in one line.

    Of the machine are files, processes and imports. That memory ran out is the run's own: it may be too large.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MachineFault):
            return type(cause), one_line(cause)
        if isinstance(cause, OSError | ImportError) or any(words in str(cause) for words in _SAID):
            return MachineFault, one_line(cause)
        if "DataLoader worker (pid" in str(cause):
            return ProcessDied, one_line(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return Failure, one_line(error)


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, with the type's name unless it is one of the lab's own."""
    if isinstance(error, BadInput | Failure):
        said = str(error)
    elif isinstance(error, OSError) and error.filename:
        said = f"{error.filename}: {error.strerror}"
    else:
        said = f"{type(error).__name__}: {error}"
    if re.search(r"^Original \w+", said, re.MULTILINE):  # as torch passes on what a data worker raised
        said = said.rstrip().splitlines()[-1]
    return " ".join(said.split())
