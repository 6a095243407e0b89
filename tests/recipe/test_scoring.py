"""How a run's answers are scored: what is asked for, or what the data are."""

from __future__ import annotations

from typing import Any

import pytest

from edgetune.core.errors import ConfigError, DataError
from edgetune.data.records import Record
from edgetune.recipe.scoring import Scoring, scoring_of
from edgetune.recipe.sections import EvaluationSection


def records(*responses: str) -> list[Record]:
    return [Record(f"q{n}", "", response, "") for n, response in enumerate(responses)]


def scoring(held_out: list[Record], others: list[Record] | None = None, **asked: Any) -> Scoring | None:
    return scoring_of(EvaluationSection(**asked), held_out, [*held_out, *(others or [])])


SUMS = records("so\n#### 3", "well\n#### 1,200", "hence\n#### -4")
LABELLED = records(*["good", "bad"] * 6)


def test_nothing_beside_rouge_where_nothing_is_asked_for_and_answers_are_texts() -> None:
    assert scoring(SUMS) is None
    assert scoring(LABELLED, metric="rouge_l") is None
    assert scoring([Record("", "", "text", "", plain=True)] * 20) is None


def test_both_answers_go_through_the_extractor() -> None:
    found = scoring(SUMS, extract="last_number")
    assert found is not None
    assert found.name == "exact match"
    wanted = [record.response for record in SUMS]
    assert found.mean(["3", "it is 1200.", "4"], wanted) == pytest.approx(200 / 3)
    assert found.mean(["none", "", "-4.0"], wanted) == pytest.approx(100 / 3)
    assert found.mean(["", "", ""], wanted) == 0
    assert found.mean(wanted, wanted) == 100


def test_exact_match_without_an_extractor_is_that_of_squad() -> None:
    found = scoring(records("The blue Boat.", "no"), metric="exact_match")
    assert found is not None
    assert found.mean(["blue boat", "no, never"], ["The blue Boat.", "no"]) == 50


def test_labels_are_found_in_all_records_and_the_commonest_is_named() -> None:
    held_out = records("good", "good", "bad")
    assert scoring(held_out) is None
    found = scoring(held_out, LABELLED)
    assert found is not None
    assert found.name == "accuracy"
    assert found.mean(["good, very", "bad", "bad"], ["good", "good", "bad"]) == pytest.approx(200 / 3)
    assert found.notes == ("2 labels: always saying 'good' would have an accuracy of 66.7",)


def test_labels_behind_an_extractor() -> None:
    held_out = records(*["I say:\nA", "I say:\nB"] * 8)
    found = scoring(held_out, extract=r"regex:\n(\w)")
    assert found is not None
    assert found.name == "accuracy"
    assert found.mean(["so\nA", "A"], ["x\nA", "x\nA"]) == 50


def test_what_cannot_be_scored_is_refused_before_the_run() -> None:
    with pytest.raises(DataError, match=r"letter finds nothing in 3 of 3 expected answers, .*'so\\n#### 3'"):
        scoring(SUMS, extract="letter")
    with pytest.raises(ConfigError, match=r"accuracy is for a few short labels.*metric=exact_match"):
        scoring(SUMS, metric="accuracy")
    with pytest.raises(ConfigError, match="plain text has no answers"):
        scoring([Record("", "", "text", "", plain=True)], extract="last_number")
