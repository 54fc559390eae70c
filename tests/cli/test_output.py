"""Output: characters that a terminal lacks, readers that leave, streams that are closed; files are UTF-8 everywhere."""

import ast
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from lab.cli import console, streams
from lab.cli.main import main
from lab.experiments.store import read_json_lines, write_text
from lab.home import home
from tests.cli.test_cli import commands
from tests.conftest import TINY

DONE = "sweeps/pilot_rates_stories.yaml"  # committed results: its tables have ± and its arms need none trained
ENCODINGS = ("ascii", "latin-1", "cp1252", "utf-8")


class Terminal(io.TextIOWrapper):
    """Standard output or error in some encoding, as a strict terminal has it."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)

    @property
    def written(self) -> bytes:
        """What was written so far."""
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()


def left(monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: str) -> tuple[int, str, str]:
    """The exit status of the command on terminals of an encoding, and what they show."""
    out, err = Terminal(encoding), Terminal(encoding)
    monkeypatch.setattr(sys, "argv", ["lab", *arguments])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, out.written.decode(encoding), err.written.decode(encoding)


# --- characters ---


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("3.6 ± 6.4 – no · 2 × 3 …", "ascii", "3.6 +- 6.4 - no . 2 x 3 ..."),
        ("3.6 ± 6.4 – no · 2 × 3 …", "latin-1", "3.6 ± 6.4 - no · 2 × 3 ..."),
        ("3.6 ± 6.4 – no · 2 × 3 …", "cp1252", "3.6 ± 6.4 – no · 2 × 3 …"),
        ("F₃[X]/(X²), ½, ≤ 1 → λ", "ascii", "F3[X]/(X2), 1/2, <= 1 -> lambda"),
        ("naïve Zoë ß ﬁ", "ascii", "naive Zoe ss fi"),
        ("a ≠ b", "ascii", "a != b"),
        ("日本", "latin-1", "\\u65e5\\u672c"),
        ("half \ud800", "utf-8", "half \\ud800"),
        ("日本 ±", "utf-8", "日本 ±"),
    ],
)
def test_what_an_encoding_lacks_is_spelt(text: str, encoding: str, shown: str) -> None:
    assert streams.spelt(text, encoding) == shown


@given(st.text(st.characters()), st.sampled_from(ENCODINGS))
def test_no_text_fails_and_what_can_be_shown_is(text: str, encoding: str) -> None:
    shown = streams.spelt(text, encoding)
    assert shown.encode(encoding).decode(encoding) == shown
    if all(each.encode(encoding, "ignore") for each in text):
        assert shown == text


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_help_in_every_encoding(path: tuple[str, ...], encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == ("train",) and encoding != "ascii":
        pytest.skip("as of the others, and takes a second")
    status, out, err = left(monkeypatch, encoding, *path, "--help")
    assert (status, err) == (0, "")
    assert "Usage: lab" in out


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = left(monkeypatch, encoding, "sweep", "show", DONE)
    assert (status, err) == (0, "")
    assert ("+- " if encoding == "ascii" else "± ") in out
    ends = [line.rindex("|") for line in out.splitlines() if line.startswith("|")]
    assert len(set(ends)) <= out.count("past:")  # what was spelt longer moves no column


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sweep whose arms and question are in other scripts, one arm named as a style of rich is."""
    rates = {"日本 ± 1": 1e-3, "слабый": 2e-3, "[red]": 3e-3, "[/red]:smile:": 4e-3}
    arms = {name: {"train": {"lr": rate}} for name, rate in rates.items()}
    sweep = {
        "question": "Läuft «да»?", "endpoint": "Kein …", "baseline": {**TINY, "train": {**TINY["train"], "steps": 8}},
        "axes": {"seed": [0], "arm": arms}, "scales": {"cpu": {"budget": "≤ 1 s"}},
    }  # fmt: skip
    path = tmp_path / "süß.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False, allow_unicode=True), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return path.name


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_arms_in_other_scripts(strange: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, err = left(monkeypatch, encoding, "sweep", "status", strange)
    assert (status, err) == (0, "")
    assert "\\u65e5\\u672c" in out
    assert "[/red]:smile:" in out
    json.loads(left(monkeypatch, encoding, "sweep", "status", strange, "--json")[1])
    status, _, err = left(monkeypatch, encoding, "sweep", "show", strange)
    assert (status, "no run is finished yet" in err) == (1, True)


def test_a_sweep_runs_to_its_end_whatever_the_terminal_can_show(strange: str, tmp_path: Path) -> None:
    plain = {"PYTHONIOENCODING": "latin-1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command: list[str | bytes] = [sys.executable, "-m", "lab", "sweep", "run", os.fsencode(strange)]
    run = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False, env={**os.environ, **plain})
    assert run.returncode == 0, run.stderr.decode("latin-1")
    assert b"Traceback" not in run.stderr
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 4
    shown = run.stdout.decode("latin-1")
    assert "\\u65e5\\u672c ± 1" in shown
    assert "[/red]:smile:" in shown
    assert "[red]" in shown


def test_names_are_text_in_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with streams.lenient():
        table = Table("[bold]±", title="[/x] :smile: “quoted”")
        table.add_row("[link]–")
        console.print_table(table)
    for text in ("[bold]+-", "[/x] :smile:", '"quoted"', "[link]-"):
        assert text.encode() in out.written


# --- readers that leave ---


def shell(line: str) -> "subprocess.CompletedProcess[str]":
    """A line of bash; `lab` is the command, `much` prints more than a pipe holds."""
    lines = "[click.echo(9 * chr(65)) for _ in range(20_000)]"
    much_of_it = f"import click; from lab.cli.streams import lenient\nwith lenient(): {lines}"
    python = f"'{sys.executable}'"
    known = f"lab() {{ {python} -m lab \"$@\"; }}; much() {{ {python} -c '{much_of_it}'; }}; set -o pipefail; "
    return subprocess.run(["bash", "-c", known + line], capture_output=True, cwd=home(), check=False, encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "status", "out", "err"),
    [
        ("much | head -1", 0, "AAAAAAAAA\n", ""),
        ("lab --version | true", 0, "", ""),
        ("lab --version >&-", 0, "", ""),
        ("lab --version 2>&- <&-", 0, "lab, version", ""),
        ("lab --version >/dev/full", 1, "", "lab: standard output: No space left on device\n"),
        ("lab none 2>&-", 2, "", ""),
        ("lab none 2>/dev/full", 2, "", ""),
        ("lab none 2>&1 >&- | true", 2, "", ""),
    ],
)
def test_a_reader_that_leaves(line: str, status: int, out: str, err: str) -> None:
    run = shell(line)
    assert (run.returncode, run.stderr) == (status, err)
    assert run.stdout.startswith(out)
    assert bool(run.stdout) == bool(out)


