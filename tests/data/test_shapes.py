"""Data of every known shape become the records their authors meant; other shapes are refused with what to say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from edgetune.core.errors import DataError
from edgetune.data.reading import load_records, load_source
from edgetune.data.records import Message, Record

SYSTEM, USER, ASSISTANT = (
    lambda text, role=role: Message(role, text) for role in ("system", "user", "assistant")
)


def file(folder: Path, *rows: object) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(asked: str, said: str, context: str = "", category: str = "", *history: Message) -> Record:
    return Record(asked, context, said, category, history)


@pytest.mark.parametrize(
    ("name", "row", "record"),
    [
        (
            "Dolly",
            {"instruction": "q", "context": "c", "response": "r", "category": "k"},
            pair("q", "r", "c", "k"),
        ),
        ("Dolly", {"instruction": "q", "response": "r"}, pair("q", "r")),
        ("Dolly", {"instruction": "q", "input": "c", "response": "r"}, pair("q", "r", "c")),
        ("Alpaca", {"instruction": "q", "input": "c", "output": "r", "text": "all"}, pair("q", "r", "c")),
        ("question and answer", {"question": "q", "answer": "so\n#### 42"}, pair("q", "so\n#### 42")),
        ("question and answer", {"Question": "q", " Answer": 42}, pair("q", "42")),
        (
            "question and answer",
            {"id": 7, "system_prompt": "be kind", "question": "q", "response": "r"},
            pair("q", "r", "", "", SYSTEM("be kind")),
        ),
        ("prompt and completion", {"prompt": "q", "completion": "r"}, pair("q", "r")),
        ("inputs and targets", {"inputs": "q", "targets": ["r", "s"]}, pair("q", "r")),
        (
            "Super-NaturalInstructions",
            {"definition": "d", "inputs": "i", "targets": "r"},
            pair("d", "r", "i"),
        ),
        (
            "Super-NaturalInstructions",
            {"definition": ["d"], "input": "i", "output": ["r"]},
            pair("d", "r", "i"),
        ),
        ("text and label", {"text": "q", "label": 1}, pair("q", "1")),
        ("text and label", {"sentence": "q", "label": "good"}, pair("q", "good")),
        ("plain text", {"text": "a text", "url": "u"}, Record("", "", "a text", "", plain=True)),
    ],
    ids=str,
)
def test_columns_say_the_shape(tmp_path: Path, name: str, row: Mapping[str, Any], record: Record) -> None:
    found = load_source(file(tmp_path, row))
    assert (found.shape, found.records, found.rows, found.empty) == (name, [record], 1, 0)


def test_a_task_with_its_instances_is_a_record_an_instance(tmp_path: Path) -> None:
    task = {
        "Source": ["somewhere"], "Categories": ["Sums"], "Definition": ["Add."],
        "Positive Examples": [{"input": "0", "output": "0"}],
        "Instances": [{"id": "1", "input": "1 2", "output": ["3", "three"]}, {"input": "2 2", "output": "4"}],
    }  # fmt: skip
    path = tmp_path / "task.json"
    path.write_text(json.dumps(task, indent=1))
    found = load_source(path)
    assert found.records == [pair("Add.", "3", "1 2", "Sums"), pair("Add.", "4", "2 2", "Sums")]
    path.write_text(json.dumps([task, task]))
    assert len(load_records(path)) == 4
    del task["Instances"][1]["output"]
    path.write_text(json.dumps(task))
    with pytest.raises(DataError, match="record 1, instance 2: no column 'output'"):
        load_records(path)


def test_a_later_row_may_have_an_optional_column_that_the_first_lacks(tmp_path: Path) -> None:
    rows = [
        {"instruction": "q", "output": "r"},
        {"instruction": "q", "input": "c", "output": "r", "category": "k"},
    ]
    assert load_records(file(tmp_path, *rows)) == [pair("q", "r"), pair("q", "r", "c", "k")]


def test_rows_with_nothing_to_train_on_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": said} for said in ("r", "", " \n", None, "s")]
    found = load_source(file(tmp_path, *rows))
    assert [record.response for record in found.records] == ["r", "s"]
    assert (found.rows, found.empty) == (5, 3)


@pytest.mark.parametrize(
    ("row", "mapping", "record"),
    [
        ({"q": "q", "a": "r"}, {"instruction": "q", "response": "a"}, pair("q", "r")),
        ({"q": "q", "a": "r", "input": "no"}, {"instruction": "q", "response": "a"}, pair("q", "r")),
        ({"q": "q", "a": "r", "context": "c"}, {"instruction": "q", "response": "a"}, pair("q", "r", "c")),
        (
            {"q": "q", "a": "r", "context": "c"},
            {"instruction": "q", "response": "a", "context": ""},
            pair("q", "r"),
        ),
        ({"question": "q", "solution": "r"}, {"response": "solution"}, pair("q", "r")),
        (
            {"instruction": "q", "input": "c", "output": "r", "topic": "k"},
            {"category": "topic"},
            pair("q", "r", "c", "k"),
        ),
        ({"instruction": "q", "output": "r", "better": "s"}, {"response": "better"}, pair("q", "s")),
        ({"body": "t", "label": "l"}, {"text": "body"}, Record("", "", "t", "", plain=True)),
        ({"text": "t", "label": "l"}, {"text": "text"}, Record("", "", "t", "", plain=True)),
        (
            {"log": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]},
            {"messages": "log"},
            pair("q", "r"),
        ),
    ],
    ids=str,
)
def test_a_mapping_goes_before_the_names(
    tmp_path: Path, row: Mapping[str, Any], mapping: Mapping[str, str], record: Record
) -> None:
    assert load_records(file(tmp_path, row), columns=mapping) == [record]


@pytest.mark.parametrize(
    ("row", "mapping", "message"),
    [
        ({"q": "x", "reply": "y"}, {}, "here are: q, reply .*--columns instruction=q,response=reply"),
        ({"x": "x", "y": "y"}, {}, "here are: x, y .*--columns instruction=COLUMN,response=COLUMN"),
        ({"instruction": "x", "respones": "y"}, {}, r"\(say it with --columns response=respones\)"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, {}, "--columns instruction=prompt,response=chosen"),
        ({"question": "x", "choices": ["a", "b"], "answer": 1}, {}, "cannot tell what is asked"),
        ({"messages": "not a list"}, {}, "cannot tell what is asked"),
        ({"q": "x", "a": "y"}, {"instruction": "qq", "response": "a"}, "no column 'qq'; .*did you mean 'q'"),
        ({"q": "x", "a": "y"}, {"instruktion": "q"}, "names 'instruktion', .*did you mean 'instruction'"),
        ({"q": "x", "a": "y"}, {"instruction": "q", "response": ""}, "'response' cannot be left out"),
        ({"question": "x", "answer": {"text": "y"}}, {}, "line 1: column 'answer' holds dict, not text"),
        ({"question": "x", "answer": "y", "category": {}}, {}, "--columns category= leaves it out"),
    ],
    ids=str,
)
def test_other_columns_are_refused_with_what_to_say(
    tmp_path: Path, row: Mapping[str, Any], mapping: Mapping[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_records(file(tmp_path, row), columns=mapping)


TALK = [SYSTEM("be brief"), USER("one?"), ASSISTANT("1"), USER("two?"), ASSISTANT("2")]
TURNS = [("one?", "1", TALK[:1]), ("two?", "2", TALK[:3])]


def role_content(talk: list[Message]) -> list[dict[str, Any]]:
    return [{"role": one.role, "content": one.text} for one in talk]


def from_value(talk: list[Message]) -> list[dict[str, Any]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[one.role], "value": one.text} for one in talk]


def in_parts(talk: list[Message]) -> list[dict[str, Any]]:
    return [{"role": one.role, "content": [{"type": "text", "text": one.text}]} for one in talk]


@pytest.mark.parametrize(
    ("column", "messages"),
    [
        ("messages", role_content(TALK)),
        ("conversations", from_value(TALK)),
        ("conversation", role_content(TALK)),
        ("messages", in_parts(TALK)),
    ],
)
def test_every_answer_of_a_conversation_is_a_record_after_what_was_said(
    tmp_path: Path, column: str, messages: list[dict[str, Any]]
) -> None:
    found = load_records(file(tmp_path, {column: messages, "id": "x", "category": "k"}))
    assert [(one.instruction, one.response, list(one.history)) for one in found] == TURNS
    assert {(one.category, one.context, one.plain) for one in found} == {("k", "", False)}
    assert found[0].conversation == found[1].conversation != ""


@pytest.mark.parametrize(
    ("talk", "turns"),
    [
        ([USER("a"), ASSISTANT("b"), USER("c")], [("a", "b", [])]),
        ([ASSISTANT("hello"), USER("a"), ASSISTANT("b")], [("a", "b", [])]),
        ([USER("a"), USER("b"), ASSISTANT("c"), ASSISTANT("d")], [("a\n\nb", "c\n\nd", [])]),
        (
            [USER("a"), ASSISTANT(" "), USER("b"), ASSISTANT("c")],
            [("b", "c", [USER("a"), ASSISTANT(" ")])],
        ),
        ([SYSTEM("s"), SYSTEM("t"), USER("a"), ASSISTANT("b")], [("a", "b", [SYSTEM("s\n\nt")])]),
    ],
    ids=["question without answer", "unasked", "twice in a row", "empty answer", "two system messages"],
)
def test_conversations_as_they_are_found(tmp_path: Path, talk: list[Message], turns: list[Any]) -> None:
    found = load_records(file(tmp_path, {"messages": role_content(talk)}))
    assert [(one.instruction, one.response, list(one.history)) for one in found] == turns


def test_a_history_is_bounded_and_begins_with_a_question(tmp_path: Path) -> None:
    talk = [SYSTEM("s")] + [speaker(f"{n}") for n in range(40) for speaker in (USER, ASSISTANT)]
    last = load_records(file(tmp_path, {"messages": role_content(talk)}))[-1]
    assert (last.instruction, last.response, len(last.history)) == ("39", "39", 33)
    assert last.history[:2] == (SYSTEM("s"), USER("23"))


def test_copies_of_a_conversation_have_the_same_name_and_others_another(tmp_path: Path) -> None:
    other = [*TALK[:-1], ASSISTANT("II")]
    found = load_records(file(tmp_path, *({"messages": role_content(one)} for one in (TALK, TALK, other))))
    names = [one.conversation for one in found]
    assert names[:2] == names[2:4]
    assert set(names[:2]).isdisjoint(names[4:])
    alone = load_records(file(tmp_path, {"messages": role_content(TALK[1:3])}))
    assert alone == [pair("one?", "1")]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "usr", "content": "a"}], "message 1: an unknown speaker 'usr'.*did you mean 'user'"),
        ([{"role": "tool", "content": "a"}], "leave such conversations out"),
        (
            [{"speaker": "user", "text": "a"}],
            "role and content, or from and value; this one has: speaker, text",
        ),
        (["a"], "this one has: str"),
        ([{"role": "user", "content": None}], "holds NoneType, not text"),
        ([{"role": "user", "content": [{"type": "image", "url": "u"}]}], "holds image, not text"),
        (role_content([USER("a"), ASSISTANT("b"), SYSTEM("c")]), "a system message stands in the middle"),
        (role_content([USER("a")]), "response is empty"),
        ([], "response is empty"),
    ],
    ids=str,
)
def test_a_conversation_that_is_none_is_named(tmp_path: Path, messages: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_records(file(tmp_path, {"messages": messages}))
    assert "line 1" in str(caught.value)


def test_conversations_in_parquet_and_saved_data_sets(tmp_path: Path) -> None:
    rows = [
        {"messages": role_content(TALK), "text": "all of it"},
        {"messages": role_content(TALK[1:]), "text": ""},
    ]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(tmp_path / "a.parquet")
    table.save_to_disk(tmp_path / "saved")
    expected = load_records(file(tmp_path, *rows))
    assert len(expected) == 4
    for name in ("a.parquet", "saved"):
        assert load_records(tmp_path / name) == expected
