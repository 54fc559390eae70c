"""The record of a run, and every committed result against it."""

import json
from pathlib import Path
from typing import Any

import pytest

from lab.experiments.experiment import experiment_from
from lab.experiments.result import checked
from lab.experiments.store import _line, read_table
from lab.home import home
from tests.conftest import result_of

TABLES = sorted((home() / "results").glob("*.jsonl"))


def test_there_are_committed_tables() -> None:
    assert len(TABLES) >= 24


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_a_committed_table_is_of_records_whose_identities_stay(table: Path) -> None:
    """Each record passes `checked`, and its stored experiment, read today, has the stored identity."""
    results, lines = read_table(table), table.read_bytes().splitlines(keepends=True)
    assert [_line(result) for result in results.values()] == lines, "written as it was read, byte for byte"
    for identity, result in results.items():
        assert result["identity"] == identity == experiment_from(result["experiment"], "").identity


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": 1.0}, "loss: "),
        ({"steps": "1"}, "steps: "),
        ({"steps": None}, "steps: "),
        ({"hardware": {"host": "h"}}, "hardware.cpu: "),
        ({"scores": []}, "scores: "),
        ({"scores": [{"split": "test", "count": 1}]}, "scores: a row lacks one of checkpoint"),
    ],
)
def test_another_content_is_no_record(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        checked({**result_of("x"), **change})


@pytest.mark.parametrize("field", ["identity", "experiment", "seconds", "hardware", "commit", "scores"])
def test_a_field_that_is_missing_is_named(field: str) -> None:
    content: dict[str, Any] = dict(result_of("x"))
    del content[field]
    with pytest.raises(ValueError, match=f"^{field}: "):
        checked(content)


def test_a_record_survives_json() -> None:
    assert checked(json.loads(json.dumps(result_of("x", curve=[{"step": 1}])))) == result_of("x", curve=[{"step": 1}])
