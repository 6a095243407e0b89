from __future__ import annotations

import pytest
import torch

from edgetune.measure.allocator import allocator_peak
from edgetune.measure.memory import PeakMemory

MIB = 1 << 20


def two_at_a_time() -> None:
    first = torch.empty(3 * MIB, dtype=torch.uint8)
    second = torch.empty(5 * MIB, dtype=torch.uint8)
    del first
    third = torch.empty(2 * MIB, dtype=torch.uint8)
    del second, third


def test_the_allocator_s_peak_is_exact(capfd: pytest.CaptureFixture[str]) -> None:
    assert allocator_peak(two_at_a_time) == 8 * MIB
    assert allocator_peak(lambda: torch.empty(7 * MIB, dtype=torch.uint8)) == 7 * MIB
    assert allocator_peak(lambda: None) == 0
    assert capfd.readouterr() == ("", "")


def test_temporaries_of_an_operator_count() -> None:
    x = torch.ones(1024, 1024)
    assert abs(allocator_peak(lambda: (x + 1) * 2) - 8 * MIB) < 4096
    assert abs(allocator_peak(lambda: x.add_(1)) - 0) < 4096


def test_what_was_there_before_is_the_zero() -> None:
    held: list[torch.Tensor] = []

    def take() -> None:
        held.append(torch.empty(6 * MIB, dtype=torch.uint8))

    def free_and_take() -> None:
        held.clear()
        take()

    assert allocator_peak(take) == 6 * MIB
    assert allocator_peak(free_and_take) == 6 * MIB
    assert allocator_peak(held.clear) == 0


def test_addresses_that_changed_hands_between_measurements_do_not_mislead() -> None:
    held: list[torch.Tensor] = []
    for size in (8, 2, 8, 4):
        allocator_peak(lambda size=size: held.append(torch.empty(size * MIB, dtype=torch.uint8)))
        held.clear()
        held.append(torch.empty(size * MIB, dtype=torch.uint8))

        def swap(size: int = size) -> None:
            mine = torch.empty(size * MIB, dtype=torch.uint8)
            held.clear()
            held.append(torch.empty(size * MIB, dtype=torch.uint8))
            del mine

        assert allocator_peak(swap) == 2 * size * MIB


def test_backward_counts() -> None:
    weight = torch.ones(512, 512, requires_grad=True)
    x = torch.ones(512, 512)
    forward = allocator_peak(lambda: (x @ weight).detach())
    both = allocator_peak(lambda: (x @ weight).relu().sum().backward())
    assert abs(forward - MIB) < 4096
    assert 2 * MIB <= both < 5 * MIB


def test_an_error_ends_the_allocator_s_measurement() -> None:
    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        allocator_peak(fail)
    assert allocator_peak(two_at_a_time) == 8 * MIB


@pytest.mark.gpu
def test_cuda_peaks() -> None:
    torch.zeros(1, device="cuda")
    with PeakMemory() as peak:
        found = allocator_peak(lambda: torch.empty(8 * MIB, dtype=torch.uint8, device="cuda"), "cuda")
    assert found == 8 * MIB
    assert peak.cuda_peak_bytes >= 8 * MIB
