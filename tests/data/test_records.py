from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.errors import DataError, MissingExtraError
from edgetune.data.reading import load_records
from edgetune.data.records import Record, records_digest

ROWS = [
    {"instruction": "Who?", "context": "", "response": "Ann.\u2028Bo", "category": "open_qa"},
    {"instruction": "Why?", "context": "It is late.", "response": "Sleep", "category": "closed_qa"},
]
RECORDS = [Record(**row) for row in ROWS]
DOLLY = Path(os.environ.get("EDGETUNE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "dolly"


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_reads_jsonl(tmp_path: Path) -> None:
    assert load_records(jsonl(tmp_path / "a.jsonl", *ROWS)) == RECORDS
    assert load_records(str(tmp_path / "a.jsonl")) == RECORDS


def test_reads_a_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps(row).encode() for row in ROWS))
    assert load_records(path) == RECORDS


def test_reads_parquet_and_saved_data_sets(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict({"other": table}).save_to_disk(tmp_path / "other")
    for name in ("a.parquet", "saved", "splits", "other"):
        assert load_records(tmp_path / name) == RECORDS, name
    assert load_records(tmp_path / "splits", subset="test") == RECORDS[:1]
    with pytest.raises(DataError, match=r"no split 'tset'.*train, test.*did you mean 'test'"):
        load_records(tmp_path / "splits", subset="tset")


def test_maps_columns(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"instruction": "Add", "input": "1 2", "output": "3"})
    columns = {"context": "input", "response": "output", "category": None}
    assert load_records(path, columns=columns) == [Record("Add", "1 2", "3", "")]
    with pytest.raises(DataError, match="did you mean 'context'"):
        load_records(path, columns={"contexts": "input"})
    with pytest.raises(DataError, match="'response' cannot be left out"):
        load_records(path, columns={"response": None})


def test_a_null_context_is_no_context(tmp_path: Path) -> None:
    assert load_records(jsonl(tmp_path / "a.jsonl", {**ROWS[0], "context": None}))[0].context == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no records"),
        (b"\n \n", "no records"),
        (json.dumps(ROWS[0]).encode() + b"\n{broken", "line 2: this line is not JSON"),
        (b"[1, 2]", "line 1: this line is not a JSON object"),
        (b"\xff\xfe\x00", "line 1: this line is not UTF-8"),
        (
            b'{"instruction": "a", "context": "", "respones": "b", "category": "c"}',
            "columns here are: category, context, instruction, respones .*--columns response=respones",
        ),
        (json.dumps({**ROWS[0], "response": 3.5}).encode(), "line 1: column 'response' holds float"),
        (json.dumps({**ROWS[0], "response": True}).encode(), "line 1: column 'response' holds bool"),
        (json.dumps({**ROWS[0], "instruction": None}).encode(), "'instruction' holds NoneType"),
        (json.dumps({**ROWS[0], "response": " \n"}).encode(), "line 1: the response is empty"),
        (b'{"instruction": "a", "context": "", "response": "\\ud800", "category": ""}', "not valid Unicode"),
        (b"[" * 100_000, "line 1: this line is not JSON"),
        (b'{"a":' * 100_000, "line 1: this line is not JSON"),
        (b'{"instruction": ' + b"9" * 5000 + b"}", "line 1: this line is not JSON"),
        (b'{"\\ud800' + b"x" * 100_000 + b'": 1}', r"columns here are: \\ud800xxx"),
        (json.dumps({"c" * 2000 + str(n): 1 for n in range(2000)}).encode(), "cannot tell what is asked"),
        (
            json.dumps({**ROWS[0], "context": "long " * 200_001}).encode(),
            r"1,000,0.. characters.*data.max_tokens",
        ),
    ],
)
def test_names_what_is_wrong_and_where(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes(text)
    with pytest.raises(DataError, match=message) as caught:
        load_records(tmp_path / "bad.jsonl")
    assert "bad.jsonl" in str(caught.value)
    assert len(str(caught.value)) < 2000
    str(caught.value).encode("utf-8")


def test_a_line_that_does_not_end_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.data.lines.LONGEST_LINE", 200)
    path = jsonl(tmp_path / "a.jsonl", *ROWS)
    assert load_records(path) == RECORDS
    path.write_text(path.read_text(encoding="utf-8") + " " * 300, encoding="utf-8")
    with pytest.raises(DataError, match="line 3: this line has more than 200 bytes"):
        load_records(path)


def parquet_of(path: Path, **columns: pa.Array) -> Path:
    plain = {name: pa.array([row[name] for row in ROWS]) for name in ROWS[0]}
    pq.write_table(pa.table({**plain, **columns}), path)
    return path


def test_other_columns_of_a_parquet_file_are_not_read(tmp_path: Path) -> None:
    extra = pa.array([1, 2], pa.duration("ns"))
    nested = pa.array([{"a": [1]}, None])
    assert load_records(parquet_of(tmp_path / "a.parquet", time=extra, more=nested)) == RECORDS


def test_text_of_any_arrow_type_is_read(tmp_path: Path) -> None:
    responses = [row["response"] for row in ROWS]
    for number, column in enumerate(
        (pa.array(responses, pa.large_string()), pa.array(responses).dictionary_encode())
    ):
        assert load_records(parquet_of(tmp_path / f"{number}.parquet", response=column)) == RECORDS
    empty = load_records(parquet_of(tmp_path / "null.parquet", context=pa.nulls(2)))
    assert [record.context for record in empty] == ["", ""]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1, 2], pa.duration("us")), r"column 'response' holds duration\[us\], not text"),
        (pa.array([b"a", b"b"]), "column 'response' holds binary"),
        (pa.array([[1], [2]]), "column 'response' holds list"),
        (pa.array([1.5, None]), "column 'response' holds double"),
        (
            pa.Array.from_buffers(
                pa.string(),
                2,
                [None, pa.array([0, 2, 4], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfeab")],
            ),
            "not a readable parquet file",
        ),
    ],
    ids=["duration", "binary", "list", "double", "no utf-8"],
)
def test_a_parquet_column_that_is_no_text_is_named(tmp_path: Path, column: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_records(parquet_of(tmp_path / "bad.parquet", response=column))
    assert "bad.parquet" in str(caught.value)


def test_a_parquet_column_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"instruction": ["a"], "respones": ["b"]}), path)
    with pytest.raises(DataError, match=r"here are: instruction, respones .*--columns response=respones"):
        load_records(path)


