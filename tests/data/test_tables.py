"""Files of every kind yield the same rows, and what is broken in them is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.core.errors import DataError
from edgetune.data.reading import load_records
from edgetune.data.records import Record

ROWS = [("Say a, b", 'It is "a; b"'), ("Two\nlines", "caf\u00e9"), ("Count", "3")]
RECORDS = [Record(asked, "", said, "") for asked, said in ROWS]
OBJECTS = [{"question": asked, "answer": said} for asked, said in ROWS]


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def quoted(separator: str, end: str) -> str:
    lines = [("question", "answer"), *ROWS]
    return (
        end.join(separator.join('"' + one.replace('"', '""') + '"' for one in line) for line in lines) + end
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, OBJECTS))),
        ("a.ndjson", "\n".join(map(json.dumps, OBJECTS))),
        ("a.json", json.dumps(OBJECTS, indent=1)),
        ("lines.json", "\n\n".join(map(json.dumps, OBJECTS)) + "\n"),
        ("named.json", json.dumps({"version": 2, "data": OBJECTS, "errors": [{"a": 1}]})),
        ("one.json", json.dumps({"name": "x", "anything": OBJECTS, "tags": ["a"], "none": []})),
        ("a.csv", quoted(",", "\n")),
        ("windows.csv", "\ufeff" + quoted(",", "\r\n")),
        ("semicolons.csv", quoted(";", "\n")),
        ("a.tsv", quoted("\t", "\n")),
        ("blank.csv", quoted(",", "\n") + "\n\n"),
    ],
)
def test_the_same_records_come_out_of_every_file(tmp_path: Path, name: str, text: str) -> None:
    assert load_records(written(tmp_path / name, text)) == RECORDS


def test_an_object_that_is_a_record_is_one(tmp_path: Path) -> None:
    assert load_records(written(tmp_path / "a.json", json.dumps(OBJECTS[0]))) == RECORDS[:1]


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("one\ntwo\n\r\n", ["one", "two"]),
        (
            "one\nstill one\n\n\n  two\r\nstill two\n\nthree",
            ["one\nstill one", "  two\r\nstill two", "three"],
        ),
        ("\n\none\ntwo\n\n", ["one", "two"]),
        ("only one", ["only one"]),
    ],
    ids=["lines", "paragraphs", "lines between blank lines", "one line"],
)
def test_a_text_is_records_between_blank_lines_or_else_lines(
    tmp_path: Path, text: str, texts: list[str]
) -> None:
    found = load_records(written(tmp_path / "a.txt", text))
    assert found == [Record("", "", one, "", plain=True) for one in texts]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "this file is not JSON"),
        ("a.json", "3", "neither a JSON array nor an object"),
        ("a.json", "", "neither a JSON array nor an object"),
        ("a.json", "[]", "no records here"),
        ("a.json", '[{"question": "a", "answer": "b"}, 3]', "record 2: this is not a JSON object"),
        ("a.json", '{"a": [{"x": 1}], "b": [{"x": 1}]}', "several lists of objects: a, b .*'data'"),
        ("a.json", '{"question": "a", "answer": "b"}\n{"question"', "line 2: this line is not JSON"),
        ("a.json", "[" * 100_000, "this file is not JSON"),
        ("a.csv", "", "no records here"),
        ("a.csv", "question,answer\n", "no records here"),
        ("a.csv", "question,answer\na,b\na,b,c\n", "line 3: this row has 3 fields, the first line names 2"),
        ("a.csv", "question,answer\na\n", "line 2: this row has 1 fields"),
        ("a.csv", 'question,answer\na,"b" c\n', "line 2: not a table"),
        ("a.csv", 'question,answer\na,"b\n', "not a table"),
        ("a.csv", "question,question\na,b\n", "line 1: two columns have the name 'question'"),
        (
            "a.csv",
            b"question,answer\na,b\nc,\xff\n",
            "line 3: this line is not UTF-8 .*save the file as UTF-8",
        ),
        ("a.csv", "question,answer".encode("utf-16"), "line 1: this line is not UTF-8"),
        ("a.txt", "\n \n", "no records here"),
    ],
)
def test_what_is_broken_is_named_with_its_place(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_records(written(tmp_path / name, text))
    assert name in str(caught.value)


def test_a_json_file_too_large_to_be_read_at_once_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.json", json.dumps(OBJECTS))
    monkeypatch.setattr("edgetune.data.tables.LARGEST_JSON", path.stat().st_size)
    assert load_records(path) == RECORDS
    monkeypatch.setattr("edgetune.data.tables.LARGEST_JSON", path.stat().st_size - 1)
    with pytest.raises(DataError, match=r"more than .* bytes .*\.jsonl"):
        load_records(path)
