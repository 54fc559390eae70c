"""A short form of `python -m tests.stress`."""

from pathlib import Path

from tests.stress import Stress


def test_what_is_killed_is_neither_lost_nor_doubled_nor_different(tmp_path: Path) -> None:
    stress = Stress(tmp_path, runs=2, steps=120)
    stress.disturb("disturbed", kills=4)
    report = stress.report()
    assert report["kills"] >= 1
    assert (report["lost"], report["doubled"], report["differing"]) == (0, 0, 0)
