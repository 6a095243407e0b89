"""Answers that are history alone: OpenAI's weight of a message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import DataError
from edgetune.data.reading import load_source
from edgetune.data.records import Message, Record


def written(folder: Path, *talks: list[dict[str, Any]]) -> Path:
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks), encoding="utf-8")
    return path


def said(role: str, content: str, **more: object) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def asked(record: Record) -> tuple[str, str, int]:
    return record.instruction, record.response, len(record.history)


@pytest.mark.parametrize(
    ("first", "second", "trained"),
    [
        ({}, {}, [("a", "1", 0), ("b", "2", 2)]),
        ({"weight": 0}, {}, [("b", "2", 2)]),
        ({"weight": 0.0}, {"weight": 1}, [("b", "2", 2)]),
        ({"weight": None}, {"weight": 0}, [("a", "1", 0)]),
        ({"weight": 1}, {"weight": "0"}, [("a", "1", 0), ("b", "2", 2)]),
    ],
)
def test_an_answer_without_weight_is_history_alone(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], trained: list[tuple[str, str, int]]
) -> None:
    talk = [
        said("user", "a"),
        said("assistant", "1", **first),
        said("user", "b"),
        said("assistant", "2", **second),
    ]
    found = load_source(written(tmp_path, talk)).records
    assert [asked(record) for record in found] == trained
    if trained[-1][2]:
        assert found[-1].history == (Message("user", "a"), Message("assistant", "1"))


def test_what_one_side_says_in_a_row_has_no_weight_if_a_part_of_it_has_none(tmp_path: Path) -> None:
    talk = [said("user", "a"), said("assistant", "1", weight=0), said("assistant", "2", weight=1)]
    other = [said("user", "b"), said("assistant", "3"), said("assistant", "4")]
    loaded = load_source(written(tmp_path, talk, other))
    assert [asked(record) for record in loaded.records] == [("b", "3\n\n4", 0)]
    assert loaded.empty == 1


def test_a_weight_of_a_question_says_nothing(tmp_path: Path) -> None:
    talk = [said("user", "a", weight=0), said("assistant", "1")]
    assert [asked(one) for one in load_source(written(tmp_path, talk)).records] == [("a", "1", 0)]


def test_a_file_in_which_no_answer_has_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        load_source(written(tmp_path, [said("user", "a"), said("assistant", "1", weight=0)]))
