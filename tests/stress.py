"""Kills the lab's processes at random moments, and compares what remains with what an undisturbed command leaves.

    python -m tests.stress --kills 100        # the workers of a sweep, and the sweep
    python -m tests.stress keep --kills 1000  # `lab sweep keep`, while another keeps results in the same folder

Runs are lost that have no result in the end, doubled that got a second one or logged a step twice, and differing that
did not end bit for bit as the undisturbed ones, time, memory and host fields aside. Kept lines are lost that were in a
table and are in none, or that a command said to have added; doubled that are twice in the tables, and differing that
are other bytes than before, unless they were to be replaced.
"""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import yaml

from lab.cli.console import print_json
from lab.experiments.result import RunResult
from lab.experiments.store import RunDirectory, keep_results, kept_results, read_json_lines
from lab.experiments.sweep import Sweep, load_sweep
from tests.conftest import TINY, result_of, same_end

WORKERS = 2


class Stress:
    """A sweep of short runs, its undisturbed end, and the count of what was done to it and became of it."""

    def __init__(self, folder: Path, runs: int, steps: int, seed: int = 0) -> None:
        self.folder = folder
        self.path = folder / "stress.yaml"
        self.random = random.Random(seed)
        content = {
            "question": "What survives?",
            "endpoint": "Every run, once, and as if nothing had happened.",
            "baseline": {**TINY, "train": {**TINY["train"], "steps": steps}},
            "axes": {"seed": list(range(runs))},
            "scales": {"cpu": {"budget": "seconds"}},
        }
        self.path.write_text(yaml.safe_dump(content))
        self.kills = self.stops = self.restarts = self.lost = self.doubled = self.differing = 0
        assert self.start("undisturbed").wait() == 0

    @property
    def sweep(self) -> Sweep:
        return load_sweep(str(self.path), "cpu")

    def start(self, store: str) -> subprocess.Popen[bytes]:
        """The sweep; runs that were killed so often that they were given up are tried again."""
        options = ["--workers", str(WORKERS), "--retry", "--store", str(self.folder / store)]
        command = [sys.executable, "-m", "lab", "sweep", "run", str(self.path), *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(self.folder / "stderr").open("a"))

    def directories(self, store: str) -> list[RunDirectory]:
        return [RunDirectory(self.folder / store, cell.experiment) for cell in self.sweep.cells]

    def disturb(self, store: str, kills: int) -> None:
        """Carry out the sweep, killing until there were `kills` in all, and count what became of it."""
        directories = self.directories(store)
        results: dict[Path, int] = {}
        starts = 0
        while not all(directory.result.exists() for directory in directories):
            process = self.start(store)
            starts += 1
            while process.poll() is None:
                self.wait(process, directories)
                if self.kills < kills:
                    self.strike(process)
                for path in (each.result for each in directories if each.result.exists()):
                    self.doubled += results.setdefault(path, path.stat().st_ino) != path.stat().st_ino
            assert starts < kills + 2 * len(directories) + 10, "it does not come to an end"
        self.restarts += starts - 1
        for directory, straight in zip(directories, self.directories("undisturbed"), strict=True):
            steps = [row["step"] for row in read_json_lines(directory.metrics) if "loss" in row]
            self.doubled += len(steps) != len(set(steps))
            self.lost += directory.read_result() is None
            try:
                same_end(directory, straight)
            except AssertionError:
                self.differing += 1
        tables = [self.table(each) for each in (store, "undisturbed")]
        self.differing += tables[0] != tables[1]

    def wait(self, process: subprocess.Popen[bytes], directories: list[RunDirectory]) -> None:
        """Until a random moment: four times in five not before a run went on, else while workers may be starting."""
        before = [directory.last_step() for directory in directories]
        if self.random.random() < 0.8:
            while process.poll() is None and before == [directory.last_step() for directory in directories]:
                time.sleep(0.1)
        time.sleep(self.random.uniform(0, 1.5))

    def strike(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a worker or, one time in five, the command; one time in ten only ask the command to stop."""
        workers = list(_workers(process.pid))
        fate = self.random.random()
        if fate < 0.1:
            process.send_signal(self.random.choice((signal.SIGINT, signal.SIGTERM)))
            self.stops += 1
        elif fate < 0.3:
            process.kill()
            self.kills += 1
        elif workers:
            os.kill(self.random.choice(workers), signal.SIGKILL)
            self.kills += 1

    def table(self, store: str) -> bytes:
        """The table of all scores."""
        table = self.folder / f"{store}.csv"
        options = ["--store", str(self.folder / store), "--table", str(table), "--json"]
        command = [sys.executable, "-m", "lab", "sweep", "show", str(self.path), *options]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return table.read_bytes()

    def report(self) -> dict[str, int]:
        counts = ("kills", "stops", "restarts", "lost", "doubled", "differing")
        return {"runs": len(self.sweep.cells), **{name: getattr(self, name) for name in counts}}


def _workers(parent: int) -> Iterator[int]:
    """The worker processes of a command."""
    try:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                yield int(child)
    except FileNotFoundError:
        return  # gone meanwhile


class KeepStress:
    """Two sweeps' results that are kept in one folder by processes that are killed, and what became of the lines.

    The processes are forked, so that nearly all of their time is the keeping, as the command does it, and not Python's
    start. A third of the results is both sweeps'; now and then one that is kept was carried out again, and is replaced.
    """

    TABLES = ("ours", "theirs")

    def __init__(self, folder: Path, results: int, seed: int = 0) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        names = [f"{number:016x}" for number in range(results)]
        shared, *own = (names[start::3] for start in range(3))
        self.results = {
            table: {name: self.result(name) for name in sorted([*shared, *mine])}
            for table, mine in zip(self.TABLES, own, strict=True)
        }
        self.said: set[str] = set()
        self.kills = self.ends = self.replaced = self.lost = self.doubled = self.differing = 0

    def result(self, identity: str) -> RunResult:
        """A result of a real one's form and size."""
        curve = [{"step": step, "validation/loss": self.random.random()} for step in range(self.random.randrange(400))]
        scores = [{"split": "test", "checkpoint": "final", "count": 9, "exact_match": self.random.random()}]
        return result_of(identity, scores=scores, curve=curve)

    def lines(self) -> dict[str, list[bytes]]:
        """The lines of all tables, by identity; a table that is not whole raises."""
        kept_results(self.folder)
        lines: dict[str, list[bytes]] = {}
        for table in self.folder.glob("*.jsonl"):
            for line in table.read_bytes().splitlines(keepends=True):
                lines.setdefault(json.loads(line)["identity"], []).append(line)
        return lines

    def strike(self, kill: bool = True) -> None:
        """Let both sweeps keep some results, kill one or both of the processes at random moments, and look."""
        before = self.lines()
        context = multiprocessing.get_context("fork")
        processes, replaced = [], set()
        for table in self.TABLES:
            # Most of what there is; of what is kept, a result may have changed.
            finished = {name: each for name, each in self.results[table].items() if self.random.random() < 0.8}
            again = [name for name in finished if name in before and self.random.random() < 0.05]
            for name in again:
                finished[name] = self.results[table][name] = self.result(name)
            replaced.update(again)
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_keep, args=(self.folder, table, finished, again, theirs))
            process.start()
            theirs.close()
            processes.append((process, ours))
        if kill:
            time.sleep(self.random.uniform(0, 1.2) * self.usual)
            for process, _ in processes:
                if process.is_alive() and self.random.random() < 0.8 and process.pid is not None:
                    os.kill(process.pid, signal.SIGKILL)
                    self.kills += 1
        for process, said in processes:
            process.join()
            with contextlib.suppress(EOFError):
                added, changed = said.recv()
                self.said.update(added)
                self.replaced += len(changed)
                self.ends += 1
            said.close()

        # What was there, and what a process said that it added, must be there; once; and as it was.
        after = self.lines()
        self.lost += len((before.keys() | self.said) - after.keys())
        self.doubled += sum(len(lines) > 1 for lines in after.values())
        self.differing += sum(after.get(name) != lines for name, lines in before.items() if name not in replaced)
        right = {name: [each[name] for each in self.results.values() if name in each] for name in replaced}
        self.differing += sum(
            line not in before[name] and json.loads(line)["scores"] not in [_columns(each) for each in right[name]]
            for name in replaced
            for line in after.get(name, [])
        )

    def disturb(self, kills: int) -> None:
        """Strike until there were `kills`; then let both keep all."""
        started = time.monotonic()
        self.usual = 0.5
        self.strike(kill=False)
        self.usual = time.monotonic() - started
        while self.kills < kills:
            self.strike()
            if len(self.lines()) > 0.9 * len(self.names):  # begin with empty tables again
                for table in self.folder.glob("*.jsonl"):
                    table.unlink()
                self.said.clear()
        for _ in range(20):
            self.strike(kill=False)
        self.lost += len(self.names - self.lines().keys())

    @property
    def names(self) -> set[str]:
        return {name for results in self.results.values() for name in results}

    def report(self) -> dict[str, int]:
        counts = ("kills", "ends", "replaced", "lost", "doubled", "differing")
        return {"results": len(self.names), **{name: getattr(self, name) for name in counts}}


