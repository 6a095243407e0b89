"""Reasons of other hosts: short, printable, and of many kinds only the first few."""

from __future__ import annotations

from edgetune.core.reasons import LONGEST, OTHER, REASONS, counted_reasons, most_common, numbers, shortened


def test_a_reason_is_one_short_printable_line() -> None:
    assert shortened("  the disk\n is\tfull ") == "the disk is full"
    assert shortened("\x1b[2J\u202e\ud800") == "?[2J??"
    assert len(shortened("x" * 10**5)) == LONGEST
    assert shortened("x" * LONGEST) == "x" * LONGEST


def test_the_commonest_reasons_come_first_and_the_rest_is_one() -> None:
    assert list(most_common({"b": 1, "a": 1, "c": 5})) == ["c", "a", "b"]
    many = most_common({f"{number:03}": 1 for number in range(100)} | {"often": 7, OTHER: 50})
    assert (len(many), next(iter(many)), many[OTHER]) == (REASONS + 1, "often", 50 + 100 - REASONS + 1)
    assert most_common(many) == many, "sums of sums stay what they are"


def test_reasons_are_said_with_their_counts() -> None:
    assert counted_reasons({}) == ""
    assert counted_reasons({"late": 1, "offline": 3000}) == "3,000 offline, 1 late"
    assert counted_reasons({"a": 4, "b": 3, "c": 2, "d": 1, "e": 1}) == "4 a, 3 b, 2 c, 2 other"


def test_numbers_of_many_devices_are_cut() -> None:
    assert numbers([]) == ""
    assert numbers([0, 2]) == "0 2"
    assert numbers(list(range(1000)), most=2) == "0 1 ... (1,000)"
