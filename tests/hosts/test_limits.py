"""What a device is willing to do: sizes, bounds before and in the middle of a round, threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from edgetune.core.errors import ConfigError, LimitError
from edgetune.core.sizes import parse_size
from edgetune.hosts.limits import Limits, limits_of

GIGA = 10**9
ROOMY = Limits(resident=lambda: 400, usable=lambda: 64 * GIGA)


class Says:
    """A condition with an answer prepared."""

    def __init__(self, answer: str | None) -> None:
        self.answer, self.asked = answer, 0

    def refusal(self) -> str | None:
        self.asked += 1
        return self.answer


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * GIGA),
        ("2G", 2 * GIGA),
        ("1.5g", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("512 mib", 512 * 2**20),
        ("800000000", 800_000_000),
        ("64 kB", 64_000),
        ("7B", 7),
        ("0.1T", 100_000_000_000),
        (" 1TiB ", 2**40),
    ],
)
def test_sizes_are_read_in_decimal_and_binary_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "-1GB",
        "2 GBit",
        "1e9",
        "nan",
        "inf",
        "0",
        "0.4B",
        "1,5GB",
        "2GiBB",
        "2Gi",
        "½GB",
        "٣GB",
        "9" * 40,
    ],
)
def test_what_is_no_size_is_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(ConfigError, match="512MiB"):
        parse_size(text)


def test_a_round_that_fits_is_done() -> None:
    assert replace(ROOMY, max_memory=1000).refusal(600) is None
    assert ROOMY.refusal(63 * GIGA) is None


def test_a_round_that_needs_one_byte_too_much_is_refused_with_needed_and_allowed_bytes() -> None:
    refusal = replace(ROOMY, max_memory=1000).refusal(601)
    assert refusal is not None
    assert "1,001 B" in refusal
    assert "1,000 B" in refusal


def test_a_round_that_the_machine_has_no_memory_for_is_refused_without_a_bound_of_the_owner() -> None:
    refusal = Limits(resident=lambda: 400, usable=lambda: 5000).refusal(5001)
    assert refusal is not None
    assert "5,001 B" in refusal
    assert "5,000 B" in refusal


def test_a_refusal_of_the_condition_is_passed_on_word_for_word() -> None:
    assert replace(ROOMY, only_when=Says("the oven is on")).refusal(1) == "the oven is on"
    assert replace(ROOMY, only_when=Says(None)).refusal(1) is None


def test_a_hook_is_not_started_for_a_round_that_does_not_fit_anyway() -> None:
    condition = Says(None)
    assert replace(ROOMY, max_memory=10, only_when=condition).refusal(1) is not None
    assert condition.asked == 0


def test_options_of_a_command_line_become_limits() -> None:
    limits = limits_of(2, "1GB", "hook:true")
    assert (limits.max_threads, limits.max_memory) == (2, GIGA)
    assert limits.only_when is not None
    assert limits_of() == Limits()


@pytest.mark.parametrize("given", [{"max_threads": 0}, {"max_memory": "much"}, {"only_when": "never"}])
def test_options_that_cannot_be_read_are_named(given: dict[str, Any]) -> None:
    option = f"--{next(iter(given)).replace('_', '-')}"
    with pytest.raises(ConfigError, match=option):
        limits_of(**given)


@pytest.mark.parametrize("bound", [{"max_threads": 0}, {"max_memory": 0}, {"max_threads": -3}])
def test_bounds_below_one_are_refused(bound: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="--max-"):
        Limits(**bound)


def test_threads_are_bounded_and_never_raised() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Limits(max_threads=2).apply()
        assert torch.get_num_threads() == 2
        Limits(max_threads=5).apply()
        Limits().apply()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_round_that_passes_its_bound_ends_at_that_step_and_says_both_sizes() -> None:
    sizes, told = iter([900, 1000, 1001, 1]), list[float]()
    limits = Limits(max_memory=1000, resident=lambda: next(sizes))

    def answer() -> None:
        with limits.watch(lambda what, done, total: told.append(done)) as progress:
            for step in range(4):
                progress("steps", step, 4)

    with pytest.raises(LimitError, match=r"1,001 B.*1,000 B"):
        answer()
    assert told == [0, 1]


def test_a_round_without_a_bound_is_not_measured_and_its_progress_goes_on() -> None:
    told = list[float]()

    def never() -> int:
        raise AssertionError("measured")

    with Limits(resident=never).watch(lambda what, done, total: told.append(done)) as progress:
        progress("steps", 1, 2)
    assert told == [1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA"),
    ],
)
def test_memory_that_the_system_has_not_is_reported_as_a_limit(error: Exception) -> None:
    with pytest.raises(LimitError, match="no more memory"), Limits().watch():
        raise error


def test_torch_says_of_a_tensor_that_is_too_large_what_is_taken_for_a_limit() -> None:
    with pytest.raises(LimitError, match="no more memory"), Limits().watch():
        torch.empty(2**55, dtype=torch.uint8)


def test_other_errors_of_a_round_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), Limits().watch():
        raise RuntimeError("shapes do not match")


def test_the_memory_of_this_process_is_really_measured() -> None:
    with pytest.raises(LimitError), Limits(max_memory=1_000_000).watch() as progress:
        progress("steps", 1, 2)
    assert Limits(max_memory=1_000_000).refusal(0) is not None
