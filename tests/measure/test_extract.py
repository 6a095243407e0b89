"""What counts in an answer, against examples read by eye and a brute-force reading of numbers."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.core.errors import ConfigError
from edgetune.measure.extract import extractor
from edgetune.measure.labels import commonest, labels_of


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = <<3+4=7>>7.\n#### 7", "7"),
        ("#### 1,234\n\nQuestion: what is 5?", "1234"),
        ("so it is 12 and then 15 apples.", "15"),
        ("That is $1,250.50.", "1250.5"),
        ("42.0", "42"),
        ("it costs 1000000", "1000000"),
        ("-17", "-17"),
        ("the change is -$3.50", "-3.5"),
        ("\u22125 degrees", "-5"),
        ("10-3", "3"),
        ("pages 1,2,3", "3"),
        ("1,2345", "2345"),
        ("0.000", "0"),
        ("007", "7"),
        ("a1b2", "2"),
        ("####", None),
        ("#### none, or 3", "3"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert extractor("last_number")(text) == number


@given(
    st.decimals(min_value=-(10**9), max_value=10**9, places=3), st.sampled_from(["", "is ", "7 and ", "x\n"])
)
def test_a_number_is_found_whatever_its_writing(value: Decimal, before: str) -> None:
    found = extractor("last_number")(f"{before}{value:,} apples")
    assert found is not None
    assert Decimal(found) == value
    assert found == extractor("last_number")(f"{value}")


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", "B"), (" (C) the third", "C"), ("D. because", "D"), ("The answer is (A).", "A"), ("Answer: E", "E"),
        ("answer B is right, not (C)", "B"), ("A bank is near (D)", "D"), ("I think so", None), ("", None), ("b", None),
        ("A\nbecause", "A"),
    ],
)  # fmt: skip
def test_the_letter_of_a_choice(text: str, choice: str | None) -> None:
    assert extractor("letter")(text) == choice


def test_lines_and_patterns() -> None:
    assert extractor("first_line")("\n  \n yes, it is \nbecause") == "yes, it is"
    assert extractor("first_line")(" \n") is None
    assert extractor("whole")(" a\nb ") == "a\nb"
    assert extractor(r"regex:answer:\s*(\w+)")("the answer: seven (7)") == "seven"
    assert extractor(r"regex:\d+")("12 and 13") == "12"
    assert extractor(r"regex:(x)?y")("y") is None
    assert extractor(r"regex:z")("y") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last_numbr", "did you mean 'last_number'"),
        ("zzz", "known: whole, first_line, last_number, letter, regex:PATTERN"),
        ("regex:(", "not a pattern"),
    ],
)
def test_what_is_no_extractor_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extractor(name)


def test_a_pattern_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetune.measure.extract.SECONDS", 0.05)
    with pytest.raises(ConfigError, match="takes more than"):
        extractor(r"regex:(a|aa)+(b|bb)+$")("a" * 5000 + "c")


def test_few_short_answers_that_come_again_are_labels() -> None:
    assert labels_of(["good", "Bad."] * 4) is not None
    assert labels_of(["good", "bad"] * 3 + ["fair"]) is None  # three labels, seven answers
    assert labels_of(["good"] * 100) is None
    assert labels_of([f"label {n}" for n in range(20)] * 4) is not None
    assert labels_of([f"label {n}" for n in range(21)] * 4) is None
    assert labels_of(["one two three four five six", "bad"] * 10) is None
    assert labels_of(["...", "bad"] * 10) is None
    assert labels_of([]) is None


def test_accuracy_takes_the_longest_label_that_an_answer_begins_with() -> None:
    labels = labels_of(["good", "very good", "bad", "not bad"] * 10)
    assert labels is not None
    said = {
        "good": "good", "Good.": "good", "good, I think": "good", "very good": "very good",
        "Very good indeed": "very good", "goodness": None, "very": None, "it is good": None, "": None,
        "bad good": "bad", "the bad one": None,
    }  # fmt: skip
    for answer, label in said.items():
        for reference in ("good", "very good", "bad", "not bad"):
            assert labels.accuracy([answer], [reference]) == [float(label == reference)], (answer, reference)
    numbers = labels_of(["-1", "0", "1", "A"] * 10)
    assert numbers is not None
    assert numbers.accuracy(["1", "-1", "-1.", "a", "A)", ""], ["-1", "-1", "-1", "A", "A", "A"]) == [
        0,
        1,
        1,
        1,
        1,
        0,
    ]
    assert commonest(["Good", "bad", "good.", "bad", "good"]) == ("good", 0.6)
