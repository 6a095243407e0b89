"""What a device makes of its own file: all of it, in order, with the recipe's prompt and length; else one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import ConfigError, DataError
from edgetune.data.encode import encode_all
from edgetune.data.prompts import Alpaca
from edgetune.data.records import Record
from edgetune.hosts.examples import own_data
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.recipe.recipe import load_recipe


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("embedded")


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "local.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_all_records_are_encoded_in_the_order_of_the_file(tmp_path: Path, backbone: Backbone) -> None:
    rows = [{"q": f"say {n % 2}", "a": f"{n % 2} it is"} for n in range(7)]  # copies stay
    recipe = load_recipe(
        None, [], data__prompt="alpaca", data__max_tokens=40, data__held_out=5, data__source="x"
    )
    found = own_data(recipe, backbone, written(tmp_path, *rows), {"instruction": "q", "response": "a"})
    records = [Record(row["q"], "", row["a"], "") for row in rows]
    assert found.examples == encode_all(records, backbone.tokenizer, Alpaca(), 40)
    assert (found.rows, found.empty) == (7, 0)


def test_the_columns_and_the_test_of_the_server_are_not_the_devices(
    tmp_path: Path, backbone: Backbone
) -> None:
    settings = {
        "data__columns": {"instruction": "frage", "response": "antwort"},
        "data__test": "not-here.jsonl",
    }
    path = written(tmp_path, {"question": "one?", "answer": "1"})
    assert len(own_data(load_recipe(None, [], **settings), backbone, path, None).examples) == 1


def test_rows_without_an_answer_and_long_ones_are_counted(tmp_path: Path, backbone: Backbone) -> None:
    rows = [{"question": "one?", "answer": said} for said in ("1", "", " ", "long " * 100)]
    found = own_data(load_recipe(None, [], data__max_tokens=50), backbone, written(tmp_path, *rows), None)
    assert (len(found.examples), found.rows, found.empty, found.cut) == (2, 4, 2, 1)
    assert max(len(one.input_ids) for one in found.examples) == 50
    assert any(note.startswith("2 of 4 rows have no answer") for note in found.notes)
    assert any(note.startswith("1 record is longer") for note in found.notes)


def test_the_methods_own_answers_shorten_the_examples_as_in_a_run(tmp_path: Path, backbone: Backbone) -> None:
    path = written(tmp_path, {"question": "one?", "answer": "1"})
    recipe = load_recipe(None, [], evaluation__max_new_tokens=4096)
    with pytest.raises(ConfigError, match="too few for answers of 4096"):
        own_data(recipe, backbone, path, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there are no records here"),
        ("\n\n", "there are no records here"),
        ('{"question": "one?", "answer": " "}\n', "nothing to train on"),
        ('{"question": "one?", "answer": "1"}\n{"question"', "line 2"),
        ('{"a": "one?", "b": "1"}\n', "--columns"),
    ],
)
def test_a_file_without_records_is_one_sentence(
    tmp_path: Path, backbone: Backbone, text: str, said: str
) -> None:
    path = tmp_path / "local.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=said) as found:
        own_data(load_recipe(None, []), backbone, path, None)
    assert "local.jsonl" in str(found.value)


def test_a_file_that_is_not_there_is_never_looked_for_on_the_hub(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.data.sources._hub", lambda *_: pytest.fail("looked up"))
    with pytest.raises(DataError, match="no such file"):
        own_data(load_recipe(None, []), backbone, Path("squad"), None)
