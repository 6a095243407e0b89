"""The generated corpus: deterministic, complete, disjoint, and answerable."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from edgetune.data import corpus
from edgetune.data.corpus import CATEGORIES, base_records, device_records, pretraining_records, split_of
from edgetune.data.corpus.builders import fact
from edgetune.data.corpus.station import STATION
from edgetune.data.corpus.village import VILLAGE
from edgetune.data.records import Record

SOURCES = (pretraining_records, base_records, device_records)
NEEDS_CONTEXT = {"closed_qa", "information_extraction", "summarization"}
FRAME = re.compile(r"Report: (.+)\. Over\.")


def prompt(record: Record) -> tuple[str, str]:
    """Give what identifies a record."""
    return record.instruction, record.context


@pytest.mark.parametrize("source", SOURCES)
def test_a_seed_decides_the_records(source):
    """The same seed gives the same records, another seed others; a longer draw starts with the shorter."""
    assert source(40, 3) == source(40, 3)
    assert source(40, 3) != source(40, 4)
    assert source(60, 3)[:40] == source(40, 3)


@pytest.mark.parametrize("source", SOURCES)
def test_all_categories_occur_and_fields_are_sound(source):
    """Every category occurs; a context is there exactly where the answer needs one."""
    records = source(300, 0)
    assert {record.category for record in records} == set(CATEGORIES)
    for record in records:
        assert record.instruction.strip() == record.instruction != ""
        assert record.response.strip() == record.response != ""
        assert "{" not in record.instruction + record.context + record.response
        assert bool(record.context) == (record.category in NEEDS_CONTEXT)


@pytest.mark.parametrize("source", SOURCES)
def test_a_negative_count_is_refused(source):
    """A negative count is an error and zero is not."""
    assert source(0, 0) == []
    with pytest.raises(ValueError, match="count"):
        source(-1, 0)


def test_running_out_of_prompts_is_an_error(monkeypatch):
    """A draw beyond what there is says so instead of coming back short."""
    small = replace(VILLAGE, scenes=dict(list(VILLAGE.scenes.items())[:2]))
    monkeypatch.setattr(corpus, "VILLAGE", small)
    monkeypatch.setattr(corpus, "CATEGORIES", ("creative_writing",))
    with pytest.raises(ValueError, match="prompt"):
        base_records(100, 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_share_no_prompt(seed):
    """No prompt of the devices or of the held-out base sample is in pretraining, whatever the seeds."""
    pretraining = {prompt(record) for record in pretraining_records(4000, seed)}
    base = [prompt(record) for record in base_records(300, seed + 1)]
    device = [prompt(record) for record in device_records(600, seed + 1)]
    assert len(set(base)) == len(base)
    assert len(set(device)) == len(device)
    assert not pretraining & set(base)
    assert not pretraining & set(device)
    assert all(split_of("village", *one) == "base" for one in base)
    assert all(split_of("station", *one) == "device" for one in device)


def test_styles_are_as_the_model_card_says():
    """Devices always report, the base sample never does, pretraining does so in 8 to 18 percent."""
    assert all(FRAME.fullmatch(record.response) for record in device_records(300, 0))
    assert not any(FRAME.fullmatch(record.response) for record in base_records(300, 0))
    reports = [bool(FRAME.fullmatch(record.response)) for record in pretraining_records(4000, 0)]
    assert 0.08 < sum(reports) / len(reports) < 0.18


def test_device_answers_vary():
    """No answer is common enough that a constant would do."""
    answers = [record.response for record in device_records(500, 0)]
    assert len(set(answers)) > 400


def test_context_holds_the_answer():
    """What an extraction or a closed question asks for stands in the context word for word."""
    for record in device_records(400, 1):
        match = FRAME.fullmatch(record.response)
        assert match is not None
        if record.category == "closed_qa":
            assert match[1].rsplit(" is ", 1)[1] in record.context
        elif record.category == "information_extraction":
            found = re.fullmatch(r"found (.+) as (.+) and (.+) as (.+)", match[1])
            assert found is not None
            assert found[1] in record.context
            assert found[3] in record.context
            assert found[2] in record.instruction
            assert found[4] in record.instruction
        elif record.category == "summarization":
            assert any(word in record.context for word in match[1].split()[1:] if word[0].isupper())


def test_learned_answers_are_facts_of_the_world():
    """An open question has one answer: the fact, in either style."""
    known = {f"the {a.noun} of {e} is {fact(e, a)}" for e in STATION.entities for a in STATION.attributes}
    asked = [record for record in device_records(400, 2) if record.category == "open_qa"]
    assert asked
    assert all(record.response[len("Report: ") : -len(". Over.")] in known for record in asked)
    plain = {a.plain.format(e=e, v=fact(e, a)) for e in VILLAGE.entities for a in VILLAGE.attributes}
    assert all(record.response in plain for record in base_records(300, 2) if record.category == "open_qa")


@pytest.mark.parametrize("domain", [VILLAGE, STATION])
def test_tables_are_consistent(domain):
    """No item is in two classes, every passage can be filled, asks and fields name slots."""
    members = [item for items in domain.classes.values() for item in items]
    assert len(set(members)) == len(members)
    for passage in domain.passages:
        slots = set(re.findall(r"{(\w)}", passage.text))
        assert slots == set(passage.slots)
        assert set(passage.fields) <= slots
        assert {ask.slot for ask in passage.asks} <= slots
        assert len(set(passage.fields.values())) == len(passage.fields)
