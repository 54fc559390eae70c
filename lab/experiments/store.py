"""Folders of runs, and tables of kept results.

A run's directory holds config.yaml, metrics.jsonl, checkpoints/, weights/ and, written last, result.json. A file is
complete or absent: each is written beside its place and moved there.
"""

import fcntl
import json
import re
import shutil
import struct
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lab.config import did_you_mean
from lab.errors import BadInput, Failure, MachineFault, blamed
from lab.experiments.experiment import Experiment, dump_yaml, load_experiment
from lab.experiments.result import RunResult, checked
from lab.files import atomic_write, located, locked
from lab.home import home

Result = RunResult
"""The record of a finished run, under the name that callers import from here."""

_TABLES = {"scores", "curve"}
"""The parts of a result that are lists of rows."""


class Busy(Failure):
    """Another process works on the run."""


class RunDirectory:
    """The directory of one run under a store."""

    def __init__(self, store: Path, experiment: Experiment) -> None:
        self.experiment = experiment
        self.path = store / experiment.label
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoints" / "last.ckpt"
        self.weights = self.path / "weights"
        self.final = self.weights / "final.safetensors"
        self.result = self.path / "result.json"
        self.failure = self.path / "failure.json"

    def snapshot(self, step: int) -> Path:
        """Return the path of the weights of a step before the last, if they are kept."""
        return self.weights / f"step-{step}.safetensors"

    def snapshots(self) -> dict[int, Path]:
        """The weights kept of steps before the last, by step."""
        found = {int(path.stem.removeprefix("step-")): path for path in self.weights.glob("step-*.safetensors")}
        return dict(sorted(found.items()))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run, so that no other process works on it; a killed holder lets go at once.

        Whatever fails inside is left in failure.json, unless it is the machine's fault.

        Raises:
            Busy: another process holds it.
            MachineFault: the store cannot be written, or the machine stood in the way of what is inside.
            Failure: something failed inside.
        """
        fresh = not self.path.exists()
        try:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("wb")
        except OSError as error:
            raise MachineFault(f"{self.path}: cannot be written: {error.strerror}") from None
        with lock:
            try:
                # The process's own: unlike flock's, not shared with its data workers, who may outlive it by seconds.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise Busy(f"{self.path}: another process works on this run") from None
            try:
                if not self.config.exists():
                    write_text(self.config, dump_yaml(self.experiment))
                self.failure.unlink(missing_ok=True)
                yield
            except BadInput:
                if fresh:  # what cannot be run leaves nothing behind
                    shutil.rmtree(self.path)
                raise
            except Exception as error:
                kind, reason = blamed(error)
                if kind is Failure:
                    with suppress(OSError):  # a disk that is full, or a store that vanished, keeps no record either
                        write_json(self.failure, {"reason": reason, "traceback": traceback.format_exc()})
                raise kind(f"{self.path}: {reason}") from error

    def is_held(self) -> bool:
        """Return True if another process works on the run; False where that is unknown (not on Linux).

        Not for who holds it: closing the file would let go.
        """
        if sys.platform != "linux":
            return False
        try:
            with (self.path / "lock").open("rb") as lock:
                # Asked, not tried: to hold it for an instant would turn others away.
                asked = struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0)  # struct flock
                kind, *_ = struct.unpack("hhqqi4x", fcntl.fcntl(lock, fcntl.F_GETLK, asked))
                return bool(kind != fcntl.F_UNLCK)
        except OSError:
            return False

    def read_result(self) -> Result | None:
        """The finished run's result; None when there is none.

        Raises:
            Failure: the file is there and is not this experiment's result.
        """
        try:
            result = checked(json.loads(self.result.read_text(encoding="utf-8")))
            if result["identity"] == self.experiment.identity:
                return result
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            pass
        raise Failure(f"{self.result}: is not the result of run {self.experiment.identity}; move it away to run anew")

    def read_failure(self) -> str | None:
        """Return the reason of the run's last failure; None if it did not fail."""
        try:
            return str(json.loads(self.failure.read_text(encoding="utf-8"))["reason"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, KeyError):
            return "it left a failure.json that cannot be read"

    def last_step(self) -> int:
        """The step of the newest row of metrics.jsonl; 0 when there is none."""
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, IndexError, ValueError, TypeError, KeyError):
            return 0


