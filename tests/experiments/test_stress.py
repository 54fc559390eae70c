"""A short form of `python -m tests.stress`."""

from pathlib import Path

from tests.stress import KeepStress, Stress


def test_what_is_killed_is_neither_lost_nor_doubled_nor_different(tmp_path: Path) -> None:
    stress = Stress(tmp_path, runs=2, steps=120)
    stress.disturb("disturbed", kills=4)
    report = stress.report()
    assert report["kills"] >= 1
    assert (report["lost"], report["doubled"], report["differing"]) == (0, 0, 0)


def test_of_what_is_kept_no_line_is_lost_whenever_keeping_is_killed(tmp_path: Path) -> None:
    stress = KeepStress(tmp_path, results=30)
    stress.disturb(kills=40)
    report = stress.report()
    assert report["kills"] >= 40
    assert report["ends"] >= 20
    assert report["replaced"] >= 1
    assert (report["lost"], report["doubled"], report["differing"]) == (0, 0, 0)
