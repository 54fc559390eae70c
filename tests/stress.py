"""Kills the workers of a sweep, and the sweep, at random moments, and compares what remains with an undisturbed one.

    python -m tests.stress --kills 100

Runs are lost that have no result in the end, doubled that got a second one or logged a step twice, and differing that
did not end bit for bit as the undisturbed ones, time, memory and host fields aside.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import yaml

from lab.cli.console import print_json
from lab.experiments.store import RunDirectory, read_json_lines
from lab.experiments.sweep import Sweep, load_sweep
from tests.conftest import TINY, same_end

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


@click.command()
@click.option("--kills", type=click.IntRange(1), default=100, show_default=True, help="Processes to kill.")
@click.option("--runs", type=click.IntRange(2), default=12, show_default=True, help="Runs of the sweep.")
@click.option("--steps", type=click.IntRange(10), default=400, show_default=True, help="Steps of a run.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is killed when.")
def main(kills: int, runs: int, steps: int, seed: int) -> None:
    """Kill the workers of a sweep, and the sweep, at random moments; the sweep is repeated until all kills are done."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(Path(folder), runs, steps, seed)
        sweeps = 0
        while stress.kills < kills:
            stress.disturb(f"disturbed-{sweeps}", kills)
            sweeps += 1
            click.echo(f"{stress.report()}", err=True)
        report = stress.report()
    print_json({**report, "sweeps": sweeps, "seed": seed, "minutes": round((time.monotonic() - started) / 60, 1)})
    sys.exit(bool(report["lost"] or report["doubled"] or report["differing"]))


if __name__ == "__main__":
    main()