def _keep(folder: Path, table: str, results: dict[str, Any], replace: list[str], said: Any) -> None:
    """What `lab sweep keep` does, in a process of its own."""
    told = keep_results(folder / f"{table}.cpu.jsonl", list(results.values()), replace)
    said.send((told.added, told.replaced))


def _columns(result: RunResult) -> dict[str, list[Any]]:
    """A result's scores, of one row, as a table has them."""
    return {name: [value] for name, value in result["scores"][0].items()}


@click.group(invoke_without_command=True)
@click.option("--kills", type=click.IntRange(1), default=100, show_default=True, help="Processes to kill.")
@click.option("--runs", type=click.IntRange(2), default=12, show_default=True, help="Runs of the sweep.")
@click.option("--steps", type=click.IntRange(10), default=400, show_default=True, help="Steps of a run.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is killed when.")
@click.pass_context
def main(context: click.Context, kills: int, runs: int, steps: int, seed: int) -> None:
    """Kill the workers of a sweep, and the sweep, at random moments; the sweep is repeated until all kills are done."""
    if context.invoked_subcommand:
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(Path(folder), runs, steps, seed)
        sweeps = 0
        while stress.kills < kills:
            stress.disturb(f"disturbed-{sweeps}", kills)
            sweeps += 1
            click.echo(f"{stress.report()}", err=True)
        report = stress.report()
    _end({**report, "sweeps": sweeps, "seed": seed}, started)


@main.command()
@click.option("--kills", type=click.IntRange(1), default=1000, show_default=True, help="Processes to kill.")
@click.option("--results", type=click.IntRange(3), default=60, show_default=True, help="Results that are kept.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is killed when.")
def keep(kills: int, results: int, seed: int) -> None:
    """Kill `lab sweep keep` at random moments, two at a time in one folder."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        stress = KeepStress(Path(folder), results, seed)
        stress.disturb(kills)
    _end({**stress.report(), "seed": seed}, started)


def _end(report: dict[str, int], started: float) -> None:
    print_json({**report, "minutes": round((time.monotonic() - started) / 60, 1)})
    sys.exit(bool(report["lost"] or report["doubled"] or report["differing"]))


if __name__ == "__main__":
    main()
