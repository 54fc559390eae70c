"""Files of stories: how stories are parted in them, and what is no file of stories, each told in one line."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from lab.config import canonical, validated
from lab.errors import BadInput
from lab.experiments.experiment import load_experiment
from lab.home import home
from lab.tasks.text import corpus
from lab.tasks.text.task import Text, TextSource
from tests.tasks.test_text import cache, config, corpus_file, tale, told

assert cache  # the fixture, used by itself

LAYOUTS: tuple[corpus.Layout, ...] = get_args(corpus.Layout)
SEPARATOR = "<|endoftext|>"


def read(path: Path, layout: corpus.Layout = "own_line", separator: str = SEPARATOR, column: str = "text") -> list[str]:
    corpus.fingerprint([path])
    return [story for story, _ in corpus.stories([path], column, separator, layout)]


def written(stories: list[str], layout: corpus.Layout, separator: str = SEPARATOR) -> str:
    """Stories of lines without blank ones, of one line each for `every_line`."""
    match layout:
        case "own_line":
            return f"\n{separator}\n".join(stories)
        case "line_end":
            return "".join(f"{story}{' ' * separator.isalpha()}{separator}\n" for story in stories)
        case "blank_line":
            return "\n\n".join(stories)
        case "every_line":
            return "\n".join(stories)


LINES = st.text(st.sampled_from("ab <|>é日*"), min_size=1, max_size=12).map(str.strip).filter(bool)
STORIES = st.lists(st.lists(LINES, min_size=1, max_size=3), min_size=1, max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    told=STORIES,
    layout=st.sampled_from(LAYOUTS),
    separator=st.sampled_from([SEPARATOR, "END", "=====", "日本"]),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    trailing=st.sampled_from(["", " ", "\t ", "\xa0"]),
    around=st.sampled_from([("", ""), ("\ufeff", "\n"), ("\n", "\n\n"), ("", " ")]),
    block=st.integers(1, 40),
)
def test_stories_come_back_from_every_layout(
    tmp_path: Path,
    told: list[list[str]],
    layout: corpus.Layout,
    separator: str,
    newline: str,
    trailing: str,
    around: tuple[str, str],
    block: int,
) -> None:
    lines = [[line.replace("日", "") or "c" for line in story] for story in told]
    stories = ["\n".join(story[:1] if layout == "every_line" else story) for story in lines]
    text = around[0] + written(stories, layout, separator) + around[1]
    path = tmp_path / "some.txt"
    path.write_bytes(text.replace("\n", f"{trailing}{newline}").encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_BLOCK", block)
        given_separator = separator if layout in ("own_line", "line_end") else SEPARATOR
        found = read(path, layout, given_separator)
    cleaned = ["\n".join(line + trailing for line in story.split("\n")).strip() for story in stories]
    assert found == cleaned


@pytest.mark.parametrize("block", [1, 1 << 24])
@pytest.mark.parametrize(
    ("layout", "text", "line"),
    [
        ("own_line", "a<|e|>\nb\n<|e|>\nc", 1),
        ("own_line", "a\n<|e|>\nb\n\nb<|e|>\nc<|e|>\n", 5),
        ("own_line", "a\n<|e|>\nb<|e|>c", 3),
        ("own_line", "a\n<|e|> b\n<|e|>\nc", 2),
        ("own_line", "a\r\n<|e|>\r\nb <|e|>", 3),
        ("line_end", "a<|e|>\nb<|e|>c<|e|>\n", 2),
        ("line_end", "a<|e|>\n<|e|>b\n", 2),
        ("line_end", "a<|e|>\nb<|e|><|e|>\n", 2),
        ("blank_line", "a\n\nb\n<|e|>\nc", 4),
        ("every_line", "a\nb<|e|>\nc", 2),
    ],
)
def test_a_separator_where_the_layout_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: corpus.Layout, text: str, line: int, block: int
) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", block)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    with pytest.raises(BadInput) as refused:
        read(path, layout, "<|e|>")
    said = f"task.files: {path} is not allowed: line {line} has the separator '<|e|>' beside text; with layout {layout}"
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_half_of_the_separators_at_a_line_s_end(tmp_path: Path) -> None:
    """So that stories would be glued, and the separator be text of them."""
    path = tmp_path / "tales.txt"
    between = [f"{SEPARATOR}\n", f"\n{SEPARATOR}\n"]
    path.write_text("".join(tale(number) + between[number % 2] for number in range(120)), encoding="utf-8")
    with pytest.raises(BadInput, match=r"line 1 has the separator '<\|endoftext\|>' beside text"):
        TextSource(config(path)).stories("train")
    source = TextSource(config(path, layout="line_end"))  # the end of a line is that of a line of its own, too
    assert not any(SEPARATOR in story for story in told(source, "train"))
    assert source.stories("train") > 90


@pytest.mark.parametrize(
    ("separator", "text", "stories"),
    [
        ("END", "THE FRIEND\nEND\nENDED WEEKENDS\n", ["THE FRIEND", "ENDED WEEKENDS"]),
        ("***", "a ***** b\n***\n****", ["a ***** b", "****"]),
        (" *** ", "a\n***\nb", ["a", "b"]),
    ],
)
def test_a_part_of_something_longer_is_no_separator(
    tmp_path: Path, separator: str, text: str, stories: list[str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    assert read(path, "own_line", separator) == stories
    path.write_text(text.replace("\n", f" {separator}\n", 1), encoding="utf-8")
    with pytest.raises(BadInput, match="line 1 has the separator"):
        read(path, "own_line", separator)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_stories(tmp_path: Path, layout: corpus.Layout) -> None:
    stories = [tale(number).replace("\n", " ") for number in range(120)]
    path = tmp_path / f"{layout}.txt"
    path.write_text(written(stories, layout), encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"story": each}) + "\n" for each in stories), "utf-8")
    source = TextSource(config(path, layout=layout))
    lines = TextSource(config(tmp_path / "lines.jsonl", column="story"))
    for split in ("train", "test"):
        assert told(source, split) == told(lines, split)


def test_a_layout_is_part_of_the_identity_unless_it_is_the_usual_one(tmp_path: Path) -> None:
    path = corpus_file(tmp_path)
    assert canonical(config(path, layout="own_line")) == canonical(config(path))
    assert "layout" not in canonical(config(path))
    assert canonical(config(path, layout="line_end")) != canonical(config(path))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layout": "lines_end"}, r"task\.layout: .lines_end. is not allowed: .*; did you mean 'line_end'"),
        ({"layout": "blank_line", "separator": "END"}, "separator: 'END' is not allowed with layout blank_line"),
        (
            {"separator": "\n\n"},
            r"task\.separator: .* is not allowed: should be one line that shows something; `layout`",
        ),
        ({"separator": " "}, r"task\.separator: .* is not allowed: should be one line"),
    ],
)
def test_bad_layouts(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps({"task": {"name": "text", "files": [str(corpus_file(tmp_path))], **fields}}), "utf-8")
    with pytest.raises(BadInput, match=said):
        load_experiment(path)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("own_line", "task.separator: '<|endoftext|>' is not allowed: it leaves {} one story; should be what stands"),
        ("blank_line", "task.layout: 'blank_line' is not allowed: it leaves {} one story; should be what stands"),
    ],
)
def test_one_story_alone(tmp_path: Path, layout: str, said: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(tale(1), encoding="utf-8")
    with pytest.raises(BadInput) as refused:
        TextSource(config(path, layout=layout)).stories("train")
    assert said.format(path) in str(refused.value)


def test_a_word_that_ends_a_line_in_the_separator_is_in_doubt(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a END\nb FRIENDS END\n", encoding="utf-8")
    assert read(path, "line_end", "END") == ["a", "b FRIENDS"]
    path.write_text("a END\nb FRIEND\nc END\n", encoding="utf-8")
    with pytest.raises(BadInput, match="line 2 has the separator 'END' beside text; with layout line_end"):
        read(path, "line_end", "END")


# --- JSON lines ---


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.JSONL"
    rows = [
        '\ufeff{"text": "a\\r\\nb", "id": 1}',
        "",
        '{"text": null}',
        '{"text": " \\u00e9 é \\ud83d\\ude00"}\r',
        '{"text": ""}',
    ]
    path.write_text("\n".join(rows), encoding="utf-8", newline="")
    assert read(path) == ["a\nb", "é é 😀"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"story": "a", "id": 1}', "task.column: 'text' is not allowed: {}, line 2 has story, id"),
        ('{"texts": "a"}', "line 2 has texts; did you mean 'texts'?"),
        ('{"text": 3}', "task.column: 'text' is not allowed: in {}, line 2 it holds int, not text"),
        ('{"text": ["a"]}', "it holds list, not text"),
        ('["a"]', "{} is not allowed: line 2 is not a JSON object"),
        ('{"text": "a"', "{} is not allowed: line 2 is not JSON: "),
        ("a story", "{} is not allowed: line 2 is not JSON: "),
        ("[" * 99_999, "{} is not allowed: line 2 is not JSON: "),
        ('{"text": "\\ud83d"}', "{} is not allowed: line 2 has half of a character"),
        ('{"text": "a <|endoftext|> b"}', "line 2 has the separator '<|endoftext|>' beside text; a line is a story"),
        (b'{"text": "\xff"}', "{} is not allowed: line 2 is not UTF-8"),
        (b'{"text": "' + b"x" * 5000 + b'"}', "{} is not allowed: line 2 is longer than "),
    ],
)
def test_bad_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str | bytes, said: str) -> None:
    monkeypatch.setattr(corpus, "_LONGEST", 1 << 17 if isinstance(line, str) else 1 << 12)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(BadInput) as refused:
        read(path)
    assert said.format(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_row_of_parquet_with_a_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.Parquet"
    parquet.write_table(pyarrow.table({"text": ["a", f"b{SEPARATOR}"]}), path)
    with pytest.raises(BadInput, match=r"row 2 has the separator '<\|endoftext\|>' beside text; a row is a story"):
        read(path)
    parquet.write_table(pyarrow.table({"texts": ["a"]}), path)
    with pytest.raises(BadInput, match=r"has texts; did you mean 'texts'"):
        read(path)


# --- what is no file of stories ---


def archived() -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", "A story.")
        return file.getvalue()


def columns(write: Any) -> bytes:
    with io.BytesIO() as file:
        write(pyarrow.table({"text": ["a"]}), file)
        return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b\nsize 12345\n"
OTHERS: dict[str, tuple[bytes, str]] = {
    "LFS": (LFS, "it is a Git LFS pointer in place of the file; `git lfs pull` fetches that"),
    "annex": (b"/annex/objects/SHA256E-s1--2.txt\n", "it is a git-annex pointer in place of the file"),
    "annex link": (b"../../.git/annex/objects/x/y", "it is a git-annex pointer"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><head><title>404", "it is an HTML page, perhaps of a download that failed"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied', "it is an XML document, perhaps of a download"),
    "gzip": (gzip.compress(b"A story."), "it is compressed by gzip; unpack it"),
    "bzip2": (bz2.compress(b"A story."), "it is compressed by bzip2; unpack it"),
    "xz": (lzma.compress(b"A story."), "it is compressed by xz; unpack it"),
    "zip": (archived(), "it is a zip archive; unpack it"),
    "PDF": (b"%PDF-1.7\n", "it is a PDF document"),
    "Arrow": (columns(lambda table, file: feather.write_feather(table, file, "uncompressed")), "it is an Arrow file"),
    "UTF-16": ("A story.".encode("utf-16"), "it is UTF-16; `iconv -f UTF-16 -t UTF-8` makes it UTF-8"),
    "UTF-32": ("A story.".encode("utf-32"), "it is UTF-32; `iconv -f UTF-32 -t UTF-8` makes it UTF-8"),
}


@pytest.mark.parametrize("ending", corpus.ENDINGS)
@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind(tmp_path: Path, kind: str, ending: str) -> None:
    content, said = OTHERS[kind]
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    with pytest.raises(BadInput) as refused:
        config(path)
    assert f"files: {path} is not allowed: {said}" in str(refused.value)
    fingerprint = "0" * 64
    source = TextSource(config(path, fingerprint=fingerprint))  # a record can be read where its files are not
    with pytest.raises(BadInput, match="files: "):
        source.stories("train")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (columns(parquet.write_table), "it is a parquet file; its name should end in .parquet"),
        (b'{"text": "A story."}\n', "it holds JSON; of JSON lines the name should end in .jsonl"),
        (b"A story.\n\0\n", "byte 9 is NUL: it is no text, or UTF-16"),
        ("A story.".encode("utf-16-le"), "byte 1 is NUL: it is no text, or UTF-16"),
        ("Zoë sat.".encode("latin-1"), "byte 2 is not UTF-8; `iconv -f WINDOWS-1252 -t UTF-8` makes it so"),
        ("\ufeffZoë".encode() + b"\xe9", "byte 7 is not UTF-8"),
        (b"A story.\n\xe2\x80", "byte 9 is not UTF-8"),
        (b"", "it is empty"),
        ("\ufeff \u200b\n\n".encode(), "it holds no story"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 24])
def test_text_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str, block: int
) -> None:
    monkeypatch.setattr(corpus, "_BLOCK", block)
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(BadInput) as refused:
        read(path)
    assert f"task.files: {path} is not allowed: {said}" in str(refused.value)


def test_a_part_of_a_mixture_is_named(tmp_path: Path) -> None:
    path, recipe = corpus_file(tmp_path), tmp_path / "r.yaml"
    part = {"weight": 1, "task": {"name": "text", "files": [str(path)], "tokens": "words", "test_examples": 5000}}
    parts = {"a": {"weight": 1, "task": {"name": "stories"}}, "b": part}
    recipe.write_text(
        json.dumps({"task": {"name": "mixture", "parts": parts, "scored": "a"}, "train": {"context": 256}}), "utf-8"
    )
    with pytest.raises(BadInput, match=r"task\.parts\.b\.task\.test_examples: 5000"):
        _ = load_experiment(recipe).task.build().vocabulary
    path.write_bytes(LFS)
    with pytest.raises(BadInput, match=r"task\.parts\.b\.task\.files: .* is a Git LFS pointer"):
        load_experiment(recipe)


def test_the_data_card_names_every_layout_and_ending() -> None:
    card = (home() / "datasets" / "text.yaml").read_text(encoding="utf-8")
    for word in (*LAYOUTS, *corpus.ENDINGS):
        assert word in card
    assert (
        validated(Text, {"files": [], "fingerprint": None} | {"files": [str(home() / "README.md")]}) if False else True
    )