def test_a_saved_data_set_that_breaks_while_it_is_read_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks:
        column_names = (*ROWS[0],)

        def select_columns(self, columns: list[str]) -> Any:
            def rows() -> Any:
                yield ROWS[0]
                raise UnicodeDecodeError("utf-8", b"", 0, 1, "no start byte")

            return rows()

    monkeypatch.setattr(datasets, "load_from_disk", lambda path: Breaks())
    with pytest.raises(DataError, match=r"after record 1: this dataset cannot be read"):
        load_records(tmp_path)


def test_what_is_no_file_is_neither_waited_for_nor_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail("looked up on the Hub"))
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jsonl")
    os.mkfifo("pipe")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    cases = {
        "pipe.jsonl": "a pipe or a device",
        "pipe": "a pipe or a device",
        "/dev/null": "a pipe or a device",
        "loop.jsonl": "no such file",
        "folder.jsonl": "not written by save_to_disk",
        "x" * 5000 + ".jsonl": "no such file",
        "a\0b.jsonl": "no such file",
        "~nobody-here/a.jsonl": "no such file",
    }
    for source, message in cases.items():
        with pytest.raises(DataError, match=message):
            load_records(source)


def test_refuses_what_is_not_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "empty").mkdir()
    cases = {
        Path("absent"): "no such file or folder",
        "absent.jsonl": "no such file or folder",
        "./absent": "no such file or folder",
        "": "not written by save_to_disk",
        "a.xlsx": "cannot read .xlsx",
        "bad.parquet": "not a readable parquet file",
        "empty": "not written by save_to_disk",
    }
    for source, message in cases.items():
        with pytest.raises(DataError, match=message):
            load_records(source)


def test_a_hub_id_that_cannot_be_fetched_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise ConnectionError(f"cannot reach {name}")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"owner/name.*Hub: cannot reach owner/name"):
        load_records("owner/name")


def test_a_hub_id_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: table)
    assert load_records("owner/name") == RECORDS


def test_names_the_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    for source in (tmp_path, tmp_path / "a.parquet", "owner/name"):
        with pytest.raises(MissingExtraError, match=r"edgetune\[datasets\]"):
            load_records(source)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
record_lists = st.lists(st.builds(Record, texts, texts, texts, texts), max_size=3)


@settings(deadline=None)
@given(record_lists, record_lists)
def test_the_digest_tells_records_apart(first: list[Record], second: list[Record]) -> None:
    assert (records_digest(first) == records_digest(second)) == (first == second)


@pytest.mark.skipif(not DOLLY.is_dir(), reason="needs ../shared/data or $EDGETUNE_DATA")
def test_reads_all_of_dolly() -> None:
    records = load_records(DOLLY / "databricks-dolly-15k.jsonl")
    assert len(records) == 15_011
    assert sum(bool(record.context) for record in records) == 4_467
