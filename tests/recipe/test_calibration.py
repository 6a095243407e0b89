"""What a compression is calibrated on: whole records, packed text, as many tokens as are wanted, nothing held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.compression_events import Calibrated
from edgetune.core.errors import DataError
from edgetune.data.encode import encode_all
from edgetune.data.records import Record
from edgetune.recipe import calibration as module
from edgetune.recipe.calibration import calibration_of, widest_input
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.recipe import load_recipe
from edgetune.report.notes import calibration_note

SMALL = {"data__held_out": 4, "data__calibration": 6, "evaluation__max_new_tokens": 8}


def prepared(*, split: bool = False, **more: Any) -> Prepared:
    return prepare(load_recipe(None, **(SMALL | more)), split=split)


def rows(ready: Prepared) -> list[tuple[int, ...]]:
    """Real ids of every sequence."""
    found = []
    for batch in calibration_of(ready).batches:
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            found.append(tuple(ids[mask.bool()].tolist()))
    return found


def write(path: Path, records: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records), "utf-8")
    return str(path)


def test_compress_takes_as_many_records_as_it_needs_and_their_responses() -> None:
    ready = prepared(compression__calibration_tokens=2000)
    found, event = rows(ready), calibration_of(ready).event
    assert ready.devices == {}
    assert event == Calibrated(
        "records", sum(map(len, found)), len(found), widest_input(ready.backbone.model)
    )
    assert len(found) > 6
    longest = max(len(one) for one in found)
    assert 2000 <= event.tokens < 2000 + longest
    own = {one.input_ids for one in ready.calibration_examples}  # prompt and response
    assert own <= set(found)
    held_out = {one.input_ids for one in ready.held_out_examples}
    assert not held_out & set(found)


def test_a_run_takes_the_servers_own_sample_and_nothing_of_devices() -> None:
    ready = prepared(split=True, federation__devices=3, compression__calibration_tokens=100_000)
    assert sorted(rows(ready)) == sorted(one.input_ids for one in ready.calibration_examples)
    assert calibration_of(ready).event.source == "sample"


def test_a_text_is_packed_to_full_length_without_padding(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("The buoy marks the safe channel.\n\n<|endoftext|>\n" * 300, "utf-8")
    ready = prepared(compression__calibration=str(text), compression__calibration_tokens=600)
    length = min(module.LONGEST, ready.backbone.model.config.max_position_embeddings)
    assert {len(one) for one in rows(ready)} == {length}
    assert all(bool(batch.attention_mask.all()) for batch in calibration_of(ready).batches)
    plain = write(tmp_path / "t.jsonl", [{"text": "The buoy marks the safe channel."}] * 300)
    same = prepared(compression__calibration=plain, compression__calibration_tokens=600)
    assert rows(same) == rows(ready)


def test_records_of_a_file_are_whole_and_none_is_held_out(tmp_path: Path) -> None:
    first = prepared()
    away = first.held_out[0]
    said = [
        {"instruction": away.instruction, "context": away.context, "response": away.response},
        {"instruction": "Say hello.", "context": "", "response": "Hello."},
    ]
    ready = prepared(compression__calibration=write(tmp_path / "r.jsonl", said))

    (expected,) = encode_all(
        [Record("Say hello.", "", "Hello.", "")], ready.backbone.tokenizer, ready.prompt, 200
    )
    assert rows(ready) == [expected.input_ids]


def test_too_few_tokens_are_said(tmp_path: Path) -> None:
    ready = prepared(
        compression__calibration=write(tmp_path / "r.jsonl", [{"prompt": "a", "completion": "b"}])
    )
    event = calibration_of(ready).event
    assert event.few
    assert "fewer than the" in calibration_note(event)
    enough = Calibrated("x.txt", 1024, 2, 1024)
    assert calibration_note(enough) == "calibration: 1,024 tokens in 2 sequences of x.txt"


def test_no_token_and_no_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n", "utf-8")
    for name, what in (("empty.txt", "no token to calibrate on"), ("none.txt", "no such file")):
        with pytest.raises(DataError, match=what):
            calibration_of(prepared(compression__calibration=str(tmp_path / name)))


def test_the_default_follows_the_widest_input(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = prepared()
    monkeypatch.setattr(module, "ENOUGH", 10)
    tokens = calibration_of(ready).event.tokens
    assert tokens >= module.TIMES_WIDEST * widest_input(ready.backbone.model)
    monkeypatch.setattr(module, "TIMES_WIDEST", 0)
    assert set(rows(ready)) == {one.input_ids for one in ready.calibration_examples}  # all of the sample
