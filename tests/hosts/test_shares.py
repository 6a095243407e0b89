"""A device that reads its share as a file makes the very examples that the same device has in a run on one machine."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import OutputError
from edgetune.data.reading import load_records
from edgetune.data.records import Record
from edgetune.hosts.examples import examples_of_file
from edgetune.hosts.shares import split_files
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.recipe.division import divide
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import Recipe, load_recipe

ODD = '  tab\t, quote ", line\nends \r\n  and \u2028 — <|im_end|> {}  '


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Return the base as a device loads it, not the one of the run."""
    return load_backbone("embedded")


def small(**settings: Any) -> Recipe:
    few = {"federation__devices": 3, "data__held_out": 5, "data__calibration": 5, "threads": 1}
    return load_recipe(None, [], **{**few, **settings})


def with_columns(folder: Path) -> dict[str, Any]:
    path = folder / "own.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["frage", "antwort", "art", "hinweis"])
        writer.writerows(
            [f"{ODD}{n}", f"so {n}{ODD}", "ab"[n % 2], f"c{n}" if n % 3 else ""] for n in range(60)
        )
        writer.writerow(["nothing", "", "a", ""])
    named = {"instruction": "frage", "response": "antwort", "category": "art", "context": "hinweis"}
    return {"data__source": str(path), "data__columns": named}


def of_rows(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"data__source": str(path), "split__minimum": 1}


def talk(number: int) -> list[dict[str, str]]:
    count = 24 if number in (7, 17, 27) else 1 + number % 4  # 24 are more than the longest history
    turns = [("user", f"q{turn} of {number}") for turn in range(count)]
    said = [
        one for user in turns for one in (user, ("assistant", f"a to {user[1]}{ODD if number % 5 else ''}"))
    ]
    first = [("system", " " if number % 6 else "Be brief.")] if number % 3 == 0 else []
    return [{"role": role, "content": text} for role, text in (*first, *said)]


def conversations(folder: Path) -> dict[str, Any]:
    rows = [{"messages": talk(number), "category": "xy"[number % 2]} for number in range(60)]
    rows += [rows[3], {"messages": [*talk(5), {"role": "user", "content": "no answer"}]}]
    return of_rows(folder, rows) | {"data__records": 120}  # cuts through conversations


def system_prompts(folder: Path) -> dict[str, Any]:
    rows = [
        {"question": f"q{n}", "answer": n, "context": "c", "system": "Be brief." * (n % 2)} for n in range(60)
    ]
    return of_rows(folder, rows)


def plain_text(folder: Path) -> dict[str, Any]:
    path = folder / "own.txt"
    path.write_text(
        "\n\n".join(f"text {number}, line one\nline two" for number in range(60)), encoding="utf-8"
    )
    return {"data__source": str(path)}


def embedded(folder: Path) -> dict[str, Any]:
    return {"data__records": 60}


SOURCES = (embedded, with_columns, conversations, system_prompts, plain_text)


@pytest.mark.parametrize("prompt", ["chat", "alpaca"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_share_read_as_a_file_is_the_devices_own(
    tmp_path: Path, backbone: Backbone, source: Callable[[Path], dict[str, Any]], prompt: str
) -> None:
    recipe = small(data__prompt=prompt, data__max_tokens=60, **source(tmp_path))
    expected = prepare(recipe).devices
    shares = split_files(recipe, tmp_path / "shares")
    assert len(shares.files) == len(expected) == 3
    for device, path in enumerate(shares.files):
        assert path.name == f"{device}.jsonl"
        assert examples_of_file(recipe, backbone, path, None) == expected[device]
        assert shares.records[device] == len(expected[device])


@pytest.mark.parametrize("source", SOURCES)
def test_a_share_reads_as_its_records(tmp_path: Path, source: Callable[[Path], dict[str, Any]]) -> None:
    recipe = small(**source(tmp_path))

    def said(records: list[Record]) -> list[object]:
        return [(one.texts, one.history, one.category, one.plain) for one in records]

    shares = split_files(recipe, tmp_path / "shares")
    for path, share in zip(shares.files, divide(recipe, split=True).shares, strict=True):
        assert said(load_records(path)) == said(share)


def test_conversations_of_the_test_data_are_cut_and_longer_than_a_history(tmp_path: Path) -> None:
    recipe = small(**conversations(tmp_path))
    found = [record for share in divide(recipe, split=True).shares for record in share]
    everything = load_records(recipe.data.source)
    of = {
        one.conversation: sum(other.conversation == one.conversation for other in everything) for one in found
    }
    kept = {name: sum(one.conversation == name for one in found) for name in of if name}
    assert any(count < of[name] for name, count in kept.items())
    assert any(len(record.history) == 32 for record in found)


def test_dolly(shared_data: Path, tmp_path: Path, backbone: Backbone) -> None:
    path = shared_data / "dolly" / "databricks-dolly-15k.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    recipe = small(data__source=str(path), data__records=300, data__held_out_category="summarization")
    expected = prepare(recipe).devices
    for device, file in enumerate(split_files(recipe, tmp_path / "shares").files):
        assert examples_of_file(recipe, backbone, file, None) == expected[device]


def test_a_second_split_replaces_and_fewer_devices_are_refused(tmp_path: Path) -> None:
    split_files(small(data__records=60, federation__devices=2), tmp_path)
    before = (tmp_path / "0.jsonl").read_bytes()
    split_files(small(data__records=60, federation__devices=3, seed=1), tmp_path)
    assert (tmp_path / "0.jsonl").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jsonl", "1.jsonl", "2.jsonl"]
    kept = (tmp_path / "0.jsonl").read_bytes()
    with pytest.raises(OutputError, match=r"2.jsonl: this is a share of another split"):
        split_files(small(data__records=60, federation__devices=2), tmp_path)
    assert (tmp_path / "0.jsonl").read_bytes() == kept