def find_run(name: str, store: Path, field: str = "init_from") -> RunDirectory:
    """The run that a directory, a label or an identity names; the latter two, or a directory that moved, in `store`.

    Raises:
        BadInput: there is no such run; names `field`, which has that value.
    """
    given = located(name)
    identity = given.name[-16:]
    inside = store.glob(f"*-{identity}") if re.fullmatch("[0-9a-f]{16}", identity) else ()
    for path in (given, *inside):
        if (path / "config.yaml").is_file():
            run = RunDirectory(path.parent, load_experiment(path / "config.yaml"))
            if run.experiment.identity == identity:
                return run
    raise BadInput(f"{field}: '{name}' is not allowed: should be the directory, label or identity of a run in {store}")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with atomic_write(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def kept_results(folder: Path | None = None) -> dict[str, Result]:
    """The results committed under results/, by identity.

    Raises:
        BadInput: a line of a table is not a result, or it is no table.
    """
    results = {}
    for table in sorted((folder or home() / "results").glob("*.jsonl")):
        results.update(read_table(table))
    return results


def read_table(table: Path) -> dict[str, Result]:
    """The results of a committed table, by identity.

    Raises:
        BadInput: it cannot be read, or a line of it is not a result.
    """
    try:
        state = table.stat()
        return _kept(table, (state.st_ino, state.st_mtime_ns, state.st_size))
    except OSError as error:
        raise BadInput(f"{table}: cannot be read: {error.strerror}") from None


@cache
def _kept(table: Path, state: tuple[int, ...]) -> dict[str, Result]:
    """The results of a table, which is read again only when its `state` changes: commands over many sweeps need all."""
    results = {}
    for number, line in enumerate(table.read_bytes().splitlines(), start=1):
        try:
            content = json.loads(line)
            for name in _TABLES & content.keys():  # the first results were kept without a curve
                content[name] = _rows(content[name])
            result = checked(content)
        except (TypeError, AttributeError, ValueError):
            raise BadInput(f"{table}, line {number}: not a run's result") from None
        results[result["identity"]] = result
    return results


def own_table(path: str, name: str, scale: str, folder: Path) -> tuple[Path, bool]:
    """Return the place in `folder` for results of the sweep or study at `path`, and True if it is its alone.

    Its alone are the places of the lab's own files, which lie in sweeps/: another file of such a name has none.

    Raises:
        BadInput: the place is another file's.
    """
    table, ours = folder / f"{name}.{scale}.jsonl", home() / "sweeps" / f"{name}.yaml"
    if table.parent != folder:
        raise BadInput(f"{path}: scale '{scale}' is not allowed: it is part of a file's name")
    found = next((each for each in (Path(path), home() / path) if each.is_file()), Path(path))
    if ours.is_file() and not ours.samefile(found):
        raise BadInput(f"{path}: {table} is the place of {ours}, which has the same name; give this file another name")
    return table, ours.is_file()


class KeptResults(NamedTuple):
    """The outcome of keeping results, by identity."""

    here: list[str]
    """In the table now."""
    elsewhere: list[str]
    """In other tables beside it, where they were kept before."""
    added: list[str]
    differing: list[str]
    """Kept before, with another content, which stays."""
    replaced: list[str]
    """Kept before, with another content, which had to go."""


def keep_results(
    table: Path, results: Sequence[Result], replace: Collection[str] = (), known: Collection[str] | None = None
) -> KeptResults:
    """Add results to a committed table: one JSON object a line, tables by column (a third of the size of rows).

    What was kept before, there or in a table beside it, stays as it is, byte for byte.

    Args:
        table: where; its folder holds the other tables.
        results: what to keep.
        replace: identities of results whose kept content goes, wherever it is, for that of `results`.
        known: the only identities that the table may hold, if it is not the sweep's alone.

    Raises:
        BadInput: a table is damaged; this one holds others than the `known`; or of `replace` nothing is kept, or given.
    """
    table.parent.mkdir(parents=True, exist_ok=True)
    with locked(table.parent):
        # What is kept now, and where; this table first.
        others = sorted({*table.parent.glob("*.jsonl")} - {table})
        held = {each: _held(each) for each in (table, *others)}
        unknown = [identity for identity, _ in held[table] if known is not None and identity not in known]
        if unknown:
            raise BadInput(
                f"{table}: holds {len(unknown)} results that are none of this sweep's, such as {unknown[0]}: they may "
                "be of another sweep of this name; give this one's file another name"
            )
        place = {identity: each for each in reversed(held) for identity, _ in held[each]}
        before = {identity: line for each in reversed(held) for identity, line in held[each]}
        ours = {result["identity"]: _line(result) for result in results}
        for identity in replace:
            if identity not in place or identity not in ours:
                allowed = f"should be a run that is finished, and kept{did_you_mean(identity, place.keys() & ours)}"
                raise BadInput(f"--replace: '{identity}' is not allowed: {allowed}")

        # Lines that are to be added, or to take the place of others.
        told, changed = KeptResults([], [], [], [], []), set()
        for identity, line in ours.items():
            where = place.get(identity, table)
            (told.here if where == table else told.elsewhere).append(identity)
            if identity not in place:
                told.added.append(identity)
                held[table].append((identity, line))
                changed.add(table)
            elif not _alike(line, before[identity]) and identity in replace:
                told.replaced.append(identity)
                held[where] = [(name, line if name == identity else other) for name, other in held[where]]
                changed.add(where)
            elif not _alike(line, before[identity]):
                told.differing.append(identity)
        for each in changed:
            lines = [line if line.endswith(b"\n") else line + b"\n" for _, line in held[each]]
            with atomic_write(each) as fresh:
                fresh.write_bytes(b"".join(lines))
    return told


def _held(table: Path) -> list[tuple[str, bytes]]:
    """A table's identities and lines, as they are; none if it is not there.

    Raises:
        BadInput: it is damaged.
    """
    if not table.exists():
        return []
    read_table(table)
    return [(json.loads(line)["identity"], line) for line in table.read_bytes().splitlines(keepends=True)]


def _alike(line: bytes, before: bytes) -> bool:
    """Return True if two lines hold the same values."""
    return line == before or json.dumps(json.loads(line)) == json.dumps(json.loads(before))


def _line(result: Result) -> bytes:
    """Return a result as its line in a table, its lists of rows by column."""
    content: dict[str, Any] = dict(result)
    for name in _TABLES & content.keys():
        content[name] = _columns(content[name])
    return json.dumps(content).encode() + b"\n"


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}  # a curve's rows may differ in what they have


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
