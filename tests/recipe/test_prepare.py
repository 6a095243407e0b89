"""What a run works on: ends of answers, duplicates, findings, and preparation without devices."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from edgetune.core.errors import ConfigError, DataError
from edgetune.core.progress import silent
from edgetune.data.encode import Example
from edgetune.data.holdout import text_of
from edgetune.data.records import Record
from edgetune.recipe import prepare as module
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.quality import model_quality
from edgetune.recipe.recipe import Recipe, load_recipe

CHATML = (
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
SMALL = {
    "data__held_out": 4, "data__calibration": 6, "split__kind": "iid", "split__minimum": 1, "federation__devices": 3,
    "data__max_tokens": 100, "evaluation__max_new_tokens": 8,
}  # fmt: skip
Ready = Callable[..., Prepared]


def rows(count: int, response: str = "yes {}") -> list[Record]:
    return [Record(f"say {index}", "", response.format(index), "ab"[index % 2]) for index in range(count)]


@pytest.fixture
def recipe(tmp_path: Path, save_tiny: Any, tiny_tokenizer: Any) -> Callable[..., Recipe]:
    def make(records: Sequence[Record], *, template: str | None = None, **settings: Any) -> Recipe:
        folder = save_tiny()
        if template is not None:
            tokenizer = copy.deepcopy(tiny_tokenizer)
            tokenizer.add_tokens([AddedToken("<|im_end|>", special=False)])
            tokenizer.chat_template = template
            tokenizer.save_pretrained(folder)
        data = tmp_path / "data.jsonl"
        names = ("instruction", "context", "response", "category")
        lines = [json.dumps({name: getattr(record, name) for name in names}) for record in records]
        data.write_text("\n".join(lines), encoding="utf-8")
        return load_recipe(
            None, [], model__source=str(folder), data__source=str(data), **{**SMALL, **settings}
        )

    return make


def held(prepared: Prepared) -> list[Record]:
    return [prepared.records[index] for share in prepared.manifest.devices for index in share]


def test_a_batch_larger_than_the_data_is_refused_where_somebody_asked_for_it(recipe: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"method.batch_size.* 31 records .* 30 are trained on .*at most 30"
    ):
        prepare(recipe(rows(40), method__batch_size=31))
    assert sum(map(len, prepare(recipe(rows(40), method__batch_size=30)).devices.values())) == 30
    prepare(recipe(rows(16), method__name="mezo"))  # 16 records a step of its own, of 6


def test_the_end_that_is_trained_on_comes_first_and_reaches_whoever_generates(recipe: Any) -> None:
    prepared = prepare(recipe(rows(40), template=CHATML))
    end = prepared.backbone.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert prepared.ends == (end, 0)
    assert prepared.found.ends == [end, 0]
    assert prepared.backbone.model.generation_config.eos_token_id == [end, 0]
    assert {example.input_ids[-1] for share in prepared.devices.values() for example in share} == {end}
    assert prepare(recipe(rows(40))).ends == (0,)


def test_ends_of_the_generation_config_are_kept(recipe: Any) -> None:
    asked = recipe(rows(40), template=CHATML)
    (Path(asked.model.source) / "generation_config.json").write_text('{"eos_token_id": [7, 5]}')
    assert prepare(asked).ends == (98, 0, 5, 7)


def test_texts_are_what_is_trained_on(recipe: Any) -> None:
    prepared = prepare(recipe(rows(40), template=CHATML))
    for one in prepared.texts(prepared.held_out):
        assert (
            prepared.backbone.tokenizer.decode(one.example.input_ids) == one.turn.prompt + one.turn.response
        )
    assert [one.example for one in prepared.texts(prepared.held_out)] == prepared.held_out_examples


def test_no_text_stands_in_two_places(recipe: Any) -> None:
    prepared = prepare(recipe(rows(30) * 4))
    places = [held(prepared), prepared.held_out, prepared.calibration]
    texts = [{text_of(record) for record in place} for place in places]
    assert all(first.isdisjoint(second) for first in texts for second in texts if first is not second)
    assert len(prepared.held_out) == len(texts[1]) == 4
    assert len(prepared.calibration) == 6
    assert prepared.found.copies == 120 - sum(map(len, places)) == len(prepared.manifest.copies) + 2
    assert prepared.found.trained == len(held(prepared))


def test_findings_are_counted(recipe: Any) -> None:
    found = [
        *rows(40),
        Record("what is <|endoftext|>?", "", "a token", ""),
        Record("caf\u00e9", "", "\u4e2d", ""),
        Record("end", "", "done <|im_end|>", ""),
    ]
    seen = prepare(recipe(found, template=CHATML)).found
    assert (seen.quoted, seen.unknown, seen.characters, seen.own_ends, seen.framed) == (
        1,
        1,
        "\u00e9\u4e2d",
        1,
        0,
    )
    assert (seen.prompt, seen.held_out, seen.calibration, seen.trained, seen.copies) == ("chat", 4, 6, 33, 0)
    assert prepare(recipe(rows(40, "{}\u4e2d"))).found.words.endswith("scripts without spaces")
    assert prepare(recipe(rows(40))).found.words == "words"


def test_references_are_without_the_end_a_response_brings(recipe: Any) -> None:
    prepared = prepare(recipe(rows(40, "yes {}<|im_end|>"), template=CHATML))
    assert all(record.response == f"yes {record.instruction[4:]}" for record in prepared.held_out)
    assert prepared.found.own_ends == 40
    assert all(example.input_ids.count(98) == 2 for example in prepared.held_out_examples)


def test_without_devices_the_same_records_are_held_out(recipe: Any) -> None:
    for settings in ({}, {"data__held_out_category": "a"}, {"data__records": 12}):
        asked = recipe(rows(40) + rows(20), **settings)
        whole, part = prepare(asked), prepare(asked, split=False)
        assert part.devices == {}
        assert part.held_out == whole.held_out
        assert part.held_out_examples == whole.held_out_examples
        assert part.calibration == whole.calibration
        assert part.ends == whole.ends
        assert part.manifest.digest == whole.manifest.digest


def test_without_devices_few_records_serve_for_both(recipe: Any) -> None:
    asked = recipe(rows(5), federation__devices=20)
    with pytest.raises(DataError):
        prepare(asked)
    prepared = prepare(asked, split=False)
    assert (len(prepared.held_out), len(prepared.calibration), prepared.found.copies) == (4, 5, 0)
    one = prepare(recipe(rows(1)), split=False)
    assert one.held_out == one.calibration == rows(1)
    with pytest.raises(DataError, match="no record has the category 'x'"):
        prepare(recipe(rows(5), data__held_out_category="x"), split=False)
    few = prepare(recipe(rows(5), data__held_out_category="a"), split=False)
    assert [record.category for record in few.held_out] == ["a", "a", "a"]


def test_a_sample_larger_than_the_data_is_refused(recipe: Any) -> None:
    with pytest.raises(DataError, match=r"sample needs 6 records \(data.calibration\), there are 5 "):
        prepare(recipe(rows(5)))


UNSAID = {"data__held_out": None, "data__calibration": None, "split__kind": None, "split__minimum": None,
          "federation__devices": None}  # fmt: skip


def plain(count: int) -> list[Record]:
    return [Record(f"say {index}", "", f"yes {index}", "") for index in range(count)]


@pytest.mark.parametrize(
    ("count", "held_out", "sample", "devices"),
    [
        (2, 1, 0, 1),
        (8, 2, 0, 1),
        (30, 6, 0, 6),
        (79, 16, 0, 15),
        (80, 15, 8, 14),
        (300, 54, 30, 20),
        (640, 100, 64, 20),
        (1000, 100, 64, 20),
    ],
)
def test_sizes_that_nobody_asked_for_fit_the_data(
    recipe: Any, count: int, held_out: int, sample: int, devices: int
) -> None:
    prepared = prepare(recipe(plain(count), **UNSAID))
    trained = held(prepared)
    assert (len(prepared.held_out), len(prepared.devices)) == (held_out, devices)
    assert len(trained) == count - held_out - sample
    if sample:
        assert len(prepared.calibration) == sample
        assert {text_of(one) for one in prepared.calibration}.isdisjoint(map(text_of, trained))
    else:
        assert len(prepared.calibration) == min(64, len(trained))
        assert {text_of(one) for one in prepared.calibration} <= set(map(text_of, trained))
    assert {text_of(one) for one in prepared.held_out}.isdisjoint(
        map(text_of, (*trained, *prepared.calibration))
    )
    part = prepare(recipe(plain(count), **UNSAID), split=False)
    assert (part.held_out, part.calibration) == (prepared.held_out, prepared.calibration)


def test_where_the_records_went_is_said(recipe: Any) -> None:
    notes = prepare(recipe(plain(8), **UNSAID)).found.notes
    assert notes[0] == "8 records (Dolly): 6 on one device, none set aside for calibration; 2 held out"
    assert "calibration takes 6 of those that are trained on (data.calibration)" in notes[1]
    assert notes[2].startswith("1 device, not 20: each holds at least 4 records (federation.devices")
    notes = prepare(recipe(plain(1000), **UNSAID)).found.notes
    assert notes[0] == "1,000 records (Dolly): 836 on 20 devices, 64 set aside for calibration; 100 held out"
    assert "no record has a category" in notes[1]
    assert len(notes) == 2
    assert len(prepare(recipe(rows(1000), **UNSAID)).found.notes) == 1
    few = prepare(recipe(rows(100), **UNSAID))
    assert any("all devices hold equally many" in note for note in few.found.notes)
    assert {len(share) for share in few.devices.values()} == {4}


def test_what_somebody_asked_for_is_not_changed(recipe: Any) -> None:
    with pytest.raises(DataError, match=r"7 records cannot give 8 devices 1 each .*federation.devices"):
        prepare(recipe(plain(9), **{**UNSAID, "federation__devices": 8}))
    with pytest.raises(DataError, match=r"cannot hold out 9 of 8 records .*data.held_out"):
        prepare(recipe(plain(8), **{**UNSAID, "data__held_out": 9}))
    with pytest.raises(DataError, match=r"of 8 records 8 are held out .*data.held_out"):
        prepare(recipe(plain(8), **{**UNSAID, "data__held_out": 8}))
    with pytest.raises(DataError, match="nothing is left to train on: of 1 records 1 are held out"):
        prepare(recipe(plain(1), **UNSAID))
    prepared = prepare(recipe(plain(10), **{**UNSAID, "federation__devices": 8}))
    assert sorted(map(len, prepared.devices.values())) == [1] * 8
    prepared = prepare(recipe(plain(20), **{**UNSAID, "data__calibration": 5, "split__minimum": 2}))
    assert (len(prepared.calibration), len(prepared.held_out), len(prepared.devices)) == (5, 3, 6)


def test_a_test_file_is_measured_whole_and_not_trained_on(recipe: Any, tmp_path: Path) -> None:
    copies = plain(3)
    test = [*(Record(f"ask {index}", "", "no", "") for index in range(7)), *copies, copies[0]]
    path = tmp_path / "test.csv"
    lines = [f"{one.instruction},{one.response}" for one in test]
    path.write_text("\n".join(["question,answer", *lines]), encoding="utf-8")
    for count in (40, 200):
        prepared = prepare(recipe(plain(count), **UNSAID, data__test=str(path)))
        assert list(map(text_of, prepared.held_out)) == list(map(text_of, test))
        trained = set(map(text_of, held(prepared)))
        sample = set(map(text_of, prepared.calibration))
        expected = set(map(text_of, plain(count)[3:]))
        assert trained | sample == expected
        assert (trained & sample == set()) == (count == 200)
        assert prepared.found.copies == 3
        assert prepared.found.notes[0].endswith(f"; 11 held out (all of {path})")
        part = prepare(recipe(plain(count), **UNSAID, data__test=str(path)), split=False)
        assert (part.held_out, part.calibration) == (prepared.held_out, prepared.calibration)


def test_a_test_alone_can_be_measured_and_not_trained_with(recipe: Any, tmp_path: Path) -> None:
    asked = recipe(plain(5), data__test=str(tmp_path / "data.jsonl"), **UNSAID)
    alone = asked.model_copy(update={"data": asked.data.model_copy(update={"source": "embedded"})})
    with pytest.raises(ConfigError, match=r"data.test: a test without anything to train on .*--train-data"):
        prepare(alone)
    prepared = prepare(alone, split=False)
    assert len(prepared.held_out) == len(prepared.calibration) == 5
    both = recipe(rows(9), data__test=str(tmp_path / "data.jsonl"), **UNSAID, data__held_out_category="a")
    with pytest.raises(ConfigError, match="a test and a category"):
        prepare(both)


def test_columns_of_a_recipe_are_those_of_the_data(recipe: Any, tmp_path: Path) -> None:
    asked = recipe(plain(1), **UNSAID, data__columns={"instruction": "frage", "response": "antwort"})
    (tmp_path / "data.jsonl").write_text(
        "\n".join(json.dumps({"frage": one.instruction, "antwort": one.response}) for one in plain(20))
    )
    assert set(map(text_of, held(prepare(asked)))) <= set(map(text_of, plain(20)))


def test_plain_text_is_trained_on_and_measured_without_answers(recipe: Any, tmp_path: Path) -> None:
    asked = recipe(plain(1), **UNSAID)
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"a boat {index} comes home" for index in range(40)))
    data = asked.data.model_copy(update={"source": str(path)})
    prepared = prepare(asked.model_copy(update={"data": data}))
    assert prepared.asked == []
    assert prepared.scoring is None
    example, text = prepared.held_out_examples[0], prepared.held_out[0].response
    assert prepared.backbone.tokenizer.decode(example.input_ids, skip_special_tokens=True) == text
    assert example.response_start == 1
    quality = model_quality(prepared.backbone.model, prepared, silent, "base")
    assert math.isnan(quality.rouge_l)
    assert math.isfinite(quality.loss)
    assert set(quality.answers) == {""}


@pytest.mark.parametrize("name", ["alpaca", "fedkseed", "chat"])
def test_a_prompt_is_chosen_by_name(recipe: Any, name: str) -> None:
    prepared = prepare(recipe(rows(40), template=CHATML, data__prompt=name))
    assert prepared.prompt.name == prepared.found.prompt == name
    text = prepared.texts(prepared.held_out)[0].turn.prompt
    assert ("Write a response" in text) == (name != "chat")


def test_the_pass_that_chooses_threads_fits_the_models_context(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()

    def model(batch: torch.Tensor, use_cache: bool) -> None:
        seen.append(batch.shape[1])

    examples = [Example(tuple(range(10)), 5)] * 4
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        module._settle_threads(model, examples, 16)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {16}
