"""Where runs and their results live.

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from lab.errors import BadInput, Failure, one_line
from lab.experiments.experiment import Experiment, dump_yaml, load_experiment
from lab.files import located, whole
from lab.home import home

Result = dict[str, Any]
"""The content of a result.json; see `lab.experiments.run` for its fields."""


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
        """Where the weights of a step before the last are, if they are kept."""
        return self.weights / f"step-{step}.safetensors"

    def snapshots(self) -> dict[int, Path]:
        """The weights kept of steps before the last, by step."""
        found = {int(path.stem.removeprefix("step-")): path for path in self.weights.glob("step-*.safetensors")}
        return dict(sorted(found.items()))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the run, so that no other process works on it; a killed holder lets go at once.

        Whatever fails inside is left in failure.json.

        Raises:
            Busy: another process holds it.
            Failure: the store cannot be written, or something failed inside.
        """
        fresh = not self.path.exists()
        try:
            self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("wb")
        except OSError as error:
            raise Failure(f"{self.path}: cannot be written: {error.strerror}") from None
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
                reason = one_line(error)
                with suppress(OSError):  # a disk that is full, or a store that vanished, keeps no record either
                    write_json(self.failure, {"reason": reason, "traceback": traceback.format_exc()})
                raise Failure(f"{self.path}: {reason}") from error

    def is_held(self) -> bool:
        """Whether another process works on the run; False where that cannot be told (elsewhere than on Linux).

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
            result = json.loads(self.result.read_text(encoding="utf-8"))
            if _is_result(result) and result["identity"] == self.experiment.identity:
                return result  # type: ignore[no-any-return]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, KeyError):
            pass
        raise Failure(f"{self.result}: is not the result of run {self.experiment.identity}; move it away to run anew")

    def read_failure(self) -> str | None:
        """Why the run failed when it was last tried; None when it did not."""
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
    with whole(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def kept_results(folder: Path | None = None, but: Path | None = None) -> dict[str, Result]:
    """The results committed under results/, by identity; those of the table `but` left out.

    Raises:
        BadInput: a line of a table is not a result, or it is no table.
    """
    results = {}
    for table in sorted({*(folder or home() / "results").glob("*.jsonl")} - {but}):
        try:
            state = table.stat()
            results.update(_kept(table, (state.st_ino, state.st_mtime_ns, state.st_size)))
        except OSError as error:
            raise BadInput(f"{table}: cannot be read: {error.strerror}") from None
    return results


@cache
def _kept(table: Path, state: tuple[int, ...]) -> dict[str, Result]:
    """The results of a table, which is read again only when its `state` changes: commands over many sweeps need all."""
    results = {}
    for number, line in enumerate(table.read_bytes().splitlines(), start=1):
        try:
            result = json.loads(line)
            for name in _TABLES & result.keys():  # the first results were kept without a curve
                result[name] = _rows(result[name])
            sound = _is_result(result)
        except (TypeError, KeyError, AttributeError, ValueError):
            sound = False
        if not sound:
            raise BadInput(f"{table}, line {number}: not a run's result")
        results[result["identity"]] = result
    return results


def _is_result(content: Any) -> bool:
    """Whether it has what reports read of every result."""
    try:
        named = isinstance(content["identity"], str) and isinstance(content["non_embedding_parameters"], int)
        scored = [{"split", "checkpoint", "count"} <= row.keys() for row in content["scores"]]
    except (TypeError, KeyError, AttributeError):
        return False
    return named and bool(scored) and all(scored)


def keep_results(table: Path, results: list[Result]) -> None:
    """Write results as a committed table: one JSON object a line, tables by column (a third of the size of rows)."""
    lines = []
    for result in results:
        tables = {name: _columns(result[name]) for name in _TABLES & result.keys()}
        lines.append(json.dumps({**result, **tables}) + "\n")
    write_text(table, "".join(lines))


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}  # a curve's rows may differ in what they have


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