def test_a_run_goes_on_without_anyone_to_tell(
    tiny_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as nobody:
        monkeypatch.setattr(sys, "stderr", nobody)
        monkeypatch.setattr(sys, "argv", ["lab", "train", tiny_file, "train.steps=6", "--store", str(tmp_path)])
        main()
    assert list(tmp_path.glob("*/result.json"))
    assert "exact match" in capsys.readouterr().out


def test_a_closed_stream_s_number_is_not_given_to_a_file() -> None:
    """Else what libraries print into number 2 would stand in the run's own files."""
    code = "import os; from lab.cli.streams import lenient\nwith lenient(): print(os.open(os.devnull, 0) > 2)"
    assert shell(f"'{sys.executable}' -c '{code}' 2>&- <&-").stdout == "True\n"


def test_the_streams_are_as_they_were_after(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal("ascii"), Terminal("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with streams.lenient():
        assert sys.stdout is not out
        sys.stderr.write("±\n")
    assert sys.stdout is out
    assert sys.stderr is err
    assert (out.errors, err.errors) == ("strict", "strict")
    assert err.written == b"+-\n"


# --- files ---


def text_without_encoding(path: Path) -> Iterator[str]:
    """The calls in a module that read or write text in the locale's encoding."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {keyword.arg for keyword in node.keywords}
        plain = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        owner = ast.unparse(node.func).rpartition(".")[0]
        if name in ("open", "read_text") or (name == "write_text" and owner):
            if owner not in ("os", "Image") and "encoding" not in given and not any("b" in each for each in plain):
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        elif given & {"text", "universal_newlines"} and "encoding" not in given and name in ("run", "Popen"):
            yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def test_every_file_has_an_encoding() -> None:
    modules = [*(home() / "lab").rglob("*.py"), *(home() / "figures").glob("*.py")]
    assert [call for module in modules for call in text_without_encoding(module)] == []


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"arm": "日本 ±", "nan": float("nan")})
    assert capsys.readouterr().out == '{"arm": "\\u65e5\\u672c \\u00b1", "nan": null}\n'


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rows: list[Any] = [{"arm": "日本 ±"}]
    write_text(tmp_path / "a", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert read_json_lines(tmp_path / "a") == rows
